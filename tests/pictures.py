"""Write folders of small, distinct images for the tests, without using nnx."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (6, 5)  # not square, to detect transpositions


def pixels(seed: int, *, colour: bool = False, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Random pixels, (H, W), or (H, W, 3) with `colour`."""
    return np.random.default_rng(seed).integers(0, 256, size + (3,) * colour, dtype=np.uint8)


def save(path: Path, values: NDArray, **options: object) -> Path:
    """Write an image in the format of its extension. Creates the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def tree(
    root: Path, counts: Mapping[str, int], *, first: int = 0, colour: bool = False, size: tuple[int, int] = SIZE
) -> Path:
    """Write `counts` PNGs per class, in a folder for each class. File numbers rotate through the classes: 000.png is
    of the first class, 001.png of the second."""
    order = [name for n in range(max(counts.values(), default=0)) for name in counts if n < counts[name]]
    for n, name in enumerate(order):
        save(root / name / f"{n:03}.png", pixels(first + n, colour=colour, size=size))
    return root


def expected(count: int, *, first: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """(N, 1, H, W): the pixels written by `tree`, in the order of the file names."""
    return np.stack([pixels(first + n, size=size) for n in range(count)])[:, None]


def listed(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """Write a table of these rows."""
    path.write_bytes("".join(delimiter.join(row) + "\r\n" for row in rows).encode(encoding))
    return path


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def claiming_tiff(width: int, height: int) -> bytes:
    """A TIFF of a few bytes whose header claims this size."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + bytes(104)
