"""Architectures, one file each: a `Config`, and `Model(config, spec, outputs)` from normalised inputs to logits.

The file's name is the architecture's. `forward` takes (B, C, H, W) images or (B, F) rows, and gives (B, outputs)
logits.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from nnx.config import registry
from nnx.config.registry import Component
from nnx.errors import ConfigError
from nnx.events import LayerSummary
from nnx.preprocessing.spec import Spec
from nnx.system.device import load_meta_kernels


class ModelConfig(Component):
    """The config of an architecture. Class variables state what else nnx has to know about it."""

    channels_last: ClassVar[bool] = False
    """Made of 2-D convolutions: its images may lie channels-last in memory."""
    bfloat16_speedup: ClassVar[float | None] = None
    """Measured speed-up by bfloat16 on a CPU that multiplies it; None where it is none."""
    has_attention: ClassVar[bool] = False
    """Its blocks are `AttentionBlock`s, whose weights explain and trace can show."""
    reads_features_singly: ClassVar[bool] = False
    """Reads a table one feature at a time, so that the first layer has one weight a unit."""


BYTES_A_PARAMETER = 16  # float32 weight, gradient, and Adam's two moments


def build(config: Component, spec: Spec, outputs: int) -> nn.Module:
    """The network that `config` names, for inputs and classes as in `spec`, with freshly drawn weights.

    Raises ConfigError where its sizes can't work for this data, or can't fit into this machine's memory.
    """
    needed = (
        count_parameters(build_on_meta(config, spec, outputs)) * BYTES_A_PARAMETER
    )  # a model of 10^12 is refused before it is tried
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError.at(
            "model",
            f"{needed // BYTES_A_PARAMETER:,} parameters take {needed / 2**30:,.0f} GiB with gradients and moments, "
            f"this machine has {memory / 2**30:,.0f}; make it narrower or shallower",
        )
    model: nn.Module = registry.module("model", config.name).Model(config, spec, outputs)
    return model


def build_on_meta(config: Component, spec: Spec, outputs: int) -> nn.Module:
    """The network that `build` would make, without its memory: names and shapes."""

    def make() -> nn.Module:
        with torch.device("meta"), _Undrawn():
            network: nn.Module = registry.module("model", config.name).Model(config, spec, outputs)
            return network

    try:
        return make()
    except NotImplementedError:  # an architecture that computes while it is built
        load_meta_kernels()
        return make()


class _Undrawn(TorchFunctionMode):
    """Inside, nothing of torch.nn.init is done. Drawing weights that have no memory would import torch._dynamo, which
    takes 1.3 s."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawing = func is Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init"
        if drawing:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, spec: Spec) -> int:
    """Of a forward pass of one sample, as far as they are matrix products or convolutions: each weight times the places
    it is used at."""
    total = 0

    def note(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal total
        result = output if isinstance(output, Tensor) else output[0]
        features = result.shape[1] if isinstance(module, nn.modules.conv._ConvNd) else result.shape[-1]
        total += sum(p.numel() for p in module.parameters() if p.ndim > 1) * (result.numel() // features)

    products = nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase
    _forward(model, spec, {module: note for module in model.modules() if isinstance(module, products)})
    return total


def layer_table(model: nn.Module, spec: Spec) -> tuple[LayerSummary, ...]:
    """The model table: each layer's name, kind, output shape for one sample, and trainable parameters.

    Containers are opened (Sequential, ModuleList), all else is one row; parameters that a model holds itself come
    first.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        shapes[module] = tuple((output if isinstance(output, Tensor) else output[0]).shape[1:])

    table = table_rows(model)
    _forward(model, spec, {module: note for _, module in table})
    own = [
        LayerSummary(name, "Parameter", tuple(p.shape), p.numel()) for name, p in model.named_parameters(recurse=False)
    ]
    return (
        *own,
        *(
            LayerSummary(name, type(module).__name__, shapes.get(module, ()), count_parameters(module))
            for name, module in table
        ),
    )


def flops(config: Component, spec: Spec, outputs: int) -> dict[str, int]:
    """Floating-point operations of a forward pass of one sample, by the names of `layers`; "" is the whole.

    torch's own count (FlopCounterMode): two for each multiply-add of matrix products, convolutions and attention,
    nothing for the rest. Counted on the outline of the network: on a real device torch does not see into some fused
    kernels, an LSTM's or attention's, there they are matrix products. Brings torch._dynamo along, which takes 1 s and
    170 MB.
    """
    load_meta_kernels()
    from torch.utils.flop_counter import FlopCounterMode

    model = build_on_meta(config, spec, outputs).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape, device="meta"))
    counted = {place: sum(kinds.values()) for place, kinds in counter.get_flop_counts().items()}
    root = type(model).__name__
    return {"": counter.get_total_flops(), **{name: counted.get(f"{root}.{name}", 0) for name, _ in table_rows(model)}}


def _forward(model: nn.Module, spec: Spec, hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    """One blank sample through the model, each hook called with its module, the inputs and the output."""
    parameter, training = next(model.parameters()), model.training
    model.eval()
    try:
        with registered_hooks(module.register_forward_hook(hook) for module, hook in hooks.items()), torch.no_grad():
            model(torch.zeros(1, *spec.shape, device=parameter.device))
    finally:  # of a precision that a layer has no kernel for
        model.train(training)


@runtime_checkable
class PatchModel(Protocol):
    """A network that reads an image as patches of `patch` x `patch` pixels, each weighed by the linear layer `embed`."""

    patch: int
    embed: nn.Module


@runtime_checkable
class AttentionBlock(Protocol):
    """A block of self-attention. `qkv` gives queries, keys and values, (B, T, 3 * D), for `heads` heads; `attention`
    takes (B, T, D) tokens and gives (B, T, D), after the linear layer `project`."""

    heads: int
    qkv: nn.Module
    project: nn.Module

    def attention(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class PlainModel(Protocol):
    """A network whose forward is exactly `plain_layers()`, one after the other, on flattened inputs."""

    def plain_layers(self) -> list[nn.Module]: ...


@contextmanager
def registered_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Inside, hooks are there that were registered with these handles; afterwards they are gone, whatever happened."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def table_rows(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules that are rows of the model table, by name, in the order in which the model holds them."""
    found = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += table_rows(child, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found
