"""One neuron in full: how it is selected, its weighted sum, what follows, and the attention of its token."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.config.registry import suggest
from nnx.errors import InputError
from nnx.models import AttentionBlock
from nnx.trace.input_names import name_inputs, token_names
from nnx.trace.layers import Span, WeightedLayer
from nnx.trace.recorded_pass import RecordedPass
from nnx.trace.result import Attention, Neuron, Stage, Term

Tensors = dict[str, Tensor]
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


@dataclass(frozen=True, eq=False)
class Selection:
    """The unit and position to show, and why it was selected."""

    layer: WeightedLayer
    unit: int
    place: tuple[int, ...]
    reason: str

    @property
    def p(self) -> int:
        """The flat index of the position."""
        p = 0
        for index, size in zip(self.place, self.layer.places, strict=True):
            p = p * size + index
        return p

    @property
    def spans(self) -> list[Span]:
        """Its weights, then its biases."""
        return [*self.layer.weights(self.unit), *self.layer.biases(self.unit)]


def select_neuron(recorded: RecordedPass, requested: str | None) -> Selection | None:
    """The neuron LAYER:UNIT or LAYER:UNIT@POSITION; by default, the one of the first layer with the largest gradient.

    LAYER is a number from 1 or a name, as in the table of layers. UNIT and POSITION ("3", "3,4") count from 0, as in
    PyTorch. Without a position, the one that contributes most to the unit's weight gradient. None where no layer
    computes a known kind of weighted sum. Raises InputError.
    """
    if not recorded.layers:
        if requested:
            raise InputError(
                f"--neuron {requested}: the network has no layer whose neurons can be shown "
                f"(Linear, Conv2d, RNN, LSTM or GRU). Leave out --neuron"
            )
        return None
    if requested is None:
        layer = next(iter(recorded.layers.values()))
        unit, p = divmod(int(layer.gradient_norms.argmax()), layer.gradient_norms.shape[1])
        reason = (
            "because it contributes most to the weight gradients of the first layer"
            if layer.places
            else "because it has the largest weight gradient of the first layer"
        )
        return Selection(layer, unit, _unravel(layer, p), reason)
    parsed = re.fullmatch(r"([^:@\s]+):(\d{1,9})(?:@(\d{1,9}(?:,\d{1,9})*))?", requested)
    if not parsed:
        examples = f"1:5, {next(iter(recorded.layers))}:5 or 1:5@3,4"
        raise InputError(f"--neuron {requested}: expected LAYER:UNIT or LAYER:UNIT@POSITION, e.g. {examples}")
    layer = _find_layer(recorded, parsed[1], requested)
    unit = int(parsed[2])
    if unit >= layer.units:
        raise InputError(
            f"--neuron {requested}: {layer.name} has {layer.units} units. Use a unit from 0 to {layer.units - 1}"
        )
    if parsed[3] is None:
        p = int(layer.gradient_norms[unit].argmax())
        position = ", at the position that contributes most to its weight gradient" if layer.places else ""
        return Selection(layer, unit, _unravel(layer, p), f"as requested{position}")
    place = tuple(map(int, parsed[3].split(",")))
    if len(place) != len(layer.places) or any(i >= size for i, size in zip(place, layer.places, strict=True)):
        first = ",".join("0" for _ in layer.places)
        last = ",".join(str(size - 1) for size in layer.places)
        positions = f"positions {first} to {last}" if layer.places else "only one position. Leave out @"
        raise InputError(f"--neuron {requested}: {layer.name} has {positions}")
    return Selection(layer, unit, place, "as requested")


def _find_layer(recorded: RecordedPass, word: str, requested: str) -> WeightedLayer:
    """The layer with this name or number. Raises InputError."""
    names = list(recorded.layers)
    if word in recorded.layers:
        return recorded.layers[word]
    if not word.isdigit():
        raise InputError(f"--neuron {requested}: unknown layer {word!r}{suggest(word, names)}")
    if not 1 <= int(word) <= len(names):
        raise InputError(f"--neuron {requested}: no layer {word}. The layers have the numbers 1 to {len(names)}")
    return recorded.layers[names[int(word) - 1]]


def _unravel(layer: WeightedLayer, p: int) -> tuple[int, ...]:
    """The position with flat index `p`."""
    place: list[int] = []
    for size in reversed(layer.places):
        p, index = divmod(p, size)
        place.insert(0, index)
    return tuple(place)


def describe_neuron(recorded: RecordedPass, selection: Selection, weights: Tensors, gradients: Tensors) -> Neuron:
    """The neuron's inputs, weights, weighted sum and gradients, before the update."""
    layer = selection.layer
    unit = selection.unit
    p = selection.p
    names = name_inputs(recorded, layer, selection.place)
    bias_names = ("bias",) if len(layer.biases(unit)) == 1 else ("input bias", "recurrent bias")
    recurrent = recorded.recurrent.get(layer.name)
    return Neuron(
        layer=list(recorded.layers).index(layer.name) + 1,
        name=layer.name,
        kind=layer.kind,
        unit=unit,
        place=selection.place,
        where=names.position,
        chosen=selection.reason,
        terms=_terms(layer.inputs(unit)[p], layer.weights(unit), weights, gradients, names.name),
        biases=_terms(layer.bias_inputs(unit)[p], layer.biases(unit), weights, gradients, bias_names.__getitem__),
        sum=float(layer.sums[unit, p]),
        then=[] if recurrent else list(_following_stages(recorded, layer, unit, selection.place)),
        slope=float(layer.gradients[unit, p]),
        uses=layer.sums.shape[1],
        window=names.window,
        kernel=names.kernel,
        gates=recurrent.gates(unit, selection.place[0]) if recurrent else (),
        state=recurrent.state(unit, selection.place[0]) if recurrent else None,
        cell=recurrent.cell(unit, selection.place[0]) if recurrent else None,
    )


def gather(tensors: Tensors, spans: Sequence[Span]) -> list[float]:
    """The numbers at these spans."""
    return [
        number
        for span in spans
        for number in tensors[span.parameter].flatten()[span.start : span.start + span.count].tolist()
    ]


def _terms(
    inputs: Tensor, spans: Sequence[Span], weights: Tensors, gradients: Tensors, name: Callable[[int], str]
) -> list[Term]:
    columns = zip(inputs.tolist(), gather(weights, spans), gather(gradients, spans), strict=True)
    return [Term(name(i), x, weight, x * weight, gradient) for i, (x, weight, gradient) in enumerate(columns)]


def _following_stages(recorded: RecordedPass, layer: WeightedLayer, unit: int, place: Sequence[int]) -> Iterator[Stage]:
    """The unit's value after each pooling, norm and skip connection that follows, up to and with the activation."""
    previous = layer.call.output
    position = list(place)
    is_map = layer.kind == "Conv2d"

    def value(output: Tensor) -> float:
        return float(output[(unit, *position)] if is_map else output[(*position, unit)])

    for call in recorded.calls[recorded.calls.index(layer.call) + 1 :]:
        module = call.module
        has_parameters = any(True for _ in module.parameters())
        is_activation = not has_parameters and not isinstance(module, POOLS) and call.output.shape == call.input.shape
        if call.input.shape != previous.shape or not (is_activation or isinstance(module, (*POOLS, *NORMS))):
            return
        if not torch.equal(call.input, previous):
            if not (is_activation and is_map):
                return
            yield Stage("plus the skip connection", value(call.input))
        if isinstance(module, POOLS):
            position = [index // _stride(module) for index in position]
            if any(index >= size for index, size in zip(position, call.output.shape[1:], strict=True)):
                return  # at an edge that no pooling window covers
        yield Stage(type(module).__name__, value(call.output))
        if is_activation:
            return
        previous = call.output


def _stride(pool: nn.MaxPool2d | nn.AvgPool2d) -> int:
    return int(pool.stride if isinstance(pool.stride, int) else pool.stride[0])


def find_attention(recorded: RecordedPass, selection: Selection | None) -> tuple[Attention, float] | None:
    """The attention weights of the selected neuron's token, and the error of the written-out formula.

    The block is the neuron's own, or else the first; the head is the one with the largest single weight. The error is
    the largest difference of softmax(q k^T / sqrt(D / heads)) v from what the block computed. None for networks
    without attention.
    """
    blocks = {name: module for name, module in recorded.model.named_modules() if isinstance(module, AttentionBlock)}
    calls = {call.name: call for call in recorded.calls}
    if selection is None or not any(f"{name}.qkv" in calls for name in blocks):
        return None
    layer = selection.layer
    block = next((name for name in blocks if layer.name.startswith(f"{name}.")), next(iter(blocks)))
    qkv = calls[f"{block}.qkv"]
    heads = blocks[block].heads
    T, D = qkv.input.shape
    q, k, v = qkv.output.view(T, 3, heads, D // heads).permute(1, 2, 0, 3)  # each (heads, T, D / heads)
    weights = (q @ k.transpose(1, 2) / math.sqrt(D // heads)).softmax(2)  # (heads, T, T)
    attended = (weights @ v).transpose(0, 1).reshape(T, D)
    error = float((attended - calls[f"{block}.project"].input).abs().max())
    names = token_names(recorded, qkv.input)
    # The embedding layer has no position for the class token, which comes first
    token = selection.place[0] + T - layer.places[0] if layer.places else 0
    head = int(weights[:, token].max(1).values.argmax())
    return Attention(block, head, names[token], weights[head, token].tolist(), names), error
