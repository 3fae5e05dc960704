"""Images in the rows of a table: files in a Parquet column, as Hugging Face writes them, or a column per pixel."""

import io
import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets import _decode, _user_data, arrays
from nnx.errors import ConfigError, DataError
from nnx.events import Choice
from nnx.preprocessing import images
from nnx.preprocessing.columns import locate_first_row
from nnx.preprocessing.image_columns import MAX_COLUMNS, MAX_LENGTH, ImageColumns

if TYPE_CHECKING:
    import polars as pl

MAX_BYTES = 2**32  # of the pixels of all images


def find_image_column(schema: "pl.Schema", trained: ImageColumns | None = None) -> str | None:
    """The column of image files, bytes or a struct with a field called bytes: the one that a network was trained on,
    else the first; None if there is none."""
    import polars as pl

    columns = [name for name, kind in schema.items() if kind == pl.Binary or _is_image_struct(kind)]
    return next((name for name in columns if trained and name in trained.names), columns[0] if columns else None)


def check_names(columns: ImageColumns, path: str) -> None:
    """Raises DataError for columns that a checkpoint does not accept: too many, or with a long name."""
    if len(columns.names) > MAX_COLUMNS:
        raise DataError(f"{path}: has {len(columns.names):,} columns of pixels, at most {MAX_COLUMNS:,} can be used")
    if long := next((name for name in columns.names if len(name) > MAX_LENGTH), None):
        problem = f"the column {long[:40]!r}… has a name of {len(long):,} characters"
        raise DataError(f"{path}: {problem}; shorten it to at most {MAX_LENGTH}")


def file_bytes(column: "pl.Series") -> "list[bytes | None]":
    """The image files in a column."""
    return (column if str(column.dtype) == "Binary" else column.struct.field("bytes")).to_list()


def _is_image_struct(kind: "pl.DataType | type[pl.DataType]") -> bool:
    import polars as pl

    return isinstance(kind, pl.Struct) and any(
        field.name == "bytes" and field.dtype == pl.Binary for field in kind.fields
    )


def decode_files(
    column: "pl.Series", path: str, white: int | str | None = None, shape: tuple[int, ...] | None = None
) -> tuple[NDArray[np.uint8], int | None, tuple[Choice, ...]]:
    """A column of image files -> (N, C, H, W): gray if all are, else RGB; the value that became white, if images have
    more than 8 bits; and notes on it. `white` is that of the config; `shape`, (C, H, W), that of the training images,
    if these are others.

    Raises DataError, with the row, for a file that is missing, is no image, has another size, or has values above
    white; and without `white` for 16-bit values that would become few gray levels.
    """
    files = file_bytes(column)
    used = images.WHITES[0] if white == "auto" else int(white or images.WHITE)
    decoded, highest = _decode_rows(files, column.name, path, used, shape)
    top = max(highest)
    first = next((f"{path}, row {row}" for row, value in enumerate(highest, 1) if value), path)
    if white == "auto" and top > used:
        used = images.find_white(top)
        decoded, _ = _decode_rows(files, column.name, path, used, shape)
    if top > used:
        raise DataError(f"{path}, row {highest.index(top) + 1}: {images.above_white_message(top, used)}")
    if white is None and 0 < top < images.DARK:
        raise DataError(f"{first}: {images.few_levels_message(top)}")
    brightest = max(int(pixels.max()) for pixels in decoded)
    if shape is None and 0 < brightest < images.MIN_LEVELS and images.are_floats(io.BytesIO(files[0] or b"")):
        raise DataError(f"{path}, row 1: {images.dark_floats_message(brightest)}")
    channels = shape[0] if shape else max(pixels.shape[2] for pixels in decoded)
    stacked = np.stack([images.to_channels(pixels, channels) for pixels in decoded]).transpose(0, 3, 1, 2)
    notes = _user_data.describe_white(white, used, top) if top else ()
    return np.ascontiguousarray(stacked), used if top or isinstance(white, int) else None, notes


def _decode_rows(
    files: "list[bytes | None]", column: str, path: str, white: int, shape: tuple[int, ...] | None
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """The (H, W, C) image of each row and its highest value before scaling (see `images.measure`). Raises DataError."""
    decoded: list[NDArray[np.uint8]] = []
    highest: list[int] = []
    channels = shape[0] if shape else None
    size = shape[1:] if shape else None
    for row, data in enumerate(files, 1):
        where = f"{path}, row {row}"
        if data is None:
            raise DataError(f"{where}: has no image in column {column!r}; drop the row, or save images as bytes")
        pixels, top = images.measure(data, where, white=white)
        size = size or pixels.shape[:2]
        if pixels.shape[:2] != size:
            problem = f"image is {pixels.shape[1]} wide and {pixels.shape[0]} high, not {size[1]} by {size[0]}"
            raise DataError(f"{where}: {problem} as the first one; resize all images to one size")
        if channels or (pixels.shape[2] == 3 and (np.ptp(pixels, axis=2) <= _decode.TINT).all()):
            pixels = images.to_channels(pixels, channels or 1)
        if len(files) * math.prod(pixels.shape) > MAX_BYTES:
            problem = f"{len(files):,} images of {size[1]} by {size[0]} exceed {MAX_BYTES // 2**30} GiB"
            raise DataError(f"{path}: {problem}; save smaller images, or files for `dataset: folder`")
        decoded.append(pixels)
        highest.append(top)
    return decoded, highest


def pixel_order(columns: Sequence[str]) -> list[str]:
    """The columns in the order of the numbers in their names, such as pixel0, pixel1, ... or 1x1, 1x2, ...: a table in
    which they stand in another order has the same images. In the order of the table if the names don't number them."""
    patterns = {re.sub(r"\d+", "#", name) for name in columns}
    numbers = {name: tuple(map(int, re.findall(r"\d+", name))) for name in columns}
    numbered = len(patterns) == 1 and len(set(numbers.values())) == len(columns)
    return sorted(columns, key=numbers.__getitem__) if numbered else list(columns)


def reshape_pixels(
    rows: "pl.DataFrame",
    shape: list[int],
    path: str,
    white: int | str | None = None,
    *,
    scale: float | None = None,
) -> tuple[NDArray[np.uint8], float]:
    """A column per pixel, row by row -> (N, C, H, W) images of `shape` [H, W] or [H, W, C], and the factor that brings
    their values to 0 to 255. `white` is that of the config; `scale` that of the training images, if these are others.

    Raises ConfigError for another number of columns, DataError for values that are not pixels, or have another scale.
    """
    if rows.width != math.prod(shape):
        sides = " x ".join(map(str, shape))
        problem = f"{path} has {rows.width:,} columns besides the target, not {math.prod(shape):,} ({sides})"
        raise ConfigError.at("dataset.image", f"{problem}; correct the shape, or list other columns under dataset.drop")
    import polars as pl

    numbers = rows.select(pl.all().cast(pl.Float64, strict=False))
    for name in numbers.columns:
        if missing := numbers[name].is_null().arg_true().to_list():
            problem = f"column {name!r} contains {rows[name][missing[0]]!r}, which is not a pixel value"
            raise DataError(f"{locate_first_row(path, missing)}: {problem}; correct it, or drop the row")
    values = numbers.to_numpy()
    if scale is not None and scale <= 1 and values.max() <= 1 and (values != np.rint(values)).any():
        problem = f"contains pixel values from {values.min():g} to {values.max():g}"
        raise DataError(f"{path}: {problem}, those of the training images go up to {255 / scale:g}; multiply by it")
    if values.max() > 1 and (values == np.rint(values)).all() and np.abs(values).max() < 2**53:
        values = values.astype(np.int64)  # so that values between 8 and 16 bits are refused with the cure for integers
    pixels = values.reshape(-1, *shape, *([1] if len(shape) == 2 else [])).transpose(0, 3, 1, 2)
    used = arrays.pixel_scale(pixels, path, white) if scale is None else scale
    return np.ascontiguousarray(arrays.convert_block(pixels, used, path, 0)), used


def trained_pixels(frame: "pl.DataFrame", columns: ImageColumns, path: str) -> "pl.DataFrame":
    """The columns of the pixels that a network was trained on, in their order. Raises DataError if one is missing."""
    if missing := [name for name in columns.names if name not in frame.columns]:
        count = f"{len(missing):,} of the {len(columns.names):,} columns of pixels"
        problem = f"lacks {count} that the network was trained on, such as {missing[0]!r}"
        raise DataError(f"{path}: {problem}; name the columns as in the training data")
    return frame.select(columns.names)


def class_names(path: str, target: str) -> list[str] | None:
    """The names of the classes 0, 1, 2, ... in the metadata that Hugging Face writes into a Parquet file, if any."""
    import polars as pl

    try:
        metadata = pl.read_parquet_metadata(path)
        feature: Any = json.loads(metadata["huggingface"])["info"]["features"][target]
        names = feature["names"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, pl.exceptions.PolarsError):
        return None
    usable = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    return names if usable and len(set(names)) == len(names) else None
