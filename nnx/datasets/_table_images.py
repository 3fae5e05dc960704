"""Images in the rows of a table: files in a Parquet column, as Hugging Face writes them, or a column per pixel."""

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets import _decode, arrays
from nnx.errors import ConfigError, DataError
from nnx.preprocessing import images
from nnx.preprocessing.columns import locate_first_row

if TYPE_CHECKING:
    import polars as pl

MAX_BYTES = 2**32  # of the pixels of all images


def find_image_column(schema: "pl.Schema") -> str | None:
    """The first column of image files: bytes, or a struct with a field called bytes; None if there is none."""
    import polars as pl

    return next((name for name, kind in schema.items() if kind == pl.Binary or _is_image_struct(kind)), None)


def _is_image_struct(kind: "pl.DataType | type[pl.DataType]") -> bool:
    import polars as pl

    return isinstance(kind, pl.Struct) and any(
        field.name == "bytes" and field.dtype == pl.Binary for field in kind.fields
    )


def decode_files(column: "pl.Series", path: str, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """A column of image files -> (N, C, H, W): gray if all are, else RGB; `shape`, (C, H, W), is that of the training
    images, if these are others. Raises DataError, with the row, for a file that is missing, is no image or has another
    size."""
    files = (column if str(column.dtype) == "Binary" else column.struct.field("bytes")).to_list()
    decoded: list[NDArray[np.uint8]] = []
    channels = shape[0] if shape else None
    size = shape[1:] if shape else None
    for row, data in enumerate(files, 1):
        where = f"{path}, row {row}"
        if data is None:
            raise DataError(f"{where}: has no image in column {column.name!r}; drop the row, or save images as bytes")
        pixels = images.measure(data, where).pixels
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
    most = channels or max(pixels.shape[2] for pixels in decoded)
    return np.ascontiguousarray(
        np.stack([images.to_channels(pixels, most) for pixels in decoded]).transpose(0, 3, 1, 2)
    )


def reshape_pixels(
    rows: "pl.DataFrame", shape: list[int], path: str, scale: float | None = None
) -> tuple[NDArray[np.uint8], float]:
    """A column per pixel, row by row -> (N, C, H, W) images of `shape` [H, W] or [H, W, C], and the factor that brings
    their values to 0 to 255; `scale` is that of the training images, if these are others.

    Raises ConfigError for another number of columns, DataError for values that are not pixels.
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
    pixels = numbers.to_numpy().reshape(-1, *shape, *([1] if len(shape) == 2 else [])).transpose(0, 3, 1, 2)
    used = arrays.pixel_scale(pixels, path) if scale is None else scale
    return np.ascontiguousarray(arrays.convert_block(pixels, used, path, 0)), used


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
