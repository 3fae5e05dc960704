"""Recurrent layers unrolled step by step, for the weighted sum of every gate at every time step.

PyTorch's own, faster layers do not return these sums. With x the input of the step, h the previous state, c an LSTM's
cell state, s = W x + b + U h + b', and * elementwise (as nn.RNN, nn.LSTM, nn.GRU):

    rnn    h = tanh(s)
    lstm   i, f, o = sigmoid(s_i), sigmoid(s_f), sigmoid(s_o);  g = tanh(s_g);  c = f * c + i * g;  h = o * tanh(c)
    gru    r, z = sigmoid(s_r), sigmoid(s_z);  n = tanh(W x + b + r * (U h + b'));  h = (1 - z) * n + z * h
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.trace.layers import LayerCall, Span, WeightedLayer, output_gradient, parameter_name
from nnx.trace.result import Gate

GATES = {
    "RNN_TANH": ("state",),
    "RNN_RELU": ("state",),
    "LSTM": ("input gate", "forget gate", "candidate", "output gate"),
    "GRU": ("reset gate", "update gate", "candidate"),
}
CANDIDATE = {"RNN_TANH": 0, "RNN_RELU": 0, "LSTM": 2, "GRU": 2}  # the gate whose weighted sum is shown in full
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


@dataclass(frozen=True, eq=False)
class TimeStep:
    """The H units of a layer at one time step: their inputs, the weighted sum of each of the G gates, and the state."""

    x: Tensor  # (n,)
    h_before: Tensor  # (H,), as all tensors below
    c_before: Tensor
    parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]  # per gate: W x, b, U h, b'; the last two times `factor`
    sums: Sequence[Tensor]
    gates: Sequence[Tensor]  # the sums after their activations
    factor: Tensor  # what multiplies U h + b' in the candidate: r in a GRU, else 1
    h: Tensor
    c: Tensor


@dataclass(frozen=True, eq=False)
class RecurrentLayer:
    """One layer in one direction: its candidates as a weighted layer, and its time steps in the order of the rows."""

    weighted: WeightedLayer
    steps: Sequence[TimeStep]
    mode: str
    depth: int  # 0 for the layer that reads the input
    is_reverse: bool

    @property
    def states(self) -> Tensor:
        """(T, H), the state after each time step."""
        return torch.stack([step.h.detach() for step in self.steps])

    def gates(self, unit: int, t: int) -> list[Gate]:
        """All gates of a unit at a time step."""
        step = self.steps[t]
        gates = []
        for g, name in enumerate(GATES[self.mode]):
            from_input, b, from_state, b_state = (float(part[unit].detach()) for part in step.parts[g])
            gates.append(
                Gate(
                    name=name,
                    from_input=from_input,
                    from_state=from_state,
                    bias=b + b_state,
                    sum=float(step.sums[g][unit].detach()),
                    activation=_activation(self.mode, g),
                    output=float(step.gates[g][unit].detach()),
                )
            )
        return gates

    def state(self, unit: int, t: int) -> tuple[float, float]:
        """A unit's state h before and after a time step."""
        return float(self.steps[t].h_before[unit].detach()), float(self.steps[t].h[unit].detach())

    def cell(self, unit: int, t: int) -> tuple[float, float] | None:
        """A unit's cell state c before and after a time step; None unless the layer is an LSTM."""
        if self.mode != "LSTM":
            return None
        return float(self.steps[t].c_before[unit].detach()), float(self.steps[t].c[unit].detach())


def unroll(call: LayerCall) -> tuple[list[RecurrentLayer], float]:
    """Each layer and direction of a recurrent module, and the largest difference of its output from PyTorch's."""
    module = call.module
    assert isinstance(module, nn.RNNBase)
    x = call.input  # (T, n)
    steps_of: dict[str, list[TimeStep]] = {}
    with torch.enable_grad():
        for depth in range(module.num_layers):
            suffixes = [f"l{depth}", f"l{depth}_reverse"] if module.bidirectional else [f"l{depth}"]
            directions = {suffix: list(_run(module, suffix, x)) for suffix in suffixes}
            steps_of |= directions
            x = torch.cat([torch.stack([step.h for step in steps]) for steps in directions.values()], 1)
        candidates = [step.sums[CANDIDATE[module.mode]] for steps in steps_of.values() for step in steps]
        gradients = iter(torch.autograd.grad(x, candidates, output_gradient(call), allow_unused=True))
    layers = []
    for suffix, steps in steps_of.items():
        step_gradients = [
            torch.zeros_like(step.h) if gradient is None else gradient
            for step, gradient in zip(steps, gradients, strict=False)
        ]
        layers.append(
            RecurrentLayer(
                weighted=_weighted_layer(call, suffix, steps, torch.stack(step_gradients)),
                steps=steps,
                mode=module.mode,
                depth=int(suffix.removeprefix("l").removesuffix("_reverse")),
                is_reverse=suffix.endswith("_reverse"),
            )
        )
    return layers, float((x.detach() - call.output).abs().max())


def _run(module: nn.RNNBase, suffix: str, x: Tensor) -> Iterator[TimeStep]:
    """Run one layer in one direction over (T, n) inputs; its time steps in the order of the rows."""
    is_reverse = suffix.endswith("_reverse")
    h = c = x.new_zeros(module.hidden_size)
    steps = []
    for row in x.flip(0) if is_reverse else x:
        steps.append(_time_step(module, suffix, row, h, c))
        h = steps[-1].h
        c = steps[-1].c
    yield from reversed(steps) if is_reverse else steps


def _time_step(module: nn.RNNBase, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> TimeStep:
    H = module.hidden_size
    mode = module.mode
    from_input = (getattr(module, f"weight_ih_{suffix}") @ x).split(H)
    from_state = (getattr(module, f"weight_hh_{suffix}") @ h).split(H)
    zeros = x.new_zeros(len(from_input) * H)
    b, b_state = (
        (getattr(module, f"bias_{source}_{suffix}") if module.bias else zeros).split(H) for source in ("ih", "hh")
    )
    factor = torch.ones_like(h)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    sums: list[Tensor] = []
    gates: list[Tensor] = []
    for g in range(len(from_input)):
        if mode == "GRU" and g == CANDIDATE[mode]:
            factor = gates[0]  # the reset gate
        parts.append((from_input[g], b[g], factor * from_state[g], factor * b_state[g]))
        sums.append(parts[g][0] + parts[g][1] + parts[g][2] + parts[g][3])
        gates.append(ACTIVATIONS[_activation(mode, g)](sums[g]))
    if mode == "LSTM":
        i, f, candidate, o = gates
        c_after = f * c + i * candidate
        return TimeStep(x, h, c, parts, sums, gates, factor, o * torch.tanh(c_after), c_after)
    h_after = (1 - gates[1]) * gates[2] + gates[1] * h if mode == "GRU" else gates[0]
    return TimeStep(x, h, c, parts, sums, gates, factor, h_after, c)


def _activation(mode: str, gate: int) -> str:
    return "relu" if mode == "RNN_RELU" else "tanh" if gate == CANDIDATE[mode] else "sigmoid"


def _weighted_layer(call: LayerCall, suffix: str, steps: Sequence[TimeStep], gradients: Tensor) -> WeightedLayer:
    """The candidates of a layer as weighted sums of its input and its previous state. `gradients`: (T, H), dL/dsum."""
    module = call.module
    assert isinstance(module, nn.RNNBase)
    H = module.hidden_size
    gate = CANDIDATE[module.mode]
    x = torch.stack([step.x.detach() for step in steps])  # (T, n)
    h = torch.stack([step.h_before.detach() for step in steps])  # (T, H), as the next
    factor = torch.stack([step.factor.detach() for step in steps])
    n = x.shape[1]

    def inputs(unit: int) -> Tensor:
        return torch.cat([x, h * factor[:, unit, None]], 1)

    def weights(unit: int) -> list[Span]:
        row = gate * H + unit
        return [
            Span(parameter_name(call, f"weight_ih_{suffix}"), row * n, n),
            Span(parameter_name(call, f"weight_hh_{suffix}"), row * H, H),
        ]

    def biases(unit: int) -> list[Span]:
        if not module.bias:
            return []
        return [Span(parameter_name(call, f"bias_{source}_{suffix}"), gate * H + unit, 1) for source in ("ih", "hh")]

    def bias_inputs(unit: int) -> Tensor:
        factors = torch.stack([torch.ones_like(factor[:, unit]), factor[:, unit]], 1)
        return factors[:, : len(biases(unit))]

    parameters = [name for name, _ in module.named_parameters() if name.endswith(f"_{suffix}")]
    return WeightedLayer(
        name=f"{call.name}.{suffix}",
        kind=type(module).__name__,
        call=call,
        places=(len(x),),
        sums=torch.stack([step.sums[gate].detach() for step in steps], 1),
        gradients=gradients.T,
        input_norms=torch.cat([x, h], 1).norm(dim=1),
        inputs=inputs,
        weights=weights,
        biases=biases,
        bias_inputs=bias_inputs,
        parameters=tuple(parameter_name(call, name) for name in parameters),
    )
