"""Boundary: which class a network of two features says where, how surely, and how that came about."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnx import losses
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.explain import Explanation, Picture, Subject, _draw
from nnx.preprocessing.normalise import Normalise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Extent = tuple[float, float, float, float]  # of the features shown: the first from, to, the second from, to

SIDE = 240  # places along each axis at which the network is asked
MARGIN = 0.15  # of the data's range, shown around it: what is said where nothing was seen
POINTS = 600
SURE = 0.95
PALE = 0.95  # grey of where the network can't tell
READING = (
    "The colour of a place is the class that the network says there, the paler the less sure it is, and the line is where its answer "
    "changes; dots are test samples, and a dot with a cross through it lies on the wrong side."
)


def applies(kept: Checkpoint) -> str | None:
    return None if kept.spec.shape == (2,) else "draws networks of two features, on a plane; this one sees more"


def explain(subject: Subject) -> Explanation:
    test = subject.data("test")
    points = np.asarray(test.inputs)
    shown = extent(points)
    said = regions(subject.network, subject.prepare, shown)
    told = ask(subject.network, subject.prepare, points).argmax(1)
    accuracy, sure = float((told == test.labels).mean()), float((said.max(2) > SURE).mean())
    area = np.bincount(said.argmax(2).ravel(), minlength=len(subject.classes)) / SIDE**2
    figures = {
        "samples": len(test),
        "accuracy": accuracy,
        "extent": list(shown),
        "area": dict(zip(subject.classes, area.tolist(), strict=True)),
        "sure": sure,
    }
    caption = (
        f"{len(test):,} test samples, {100 * accuracy:.1f} % of them on the right side. On {100 * sure:.0f} % of this plane the network is "
        f"more than {100 * SURE:.0f} % sure."
    )
    png = picture(said, shown, test, subject.classes, told, subject.features)
    return Explanation(READING, (Picture("boundary", caption, png),), figures)


def extent(rows: NDArray[Any]) -> Extent:
    """Of (N, 2) rows: what they span, and a margin around it."""
    low, high = rows.min(0).astype(float), rows.max(0).astype(float)
    margin = MARGIN * np.where(high > low, high - low, 1)
    (x0, y0), (x1, y1) = low - margin, high + margin
    return float(x0), float(x1), float(y0), float(y1)


def ask(network: nn.Module, prepare: Normalise, rows: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 2) rows as the dataset has them -> (N, K) probabilities."""
    x = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(prepare.factor.device)
    with torch.no_grad():
        said = [losses.probabilities(network(prepare(part))) for part in torch.split(x, 10_000)]
    found: NDArray[np.float32] = torch.cat(said).cpu().numpy()
    return found


def regions(network: nn.Module, prepare: Normalise, shown: Extent, side: int = SIDE) -> NDArray[np.float32]:
    """(side, side, K): what the network says in the middle of each of side x side cells. The first feature grows with
    the column, the second with the row."""
    x0, x1, y0, y1 = shown
    middle = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(y0 + (y1 - y0) * middle, x0 + (x1 - x0) * middle, indexing="ij")
    return ask(network, prepare, np.stack([x.ravel(), y.ravel()], 1)).reshape(side, side, -1)


def film(
    snapshots: Iterable[tuple[str, nn.Module]],
    prepare: Normalise,
    data: Split,
    classes: tuple[str, ...],
    features: Sequence[str],
) -> Iterator[bytes]:
    """A PNG of the regions for each snapshot of a network, the snapshot's name and the share of right answers above it:
    all of the same plane with the same samples, and of one size."""
    points = np.asarray(data.inputs)
    shown = extent(points)
    for name, network in snapshots:
        told = ask(network, prepare, points).argmax(1)
        title = f"{name}: {100 * (told == data.labels).mean():.1f} % right"
        yield picture(regions(network, prepare, shown), shown, data, classes, told, features, title)


# ---------------------------------------------------------------- pictures


def coloured(said: NDArray[np.float32]) -> NDArray[np.float64]:
    """(H, W, K) probabilities -> (H, W, 3) in [0, 1]: the colour of the most probable class, the stronger the more
    probable it is."""
    K = said.shape[2]
    colours = np.array([_rgb(k) for k in range(K)])
    strength = ((said.max(2) - 1 / K) / (1 - 1 / K))[..., None]
    found: NDArray[np.float64] = PALE + 0.6 * strength * (colours[said.argmax(2)] - PALE)
    return found


def picture(
    said: NDArray[np.float32],
    shown: Extent,
    data: Split,
    classes: tuple[str, ...],
    told: NDArray[np.int64],
    features: Sequence[str],
    title: str = "",
) -> bytes:
    """The regions, the samples over them, and those of which the network was `told` another class crossed out."""
    with _draw.style():
        figure = _draw.new(5.5, 5)
        axes = figure.add_subplot()
        axes.imshow(coloured(said), origin="lower", extent=shown, aspect="auto", interpolation="bilinear")
        _lines(axes, said, shown)
        _points(axes, data, classes, told)
        axes.set(xlim=shown[:2], ylim=shown[2:], xlabel=features[0], ylabel=features[1])
        axes.set_title(title)
        if len(classes) <= 20:
            figure.legend(loc="outside lower center", ncols=min(len(classes), 5))
        return _draw.png(figure)


def _lines(axes: "Axes", said: NDArray[np.float32], shown: Extent) -> None:
    """Where the answer changes: of each class where it is as probable as the next one."""
    side = len(said)
    x, y = (
        np.linspace(*ends, side, endpoint=False) + (ends[1] - ends[0]) / side / 2 for ends in (shown[:2], shown[2:])
    )
    for k in range(said.shape[2] if said.shape[2] > 2 else 1):
        lead = said[:, :, k] - np.delete(said, k, 2).max(2)
        if lead.min() < 0 < lead.max():
            axes.contour(x, y, lead, levels=[0], colors="#303030", linewidths=0.9)


def _points(axes: "Axes", data: Split, classes: tuple[str, ...], told: NDArray[np.int64]) -> None:
    few = np.sort(np.random.default_rng(0).permutation(len(data))[:POINTS])
    inputs, labels, wrong = data.inputs[few], data.labels[few], (told != data.labels)[few]
    for k, name in enumerate(classes):
        x, y = inputs[labels == k].T
        axes.scatter(x, y, s=14, color=_rgb(k), edgecolors="white", linewidths=0.5, label=_draw.shortened(name))
    x, y = inputs[wrong].T
    axes.scatter(x, y, s=16, color="black", marker="x", linewidths=0.8)


def _rgb(k: int) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(_draw.COLOURS[k % len(_draw.COLOURS)])
