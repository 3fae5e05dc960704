"""Your own arrays: a NumPy archive (.npz) or .npy files, which may be larger than memory."""

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
from nnx.datasets._mapped import fits, note_mapped
from nnx.errors import ConfigError, DataError, MachineError
from nnx.events import Choice
from nnx.preprocessing.images import DARK, MIN_LEVELS, WHITE, find_white

# Names accepted for the inputs and the labels of a split: those of Keras and MedMNIST, and common ones
INPUTS = ("x", "images", "data", "features", "inputs")
LABELS = ("y", "labels", "targets", "target", "label")
SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
BLOCK = 2**23  # values converted at a time
MAX_RATIO = 4  # of an image's sides: floats that might be sequences are not read as a longer image
PICKLED = "contains Python objects, which nnx never loads; save plain numbers"
DEFLATE = 1032  # deflate's highest compression ratio: an archive that claims more is a zip bomb


class Config(DatasetConfig):
    """Arrays x_train, y_train, x_test, ... (or train_images, train_labels, ...; or images, labels) in .npz or .npy."""

    name: Literal["arrays"] = "arrays"
    path: str = Field(
        examples=["data.npz"], description="a .npz file, a .npy file of inputs, or a folder of .npy files"
    )
    labels: str | None = Field(None, description="the .npy file of the labels, if path is a .npy file")
    inputs: Literal["auto", "images", "rows"] = Field(
        "auto",
        description="images: N x H x W (x C); rows: features, also sequences (N x T x F), flattened; auto: rows if "
        "N x F, else images",
    )
    white: _user_data.White | None = Field(
        None,
        examples=[4095],
        description="value of white in images of more than 8 bits: 255, 4095, ..., or auto: as the training images "
        "need; by default 255 or 65535, where that is clear",
    )
    test: _user_data.TestData = Field(
        0.2, description="test data if path contains none: another such file, a count, a fraction, or 0: no test"
    )
    test_labels: str | None = Field(None, description="the .npy file of the test labels, if test is a .npy file")
    classes: _user_data.ClassNames | None = Field(None, description="names of the classes 0, 1, 2, ...")


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which only the header has been read."""

    where: str  # for messages
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


def load(config: Config, folder: Path) -> Source:
    """The arrays at `config.path`; `folder` is not used. Images become (N, C, H, W) uint8, rows (N, F) float32.

    A .npy file of one of these types is memory-mapped as it is; anything else is converted once (see `_cache`).
    Nothing is ever unpickled. Raises ConfigError, DataError, MachineError.
    """
    path = _user_data.resolve_path(config.path)
    splits = _pair_splits(_open_arrays(path, config.labels, "dataset.labels"), path)
    if isinstance(config.test, str):
        test_path = _user_data.resolve_path(config.test, "dataset.test")
        test_arrays = _open_arrays(test_path, config.test_labels, "dataset.test_labels")
        test_splits = _pair_splits(test_arrays, test_path, required="test")
        splits["test"] = test_splits.get("test") or test_splits["train"]
    known = None
    labels = {}
    for name, (inputs, stored) in splits.items():  # train first
        if not inputs.shape[:1] or not inputs.shape[0]:
            raise DataError(f"{inputs.where}: contains no samples; add some {name} samples")
        labels[name], known = _user_data.encode_labels(stored.read(), stored.where, names=config.classes, known=known)
    classes = tuple(config.classes or known or ())
    arrays, white, notes = _load_inputs({name: inputs for name, (inputs, _) in splits.items()}, path, config)
    loaded = {name: Split(arrays[name], labels[name]) for name in splits}
    train = loaded["train"]
    fields: dict[str, Any] = {"validation": loaded.get("validation"), "white": white, "notes": tuple(notes)}
    if "test" in loaded:
        return Source(train, lambda: loaded["test"], classes, **fields)
    assert not isinstance(config.test, str)
    return _user_data.split_off_test(train, config.test, classes, path, **fields)


# ---------------------------------------------------------------- finding the arrays


def _open_arrays(path: Path, labels: str | None, key: str) -> dict[str, StoredArray]:
    """The arrays at `path` by name: of a .npz, of a folder of .npy files, or a .npy and that of its `labels`.

    Raises ConfigError for `key` if a .npy file comes without labels, DataError for anything that can't be read.
    """
    if path.is_dir():
        if arrays := {file.stem: open_npy(file) for file in sorted(path.glob("*.npy"))}:
            return arrays
        raise DataError(f"{path}: contains no .npy files; give a .npz file, a .npy file or a folder of .npy files")
    if path.suffix != ".npy":
        return open_npz(path)
    if labels is None:
        raise ConfigError.at(key, f"is missing: {path} contains only inputs; give the .npy file of their labels")
    return {"x_train": open_npy(path), "y_train": open_npy(_user_data.resolve_path(labels, key))}


def open_npy(path: Path) -> StoredArray:
    """The array in a .npy file, memory-mapped. Raises DataError, MachineError."""

    def map_file() -> NDArray[Any]:
        with path.open("rb") as file:
            shape, dtype = _read_header(file)
        if dtype.hasobject:
            raise DataError(f"{path}: {PICKLED}")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        if math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError("cut short")
        note_mapped(path)
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        return array

    _check_is_file(path)
    array = _read_safely(str(path), map_file)
    return StoredArray(str(path), path, array.shape, array.dtype, lambda: array)


def open_npz(path: Path) -> dict[str, StoredArray]:
    """The arrays in a .npz archive, by name.

    Raises DataError for an array that claims to be larger than its compressed bytes allow; reading one that does not
    fit in memory raises MachineError.
    """
    _check_is_file(path)

    def open_member(info: zipfile.ZipInfo) -> StoredArray:
        where = f"{path}: {info.filename}"

        def read_with(read: Callable[[IO[bytes]], Any]) -> Any:
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                return read(file)

        def unpack() -> NDArray[Any]:
            if info.file_size > DEFLATE * info.compress_size + 1000:
                raise DataError(f"{where}: claims more data than its compressed bytes allow; get the file again")
            if not fits(info.file_size):
                problem = f"needs {formatting.size(info.file_size)}, more than half of the free memory"
                raise MachineError(f"{where}: {problem}; save it as .npy, which is memory-mapped")
            array: NDArray[Any] = read_with(lambda file: np.lib.format.read_array(file, allow_pickle=False))
            return array

        shape, dtype = _read_safely(where, lambda: read_with(_read_header))
        if dtype.hasobject:
            raise DataError(f"{where}: {PICKLED}")
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise DataError(f"{where}: claims more data than it contains; get the file again")
        return StoredArray(where, path, shape, dtype, lambda: _read_safely(where, unpack))

    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        problem = "is not a .npz file, a .npy file or a folder of .npy files"
        raise DataError(f"{path}: {problem}; save arrays with numpy.savez_compressed") from None
    return {info.filename.removesuffix(".npy"): open_member(info) for info in infos}


def _check_is_file(path: Path) -> None:
    if not path.is_file():  # opening a FIFO would wait for a writer
        raise DataError(f"{path}: is not a file; give a .npz or .npy file")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("not a shape")
    return shape, dtype


def _read_safely(where: str, read: Callable[[], Any]) -> Any:
    """The result of `read`. Raises DataError for damaged or pickled data, MachineError for an unreadable file."""
    try:
        return read()
    except (DataError, MachineError, MemoryError):
        raise
    except Exception as error:  # damaged files make numpy's parsers fail in many ways
        # EINVAL comes from an impossible offset in a damaged file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise MachineError(f"{where}: can't be read ({error.strerror})") from None
        raise DataError(f"{where}: is damaged or cut short; save it again") from None


def _pair_splits(
    arrays: Mapping[str, StoredArray], path: Path, required: str = "train"
) -> dict[str, tuple[StoredArray, StoredArray]]:
    """(inputs, labels) of the train, validation and test splits that are present, found by their usual names.

    Raises DataError if there is no training split or, where `required` is test, neither that nor a test split.
    """
    by_name = {name.lower(): stored for name, stored in arrays.items()}

    def first(kinds: tuple[str, ...], words: tuple[str, ...]) -> StoredArray | None:
        wanted = [name for word in words for kind in kinds for name in (f"{kind}_{word}", f"{word}_{kind}")] or [*kinds]
        return next((by_name[name] for name in wanted if name in by_name), None)

    candidates = {split: (first(INPUTS, words), first(LABELS, words)) for split, words in SPLITS.items()}
    if candidates["train"] == (None, None):
        candidates["train"] = first(INPUTS, ()), first(LABELS, ())
    pairs = {}
    for split, (inputs, labels) in candidates.items():
        if inputs and labels:
            if inputs.shape[:1] != labels.shape[:1]:
                problem = (
                    f"{split} inputs have shape {_shape_text(inputs.shape)}, but labels {_shape_text(labels.shape)}"
                )
                raise DataError(f"{path}: {problem}; give one label per sample")
            pairs[split] = inputs, labels
        elif inputs or labels or (split == required and "train" not in pairs):
            listed = ", ".join(sorted(by_name)[:10]) or "nothing"
            cure = f"name the {split} arrays x_{split} and y_{split}, or {split}_images and {split}_labels"
            raise DataError(f"{path}: contains {listed}; {cure}")
    return pairs


# ---------------------------------------------------------------- converting them to images or rows


def _load_inputs(
    stored: dict[str, StoredArray], path: Path, config: Config
) -> tuple[dict[str, NDArray[Any]], int | None, list[Choice]]:
    """The inputs of each split as (N, C, H, W) uint8 or (N, F) float32, memory-mapped or converted once; the value that
    was white, if images had more than 8 bits and it is known; and notes."""
    _check_shapes(stored)
    shape = stored["train"].shape
    white = config.white
    is_rows = len(shape) == 2 or config.inputs == "rows"
    if is_rows and config.inputs == "images":
        raise ConfigError.at("dataset.inputs", f"{stored['train'].where} has rows, {_shape_text(shape)}; remove it")
    axis = 1
    notes = []
    if len(shape) == 4 and not is_rows:
        axis = 3 if shape[3] <= shape[1] else 1
        layout = "N x H x W x C" if axis == 3 else "N x C x H x W"
        notes = [Choice("layout", layout, "channels are on the shorter of axes 1 and 3")]
    dtype = np.dtype(np.float32 if is_rows else np.uint8)
    usable = all(array.file.suffix == ".npy" and array.dtype == dtype for array in stored.values())

    def read(array: StoredArray) -> NDArray[Any]:
        values = array.read()
        return values.reshape(len(values), -1) if is_rows else values

    if usable and not is_rows:
        return {split: channels_first(array.read(), axis) for split, array in stored.items()}, None, notes

    def convert(writer: _cache.Writer) -> dict[str, Any]:
        scale = 1.0 if is_rows else 0.0
        highest = 0.0
        for split, array in stored.items():  # train first
            values = read(array)
            if not scale:
                if config.inputs == "auto" and white is None:
                    _check_sides(values, array.where)
                scale = pixel_scale(values, array.where, white)
                highest = float(values.max())
            rows = max(1, BLOCK // math.prod(shape[1:]))
            for start in range(0, len(values), rows):
                block = channels_first(values[start : start + rows], axis)
                converted = convert_block(block, scale, array.where, start)
                if not usable:
                    writer.add(split, converted)
        return {"scale": scale, "highest": highest}

    files = sorted({array.file for array in stored.values()})
    key = _cache.CacheKey(
        os.path.abspath(path),
        {split: array.where for split, array in stored.items()}
        | {"white": None if is_rows else white, "inputs": config.inputs},
        _cache.hash_file_stats(files),
    )
    arrays = {} if usable else dict.fromkeys(stored, (dtype.name, 2 if is_rows else 4))

    def is_possible(cached: _cache.CachedData) -> bool:
        return all(len(cached.arrays[split]) == stored[split].shape[0] for split in cached.arrays)

    facts = {"scale": float, "highest": float}
    cached = _cache.load_or_decode("arrays", key, convert, arrays, facts, is_possible)
    if usable:  # convert() only checked the values, once, for infinite numbers and NaN
        return {split: read(array) for split, array in stored.items()}, None, notes
    scale = cached.facts["scale"]
    highest = cached.facts["highest"]
    notes.append(cached.note)
    if scale != 1:
        notes.append(
            Choice("gray levels", f"times {scale:.4g}", f"values from 0 to {255 / scale:g} are scaled to 0 to 255")
        )
    if len(shape) > 2 and (config.inputs != "auto" or _may_be_sequences(stored["train"], highest)):
        how = f"of {' x '.join(map(str, shape[1:]))}" + (", flattened" if is_rows else "")
        other = "as dataset.inputs says" if config.inputs != "auto" else "dataset.inputs: rows reads sequences instead"
        notes.append(Choice("inputs", f"{'rows' if is_rows else 'images'} {how}", other))
    if is_rows or has_own_white(stored["train"].dtype, highest) or (scale == 1 and white is None):
        return cached.arrays, None, notes
    used = round(255 / scale)
    notes += _user_data.describe_white(white, used, round(highest))
    return cached.arrays, used, notes


def _check_shapes(stored: dict[str, StoredArray]) -> None:
    """Raises DataError for inputs that are not numeric images or rows, or whose shape differs between splits."""
    shape = stored["train"].shape
    for split, array in stored.items():
        if len(array.shape) not in (2, 3, 4) or not all(array.shape) or array.shape[1:] != shape[1:]:
            shapes = "N x H x W, N x H x W x C or N x C x H x W for images, N x F for rows, the same in all splits"
            raise DataError(f"{array.where}: has {split} inputs of shape {_shape_text(array.shape)}; give {shapes}")
        if array.dtype.kind not in "uifb":
            raise DataError(f"{array.where}: contains values of type {array.dtype}; give numbers")


def _may_be_sequences(stored: StoredArray, highest: float) -> bool:
    """Whether an array of three axes has floats up to 1, as images do, but scaled sequences, too."""
    return len(stored.shape) == 3 and stored.dtype.kind == "f" and highest <= 1


def _check_sides(values: NDArray[Any], where: str) -> None:
    """Raises DataError for (N, a, b) floats from 0 to 1 of which a and b differ as in sequences, not as in images."""
    if values.ndim != 3 or values.dtype.kind != "f" or values.max() > 1 or values.min() < 0:
        return
    sides = values.shape[1:]
    if max(sides) > MAX_RATIO * min(sides):
        problem = f"has inputs of {_shape_text(sides)} with values from 0 to 1: images or sequences (N x T x F)?"
        raise DataError(f"{where}: {problem}; set dataset.inputs to images or rows")


def channels_first(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Images with channels on `axis`, or without any -> (N, C, H, W); rows stay as they are. Returns a view."""
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 and axis == 3 else array


def has_own_white(dtype: np.dtype[Any], highest: float) -> bool:
    """Whether the values say themselves what is white: 255 in 8 bits, 1 in floats up to 1."""
    return dtype.kind == "b" or (dtype.itemsize == 1 if dtype.kind in "ui" else highest <= 1)


def pixel_scale(images: NDArray[Any], where: str, white: int | str | None = None) -> float:
    """The factor that brings images to 0 to 255: 255 for floats from 0 to 1, else 255 / `white`, where "auto" means as
    little as the images need; by default 1 for values up to 255, and 1/257 for 16 bits.

    Raises DataError for any other range, infinite numbers and NaN.
    """
    low = float(images.min())
    high = float(images.max())
    if not np.isfinite(low + high):
        row = next(row for row, image in enumerate(images) if not np.isfinite(image).all())
        raise DataError(f"{where}: row {row} contains an infinite number or NaN; correct it, or drop the row")
    problem = f"contains pixel values from {low:g} to {high:g}"
    is_integer = images.dtype.kind in "ui"
    if not (low >= 0 and high <= (WHITE if is_integer or white else 255)):
        cure = "give uint8 from 0 to 255, or floats from 0 to 1; nnx normalises them itself"
        if low < 0 and images.ndim == 3:
            cure += "; for sequences (N x T x F), set dataset.inputs: rows, which flattens them"
        raise DataError(f"{where}: {problem}; {cure}")
    if images.ndim == 3 and not is_integer and high > 1 and white is None and _has_fractions(images):
        cure = "for sequences (N x T x F), set dataset.inputs: rows; for images, set dataset.white: 255"
        raise DataError(f"{where}: {problem}, with fractions: images or sequences?; {cure}")
    levels = round(high * 255 if high <= 1 else high) + 1
    if not is_integer and 1 < levels <= MIN_LEVELS and white is None and _has_fractions(images):
        cure = "multiply them so that white is 1" if high <= 1 else "set dataset.white to the value that is white"
        raise DataError(f"{where}: {problem}, which leave {levels} of 256 gray levels; {cure}")
    if has_own_white(images.dtype, high):
        return 1.0 if is_integer else 255.0
    if white is not None:
        value = find_white(math.ceil(high)) if white == "auto" else int(white)
        if high > value:
            raise DataError(f"{where}: {problem}, above the white of {value:,}; train with a higher dataset.white")
        return 255 / value
    if 255 < high < DARK:  # reducing 16 bits to 8 would leave only 16 levels
        cure = f"set dataset.white to the value that is white, such as {find_white(math.ceil(high))}, or to auto"
        raise DataError(f"{where}: {problem}, neither 8 nor 16 bits; {cure}")
    return 1.0 if high <= 255 else 255 / WHITE


def _has_fractions(values: NDArray[Any]) -> bool:
    """Whether the first values, up to BLOCK, are not all whole numbers."""
    head = values[: max(1, BLOCK // math.prod(values.shape[1:]))]
    return bool((head != np.rint(head)).any())


def convert_block(values: NDArray[Any], scale: float, where: str, start: int) -> NDArray[Any]:
    """A block of images as uint8, or of rows as float32. `start` is the number of its first row.

    Raises DataError, naming the row, for infinite numbers, NaN and pixel values out of range.
    """
    if values.ndim == 2:
        with np.errstate(over="ignore"):
            converted = values.astype(np.float32)
        wrong = ~np.isfinite(converted).all(1)
        problem = "an infinite number or NaN"
    else:
        wide = np.rint(values.astype(np.float64) * scale)
        wrong = ~((wide >= 0) & (wide <= 255)).all((1, 2, 3))
        problem = f"pixel values outside 0 to {255 / scale:g}, the range of the training images"
        with np.errstate(invalid="ignore"):
            converted = wide.astype(np.uint8)
    if wrong.any():
        row = start + int(np.argmax(wrong))
        raise DataError(f"{where}: row {row} contains {problem}; correct it, or drop the row")
    return converted


def _shape_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"
