"""One neuron in full: which one, its sum of products, what follows, and where its token looks."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.config.registry import suggest
from nnx.errors import InputError
from nnx.models import AttentionBlock
from nnx.trace.input_names import naming, tokens
from nnx.trace.layers import Span, Weighted
from nnx.trace.recorded_pass import RecordedPass
from nnx.trace.result import Attention, Neuron, Stage, Term

Tensors = dict[str, Tensor]
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which neuron, and why."""

    layer: Weighted
    unit: int
    place: tuple[int, ...]
    why: str

    @property
    def p(self) -> int:
        """The place, counted through."""
        p = 0
        for at, size in zip(self.place, self.layer.places, strict=True):
            p = p * size + at
        return p

    @property
    def spans(self) -> list[Span]:
        """Where its weights and then its biases are."""
        return [*self.layer.weights(self.unit), *self.layer.biases(self.unit)]


def select_neuron(seen: RecordedPass, wanted: str | None) -> Selection | None:
    """The neuron that LAYER:UNIT or LAYER:UNIT@PLACE names; else, of the first layer, that on whose weights the loss
    depends most.

    LAYER is a number from 1 or a name, as the table of layers has them; UNIT and PLACE ("3", "3,4") count from 0, as in
    PyTorch. None where no layer is known to weigh its inputs. Raises InputError.
    """
    if not seen.layers:
        if wanted:
            raise InputError(f"--neuron {wanted}: no layer of this network is of a kind whose neurons are known")
        return None
    if wanted is None:
        layer = next(iter(seen.layers.values()))
        unit, p = divmod(int(layer.shares.argmax()), layer.shares.shape[1])
        return Selection(
            layer, unit, _unfolded(layer, p), "of the first layer, the one on whose weights the loss depends most"
        )
    parsed = re.fullmatch(r"([^:@\s]+):(\d{1,9})(?:@(\d{1,9}(?:,\d{1,9})*))?", wanted)
    if not parsed:
        raise InputError(
            f"--neuron {wanted}: expected LAYER:UNIT or LAYER:UNIT@PLACE, e.g. 1:5, {next(iter(seen.layers))}:5 or 1:5@3,4"
        )
    layer, unit = _named(seen, parsed[1], wanted), int(parsed[2])
    if unit >= layer.units:
        raise InputError(f"--neuron {wanted}: {layer.name} has {layer.units} units, 0 to {layer.units - 1}")
    if parsed[3] is None:
        p = int(layer.shares[unit].argmax())
        return Selection(
            layer, unit, _unfolded(layer, p), f"as asked{', where the loss depends on it most' if layer.places else ''}"
        )
    place = tuple(map(int, parsed[3].split(",")))
    if len(place) != len(layer.places) or any(at >= size for at, size in zip(place, layer.places, strict=True)):
        there = (
            f"places 0 to {','.join(str(size - 1) for size in layer.places)}"
            if layer.places
            else "one place; leave @ away"
        )
        raise InputError(f"--neuron {wanted}: {layer.name} has {there}")
    return Selection(layer, unit, place, "as asked")


def _named(seen: RecordedPass, word: str, wanted: str) -> Weighted:
    names = list(seen.layers)
    if word in seen.layers:
        return seen.layers[word]
    if not word.isdigit():
        raise InputError(f"--neuron {wanted}: no layer {word!r} to choose from{suggest(word, names)}")
    if not 1 <= int(word) <= len(names):
        raise InputError(f"--neuron {wanted}: there are {len(names)} layers to choose from, 1 to {len(names)}")
    return seen.layers[names[int(word) - 1]]


def _unfolded(layer: Weighted, p: int) -> tuple[int, ...]:
    place: list[int] = []
    for size in reversed(layer.places):
        p, at = divmod(p, size)
        place.insert(0, at)
    return tuple(place)


def describe_neuron(seen: RecordedPass, choice: Selection, weights: Tensors, gradients: Tensors) -> Neuron:
    """All there is to know of it before a step is made."""
    layer, unit, p = choice.layer, choice.unit, choice.p
    names, known = naming(seen, layer, choice.place), seen.recurrent.get(layer.name)
    bias_names = ("bias",) if len(layer.biases(unit)) == 1 else ("bias", "bias of the past")
    return Neuron(
        layer=list(seen.layers).index(layer.name) + 1,
        name=layer.name,
        kind=layer.kind,
        unit=unit,
        place=choice.place,
        where=names.where,
        chosen=choice.why,
        terms=_terms(layer.inputs(unit)[p], layer.weights(unit), weights, gradients, names.of),
        biases=_terms(layer.bias_inputs(unit)[p], layer.biases(unit), weights, gradients, bias_names.__getitem__),
        sum=float(layer.sums[unit, p]),
        then=[] if known else list(_then(seen, layer, unit, choice.place)),
        slope=float(layer.slopes[unit, p]),
        uses=layer.sums.shape[1],
        window=names.window,
        kernel=names.kernel,
        gates=known.gates(unit, choice.place[0]) if known else (),
        state=known.state(unit, choice.place[0]) if known else None,
        cell=known.cell(unit, choice.place[0]) if known else None,
    )


def take_weights(tensors: Tensors, spans: Sequence[Span]) -> list[float]:
    """The numbers at these spans."""
    return [
        number
        for span in spans
        for number in tensors[span.parameter].flatten()[span.start : span.start + span.count].tolist()
    ]


def _terms(
    inputs: Tensor, spans: Sequence[Span], weights: Tensors, gradients: Tensors, name: Callable[[int], str]
) -> list[Term]:
    columns = zip(inputs.tolist(), take_weights(weights, spans), take_weights(gradients, spans), strict=True)
    return [Term(name(i), x, weight, x * weight, gradient) for i, (x, weight, gradient) in enumerate(columns)]


def _then(seen: RecordedPass, layer: Weighted, unit: int, place: Sequence[int]) -> Iterator[Stage]:
    """What pooling, a norm and a skip connection make of the sum on its way to the activation, and the activation."""
    before, at, is_map = layer.call.output, list(place), layer.kind == "Conv2d"

    def value(output: Tensor) -> float:
        return float(output[(unit, *at)] if is_map else output[(*at, unit)])

    for call in seen.calls[seen.calls.index(layer.call) + 1 :]:
        module, plain = call.module, not any(True for _ in call.module.parameters())
        bends = plain and not isinstance(module, POOLS) and call.output.shape == call.input.shape
        if call.input.shape != before.shape or not (bends or isinstance(module, (*POOLS, *NORMS))):
            return
        if not torch.equal(call.input, before):
            if not (bends and is_map):
                return
            yield Stage("plus the skip connection", value(call.input))
        if isinstance(module, POOLS):
            at = [here // _stride(module) for here in at]
            if any(here >= size for here, size in zip(at, call.output.shape[1:], strict=True)):
                return  # at an edge that no window reaches
        yield Stage(type(module).__name__, value(call.output))
        if bends:
            return
        before = call.output


def _stride(pool: nn.MaxPool2d | nn.AvgPool2d) -> int:
    return int(pool.stride if isinstance(pool.stride, int) else pool.stride[0])


def attention(seen: RecordedPass, choice: Selection | None) -> tuple[Attention, float] | None:
    """Where the chosen token looks, by that head of its block, or of the first block, which looks most at one; and how
    far attention written out, softmax(q k^T / sqrt(D / heads)) v, is from what the block computed. None where there is
    none."""
    blocks = {name: module for name, module in seen.model.named_modules() if isinstance(module, AttentionBlock)}
    calls = {call.name: call for call in seen.calls}
    if choice is None or not any(f"{name}.qkv" in calls for name in blocks):
        return None
    block = next((name for name in blocks if choice.layer.name.startswith(f"{name}.")), next(iter(blocks)))
    qkv, project, heads = calls[f"{block}.qkv"], calls[f"{block}.project"], blocks[block].heads
    T, D = qkv.input.shape
    q, k, v = qkv.output.view(T, 3, heads, D // heads).permute(1, 2, 0, 3)  # each (heads, T, D / heads)
    weights = (q @ k.transpose(1, 2) / math.sqrt(D // heads)).softmax(2)  # (heads, T, T)
    apart = float(((weights @ v).transpose(0, 1).reshape(T, D) - project.input).abs().max())
    names = tokens(seen, qkv.input)
    token = (
        choice.place[0] + T - choice.layer.places[0] if choice.layer.places else 0
    )  # what embeds does not see the class token
    head = int(weights[:, token].max(1).values.argmax())
    return Attention(block, head, names[token], weights[head, token].tolist(), names), apart
