"""Small images in the terminal: two pixels per character if it has colours, else ASCII shades.

for line in pixels.side_by_side(pixels.render(seven), pixels.render(eight)):
    console.print(line)
"""

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from nnx.preprocessing import images

RAMP = " .:-=+*#%@"  # dark to bright: a bright pixel of the input is a dense character
SMALL = 16  # pixels of width up to which `scale_to_view` doubles an image
LARGE = 56  # pixels of width or height to which `scale_to_view` shrinks larger images
TINT = (255, 140, 0)
# orange and blue: distinguishable with colour blindness
POSITIVE = (255, 160, 40)
NEGATIVE = (70, 150, 255)

Pixels = NDArray[np.uint8]


def has_colours(console: Console) -> bool:
    """Whether the console can show gray levels."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def scale_to_view(pixels: Pixels) -> Pixels:
    """Scale (H, W, C) for viewing: double an image up to SMALL pixels wide, shrink a large one to LARGE pixels."""
    H, W = pixels.shape[:2]
    if W <= SMALL:
        return pixels.repeat(2, 0).repeat(2, 1)
    scale = min(1, LARGE / max(H, W))
    return images.to_size(pixels, max(1, round(H * scale)), max(1, round(W * scale)), "stretch")


def tint_window(pixels: Pixels, window: tuple[int, int, int, int]) -> Pixels:
    """(H, W, 1 or 3) -> (H, W, 3) with a tinted window: top, left, bottom, right, the latter two exclusive."""
    top, left, bottom, right = (max(0, edge) for edge in window)
    tinted = images.to_channels(pixels, 3).copy()
    inside = tinted[top:bottom, left:right]
    inside[:] = (inside.astype(np.uint16) * 65 + np.array(TINT, np.uint16) * 35) // 100
    return tinted


def colour_by_sign(values: NDArray[np.float64]) -> Pixels:
    """(H, W) values such as weights -> (H, W, 3): orange if positive, blue if negative, brighter if larger."""
    share = np.abs(values) / (np.abs(values).max() or 1.0)
    colours = np.where(values[:, :, None] > 0, POSITIVE, NEGATIVE)
    return (share[:, :, None] * colours).astype(np.uint8)


def render(pixels: Pixels, width: int | None = None, *, console: Console | None = None) -> list[Text]:
    """(H, W) gray or (H, W, 1 or 3) uint8 -> ceil(H / 2) lines of W characters, each two pixels, one above the other.

    Shrinks images wider than `width` to `width` characters, with the same aspect ratio. Uses 24-bit colours, which rich
    reduces to those of `console` (by default stdout). Without colours, the density of a character is the brightness of
    its two pixels.
    """
    console = console or Console()
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    H, W = pixels.shape[:2]
    if width and width < W:
        pixels = images.to_size(pixels, max(1, round(H * width / W)), width, "stretch")
    if not has_colours(console):
        shades = images.to_channels(_halve_height(pixels), 1)[:, :, 0].astype(int) * len(RAMP) // 256
        return [Text("".join(RAMP[shade] for shade in row)) for row in shades]
    if console.options.ascii_only:
        return [_row(" ", None, row) for row in _halve_height(pixels)]
    lower = [*pixels[1::2], None]  # the last of an odd number of rows has none below it
    return [_row("▀", upper, below) for upper, below in zip(pixels[::2], lower, strict=False)]


def side_by_side(*blocks: list[Text], gap: int = 2) -> list[Text]:
    """Blocks of lines, such as pictures, side by side and aligned at the top, `gap` characters apart."""
    lines = [Text() for _ in range(max(map(len, blocks), default=0))]
    for n, block in enumerate(blocks):
        width = max((line.cell_len for line in block), default=0)
        for line, part in zip(lines, block + [Text()] * (len(lines) - len(block)), strict=True):
            last = n == len(blocks) - 1
            line.append_text(part).append("" if last else " " * (width - part.cell_len + gap))
    return lines


def _halve_height(pixels: Pixels) -> Pixels:
    """The mean of each two rows; the last row itself if the number of rows is odd."""
    upper, lower = pixels[::2], pixels[1::2]
    lower = lower if len(lower) == len(upper) else np.concatenate([lower, pixels[-1:]])
    mean: Pixels = ((upper.astype(np.uint16) + lower + 1) // 2).astype(np.uint8)
    return mean


def _row(character: str, front: Pixels | None, back: Pixels | None) -> Text:
    """One line of (W, 1 or 3) pixels: `front` in the colour of the character, `back` behind it."""
    given = front if front is not None else back
    assert given is not None
    line = Text()
    for x in range(len(given)):
        colour, behind = (None if row is None else _colour(row[x].tolist()) for row in (front, back))
        line.append(character, Style(color=colour, bgcolor=behind))
    return line


def _colour(value: list[int]) -> Color:
    return Color.from_rgb(*(value * 3 if len(value) == 1 else value))
