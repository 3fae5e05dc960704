"""Image files: each kind of pixel is decoded as numpy computes it, and anything else is one clear error."""

import io
import os
import re
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from nnx.errors import DataError
from nnx.preprocessing import images

GRAY = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
DEEP = np.array([[0, 20000, 65535], [1, 128, 129], [257, 300, 65000]], dtype=np.uint16)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, kind, rows, extra=b""):
    """A PNG written by hand. Kinds: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def on_white(values, alpha):
    """Each channel blended with white, rounded."""
    alpha = alpha[..., None] / 255
    return np.rint(values * alpha + 255 * (1 - alpha))


def wrong(file, name=""):
    with pytest.raises(DataError) as caught:
        images.decode(file, name)
    text = str(caught.value)
    assert re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", text), "one line: the file, the problem; the cure"
    return text


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("pixels", [GRAY, COLOUR], ids=["gray", "colour"])
def test_eight_bits_are_as_they_were(pixels, form, tmp_path):
    path = tmp_path / "a.image"  # the content decides, not the ending
    path.write_bytes(encoded(pixels, form))
    for decoded in (images.decode(path), images.decode(str(path)), images.decode(path.read_bytes())):
        assert decoded.dtype == np.uint8
        assert decoded.flags.writeable
        assert np.array_equal(decoded, pixels.reshape(6, 5, -1))


def test_lossless_webp_is_colour_and_jpeg_is_near():
    assert np.array_equal(images.decode(encoded(COLOUR, "WEBP", lossless=True)), COLOUR)
    smooth = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    assert abs(images.decode(encoded(smooth, "JPEG", quality=95))[:, :, 0].astype(int) - smooth).max() <= 4
    colours = np.repeat(smooth[:, :, None], 3, 2)
    assert abs(images.decode(encoded(colours, "JPEG", quality=95)).astype(int) - colours).max() <= 8


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(kind, form):
    expected = np.rint(DEEP / 65535 * 255)
    data = encoded(Image.fromarray(DEEP.astype(kind)) if form == "TIFF" else DEEP, form)
    assert np.array_equal(images.decode(data)[:, :, 0], expected)
    clipped = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert not np.array_equal(clipped, expected), "the control: Pillow's own conversion"


def test_wider_numbers_are_scaled_where_white_is_known():
    expected = np.rint(DEEP / 65535 * 255)
    assert np.array_equal(images.decode(encoded(DEEP.astype(np.int32), "TIFF"))[:, :, 0], expected)
    assert np.array_equal(images.decode(encoded((DEEP / 65535).astype(np.float32), "TIFF"))[:, :, 0], expected)
    for values in (
        DEEP.astype(np.int32) * 2,
        -DEEP.astype(np.int32),
        DEEP.astype(np.float32),
        np.full((2, 2), np.nan, np.float32),
    ):
        assert "save it with 8 or 16 bits" in wrong(encoded(values, "TIFF"))


def test_sixteen_bits_a_channel():
    rows = b"\0" + struct.pack(">6H", 0, 20000, 65535, 300, 40000, 1)
    decoded = images.decode(png(2, 1, 16, 2, rows))
    assert abs(decoded.ravel() - np.array([0, 20000, 65535, 300, 40000, 1]) / 257).max() <= 1
    decoded = images.decode(png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 20000, 65535, 20000, 0)))
    assert np.array_equal(decoded[:, :, 0], [[78, 255]])


def tiff(data, width, height, bits, order="<", compression=1, planes=1):
    """A TIFF written by hand: `bits` of each sample, and bytes, or a list of the bytes of each plane."""
    planes_data = data if isinstance(data, list) else [data]
    packed = [zlib.compress(part) if compression == 8 else part for part in planes_data]
    C = len(bits)
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 2 if C > 1 else 1, 277: C, 278: height}
    tags |= {273: [1000 + sum(map(len, packed[:n])) for n in range(len(packed))], 279: [*map(len, packed)], 284: planes}
    tags |= {338: 2} if C == 4 else {}
    entries, extra, start = b"", b"", 14 + 12 * len(tags)
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, list) else [value]
        raw = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(raw) > 4:
            raw, extra = struct.pack(f"{order}I", start + len(extra)), extra + raw
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + raw
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return (head + entries + bytes(4) + extra).ljust(1000, b"\0") + b"".join(packed)


def deep_tiff(values, order, **options):
    """A TIFF of (H, W, C) 16-bit values, which Pillow can't write."""
    H, W, C = values.shape
    return tiff(values.astype(f"{order}u2").tobytes(), W, H, [16] * C, order, **options)


def interlaced(values, kind):
    """An interlaced PNG (Adam7) of 16-bit values."""
    rows = b""
    for x, y, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = values[y::down, x::across]
        rows += b"".join(b"\0" + row.astype(">u2").tobytes() for row in part if part.size)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("white", [255, 1000, 4095, 16383, 65535])
def test_white_of_more_than_eight_bits(white):
    """Gray and colours, PNG and TIFF, in both byte orders: the exact values, whatever is white."""
    values = np.random.default_rng(0).integers(0, white + 1, (4, 6, 3)).astype(np.uint16)
    values[0, 0] = white
    gray = values[:, :, 0]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    expected = np.rint(values * (255 / white))
    tiffs = [deep_tiff(values, order, compression=how) for order in "<>" for how in (1, 8)]
    for data in (png(6, 4, 16, 2, rows), interlaced(values, 2), *tiffs):
        assert np.array_equal(images.decode(data, white=white), expected)
        assert images.measure(data, white=white).highest == values.max()
    opaque = np.dstack([values, np.full((4, 6), 65535, np.uint16)])
    for order in "<>":
        assert np.array_equal(images.decode(deep_tiff(opaque, order), white=white), expected)
    tiffs = [deep_tiff(values[:, :, :1], order, compression=how) for order in "<>" for how in (1, 8)]
    others = (encoded(gray, "TIFF"), encoded(gray.astype(np.int32), "TIFF"), interlaced(gray, 0), *tiffs)
    for data in (encoded(gray), *others):
        assert np.array_equal(images.decode(data, white=white), expected[:, :, :1])
    rows = b"".join(b"\0" + np.dstack([row, row * 0 + 65535]).astype(">u2").tobytes() for row in gray)
    assert np.array_equal(images.decode(png(6, 4, 16, 4, rows), white=white), expected[:, :, :1])


@pytest.mark.parametrize("white", [255, 4095])
def test_white_does_not_apply_to_eight_bits_and_floats(white):
    assert np.array_equal(images.decode(encoded(GRAY), white=white)[:, :, 0], GRAY)
    assert np.array_equal(images.decode(encoded((GRAY / 255).astype(np.float32), "TIFF"), white=white)[:, :, 0], GRAY)
    twelve = b"P5 2 1 4095 " + struct.pack(">2H", 4095, 2048)  # states its white
    assert images.decode(twelve, white=white).ravel().tolist() == [255, 128]
    assert images.measure(twelve).highest == 0


@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_of_twelve_bits_states_its_white(compression):
    packed = bytes([0xFF, 0xF8, 0x00, 0x00, 0x07, 0xFF])  # 4095 2048 0 2047
    found = images.measure(tiff(packed, 4, 1, [12], compression=compression))
    assert (found.pixels.ravel().tolist(), found.highest) == ([255, 128, 0, 127], 0)


@pytest.mark.parametrize("compression", [1, 8])
def test_deep_colours_in_separate_planes_are_refused(compression):
    planes = [np.full((4, 6), 300 * n, "<u2").tobytes() for n in range(3)]
    data = tiff(planes, 6, 4, [16] * 3, compression=compression, planes=2)
    assert "is a TIFF that stores colours of more than 8 bits one by one; save it as PNG" in wrong(data)
    shallow = [bytes([50 * n]) * 24 for n in range(3)]
    data = tiff(shallow, 6, 4, [8] * 3, compression=compression, planes=2)
    assert images.decode(data)[0, 0].tolist() == [0, 50, 100]


def test_values_above_white_and_values_too_dark_for_sixteen_bits_are_refused():
    dark = np.full((2, 2), 4000, np.uint16)
    with pytest.raises(DataError, match=r"a.png: has values up to 4,000, above the white of 255; save it with 8 bits"):
        images.decode(encoded(dark), "a.png", white=255)
    colours = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 1, 4000, 2))
    for data in (encoded(dark), encoded(dark, "TIFF"), colours):
        assert "has values of at most 4,000 of 65,535, too dark for an image of 16 bits; save it with" in wrong(data)
        assert images.measure(data).highest == 4000
        assert images.decode(data, white=65535).max() == 16
    assert images.decode(encoded(dark * 0)).max() == 0, "black is no doubt"


def test_colours_of_sixteen_bits_with_transparency():
    rows = b"\0" + struct.pack(">8H", 4095, 0, 2048, 65535, 100, 100, 100, 0)
    assert images.decode(png(2, 1, 16, 6, rows), white=4095).tolist() == [[[255, 0, 128], [255, 255, 255]]]
    one = chunk(b"tRNS", struct.pack(">3H", 300, 301, 302))
    rows = b"\0" + struct.pack(">6H", 300, 301, 302, 300, 301, 303)
    assert images.decode(png(2, 1, 16, 2, rows, one), white=65535).tolist() == [[[255] * 3, [1] * 3]]


def test_white_is_zero():
    """TIFF may count from white to black, in 8 bits and in 16."""
    tag = struct.pack("<HHI", images.PHOTOMETRIC, 3, 1)
    for pixels, white in ((GRAY, 255), (DEEP, 65535)):
        data = encoded(pixels, "TIFF")
        assert data.count(tag + b"\1") == 1
        inverted = data.replace(tag + b"\1", tag + b"\0")
        assert np.array_equal(images.decode(inverted)[:, :, 0], 255 - np.rint(pixels / white * 255))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_is_white(form):
    alpha = np.tile(np.array([0, 255, 128, 1, 254], dtype=np.uint8), (6, 1))
    pixels = np.dstack([COLOUR, alpha])
    data = encoded(pixels, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    decoded = images.decode(data)
    assert abs(decoded - on_white(COLOUR, alpha)).max() <= (1 if form == "WEBP" else 0)
    assert (decoded[:, 0] == 255).all()
    black = Image.open(io.BytesIO(data)).convert("RGB")
    assert not (np.asarray(black)[:, 0] == 255).all(), "the control: Pillow's own conversion"


def test_gray_and_alpha_stay_gray():
    alpha = np.full((6, 5), 100, dtype=np.uint8)
    decoded = images.decode(encoded(Image.fromarray(np.dstack([GRAY, alpha]), "LA")))
    assert np.array_equal(decoded, on_white(GRAY[:, :, None], alpha))


def test_one_value_that_is_transparent():
    """PNG's tRNS: the value that stands for nothing, of 8 and 16 bits, of colours, and of a palette."""
    assert np.array_equal(images.decode(encoded(GRAY, transparency=16))[:, :, 0], np.where(GRAY == 16, 255, GRAY))
    deep = np.where(DEEP == 20000, 65535, DEEP)
    assert np.array_equal(images.decode(encoded(DEEP, transparency=20000))[:, :, 0], np.rint(deep / 65535 * 255))
    decoded = images.decode(encoded(COLOUR, transparency=tuple(COLOUR[0, 0].tolist())))
    assert (decoded[0, 0] == 255).all()
    assert np.array_equal(decoded[1:], COLOUR[1:])
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert images.decode(encoded(palette)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert images.decode(encoded(palette, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    half = bytes([255, 128, 0])
    assert np.array_equal(
        images.decode(encoded(palette, transparency=half))[0],
        on_white(np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]]), np.array([255, 128, 0])),
    )


def test_black_and_white():
    bits = GRAY > 100
    for form in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(images.decode(encoded(Image.fromarray(bits), form)).max(2), bits * 255)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_exif_says(orientation, form):
    seen = np.kron(np.array([[0, 255], [85, 170], [30, 200]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    stored = {  # https://exiftool.org/TagNames/EXIF.html: what undoes it, done before it is stored
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.T,
        6: np.rot90(seen, 1),
        7: seen[::-1, ::-1].T,
        8: np.rot90(seen, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    decoded = images.decode(
        encoded(np.ascontiguousarray(stored), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    )
    assert decoded.shape[:2] == seen.shape
    assert abs(decoded[:, :, 0].astype(int) - seen).max() <= (6 if form == "JPEG" else 0)


def test_sixteen_bits_turn_too():
    exif = Image.Exif()
    exif[0x112] = 6
    decoded = images.decode(encoded(DEEP, exif=exif))
    assert np.array_equal(decoded[:, :, 0], np.rot90(np.rint(DEEP / 65535 * 255), -1))


def test_cmyk_jpeg():
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:8, :, 0] = 255  # cyan above; white below
    decoded = images.decode(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95))
    assert abs(decoded[2, 2].astype(int) - [0, 255, 255]).max() <= 3
    assert abs(decoded[13, 13].astype(int) - 255).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "MPO", "GIF"])
def test_the_first_picture_of_several(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    decoded = images.decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert decoded.shape == (8, 8, 3)
    assert (decoded == 255).all()


def test_gif_ppm_pgm_pbm_and_avif_are_decoded():
    """Files of these formats were left out."""
    palette = Image.fromarray(GRAY).convert("P")
    assert np.array_equal(images.decode(encoded(palette, "GIF")).max(2), GRAY)
    for values in (GRAY, COLOUR):
        assert np.array_equal(images.decode(encoded(values, "PPM")), values.reshape(6, 5, -1))
    assert np.array_equal(images.decode(encoded(DEEP, "PPM"))[:, :, 0], np.rint(DEEP / 65535 * 255))
    assert np.array_equal(images.decode(encoded(Image.fromarray(GRAY > 100), "PPM"))[:, :, 0], (GRAY > 100) * 255)
    assert images.decode(b"P2 # text\n3 1 15\n0 15 5\n").ravel().tolist() == [0, 255, 85]
    smooth = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)[:, :, None].repeat(3, 2)
    assert abs(images.decode(encoded(smooth, "AVIF", quality=95)).astype(int) - smooth).max() <= 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P2 22 22 255\n" + b"#\n" * 5_000_000, "with numbers as text"),
        (b"P5 3200 3200 100\n" + bytes(3200 * 3200), "with another white than 255 and 65535; save it as PNG"),
        (b"P5 " + b"#\n" * 5_000_000 + b"22 22 255\n" + bytes(484), "is damaged"),
    ],
)
def test_a_slow_ppm_is_refused_at_once(data, message):
    """Pillow would take up to 99 s."""
    begun = time.process_time()
    assert message in wrong(data)
    assert time.process_time() - begun < 0.5


# ---------------------------------------------------------------- channels


def test_channels():
    gray, colour = GRAY[:, :, None], COLOUR
    assert images.to_channels(gray, 1) is gray
    assert images.to_channels(colour, 3) is colour
    assert np.array_equal(images.to_channels(gray, 3), np.dstack([GRAY] * 3))
    converted = images.to_channels(colour, 1)
    assert converted.dtype == np.uint8
    assert np.array_equal(converted[:, :, 0], np.asarray(Image.fromarray(colour).convert("L")))
    assert abs(converted[:, :, 0] - colour @ [0.299, 0.587, 0.114]).max() <= 0.51, "ITU-R BT.601"
    assert np.array_equal(images.to_channels(images.to_channels(gray, 3), 1), gray)


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_the_right_size_is_left_alone(fit):
    assert images.to_size(COLOUR, 6, 5, fit) is COLOUR


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_to_half_the_size_averages_and_is_the_same_for_each_channel(channels):
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, channels), dtype=np.uint8)
    resized = images.to_size(pixels, 32, 32, "stretch")
    assert resized.shape == (32, 32, channels)
    assert resized.dtype == np.uint8
    expected = torch.nn.functional.interpolate(  # another's arithmetic, in floats
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (32, 32), mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    assert np.abs(resized - expected.numpy()).max() <= 1
    skipped = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (32, 32), mode="nearest"
    )[0]
    assert np.abs(resized - skipped.permute(1, 2, 0).numpy()).max() > 50, "the control: without antialiasing"
    assert np.array_equal(resized, images.to_size(pixels, 32, 32, "pad")), "a square needs no padding"
    alone = np.dstack([images.to_size(pixels[:, :, c : c + 1], 32, 32, "pad") for c in range(channels)])
    assert np.array_equal(resized, alone)


@pytest.mark.parametrize(
    ("h", "w", "box"),
    [(40, 20, (0, 28, 7, 21)), (10, 56, (11, 16, 0, 28)), (1, 900, (13, 14, 0, 28)), (14, 7, (0, 28, 7, 21))],
)
def test_padding_keeps_the_aspect_ratio_and_extends_the_border(h, w, box):
    colours = np.array([[10, 200, 30], [40, 50, 60]], np.uint8)
    pixels = np.empty((h, w, 3), np.uint8)
    pixels[:] = colours[0]
    pixels[h // 4 : h - h // 4, w // 4 : w - w // 4] = colours[1]
    resized = images.to_size(pixels, 28, 28, "pad")
    top, bottom, left, right = box
    outside = np.ones((28, 28), bool)
    outside[top:bottom, left:right] = False
    median = np.median(images.border(pixels), axis=0)
    assert (resized[outside] == median.astype(np.uint8)).all()
    stretched = images.to_size(pixels, bottom - top, right - left, "stretch")
    assert np.array_equal(resized[top:bottom, left:right], stretched)
    assert np.array_equal(images.to_size(pixels, 28, 28, "stretch").shape, (28, 28, 3))


def test_a_pixel_and_a_constant_fill_any_size():
    for shape in ((1, 1, 1), (1, 7, 1), (300, 2, 1)):
        for fit in ("pad", "stretch"):
            resized = images.to_size(np.full(shape, 77, np.uint8), 9, 11, fit)
            assert resized.shape == (9, 11, 1)
            assert (resized == 77).all()
            assert images.to_size(np.full((9, 9, 1), 77, np.uint8), 1, 1, fit).tolist() == [[[77]]]


def test_the_border_is_each_outer_pixel_once():
    for h, w in ((1, 1), (1, 4), (4, 1), (2, 2), (5, 3)):
        numbered = np.arange(h * w, dtype=np.uint8).reshape(h, w, 1)
        expected = [y * w + x for y in range(h) for x in range(w) if y in (0, h - 1) or x in (0, w - 1)]
        assert sorted(images.border(numbered).ravel().tolist()) == expected


# ---------------------------------------------------------------- refused files


def test_files_that_are_not_images(tmp_path):
    path = tmp_path / "a.png"
    for content, words in {
        b"": "is empty",
        b"# a text\n"
        * 100: "is not an image that can be read (PNG, JPEG, GIF, BMP, WebP, TIFF, AVIF or PPM), or is damaged",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "run `git lfs pull`",
        b"GIF89a" + bytes(100): "damaged",
        b"\x89PNG\r\n\x1a\n": "damaged",
        b"BM" + bytes(100): "damaged",
        bytes(images.MAX_BYTES + 1): "larger than 10 MiB",
    }.items():
        path.write_bytes(content)
        text = wrong(path)
        assert text.startswith(f"{path}: ")
        assert words in text
        assert wrong(content, "upload").startswith("upload: ")
    assert wrong(b"").startswith("image: ")


def test_formats_beyond_those_named_are_not_even_tried():
    for form in ("TGA", "ICO", "PCX", "JPEG2000"):
        assert "is not an image that can be read" in wrong(encoded(Image.fromarray(COLOUR), form))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    assert "is not an image that can be read" in wrong(postscript), "Pillow would start Ghostscript"


def test_paths_that_are_not_files(tmp_path):
    assert "no such file" in wrong(tmp_path / "a.png")
    assert "is a folder" in wrong(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in wrong(tmp_path / "fifo")
    assert "not a regular file" in wrong("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in (tmp_path / "loop", tmp_path / ("x" * 300), "a\0b"):
        assert "can't be read" in wrong(name)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(10**12)
    assert "larger than 10 MiB" in wrong(tmp_path / "large")


def test_too_many_pixels_are_refused_before_they_are_decoded():
    largest = encoded(Image.new("1", (4000, 4000)))
    assert images.decode(largest).shape == (4000, 4000, 1)
    assert "has 4,001 x 4,000 pixels, more than 16 megapixels" in wrong(encoded(Image.new("1", (4001, 4000))))
    for side in (10_000, 60_000, 2**31 - 1):  # the last two are beyond what Pillow itself warns of
        assert "megapixels" in wrong(png(side, side, 8, 6, b""))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF"])
def test_half_a_file_is_an_error(form):
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(noise, form)
    assert images.decode(data).shape == (40, 40, 3)
    for share in (0.2, 0.5, 0.9):
        assert "damaged" in wrong(data[: int(len(data) * share)])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_text_that_inflates_is_not_inflated(kind):
    bomb = zlib.compress(bytes(50_000_000))
    extra = chunk(kind, b"key\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + bomb)
    data = png(1, 1, 8, 0, b"\0\7", extra)
    assert "damaged" in wrong(data)
    assert images.decode(png(1, 1, 8, 0, b"\0\7", chunk(b"tEXt", b"key\0text"))).tolist() == [[[7]]], "the control"
