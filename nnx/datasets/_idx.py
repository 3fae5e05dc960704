"""Reads IDX, the format of MNIST and its relatives.

Two zero bytes, a type, the number of dimensions, the sizes, the values; big-endian; http://yann.lecun.com/exdb/mnist/.
Strict: a file must contain exactly the bytes that its header declares.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from nnx.datasets import Source, Split, check_split
from nnx.datasets._ensure_files import ensure_files
from nnx.datasets._mapped import note_mapped
from nnx.errors import DataError, MachineError

TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}
GZIP_RATIO = 1032  # deflate's highest ratio: a header that declares more is wrong, and no memory is allocated for it
CURE = "delete it and run again to download it again"


class Pin(NamedTuple):
    """The length in bytes and the SHA-256 of a file's content, unpacked."""

    size: int
    sha256: str


MNIST_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def source(
    name: str,
    cls: str,
    folder: Path,
    classes: Iterable[str],
    *,
    files: tuple[tuple[str, str], tuple[str, str]] = MNIST_FILES,
    pinned: Mapping[str, Pin] | None = None,
    first_label: int = 0,
    transposed: bool = False,
) -> Source:
    """The dataset in `folder`/`cls`/raw, whose `files`, plain or .gz, are (images, labels) for training and for test.

    torchvision's class `cls` uses the same folder. Missing files are downloaded (see `ensure_files`). Files that are
    `pinned` are checked by their SHA-256, whoever put them there (see `verify`).
    """
    raw = folder / cls / "raw"
    ensure_files(name, raw, [file for pair in files for file in pair])
    classes = tuple(classes)

    def read_split(images_file: str, labels_file: str) -> tuple[Split, Callable[[], None]]:
        images_path = _plain_or_packed(raw / images_file)
        labels_path = _plain_or_packed(raw / labels_file)
        images = read(images_path, np.uint8, dimensions=3)
        if "idx2" in labels_file:
            labels = read(labels_path, np.int32, dimensions=2)[:, 0]
        else:
            labels = read(labels_path, np.uint8)
        pool = ThreadPoolExecutor(1)
        wait = pool.submit(verify, {images_path: images, labels_path: labels}, pinned or {}).result
        pool.shutdown(wait=False)
        images = np.ascontiguousarray(images.swapaxes(1, 2)) if transposed else images
        split = Split(images[:, None], labels.astype(np.int64) - first_label)  # (N, 1, H, W)
        return check_split(split, len(classes), where=labels_path), wait

    def test() -> Split:
        split, wait_until_verified = read_split(*files[1])
        wait_until_verified()
        return split

    train, wait_until_verified = read_split(*files[0])
    test_files = tuple(_plain_or_packed(raw / name) for name in files[1])
    return Source(train, test, classes, wait_until_verified, test_files)


def _plain_or_packed(path: Path) -> Path:
    """`path`, or `path`.gz if only that exists."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def verify(arrays: Mapping[Path, NDArray[Any]], pinned: Mapping[str, Pin]) -> None:
    """Raises DataError if a file, read as one of `arrays`, has the length of the file `pinned` by its name but differs.

    The array determines its header, so the hash is that of the array in memory; the file is not read again. A file of
    another length is not a damaged copy, because `read` has checked that header and length agree: it is the user's own.
    """
    for path, array in arrays.items():
        head = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
        pin = pinned.get(path.name.removesuffix(".gz"))
        if pin and pin.size == len(head) + array.nbytes:
            digest = hashlib.sha256(head)
            digest.update(array.data)
            if digest.hexdigest() != pin.sha256:
                problem = f"damaged: the SHA-256 of its content is {digest.hexdigest()}, not {pin.sha256}"
                raise DataError(f"{path}: {problem}; {CURE}")


def read(path: Path, dtype: type[np.generic], *, dimensions: int = 1, cure: str = CURE) -> NDArray[Any]:
    """The array in the IDX file `path`, packed if its name ends in .gz.

    Raises DataError if the file is not IDX, has another type or number of dimensions, no values, too few or too many;
    MachineError if it can't be read or does not fit in memory.
    """
    with _open_data(path, dtype, dimensions, cure) as (file, shape, stored):
        return _read_array(file, shape, stored, path, cure)


def read_mapped(path: Path, dtype: type[np.generic], *, dimensions: int = 1, cure: str = CURE) -> NDArray[Any]:
    """Like `read`, for a file that is not packed, but memory-mapped: reads only its header."""
    with _open_data(path, dtype, dimensions, cure) as (file, shape, stored):
        start = file.tell()
        end = start + math.prod(shape) * stored.itemsize
        if path.stat().st_size < end:
            raise _cut_short(path, end - start, path.stat().st_size - start, cure)
        file.seek(end)
        note_mapped(path)
        array: NDArray[Any] = np.memmap(path, stored, "r", start, shape)
        return array


def read_pieces(
    path: Path, dtype: type[np.generic], *, dimensions: int = 1, cure: str = CURE, size: int = 2**24
) -> Iterator[NDArray[Any]]:
    """Like `read`, but about `size` bytes at a time, along the first dimension."""
    with _open_data(path, dtype, dimensions, cure) as (file, shape, stored):
        rows = max(1, size // (math.prod(shape[1:]) * stored.itemsize))
        for start in range(0, shape[0], rows):
            yield _read_array(file, (min(rows, shape[0] - start), *shape[1:]), stored, path, cure)


@contextmanager
def _open_data(
    path: Path, dtype: type[np.generic], dimensions: int, cure: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """The file, positioned after its header, and the shape and dtype of its array. Raises what `read` raises.

    The block must read all of the data.
    """
    packed = path.suffix == ".gz"
    try:
        with cast(IO[bytes], gzip.open(path)) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            zeros, kind, rank = struct.unpack(">HBB", head[:4].ljust(4, b"\xff"))
            stored = TYPES.get(kind)
            if zeros or rank != dimensions or stored is None or stored.newbyteorder("=") != dtype:
                problem = f"not an IDX file of {dimensions}-dimensional {np.dtype(dtype).name} data"
                raise DataError(f"{path}: {problem}; it starts with the bytes {head[:4].hex(' ')}; {cure}")
            if len(head) < 4 + 4 * dimensions:
                raise DataError(f"{path}: cut short: only {len(head)} bytes; {cure}")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            if not all(shape):
                raise DataError(f"{path}: empty: its header declares {' x '.join(map(str, shape))} values; {cure}")
            size = math.prod(shape) * stored.itemsize
            if size > path.stat().st_size * (GZIP_RATIO if packed else 1):
                raise DataError(f"{path}: cut short: its header declares {size:,} bytes of data; {cure}")
            yield file, shape, stored
            if file.read(1):
                raise DataError(f"{path}: too long: data follows the {size:,} bytes that its header declares; {cure}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); {cure}") from None
    except OSError as error:
        problem = f"can't be read ({error.strerror})"
        raise MachineError(f"{path}: {problem}; check the file's permissions and the disk") from None
    except MemoryError as error:
        raise MachineError(f"{path}: can't be read ({error}); free some memory, or use a larger machine") from None


def _read_array(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, cure: str) -> NDArray[Any]:
    """The next values of a file as an array of this shape and dtype. Raises DataError if there are too few."""
    values = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    count: int = file.readinto(values.data)  # type: ignore[attr-defined]
    if count < len(values):
        raise _cut_short(path, len(values), count, cure)
    array: NDArray[Any] = values.view(dtype).reshape(shape)
    return array


def _cut_short(path: Path, declared: int, present: int, cure: str) -> DataError:
    problem = f"its header declares {declared:,} bytes of data, it has {present:,}"
    return DataError(f"{path}: cut short: {problem}; {cure}")
