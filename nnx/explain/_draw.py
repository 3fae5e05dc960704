"""How pictures look: one style, legible on white and on black; and grids of small images on one scale.

with style():  # explainers run inside it
    figure = new(8, 3)
    axes = figure.add_subplot()
    data = png(figure)
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnx.explain import Subject

INK = "#7a7a7a"  # contrast 4.3 on white, 4.2 on the page's black: pictures have no background of their own
FAINT = "#7a7a7a40"
# Okabe & Ito 2008: told apart by colour-blind eyes too, and neither too light nor too dark for either background
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#b8a800", "#7b5ea7", "#8b5a2b")
SIGNED = "RdBu_r"  # blue below zero, white at zero, red above
AMOUNT = "viridis"
BARS = 40  # of features, in a picture
WIDE = 14  # characters of a title above a small image
DOTS = 150  # an inch
SOLID = 192  # colours of a PNG that are opaque; the other 64 are for edges of letters and lines
MANY = 20_000  # colours
STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # matplotlib's own: the same everywhere
    "text.color": INK,
    "text.parse_math": False,  # names of classes may hold dollars
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
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
    """An empty figure, `width` and `height` in inches. Without pyplot, so that nothing is kept and no window is looked
    for."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS, layout="constrained")


def png(figure: "Figure") -> bytes:
    """The figure, cut to what is drawn, as a PNG with a transparent background, in 256 colours: a third of the bytes.
    Equal figures give equal bytes.

    Drawn once and not by `savefig`, which draws it twice to cut it and packs the PNG that is unpacked here: 0.11 s of a
    core instead of 0.18 for an MLP's activations (medians of 10, A B A B, an AMD EPYC).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # names of classes in letters that the font lacks: boxes, as everywhere
        canvas.draw()
    pixels = _cut(np.asarray(canvas.buffer_rgba()), round(0.05 * figure.dpi))
    alpha = pixels[..., 3]
    image = Image.fromarray(pixels)
    # Pillow has one method that knows of transparency, which leaves 58 colours of a colour map's 256, and better ones
    # that don't
    seen = image.convert("RGB")
    # of photographs, with their many colours, that takes seconds; this 20 ms, and nobody misses a shade
    how = (
        {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 2}
        if seen.getcolors(MANY)
        else {"method": Image.Quantize.FASTOCTREE}
    )
    solid = seen.quantize(SOLID, **how, dither=Image.Dither.NONE)
    image.putalpha(Image.fromarray(np.where(alpha == 255, 0, alpha).astype(np.uint8)))
    soft = image.quantize(256 - SOLID, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small = Image.fromarray(
        np.where(alpha == 255, np.asarray(solid), np.asarray(soft) + np.uint8(SOLID)).astype(np.uint8), "P"
    )
    colours = np.zeros((256, 4), np.uint8)
    for start, part in ((0, solid), (SOLID, soft)):
        of_part = np.array(part.getpalette("RGBA"), np.uint8).reshape(-1, 4)
        colours[start : start + len(of_part)] = of_part
    small.putpalette(colours[:, :3].tobytes(), "RGB")
    data = io.BytesIO()
    small.save(data, format="png", optimize=True, transparency=colours[:, 3].tobytes())
    return data.getvalue()


def _cut(pixels: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """(H, W, 4) without the rows and columns around it that are transparent, but for `margin` of them, added where
    there are fewer."""
    there = pixels[..., 3] > 0
    (top, bottom), (left, right) = (
        (lines[0], lines[-1] + 1) for lines in (np.flatnonzero(there.any(axis)) for axis in (1, 0))
    )
    return np.pad(pixels[top:bottom, left:right], ((margin, margin), (margin, margin), (0, 0)))


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
    """(H, W) or (H, W, 3) images of one size, side by side in rows on one scale, the titles above them.

    Signed: from -`limit` to `limit`, by default the largest magnitude, with zero white; else from 0 to it. `scale`,
    what the colours measure, adds a colour bar. Colour images are taken as they are, in [0, 1].
    """
    columns = columns or min(len(images), 16)
    sheet, places = _laid(images, columns, 0.19 * columns / width if any(titles) else 0.0)  # 0.19 inches for a title
    figure = new(width, width * sheet.shape[0] / sheet.shape[1] + (0.1 if scale else 0))
    axes = figure.add_subplot()
    bare(axes)
    shown = show(axes, sheet, signed=signed, limit=limit)
    for title, (top, middle) in zip(titles, places, strict=False):
        axes.text(middle, top - 1, title, ha="center", va="bottom", fontsize=8)
    if scale:
        bar(figure, shown, axes, scale)
    return figure


def tiled(images: Sequence[NDArray[Any]] | NDArray[Any], columns: int) -> NDArray[Any]:
    """(H, W) or (H, W, 3) images of one size in one, for `show`: side by side in rows, with gaps between them that stay
    transparent."""
    return _laid(images, columns, 0.0)[0]


def _laid(
    images: Sequence[NDArray[Any]] | NDArray[Any], columns: int, above: float
) -> tuple[NDArray[Any], list[tuple[int, float]]]:
    """The images in one, with room `above` each in widths of an image, and where each has its top and its middle."""
    # small ones are enlarged, so that what is between them can be narrower than a pixel
    fine = max(1, math.ceil(48 / max(images[0].shape[:2])))
    large = [image.repeat(fine, 0).repeat(fine, 1) for image in images]
    H, W = large[0].shape[:2]
    gap, head = max(1, round(0.08 * W)), math.ceil(above * W * 1.08)
    across, down = W + gap, H + gap + head
    corners = [(n // columns * down + head, n % columns * across) for n in range(len(large))]
    rows = math.ceil(len(large) / columns)
    sheet = np.full((rows * down - gap, columns * across - gap, *large[0].shape[2:]), np.nan)
    for image, (top, left) in zip(large, corners, strict=True):
        sheet[top : top + H, left : left + W] = image
    return sheet, [(top, left + (W - 1) / 2) for top, left in corners]


def asked(axes: "Axes", subject: "Subject", n: int, **options: Any) -> None:
    """A sample of the subject, with its name: the image, or a bar for each feature of a row, in deviations from the
    mean."""
    if subject.spec.is_image:
        axes.imshow(sample(subject.images[n]), cmap="gray", vmin=0, vmax=1, **options)
    else:
        axes.bar(range(subject.spec.size), subject.inputs()[n].cpu().numpy())
        axes.set(xlabel="features", xticks=[])
    text = title(subject, n)
    axes.set_title(text, fontsize=8 if "\n" in text else None)


def title(subject: "Subject", n: int) -> str:
    """A sample's name and its class, where that is known; of all of them on two lines where one would be wide for
    some."""
    names = [shortened(name, tail=True) for name in subject.names]
    if subject.labels is None:
        return names[n]
    labels = [shortened(subject.classes[k]) for k in subject.labels]
    wide = any(len(name + label) >= WIDE for name, label in zip(names, labels, strict=True))
    return f"{names[n]}\n{labels[n]}" if wide else f"{names[n]}: {labels[n]}"


def shape(subject: "Subject") -> float:
    """Height over width of what `asked` draws, within what a picture can be laid out for."""
    _, H, W = subject.spec.shape if subject.spec.is_image else (1, 4, 5)
    return float(np.clip(H / W, 0.4, 2))


def said(axes: "Axes", classes: Sequence[str], probabilities: NDArray[Any], most: int = 10) -> None:
    """Bars: the classes and their probabilities; of more than `most` the most probable, in their own order."""
    shown = np.sort(np.argsort(-probabilities, kind="stable")[:most])
    top = int(probabilities.argmax())
    axes.barh(range(len(shown)), probabilities[shown], color=[COLOURS[0] if k == top else INK for k in shown])
    axes.set_yticks(range(len(shown)), [shortened(classes[k]) for k in shown])
    axes.set(xlim=(0, 1), ylim=(max(4, len(shown)) - 0.5, -0.5), xticks=[0, 0.5, 1])
    name = shortened(classes[top])
    axes.set_title(f"says {name}{': ' if len(name) < 5 else chr(10)}{100 * probabilities[top]:.1f} %")


def shortened(text: str, most: int = WIDE, *, tail: bool = False) -> str:
    """At most so many characters of the beginning, or of the end, with an ellipsis for what is left out."""
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if tail else text[: most - 1] + "…"


def bars(names: Sequence[str], series: dict[str, NDArray[Any]], label: str) -> "Figure":
    """Horizontal bars, a group a name, from top to bottom; each series in its own colour, with its name in a legend
    where it has one."""
    figure = new(6, 0.6 + len(names) * (0.12 + 0.1 * len(series)))
    axes = figure.add_subplot()
    thick = 0.8 / len(series)
    for n, (name, values) in enumerate(series.items()):
        axes.barh(np.arange(len(names)) + (n - (len(series) - 1) / 2) * thick, values, thick, label=name or None)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axes.axvline(0, color=INK, linewidth=0.6)
    if any(series):
        axes.legend()
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


def veiled(axes: "Axes", heat: NDArray[Any], image: NDArray[Any]) -> None:
    """An amount (H, W) in colours, with the uint8 image (C, H, W) that it belongs to as a white veil over it."""
    show(axes, heat)
    ink = image.mean(0) / 255
    axes.imshow(np.dstack([np.ones((*ink.shape, 3)), 0.55 * ink]))


def bar(figure: "Figure", shown: Any, axes: Any, label: str) -> None:
    """A slim colour bar below `axes`, one or several."""
    from matplotlib.ticker import MaxNLocator

    options: dict[str, Any] = {"fraction": 0.03, "aspect": 60, "pad": 0.04, "shrink": 0.6}
    colours = figure.colorbar(shown, ax=axes, orientation="horizontal", ticks=MaxNLocator(5), **options)
    colours.outline.set_visible(False)
    colours.set_label(label)


def bare(axes: "Axes") -> "Axes":
    """Axes without ticks and frame, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def sample(image: NDArray[Any]) -> NDArray[Any]:
    """A uint8 image (C, H, W) -> (H, W), or (H, W, 3), in [0, 1]."""
    return as_image(image / 255)


def spread(count: int, most: int) -> list[int]:
    """At most so many of 0 to count - 1, evenly spread, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def as_image(x: NDArray[Any]) -> NDArray[Any]:
    """A sample or a difference (C, H, W) -> (H, W), or (H, W, 3) of three channels: what `grid` and `show` take. Other
    C: their mean."""
    return x[0] if len(x) == 1 else x.transpose(1, 2, 0) if len(x) == 3 else x.mean(0)
