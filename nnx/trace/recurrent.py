"""Recurrent layers written out, step by step: the sums of every gate at every step, which torch's own, faster layers
keep to themselves.

With x the row that is read, h the state before it, c an LSTM's cell, s = W x + b + U h + b', * by elements (as nn.RNN,
nn.LSTM, nn.GRU):

    rnn    h = tanh(s)
    lstm   i, f, o = sigmoid(s_i), sigmoid(s_f), sigmoid(s_o);  g = tanh(s_g);  c = f * c + i * g;  h = o * tanh(c)
    gru    r, z = sigmoid(s_r), sigmoid(s_z);  n = tanh(W x + b + r * (U h + b'));  h = (1 - z) * n + z * h
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.trace.layers import Call, Span, Weighted, own, slopes_of
from nnx.trace.result import Gate

NAMES = {
    "RNN_TANH": ("state",),
    "RNN_RELU": ("state",),
    "LSTM": ("input gate", "forget gate", "candidate", "output gate"),
    "GRU": ("reset gate", "update gate", "candidate"),
}
CANDIDATE = {"RNN_TANH": 0, "RNN_RELU": 0, "LSTM": 2, "GRU": 2}  # told in full: what a unit would like to remember


@dataclass(frozen=True, eq=False)
class Moment:
    """The H units of a layer at one time step: what they saw, the G sums of each, and what became of them."""

    x: Tensor  # (n,)
    h_before: Tensor  # (H,), as all that follow
    c_before: Tensor
    parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]  # of each gate: W x, b, U h, b', the last two times `factor`
    sums: Sequence[Tensor]
    gates: Sequence[Tensor]  # the sums behind their activations
    factor: Tensor  # what the past is multiplied by in the candidate: r of a GRU, else 1
    h: Tensor
    c: Tensor


@dataclass(frozen=True, eq=False)
class Cells:
    """A layer in one direction: a weighted layer that stands for its candidates, and its moments, in the order of the
    rows."""

    weighted: Weighted
    moments: Sequence[Moment]
    mode: str
    depth: int  # 0 for the layer that sees the input
    backwards: bool

    @property
    def states(self) -> Tensor:
        """(T, H)"""
        return torch.stack([moment.h.detach() for moment in self.moments])

    def gates(self, unit: int, t: int) -> list[Gate]:
        """All sums of a unit at a time step, and what they became."""
        at, told = self.moments[t], []
        for g, name in enumerate(NAMES[self.mode]):
            x, b, past, b_past = (float(part[unit].detach()) for part in at.parts[g])
            kind = _activation(self.mode, g)
            told.append(
                Gate(
                    name, x, past, b + b_past, float(at.sums[g][unit].detach()), kind, float(at.gates[g][unit].detach())
                )
            )
        return told

    def state(self, unit: int, t: int) -> tuple[float, float]:
        """h of a unit, before and after a time step."""
        return _pair(self.moments[t].h_before, self.moments[t].h, unit)

    def cell(self, unit: int, t: int) -> tuple[float, float] | None:
        """An LSTM's c, before and after."""
        return _pair(self.moments[t].c_before, self.moments[t].c, unit) if self.mode == "LSTM" else None


def _pair(before: Tensor, after: Tensor, unit: int) -> tuple[float, float]:
    return float(before[unit].detach()), float(after[unit].detach())


def cells(call: Call) -> tuple[list[Cells], float]:
    """Each layer and direction of a recurrent module, and how far these states are, at most, from those that torch
    gave."""
    module = call.module
    assert isinstance(module, nn.RNNBase)
    x = call.input  # (T, n)
    layers: list[tuple[str, list[Moment]]] = []
    with torch.enable_grad():
        for depth in range(module.num_layers):
            ways = [f"l{depth}", f"l{depth}_reverse"] if module.bidirectional else [f"l{depth}"]
            each = {way: list(_moments(module, way, x)) for way in ways}
            layers += each.items()
            x = torch.cat([torch.stack([moment.h for moment in moments]) for moments in each.values()], 1)
        candidates = [moment.sums[CANDIDATE[module.mode]] for _, moments in layers for moment in moments]
        slopes = iter(torch.autograd.grad(x, candidates, slopes_of(call), allow_unused=True))
    found = []
    for way, moments in layers:
        of_each = [
            torch.zeros_like(moment.h) if slope is None else slope
            for moment, slope in zip(moments, slopes, strict=False)
        ]
        depth, backwards = int(way.removeprefix("l").removesuffix("_reverse")), way.endswith("_reverse")
        found.append(Cells(_weighted(call, way, moments, torch.stack(of_each)), moments, module.mode, depth, backwards))
    return found, float((x.detach() - call.output).abs().max())


def _moments(module: nn.RNNBase, way: str, x: Tensor) -> Iterator[Moment]:
    """One layer in one direction: its moments in the order of the rows."""
    back = way.endswith("_reverse")
    h = c = x.new_zeros(module.hidden_size)
    passed = []
    for row in x.flip(0) if back else x:
        passed.append(_moment(module, way, row, h, c))
        h, c = passed[-1].h, passed[-1].c
    yield from reversed(passed) if back else passed


def _moment(module: nn.RNNBase, way: str, x: Tensor, h: Tensor, c: Tensor) -> Moment:
    H, mode = module.hidden_size, module.mode
    seen, past = (getattr(module, f"weight_ih_{way}") @ x).split(H), (getattr(module, f"weight_hh_{way}") @ h).split(H)
    zeros = x.new_zeros(len(seen) * H)
    b, b_past = ((getattr(module, f"bias_{which}_{way}") if module.bias else zeros).split(H) for which in ("ih", "hh"))
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    factor, sums, gates = torch.ones_like(h), list[Tensor](), list[Tensor]()
    for g in range(len(seen)):
        if mode == "GRU" and g == CANDIDATE[mode]:
            factor = gates[0]  # the reset gate
        parts.append((seen[g], b[g], factor * past[g], factor * b_past[g]))
        sums.append(parts[g][0] + parts[g][1] + parts[g][2] + parts[g][3])
        gates.append(BENT[_activation(mode, g)](sums[g]))
    if mode == "LSTM":
        i, f, candidate, o = gates
        after = f * c + i * candidate
        return Moment(x, h, c, parts, sums, gates, factor, o * torch.tanh(after), after)
    new = (1 - gates[1]) * gates[2] + gates[1] * h if mode == "GRU" else gates[0]
    return Moment(x, h, c, parts, sums, gates, factor, new, c)


BENT = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def _activation(mode: str, gate: int) -> str:
    return "relu" if mode == "RNN_RELU" else "tanh" if gate == CANDIDATE[mode] else "sigmoid"


def _weighted(call: Call, way: str, moments: Sequence[Moment], slopes: Tensor) -> Weighted:
    """The candidates of a layer, (T, H) slopes and all, as a layer that weighs the row and the state before it."""
    module = call.module
    assert isinstance(module, nn.RNNBase)
    H, gate = module.hidden_size, CANDIDATE[module.mode]
    x, h, factor = (
        torch.stack([getattr(moment, name).detach() for moment in moments]) for name in ("x", "h_before", "factor")
    )
    n = x.shape[1]

    def weights(unit: int) -> list[Span]:
        row = gate * H + unit
        return [Span(own(call, f"weight_ih_{way}"), row * n, n), Span(own(call, f"weight_hh_{way}"), row * H, H)]

    def biases(unit: int) -> list[Span]:
        return (
            [Span(own(call, f"bias_{which}_{way}"), gate * H + unit, 1) for which in ("ih", "hh")]
            if module.bias
            else []
        )

    return Weighted(
        name=f"{call.name}.{way}",
        kind=type(module).__name__,
        call=call,
        places=(len(x),),
        sums=torch.stack([moment.sums[gate].detach() for moment in moments], 1),
        slopes=slopes.T,
        reach=torch.cat([x, h], 1).norm(dim=1),
        inputs=lambda unit: torch.cat([x, h * factor[:, unit, None]], 1),
        weights=weights,
        biases=biases,
        bias_inputs=lambda unit: torch.stack([torch.ones_like(factor[:, unit]), factor[:, unit]], 1)[
            :, : len(biases(unit))
        ],
        parameters=tuple(own(call, name) for name, _ in module.named_parameters() if name.endswith(f"_{way}")),
    )
