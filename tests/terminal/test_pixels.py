"""Images in the terminal: escape codes read back, pixel by pixel."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from nnx.preprocessing import images
from nnx.terminal import pixels as pixel_art

GRAY = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def terminal(system="truecolor", encoding="utf-8", **options):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, force_terminal=system is not None, color_system=system, width=200, _environ={}, **options)


def printed(lines, console):
    for line in lines:
        console.print(line)
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.file.encoding).splitlines()


def read_back(lines):
    """The pixels that a terminal shows: foreground above, background below."""
    rows = []
    for line in lines:
        cells = re.findall(r"\x1b\[([0-9;]+)m(▀+)\x1b\[0m", line)
        upper, lower = [], []
        for codes, blocks in cells:
            front, back = (re.search(rf"{kind};2;(\d+);(\d+);(\d+)", codes) for kind in (38, 48))
            upper += [[int(part) for part in front.groups()]] * len(blocks)
            lower += [[int(part) for part in back.groups()] if back else None] * len(blocks)
        rows += [upper] + ([lower] if lower[0] else [])
    return np.array(rows)


@pytest.mark.parametrize("pixels", [GRAY, GRAY[:, :, None], COLOUR, GRAY[:1, :1], np.full((4, 4), 9, np.uint8)])
def test_the_terminal_shows_the_pixels(pixels):
    console = terminal()
    lines = pixel_art.render(pixels, console=console)
    assert len(lines) == (len(pixels) + 1) // 2
    assert {line.cell_len for line in lines} == {pixels.shape[1]}
    expected = pixels.reshape(*pixels.shape[:2], -1)
    assert np.array_equal(read_back(printed(lines, console)), np.broadcast_to(expected, (*pixels.shape[:2], 3)))


def test_without_colours_images_are_ascii_shades():
    steps = np.linspace(0, 255, 10).astype(np.uint8)
    for console in (terminal(None), terminal(no_color=True), terminal(None, encoding="ascii")):
        lines = printed(pixel_art.render(np.stack([steps, steps]), console=console), console)
        assert lines == [pixel_art.RAMP]
        assert "\x1b" not in lines[0]
    lines = pixel_art.render(np.array([[0, 255], [255, 255], [0, 255]], np.uint8), console=terminal(None))
    assert [line.plain for line in lines] == ["+@", " @"], "two rows a line, the last by itself"
    red = np.zeros((2, 2, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    assert pixel_art.render(red, console=terminal(None))[0].plain == pixel_art.RAMP[76 * 10 // 256] * 2, "luma"


def test_colours_without_block_characters():
    console = terminal(encoding="ascii")
    (line,) = printed(pixel_art.render(np.array([[0, 10], [100, 10]], np.uint8), console=console), console)
    assert re.findall(r"48;2;(\d+);(\d+);(\d+)m ", line) == [("50",) * 3, ("10",) * 3]
    assert line.isascii()


def test_rich_reduces_the_colours():
    console = terminal("256")
    # new pixels, as rich caches the codes of printed styles
    others = np.random.default_rng(3).integers(0, 256, (6, 5), dtype=np.uint8)
    text = "\n".join(printed(pixel_art.render(others, console=console), console))
    assert ";5;" in text
    assert ";2;" not in text


def test_wide_images_are_shrunk():
    large = np.random.default_rng(2).integers(0, 256, (40, 100), dtype=np.uint8)
    console = terminal()
    lines = pixel_art.render(large, 50, console=console)
    expected = images.to_size(large[:, :, None], 20, 50, "stretch")
    assert np.array_equal(read_back(printed(lines, console))[:, :, :1], expected)
    assert len(pixel_art.render(large, 200, console=console)[0]) == 100, "never enlarged"
    assert len(pixel_art.render(np.zeros((1, 1000), np.uint8), 10, console=console)) == 1


def test_side_by_side():
    left, right = [Text("ab"), Text("c")], [Text("x"), Text("yy"), Text("z")]
    assert [line.plain for line in pixel_art.side_by_side(left, right)] == ["ab  x", "c   yy", "    z"]
    assert [line.plain for line in pixel_art.side_by_side(right, left, gap=1)] == ["x  ab", "yy c", "z  "]
    assert pixel_art.side_by_side() == []


def test_small_images_are_enlarged_and_large_ones_shrunk():
    assert np.array_equal(pixel_art.scale_to_view(COLOUR), COLOUR.repeat(2, 0).repeat(2, 1))
    for H, W, expected in ((28, 28, (28, 28)), (200, 100, (56, 28)), (100, 400, (14, 56)), (1, 5000, (1, 56))):
        assert pixel_art.scale_to_view(np.zeros((H, W, 1), np.uint8)).shape == (*expected, 1)


def test_a_window_is_tinted_and_nothing_else():
    pixels = np.full((6, 5, 1), 100, np.uint8)
    tinted = pixel_art.tint_window(pixels, (-1, 2, 3, 99))  # beyond the edges, as the window of a filter at the border
    changed = (tinted != 100).any(2)
    assert changed[:3, 2:].all()
    assert changed.sum() == 9
    assert tinted[0, 2].tolist() == [(65 * 100 + 35 * tint) // 100 for tint in pixel_art.TINT]
    assert (pixels == 100).all(), "a copy"


def test_colour_is_the_sign_and_brightness_the_size():
    coloured = pixel_art.colour_by_sign(np.array([[1.0, -2.0, 0.0]]))
    assert coloured[0].tolist() == [[c // 2 for c in pixel_art.POSITIVE], list(pixel_art.NEGATIVE), [0, 0, 0]]
    assert not pixel_art.colour_by_sign(np.zeros((2, 2))).any()
