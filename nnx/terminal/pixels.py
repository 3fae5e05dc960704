"""Small images in the terminal: two pixels a character where it has colours, else shades of ASCII.

for line in draw.beside(draw.image(seven), draw.image(eight)):
    console.print(line)
"""

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from nnx.preprocessing import images

RAMP = " .:-=+*#%@"  # dark to bright: what shines in a network's input is what is dense here
SMALL = 16  # pixels across, up to which `sized` makes an image twice as large
LARGE = 56  # pixels in either direction, to which it makes larger ones smaller
TINT = (255, 140, 0)
POSITIVE, NEGATIVE = (255, 160, 40), (70, 150, 255)  # orange and blue: told apart by the colour-blind, too

Pixels = NDArray[np.uint8]


def has_colours(console: Console) -> bool:
    """Whether gray levels can be told apart there."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def sized(pixels: Pixels) -> Pixels:
    """(H, W, C) as large as one can look at: small images twice as large, large ones smaller, each by itself."""
    H, W = pixels.shape[:2]
    if W <= SMALL:
        return pixels.repeat(2, 0).repeat(2, 1)
    scale = min(1, LARGE / max(H, W))
    return images.to_size(pixels, max(1, round(H * scale)), max(1, round(W * scale)), "stretch")


def tinted(pixels: Pixels, window: tuple[int, int, int, int]) -> Pixels:
    """(H, W, 1 or 3) -> (H, W, 3), coloured from top, left to bottom, right, the latter two not included."""
    top, left, bottom, right = (max(0, edge) for edge in window)
    coloured = images.to_channels(pixels, 3).copy()
    part = coloured[top:bottom, left:right]
    part[:] = (part.astype(np.uint16) * 65 + np.array(TINT, np.uint16) * 35) // 100
    return coloured


def signed(values: NDArray[np.float64]) -> Pixels:
    """(H, W) numbers of either sign, as weights are -> (H, W, 3): orange above 0, blue below, the brighter the
    larger."""
    share = np.abs(values) / (np.abs(values).max() or 1.0)
    colours = np.where(values[:, :, None] > 0, POSITIVE, NEGATIVE)
    return (share[:, :, None] * colours).astype(np.uint8)


def image(pixels: Pixels, width: int | None = None, *, console: Console | None = None) -> list[Text]:
    """(H, W) gray or (H, W, 1 or 3) uint8 -> ceil(H / 2) lines of W characters; a character is two pixels, one above
    the other.

    Wider images are made smaller, to `width` characters, aspect kept. In 24-bit colours, of which rich makes what the
    terminal has; where `console`, by default stdout's, has none, each character says by its density how bright the two
    pixels are.
    """
    console = console or Console()
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    H, W = pixels.shape[:2]
    if width and width < W:
        pixels = images.to_size(pixels, max(1, round(H * width / W)), width, "stretch")
    if not has_colours(console):
        shades = images.to_channels(_halved(pixels), 1)[:, :, 0].astype(int) * len(RAMP) // 256
        return [Text("".join(RAMP[shade] for shade in row)) for row in shades]
    if console.options.ascii_only:
        return [_row(" ", None, row) for row in _halved(pixels)]
    lower = [*pixels[1::2], None]  # of an odd number of rows the last is by itself
    return [_row("▀", upper, below) for upper, below in zip(pixels[::2], lower, strict=False)]


def beside(*pictures: list[Text], gap: int = 2) -> list[Text]:
    """Pictures, or other blocks of lines, side by side, their tops level, `gap` characters apart."""
    lines = [Text() for _ in range(max(map(len, pictures), default=0))]
    for n, picture in enumerate(pictures):
        width = max((line.cell_len for line in picture), default=0)
        for line, part in zip(lines, picture + [Text()] * (len(lines) - len(picture)), strict=True):
            last = n == len(pictures) - 1
            line.append_text(part).append("" if last else " " * (width - part.cell_len + gap))
    return lines


def _halved(pixels: Pixels) -> Pixels:
    """Each two rows as their mean; the last by itself where their number is odd."""
    upper, lower = pixels[::2], pixels[1::2]
    lower = lower if len(lower) == len(upper) else np.concatenate([lower, pixels[-1:]])
    mean: Pixels = ((upper.astype(np.uint16) + lower + 1) // 2).astype(np.uint8)
    return mean


def _row(character: str, front: Pixels | None, back: Pixels | None) -> Text:
    """One line of (W, 1 or 3) pixels: `front` in the colour of the character, `back` behind it."""
    some = front if front is not None else back
    assert some is not None
    line = Text()
    for x in range(len(some)):
        colour, behind = (None if row is None else _colour(row[x].tolist()) for row in (front, back))
        line.append(character, Style(color=colour, bgcolor=behind))
    return line


def _colour(value: list[int]) -> Color:
    return Color.from_rgb(*(value * 3 if len(value) == 1 else value))
