"""IDX files of one's own: images and labels in the format of MNIST, plain or .gz."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx.datasets import DatasetConfig, Source, Split, _cache, _idx, _user_data
from nnx.errors import ConfigError, DataError, MachineError
from nnx.events import Choice


class Config(DatasetConfig):
    """IDX files: a folder with train-images-idx3-ubyte and so on, or the file of the images and that of their
    labels."""

    name: Literal["idx"] = "idx"
    path: str = Field(
        examples=["images-idx3-ubyte"], description="the file of the images, or a folder that holds MNIST's four names"
    )
    labels: str | None = Field(
        None, description="the file of their labels; else found by its name: images -> labels, idx3 -> idx1"
    )
    test: _user_data.PartOrPath = Field(
        0.2, description="test data where there is none in path: its images, a count or a fraction"
    )
    test_labels: str | None = Field(None, description="the file of its labels; else found by its name")
    classes: _user_data.Names | None = Field(None, description="names of the classes 0, 1, 2, ...")


def load(config: Config, folder: Path) -> Source:
    """The IDX files at `config.path`; `folder` is not looked at. Raises ConfigError, DataError, MachineError."""
    path = _user_data.existing(config.path)
    inside = path.is_dir()
    pairs = {"train": _of_folder(path, "train") if inside else (path, _labels(path, config.labels, "dataset.labels"))}
    if isinstance(config.test, str):
        images = _user_data.existing(config.test, "dataset.test")
        pairs["test"] = (
            _of_folder(images, "test")
            if images.is_dir()
            else (images, _labels(images, config.test_labels, "dataset.test_labels"))
        )
    elif inside and _find(path, "test", "images"):
        pairs["test"] = _of_folder(path, "test")
    inputs, labels, among = {}, {}, None
    notes: list[Choice] = []
    for part, (images_at, labels_at) in pairs.items():
        if missing := [
            file for file in (images_at, labels_at) if not file.is_file()
        ]:  # to open a FIFO would wait for a writer
            raise DataError(f"{missing[0]}: is no file; name an IDX file, plain or .gz")
        images_found, kept = _images(images_at)
        inputs[part], notes = images_found[:, None], [*notes, *kept]  # (N, 1, H, W)
        labels[part], among = _user_data.numbered(_read_labels(labels_at), labels_at, names=config.classes, among=among)
        if len(inputs[part]) != len(labels[part]):
            raise DataError(
                f"{labels_at}: {len(labels[part]):,} labels for the {len(inputs[part]):,} images of {images_at}; give one for each"
            )
    classes = tuple(config.classes or among or ())
    train = Split(inputs["train"], labels["train"])
    if "test" in pairs:
        return Source(train, lambda: Split(inputs["test"], labels["test"]), classes, notes=tuple(notes[:1]))
    assert not isinstance(config.test, str)
    return _user_data.cut(train, config.test, classes, path, notes=notes)


WORDS = {"train": "train", "test": "t10k|test"}
OTHER = "not an IDX file"  # of that type, says `_idx.read`
CURE = "get the file again"


def _find(folder: Path, part: str, what: str) -> Path | None:
    """The file of the folder that has a part's images or labels, by its name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise MachineError(f"{folder}: can't be read ({error.strerror}); check its permissions") from None
    named = [
        name
        for name in names
        if re.search(WORDS[part], name) and re.search(rf"{what}.*idx", name) and not name.startswith(".")
    ]
    return folder / named[0] if named else None


def _of_folder(folder: Path, part: str) -> tuple[Path, Path]:
    images, labels = (_find(folder, part, what) for what in ("images", "labels"))
    if images is None or labels is None:
        first = WORDS[part].partition("|")[0]
        raise DataError(
            f"{folder}: holds no {part} data; put {first}-images-idx3-ubyte and {first}-labels-idx1-ubyte there, plain or .gz"
        )
    return images, labels


def _labels(images: Path, named: str | None, key: str) -> Path:
    """The file of the labels: the one named, else the one whose name goes with that of the images. Raises
    ConfigError."""
    if named:
        return _user_data.existing(named, key)
    usual = images.name.replace("images", "labels").replace("idx3", "idx1")
    for name in (usual, usual.removesuffix(".gz"), f"{usual}.gz"):
        if name != images.name and (images.parent / name).is_file():
            return images.parent / name
    raise ConfigError.at(key, f"is missing: name the file of the labels of {images}")


def _images(path: Path) -> tuple[NDArray[np.uint8], list[Choice]]:
    """(N, H, W), memory-mapped: as they are, or, of a packed file, out of the cache (see `_cache`); and what there is
    to say."""
    if path.suffix != ".gz":
        return _idx.mapped(path, np.uint8, dimensions=3, cure=CURE), []

    def unpack(writer: _cache.Writer) -> dict[str, Any]:
        for piece in _idx.pieces(path, np.uint8, dimensions=3, cure=CURE):
            writer.add("images", piece)
        return {}

    depends = _cache.Depends(os.path.abspath(path), {}, _cache.stamp_of([path]))
    kept = _cache.cached("idx", depends, unpack, {"images": ("uint8", 3)})
    return kept.arrays["images"], [kept.note]


def _read_labels(path: Path) -> NDArray[np.integer]:
    """(N,) labels of one byte each, or of four."""
    try:
        return _idx.read(path, np.uint8, cure=CURE)
    except DataError as error:
        if OTHER not in str(error):
            raise
        try:
            return _idx.read(path, np.int32, cure=CURE)
        except DataError as wider:
            raise error if OTHER in str(wider) else wider from None
