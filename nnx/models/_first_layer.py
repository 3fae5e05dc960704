"""Find the first layer of a network and show its weights as images."""

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
    """The name and module of the first layer with a weight matrix that the network calls on the input `x`."""
    called: list[tuple[str, nn.Module]] = []
    weighted = (
        (name, module)
        for name, module in network.named_modules()
        if any(p.ndim > 1 for p in module.parameters(recurse=False))
    )
    handles = (
        module.register_forward_pre_hook(lambda module, _, name=name: called.append((name, module)))
        for name, module in weighted
        if module is not network
    )
    with models.registered_hooks(handles), torch.no_grad():
        network(x)
    return called[0]


def input_weights(module: nn.Module) -> Tensor:
    """The module's weights on its input, (units, ...), on the CPU."""
    parameters = dict(module.named_parameters(recurse=False))
    candidates = (parameters.get("weight"), parameters.get("weight_ih_l0"), *parameters.values())
    return next(p for p in candidates if p is not None and p.ndim > 1).detach().cpu()


def as_images(weight: Tensor, module: nn.Module, spec: Spec) -> tuple[str, NDArray[Any] | None]:
    """The kind of input that the weights of a first layer apply to, and the weights as images (units, C, h, w).

    The kind is "row", "feature", "matrix", "kernel", "whole" or "patch". Weights of the first three are not images.
    """
    size = weight[0].numel()
    side = math.isqrt(size // spec.shape[0])
    if isinstance(module, nn.RNNBase):
        return "row", None
    if not spec.is_image:
        return ("feature" if size == spec.size else "matrix"), None
    if weight.ndim == 4:
        return "kernel", weight.numpy()
    if size == spec.size:
        return "whole", weight.reshape(-1, *spec.shape).numpy()
    if size == spec.shape[0] * side**2:
        return "patch", weight.reshape(-1, spec.shape[0], side, side).numpy()
    return "matrix", None


def first_weights(network: nn.Module, x: Tensor, spec: Spec) -> tuple[str, NDArray[Any]]:
    """The kind of input of the first layer (see `as_images`), and its weights: images (units, C, h, w) or a matrix
    (units, inputs). For a recurrent layer, those of the candidate state."""
    _, module = first_layer(network, x)
    weight = input_weights(module)
    kind, images = as_images(weight, module, spec)
    gates = GATES.get(module.mode, ("state",)) if isinstance(module, nn.RNNBase) else ("",)
    candidate = weight.flatten(1).chunk(len(gates))[gates.index("candidate") if "candidate" in gates else 0]
    return kind, candidate.numpy() if images is None else images
