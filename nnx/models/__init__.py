"""Architectures, one file each: a `Config`, and `Model(config, spec, outputs)` from normalised inputs to logits.

The file's name is the architecture's. `forward` takes (B, C, H, W) images or (B, F) rows, and gives (B, outputs)
logits.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from nnx.config import registry
from nnx.config.registry import Part
from nnx.errors import ConfigError
from nnx.events import Layer
from nnx.preprocessing.spec import Spec
from nnx.system.device import whole_torch

BYTES_A_PARAMETER = 16  # float32 weight, gradient, and Adam's two moments


def build(config: Part, spec: Spec, outputs: int) -> nn.Module:
    """The network that `config` names, for inputs and classes as in `spec`, with freshly drawn weights.

    Raises ConfigError where its sizes can't work for this data, or can't fit into this machine's memory.
    """
    needed = count(outline(config, spec, outputs)) * BYTES_A_PARAMETER  # a model of 10^12 is refused before it is tried
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError.at(
            "model",
            f"{needed // BYTES_A_PARAMETER:,} parameters take {needed / 2**30:,.0f} GiB with gradients and moments, "
            f"this machine has {memory / 2**30:,.0f}; make it narrower or shallower",
        )
    model: nn.Module = registry.module("model", config.name).Model(config, spec, outputs)
    return model


def outline(config: Part, spec: Spec, outputs: int) -> nn.Module:
    """The network that `build` would make, without its memory: names and shapes."""

    def make() -> nn.Module:
        with torch.device("meta"), _Undrawn():
            network: nn.Module = registry.module("model", config.name).Model(config, spec, outputs)
            return network

    try:
        return make()
    except NotImplementedError:  # an architecture that computes while it is built
        whole_torch()
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


def count(model: nn.Module) -> int:
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


def layers(model: nn.Module, spec: Spec) -> tuple[Layer, ...]:
    """The model table: each layer's name, kind, output shape for one sample, and trainable parameters.

    Containers are opened (Sequential, ModuleList), all else is one row; parameters that a model holds itself come
    first.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        shapes[module] = tuple((output if isinstance(output, Tensor) else output[0]).shape[1:])

    table = rows(model)
    _forward(model, spec, {module: note for _, module in table})
    own = [Layer(name, "Parameter", tuple(p.shape), p.numel()) for name, p in model.named_parameters(recurse=False)]
    return (
        *own,
        *(Layer(name, type(module).__name__, shapes.get(module, ()), count(module)) for name, module in table),
    )


def flops(config: Part, spec: Spec, outputs: int) -> dict[str, int]:
    """Floating-point operations of a forward pass of one sample, by the names of `layers`; "" is the whole.

    torch's own count (FlopCounterMode): two for each multiply-add of matrix products, convolutions and attention,
    nothing for the rest. Counted on the outline of the network: on a real device torch does not see into some fused
    kernels, an LSTM's or attention's, there they are matrix products. Brings torch._dynamo along, which takes 1 s and
    170 MB.
    """
    whole_torch()
    from torch.utils.flop_counter import FlopCounterMode

    model = outline(config, spec, outputs).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape, device="meta"))
    counted = {place: sum(kinds.values()) for place, kinds in counter.get_flop_counts().items()}
    root = type(model).__name__
    return {"": counter.get_total_flops(), **{name: counted.get(f"{root}.{name}", 0) for name, _ in rows(model)}}


def _forward(model: nn.Module, spec: Spec, hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    """One blank sample through the model, each hook called with its module, the inputs and the output."""
    parameter, training = next(model.parameters()), model.training
    model.eval()
    try:
        with hooked(module.register_forward_hook(hook) for module, hook in hooks.items()), torch.no_grad():
            model(torch.zeros(1, *spec.shape, device=parameter.device))
    finally:  # of a precision that a layer has no kernel for
        model.train(training)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Inside, hooks are there that were registered with these handles; afterwards they are gone, whatever happened."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def rows(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules that are rows of the model table, by name, in the order in which the model holds them."""
    found = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += rows(child, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found
