"""Reads IDX, the format of MNIST and its relatives: two zero bytes, a type, the number of dimensions, sizes, values;
big-endian.

http://yann.lecun.com/exdb/mnist/. Strict: what a file's header promises is what it must hold, to the byte.
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

from nnx.datasets import Source, Split, checked
from nnx.datasets._ensure_files import ensure_files
from nnx.errors import DataError, MachineError

TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}
GZIP_RATIO = 1032  # deflate packs no denser, so a header that promises more is wrong, and no memory is set aside for it
CURE = "delete it and run again to download it afresh"


class Pin(NamedTuple):
    """What a file's content is, unpacked: its length in bytes and its SHA-256."""

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
    """The dataset whose (images, labels) `files`, for training and for test, lie in `folder`/`cls`/raw, plain or .gz.

    That is where torchvision's class `cls` keeps them; what is missing is downloaded (see `ensure_files`). The files
    that `pinned` names are checked by their SHA-256, whoever put them there (see `verify`).
    """
    raw = folder / cls / "raw"
    ensure_files(name, raw, [file for pair in files for file in pair])
    classes = tuple(classes)

    def split(images_file: str, labels_file: str) -> tuple[Split, Callable[[], None]]:
        images_at, labels_at = _there(raw / images_file), _there(raw / labels_file)
        images = read(images_at, np.uint8, dimensions=3)
        labels = read(labels_at, np.int32, dimensions=2)[:, 0] if "idx2" in labels_file else read(labels_at, np.uint8)
        pool = ThreadPoolExecutor(1)
        verified = pool.submit(verify, {images_at: images, labels_at: labels}, pinned or {}).result
        pool.shutdown(wait=False)
        images = np.ascontiguousarray(images.swapaxes(1, 2)) if transposed else images
        found = Split(images[:, None], labels.astype(np.int64) - first_label)  # (N, 1, H, W)
        return checked(found, len(classes), where=labels_at), verified

    def test() -> Split:
        found, verified = split(*files[1])
        verified()
        return found

    train, verified = split(*files[0])
    return Source(train, test, classes, verified)


def _there(path: Path) -> Path:
    """`path`, or `path`.gz where there is only that."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def verify(arrays: Mapping[Path, NDArray[Any]], pinned: Mapping[str, Pin]) -> None:
    """Raises DataError where a file that was read as one of `arrays` is as long as the one `pinned` by its name, but
    not the same.

    A header is a function of its array, so what is hashed is what was read, not the file once more. A file of another
    length is not the pinned one damaged, as `read` has seen to it that header and length agree: it is somebody's own.
    """
    for path, array in arrays.items():
        head = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
        pin = pinned.get(path.name.removesuffix(".gz"))
        if pin and pin.size == len(head) + array.nbytes:
            digest = hashlib.sha256(head)
            digest.update(array.data)
            if digest.hexdigest() != pin.sha256:
                raise DataError(
                    f"{path}: damaged: the SHA-256 of its content is {digest.hexdigest()}, not {pin.sha256}; {CURE}"
                )


def read(path: Path, dtype: type[np.generic], *, dimensions: int = 1, cure: str = CURE) -> NDArray[Any]:
    """The array in the IDX file `path`, packed if its name ends in .gz.

    Raises DataError where the file is not IDX, holds another type or number of dimensions, no values, too few or too
    many; MachineError where it can't be read, or not into memory.
    """
    with _opened(path, dtype, dimensions, cure) as (file, shape, found):
        return _next(file, shape, found, path, cure)


def mapped(path: Path, dtype: type[np.generic], *, dimensions: int = 1, cure: str = CURE) -> NDArray[Any]:
    """As `read`, of a file that is not packed, but memory-mapped: nothing of it is read but its header."""
    with _opened(path, dtype, dimensions, cure) as (file, shape, found):
        start = file.tell()
        end = start + math.prod(shape) * found.itemsize
        if path.stat().st_size < end:
            raise _cut_short(path, end - start, path.stat().st_size - start, cure)
        file.seek(end)
        array: NDArray[Any] = np.memmap(path, found, "r", start, shape)
        return array


def pieces(
    path: Path, dtype: type[np.generic], *, dimensions: int = 1, cure: str = CURE, size: int = 2**24
) -> Iterator[NDArray[Any]]:
    """As `read`, but about `size` bytes at a time, along the first dimension."""
    with _opened(path, dtype, dimensions, cure) as (file, shape, found):
        rows = max(1, size // (math.prod(shape[1:]) * found.itemsize))
        for start in range(0, shape[0], rows):
            yield _next(file, (min(rows, shape[0] - start), *shape[1:]), found, path, cure)


@contextmanager
def _opened(
    path: Path, dtype: type[np.generic], dimensions: int, cure: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """The file behind its header, the shape of its array and its type; inside, all of it is to be read. Raises as
    `read`."""
    packed = path.suffix == ".gz"
    try:
        with cast(IO[bytes], gzip.open(path)) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            zeros, kind, rank = struct.unpack(">HBB", head[:4].ljust(4, b"\xff"))
            found = TYPES.get(kind)
            if zeros or rank != dimensions or found is None or found.newbyteorder("=") != dtype:
                expected = f"an IDX file of {dimensions}-dimensional {np.dtype(dtype).name}"
                raise DataError(f"{path}: not {expected}; it starts with bytes {head[:4].hex(' ')}; {cure}")
            if len(head) < 4 + 4 * dimensions:
                raise DataError(f"{path}: cut short: only {len(head)} bytes; {cure}")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            if not all(shape):
                raise DataError(f"{path}: empty: its header promises {' x '.join(map(str, shape))} values; {cure}")
            size = math.prod(shape) * found.itemsize
            if size > path.stat().st_size * (GZIP_RATIO if packed else 1):
                raise DataError(f"{path}: cut short: its header promises {size:,} bytes of data; {cure}")
            yield file, shape, found
            if file.read(1):
                raise DataError(f"{path}: too long: data follows the {size:,} bytes that its header promises; {cure}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); {cure}") from None
    except OSError as error:
        raise MachineError(
            f"{path}: can't be read ({error.strerror}); check the file's permissions and the disk"
        ) from None
    except MemoryError as error:
        raise MachineError(f"{path}: can't be read ({error}); free memory, or use a larger machine") from None


def _next(file: IO[bytes], shape: tuple[int, ...], found: np.dtype[Any], path: Path, cure: str) -> NDArray[Any]:
    """The next values of a file as an array of that shape and type."""
    values = np.empty(math.prod(shape) * found.itemsize, np.uint8)
    got: int = file.readinto(values.data)  # type: ignore[attr-defined]
    if got < len(values):
        raise _cut_short(path, len(values), got, cure)
    array: NDArray[Any] = values.view(found).reshape(shape)
    return array


def _cut_short(path: Path, promised: int, there: int, cure: str) -> DataError:
    return DataError(f"{path}: cut short: its header promises {promised:,} bytes of data, it has {there:,}; {cure}")
