"""Embedding: maps of up to 2,000 samples in each layer, by t-SNE and PCA; classes separate with depth."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnx.checkpoint import Checkpoint
from nnx.errors import DataError
from nnx.explain import Explanation, Picture, Subject, _draw, _units
from nnx.models import _layer_outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 2000
MIN_SAMPLES = 20
COMPONENTS = 50  # principal components in which distances are measured
NEIGHBOURS = 10
PCA_MAPS = 9  # layers in the PCA picture
TSNE_MAPS = 4  # layers in the t-SNE picture: the input, the last before the logits, two between; 3 s of a core for each
TSNE_COMPONENTS = 30
MIN_TSNE_SAMPLES = 100  # of fewer, t-SNE makes islands by chance
TSNE_STEPS = 500  # twice as many take twice the time and lower the divergence, 0.8 to 1.3, by 0.1
TSNE_ANGLE = 0.8  # 0.5 takes a third longer and lowers it by 0.015 at most
NAMED_CLASSES = 20  # at most this many get their names on the map
MIN_NAMED_SAMPLES = 100  # names on the map would hide fewer; the legend has them
MARKERS = "o^sDv"  # for more classes than colours
READING = (
    "Each dot is one {split} sample in the colour of its class; samples with similar activations are close together. "
    "Look for islands: a class that forms its own island is separated by the layer, and from layer to layer the "
    "islands should move apart. The axes have no unit, and in t-SNE maps the size and distance of islands mean little."
)


def applies(checkpoint: Checkpoint) -> str | None:
    return None


def explain(subject: Subject) -> Explanation:
    test = subject.held_out
    chosen = np.sort(np.random.default_rng(subject.seed).permutation(len(test))[:SAMPLES])
    labels = test.labels[chosen]
    if len(chosen) < MIN_SAMPLES or len(np.unique(labels)) < 2:
        word = subject.held_out_word
        raise DataError(
            f"embedding: needs {MIN_SAMPLES} {word} samples of two classes, found {len(chosen)} samples and "
            f"{len(np.unique(labels))} classes; use a larger {word} set"
        )
    features, untrained_features = (
        _units.layer_features(network, subject, test.inputs[chosen]) for network in (subject.network, subject.untrained)
    )
    layers, untrained = (principal_components(outputs) for outputs in (features, untrained_features))
    separations: dict[str, Any] = {}
    for name, points in layers.items():
        control = separation(untrained[name], labels)
        separations[name] = separation(points, labels) | {f"{key}_untrained": value for key, value in control.items()}
    most_frequent = float(np.bincount(labels).max() / len(labels))
    figures = {"samples": len(chosen), "most_frequent": most_frequent, "layers": separations}
    names = list(layers)
    tsne_layers, missing = _choose_tsne_layers(features, subject.layer_titles)
    pca_maps = {names[n]: layers[names[n]][:, :2] for n in _draw.evenly_spaced(len(names), PCA_MAPS)}
    summary = _describe(subject, separations, len(chosen))
    pictures: list[Picture] = []
    if tsne_layers:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            coordinates = pool.map(lambda name: tsne(layers[name], subject.seed), tsne_layers)
            tsne_maps = dict(zip(tsne_layers, coordinates, strict=True))
        columns = 3 if len(tsne_maps) == 3 else 2
        caption = f"t-SNE maps, which keep near neighbours together. {summary} {missing}".rstrip()
        pictures.append(
            Picture("embedding-tsne", caption, _draw_maps(subject, tsne_maps, labels, separations, columns))
        )
        summary = f"{NEIGHBOURS}-NN accuracy as for t-SNE."
        missing = ""
    caption = f"PCA maps: the two directions in which the activations vary most. {summary} {missing}".rstrip()
    png = _draw_maps(subject, pca_maps, labels, separations, 2 if len(pca_maps) == 4 else 3)
    pictures.append(Picture("embedding-pca", caption, png))
    return Explanation(READING.format(split=subject.held_out_word), tuple(pictures), figures)


def _choose_tsne_layers(features: dict[str, NDArray[np.float32]], titles: dict[str, str]) -> tuple[list[str], str]:
    """The layers with a t-SNE map, of (N, D) features, and why others have none, "" if that needs no mention."""
    samples = len(features[_units.INPUT])
    if samples < MIN_TSNE_SAMPLES:
        return [], f"There is no t-SNE map: it needs {MIN_TSNE_SAMPLES} samples, found {samples}."
    hidden = [name for name in features if name != _layer_outputs.LOGITS]
    layers = [name for name in hidden if features[name].shape[1] > 2]
    flat = [titles[name] for name in hidden if name not in layers]
    reason = f"There is no t-SNE map of {'; '.join(flat)}, as two numbers are a map already." if flat else ""
    return [layers[n] for n in _draw.evenly_spaced(len(layers), TSNE_MAPS)] if layers else [], reason


def principal_components(features: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """(N, D) of each layer -> (N, at most 50): the projections on the directions of largest variance, largest first."""
    from sklearn.decomposition import PCA

    projections = {}
    for name, layer in features.items():
        pca = PCA(min(COMPONENTS, *layer.shape), svd_solver="randomized", random_state=0)
        points = pca.fit_transform(layer)
        projections[name] = np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))  # a map has two axes
    return projections


def separation(points: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """How well classes are separated among (N, D) points.

    `neighbours`: the accuracy of a vote of the ten nearest other points. `silhouette`, from -1 to 1: how much nearer a
    point is to its own class than to the nearest other one (Rousseeuw 1987).
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(points) - 1)).fit(points)
    nearest = search.kneighbors(return_distance=False)
    votes = np.zeros((len(points), labels.max() + 1), dtype=int)
    np.add.at(votes, (np.arange(len(points))[:, None], labels[nearest]), 1)
    return {
        "neighbours": float((votes.argmax(1) == labels).mean()),
        "silhouette": float(silhouette_score(points, labels)),
    }


def tsne(points: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """(N, D) principal components -> (N, 2): a map on which near points stay near (van der Maaten & Hinton 2008).

    It starts from the first two components, as Kobak & Berens 2019 advise: so large distances keep a little meaning,
    and the map does not depend on a random start.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spread = points[:, 0].std()
    if not spread:  # the layer has the same activations for all samples
        return np.zeros((len(points), 2), np.float32)
    method = TSNE(
        init=points[:, :2] / spread * 1e-4,
        perplexity=min(30, (len(points) - 1) / 3),
        angle=TSNE_ANGLE,
        max_iter=TSNE_STEPS,
        random_state=seed % 2**32,
    )
    # one thread for each map: its threads wait for each other 20 times a step, which takes minutes if another program
    # uses their cores
    with threadpool_limits(1, "openmp"):
        coordinates: NDArray[np.float32] = method.fit_transform(points[:, :TSNE_COMPONENTS])
    return coordinates


def _describe(subject: Subject, separations: dict[str, Any], samples: int) -> str:
    names = list(separations)
    last = names[-2] if len(names) > 2 else names[-1]  # before the logits
    before = separations[_units.INPUT]["neighbours"]
    after = separations[last]["neighbours"]
    control = separations[last]["neighbours_untrained"]
    return (
        f"The {NEIGHBOURS}-NN accuracy, of a vote of the {NEIGHBOURS} nearest neighbours, is {100 * before:.1f} % on "
        f"{samples:,} samples in the {_units.INPUT} and {100 * after:.1f} % in {subject.layer_titles[last]}; "
        f"{100 * control:.1f} % there in the untrained network."
    )


# ---------------------------------------------------------------- pictures


def _draw_maps(
    subject: Subject,
    maps: dict[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    separations: dict[str, Any],
    columns: int,
) -> bytes:
    """A PNG with a map for each layer, and the accuracy of the vote of its ten nearest neighbours as title."""
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure = _draw.new_figure(8, 8 / columns * rows + 0.5)
    table = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in table[len(maps) :]:
        axes.set_visible(False)
    for axes, (name, points) in zip(table, maps.items(), strict=False):
        _scatter(axes, points, labels, subject.classes, min_distance=0.05 * columns)
        accuracy = f"{NEIGHBOURS}-NN accuracy {100 * separations[name]['neighbours']:.1f} %"
        axes.set_title(f"{subject.short_title(name)}\n{accuracy}")
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
    axes: "Axes", points: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], min_distance: float
) -> None:
    """The points in the colours of their classes. Of few classes and many points, each class has its name in the middle
    of its points, at least `min_distance` from other names, as a share of half of the map."""
    _draw.frame(axes)
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    reach = 0.55 * max(float((high - low).max()), 1e-6)
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    present = np.unique(labels)
    for k in present:
        x, y = points[labels == k].T
        colour = _draw.COLOURS[k % len(_draw.COLOURS)]
        marker = MARKERS[k // len(_draw.COLOURS) % len(MARKERS)]
        axes.scatter(x, y, s=7, color=colour, marker=marker, alpha=0.7, linewidths=0, label=_draw.shorten(classes[k]))
    if len(present) > NAMED_CLASSES or len(points) < MIN_NAMED_SAMPLES:
        return
    names = [_draw.shorten(classes[k], 10) for k in present]
    wide = np.array([max(1, 0.45 * max(map(len, names))), 1])  # width over height of a name
    middles = np.array([np.median(points[labels == k], axis=0) for k in present])
    middles = (_push_apart(middles / wide, min_distance * reach) * wide).clip(middle - reach, middle + reach)
    for k, name, (x, y) in zip(present, names, middles, strict=True):
        shape = "circle,pad=0.25" if len(name) < 3 else "round,pad=0.2"
        box = {
            "boxstyle": shape,
            "facecolor": "white",
            "edgecolor": _draw.COLOURS[k % len(_draw.COLOURS)],
            "alpha": 0.85,
        }
        axes.text(x, y, name, ha="center", va="center", fontsize=8, color="black", bbox=box)


def _push_apart(positions: NDArray[Any], min_distance: float) -> NDArray[Any]:
    """(K, 2) positions of names, those nearer than `min_distance` pushed apart, so that each can be read."""
    # a little noise, so that two at the same position have a direction, too
    noise = np.random.default_rng(0).standard_normal(positions.shape)
    positions = positions + 1e-3 * min_distance * noise
    for _ in range(50):
        between = positions[:, None] - positions[None]
        distance = np.linalg.norm(between, axis=2) + np.eye(len(positions)) * 1e9
        push = np.maximum(min_distance - distance, 0) / distance
        positions = positions + 0.5 * (push[:, :, None] * between).sum(1)
    return positions
