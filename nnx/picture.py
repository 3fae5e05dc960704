"""Images in characters: grey levels or colours where the terminal has them, else shades.

console.print(picture.draw(pixels, (1, 28, 28), in_colour=picture.has_colours(console)))
"""

import math
from collections.abc import Sequence

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

SMALL = 16  # pixels across, up to which a pixel takes two characters instead of half of one
LARGE = 56  # pixels in either direction, beyond which an image is drawn smaller
SHADES = " ░▒▓█"
TINT = (255, 140, 0)  # of a window
POSITIVE, NEGATIVE = (255, 160, 40), (70, 150, 255)  # orange and blue: told apart by the colour-blind, too

Pixels = list[list[tuple[int, int, int]]]  # rows of red, green and blue, 0 to 255
Window = tuple[int, int, int, int]  # top, left, bottom, right


def has_colours(console: Console) -> bool:
    """Whether grey levels can be told apart there."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def draw(values: Sequence[float], shape: Sequence[int], *, in_colour: bool, window: Window | None = None) -> Text:
    """A (C, H, W) image of `values` from 0 to 255, flat; colours where C is 3. `window` is tinted where there are colours."""
    rows, scale = _pixels(values, shape)
    if in_colour and window:
        top, left, bottom, right = (math.ceil(edge / scale) for edge in window)
        for row in rows[max(top, 0) : max(bottom, 0)]:
            for column in range(max(left, 0), min(right, len(row))):
                red, green, blue = ((65 * c + 35 * t) // 100 for c, t in zip(row[column], TINT, strict=True))
                row[column] = red, green, blue
    return _coloured(rows) if in_colour else _shaded(rows)


def signed(values: Sequence[float], shape: Sequence[int]) -> Text:
    """Numbers of either sign, as weights are: orange above 0, blue below, the brighter the larger."""
    most = max(map(abs, values)) or 1.0
    levels, _ = _pixels([255 * abs(value) / most for value in values], shape)
    signs, _ = _pixels([255.0 * (value > 0) for value in values], shape)
    for row, sign in zip(levels, signs, strict=True):
        for column, (level, _, _) in enumerate(row):
            red, green, blue = (level * c // 255 for c in (POSITIVE if sign[column][0] > 127 else NEGATIVE))
            row[column] = red, green, blue
    return _coloured(levels)


def _coloured(rows: Pixels) -> Text:
    """Of a small image two characters a pixel, of others half of one."""
    text, small = Text(no_wrap=True), len(rows[0]) <= SMALL
    for row in range(0, len(rows), 1 if small else 2):
        text.append("\n" if row else "")
        for column, upper in enumerate(rows[row]):
            colour = Color.from_rgb(*upper)
            if small:
                text.append("  ", Style(bgcolor=colour))
            else:
                under = Color.from_rgb(*rows[row + 1][column]) if row + 1 < len(rows) else None
                text.append("▀", Style(color=colour, bgcolor=under))
    return text


def _shaded(rows: Pixels) -> Text:
    """As dense as a pixel is bright; of others than small images a character for two rows."""
    small, lines = len(rows[0]) <= SMALL, []
    for upper, lower in zip(rows, rows, strict=True) if small else zip(rows[::2], [*rows[1::2], rows[-1]], strict=False):
        levels = [(sum(one) + sum(other)) / 6 / 255 for one, other in zip(upper, lower, strict=True)]
        lines.append("".join(SHADES[round(level * (len(SHADES) - 1))] * (2 if small else 1) for level in levels))
    return Text("\n".join(lines), no_wrap=True)


def _pixels(values: Sequence[float], shape: Sequence[int]) -> tuple[Pixels, int]:
    """The rows of an image, and how many of its pixels each of theirs stands for in either direction."""
    C, H, W = shape
    scale = math.ceil(max(H, W) / LARGE)

    def value(channel: int, row: int, column: int) -> int:
        square = [(y, x) for y in range(row, min(row + scale, H)) for x in range(column, min(column + scale, W))]
        return round(sum(values[(channel * H + y) * W + x] for y, x in square) / len(square))

    red, green, blue = (0, 1, 2) if C == 3 else (0, 0, 0)
    return [[(value(red, y, x), value(green, y, x), value(blue, y, x)) for x in range(0, W, scale)] for y in range(0, H, scale)], scale
