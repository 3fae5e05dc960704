"""The recorded calls of a model's layers, and the weighted sums of its linear and convolutional layers.

The weighted sums of recurrent layers are in nnx.trace.recurrent.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnx import models

# These layers compute nothing in evaluation mode
PASSTHROUGH = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


@dataclass(eq=False)
class LayerCall:
    """One call of a layer: its input and output for one sample, without the batch dimension, and dL/doutput."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    gradient: Tensor | None = None  # dL/doutput; None where the loss does not depend on the output


@dataclass(frozen=True)
class Span:
    """`count` consecutive entries of a flattened parameter, from entry `start` on."""

    parameter: str
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class WeightedLayer:
    """A layer of U units with n inputs each, applied at P positions: sums = weights @ inputs + biases.

    `places` is the shape of the P positions: () for a fully connected layer, (H, W) for feature maps, (T,) for tokens
    or time steps.
    """

    name: str
    kind: str
    call: LayerCall
    places: tuple[int, ...]
    sums: Tensor  # (U, P)
    gradients: Tensor  # (U, P), dL/dsum
    input_norms: Tensor  # (P,), norm of the inputs at each position
    inputs: Callable[[int], Tensor]  # unit -> (P, n)
    weights: Callable[[int], Sequence[Span]]  # unit -> its n weights
    biases: Callable[[int], Sequence[Span]]  # unit -> its biases
    bias_inputs: Callable[[int], Tensor]  # unit -> (P, biases): the factor of each bias, 1 except in a GRU's candidate
    parameters: tuple[str, ...] = field(default=())  # of all units

    @property
    def units(self) -> int:
        """U."""
        return len(self.sums)

    @property
    def gradient_norms(self) -> Tensor:
        """(U, P): the norm of what each position contributes to its unit's weight gradient, dL/dsum * inputs."""
        return self.gradients.abs() * self.input_norms


@contextmanager
def record_calls(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Inside, record every call of a layer without children, in order of execution.

    The backward pass adds the gradients.
    """
    calls: list[LayerCall] = []

    def make_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            result = output if isinstance(output, Tensor) else output[0]
            if (
                not inputs
                or not isinstance(inputs[0], Tensor)
                or not isinstance(result, Tensor)
                or isinstance(module, PASSTHROUGH)
            ):
                return
            call = LayerCall(name, module, _unbatched(module, inputs[0]), _unbatched(module, result))
            calls.append(call)

            def store_gradient(gradient: Tensor) -> None:
                call.gradient = _unbatched(module, gradient)

            if result.requires_grad:
                result.register_hook(store_gradient)  # type: ignore[no-untyped-call]

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    with models.registered_hooks(module.register_forward_hook(make_hook(name)) for name, module in leaves):
        yield calls


def _unbatched(module: nn.Module, batch: Tensor) -> Tensor:
    """A copy without the batch dimension of 1. A larger one, such as a layer's own batch of patches, stays."""
    axis = 1 if isinstance(module, nn.RNNBase) and not module.batch_first else 0
    copy = batch.detach().clone()
    return copy.squeeze(axis) if copy.ndim > 1 else copy


def linear(call: LayerCall) -> WeightedLayer:
    """The weighted sums of nn.Linear, at one position or at many (tokens)."""
    module = call.module
    assert isinstance(module, nn.Linear)
    n = module.in_features
    units = module.out_features
    rows = call.input.reshape(-1, n)  # (P, n)
    return WeightedLayer(
        name=call.name,
        kind="Linear",
        call=call,
        places=tuple(call.input.shape[:-1]),
        sums=call.output.reshape(-1, units).T,
        gradients=output_gradient(call).reshape(-1, units).T,
        input_norms=rows.norm(dim=1),
        inputs=lambda unit: rows,
        weights=lambda unit: [Span(parameter_name(call, "weight"), unit * n, n)],
        biases=lambda unit: _bias(call, unit),
        bias_inputs=lambda unit: rows.new_ones(len(rows), len(_bias(call, unit))),
        parameters=_parameter_names(call),
    )


def convolution(call: LayerCall) -> WeightedLayer:
    """The weighted sums of nn.Conv2d: the same filter at every position; its inputs there are the patch below it."""
    module = call.module
    assert isinstance(module, nn.Conv2d)
    height, width = module.kernel_size
    n = module.in_channels // module.groups * height * width
    padded = F.pad(call.input[None], _padding(module))  # zeros outside the image
    unfolded = F.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)
    patches = unfolded[0].T  # (P, in_channels * height * width)
    units, *places = call.output.shape
    units_per_group = units // module.groups

    def inputs(unit: int) -> Tensor:
        first = unit // units_per_group * n
        return patches[:, first : first + n]

    return WeightedLayer(
        name=call.name,
        kind="Conv2d",
        call=call,
        places=tuple(places),
        sums=call.output.flatten(1),
        gradients=output_gradient(call).flatten(1),
        input_norms=patches.norm(dim=1),
        inputs=inputs,
        weights=lambda unit: [Span(parameter_name(call, "weight"), unit * n, n)],
        biases=lambda unit: _bias(call, unit),
        bias_inputs=lambda unit: patches.new_ones(len(patches), len(_bias(call, unit))),
        parameters=_parameter_names(call),
    )


def filter_corner(module: nn.Conv2d, place: Sequence[int]) -> tuple[int, int]:
    """Row and column in the input, from 0, of a filter's upper left corner; negative in the padding."""
    left, _, top, _ = _padding(module)
    return place[0] * module.stride[0] - top, place[1] * module.stride[1] - left


def _padding(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top, bottom. As in PyTorch, "same" puts an odd remainder on the right and at the bottom."""
    sides: list[int] = []
    for axis in (1, 0):
        if isinstance(module.padding, str):
            total = module.dilation[axis] * (module.kernel_size[axis] - 1) if module.padding == "same" else 0
            sides += [total // 2, total - total // 2]
        else:
            sides += [int(module.padding[axis])] * 2
    left, right, top, bottom = sides
    return left, right, top, bottom


def output_gradient(call: LayerCall) -> Tensor:
    """dL/doutput of a call; zeros where the loss does not depend on it."""
    return torch.zeros_like(call.output) if call.gradient is None else call.gradient


def parameter_name(call: LayerCall, name: str) -> str:
    """The full name, within the network, of a layer's own parameter."""
    return f"{call.name}.{name}" if call.name else name


def _bias(call: LayerCall, unit: int) -> list[Span]:
    return [] if call.module.bias is None else [Span(parameter_name(call, "bias"), unit, 1)]


def _parameter_names(call: LayerCall) -> tuple[str, ...]:
    return tuple(parameter_name(call, name) for name, _ in call.module.named_parameters())
