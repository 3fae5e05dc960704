"""Your own IDX files: images and labels in the format of MNIST, plain or .gz."""

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
    """IDX files: a folder with train-images-idx3-ubyte and so on, or one file of images and one of labels."""

    name: Literal["idx"] = "idx"
    path: str = Field(
        examples=["images-idx3-ubyte"], description="the file of images, or a folder with MNIST's four files"
    )
    labels: str | None = Field(
        None, description="the file of labels; by default found by name: images -> labels, idx3 -> idx1"
    )
    test: _user_data.TestData = Field(
        0.2, description="test data if path contains none: a file of images, a count, a fraction, or 0: no test"
    )
    test_labels: str | None = Field(None, description="the file of test labels; by default found by name")
    classes: _user_data.ClassNames | None = Field(None, description="names of the classes 0, 1, 2, ...")


def load(config: Config, folder: Path) -> Source:
    """The IDX files at `config.path`; `folder` is not used. Raises ConfigError, DataError, MachineError."""
    path = _user_data.resolve_path(config.path)
    inputs: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    known: dict[str, int] | None = None
    notes: list[Choice] = []
    for split, (images_path, labels_path) in _find_pairs(config, path).items():  # train first
        for file in (images_path, labels_path):
            if not file.is_file():  # opening a FIFO would wait for a writer
                raise DataError(f"{file}: is not a file; give an IDX file, plain or .gz")
        images, image_notes = _open_images(images_path)
        inputs[split] = images[:, None]  # (N, 1, H, W)
        notes += image_notes
        labels[split], known = _user_data.encode_labels(
            _read_labels(labels_path), labels_path, names=config.classes, known=known
        )
        if len(images) != len(labels[split]):
            counts = f"contains {len(labels[split]):,} labels, but {images_path} contains {len(images):,} images"
            raise DataError(f"{labels_path}: {counts}; give one label per image")
    classes = tuple(config.classes or known or ())
    train = Split(inputs["train"], labels["train"])
    if "test" in inputs:
        return Source(train, lambda: Split(inputs["test"], labels["test"]), classes, notes=tuple(notes[:1]))
    assert not isinstance(config.test, str)
    return _user_data.split_off_test(train, config.test, classes, path, notes=notes)


FILE_WORDS = {"train": "train", "test": "t10k|test"}
WRONG_TYPE = "not an IDX file"  # in the message of `_idx.read` for a file of another type
CURE = "get the file again"


def _find_pairs(config: Config, path: Path) -> dict[str, tuple[Path, Path]]:
    """The files of images and labels of the training split, and of the test split if there is one."""
    if path.is_dir():
        pairs = {"train": _find_pair(path, "train")}
    else:
        pairs = {"train": (path, _find_labels(path, config.labels, "dataset.labels"))}
    if isinstance(config.test, str):
        test_path = _user_data.resolve_path(config.test, "dataset.test")
        if test_path.is_dir():
            pairs["test"] = _find_pair(test_path, "test")
        else:
            pairs["test"] = (test_path, _find_labels(test_path, config.test_labels, "dataset.test_labels"))
    elif path.is_dir() and _find_file(path, "test", "images"):
        pairs["test"] = _find_pair(path, "test")
    return pairs


def _find_file(folder: Path, split: str, kind: str) -> Path | None:
    """The file in `folder` whose name says that it contains the images or labels of a split. Raises MachineError."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise MachineError(f"{folder}: can't be read ({error.strerror}); check its permissions") from None
    matches = [
        name
        for name in names
        if re.search(FILE_WORDS[split], name) and re.search(rf"{kind}.*idx", name) and not name.startswith(".")
    ]
    return folder / matches[0] if matches else None


def _find_pair(folder: Path, split: str) -> tuple[Path, Path]:
    """The files in `folder` with the images and the labels of a split. Raises DataError, MachineError."""
    images = _find_file(folder, split, "images")
    labels = _find_file(folder, split, "labels")
    if images is None or labels is None:
        word = FILE_WORDS[split].partition("|")[0]
        cure = f"add {word}-images-idx3-ubyte and {word}-labels-idx1-ubyte, plain or .gz"
        raise DataError(f"{folder}: contains no {split} data; {cure}")
    return images, labels


def _find_labels(images: Path, labels: str | None, key: str) -> Path:
    """The file of labels: the one given, otherwise the one named like the images. Raises ConfigError for `key`."""
    if labels:
        return _user_data.resolve_path(labels, key)
    usual = images.name.replace("images", "labels").replace("idx3", "idx1")
    for name in (usual, usual.removesuffix(".gz"), f"{usual}.gz"):
        if name != images.name and (images.parent / name).is_file():
            return images.parent / name
    raise ConfigError.at(key, f"is missing: give the file with the labels of {images}")


def _open_images(path: Path) -> tuple[NDArray[np.uint8], list[Choice]]:
    """(N, H, W) images, memory-mapped: from the file itself, or from the cache if it is packed; and notes."""
    if path.suffix != ".gz":
        return _idx.read_mapped(path, np.uint8, dimensions=3, cure=CURE), []

    def unpack(writer: _cache.Writer) -> dict[str, Any]:
        for piece in _idx.read_pieces(path, np.uint8, dimensions=3, cure=CURE):
            writer.add("images", piece)
        return {}

    key = _cache.CacheKey(os.path.abspath(path), {}, _cache.hash_file_stats([path]))
    cached = _cache.load_or_decode("idx", key, unpack, {"images": ("uint8", 3)})
    return cached.arrays["images"], [cached.note]


def _read_labels(path: Path) -> NDArray[np.integer]:
    """(N,) labels of one byte or four bytes each. Raises DataError, MachineError."""
    try:
        return _idx.read(path, np.uint8, cure=CURE)
    except DataError as error:
        if WRONG_TYPE not in str(error):
            raise
        try:
            return _idx.read(path, np.int32, cure=CURE)
        except DataError as error_of_int32:
            raise error if WRONG_TYPE in str(error_of_int32) else error_of_int32 from None
