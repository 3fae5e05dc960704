"""Images in the terminal: read back from the escape codes, pixel by pixel."""

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


def seen(lines):
    """The pixels that a terminal would show: foreground above, background below."""
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
def test_what_the_terminal_shows_are_the_pixels(pixels):
    console = terminal()
    lines = pixel_art.image(pixels, console=console)
    assert len(lines) == (len(pixels) + 1) // 2
    assert {line.cell_len for line in lines} == {pixels.shape[1]}
    expected = pixels.reshape(*pixels.shape[:2], -1)
    assert np.array_equal(seen(printed(lines, console)), np.broadcast_to(expected, (*pixels.shape[:2], 3)))


def test_no_colours_no_codes_but_shades():
    steps = np.linspace(0, 255, 10).astype(np.uint8)
    for console in (terminal(None), terminal(no_color=True), terminal(None, encoding="ascii")):
        lines = printed(pixel_art.image(np.stack([steps, steps]), console=console), console)
        assert lines == [pixel_art.RAMP]
        assert "\x1b" not in lines[0]
    found = pixel_art.image(np.array([[0, 255], [255, 255], [0, 255]], np.uint8), console=terminal(None))
    assert [line.plain for line in found] == ["+@", " @"], "two rows a line, the last by itself"
    red = np.zeros((2, 2, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    assert pixel_art.image(red, console=terminal(None))[0].plain == pixel_art.RAMP[76 * 10 // 256] * 2, "luma"


def test_colours_without_blocks():
    console = terminal(encoding="ascii")
    (line,) = printed(pixel_art.image(np.array([[0, 10], [100, 10]], np.uint8), console=console), console)
    assert re.findall(r"48;2;(\d+);(\d+);(\d+)m ", line) == [("50",) * 3, ("10",) * 3]
    assert line.isascii()


def test_fewer_colours_are_richs_affair():
    console = terminal("256")
    others = np.random.default_rng(3).integers(
        0, 256, (6, 5), dtype=np.uint8
    )  # rich remembers the codes of styles that it has printed
    text = "\n".join(printed(pixel_art.image(others, console=console), console))
    assert ";5;" in text
    assert ";2;" not in text


def test_wide_ones_are_made_smaller():
    large = np.random.default_rng(2).integers(0, 256, (40, 100), dtype=np.uint8)
    console = terminal()
    lines = pixel_art.image(large, 50, console=console)
    assert np.array_equal(seen(printed(lines, console))[:, :, :1], images.to_size(large[:, :, None], 20, 50, "stretch"))
    assert len(pixel_art.image(large, 200, console=console)[0]) == 100, "but never larger"
    assert len(pixel_art.image(np.zeros((1, 1000), np.uint8), 10, console=console)) == 1


def test_side_by_side():
    left, right = [Text("ab"), Text("c")], [Text("x"), Text("yy"), Text("z")]
    assert [line.plain for line in pixel_art.beside(left, right)] == ["ab  x", "c   yy", "    z"]
    assert [line.plain for line in pixel_art.beside(right, left, gap=1)] == ["x  ab", "yy c", "z  "]
    assert pixel_art.beside() == []


def test_small_images_are_enlarged_and_large_ones_made_smaller():
    assert np.array_equal(pixel_art.sized(COLOUR), COLOUR.repeat(2, 0).repeat(2, 1))
    for H, W, expected in ((28, 28, (28, 28)), (200, 100, (56, 28)), (100, 400, (14, 56)), (1, 5000, (1, 56))):
        assert pixel_art.sized(np.zeros((H, W, 1), np.uint8)).shape == (*expected, 1)


def test_a_window_is_tinted_and_nothing_else():
    pixels = np.full((6, 5, 1), 100, np.uint8)
    found = pixel_art.tinted(pixels, (-1, 2, 3, 99))  # beyond the edges, as a filter at the border looks
    there = (found != 100).any(2)
    assert there[:3, 2:].all()
    assert there.sum() == 9
    assert found[0, 2].tolist() == [(65 * 100 + 35 * tint) // 100 for tint in pixel_art.TINT]
    assert (pixels == 100).all(), "a copy"


def test_signs_have_colours_and_size_is_brightness():
    found = pixel_art.signed(np.array([[1.0, -2.0, 0.0]]))
    assert found[0].tolist() == [[c // 2 for c in pixel_art.POSITIVE], list(pixel_art.NEGATIVE), [0, 0, 0]]
    assert not pixel_art.signed(np.zeros((2, 2))).any()
