"""How pictures look: one style, legible on white and on black; and grids of small images on one scale.

with style():  # explainers run inside it
    figure = new(8, 3)
    axes = figure.add_subplot()
    data = png(figure)
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7a7a7a"  # contrast 4.3 on white, 4.2 on the page's black: pictures have no background of their own
FAINT = "#7a7a7a40"
# Okabe & Ito 2008: told apart by colour-blind eyes too, and neither too light nor too dark for either background
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#b8a800", "#7b5ea7", "#8b5a2b")
SIGNED = "RdBu_r"  # blue below zero, white at zero, red above
AMOUNT = "viridis"
DOTS = 150  # an inch
SOLID = 192  # colours of a PNG that are opaque; the other 64 are for edges of letters and lines
STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",  # matplotlib's own: the same everywhere
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": FAINT,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "image.interpolation": "nearest",
}


@contextmanager
def style() -> Iterator[None]:
    """Inside, what matplotlib draws looks as all pictures here do."""
    import matplotlib
    from cycler import cycler

    ours: dict[Any, Any] = STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
    with matplotlib.rc_context(ours):
        yield


def new(width: float, height: float) -> "Figure":
    """An empty figure, `width` and `height` in inches. Without pyplot, so that nothing is kept and no window is looked for."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS, layout="constrained")


def png(figure: "Figure") -> bytes:
    """The figure as a PNG with a transparent background, in 256 colours: a third of the bytes. Equal figures give equal bytes."""
    from PIL import Image

    raw, data = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", bbox_inches="tight", pad_inches=0.05)
    image = Image.open(raw).convert("RGBA")
    alpha = np.asarray(image)[..., 3]
    # Pillow has one method that knows of transparency, which leaves 58 colours of a colour map's 256, and better ones that don't
    solid = image.convert("RGB").quantize(SOLID, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.putalpha(Image.fromarray(np.where(alpha == 255, 0, alpha).astype(np.uint8)))
    soft = image.quantize(256 - SOLID, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small = Image.fromarray(np.where(alpha == 255, np.asarray(solid), np.asarray(soft) + np.uint8(SOLID)).astype(np.uint8), "P")
    colours = np.zeros((256, 4), np.uint8)
    for start, part in ((0, solid), (SOLID, soft)):
        of_part = np.array(part.getpalette("RGBA"), np.uint8).reshape(-1, 4)
        colours[start : start + len(of_part)] = of_part
    small.putpalette(colours[:, :3].tobytes(), "RGB")
    small.save(data, format="png", optimize=True, transparency=colours[:, 3].tobytes())
    return data.getvalue()


def grid(
    images: Sequence[NDArray[Any]] | NDArray[Any],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    signed: bool = False,
    scale: str = "",
    limit: float | None = None,
    width: float = 8,
) -> "Figure":
    """(H, W) or (H, W, 3) images of one size, side by side in rows on one scale, each with its title above it.

    Signed: from -`limit` to `limit`, by default the largest magnitude, with zero white; else from 0 to it. `scale`, what the colours
    measure, adds a colour bar. Colour images are taken as they are, in [0, 1].
    """
    columns = columns or min(len(images), 16)
    rows = math.ceil(len(images) / columns)
    H, W = images[0].shape[:2]
    above = 0.3 * W / (width / columns * 1.4) if any(titles) else 0.0  # room for a title, in pixels of an image
    gap = max(1, round(0.06 * W))
    tall = H + gap + math.ceil(above)
    sheet = np.full((rows * tall - gap, columns * (W + gap) - gap, *images[0].shape[2:]), np.nan)
    for n, image in enumerate(images):
        top, left = n // columns * tall + math.ceil(above), n % columns * (W + gap)
        sheet[top : top + H, left : left + W] = image
    figure = new(width, width * sheet.shape[0] / sheet.shape[1] + (0.1 if scale else 0))
    axes = figure.add_subplot()
    bare(axes)
    shown = show(axes, sheet, signed=signed, limit=limit)
    for n, title in enumerate(titles):
        top, left = n // columns * tall + math.ceil(above), n % columns * (W + gap)
        axes.text(left + W / 2 - 0.5, top - 0.5 - 0.05 * above, title, ha="center", va="bottom", fontsize=7)
    if scale:
        bar(figure, shown, axes, scale)
    return figure


def show(axes: "Axes", image: NDArray[Any], *, signed: bool = False, limit: float | None = None, **options: Any) -> Any:
    """An image, in the colours of all images here; what is NaN stays transparent. Gives what a colour bar wants."""
    if image.ndim == 3:
        clear = np.isnan(image).any(2)
        return axes.imshow(np.dstack([np.nan_to_num(image).clip(0, 1), ~clear]), **options)
    finite = image[np.isfinite(image)]
    limit = limit or float(np.abs(finite).max(initial=0)) or 1.0
    options = {"cmap": SIGNED if signed else AMOUNT, "vmin": -limit if signed else 0, "vmax": limit} | options
    return axes.imshow(image, **options)


def bar(figure: "Figure", shown: Any, axes: Any, label: str) -> None:
    """A slim colour bar below `axes`, one or several."""
    colours = figure.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.03, aspect=60, pad=0.02, shrink=0.6)
    colours.outline.set_visible(False)
    colours.set_label(label)


def bare(axes: "Axes") -> "Axes":
    """Axes without ticks and frame, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def as_image(x: NDArray[Any]) -> NDArray[Any]:
    """A sample or a difference (C, H, W) -> (H, W), or (H, W, 3) of three channels: what `grid` and `show` take. Other C: their mean."""
    return x[0] if len(x) == 1 else x.transpose(1, 2, 0) if len(x) == 3 else x.mean(0)
