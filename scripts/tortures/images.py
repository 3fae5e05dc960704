"""5,000 mutated image files, and bombs: each is decoded or refused by a DataError, within 2 s and 200 MB.

The limit is 400 MB for images of 16 megapixels, and for a progressive JPEG of 49.
"""

import io
import multiprocessing
import os
import resource
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from nnx.errors import DataError
from nnx.preprocessing import images

CASES = 5_000
SECONDS = 2.0  # limit of processor time for each image
MEGABYTES, LARGEST = 200, 400  # limits beyond a small image; for a good large one

Outcome = tuple[str, float, float]  # decoded, refused, or what went wrong; seconds; megabytes more than before


def torture(share: float, seed: int) -> dict[str, Any]:
    """Decode int(5,000 * share) mutants of good files, and all bombs. Raises AssertionError naming what failed."""
    count = int(CASES * share)
    cores = len(os.sched_getaffinity(0))
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others print warnings
    mutants: list[Outcome] = []
    try:
        with ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
            for part in pool.map(_mutants, [seed] * cores, [range(n, count, cores) for n in range(cores)]):
                mutants += part
        bombs = []
        for name, make in BOMBS.items():  # each in its own process, because the peak memory of a process never falls
            with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
                bombs.append(pool.submit(_bomb, name, make()).result())
    except BrokenProcessPool:
        raise AssertionError("an image killed a process") from None
    finally:
        os.dup2(stderr, 2)
    everything = [*mutants, *bombs]
    broken = [words for words, _, _ in everything if words not in ("decoded", "refused")]
    assert not broken, f"{len(broken)} of {len(everything)}: " + "; ".join(broken[:3])
    return {
        "mutants": count,
        **Counter(words for words, _, _ in mutants),
        "bombs": len(bombs),
        "bombs_refused": sum(words == "refused" for words, _, _ in bombs),
        "slowest_seconds": round(max(seconds for _, seconds, _ in everything), 2),
        "largest_megabytes": round(max(megabytes for _, _, megabytes in everything)),
    }


def _mutants(seed: int, numbers: range) -> list[Outcome]:
    good = _good()
    for name, data in good.items():
        assert images.decode(data, name, white=images.WHITE).shape[2] in (1, 3), (
            "the control: the unchanged files decode"
        )
    return [
        _outcome(f"mutant {number} of seed {seed}", _mutant(Random(f"{seed} {number}"), good)) for number in numbers
    ]


def _bomb(name: str, data: bytes) -> Outcome:
    images.decode(_png(1, 1, b"\0\0"))  # do not count the imports
    return _outcome(f"bomb {name}", data)


def _outcome(what: str, data: bytes) -> Outcome:
    before, begun = _peak(), time.process_time()
    words = "decoded"
    try:
        pixels = images.decode(data, what, white=images.WHITE, reduce=True)
        H, W, C = pixels.shape
        if pixels.dtype != np.uint8 or C not in (1, 3) or not 1 <= H * W <= images.MAX_PIXELS:
            words = f"{what}: {pixels.dtype} of {pixels.shape}"
    except DataError as error:
        text = str(error)
        words = (
            "refused"
            if text.startswith(f"{what}: ") and text.isprintable() and len(text) < 300
            else f"{what}: unexpected message {text!r}"
        )
    except Exception as error:
        words = f"{what}: {type(error).__name__}: {error}"
    seconds, megabytes = time.process_time() - begun, _peak() - before
    large = any(f" {size} megapixels" in what for size in (16, 49))
    if seconds > SECONDS or megabytes > (LARGEST if large else MEGABYTES):
        words = f"{what}: {seconds:.1f} s and {megabytes:.0f} MB"
    return words, seconds, megabytes


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB


# ---------------------------------------------------------------- mutants


def _good() -> dict[str, bytes]:
    """A small image in every format, pixel mode and compression."""
    gray = np.random.default_rng(0).integers(0, 256, (17, 24), dtype=np.uint8)
    picture = Image.fromarray(np.dstack([gray, gray.T.copy().reshape(17, 24), 255 - gray, gray // 2]))
    kinds = {mode: picture.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")}
    kinds["I;16"] = Image.fromarray(gray.astype(np.uint16) * 257)
    kinds["F"] = Image.fromarray(gray.astype(np.float32) / 255)
    exif = Image.Exif()
    exif[0x112] = 6
    frames = {"save_all": True, "append_images": [kinds["RGB"].rotate(90), kinds["RGB"].rotate(180)]}
    ways: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {"exif": exif}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("PNG", mode, {"transparency": 5}) for mode in ("L", "P", "I;16")),
        *(
            ("JPEG", mode, {"exif": exif, "progressive": bool(n % 2)})
            for n, mode in enumerate(("L", "RGB", "CMYK", "YCbCr", "L", "RGB"))
        ),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(
            ("WEBP", mode, {"lossless": lossless, "exif": exif})
            for mode in ("RGB", "RGBA")
            for lossless in (True, False)
        ),
        *(
            ("TIFF", mode, {"exif": exif})
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F")
        ),
        *(("TIFF", "RGB", {"compression": how}) for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        *(("TIFF", "1", {"compression": how}) for how in ("group3", "group4", "tiff_ccitt")),
        *((form, "RGB", frames) for form in ("PNG", "WEBP", "TIFF", "MPO", "GIF")),
        *(("GIF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(("PPM", mode, {}) for mode in ("1", "L", "RGB", "I;16")),
        *(("AVIF", mode, {"exif": exif}) for mode in ("L", "RGB", "RGBA")),
    ]
    deep = {
        f"16-bit PNG {kind}": _png(
            24, 17, b"".join(b"\0" + bytes(range(48 * C)) for _ in range(17)), depth=16, kind=kind
        )
        for kind, C in ((2, 3), (4, 2), (6, 4))
    }
    return deep | {
        f"{n} {form} {mode}": _encoded(kinds[mode], form, **options) for n, (form, mode, options) in enumerate(ways)
    }


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _mutant(random: Random, good: dict[str, bytes]) -> bytes:
    data = random.choice(list(good.values()))
    if random.random() < 0.15:
        return data[: random.randrange(len(data))]
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        at = random.randrange(random.choice([40, len(data), len(data)])) % len(
            data
        )  # mostly in the header, at the start
        end = at + random.choice([1, 1, 2, 4, 4, 50])
        extreme = random.choice(
            [
                b"\0" * 4,
                b"\xff" * 4,
                b"\x7f\xff\xff\xff",
                b"\xff\xff\xff\x7f",
                b"\0\0\xea\x60",
                b"\x60\xea\0\0",
                b"\x80\0",
            ]
        )
        other = random.choice(list(good.values()))
        flipped = bytes([data[at] ^ 1 << random.randrange(8)])
        spliced = other[random.randrange(len(other)) :][: end - at]
        new = random.choice(
            [flipped + data[at + 1 : end], extreme, random.randbytes(end - at), data[at:end] * 2, spliced, b""]
        )
        data = data[:at] + new + data[end:] or b"\0"
    return _fix_checksums(data) if random.random() < 0.7 else data


def _fix_checksums(data: bytes) -> bytes:
    """A PNG with correct checksums, without which Pillow would stop early."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    fixed = data[:8]
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        fixed += _chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return fixed + data[at:]


# ---------------------------------------------------------------- bombs


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, rows: bytes, *extra: bytes, depth: int = 8, kind: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """A TIFF with one directory of (tag, type, count, value) and little data."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(100)


def _basic(width: int, height: int, compression: int, strips: int, length: int) -> list[tuple[int, int, int, int]]:
    size = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    return [*size, (273, 4, strips, 8), (278, 4, 1, height), (279, 4, strips, length)]


@cache
def _gigabyte() -> bytes:
    return zlib.compress(bytes(10**9))


def _frames(form: str, side: int, count: int) -> bytes:
    frames = [Image.new("RGB", (side, side), (n % 256, n // 256, 0)) for n in range(count)]
    return _encoded(frames[0], form, save_all=True, append_images=frames[1:])


def _many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = _encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _separate_scans(data: bytes) -> bytes:
    """A JPEG whose first scan claims to contain only the first of the three components."""
    scan = data.index(b"\xff\xda")
    return data[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + data[scan + 14 :]


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 60,000 x 60,000": lambda: _png(60_000, 60_000, b""),
    "PNG of 2 billion x 2 billion": lambda: _png(2**31 - 1, 2**31 - 1, b""),
    "PNG of 16 megapixels, gray": lambda: _encoded(Image.new("L", (4000, 4000)), "PNG"),
    "PNG of 16 megapixels, 16 bits": lambda: _encoded(Image.new("I;16", (4000, 4000)), "PNG"),
    "PNG of 16 megapixels, RGBA": lambda: _encoded(Image.new("RGBA", (4000, 4000)), "PNG"),
    "PNG of 16 megapixels, one high": lambda: _encoded(Image.new("L", (16_000_000, 1)), "PNG"),
    "PNG with no data": lambda: _png(4000, 4000, b""),
    "PNG with too much data": lambda: _png(1, 1, bytes(300_000_000)),
    **{
        f"PNG with {kind} of 1 GB, {times} times": lambda kind=kind, times=times, middle=middle: _png(
            1, 1, b"\0\0", *[_chunk(kind.encode(), b"key\0" + middle + _gigabyte())] * times
        )
        for kind, middle in (("zTXt", b"\0"), ("iCCP", b"\0"), ("iTXt", b"\1\0\0\0"))
        for times in (1, 8)
    },
    "PNG with 100 texts of 1 MB": lambda: _png(
        1, 1, b"\0\0", *[_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1_000_000)))] * 100
    ),
    "PNG with 200,000 chunks": lambda: _png(1, 1, b"\0\0", *[_chunk(b"teSt", b"")] * 200_000),
    "PNG with 200,000 texts": lambda: _png(1, 1, b"\0\0", *[_chunk(b"tEXt", b"k%d\0" % n) for n in range(200_000)]),
    "PNG with 100,000 empty IDATs": lambda: _png(1, 1, b"\0\0", *[_chunk(b"IDAT", b"")] * 100_000),
    "JPEG of 65,000 x 65,000": lambda: _encoded(Image.new("L", (8, 8)), "JPEG").replace(
        b"\0\x08\0\x08\x01", b"\xfd\xe8\xfd\xe8\x01", 1
    ),
    "JPEG of 16 megapixels, progressive": lambda: _encoded(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True),
    "JPEG of 144 megapixels": lambda: _encoded(Image.new("RGB", (12_000, 12_000)), "JPEG"),
    "JPEG of 49 megapixels, progressive": lambda: _encoded(
        Image.new("RGB", (7000, 7000)), "JPEG", progressive=True, subsampling=0
    ),
    "JPEG of 144 megapixels, progressive": lambda: _encoded(
        Image.new("RGB", (12_000, 12_000)), "JPEG", progressive=True
    ),
    "JPEG of 144 megapixels, a component at a time": lambda: _separate_scans(
        _encoded(Image.new("RGB", (12_000, 12_000)), "JPEG")
    ),
    **{f"JPEG of 16 megapixels, {count:,} scans": lambda count=count: _many_scans(count) for count in (50, 10_000)},
    "PNG of 16 megapixels, 16-bit RGBA": lambda: _png(4000, 4000, bytes(4000 * (1 + 8 * 4000)), depth=16, kind=6),
    "PNG of 16 megapixels, 16-bit gray and alpha": lambda: _png(
        4000, 4000, bytes(4000 * (1 + 4 * 4000)), depth=16, kind=4
    ),
    "BMP of 60,000 x 60,000": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "BMP with run lengths": lambda: (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 54, 0, 1078, 40, 4000, 4000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024)
        + b"\xff\0" * 10**6
    ),
    "WebP of 16,000 x 16,000": lambda: _frames("WEBP", 8, 2).replace(b"\7\0\0\7\0\0", b"\x7f\x3e\0\x7f\x3e\0", 1),
    "WebP of 4000 x 4000, moving": lambda: _frames("WEBP", 8, 2).replace(b"\7\0\0\7\0\0", b"\x9f\x0f\0\x9f\x0f\0", 1),
    "WebP of 16 megapixels": lambda: _encoded(Image.new("RGB", (4000, 4000)), "WEBP", method=0),
    "WebP of 2,000 frames": lambda: _frames("WEBP", 200, 2000),
    "APNG of 2,000 frames": lambda: _frames("PNG", 50, 2000),
    "GIF of 2,000 frames": lambda: _frames("GIF", 50, 2000),
    "GIF of 16 megapixels, transparent": lambda: _encoded(Image.new("P", (4000, 4000)), "GIF", transparency=0),
    "GIF with 2 million comments": lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * 2_000_000,
    "PGM of 10 MB of comments": lambda: b"P2 22 22 255\n" + b"#\n" * 5_000_000,
    "PGM with a long header": lambda: b"P5 " + b"#\n" * 5_000_000 + b"22 22 255\n" + bytes(484),
    "PGM of 60,000 x 60,000": lambda: b"P5 60000 60000 255\n",
    "PGM with white at 100": lambda: b"P5 3200 3200 100\n" + bytes(3200 * 3200),
    "AVIF of 16 megapixels": lambda: _encoded(Image.new("RGBA", (4000, 4000)), "AVIF", speed=10),
    "TIFF of 500 pictures": lambda: _frames("TIFF", 10, 500),
    "TIFF of 60,000 x 60,000": lambda: _tiff(*_basic(60_000, 60_000, 1, 1, 100)),
    "TIFF with a billion strips": lambda: _tiff(*_basic(100, 100, 1, 2**30, 8)),
    "TIFF with a strip of 4 GB": lambda: _tiff(*_basic(4000, 4000, 8, 1, 2**32 - 1)),
    "TIFF with a tag of 4 GB": lambda: _tiff(*_basic(10, 10, 1, 1, 100), (700, 1, 2**32 - 1, 8)),
    "TIFF with 65,535 tags": lambda: (
        b"II*\0" + struct.pack("<IH", 8, 65_535) + struct.pack("<HHII", 700, 2, 60_000, 8) * 65_535
    ),
    "TIFF that goes round in circles": lambda: b"II*\0" + struct.pack("<IHI", 8, 0, 8),
    "TIFF of 16 megapixels": lambda: _encoded(Image.new("RGB", (5000, 3200)), "TIFF", compression="tiff_adobe_deflate"),
}
