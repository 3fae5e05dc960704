"""Filters: the weights on the input, drawn as the pattern that each one looks for."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _draw
from nnx.models import ModelConfig
from nnx.models._first_layer import GATES, as_images, first_layer, input_weights

MAX_FILTERS = 64  # in a picture
COLUMNS = 8
MAX_ROWS = 2000  # of the table, on which the influence of its columns is measured
MAX_UNITS = 16  # of a recurrent layer in a picture
MAX_NAME = 40  # characters of a column's name
READING = {
    "whole": "Each square shows the weights of one neuron of the first layer, one weight per pixel. A bright pixel "
    "at a red weight raises the neuron's weighted sum, at a blue one it lowers it: the neuron looks for strokes in the "
    "red places and for none in the blue ones. Speckle is left over from the random initial weights.",
    "kernel": "Each square is one filter, which slides over the image. Its response is high where bright pixels are "
    "at red weights and none at blue ones. A red bar beside a blue bar detects an edge in that direction.",
    "patch": "Each square shows the weights of one number of a token, one weight per pixel of its patch. A bright "
    "pixel at a red weight raises that number, at a blue one it lowers it.",
    "row": "Each line is one unit of the state, each column one pixel of the image row being read. A bright pixel "
    "at a red weight opens the unit's gate, or raises its candidate value; at a blue one it does the opposite. The "
    "weights before training are random: what differs from them was learned.",
    "feature": "A long bar is a column of the table with a strong influence on the first layer: how much the weighted "
    "sums of its units vary with this column alone, as a standard deviation over the rows. Numbers, which are "
    "standardised, and columns of categories are comparable in this unit. A bar about as long as the one with random "
    "weights shows nothing that was learned.",
    "matrix": "Each row is one unit of the first layer, each column one of its inputs. Red weights add to the weighted "
    "sum, blue weights subtract from it.",
}
READING_RGB = {
    "whole": "Each square shows the weights of one neuron of the first layer. Light of the shown colour raises the "
    "neuron's weighted sum at that place, light of the opposite colour lowers it; gray has no effect. Speckle is left "
    "over from the random initial weights.",
    "kernel": "Each square is one filter, which slides over the image. Its response is high where the image has the "
    "same colours: light where the filter is bright, none where it is dark. A bright bar beside a dark bar detects an "
    "edge in that direction.",
    "patch": "Each square shows the weights of one number of a token. The shown colours in its patch raise that "
    "number, the opposite colours lower it; gray has no effect.",
}


def applies(checkpoint: Checkpoint) -> str | None:
    model = checkpoint.config.model
    if checkpoint.spec.is_image or not cast(ModelConfig, model).reads_features_singly:
        return None
    return f"the {model.name} reads a table one feature at a time: its first layer has only one weight per unit"


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
        pictures = [_draw_columns(subject, weight, figures)]
    elif kind == "row":
        pictures = [_draw_gates(cast(nn.RNNBase, module), weight, subject, figures)]
    elif images is None:
        pictures = [_draw_matrix(weight)]
    else:
        pictures = [_draw_images(subject, images, name, figures)]
        _, control = first_layer(subject.untrained, subject.inputs()[:1])
        random_images = as_images(input_weights(control), control, subject.spec)[1]
        assert random_images is not None
        figures["neighbour_correlation"] = neighbour_correlation(images)
        figures["neighbour_correlation_untrained"] = neighbour_correlation(random_images)
    if kind == "patch" and isinstance(getattr(subject.network, "positions", None), nn.Parameter):
        pictures.append(_draw_positions(subject, images.shape[-1] if images is not None else 1))
    reading = READING_RGB if images is not None and images.shape[1] == 3 else READING
    return Explanation(reading[kind], tuple(pictures), figures)


def neighbour_correlation(images: NDArray[Any]) -> float:
    """The correlation of each weight of (N, C, h, w) with those to its right and below it: near 0 for random weights,
    towards 1 for smooth strokes."""
    pairs = [(images[..., 1:], images[..., :-1]), (images[..., 1:, :], images[..., :-1, :])]
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    return float(np.corrcoef(one, other)[0, 1]) if one.size > 1 and one.std() and other.std() else 0.0


def _strongest(weight: NDArray[Any]) -> NDArray[np.int64]:
    """The indices of the at most 64 of (filters, ...) with the largest norm, in their own order."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    chosen: NDArray[np.int64] = np.sort(np.argsort(-norms, kind="stable")[:MAX_FILTERS])
    return chosen


def _draw_images(subject: Subject, images: NDArray[Any], name: str, figures: dict[str, Any]) -> Picture:
    shown = _strongest(images)
    figures["shown"] = len(shown)
    limit = float(np.quantile(np.abs(images[shown]), 0.998))
    tiles = [_tile(images[n], limit) for n in shown]
    columns = min(COLUMNS, len(tiles))
    is_rgb = tiles[0].ndim == 3
    options: dict[str, Any] = {} if is_rgb else {"signed": True, "scale": "weight", "limit": limit}
    figure = _draw.grid(tiles, [f"{n}" for n in shown], columns=columns, width=max(2.5, 0.75 * columns), **options)
    which = f"the {len(shown)} largest of {len(images)}" if len(shown) < len(images) else f"all {len(images)}"
    height, width = images.shape[2:]
    colours = "gray is zero, each colour channel is shown in its own colour" if is_rgb else "white is zero"
    title = next((title for layer, title in subject.layer_titles.items() if f"{name}.".startswith(f"{layer}.")), name)
    caption = f"{title}: the filters ({which}) with their numbers. Each covers {height}×{width} pixels; {colours}."
    return Picture("filters", caption, _draw.to_png(figure))


def _tile(image: NDArray[Any], limit: float) -> NDArray[Any]:
    """A filter (C, h, w) as a signed image (h, w); with three channels as a colour image (h, w, 3) around gray."""
    tile = _draw.as_image(image)
    return tile if tile.ndim == 2 else 0.5 + tile / (2 * limit)


def _draw_gates(module: nn.RNNBase, weight: Tensor, subject: Subject, figures: dict[str, Any]) -> Picture:
    """A panel per gate, above it is trained, below it before training: units from top to bottom, sorted by position,
    columns of the image from left to right."""
    gates = GATES.get(module.mode, ("state",))
    _, initial_module = first_layer(subject.initial, subject.inputs()[:1])
    trained, initial = (
        values.reshape(len(gates), module.hidden_size, -1).numpy() for values in (weight, input_weights(initial_module))
    )
    units = most_changed(trained, initial)
    has_candidate = "candidate" in gates
    magnitudes = np.abs(trained[gates.index("candidate") if has_candidate else 0][units])
    mean_column = (magnitudes * np.arange(magnitudes.shape[1])).sum(1) / magnitudes.sum(1).clip(1e-12)
    units = units[np.argsort(mean_column, kind="stable")]
    figures["units"] = units.tolist()
    limit = float(np.quantile(np.abs(trained[:, units]), 0.998))
    figure = _draw.new_figure(1.2 + 1.7 * len(gates), 1.4 + 0.3 * len(units))
    table = figure.subplots(2, len(gates), sharex=True, sharey=True, squeeze=False)
    for row, panels, when in zip(table, (trained, initial), ("after training", "before training"), strict=True):
        for axes, gate, panel in zip(row, gates, panels, strict=True):
            drawn = _draw.show(axes, panel[units], signed=True, limit=limit, aspect="auto")
            axes.set_title(gate if when == "after training" else "")
            axes.spines[:].set_visible(False)
        row[0].set_yticks(range(len(units)), [f"{n}" for n in units], fontsize=7)
        row[0].set_ylabel(f"unit, {when}")
    for axes in table[-1]:
        axes.set_xlabel("column of the image" if subject.spec.shape[0] == 1 else "channels × columns")
        _draw.count_from_one(axes.xaxis)
    _draw.colour_bar(figure, drawn, table.ravel().tolist(), "weight")
    kind = f", one panel per gate of the {module.mode}" if len(gates) > 1 else ""
    which = f"the {len(units)} of {module.hidden_size} units that training changed most"
    if len(units) == module.hidden_size:
        which = f"all {len(units)} units"
    weights = "candidate weights" if has_candidate else "weights"
    order = f"sorted by the mean column of their {weights}"
    caption = f"The weights of {which} on a row of the image{kind}, {order}, and the same units before training."
    return Picture("filters", caption, _draw.to_png(figure))


def most_changed(trained: NDArray[Any], initial: NDArray[Any]) -> NDArray[np.int64]:
    """The at most 16 units of (gates, units, inputs) weights that are farthest from their initial weights, in their own
    order."""
    distances = np.linalg.norm(trained - initial, axis=(0, 2))
    units: NDArray[np.int64] = np.sort(np.argsort(-distances, kind="stable")[:MAX_UNITS])
    return units


def _draw_columns(subject: Subject, weight: Tensor, figures: dict[str, Any]) -> Picture:
    """A bar for each column of the table, beside that of the untrained network."""
    rows = _sample_rows(subject)
    sources = source_columns(subject)
    _, control = first_layer(subject.untrained, subject.inputs()[:1])
    trained, untrained = (column_influence(values, rows, sources) for values in (weight, input_weights(control)))
    order = np.argsort(-trained, kind="stable")[: _draw.MAX_BARS]
    figures |= {
        "columns": list(sources),
        "influence": trained.tolist(),
        "influence_untrained": untrained.tolist(),
        "rows": len(rows),
        "shown": len(order),
    }
    names = [_draw.shorten(list(sources)[n], MAX_NAME) for n in order]
    series = {"trained": trained[order], "untrained": untrained[order]}
    figure = _draw.bar_chart(names, series, "standard deviation of the weighted sums, over all units")
    which = f"the {len(order)} largest of {len(sources)}" if len(order) < len(sources) else f"all {len(sources)}"
    wide = sum(len(features) > 1 for features in sources.values())
    together = f" The features of a column count together, as they do in {wide} columns here." if wide else ""
    caption = f"The influence of each column on the first layer, measured on {len(rows):,} rows: {which}.{together}"
    return Picture("filters", caption, _draw.to_png(figure))


def source_columns(subject: Subject) -> dict[str, list[int]]:
    """The columns of a table, each with the indices of its features: several of a column of categories (one-hot), or of
    one with missing values."""
    if subject.spec.columns is None:
        return {name: [n] for n, name in enumerate(subject.features)}
    features = iter(range(subject.spec.size))
    return {
        column.name: [next(features) for _ in column.feature_names]
        for column in subject.spec.columns.columns
        if column.feature_names
    }


def column_influence(weight: Tensor, rows: Tensor, sources: dict[str, list[int]]) -> NDArray[np.float64]:
    """(columns,): the standard deviation, over (N, F) normalised rows, of what each column adds to the weighted sums of
    units with (units, F) weights; of all units, the root of the sum of squares.

    For a single feature this is the norm of its weights times the feature's standard deviation. A shift that is the
    same for all categories of a column has no influence, as a bias can do the same.
    """
    influence = [
        (rows[:, features].double() @ weight[:, features].double().T).var(0, correction=0).sum().sqrt()
        for features in sources.values()
    ]
    return torch.stack(influence).numpy()


def _sample_rows(subject: Subject) -> Tensor:
    """At most 2,000 of the training rows, normalised, on the CPU."""
    split = subject.data("train")
    chosen = np.sort(np.random.default_rng(subject.seed).permutation(len(split))[:MAX_ROWS])
    return subject.inputs(np.asarray(split.inputs[chosen])).cpu()


def _draw_matrix(weight: Tensor) -> Picture:
    shown = _strongest(weight.numpy())
    figure = _draw.new_figure(6, 4)
    axes = figure.add_subplot()
    drawn = _draw.show(axes, weight.flatten(1).numpy()[shown], signed=True, aspect="auto")
    axes.set(xlabel="input", ylabel="unit")
    _draw.colour_bar(figure, drawn, axes, "weight")
    caption = f"The weights of the first layer: {len(shown)} of {len(weight)} units."
    return Picture("filters", caption, _draw.to_png(figure))


def _draw_positions(subject: Subject, patch: int) -> Picture:
    """The similarity of each learned position embedding to all others: Dosovitskiy et al. 2021, figure 7."""
    _, H, W = subject.spec.shape
    rows = H // patch
    columns = W // patch
    # a class token comes before the patches
    vectors = cast(Tensor, subject.network.positions).detach().cpu()[0, -rows * columns :]
    unit = nn.functional.normalize(vectors, dim=1)
    maps = (unit @ unit.T).reshape(-1, rows, columns).numpy()
    titles = [f"{row}, {column}" for row in range(rows) for column in range(columns)]
    figure = _draw.grid(
        maps,
        titles,
        columns=columns,
        signed=True,
        limit=1,
        scale="cosine similarity",
        width=min(6, 0.6 * columns + 1.5),
    )
    caption = (
        "The learned position embeddings, each titled by the row and column of its patch. The map at a position shows "
        "the cosine similarity of its vector to that of every position. The network is not told about rows and "
        "columns: where neighbours are red, it has learned which patches lie side by side."
    )
    return Picture("filters-positions", caption, _draw.to_png(figure))
