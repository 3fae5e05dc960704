"""The style of all pictures, legible on white and on black, and the parts that explainers draw with.

with style():  # explainers run inside it
    figure = new_figure(8, 3)
    axes = figure.add_subplot()
    data = to_png(figure)
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
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

    from nnx.explain import Subject

INK = "#7a7a7a"  # contrast 4.3 on white, 4.2 on the black of dark pages: pictures have no background of their own
FAINT = "#7a7a7a40"
# Okabe & Ito 2008: distinct for colour-blind readers too, and neither too light nor too dark for either background
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#b8a800", "#7b5ea7", "#8b5a2b")
MISTAKE = COLOURS[5]  # vermilion
SIGNED_MAP = "RdBu_r"  # blue below zero, white at zero, red above
POSITIVE_MAP = "viridis"
MAX_BARS = 40  # features in a bar chart
TITLE_LENGTH = 14  # characters of a title above a small image
DPI = 150
OPAQUE_COLOURS = 192  # of a PNG's 256; the other 64 are for the soft edges of letters and lines
MANY_COLOURS = 20_000
STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "text.color": INK,
    "text.parse_math": False,  # names of classes may contain dollar signs
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
    """A context in which matplotlib draws in this style."""
    import matplotlib
    from cycler import cycler

    settings: dict[Any, Any] = STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, `width` and `height` in inches. It does not use pyplot, which would keep it in memory and look
    for a window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def to_png(figure: "Figure") -> bytes:
    """The figure without its empty margins as a PNG with a transparent background, in 256 colours: a third of the
    bytes. Equal figures give equal bytes.

    The canvas draws once. `savefig` would draw twice to find the margins, and compress a PNG that this function would
    have to unpack again: 0.11 s of a core instead of 0.18 for an MLP's activations (medians of 10, A B A B, an AMD
    EPYC).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # class names in a script that the font lacks: drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.draw()
    pixels = _crop(np.asarray(canvas.buffer_rgba()), round(0.05 * figure.dpi))
    return _quantised_png(pixels)


def _quantised_png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 4) RGBA pixels as a PNG in 256 colours.

    Pillow's only method that supports transparency leaves 58 of the 256 colours of a colour map; its better ones do
    not support it. So opaque pixels and soft edges get a palette each.
    """
    from PIL import Image

    alpha = pixels[..., 3]
    image = Image.fromarray(pixels)
    opaque = image.convert("RGB")
    # for photographs, with their many colours, MAXCOVERAGE takes seconds and FASTOCTREE 20 ms, with no visible loss
    method = (
        {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 2}
        if opaque.getcolors(MANY_COLOURS)
        else {"method": Image.Quantize.FASTOCTREE}
    )
    solid = opaque.quantize(OPAQUE_COLOURS, **method, dither=Image.Dither.NONE)
    image.putalpha(Image.fromarray(np.where(alpha == 255, 0, alpha).astype(np.uint8)))
    soft = image.quantize(256 - OPAQUE_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    indices = np.where(alpha == 255, np.asarray(solid), np.asarray(soft) + np.uint8(OPAQUE_COLOURS)).astype(np.uint8)
    result = Image.fromarray(indices, "P")
    palette = np.zeros((256, 4), np.uint8)
    for start, part in ((0, solid), (OPAQUE_COLOURS, soft)):
        colours = np.array(part.getpalette("RGBA"), np.uint8).reshape(-1, 4)
        palette[start : start + len(colours)] = colours
    result.putpalette(palette[:, :3].tobytes(), "RGB")
    data = io.BytesIO()
    result.save(data, format="png", optimize=True, transparency=palette[:, 3].tobytes())
    return data.getvalue()


def _crop(pixels: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """(H, W, 4) with exactly `margin` transparent rows and columns around what is drawn."""
    visible = pixels[..., 3] > 0
    (top, bottom), (left, right) = (
        (lines[0], lines[-1] + 1) for lines in (np.flatnonzero(visible.any(axis)) for axis in (1, 0))
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
    """(H, W) or (H, W, 3) images of one size, side by side in rows on one colour scale, with titles above them.

    Signed: from -`limit` to `limit`, by default the largest magnitude, with zero white; else from 0 to `limit`.
    `scale`, the name of what the colours measure, adds a colour bar. Colour images are RGB in [0, 1].
    """
    columns = columns or min(len(images), 16)
    title_room = 0.19 * columns / width if any(titles) else 0.0  # 0.19 inches for a title
    sheet, corners = arrange(images, columns, title_room)
    figure = new_figure(width, width * sheet.shape[0] / sheet.shape[1] + (0.1 if scale else 0))
    axes = figure.add_subplot()
    hide_axes(axes)
    drawn = show(axes, sheet, signed=signed, limit=limit)
    for title, (top, middle) in zip(titles, corners, strict=False):
        axes.text(middle, top - 1, title, ha="center", va="bottom", fontsize=8)
    if scale:
        colour_bar(figure, drawn, axes, scale)
    return figure


def tile(images: Sequence[NDArray[Any]] | NDArray[Any], columns: int) -> NDArray[Any]:
    """(H, W) or (H, W, 3) images of one size side by side in rows as one image for `show`, with transparent gaps."""
    return arrange(images, columns, 0.0)[0]


def arrange(
    images: Sequence[NDArray[Any]] | NDArray[Any], columns: int, title_room: float
) -> tuple[NDArray[Any], list[tuple[int, float]]]:
    """All images in one, with room for a title above each, in widths of an image; and the top and the horizontal middle
    of each."""
    # small images are enlarged, so that the gaps can be narrower than one of their pixels
    factor = max(1, math.ceil(48 / max(images[0].shape[:2])))
    enlarged = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    H, W = enlarged[0].shape[:2]
    gap = max(1, round(0.08 * W))
    head = math.ceil(title_room * W * 1.08)
    across = W + gap
    down = H + gap + head
    corners = [(n // columns * down + head, n % columns * across) for n in range(len(enlarged))]
    rows = math.ceil(len(enlarged) / columns)
    sheet = np.full((rows * down - gap, columns * across - gap, *enlarged[0].shape[2:]), np.nan)
    for image, (top, left) in zip(enlarged, corners, strict=True):
        sheet[top : top + H, left : left + W] = image
    return sheet, [(top, left + (W - 1) / 2) for top, left in corners]


def draw_sample(axes: "Axes", subject: "Subject", n: int, **options: Any) -> None:
    """Draw a sample with its name: the image, or a bar for each standardised feature of a row."""
    if subject.spec.is_image:
        axes.imshow(sample_image(subject.images[n]), cmap="gray", vmin=0, vmax=1, **options)
    else:
        axes.bar(range(subject.spec.size), subject.inputs()[n].cpu().numpy())
        axes.set(xlabel="features", xticks=[])
    title = sample_title(subject, n)
    axes.set_title(title, fontsize=8 if "\n" in title else None)


def sample_title(subject: "Subject", n: int) -> str:
    """The name of a sample and its class, if known. If that is too wide for any sample, all have them on two lines."""
    names = [shorten(name, tail=True) for name in subject.names]
    if subject.labels is None:
        return names[n]
    labels = [shorten(subject.classes[k]) for k in subject.labels]
    is_wide = any(len(name + label) > TITLE_LENGTH - 5 for name, label in zip(names, labels, strict=True))
    between = "\n" if is_wide else ", "
    return f"{names[n]}{between}true {labels[n]}"


def aspect_ratio(subject: "Subject") -> float:
    """Height over width of what `draw_sample` draws, limited to 0.4 to 2."""
    _, H, W = subject.spec.shape if subject.spec.is_image else (1, 4, 5)
    return float(np.clip(H / W, 0.4, 2))


def draw_prediction(axes: "Axes", classes: Sequence[str], probabilities: NDArray[Any], limit: int = 10) -> None:
    """Draw a bar for the probability of each class; of more than `limit`, the most probable, in their own order."""
    shown = np.sort(np.argsort(-probabilities, kind="stable")[:limit])
    top = int(probabilities.argmax())
    axes.barh(range(len(shown)), probabilities[shown], color=[COLOURS[0] if k == top else INK for k in shown])
    axes.set_yticks(range(len(shown)), [shorten(classes[k]) for k in shown])
    room_for_bars(axes, len(shown))
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], xlabel="probability")
    axes.set_title(f"predicted {shorten(classes[top])}\n{100 * probabilities[top]:.1f} %")


def shorten(text: str, limit: int = TITLE_LENGTH, *, tail: bool = False) -> str:
    """At most `limit` characters: the beginning of the text, or its end (`tail`), with an ellipsis for the rest."""
    if len(text) <= limit:
        return text
    return "…" + text[1 - limit :] if tail else text[: limit - 1] + "…"


def bar_chart(names: Sequence[str], series: dict[str, NDArray[Any]], label: str) -> "Figure":
    """Horizontal bars, one group per name from top to bottom. Each series has its own colour, and its name, unless
    empty, in a legend."""
    figure = new_figure(6, 0.6 + 0.25 * any(series) + len(names) * (0.12 + 0.1 * len(series)))
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for n, (name, values) in enumerate(series.items()):
        axes.barh(np.arange(len(names)) + (n - (len(series) - 1) / 2) * height, values, height, label=name or None)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axes.axvline(0, color=INK, linewidth=0.6)
    if any(series):
        figure.legend(loc="outside lower center", ncols=len(series))  # never over a bar
    return figure


def show(axes: "Axes", image: NDArray[Any], *, signed: bool = False, limit: float | None = None, **options: Any) -> Any:
    """Draw an image in the colours of this module; NaN is transparent. Returns what a colour bar needs."""
    if image.ndim == 3:
        transparent = np.isnan(image).any(2)
        return axes.imshow(np.dstack([np.nan_to_num(image).clip(0, 1), ~transparent]), **options)
    finite = image[np.isfinite(image)]
    limit = limit or float(np.abs(finite).max(initial=0)) or 1.0
    colours = SIGNED_MAP if signed else POSITIVE_MAP
    options = {"cmap": colours, "vmin": -limit if signed else 0, "vmax": limit} | options
    return axes.imshow(image, **options)


def draw_heatmap(axes: "Axes", heat: NDArray[Any], image: NDArray[Any]) -> None:
    """Draw non-negative values (H, W) in colours, with the uint8 image (C, H, W) in translucent white over them; of a
    colour image its outlines, as a bright image would hide the colours."""
    show(axes, heat)
    ink = image.mean(0) / 255 if len(image) == 1 else outlines(image)
    axes.imshow(np.dstack([np.ones((*ink.shape, 3)), 0.55 * ink]))


def outlines(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(C, H, W) -> (H, W) in [0, 1]: the contrast at each pixel over all channels, squared, so that noise is faint."""
    from scipy.ndimage import sobel

    contrast = sum(np.square(sobel(channel, axis)) for channel in image.astype(np.float64) for axis in (0, 1))
    strongest = max(float(np.quantile(contrast, 0.98)), 1.0)
    lines: NDArray[np.float64] = (np.asarray(contrast) / strongest).clip(0, 1)
    return lines


def colour_bar(figure: "Figure", drawn: Any, axes: Any, label: str, *, ticks: int = 5, aspect: int = 60) -> None:
    """A slim colour bar below one or several `axes`, with at most `ticks` steps, `aspect` times as long as high."""
    from matplotlib.ticker import MaxNLocator

    options: dict[str, Any] = {"fraction": 0.03, "aspect": aspect, "pad": 0.04, "shrink": 0.6}
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", ticks=MaxNLocator(ticks), **options)
    bar.outline.set_visible(False)
    bar.set_label(label)


def side_bar(figure: "Figure | SubFigure", drawn: Any, axes: Any) -> None:
    """A slim colour bar to the right of `axes`, with few ticks, for an image of little height."""
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(drawn, ax=axes, location="right", ticks=MaxNLocator(3), fraction=0.015, aspect=8, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)


def relative_bar(
    figure: "Figure", axes: Any, label: str, *, signed: bool = False, aspect: float = 18, room: Any = None
) -> None:
    """A slim colour bar to the right of several `axes`, each of which has a colour scale of its own, up to its largest
    value. It takes its room from those axes, or fills the axes `room`: then the others stay where they are."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(-1 if signed else 0, 1), SIGNED_MAP if signed else POSITIVE_MAP)
    ticks = [-1, 0, 1] if signed else [0, 1]
    place: dict[str, Any] = (
        {"cax": room}
        if room is not None
        else {"ax": axes, "location": "right", "fraction": 0.03, "aspect": aspect, "pad": 0.01}
    )
    bar = figure.colorbar(colours, ticks=ticks, **place)
    bar.ax.set_yticklabels(["−max", "0", "max"] if signed else ["0", "max"])
    bar.outline.set_visible(False)
    bar.set_label(label)


def hide_axes(axes: "Axes") -> "Axes":
    """The axes without ticks and frame, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def frame(axes: "Axes") -> "Axes":
    """The axes without ticks, in a thin frame, for maps whose units mean nothing."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=FAINT)
    return axes


def count_from_one(axis: "Axis") -> None:
    """Number the pixels along an axis from 1, as texts do: "from row 4 of 8 on"."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda position, _: f"{position + 1:.0f}"))


def room_for_bars(axes: "Axes", bars: int) -> None:
    """Limit the vertical axis to `bars` horizontal bars from top to bottom. Fewer than four stay as thin as four, in
    the middle."""
    margin = max(0, 4 - bars) / 2
    axes.set_ylim(bars - 0.5 + margin, -0.5 - margin)


def sample_image(image: NDArray[Any]) -> NDArray[Any]:
    """A uint8 image (C, H, W) -> (H, W), or (H, W, 3), in [0, 1]."""
    return as_image(image / 255)


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 to count - 1, evenly spaced, with the first and the last."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, limit))})


def as_image(x: NDArray[Any]) -> NDArray[Any]:
    """A sample or a difference (C, H, W) -> (H, W), or (H, W, 3) if C is 3, for `grid` and `show`. With any other C:
    the mean over the channels."""
    return x[0] if len(x) == 1 else x.transpose(1, 2, 0) if len(x) == 3 else x.mean(0)
