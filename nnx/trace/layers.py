"""What each layer computes on the way to the logits, and, of those that weigh their inputs, every weighted sum with
what it is made of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnx import models

SILENT = (
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.AlphaDropout,
)  # compute nothing in evaluation


@dataclass(eq=False)
class Call:
    """One layer's turn: what went in and what came out, of one sample, without the batch dimension; and dL/doutput."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    slope: Tensor | None = None


@dataclass(frozen=True)
class Span:
    """So many numbers of a parameter, from this place of the flat parameter on."""

    parameter: str
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class Weighted:
    """A layer of U units that weigh n inputs, at each of P places: sums = weights @ inputs + biases.

    `places` is the shape that P unfolds to: () for a plain layer, (H, W) for a map, (T,) for tokens or time steps.
    """

    name: str
    kind: str
    call: Call
    places: tuple[int, ...]
    sums: Tensor  # (U, P)
    slopes: Tensor  # (U, P), dL/dsum
    reach: Tensor  # (P,) norm of the inputs at each place
    inputs: Callable[[int], Tensor]  # unit -> (P, n)
    weights: Callable[[int], Sequence[Span]]  # unit -> where its n weights are
    biases: Callable[[int], Sequence[Span]]
    bias_inputs: Callable[
        [int], Tensor
    ]  # unit -> (P, number of biases): what each bias is multiplied by, 1 but for a gate's
    parameters: tuple[str, ...] = field(default=())  # of the whole layer

    @property
    def units(self) -> int:
        return len(self.sums)

    @property
    def shares(self) -> Tensor:
        """(U, P): the norm of what each place adds to its unit's gradient, which is dL/dsum * inputs."""
        return self.slopes.abs() * self.reach


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """Inside, notes what each layer without children computes, in the order of happening, and what the loss then says
    of it."""
    calls: list[Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            result = output if isinstance(output, Tensor) else output[0]
            if (
                not inputs
                or not isinstance(inputs[0], Tensor)
                or not isinstance(result, Tensor)
                or isinstance(module, SILENT)
            ):
                return
            call = Call(name, module, _alone(module, inputs[0]), _alone(module, result))
            calls.append(call)

            def keep(slope: Tensor) -> None:
                call.slope = _alone(module, slope)

            if result.requires_grad:
                result.register_hook(keep)  # type: ignore[no-untyped-call]

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    with models.registered_hooks(module.register_forward_hook(note(name)) for name, module in leaves):
        yield calls


def _alone(module: nn.Module, batch: Tensor) -> Tensor:
    """A copy of the one sample in a batch; all of what a layer sees as a batch of its own, of patches say."""
    axis = 1 if isinstance(module, nn.RNNBase) and not module.batch_first else 0
    whole = batch.detach().clone()
    return whole.squeeze(axis) if whole.ndim > 1 else whole


def linear(call: Call) -> Weighted:
    """nn.Linear, at one place or at many: tokens."""
    module = call.module
    assert isinstance(module, nn.Linear)
    n, units = module.in_features, module.out_features
    rows, sums = call.input.reshape(-1, n), call.output.reshape(-1, units).T  # (P, n), (U, P)
    return Weighted(
        name=call.name,
        kind="Linear",
        call=call,
        places=tuple(call.input.shape[:-1]),
        sums=sums,
        slopes=slopes_of(call).reshape(-1, units).T,
        reach=rows.norm(dim=1),
        inputs=lambda unit: rows,
        weights=lambda unit: [Span(own(call, "weight"), unit * n, n)],
        biases=lambda unit: _bias(call, unit),
        bias_inputs=lambda unit: rows.new_ones(len(rows), len(_bias(call, unit))),
        parameters=_own(call),
    )


def convolution(call: Call) -> Weighted:
    """nn.Conv2d: the same filter at each place of the map; its inputs there are the patch that it lies on."""
    module = call.module
    assert isinstance(module, nn.Conv2d)
    height, width = module.kernel_size
    n = module.in_channels // module.groups * height * width
    padded = F.pad(call.input[None], _padding(module))  # zeros outside the image
    patches = F.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)[
        0
    ].T  # (P, in_channels * height * width)
    units, *places = call.output.shape
    group = units // module.groups

    def inputs(unit: int) -> Tensor:
        first = unit // group * n
        return patches[:, first : first + n]

    return Weighted(
        name=call.name,
        kind="Conv2d",
        call=call,
        places=tuple(places),
        sums=call.output.flatten(1),
        slopes=slopes_of(call).flatten(1),
        reach=patches.norm(dim=1),
        inputs=inputs,
        weights=lambda unit: [Span(own(call, "weight"), unit * n, n)],
        biases=lambda unit: _bias(call, unit),
        bias_inputs=lambda unit: patches.new_ones(len(patches), len(_bias(call, unit))),
        parameters=_own(call),
    )


def corner(module: nn.Conv2d, place: Sequence[int]) -> tuple[int, int]:
    """Row and column of its input, counted from 0, at which a filter's upper left corner lies; outside where it is
    negative."""
    left, _, top, _ = _padding(module)
    return place[0] * module.stride[0] - top, place[1] * module.stride[1] - left


def _padding(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, as torch pads: what "same" can't share evenly goes to the right and the bottom."""
    sides: list[int] = []
    for axis in (1, 0):
        if isinstance(module.padding, str):
            total = module.dilation[axis] * (module.kernel_size[axis] - 1) if module.padding == "same" else 0
            sides += [total // 2, total - total // 2]
        else:
            sides += [int(module.padding[axis])] * 2
    left, right, top, bottom = sides
    return left, right, top, bottom


def slopes_of(call: Call) -> Tensor:
    """dL/doutput of a call; zeros where the loss does not depend on it."""
    return torch.zeros_like(call.output) if call.slope is None else call.slope


def own(call: Call, name: str) -> str:
    """The name within the whole network of one of a layer's own parameters."""
    return f"{call.name}.{name}" if call.name else name


def _bias(call: Call, unit: int) -> list[Span]:
    return [] if call.module.bias is None else [Span(own(call, "bias"), unit, 1)]


def _own(call: Call) -> tuple[str, ...]:
    return tuple(own(call, name) for name, _ in call.module.named_parameters())
