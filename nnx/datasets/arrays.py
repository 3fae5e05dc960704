"""Arrays of one's own: a NumPy archive (.npz), or .npy files, larger than memory if need be."""

import errno
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx import formatting
from nnx.datasets import DatasetConfig, Source, Split, _cache, _user_data
from nnx.datasets._mapped import fits
from nnx.errors import ConfigError, DataError, MachineError
from nnx.events import Choice

# What the inputs and labels of each part may be called: Keras, MedMNIST, and in general
INPUTS, LABELS = ("x", "images", "data", "features", "inputs"), ("y", "labels", "targets", "target", "label")
PARTS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
BLOCK = 2**23  # values that are converted at a time
PICKLED = "holds Python objects, which are never read; save plain numbers"
DEFLATE = 1032  # deflate packs no denser: an archive that claims more is a bomb


class Config(DatasetConfig):
    """x_train, y_train, x_test, ... (or train_images, train_labels, ...; or images, labels) of a .npz, a folder of
    .npy, or .npy files."""

    name: Literal["arrays"] = "arrays"
    path: str = Field(
        examples=["data.npz"], description="the .npz; or the .npy of the inputs; or a folder of .npy files"
    )
    labels: str | None = Field(None, description="the .npy of the labels, where path is a .npy")
    test: _user_data.PartOrPath = Field(
        0.2, description="test data where there is none in path: another such file, a count or a fraction"
    )
    test_labels: str | None = Field(None, description="the .npy of its labels, where test is a .npy")
    classes: _user_data.Names | None = Field(None, description="names of the classes 0, 1, 2, ...")


@dataclass(frozen=True)
class Stored:
    """An array in a file, not read yet."""

    where: str  # for messages
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


def load(config: Config, folder: Path) -> Source:
    """The arrays at `config.path`; `folder` is not looked at. Images become (N, C, H, W) uint8, rows (N, F) float32.

    A .npy of one of these types is memory-mapped as it is; all else is converted once (see `_cache`). Nothing is ever
    unpickled. Raises ConfigError, DataError, MachineError.
    """
    path = _user_data.existing(config.path)
    parts = _parts(_stored(path, config.labels, "dataset.labels"), path)
    if isinstance(config.test, str):
        test = _user_data.existing(config.test, "dataset.test")
        found = _parts(_stored(test, config.test_labels, "dataset.test_labels"), test, to="test")
        parts["test"] = found.get("test") or found["train"]
    among, labels = None, {}
    for part, (inputs, stored) in parts.items():  # train first
        if not inputs.shape[:1] or not inputs.shape[0]:
            raise DataError(f"{inputs.where}: holds no samples; {part} data must have some")
        labels[part], among = _user_data.numbered(stored.read(), stored.where, names=config.classes, among=among)
    classes = tuple(config.classes or among or ())
    arrays, notes = _inputs({part: pair[0] for part, pair in parts.items()}, path)
    splits = {part: Split(arrays[part], labels[part]) for part in parts}
    if "test" in splits:
        return Source(
            splits["train"], lambda: splits["test"], classes, validation=splits.get("validation"), notes=tuple(notes)
        )
    assert not isinstance(config.test, str)
    return _user_data.cut(splits["train"], config.test, classes, path, validation=splits.get("validation"), notes=notes)


# ---------------------------------------------------------------- which arrays there are


def _stored(path: Path, labels: str | None, key: str) -> dict[str, Stored]:
    """The arrays of a .npz, of a folder of .npy files, or a .npy and that of its labels, by name. Raises ConfigError,
    DataError."""
    if path.is_dir():
        if found := {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))}:
            return found
        raise DataError(f"{path}: holds no .npy files; name the file or folder of the arrays")
    if path.suffix != ".npy":
        return _npz(path)
    if labels is None:
        raise ConfigError.at(key, f"is missing: {path} holds inputs alone; name the .npy file of their labels")
    return {"x_train": _npy(path), "y_train": _npy(_user_data.existing(labels, key))}


def _npy(path: Path) -> Stored:
    def mapped() -> NDArray[Any]:
        with path.open("rb") as file:
            shape, dtype = _header(file)
        if dtype.hasobject:
            raise DataError(f"{path}: {PICKLED}")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        if math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError("cut short")
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        return array

    _check_file(path)
    array = _guarded(str(path), mapped)
    return Stored(str(path), path, array.shape, array.dtype, lambda: array)


def _npz(path: Path) -> dict[str, Stored]:
    """The arrays of an archive. What claims more than can be packed into its bytes, or needs more than there is of
    memory, is refused."""
    _check_file(path)

    def member(info: zipfile.ZipInfo) -> Stored:
        where = f"{path}: {info.filename}"

        def opened(read: Callable[[IO[bytes]], Any]) -> Any:
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                return read(file)

        def unpacked() -> NDArray[Any]:
            if info.file_size > DEFLATE * info.compress_size + 1000:
                raise DataError(f"{where}: claims to be larger than its bytes can hold; get the file again")
            if not fits(info.file_size):
                what = f"takes {formatting.size(info.file_size)}, more than half of the free memory"
                raise MachineError(f"{where}: {what}; save it as .npy, which is read bit by bit")
            array: NDArray[Any] = opened(lambda file: np.lib.format.read_array(file, allow_pickle=False))
            return array

        shape, dtype = _guarded(where, lambda: opened(_header))
        if dtype.hasobject:
            raise DataError(f"{where}: {PICKLED}")
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise DataError(f"{where}: claims to be larger than it is; get the file again")
        return Stored(where, path, shape, dtype, lambda: _guarded(where, unpacked))

    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise DataError(
            f"{path}: is no .npz, .npy or folder of .npy files; save arrays by numpy.savez_compressed"
        ) from None
    return {info.filename.removesuffix(".npy"): member(info) for info in infos}


def _check_file(path: Path) -> None:
    if not path.is_file():  # to open a FIFO would wait for a writer
        raise DataError(f"{path}: is no file; name a .npz or .npy file")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("not a shape")
    return shape, dtype


def _guarded(where: str, read: Callable[[], Any]) -> Any:
    """What `read` gives. Raises DataError for what is damaged or would have to be unpickled, MachineError for what
    can't be read."""
    try:
        found = read()
    except (DataError, MachineError, MemoryError):
        raise
    except Exception as error:  # numpy's parsers trip over what is damaged in many ways
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # the latter by a place in it that can't be
            raise MachineError(f"{where}: can't be read ({error.strerror})") from None
        raise DataError(f"{where}: is damaged or cut short; save it again") from None
    return found


def _parts(arrays: Mapping[str, Stored], path: Path, to: str = "train") -> dict[str, tuple[Stored, Stored]]:
    """(inputs, labels) of train, validation and test, as far as they are there, by their usual names. Raises DataError
    where there are none to train on or, if it is `to` test, neither those nor others to test on."""
    plain = {name.lower(): stored for name, stored in arrays.items()}

    def first(kinds: tuple[str, ...], words: tuple[str, ...]) -> Stored | None:
        wanted = [name for word in words for kind in kinds for name in (f"{kind}_{word}", f"{word}_{kind}")] or [*kinds]
        return next((plain[name] for name in wanted if name in plain), None)

    found = {part: (first(INPUTS, words), first(LABELS, words)) for part, words in PARTS.items()}
    if found["train"] == (None, None):
        found["train"] = first(INPUTS, ()), first(LABELS, ())
    pairs = {}
    for part, (inputs, labels) in found.items():
        if inputs and labels:
            if inputs.shape[:1] != labels.shape[:1]:
                raise DataError(
                    f"{path}: {part} inputs of {_text(inputs.shape)}, but labels of {_text(labels.shape)}; one label is for each"
                )
            pairs[part] = inputs, labels
        elif inputs or labels or (part == to and "train" not in pairs):
            there = ", ".join(sorted(plain)[:10]) or "nothing"
            raise DataError(
                f"{path}: holds {there}; {part} data is to be called x_{part} and y_{part}, or {part}_images and {part}_labels"
            )
    return pairs


# ---------------------------------------------------------------- as images or rows


def _inputs(stored: dict[str, Stored], path: Path) -> tuple[dict[str, NDArray[Any]], list[Choice]]:
    """The inputs of each part as (N, C, H, W) uint8 or (N, F) float32: mapped as they are, or converted once; and what
    was chosen."""
    _check_forms(stored)
    shape = stored["train"].shape
    axis, notes = 1, []
    if len(shape) == 4:
        axis = 3 if shape[3] <= shape[1] else 1
        notes = [
            Choice("layout", "N x H x W x C" if axis == 3 else "N x C x H x W", "the shorter axis has the channels")
        ]
    rows = len(shape) == 2
    ready = np.dtype(np.float32 if rows else np.uint8)
    plain = all(array.file.suffix == ".npy" and array.dtype == ready for array in stored.values())
    if plain and not rows:
        return {part: _arranged(array.read(), axis) for part, array in stored.items()}, notes

    def convert(writer: _cache.Writer) -> dict[str, Any]:
        scale = 1.0 if rows else 0.0
        for part, array in stored.items():
            values = array.read()
            scale = scale or _scale(values, array.where)
            block = max(1, BLOCK // math.prod(shape[1:]))
            for start in range(0, len(values), block):
                piece = _converted(_arranged(values[start : start + block], axis), scale, array.where, start)
                if not plain:
                    writer.add(part, piece)
        return {"scale": scale}

    files = sorted({array.file for array in stored.values()})
    depends = _cache.Depends(
        os.path.abspath(path), {part: array.where for part, array in stored.items()}, _cache.stamp_of(files)
    )
    arrays = {} if plain else dict.fromkeys(stored, (ready.name, 2 if rows else 4))
    kept = _cache.cached("arrays", depends, convert, arrays, {"scale": float})
    if plain:  # looked through once, for what is no number
        return {part: array.read() for part, array in stored.items()}, notes
    scale = kept.facts["scale"]
    gray = (
        []
        if scale == 1
        else [Choice("gray levels", f"times {scale:.4g}", f"so that 0 to {255 / scale:g} become 0 to 255")]
    )
    return kept.arrays, [*notes, kept.note, *gray]


def _check_forms(stored: dict[str, Stored]) -> None:
    """Raises DataError for what is neither images nor rows, of numbers, or not of one form in all parts."""
    shape = stored["train"].shape
    for part, array in stored.items():
        if len(array.shape) not in (2, 3, 4) or not all(array.shape) or array.shape[1:] != shape[1:]:
            forms = "N x H x W, N x H x W x C or N x C x H x W for images, N x F for rows, and the same for all parts"
            raise DataError(f"{array.where}: {part} inputs of {_text(array.shape)}; give {forms}")
        if array.dtype.kind not in "uifb":
            raise DataError(f"{array.where}: is of type {array.dtype}; give numbers")


def _arranged(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """(N, C, H, W) of images whose channels lie along `axis`, or that have none; rows as they are. A view."""
    return (
        array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2) if array.ndim == 4 and axis == 3 else array
    )


def _scale(images: NDArray[Any], where: str) -> float:
    """What brings images to 0 to 255: 255 for those from 0 to 1, 1/257 for 16 bits. Raises DataError."""
    low, high = float(images.min()), float(images.max())
    cure = "give uint8 from 0 to 255, or floats from 0 to 1"
    if not np.isfinite(low + high):
        row = next(row for row, image in enumerate(images) if not np.isfinite(image).all())
        raise DataError(f"{where}: row {row} holds an infinite number or NaN; correct it, or drop the row")
    if not (low >= 0 and high <= (65535 if images.dtype.kind in "ui" else 255)):
        raise DataError(f"{where}: holds gray levels from {low:g} to {high:g}; {cure}; nnx normalises them itself")
    if images.dtype.kind in "fb" and high <= 1:
        return 255.0
    if 255 < high < 4096:  # of which 16 bits to 8 would leave 16 levels
        cure = "divide them by what white is, so that they run from 0 to 1"
        raise DataError(
            f"{where}: holds gray levels from {low:g} to {high:g}, neither those of 8 bits nor those of 16; {cure}"
        )
    return 1.0 if high <= 255 else 1 / 257


def _converted(values: NDArray[Any], scale: float, where: str, start: int) -> NDArray[Any]:
    """A block of images as uint8, or of rows as float32. Raises DataError, naming the row, for what is no number or out
    of range."""
    if values.ndim == 2:
        with np.errstate(over="ignore"):
            done = values.astype(np.float32)
        wrong, what = ~np.isfinite(done).all(1), "an infinite number or NaN"
    else:
        wide = np.rint(values.astype(np.float64) * scale)
        wrong, what = (
            ~((wide >= 0) & (wide <= 255)).all((1, 2, 3)),
            f"gray levels beyond 0 to {255 / scale:g}, unlike the first part",
        )
        with np.errstate(invalid="ignore"):
            done = wide.astype(np.uint8)
    if wrong.any():
        raise DataError(f"{where}: row {start + int(np.argmax(wrong))} holds {what}; correct it, or drop the row")
    return done


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no dimension"
