"""Decodes image files into arrays: the one decoder for any file that a user may name, safe whatever the file contains.

pixels = decode("seven.png")  # (H, W, 1) gray or (H, W, 3) colour, uint8
"""

import io
import os
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnx.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Not all 43 formats that Pillow supports: each one is a parser in C that a malicious file can attack.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")
NAMED_FORMATS = "PNG, JPEG, GIF, BMP, WebP, TIFF, AVIF or PPM"
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
MAX_PPM_HEADER = 4096  # bytes: Pillow reads it byte by byte, 10 MB of comments in 2 s
MAX_SLOW_PPM = 2**18  # bytes of numbers as text, or of an unusual white: Pillow's Python code takes 99 s for 10 MB
MAX_BYTES = 10 * 2**20  # of a file, unless more pixels than MAX_PIXELS are allowed
MAX_PIXELS = 16_000_000  # by default
HIGHEST_MAX_PIXELS = 89_000_000  # about Pillow's own limit; colours with transparency then take 1 GB
# A larger JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which takes little memory: 45 MB and 0.2 s for 169
# megapixels in colour. If it has several scans, libjpeg keeps all of its coefficients: 440 MB for 64 megapixels.
MAX_JPEG_BYTES = 32 * 2**20
MAX_SCANNED_PIXELS = 50_000_000
MAX_SCANS = 100 * MAX_PIXELS  # pixels in all scans together: a JPEG of 94 kB with 1,000 scans takes 9 s
WHITE = 65535  # of an image of 16 bits, unless something else is known
WHITES = (255, 1023, 4095, 16383, WHITE)  # of 8, 10, 12, 14 and 16 bits
MIN_LEVELS = 16  # gray levels that images of floats must leave
DARK = 4096  # 16-bit values that are all below it would become 16 gray levels or fewer
_JPEG = b"\xff\xd8"  # the first bytes of a JPEG
PHOTOMETRIC = 262  # TIFF tag; 0 means that the value 0 is white, which Pillow applies to 1 and 8 bits but not to 16
BITS_PER_SAMPLE, PLANES = 258, 284  # TIFF tags; planes of 2 means that each colour is stored separately


class Decoded(NamedTuple):
    """An image, and its highest value before scaling if it has more than 8 bits and does not state its white, else
    0."""

    pixels: NDArray[np.uint8]  # (H, W, C)
    highest: int


def decode(
    file: str | Path | bytes,
    name: str = "",
    *,
    white: int | None = None,
    max_pixels: int = MAX_PIXELS,
    reduce: bool = False,
) -> NDArray[np.uint8]:
    """An image file, or the bytes of one called `name` -> (H, W, C) uint8, as a viewer shows it on white paper.

    C is 1 for gray or black and white, 3 for colours or a palette. Values of more than 8 bits are scaled from 0 to
    `white`, by default WHITE, as are floats from 0 to 1: black stays black, white stays white. Transparent pixels
    become white. The EXIF orientation is applied. Of several pictures, the first is decoded. With `reduce`, a JPEG of
    more than `max_pixels` is decoded at 1/2, 1/4 or 1/8 of its width and height.

    Raises DataError with the file's name unless it is a complete PNG, JPEG, GIF, BMP, WebP, TIFF, PPM (PGM, PBM) or,
    if Pillow supports it, AVIF of at most `max_pixels` and 10 MiB, or more if max_pixels is above MAX_PIXELS; for
    values above `white`; and without `white` for values of more than 8 bits that are all below DARK.
    """
    pixels, highest = measure(file, name, white=white or WHITE, max_pixels=max_pixels, reduce=reduce)
    if white and highest > white:
        raise DataError(f"{describe(file, name)}: {above_white_message(highest, white)}")
    if not white and 0 < highest < DARK:
        problem = f"has values of at most {highest:,} of {WHITE:,}, too dark for an image of 16 bits"
        raise DataError(f"{describe(file, name)}: {problem}; save it with 8 bits")
    return pixels


def measure(
    file: str | Path | bytes,
    name: str = "",
    *,
    white: int = WHITE,
    max_pixels: int = MAX_PIXELS,
    reduce: bool = False,
) -> Decoded:
    """Like `decode`, but values above `white` become white, and the highest value is returned, too."""
    try:
        max_bytes = MAX_BYTES if max_pixels <= MAX_PIXELS else 4 * max_pixels
        most = max(max_bytes, MAX_JPEG_BYTES) if reduce else max_bytes
        data = file if isinstance(file, bytes) else _read_bytes(Path(file), most)
        if not data:
            raise DataError("is empty; get the file again")
        limit = most if data.startswith(_JPEG) else max_bytes
        if len(data) > limit:
            raise DataError(f"is larger than {limit // 2**20} MiB; {_smaller_image_cure(max_pixels)}")
        if data.startswith(b"version https://git-lfs"):
            raise DataError("is a Git LFS pointer, not the image itself; run `git lfs pull`")
        return _decode_pixels(data, white, max_pixels, reduce)
    except DataError as error:
        raise DataError(f"{describe(file, name)}: {error}") from None


def describe(file: str | Path | bytes, name: str = "") -> str:
    """What messages call an image file."""
    return name or (str(file) if not isinstance(file, bytes) else "image")


def above_white_message(highest: int, white: int) -> str:
    """What is wrong with an image that has values above `white`."""
    problem = f"has values up to {highest:,}, above the white of {white:,}"
    return f"{problem}; save it with 8 bits, or train with a higher dataset.white"


def few_levels_message(highest: int) -> str:
    """What is wrong with 16-bit images none of whose values reaches DARK, and the cure."""
    problem = f"16-bit values of at most {highest:,} leave {round(highest / 257) + 1} of 256 gray levels"
    return f"{problem}; set dataset.white to the value that is white, such as {find_white(highest)}, or to auto"


def are_floats(file: str | io.BytesIO) -> bool:
    """Whether an image file, which can be decoded, has fractions for gray levels."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=_supported_formats()) as image:
            return image.mode == "F"


def dark_floats_message(brightest: int) -> str:
    """What is wrong with images of floats that would have no gray level above `brightest`."""
    problem = f"values of at most {brightest / 255:.3g} leave {brightest + 1} of 256 gray levels"
    return f"{problem}; multiply them so that white is 1, or save them with 16 bits"


def find_white(highest: int) -> int:
    """The lowest of WHITES that is not below the `highest` value of some images."""
    return next(white for white in WHITES if white >= highest)


def extension(name: str) -> str:
    """The ending of a file's name, in lower case, fit to print."""
    ending = os.path.splitext(name)[1].lower()
    return ending[:12] if ending.isprintable() and ending else "no ending"


def count_extensions(counts: Counter[str]) -> str:
    """The most frequent endings: "12 .heic, 1 .txt"."""
    listed = [f"{count:,} {ending}" for ending, count in counts.most_common(3)]
    return ", ".join(listed) + ", ..." * (len(counts) > 3)


def to_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """(H, W, C) with C 1 or 3 -> (H, W, `channels`). Gray is repeated; colours become luma (ITU-R BT.601, as in Pillow
    and torchvision)."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    assert channels == 1
    luma = pixels.astype(np.uint32) @ np.array([[19595], [38470], [7471]], dtype=np.uint32)  # of 65536
    return ((luma + 32768) >> 16).astype(np.uint8)


def to_size(pixels: NDArray[np.uint8], height: int, width: int, fit: Literal["pad", "stretch"]) -> NDArray[np.uint8]:
    """(h, w, C) -> (height, width, C), antialiased; returns `pixels` itself if it already has that size.

    "pad" keeps the aspect ratio: the image is scaled to fit and centred, and the rest is filled with the median of its
    border, channel by channel. "stretch" scales height and width independently. The filter is Pillow's bilinear one,
    which widens when it shrinks an image, as in torchvision. It rounds fixed-point sums, so the bytes are the same on
    every machine, and never leaves the range of the values that it averages.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if fit == "stretch":
        return _resize(pixels, height, width)
    h, w, C = pixels.shape
    scale = min(height / h, width / w)
    inner = _resize(pixels, max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale))))
    padded = np.empty((height, width, C), np.uint8)
    padded[:] = np.median(border(pixels), axis=0)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W, ...) -> (N, ...), each of the outermost pixels once."""
    inside = pixels[1:-1]
    sides = [inside[:, :1].reshape(-1, *pixels.shape[2:]), inside[:, 1:][:, -1:].reshape(-1, *pixels.shape[2:])]
    return np.concatenate([pixels[0], *([pixels[-1]] if len(pixels) > 1 else []), *sides])


def _resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    resized = np.empty((height, width, pixels.shape[2]), np.uint8)
    for c in range(pixels.shape[2]):
        channel = Image.fromarray(np.ascontiguousarray(pixels[:, :, c]))
        resized[:, :, c] = np.asarray(channel.resize((width, height), Image.Resampling.BILINEAR))
    return resized


def _read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a file, at most one more than `most`. Raises DataError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError("is a folder; name the image files in it")
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer
            raise DataError("is not a regular file; name an image file")
        with open(path, "rb") as file:
            return file.read(most + 1)
    except FileNotFoundError:
        raise DataError("no such file; check the name") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"can't be read ({reason}); check the name and its permissions") from None


def _decode_pixels(data: bytes, white: int, max_pixels: int, reduce: bool) -> Decoded:
    from PIL import Image, ImageOps, UnidentifiedImageError

    is_jpeg = data.startswith(_JPEG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual metadata is no reason to refuse an image
            if not is_jpeg:  # whose size is checked below
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            _check_ppm(data)
            image = Image.open(io.BytesIO(data), formats=_supported_formats())
            if is_jpeg:
                _check_scans(image, data)
            if image.width * image.height > max_pixels:  # nothing is decoded yet
                size = f"{image.width:,} x {image.height:,}"
                if not (is_jpeg and reduce and _reduce(image, data, max_pixels)):
                    raise DataError(_too_large_message(size, max_pixels))
            if image.mode in ("RGB", "RGBA"):
                _check_planes(image)
                if _raw_mode(image) in _DEEP_COLOURS:
                    return _decode_deep_colours(image, data, white)
            if image.mode.startswith("I"):
                return _decode_integers(image, white)
            ImageOps.exif_transpose(image, in_place=True)
            return Decoded(_to_uint8(image), 0)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"is not an image that can be read ({NAMED_FORMATS}), or is damaged; save it as PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"has more than {HIGHEST_MAX_PIXELS / 10**6:g} megapixels; save a smaller image") from None
    # Pillow's parsers raise errors of any kind: struct.error, zlib.error, KeyError, SyntaxError, MemoryError...
    except Exception:
        raise DataError("is damaged or cut short; get the file again, or save it as PNG") from None


@cache
def _supported_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has: AVIF came with 11.3."""
    has_avif = find_spec("PIL.AvifImagePlugin") is not None
    return tuple(name for name in FORMATS if name != "AVIF" or has_avif)


def _check_ppm(data: bytes) -> None:
    """Raises DataError for a large PPM, PGM or PBM that Pillow would decode slowly. Reads its header only."""
    from PIL import Image

    if data[:1] != b"P" or len(data) <= MAX_SLOW_PPM:
        return
    header = Image.open(io.BytesIO(data[:MAX_PPM_HEADER]), formats=("PPM",))
    if header.tile[0].codec_name != "raw":
        problem = "is a PPM of more than 256 KiB with numbers as text, or with another white than 255 and 65535"
        raise DataError(f"{problem}; save it as PNG")


def _check_scans(image: Any, data: bytes) -> None:
    """Raises DataError for a JPEG with so many scans that decoding it takes seconds."""
    most = MAX_SCANS // (image.width * image.height)
    if len(data) < 10 * most:  # a scan takes 10 bytes
        return
    scans = data.count(b"\xff\xda")  # compressed data never contains these bytes
    if scans > max(1, most):
        raise DataError(f"is a JPEG of {scans:,} scans; save it as a baseline JPEG")


def _reduce(image: Any, data: bytes, max_pixels: int) -> bool:
    """Have a JPEG that is not decoded yet decoded at 1/2, 1/4 or 1/8 of its size, to at most `max_pixels`. False if
    that is too large, or takes much memory."""
    has_more_scans = "progressive" in image.info or _components_in_first_scan(data) < image.layers
    if has_more_scans and image.width * image.height > MAX_SCANNED_PIXELS:
        return False
    width, height = image.size
    for scale in (2, 4, 8):
        if -(-width // scale) * -(-height // scale) <= max_pixels:
            image.draft(None, (width // scale, height // scale))
            return bool(image.width * image.height <= max_pixels)
    return False


def _components_in_first_scan(data: bytes) -> int:
    """How many components the first scan of a JPEG contains. Raises ValueError or IndexError if it has no scan."""
    at = 2
    while True:
        at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker == 0xDA:
            return data[at + 4]
        if marker in (0x00, 0xFF):  # not a marker, or filled up
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])


def _too_large_message(pixels: str, max_pixels: int) -> str:
    return f"has {pixels} pixels, more than {max_pixels / 10**6:g} megapixels; {_smaller_image_cure(max_pixels)}"


def _smaller_image_cure(max_pixels: int) -> str:
    return "save a smaller image" + ", or train with a higher dataset.max_pixels" * (max_pixels < HIGHEST_MAX_PIXELS)


def _to_uint8(image: "Image") -> NDArray[np.uint8]:
    """(H, W, 1 or 3): gray stays gray, everything else becomes RGB, on white. Raises DataError for floats that are not
    from 0 to 1."""
    from PIL import ImageChops

    if image.mode == "F":
        values = np.asarray(image)
        _check_range(values, 1)
        return np.rint(values * np.float32(255)).astype(np.uint8)[:, :, None]
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    alpha_mode = "LA" if mode == "L" else "RGBA"
    alpha = _convert_mode(image, alpha_mode).getchannel("A") if image.has_transparency_data else None
    image = _convert_mode(image, mode)
    if alpha:
        image.paste("white", mask=ImageChops.invert(alpha))
    return np.array(image).reshape(image.height, image.width, -1)


def _convert_mode(image: "Image", mode: str) -> "Image":
    """The image in another mode; the image itself if it has that mode, which Pillow would copy."""
    return image if image.mode == mode else image.convert(mode)


def _check_range(values: NDArray[Any], white: int) -> None:
    """Raises DataError for values outside 0 to `white`, and for NaN."""
    if not (values.min() >= 0 and values.max() <= white):
        levels = f"{values.min():g} to {values.max():g}"
        raise DataError(f"contains gray levels from {levels}, not from 0 to {white:g}; save it with 8 or 16 bits")


# ---------------------------------------------------------------- more than 8 bits


# How 16-bit colours are stored, and how Pillow, which keeps only their high bytes, is made to read the low ones.
# Grays with transparency are read as four channels: the high and the low byte of both.
_DEEP_COLOURS = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
    "LA;16B": "RGBA",
}


def _check_planes(image: Any) -> None:
    """Raises DataError for a TIFF that stores colours of more than 8 bits separately, which Pillow decodes wrongly."""
    if image.format == "TIFF" and image.tag_v2.get(PLANES) == 2:
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
        if len(bits) > 1 and max(bits) > 8:
            raise DataError("is a TIFF that stores colours of more than 8 bits one by one; save it as PNG")


def _raw_mode(image: Any) -> str:
    """How an image that is not decoded yet stores its pixels, in Pillow's words; "" if that is not known."""
    arguments = image.tile[0].args if image.tile else ""
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _stated_white(image: Any) -> int | None:
    """The value that is white in an image of more than 8 bits that is not decoded yet, if the file states it."""
    if image.format == "PPM" and image.tile[0].codec_name != "raw":  # Pillow scales its values
        return WHITE
    if image.format == "TIFF" and image.tag_v2.get(BITS_PER_SAMPLE) == (12,):
        return 4095
    return None


def _decode_integers(image: "Image", white: int) -> Decoded:
    """A gray image of more than 8 bits that is not decoded yet."""
    from PIL import ImageOps

    inverted = image.mode.startswith("I;16") and image.getexif().get(PHOTOMETRIC) == 0
    stated_white = _stated_white(image)
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    pixels = _scale_integers(values, stated_white or white, image.info.get("transparency"))
    return Decoded(~pixels if inverted else pixels, 0 if stated_white else int(values.max()))


def _scale_integers(values: NDArray[Any], white: int, transparent: int | None = None) -> NDArray[np.uint8]:
    """(H, W) of 0 to 65535 -> (H, W, 1), white from `white` on; Pillow's convert("L") makes 255 of 20000 of 65535.

    `transparent` values become white. Raises DataError for values out of range.
    """
    if values.dtype.itemsize > 2:
        _check_range(values, WHITE)
    gray = np.empty(values.shape, np.uint8)
    for rows in _row_blocks(values):  # indices take 8 bytes each
        gray[rows] = _scale_table(white).take(values[rows])
    if transparent is not None:
        gray[values == transparent] = 255
    return gray[:, :, None]


@cache
def _scale_table(white: int) -> NDArray[np.uint8]:
    """(65536,) the gray level of each value."""
    return np.rint(np.minimum(np.arange(WHITE + 1), white) * (255 / white)).astype(np.uint8)


def _row_blocks(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows with about a million values each."""
    rows = max(1, 2**20 * len(values) // values.size)
    return (slice(start, start + rows) for start in range(0, len(values), rows))


def _decode_deep_colours(image: Any, data: bytes, white: int) -> Decoded:
    """An image with colours, or gray and transparency, of 16 bits, of which `image` is not decoded yet."""
    from PIL import Image, ImageOps

    raw_mode = _raw_mode(image)
    other: Any = Image.open(io.BytesIO(data), formats=(image.format,))
    other.tile = [tile._replace(args=_replace_mode(tile.args, _DEEP_COLOURS[raw_mode])) for tile in other.tile]
    for part in (image, other):
        ImageOps.exif_transpose(part, in_place=True)
    transparent = image.info.get("transparency")
    high, low = np.asarray(image), np.asarray(other)
    if raw_mode == "LA;16B":
        high, low = low[:, :, ::2], low[:, :, 1::2]
    C = high.shape[2]
    has_alpha = C in (2, 4)
    pixels = np.empty((*high.shape[:2], C - has_alpha), np.uint8)
    highest = 0
    alpha_white = WHITE
    if has_alpha and high[:, :, -1].max() <= white >> 8:  # so is white, which the alpha of opaque pixels is, too
        alpha_white = white
    for rows in _row_blocks(high):
        values = high[rows].astype(np.uint16) << 8 | low[rows]
        colours = values[:, :, : C - has_alpha]
        highest = max(highest, int(colours.max()))
        pixels[rows] = _scale_table(white).take(colours)
        if has_alpha:
            pixels[rows] = _on_white(pixels[rows], _scale_table(alpha_white).take(values[:, :, -1:]))
        elif isinstance(transparent, tuple):
            pixels[rows][(colours == transparent).all(2)] = 255
    return Decoded(pixels, highest)


def _on_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, C) blended with white as (h, w, 1) `alpha` says, rounded."""
    ink = (255 - pixels).astype(np.uint16) * alpha  # at most 255 * 255
    blended: NDArray[np.uint8] = 255 - ((ink + 127) // 255).astype(np.uint8)
    return blended


def _replace_mode(arguments: Any, mode: str) -> Any:
    return (mode, *arguments[1:]) if isinstance(arguments, tuple) else mode
