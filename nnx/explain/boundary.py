"""Boundary: the predicted class and its confidence over the plane of two features."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnx import losses
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.explain import Explanation, Picture, Subject, _draw, _units
from nnx.models import _layer_outputs
from nnx.preprocessing.normalise import Normalise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Extent = tuple[float, float, float, float]  # of the plane: first feature from, to, second feature from, to

SIDE = 240  # points of the grid along each axis
MARGIN = 0.15  # of the data's range, around it: shows what the network predicts where it has seen no data
POINTS = 600  # samples drawn
UNIT_SIDE = 60  # points along each axis of the small map of a unit
MAX_UNITS = 32  # of a layer with such a map
MAX_LAYERS = 4
UNIT_COLUMNS = 8
CONFIDENT = 0.95
PALE = 0.95  # grey where all classes are equally probable
READING = (
    "The axes are the two features. The background colour is the predicted class at each point, paler where the "
    "confidence is lower, and the line is the decision boundary. Dots are samples in the colour of their true class; a "
    "cross marks a misclassified one. Look at regions far from all dots: the network is often confident there, too. "
    "The small maps show the activation of each hidden unit over the same plane. The contours of a unit of the first "
    "layer are straight lines; units of later layers combine such lines into shapes that separate the classes."
)


def applies(checkpoint: Checkpoint) -> str | None:
    features = checkpoint.spec.size
    return None if checkpoint.spec.shape == (2,) else f"draws networks with two features; this one has {features:,}"


def explain(subject: Subject) -> Explanation:
    test = subject.held_out
    points = np.asarray(test.inputs)
    plane = extent(points)
    probabilities = regions(subject.network, subject.prepare, plane)
    predicted = predict(subject.network, subject.prepare, points).argmax(1)
    accuracy = float((predicted == test.labels).mean())
    confident = float((probabilities.max(2) > CONFIDENT).mean())
    area = np.bincount(probabilities.argmax(2).ravel(), minlength=len(subject.classes)) / SIDE**2
    figures = {
        "samples": len(test),
        "accuracy": accuracy,
        "extent": list(plane),
        "area": dict(zip(subject.classes, area.tolist(), strict=True)),
        "sure": confident,
    }
    samples = f"{len(test):,} {subject.held_out_word} samples"
    caption = (
        f"Accuracy {100 * accuracy:.1f} % on {samples}. On {100 * confident:.0f} % of this plane the "
        f"confidence is above {100 * CONFIDENT:.0f} %."
    )
    png = draw_regions(probabilities, plane, test, subject.classes, predicted, subject.features)
    activations = unit_activations(subject, plane)
    layers = list(activations)
    shown = [layers[n] for n in _draw.evenly_spaced(len(layers), MAX_LAYERS)]
    units = tuple(
        _draw_units(n, subject.layer_titles[name], activations[name]) for n, name in enumerate(shown, start=1)
    )
    return Explanation(READING, (Picture("boundary", caption, png), *units), figures)


def extent(rows: NDArray[Any]) -> Extent:
    """The range of (N, 2) rows, and a margin around it."""
    low = rows.min(0).astype(float)
    high = rows.max(0).astype(float)
    margin = MARGIN * np.where(high > low, high - low, 1)
    x0, y0 = low - margin
    x1, y1 = high + margin
    return float(x0), float(x1), float(y0), float(y1)


def predict(network: nn.Module, prepare: Normalise, rows: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 2) raw rows -> (N, K) probabilities."""
    x = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(prepare.factor.device)
    with torch.no_grad():
        parts = [losses.probabilities(network(prepare(part))) for part in torch.split(x, 10_000)]
    probabilities: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return probabilities


def regions(network: nn.Module, prepare: Normalise, plane: Extent, side: int = SIDE) -> NDArray[np.float32]:
    """(side, side, K): the probabilities at the centres of side x side cells. The first feature grows with the column,
    the second with the row."""
    return predict(network, prepare, _centres(plane, side)).reshape(side, side, -1)


def unit_activations(subject: Subject, plane: Extent, side: int = UNIT_SIDE) -> dict[str, NDArray[np.float32]]:
    """(units, side, side) of each hidden layer: the activations at the centres of cells, as in `regions`. A unit with
    values at several steps or tokens has their mean."""
    x = subject.inputs(_centres(plane, side).astype(np.float32))
    outputs = _layer_outputs.layer_outputs(subject.network, x)
    return {
        name: _units.by_position(output).mean(2).T.reshape(-1, side, side).numpy()
        for name, output in outputs.items()
        if name != _layer_outputs.LOGITS
    }


def _centres(plane: Extent, side: int) -> NDArray[np.float64]:
    """(side * side, 2): the centres of the cells of the plane, row by row."""
    x0, x1, y0, y1 = plane
    centres = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(y0 + (y1 - y0) * centres, x0 + (x1 - x0) * centres, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def film(
    snapshots: Iterable[tuple[str, nn.Module]],
    prepare: Normalise,
    data: Split,
    classes: tuple[str, ...],
    features: Sequence[str],
) -> Iterator[bytes]:
    """A PNG of the regions for each snapshot of a network, with its name and accuracy as title. All have the same
    plane, samples and size."""
    points = np.asarray(data.inputs)
    plane = extent(points)
    for name, network in snapshots:
        predicted = predict(network, prepare, points).argmax(1)
        title = f"{name}: accuracy {100 * (predicted == data.labels).mean():.1f} %"
        yield draw_regions(regions(network, prepare, plane), plane, data, classes, predicted, features, title)


# ---------------------------------------------------------------- pictures


def region_colours(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """(H, W, K) probabilities -> (H, W, 3) in [0, 1]: the colour of the most probable class, stronger where it is more
    probable."""
    K = probabilities.shape[2]
    colours = np.array([_rgb(k) for k in range(K)])
    strength = ((probabilities.max(2) - 1 / K) / (1 - 1 / K))[..., None]
    pixels: NDArray[np.float64] = PALE + 0.6 * strength * (colours[probabilities.argmax(2)] - PALE)
    return pixels


def draw_regions(
    probabilities: NDArray[np.float32],
    plane: Extent,
    data: Split,
    classes: tuple[str, ...],
    predicted: NDArray[np.int64],
    features: Sequence[str],
    title: str = "",
) -> bytes:
    """A PNG of the regions with the samples over them, misclassified ones crossed out."""
    with _draw.style():
        figure = _draw.new_figure(5.5, 5)
        axes = figure.add_subplot()
        pixels = region_colours(probabilities)
        axes.imshow(pixels, origin="lower", extent=plane, aspect="auto", interpolation="bilinear")
        _draw_boundaries(axes, probabilities, plane)
        _draw_points(axes, data, classes, predicted)
        axes.set(xlim=plane[:2], ylim=plane[2:], xlabel=features[0], ylabel=features[1])
        axes.set_title(title)
        if len(classes) <= 20:
            figure.legend(loc="outside lower center", ncols=min(len(classes), 5))
        return _draw.to_png(figure)


def _draw_units(n: int, title: str, activations: NDArray[np.float32]) -> Picture:
    """A small map for each of the at most 32 units of layer n that vary most over the plane."""
    spread = activations.std((1, 2))
    units = np.sort(np.argsort(-spread, kind="stable")[:MAX_UNITS])
    magnitudes = np.abs(activations[units])
    limit = float(np.quantile(magnitudes[magnitudes > 0], 0.9)) if magnitudes.any() else 1.0
    maps = activations[units, ::-1]  # the second feature grows upwards
    columns = min(UNIT_COLUMNS, len(units))
    figure = _draw.grid(
        maps,
        [f"{unit}" for unit in units],
        columns=columns,
        signed=True,
        scale="activation",
        limit=limit,
        width=max(2.5, 0.8 * columns),
    )
    if activations.min() >= 0:
        figure.axes[-1].set_xlim(0, limit)  # the half of the colour bar that is used
    count = len(activations)
    constant = int((spread == 0).sum())
    note = f" {constant} {'are' if constant > 1 else 'is'} the same everywhere." if constant else ""
    which = f"the {len(units)} of {count:,} units that vary most" if len(units) < count else f"all {count} units"
    caption = f"{title}: the activation of {which} over the plane above.{note}"
    return Picture(f"boundary-units-{n}", caption, _draw.to_png(figure))


def _draw_boundaries(axes: "Axes", probabilities: NDArray[np.float32], plane: Extent) -> None:
    """The lines on which a class is exactly as probable as the best other one."""
    side, _, K = probabilities.shape
    x, y = (
        np.linspace(*ends, side, endpoint=False) + (ends[1] - ends[0]) / side / 2 for ends in (plane[:2], plane[2:])
    )
    for k in range(K if K > 2 else 1):
        lead = probabilities[:, :, k] - np.delete(probabilities, k, 2).max(2)
        if lead.min() < 0 < lead.max():
            axes.contour(x, y, lead, levels=[0], colors="#303030", linewidths=0.9)


def _draw_points(axes: "Axes", data: Split, classes: tuple[str, ...], predicted: NDArray[np.int64]) -> None:
    chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:POINTS])
    inputs = data.inputs[chosen]
    labels = data.labels[chosen]
    wrong = (predicted != data.labels)[chosen]
    for k, name in enumerate(classes):
        x, y = inputs[labels == k].T
        axes.scatter(x, y, s=14, color=_rgb(k), edgecolors="white", linewidths=0.5, label=_draw.shorten(name))
    x, y = inputs[wrong].T
    axes.scatter(x, y, s=16, color="black", marker="x", linewidths=0.8)


def _rgb(k: int) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(_draw.COLOURS[k % len(_draw.COLOURS)])
