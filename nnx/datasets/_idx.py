"""Reads IDX, the format of MNIST and its relatives: two zero bytes, a type, the number of dimensions, sizes, values; big-endian.

http://yann.lecun.com/exdb/mnist/. Strict: what a file's header promises is what it must hold, to the byte.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets import Source, Split, _torchvision, checked
from nnx.errors import DataError, MachineError

TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}
GZIP_RATIO = 1032  # deflate packs no denser, so a header that promises more is wrong, and no memory is set aside for it
CURE = "delete it and run again to download it afresh"

MNIST_FILES = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))


def source(
    name: str,
    cls: str,
    folder: Path,
    classes: Iterable[str],
    *,
    files: tuple[tuple[str, str], tuple[str, str]] = MNIST_FILES,
    sha256: Mapping[str, str] | None = None,
    first_label: int = 0,
    transposed: bool = False,
) -> Source:
    """The dataset whose (images, labels) `files`, for training and for test, lie in `folder`/`cls`/raw, plain or .gz.

    That is where torchvision's class `cls` keeps them; what is missing is downloaded (see `_torchvision.ensure`).
    """
    raw = folder / cls / "raw"
    _torchvision.ensure(name, raw, [file for pair in files for file in pair], cls, sha256=sha256)
    classes = tuple(classes)

    def split(images_file: str, labels_file: str) -> Split:
        images = read(raw / images_file, np.uint8, dimensions=3)
        labels = read(raw / labels_file, np.int32, dimensions=2)[:, 0] if "idx2" in labels_file else read(raw / labels_file, np.uint8)
        images = np.ascontiguousarray(images.swapaxes(1, 2)) if transposed else images
        found = Split(images[:, None], labels.astype(np.int64) - first_label)  # (N, 1, H, W)
        return checked(found, len(classes), where=raw / labels_file)

    return Source(split(*files[0]), lambda: split(*files[1]), classes)


def read(path: Path, dtype: type[np.generic], *, dimensions: int = 1) -> NDArray[Any]:
    """The array in the IDX file `path`, or in `path`.gz.

    Raises DataError where the file is not IDX, holds another type or number of dimensions, is cut short or too long;
    MachineError where it can't be read.
    """
    path = path if path.is_file() else path.with_name(f"{path.name}.gz")
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            zeros, kind, rank = struct.unpack(">HBB", head[:4].ljust(4, b"\xff"))
            found = TYPES.get(kind)
            if zeros or rank != dimensions or found is None or found.newbyteorder("=") != dtype:
                expected = f"an IDX file of {dimensions}-dimensional {np.dtype(dtype).name}"
                raise DataError(f"{path}: not {expected}; it starts with bytes {head[:4].hex(' ')}; {CURE}")
            if len(head) < 4 + 4 * dimensions:
                raise DataError(f"{path}: cut short: only {len(head)} bytes; {CURE}")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            size = math.prod(shape) * found.itemsize
            if size > path.stat().st_size * (GZIP_RATIO if packed else 1):
                raise DataError(f"{path}: cut short: its header promises {size:,} bytes of data; {CURE}")
            values = np.empty(size, np.uint8)
            if (got := file.readinto(values.data)) < size:
                raise DataError(f"{path}: cut short: its header promises {size:,} bytes of data, it has {got:,}; {CURE}")
            if file.read(1):
                raise DataError(f"{path}: too long: data follows the {size:,} bytes that its header promises; {CURE}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); {CURE}") from None
    except OSError as error:
        raise MachineError(f"{path}: can't be read ({error.strerror}); check the file's permissions and the disk") from None
    array: NDArray[Any] = values.view(found).reshape(shape)
    return array
