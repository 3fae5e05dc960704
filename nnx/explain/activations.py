"""Activations: what each layer makes of a sample, and how an RNN's belief changes from row to row."""

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
    from matplotlib.figure import Figure, SubFigure

SAMPLES = 4  # that get a picture
LAYERS = 12  # in it
BLOCKS = 6
ROWS = 64  # after which an RNN is asked
CHANNELS = 32  # maps of a layer in a picture
UNITS = 512
WIDE = 64  # units in a line
READING = {
    "maps": "Read from top to bottom: each square of a layer is one filter's answer to the image, bright where it found what it looks for; "
    "the maps grow coarser and pick out parts, until only units are left that speak for classes.",
    "units": "Read from top to bottom: each cell of a layer is one neuron, bright where it answers; different classes light up different "
    "neurons, the more so the deeper the layer.",
    "steps": "Read from top to bottom, as the network does: beside each row, or feature of a table, stand its state after that one and "
    "what it would say if the sample ended there.",
    "tokens": "Read from left to right: brightness says how long the vector is that each patch, or feature of a table, has become behind "
    "each block, so bright ones are those that the network makes most of.",
}


def applies(kept: Checkpoint) -> str | None:
    return None


def explain(subject: Subject) -> Explanation:
    outputs = {
        name: output.numpy() for name, output in _layer_outputs.layer_outputs(subject.network, subject.inputs()).items()
    }
    logits = outputs.pop(_layer_outputs.LOGITS)
    figures: dict[str, Any] = {
        "layers": {name: _facts(output) for name, output in outputs.items()},
        "logits": dict(zip(subject.names, logits.tolist(), strict=True)),
    }
    shown = range(min(SAMPLES, len(subject.images)))
    kind = _kind(subject, outputs)
    if kind == "steps":
        beliefs = belief(subject)
        figures["belief"] = {
            name: np.round(each, 4).tolist() for name, each in zip(subject.names, beliefs, strict=True)
        }
        figures["decided_at"] = {name: decided(each) for name, each in zip(subject.names, beliefs, strict=True)}
        pictures = [_steps(subject, outputs, beliefs[n], n) for n in shown]
    elif kind == "tokens":
        pictures = [_tokens(subject, outputs, len(shown))]
    else:
        pictures = [_layers(subject, outputs, n) for n in shown]
    return Explanation(READING[kind], tuple(pictures), figures)


def belief(subject: Subject) -> NDArray[np.float32]:
    """(N, T, K): what a recurrent network says after each of the T rows of an image, or features of a table: it reads
    no further.

    Of more than 64 it is asked after 64 of them, evenly spread, and in between stays with what it said.
    """
    x = subject.inputs()
    T = x.shape[2] if subject.spec.is_image else x.shape[1]
    asked = np.array(_draw.spread(T, ROWS))
    with torch.no_grad():
        said = [
            losses.probabilities(subject.network(x[:, :, : t + 1] if x.ndim == 4 else x[:, : t + 1]))
            for t in asked.tolist()
        ]
    latest = np.searchsorted(asked, np.arange(T), side="right") - 1
    after: NDArray[np.float32] = torch.stack(said, dim=1).cpu().numpy()[:, latest]
    return after


def decided(belief: NDArray[np.float32]) -> int:
    """(T, K) -> after how many rows the final answer is the most probable, and stays so."""
    other = np.flatnonzero(belief.argmax(1) != belief[-1].argmax())
    return int(other[-1]) + 2 if len(other) else 1


def _kind(subject: Subject, outputs: dict[str, NDArray[Any]]) -> str:
    if any(isinstance(module, nn.RNNBase) for module in subject.network.modules()):
        return "steps"
    if any(output.ndim == 3 for output in outputs.values()):
        return "tokens"
    return "maps" if any(output.ndim == 4 for output in outputs.values()) else "units"


def _facts(output: NDArray[Any]) -> dict[str, Any]:
    """A layer's output for the samples: its shape for one, mean, deviation, and the share that is exactly zero, as a
    ReLU makes it."""
    return {
        "shape": list(output.shape[1:]),
        "mean": float(output.mean()),
        "std": float(output.std()),
        "zero": float((output == 0).mean()),
    }


# ---------------------------------------------------------------- pictures


def _layers(subject: Subject, outputs: dict[str, NDArray[Any]], n: int) -> Picture:
    """One sample, and each layer's answer to it below the one before."""
    names = list(outputs)
    some = [names[place] for place in _draw.spread(len(names), LAYERS)]
    sheets = [(name, *_sheet(outputs[name], n)) for name in some]
    heights = [8 * sheet.shape[0] / sheet.shape[1] + 0.25 for _, sheet, *_ in sheets]
    figure = _draw.new(8, 1.9 + sum(heights))
    parts = figure.subfigures(1 + len(sheets), 1, height_ratios=[1.9, *heights], squeeze=False)[:, 0]
    _asked(parts[0], subject, n)
    for part, (name, sheet, signed, shown) in zip(parts[1:], sheets, strict=True):
        axes = _draw.bare(part.add_subplot())
        _draw.show(axes, sheet, signed=signed)
        axes.set_title(f"{name}: {shown}", loc="left")
    dark = "blue below zero, red above" if any(signed for *_, signed, _ in sheets) else "dark is zero"
    few = f" (of {len(some)} of {len(names)} layers)" if len(some) < len(names) else ""
    caption = f"{subject.names[n]}, and what each layer answers to it{few}, each on its own scale: {dark}."
    return Picture(f"activations-{n + 1}", caption, _draw.png(figure))


def _sheet(output: NDArray[Any], n: int) -> tuple[NDArray[Any], bool, str]:
    """A layer's answer to sample `n` as one image, whether it has signs to show, and in words what of it is there."""
    signed = bool(output.min() < -0.1 * output.max())
    if output.ndim == 4:
        loudest = np.sort(
            np.argsort(-np.abs(output).max((0, 2, 3)), kind="stable")[:CHANNELS]
        )  # the same in every sample's picture
        _, C, H, W = output.shape
        most = f"{len(loudest)} loudest of {C} maps" if len(loudest) < C else f"{C} maps"
        return _draw.tiled(output[n][loudest], min(16, len(loudest))), signed, f"{most} of {H}×{W}"
    row = output[n].reshape(-1)
    most = f"the first {UNITS} of {len(row)} units" if len(row) > UNITS else f"{len(row)} units"
    row = row[:UNITS].astype(float)
    return np.pad(row, (0, -len(row) % WIDE), constant_values=np.nan).reshape(-1, WIDE), signed, most


def _asked(part: "Figure | SubFigure", subject: Subject, n: int) -> None:
    """The sample on the left, what the network says of it on the right."""
    left, right = part.subplots(1, 2, width_ratios=[1, 2])
    _draw.asked(_draw.bare(left) if subject.spec.is_image else left, subject, n)
    _draw.said(right, subject.classes, subject.probabilities[n])


def _steps(subject: Subject, outputs: dict[str, NDArray[Any]], belief: NDArray[np.float32], n: int) -> Picture:
    """The image, the states beside it, and the belief after each row, all on one axis from top to bottom."""
    states = {name: output for name, output in outputs.items() if output.ndim == 3}
    T = len(belief)
    classes = (
        np.unique(belief.argsort(axis=1)[:, -3:]) if len(subject.classes) > 20 else np.arange(len(subject.classes))
    )
    figure = _draw.new(8, 0.6 + 2.6 * max(0.8, _draw.shape(subject)))
    left, *middle, right = figure.subplots(1, 2 + len(states), width_ratios=[1, *[1.3] * len(states), 0.6])
    if subject.spec.is_image:
        _draw.asked(left, subject, n, aspect="auto")
        left.set(xlabel="column", ylabel="row")
    else:
        left.barh(range(T), subject.inputs()[n].cpu().numpy())
        left.set(
            ylim=(T - 0.5, -0.5), title=_draw.title(subject, n), xlabel="deviations from the mean", ylabel="feature"
        )
    for axes, (name, state) in zip(middle, states.items(), strict=True):
        _draw.show(axes, state[n][:, _by_time(state)], signed=True, limit=float(np.abs(state).max()), aspect="auto")
        axes.set(
            title=f"state of {state.shape[2]} units ({name})",
            xlabel="unit, sorted by when it changes most",
            xticks=[],
            yticks=[],
        )
    _draw.show(right, belief[:, classes], limit=1, aspect="auto")
    row = decided(belief)
    right.axhline(row - 1.5, color="white", linewidth=1)
    right.set(title="says, so far", xlabel="class", yticks=[])
    names = [_draw.shortened(subject.classes[k]) for k in classes]
    right.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 3 else 90)
    unit = "row" if subject.spec.is_image else "feature"
    caption = f"{subject.names[n]}: from {unit} {row} of {T} on (the white line) it says {subject.classes[int(belief[-1].argmax())]}."
    return Picture(f"activations-{n + 1}", caption, _draw.png(figure))


def _by_time(state: NDArray[Any]) -> NDArray[np.int64]:
    """(N, T, units) -> the units in the order of the time at which they change, on average over samples and steps."""
    change = np.abs(np.diff(state, axis=1, prepend=0)).sum(0)  # (T, units)
    when: NDArray[np.int64] = np.argsort(
        (change * np.arange(len(change))[:, None]).sum(0) / change.sum(0).clip(1e-12), kind="stable"
    )
    return when


def _tokens(subject: Subject, outputs: dict[str, NDArray[Any]], samples: int) -> Picture:
    """A line a sample: the image, how long its tokens are behind each block, and what the network says."""
    blocks = [name for name, output in outputs.items() if output.ndim == 3]
    tokens = {
        blocks[place]: np.linalg.norm(outputs[blocks[place]], axis=2) for place in _draw.spread(len(blocks), BLOCKS)
    }
    figure = _draw.new(8, 0.3 + samples * max(1.35, 1.35 * _draw.shape(subject)))
    table = figure.subplots(samples, 2 + len(tokens), squeeze=False)
    for n, line in enumerate(table):
        _draw.asked(_draw.bare(line[0]), subject, n)
        for axes, (name, norms) in zip(line[1:], tokens.items(), strict=False):
            places = _layer_outputs.patch_grid(subject.spec, norms.shape[1])
            rows, columns, others = places or (1, norms.shape[1], 0)
            _draw.show(
                _draw.bare(axes),
                norms[n, others:].reshape(rows, columns),
                limit=float(norms[:, others:].max()),
                aspect="equal" if places else "auto",
            )
            axes.set_title(name if n == 0 else "")
            if others:
                axes.set_xlabel(f"class token\n{norms[n, 0]:.1f}", fontsize=8)
        _draw.said(line[-1], subject.classes, subject.probabilities[n], most=3)
    longest = ", ".join(f"{name} {norms.max():.1f}" for name, norms in tokens.items())
    return Picture(
        "activations",
        f"How long the tokens are; the brightest in each column is the longest there ({longest}).",
        _draw.png(figure),
    )
