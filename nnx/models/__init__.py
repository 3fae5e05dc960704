"""Architectures, one file each: a `Config`, and `Model(config, spec, outputs)` from normalised inputs to logits.

The file's name is the architecture's. `forward` takes (B, C, H, W) images or (B, F) rows, and gives (B, outputs) logits.
"""

import os

import torch
from torch import Tensor, nn

from nnx import parts
from nnx.errors import ConfigError
from nnx.events import Layer
from nnx.parts import Part
from nnx.spec import Spec

BYTES_A_PARAMETER = 16  # float32 weight, gradient, and Adam's two moments


def build(config: Part, spec: Spec, outputs: int) -> nn.Module:
    """The network that `config` names, for inputs and classes as in `spec`, with freshly drawn weights.

    Raises ConfigError where its sizes can't work for this data, or can't fit into this machine's memory.
    """
    make = parts.module("model", config.name).Model
    with torch.device("meta"):  # shapes without memory: a model of 10^12 weights is refused before it is tried
        needed = count(make(config, spec, outputs)) * BYTES_A_PARAMETER
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError.at(
            "model",
            f"{needed // BYTES_A_PARAMETER:,} parameters take {needed / 2**30:,.0f} GiB with gradients and moments, "
            f"this machine has {memory / 2**30:,.0f}; make it narrower or shallower",
        )
    model: nn.Module = make(config, spec, outputs)
    return model


def count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layers(model: nn.Module, spec: Spec) -> tuple[Layer, ...]:
    """The model table: each layer's name, kind, output shape for one sample, and trainable parameters.

    Containers are opened (Sequential, ModuleList), all else is one row; parameters that a model holds itself come first.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        shapes[module] = tuple((output if isinstance(output, Tensor) else output[0]).shape[1:])

    rows = list(_rows(model))
    handles = [module.register_forward_hook(note) for _, module in rows]
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, *spec.shape, device=parameter.device))
    model.train(training)
    for handle in handles:
        handle.remove()
    own = [Layer(name, "Parameter", tuple(p.shape), p.numel()) for name, p in model.named_parameters(recurse=False)]
    return (*own, *(Layer(name, type(module).__name__, shapes.get(module, ()), count(module)) for name, module in rows))


def _rows(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    rows = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            rows += _rows(child, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", child))
    return rows
