"""Architectures, one file each: a `Config`, and `Model(config, spec, outputs)` from normalised inputs to logits.

The file's name is the architecture's. `forward` takes (B, C, H, W) images or (B, F) rows and returns (B, outputs)
logits.
"""

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
from nnx.system import platform
from nnx.system.device import load_meta_kernels


class ModelConfig(Component):
    """The config of an architecture. Class variables describe the architecture to the rest of nnx."""

    channels_last: ClassVar[bool] = False
    """Consists of 2-D convolutions, so that its images may use the channels-last memory format."""
    prefers_bfloat16: ClassVar[bool] = False
    """Trains faster in bfloat16 on CPUs that have instructions for it, and as well."""
    has_attention: ClassVar[bool] = False
    """Its blocks are `AttentionBlock`s, so that explain and trace can show attention weights."""
    reads_features_singly: ClassVar[bool] = False
    """Reads a table one feature at a time, so that each unit of the first layer has a single weight."""


BYTES_PER_PARAMETER = 16  # float32 weight, gradient, and Adam's two moments


def build(config: Component, spec: Spec, outputs: int) -> nn.Module:
    """The network of `config` for the inputs in `spec`, with random initial weights.

    Raises ConfigError if its sizes don't suit the data or exceed this machine's memory.
    """
    # Counted without allocating memory: a model of 10^12 parameters must be refused
    parameters = count_parameters(build_on_meta(config, spec, outputs))
    required = parameters * BYTES_PER_PARAMETER
    memory = platform.total_memory()
    if required > memory:
        raise ConfigError.at(
            "model",
            f"{parameters:,} parameters take {required / 2**30:,.0f} GiB with gradients and moments, "
            f"this machine has {memory / 2**30:,.0f}; make it narrower or shallower",
        )
    model: nn.Module = registry.module("model", config.name).Model(config, spec, outputs)
    return model


def build_on_meta(config: Component, spec: Spec, outputs: int) -> nn.Module:
    """The network of `build` on the meta device: names and shapes, without memory."""

    def make() -> nn.Module:
        with torch.device("meta"), _SkipInitialisation():
            network: nn.Module = registry.module("model", config.name).Model(config, spec, outputs)
            return network

    try:
        return make()
    except NotImplementedError:  # an architecture that computes in its constructor
        load_meta_kernels()
        return make()


class _SkipInitialisation(TorchFunctionMode):
    """Inside, the functions of torch.nn.init do nothing. On meta tensors they would import torch._dynamo, which takes
    1.3 s."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, spec: Spec) -> int:
    """Multiply-adds of the matrix products and convolutions in a forward pass of one sample. Each weight counts once
    for each position that uses it."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal total
        result = output if isinstance(output, Tensor) else output[0]
        features = result.shape[1] if isinstance(module, nn.modules.conv._ConvNd) else result.shape[-1]
        total += sum(p.numel() for p in module.parameters() if p.ndim > 1) * (result.numel() // features)

    products = nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase
    _forward(model, spec, {module: count for module in model.modules() if isinstance(module, products)})
    return total


def layer_table(model: nn.Module, spec: Spec) -> tuple[LayerSummary, ...]:
    """The model table: each layer's name, kind, output shape for one sample, and trainable parameters.

    The children of containers (Sequential, ModuleList) are rows, as is every other module. Parameters of the model
    itself come first.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        shapes[module] = tuple((output if isinstance(output, Tensor) else output[0]).shape[1:])

    modules = table_rows(model)
    _forward(model, spec, {module: record for _, module in modules})
    rows = [
        LayerSummary(name, "Parameter", tuple(p.shape), p.numel()) for name, p in model.named_parameters(recurse=False)
    ]
    rows += [
        LayerSummary(name, type(module).__name__, shapes.get(module, ()), count_parameters(module))
        for name, module in modules
    ]
    return tuple(rows)


def flops(config: Component, spec: Spec, outputs: int) -> dict[str, int]:
    """Floating-point operations of a forward pass of one sample, by the names of `table_rows`; "" is the total.

    Counted by torch's FlopCounterMode: two for each multiply-add of matrix products, convolutions and attention, none
    for other operations. Counted on the meta device, where an LSTM and attention consist of matrix products; on other
    devices they can be fused kernels that torch does not count. Imports torch._dynamo, which takes 1 s and 170 MB.
    """
    load_meta_kernels()
    from torch.utils.flop_counter import FlopCounterMode

    model = build_on_meta(config, spec, outputs).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape, device="meta"))
    by_module = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    root = type(model).__name__
    by_layer = {name: by_module.get(f"{root}.{name}", 0) for name, _ in table_rows(model)}
    return {"": counter.get_total_flops(), **by_layer}


def _forward(model: nn.Module, spec: Spec, hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    """Run the model on one sample of zeros. Each hook is called with its module, the inputs and the output."""
    parameter, training = next(model.parameters()), model.training
    model.eval()
    try:
        with registered_hooks(module.register_forward_hook(hook) for module, hook in hooks.items()), torch.no_grad():
            model(torch.zeros(1, *spec.shape, device=parameter.device))
    finally:  # the forward pass fails if a layer has no kernel for the precision
        model.train(training)


@runtime_checkable
class PatchModel(Protocol):
    """A network that reads an image as patches of `patch` x `patch` pixels, embedded by the linear layer `embed`."""

    patch: int
    embed: nn.Module


@runtime_checkable
class AttentionBlock(Protocol):
    """A block of self-attention with `heads` heads. `qkv` computes queries, keys and values, (B, T, 3 * D). `attention`
    maps (B, T, D) tokens to (B, T, D) and ends with the linear layer `project`."""

    heads: int
    qkv: nn.Module
    project: nn.Module

    def attention(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class PlainModel(Protocol):
    """A network whose forward pass is exactly the sequence `plain_layers()` on flattened inputs."""

    def plain_layers(self) -> list[nn.Module]: ...


@contextmanager
def registered_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks with these handles at the end of the block, also after an error."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def table_rows(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """(name, module) of the rows of the model table, in the order of the model's children."""
    rows = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            rows += table_rows(child, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", child))
    return rows
