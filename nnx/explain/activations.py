"""Activations: the output of each layer for a sample, and of an RNN also the prediction after each row."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnx import losses
from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _draw
from nnx.models import _layer_outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SAMPLES = 4  # with a picture of their own
LAYERS = 12  # in a picture
BLOCKS = 6
POSITIONS = 8  # of tokens with a label in a small map
STEPS = 64  # of an RNN after which the prediction is computed
MAPS = 32  # of a layer in a picture
UNITS = 512  # of a layer in a picture
ROW_LENGTH = 64  # units in a row of the picture
MIN_ROW_LENGTH = 32  # for few units, so that their squares are not too large
FEATURES = 10  # of a table's row beside the prediction
NAMED_FEATURES = 30  # that an RNN reads one by one
MAPS_ACROSS = 16
TOP = 2.2  # inches: the sample and the prediction
LINE = _draw.COLOURS[3]  # pink, distinct from the colours of probabilities
READING = {
    "maps": "Read from top to bottom. Each square is one feature map, with its number: the activation of one filter at "
    "each position of the image, bright where the filter responds. Early layers respond to edges and strokes; deeper "
    "maps are coarser and pick out parts. Layers after the feature maps have neurons, one cell each.",
    "units": "Read from top to bottom. Each cell is the activation of one neuron, brighter where it is larger. Compare "
    "the samples: different classes activate different neurons, the more so the deeper the layer.",
    "steps": "Read from top to bottom, as the network does. Each line shows the state after one row of the image, or "
    "one feature of a table, and the prediction if the sample ended there. Look for the line at which the prediction "
    "settles.",
    "tokens": "Read from left to right, block by block. Each cell is the token of one patch, or of one feature of a "
    "table; its brightness is the length of the token's vector. Look for the bright tokens: the network emphasises "
    "those.",
}


def applies(checkpoint: Checkpoint) -> str | None:
    return None


def explain(subject: Subject) -> Explanation:
    tensors = _layer_outputs.layer_outputs(subject.network, subject.inputs())
    outputs = {name: output.numpy() for name, output in tensors.items()}
    logits = outputs.pop(_layer_outputs.LOGITS)
    figures: dict[str, Any] = {
        "layers": {name: _statistics(output) for name, output in outputs.items()},
        "logits": dict(zip(subject.names, logits.tolist(), strict=True)),
    }
    shown = range(min(SAMPLES, len(subject.images)))
    kind = _kind(subject, outputs)
    if kind == "steps":
        beliefs = step_predictions(subject)
        named = list(zip(subject.names, beliefs, strict=True))
        figures["belief"] = {name: np.round(belief, 4).tolist() for name, belief in named}
        figures["decided_at"] = {name: decision_step(belief) for name, belief in named}
        pictures = [_draw_steps(subject, outputs, beliefs[n], n) for n in shown]
    elif kind == "tokens":
        pictures = [_draw_tokens(subject, outputs, len(shown))]
    else:
        pictures = [_draw_layers(subject, outputs, n) for n in shown]
    return Explanation(READING[kind], tuple(pictures), figures)


def step_predictions(subject: Subject) -> NDArray[np.float32]:
    """(N, T, K): the probabilities that a recurrent network predicts if the sample ends after each of the T rows of an
    image, or features of a table.

    With more than STEPS rows they are computed after STEPS of them, evenly spaced, and repeated in between.
    """
    x = subject.inputs()
    T = x.shape[2] if subject.spec.is_image else x.shape[1]
    steps = np.array(_draw.evenly_spaced(T, STEPS))
    with torch.no_grad():
        probabilities = [
            losses.probabilities(subject.network(x[:, :, : t + 1] if x.ndim == 4 else x[:, : t + 1]))
            for t in steps.tolist()
        ]
    latest = np.searchsorted(steps, np.arange(T), side="right") - 1
    by_step: NDArray[np.float32] = torch.stack(probabilities, dim=1).cpu().numpy()[:, latest]
    return by_step


def decision_step(belief: NDArray[np.float32]) -> int:
    """(T, K) probabilities by step -> the step, from 1, from which the final class stays the most probable."""
    other = np.flatnonzero(belief.argmax(1) != belief[-1].argmax())
    return int(other[-1]) + 2 if len(other) else 1


def _kind(subject: Subject, outputs: dict[str, NDArray[Any]]) -> str:
    if any(isinstance(module, nn.RNNBase) for module in subject.network.modules()):
        return "steps"
    if any(output.ndim == 3 for output in outputs.values()):
        return "tokens"
    return "maps" if any(output.ndim == 4 for output in outputs.values()) else "units"


def _statistics(output: NDArray[Any]) -> dict[str, Any]:
    """Of a layer's output: its shape for one sample, mean, standard deviation, and the share of exact zeros, as a ReLU
    gives."""
    return {
        "shape": list(output.shape[1:]),
        "mean": float(output.mean()),
        "std": float(output.std()),
        "zero": float((output == 0).mean()),
    }


# ---------------------------------------------------------------- pictures


def _draw_layers(subject: Subject, outputs: dict[str, NDArray[Any]], n: int) -> Picture:
    """One sample at the top, and the activations of each layer below it."""
    names = list(outputs)
    chosen = [names[index] for index in _draw.evenly_spaced(len(names), LAYERS)]
    sheets = {name: _sheet(outputs[name], n) for name in chosen}
    heights = [8 * sheet.image.shape[0] / sheet.image.shape[1] + 0.45 for sheet in sheets.values()]
    figure = _draw.new_figure(8, TOP + sum(heights))
    parts = figure.subfigures(1 + len(sheets), 1, height_ratios=[TOP, *heights], squeeze=False)[:, 0]
    _draw_sample_and_prediction(parts[0], subject, n)
    for part, (name, sheet) in zip(parts[1:], sheets.items(), strict=True):
        axes = part.add_subplot()
        sheet.draw(axes)
        axes.set_title(f"{subject.layer_titles[name]}: {sheet.content}", loc="left")
        _draw.side_bar(part, axes.images[0], axes)
    has_signs = [sheet.is_signed for sheet in sheets.values()]
    colours = [] if all(has_signs) else ["dark is zero, bright is large"]
    colours += ["blue is negative, red is positive"] if any(has_signs) else []
    which = f"{len(chosen)} of {len(names)} layers" if len(chosen) < len(names) else "each layer"
    caption = (
        f"{subject.names[n]}: the prediction, and the activations of {which}. Each layer has its own colour scale: "
    )
    numbers = (
        " A neuron's number is its row's plus its column's."
        if any(not sheet.labels and len(sheet.image) > 1 for sheet in sheets.values())
        else ""
    )
    return Picture(f"activations-{n + 1}", f"{caption}{'; '.join(colours)}.{numbers}", _draw.to_png(figure))


@dataclass(frozen=True)
class Sheet:
    """A layer's activations for a sample as one image. Feature maps have `labels`: x, y and number of each; neurons are
    in rows of ROW_LENGTH."""

    image: NDArray[Any]
    is_signed: bool
    content: str
    labels: list[tuple[float, float, int]] = field(default_factory=list)

    def draw(self, axes: "Axes") -> None:
        _draw.show(axes, self.image, signed=self.is_signed)
        axes.spines[:].set_visible(False)
        rows, columns = self.image.shape
        filled = int(np.isfinite(self.image[0]).sum())
        axes.set_xticks([] if self.labels else range(0, filled, 8))
        numbered = rows if rows > 1 and not self.labels else 0
        axes.set_yticks(range(numbered), [f"{row * columns}" for row in range(numbered)])
        axes.tick_params(length=0, labelsize=7)
        for x, y, number in self.labels:
            axes.text(x, y - 1, f"{number}", ha="center", va="bottom", fontsize=6)


def _sheet(output: NDArray[Any], n: int) -> Sheet:
    """The activations of a layer (N, ...) for sample `n`."""
    is_signed = bool(output.min() < -0.1 * output.max())
    if output.ndim == 4:
        # by their largest activation for any sample, so that all pictures show the same maps
        strongest = np.sort(np.argsort(-np.abs(output).max((0, 2, 3)), kind="stable")[:MAPS])
        _, C, H, W = output.shape
        content = f"the {len(strongest)} strongest of {C} feature maps" if len(strongest) < C else f"{C} feature maps"
        across = min(MAPS_ACROSS, len(strongest))
        image, corners = _draw.arrange(output[n][strongest], across, title_room=0.02 * across)
        labels = [(x, float(y), number) for (y, x), number in zip(corners, strongest.tolist(), strict=True)]
        return Sheet(image, is_signed, f"{content}, {H}×{W} each", labels)
    row = output[n].reshape(-1)
    content = f"the first {UNITS} of {len(row)} neurons" if len(row) > UNITS else f"{len(row)} neurons"
    row = row[:UNITS].astype(float)
    columns = min(ROW_LENGTH, max(MIN_ROW_LENGTH, len(row)))
    image = np.pad(row, (0, -len(row) % columns), constant_values=np.nan).reshape(-1, columns)
    return Sheet(image, is_signed, content)


def _draw_sample_and_prediction(part: "Figure | SubFigure", subject: Subject, n: int) -> None:
    """The sample on the left, the predicted probabilities on the right."""
    left, right = part.subplots(1, 2, width_ratios=[1, 2])
    if subject.spec.is_image:
        _draw.draw_sample(_draw.hide_axes(left), subject, n)
    else:
        _draw_row(left, subject, n)
    _draw.draw_prediction(right, subject.classes, subject.probabilities[n])


def _draw_row(axes: "Axes", subject: Subject, n: int) -> None:
    """A bar for each feature of a table's row; of more than FEATURES, those farthest from the mean."""
    values = subject.inputs()[n].cpu().numpy()
    shown = np.sort(np.argsort(-np.abs(values), kind="stable")[:FEATURES])
    axes.barh(range(len(shown)), values[shown])
    axes.set_yticks(range(len(shown)), [_draw.shorten(subject.features[k], 24) for k in shown])
    some = f", the {len(shown)} largest of {len(values)}" if len(shown) < len(values) else ""
    _draw.room_for_bars(axes, len(shown))
    axes.set_xlabel(f"standardised value{some}")
    axes.locator_params(axis="x", nbins=4)  # small values have long numbers
    axes.set_title(_draw.sample_title(subject, n))
    axes.axvline(0, color=_draw.INK, linewidth=0.6)


def _draw_steps(subject: Subject, outputs: dict[str, NDArray[Any]], belief: NDArray[np.float32], n: int) -> Picture:
    """The sample, the states, and the prediction after each row, all on one axis from top to bottom."""
    states = {name: output for name, output in outputs.items() if output.ndim == 3}
    T = len(belief)
    is_image = subject.spec.is_image
    figure = _draw.new_figure(8, 1.3 + 2.6 * max(0.8, _draw.aspect_ratio(subject)))
    left, *middle, right = figure.subplots(1, 2 + len(states), width_ratios=[1, *[1.3] * len(states), 0.6])
    if is_image:
        _draw.draw_sample(left, subject, n, aspect="auto")
        left.set(xlabel="column", ylabel="row")
        _draw.count_from_one(left.xaxis)
        _draw.count_from_one(left.yaxis)
    else:
        left.barh(range(T), subject.inputs()[n].cpu().numpy())
        title = _draw.sample_title(subject, n)
        left.set(ylim=(T - 0.5, -0.5), title=title, xlabel="standardised value", ylabel="feature")
        if T <= NAMED_FEATURES:
            left.set_yticks(range(T), [_draw.shorten(name) for name in subject.features], fontsize=7)
    for axes, (name, state) in zip(middle, states.items(), strict=True):
        limit = float(np.abs(state).max())
        drawn = _draw.show(axes, state[n][:, _sort_by_time(state)], signed=True, limit=limit, aspect="auto")
        _draw.colour_bar(figure, drawn, axes, "state")
        axes.set(title=subject.layer_titles[name].replace(", ", "\n", 1), xticks=[], yticks=[])
        axes.set_xlabel("unit, sorted by when it changes most")
    many = len(subject.classes) > 20
    classes = np.unique(belief.argsort(axis=1)[:, -3:]) if many else np.arange(len(subject.classes))
    drawn = _draw.show(right, belief[:, classes], limit=1, aspect="auto")
    _draw.colour_bar(figure, drawn, right, "probability", ticks=2)
    row = decision_step(belief)
    unit = "row" if is_image else "feature"
    predicted = subject.classes[int(belief[-1].argmax())]
    line = right.axhline(row - 1.5, color=LINE, linewidth=2)
    settles = f"from {unit} {row} on, the prediction is {_draw.shorten(predicted)}"
    figure.legend([line], [settles], loc="outside lower right")
    right.set(title="prediction\nso far", xlabel="class", yticks=[])
    names = [_draw.shorten(subject.classes[k]) for k in classes]
    right.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 3 else 90)
    caption = (
        f"{subject.names[n]}: from {unit} {row} of {T} on (pink line) the prediction is {predicted}. In the states, "
        "blue is negative and red positive; in the prediction, brighter is more probable."
    )
    return Picture(f"activations-{n + 1}", caption, _draw.to_png(figure))


def _sort_by_time(state: NDArray[Any]) -> NDArray[np.int64]:
    """(N, T, units) -> the units, sorted by the mean step at which they change, over all samples."""
    change = np.abs(np.diff(state, axis=1, prepend=0)).sum(0)  # (T, units)
    mean_step = (change * np.arange(len(change))[:, None]).sum(0) / change.sum(0).clip(1e-12)
    order: NDArray[np.int64] = np.argsort(mean_step, kind="stable")
    return order


def _draw_tokens(subject: Subject, outputs: dict[str, NDArray[Any]], samples: int) -> Picture:
    """A row per sample: the sample, the length of its tokens after each block, and the prediction."""
    blocks = [name for name, output in outputs.items() if output.ndim == 3]
    chosen = [blocks[index] for index in _draw.evenly_spaced(len(blocks), BLOCKS)]
    lengths = {name: np.linalg.norm(outputs[name], axis=2) for name in chosen}
    figure = _draw.new_figure(8, 0.9 + samples * max(1.5, 1.5 * _draw.aspect_ratio(subject)))
    table = figure.subplots(samples, 2 + len(lengths), squeeze=False)
    for n, row in enumerate(table):
        _draw.draw_sample(_draw.hide_axes(row[0]), subject, n)
        for axes, (name, norms) in zip(row[1:], lengths.items(), strict=False):
            axes.spines[:].set_visible(False)
            patches = _layer_outputs.patch_grid(subject.spec, norms.shape[1])
            rows, columns, others = patches or (1, norms.shape[1], 0)
            _draw.show(
                axes,
                norms[n, others:].reshape(rows, columns),
                limit=float(norms[:, others:].max()),
                aspect="equal" if patches else "auto",
            )
            axes.set_title(subject.short_title(name).replace(": ", "\n") if n == 0 else "")
            _label_positions(axes, subject, columns, rows, f"class token: {norms[n, 0]:.1f}" if others else "")
        row[1].set_ylabel("patch row" if subject.spec.is_image else "")
        _draw.draw_prediction(row[-1], subject.classes, subject.probabilities[n], limit=3)
    for axes in table.T[1 : 1 + len(lengths)]:
        _draw.colour_bar(figure, axes[0].images[0], axes.tolist(), "token length", ticks=2, aspect=15)
    longest = ", ".join(f"{subject.layer_titles[name]} {norms.max():.1f}" for name, norms in lengths.items())
    caption = (
        "The length of each token after each block. Each column has one colour scale, from zero (dark) to its longest "
        f"token (bright): {longest}."
    )
    return Picture("activations", caption, _draw.to_png(figure))


def _label_positions(axes: "Axes", subject: Subject, columns: int, rows: int, class_token: str) -> None:
    """The rows and columns of the patches, or the names of a table's features."""
    axes.tick_params(length=0, labelsize=6)
    axes.set_xticks(_draw.evenly_spaced(columns, POSITIONS))
    axes.set_yticks(_draw.evenly_spaced(rows, POSITIONS) if subject.spec.is_image else [])
    if not subject.spec.is_image and columns == subject.spec.size:
        shown = _draw.evenly_spaced(columns, POSITIONS)
        axes.set_xticklabels([_draw.shorten(subject.features[k]) for k in shown], rotation=90)
    kind = "patch column" if subject.spec.is_image else ""
    axes.set_xlabel("\n".join(filter(None, [kind, class_token])), fontsize=8)
