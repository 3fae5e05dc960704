"""Embedding: how alike each layer finds test samples, 2,000 at most, as maps in which classes come apart with depth."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnx.checkpoint import Checkpoint
from nnx.errors import DataError
from nnx.explain import Explanation, Picture, Subject, _draw, _units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 2000
LEAST = 20
COMPONENTS = 50  # principal ones, in which distances are measured
NEIGHBOURS = 10
PCA_MAPS = 9  # layers in the picture of principal components
TSNE_MAPS = 4  # layers in the other: the input, the last before the logits, and two between them; each takes a core 3 s
TSNE_COMPONENTS = 30
TSNE_STEPS = 500  # twice as many take twice the time and lower the divergence, 0.8 to 1.3, by 0.1
TSNE_ANGLE = 0.8  # 0.5 takes a third longer and lowers it by 0.015 at most
NAMED = 20  # classes at most that stand on the map
MARKERS = "o^sDv"  # where there are more classes than colours
READING = (
    "Each dot is one test sample, in the colour of its class, near those that the layer finds alike: where a class is an island of its "
    "own, the layer tells it apart, and from layer to layer the islands should part; how large they are and how far apart means little."
)


def applies(checkpoint: Checkpoint) -> str | None:
    return None


def explain(subject: Subject) -> Explanation:
    test = subject.data("test")
    chosen = np.sort(np.random.default_rng(subject.seed).permutation(len(test))[:SAMPLES])
    labels = test.labels[chosen]
    if len(chosen) < LEAST or len(np.unique(labels)) < 2:
        raise DataError(
            f"embedding: needs {LEAST} test samples of two classes, there are {len(chosen)}; use a larger test set"
        )
    both = (subject.network, subject.untrained)
    layers, untrained = (components(_units.features(network, subject, test.inputs[chosen])) for network in both)
    found: dict[str, Any] = {}
    for name, points in layers.items():
        control = separation(untrained[name], labels)
        found[name] = separation(points, labels) | {f"{key}_untrained": value for key, value in control.items()}
    figures = {"samples": len(chosen), "most_frequent": float(np.bincount(labels).max() / len(labels)), "layers": found}
    names = list(layers)
    few = [names[n] for n in _draw.evenly_spaced(len(names) - 1, TSNE_MAPS)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        maps = dict(zip(few, pool.map(lambda name: tsne(layers[name], subject.seed), few), strict=True))
    flat = {names[n]: layers[names[n]][:, :2] for n in _draw.evenly_spaced(len(names), PCA_MAPS)}
    said = _said(found, len(chosen))
    pictures = (
        Picture(
            "embedding-tsne",
            f"By t-SNE, which keeps neighbours together. {said}",
            _picture(maps, labels, subject.classes, found, 3 if len(maps) == 3 else 2),
        ),
        Picture(
            "embedding-pca",
            "The two directions in which samples differ most.",
            _picture(flat, labels, subject.classes, found, 3),
        ),
    )
    return Explanation(READING, pictures, figures)


def components(features: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Of each layer, (N, D), the at most 50 directions in which samples differ most, the first the most."""
    from sklearn.decomposition import PCA

    found = {}
    for name, layer in features.items():
        pca = PCA(min(COMPONENTS, *layer.shape), svd_solver="randomized", random_state=0)
        points = pca.fit_transform(layer)
        found[name] = np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))  # a map has two axes
    return found


def separation(points: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """How far apart classes are among (N, D) points. `neighbours`: the share of points whose class is the most frequent
    among the ten nearest others. `silhouette`, from -1 to 1: how much nearer a point is to its own class than to the
    next one (Rousseeuw 1987).
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    nearest = (
        NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(points) - 1)).fit(points).kneighbors(return_distance=False)
    )
    votes = np.zeros((len(points), labels.max() + 1), dtype=int)
    np.add.at(votes, (np.arange(len(points))[:, None], labels[nearest]), 1)
    return {
        "neighbours": float((votes.argmax(1) == labels).mean()),
        "silhouette": float(silhouette_score(points, labels)),
    }


def tsne(points: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """(N, D) principal components -> (N, 2): a map on which near points stay near (van der Maaten & Hinton 2008), begun
    at the first two components, as Kobak & Berens 2019 advise: then large distances mean a little more than nothing,
    and chance plays no part."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spread = points[:, 0].std()
    if not spread:  # a layer that says the same of everything
        return np.zeros((len(points), 2), np.float32)
    method = TSNE(
        init=points[:, :2] / spread * 1e-4,
        perplexity=min(30, (len(points) - 1) / 3),
        angle=TSNE_ANGLE,
        max_iter=TSNE_STEPS,
        random_state=seed % 2**32,
    )
    # one thread a map: its own threads wait for each other 20 times a step, which takes minutes where something else
    # runs on their cores
    with threadpool_limits(1, "openmp"):
        found: NDArray[np.float32] = method.fit_transform(points[:, :TSNE_COMPONENTS])
    return found


def _said(found: dict[str, Any], samples: int) -> str:
    deep = list(found)[-2] if len(found) > 2 else list(found)[-1]
    first, last = found[_units.INPUT], found[deep]
    own, other, control = (
        100 * value for value in (first["neighbours"], last["neighbours"], last["neighbours_untrained"])
    )
    return (
        f"Of {samples:,} samples, {own:.1f} % are of the class of most of their ten nearest in the {_units.INPUT}, and {other:.1f} % in "
        f"{deep} ({control:.1f} % with random weights)."
    )


# ---------------------------------------------------------------- pictures


def _picture(
    maps: dict[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    found: dict[str, Any],
    columns: int,
) -> bytes:
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure = _draw.new_figure(8, 8 / columns * rows + 0.5)
    table = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in table[len(maps) :]:
        axes.set_visible(False)
    for axes, (name, points) in zip(table, maps.items(), strict=False):
        _scatter(axes, points, labels, classes, apart=0.05 * columns)
        axes.set_title(f"{name}: {100 * found[name]['neighbours']:.1f} % among their own")
    handles, names = table[0].get_legend_handles_labels()
    if len(names) <= 40:
        across = max(2, 64 // (4 + max(map(len, names))))
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=min(10, across),
            markerscale=2.5,
            handletextpad=0.1,
            columnspacing=1.2,
        )
    return _draw.to_png(figure)


def _scatter(
    axes: "Axes", points: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], apart: float
) -> None:
    """The points in the colours of their classes; where there are few, each with its name in the middle of its points,
    and names at least `apart` from each other, as a share of half of the map."""
    _draw.hide_axes(axes)
    low, high = points.min(0), points.max(0)
    middle, reach = (low + high) / 2, 0.55 * max(float((high - low).max()), 1e-6)
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    present = np.unique(labels)
    for k in present:
        x, y = points[labels == k].T
        colour, marker = _draw.COLOURS[k % len(_draw.COLOURS)], MARKERS[k // len(_draw.COLOURS) % len(MARKERS)]
        axes.scatter(x, y, s=7, color=colour, marker=marker, alpha=0.7, linewidths=0, label=_draw.shorten(classes[k]))
    if len(present) > NAMED:
        return
    names = [_draw.shorten(classes[k], 10) for k in present]
    wide = np.array([max(1, 0.45 * max(map(len, names))), 1])  # how much wider a name is than high
    middles = np.array([np.median(points[labels == k], axis=0) for k in present])
    middles = (_apart(middles / wide, apart * reach) * wide).clip(middle - reach, middle + reach)
    for k, name, (x, y) in zip(present, names, middles, strict=True):
        shape = "circle,pad=0.25" if len(name) < 3 else "round,pad=0.2"
        box = {
            "boxstyle": shape,
            "facecolor": "white",
            "edgecolor": _draw.COLOURS[k % len(_draw.COLOURS)],
            "alpha": 0.85,
        }
        axes.text(x, y, name, ha="center", va="center", fontsize=8, color="black", bbox=box)


def _apart(places: NDArray[Any], least: float) -> NDArray[Any]:
    """(K, 2) places of names, those nearer than `least` pushed apart, so that each can be read."""
    places = places + 1e-3 * least * np.random.default_rng(0).standard_normal(
        places.shape
    )  # two at one place have a direction, too
    for _ in range(50):
        between = places[:, None] - places[None]
        distance = np.linalg.norm(between, axis=2) + np.eye(len(places)) * 1e9
        push = np.maximum(least - distance, 0) / distance
        places = places + 0.5 * (push[:, :, None] * between).sum(1)
    return places
