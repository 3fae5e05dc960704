"""The layer that sees the input: which one it is, and its weights, as images where they are some."""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import models
from nnx.preprocessing.spec import Spec

GATES = {
    "LSTM": ("input gate", "forget gate", "candidate", "output gate"),
    "GRU": ("reset gate", "update gate", "candidate"),
}


def first_layer(network: nn.Module, x: Tensor) -> tuple[str, nn.Module]:
    """The module with a weight matrix of its own that is called first with the input `x`, and its name."""
    called: list[tuple[str, nn.Module]] = []
    weighing = (
        (name, module)
        for name, module in network.named_modules()
        if any(p.ndim > 1 for p in module.parameters(recurse=False))
    )
    handles = (
        module.register_forward_pre_hook(lambda module, _, name=name: called.append((name, module)))
        for name, module in weighing
        if module is not network
    )
    with models.registered_hooks(handles), torch.no_grad():
        network(x)
    return called[0]


def input_weights(module: nn.Module) -> Tensor:
    """The weights on the input, (filters, ...)."""
    own = dict(module.named_parameters(recurse=False))
    return (
        next(p for p in (own.get("weight"), own.get("weight_ih_l0"), *own.values()) if p is not None and p.ndim > 1)
        .detach()
        .cpu()
    )


def as_images(weight: Tensor, module: nn.Module, spec: Spec) -> tuple[str, NDArray[Any] | None]:
    """What the weights look at, and they as images (filters, C, h, w), where they are some."""
    seen = weight[0].numel()
    side = math.isqrt(seen // spec.shape[0])
    if isinstance(module, nn.RNNBase):
        return "row", None
    if not spec.is_image:
        return ("feature" if seen == spec.size else "matrix"), None
    if weight.ndim == 4:
        return "kernel", weight.numpy()
    if seen == spec.size:
        return "whole", weight.reshape(-1, *spec.shape).numpy()
    if seen == spec.shape[0] * side**2:
        return "patch", weight.reshape(-1, spec.shape[0], side, side).numpy()
    return "matrix", None


def first_weights(network: nn.Module, x: Tensor, spec: Spec) -> tuple[str, NDArray[Any]]:
    """What the first layer sees, a key of READING, and its weights on that: as images (filters, C, h, w), or, where
    they are none, as a matrix (units, numbers); of a recurrent layer those of its candidate."""
    _, module = first_layer(network, x)
    weight = input_weights(module)
    kind, images = as_images(weight, module, spec)
    gates = GATES.get(module.mode, ("state",)) if isinstance(module, nn.RNNBase) else ("",)
    candidate = weight.flatten(1).chunk(len(gates))[gates.index("candidate") if "candidate" in gates else 0]
    return kind, candidate.numpy() if images is None else images
