"""Filters: the weights that see the input, drawn as what they look for."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _draw
from nnx.models import ModelConfig
from nnx.models._first_layer import GATES, as_images, first_layer, input_weights

MOST = 64  # filters in a picture
COLUMNS = 8
READING = {
    "whole": "Each square is one neuron of the first layer: what is bright below red adds to its weighted sum, below blue it takes away, "
    "so it looks for red strokes and against blue ones; speckle is what is left of the random start.",
    "kernel": "Each square is a small filter that is slid over the image: it answers strongly where what is bright lies below red and not "
    "below blue, so a red bar beside a blue one finds an edge of that direction.",
    "patch": "Each square is what one number of a token looks for in its patch: what is bright below red raises it, below blue lowers it.",
    "row": "Each line is one unit of the state and each column a pixel of the row being read: a bright one under red opens its gate, or "
    "raises what it would remember, and under blue does the opposite.",
    "feature": "A long bar is a feature that the first layer listens to: the length of all the weights on it together, each feature being "
    "measured in its own standard deviations.",
    "matrix": "Each line is one unit of the first layer and each column a number that it sees: red adds to its weighted sum, blue takes "
    "away.",
}
IN_COLOUR = {
    "whole": "Each square is one neuron of the first layer: light of the colour that it has at a place adds to its weighted sum there, of "
    "the opposite colour it takes away; gray does neither, and speckle is what is left of the random start.",
    "kernel": "Each square is a small filter that is slid over the image: it answers strongly where the image has its colours, where it is "
    "bright light and where it is dark none, so a bright bar beside a dark one finds an edge of that direction.",
    "patch": "Each square is what one number of a token looks for in its patch: its colours there raise it, the opposite ones lower it, "
    "gray does neither.",
}


def applies(checkpoint: Checkpoint) -> str | None:
    model = checkpoint.config.model
    if checkpoint.spec.is_image or not cast(ModelConfig, model).reads_features_singly:
        return None
    return f"the {model.name} reads a table one feature at a time: one weight a unit, and nothing to see"


def explain(subject: Subject) -> Explanation:
    name, module = first_layer(subject.network, subject.inputs()[:1])
    weight = input_weights(module)
    kind, images = as_images(weight, module, subject.spec)
    figures: dict[str, Any] = {
        "layer": name,
        "kind": kind,
        "filters": len(weight),
        "largest": float(weight.abs().max()),
    }
    if kind == "feature":
        pictures = [_features(subject, weight, figures)]
    elif kind == "row":
        pictures = [_rows(cast(nn.RNNBase, module), weight, subject)]
    elif images is None:
        pictures = [_matrix(weight)]
    else:
        pictures = [_images(images, name, figures)]
        _, control = first_layer(subject.untrained, subject.inputs()[:1])
        drawn = as_images(input_weights(control), control, subject.spec)[1]
        assert drawn is not None
        figures |= {"neighbour_correlation": neighbours(images), "neighbour_correlation_untrained": neighbours(drawn)}
    if kind == "patch" and isinstance(getattr(subject.network, "positions", None), nn.Parameter):
        pictures.append(_positions(subject, images.shape[-1] if images is not None else 1))
    reading = IN_COLOUR if images is not None and images.shape[1] == 3 else READING
    return Explanation(reading[kind], tuple(pictures), figures)


def neighbours(images: NDArray[Any]) -> float:
    """How alike a weight is to the ones right of it and below it, as a correlation: near 0 where weights are drawn at
    random, and towards 1 where they form smooth strokes. (N, C, h, w)."""
    pairs = [(images[..., 1:], images[..., :-1]), (images[..., 1:, :], images[..., :-1, :])]
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    return float(np.corrcoef(one, other)[0, 1]) if one.size > 1 and one.std() and other.std() else 0.0


def _strongest(weight: NDArray[Any]) -> NDArray[np.int64]:
    """Of (filters, ...) the places of the at most 64 with the largest norm, in their own order."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    chosen: NDArray[np.int64] = np.sort(np.argsort(-norms, kind="stable")[:MOST])
    return chosen


def _images(images: NDArray[Any], name: str, figures: dict[str, Any]) -> Picture:
    shown = _strongest(images)
    figures["shown"] = len(shown)
    limit = float(np.quantile(np.abs(images[shown]), 0.998))
    tiles = [_tile(images[n], limit) for n in shown]
    columns = min(COLUMNS, len(tiles))
    options: dict[str, Any] = {"signed": True, "scale": "weight", "limit": limit} if tiles[0].ndim == 2 else {}
    figure = _draw.grid(tiles, [f"{n}" for n in shown], columns=columns, width=max(2.5, 0.75 * columns), **options)
    most = f"the {len(shown)} largest of {len(images)}" if len(shown) < len(images) else f"all {len(images)}"
    colour = "; gray is zero, each colour channel in its own colour" if tiles[0].ndim == 3 else ""
    return Picture(
        "filters",
        f"The filters of {name}, {most}, with their numbers; the size of a filter is that of what it sees{colour}.",
        _draw.to_png(figure),
    )


def _tile(image: NDArray[Any], limit: float) -> NDArray[Any]:
    """A filter (C, h, w), signed; of three channels as a colour image around gray."""
    tile = _draw.as_image(image)
    return tile if tile.ndim == 2 else 0.5 + tile / (2 * limit)


def _rows(module: nn.RNNBase, weight: Tensor, subject: Subject) -> Picture:
    """A panel a gate: units from top to bottom, sorted by where they look, columns of the image from left to right."""
    gates = GATES.get(module.mode, ("state",))
    panels = weight.reshape(len(gates), module.hidden_size, -1).numpy()
    sorter = np.abs(panels[gates.index("candidate")] if "candidate" in gates else panels[0])
    order = np.argsort((sorter * np.arange(sorter.shape[1])).sum(1) / sorter.sum(1).clip(1e-12), kind="stable")
    limit = float(np.quantile(np.abs(panels), 0.998))
    figure = _draw.new_figure(1.2 + 1.7 * len(gates), 5)
    each = figure.subplots(1, len(gates), sharey=True, squeeze=False)[0]
    for axes, gate, panel in zip(each, gates, panels, strict=True):
        shown = _draw.show(axes, panel[order], signed=True, limit=limit, aspect="auto")
        axes.set(title=gate, xlabel="column of the image" if subject.spec.shape[0] == 1 else "channels × columns")
        axes.spines[:].set_visible(False)
    each[0].set(
        ylabel="unit, sorted by where its candidate looks"
        if "candidate" in gates
        else "unit, sorted by where it looks",
        yticks=[],
    )
    _draw.colour_bar(figure, shown, list(each), "weight")
    return Picture(
        "filters", f"What each of {module.hidden_size} units sees of a row of the image, by gate.", _draw.to_png(figure)
    )


def _features(subject: Subject, weight: Tensor, figures: dict[str, Any]) -> Picture:
    strength = weight.norm(dim=0).numpy()
    order = np.argsort(-strength, kind="stable")[: _draw.MAX_BARS]
    figures["strength"] = strength.tolist()
    figures["shown"] = len(order)
    names = [subject.features[n] for n in order]
    figure = _draw.bar_chart(names, {"": strength[order]}, "norm of its weights")
    most = f"the {len(order)} strongest of {len(strength)}" if len(order) < len(strength) else f"all {len(strength)}"
    return Picture("filters", f"How strongly the first layer listens to each feature: {most}.", _draw.to_png(figure))


def _matrix(weight: Tensor) -> Picture:
    shown = _strongest(weight.numpy())
    figure = _draw.new_figure(6, 4)
    axes = figure.add_subplot()
    image = _draw.show(axes, weight.flatten(1).numpy()[shown], signed=True, aspect="auto")
    axes.set(xlabel="what it sees", ylabel="unit")
    _draw.colour_bar(figure, image, axes, "weight")
    return Picture(
        "filters", f"The weights of the first layer: {len(shown)} of {len(weight)} units.", _draw.to_png(figure)
    )


def _positions(subject: Subject, patch: int) -> Picture:
    """How alike each place's learned vector is to every other's: Dosovitskiy et al. 2021, figure 7."""
    _, H, W = subject.spec.shape
    rows, columns = H // patch, W // patch
    vectors = cast(Tensor, subject.network.positions).detach().cpu()[0, -rows * columns :]  # a class token stands first
    unit = nn.functional.normalize(vectors, dim=1)
    maps = (unit @ unit.T).reshape(-1, rows, columns).numpy()
    figure = _draw.grid(
        maps, columns=columns, signed=True, limit=1, scale="cosine similarity", width=min(6, 0.6 * columns + 1.5)
    )
    caption = (
        "The learned positions: the map at a place shows how alike its vector is to that of every other place. It was told nothing of rows "
        "and columns: where those are red, it found out by itself what lies beside what."
    )
    return Picture("filters-positions", caption, _draw.to_png(figure))
