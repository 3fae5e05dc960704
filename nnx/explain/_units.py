"""Units of a layer of any architecture: their positions, and the pixels that they can see.

A unit is a neuron, a filter, or one number of a state or token. It has a value at each of P positions: a neuron at one,
a filter at each position of its feature map, a state's number at each step, a token's number at each token.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nnx import models
from nnx.explain import Subject, _draw
from nnx.models import _layer_outputs
from nnx.preprocessing.spec import Spec

INPUT = _layer_outputs.INPUT
MAX_LAYERS = 12
MAX_FEATURES = 4096  # numbers of a layer for a sample, where thousands of samples are in memory


def by_position(output: Tensor) -> Tensor:
    """A layer's output, (N, U) of neurons, (N, U, H, W) of filters or (N, T, U) of states and tokens -> (N, U, P)."""
    return output.transpose(1, 2) if output.ndim == 3 else output.flatten(2) if output.ndim > 3 else output.unsqueeze(2)


def differentiable_outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """As `_layer_outputs.layer_outputs`, (N, U, P) of each layer, but with gradients and on the network's device."""
    modules = _layer_outputs.layer_modules(network, x[:1])
    outputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = by_position(output if isinstance(output, Tensor) else output[0])

        return hook

    hooks = (module.register_forward_hook(recorder(name)) for name, module in modules.items())
    with models.registered_hooks(hooks):
        logits = network(x)
    return {name: outputs[name] for name in modules} | {_layer_outputs.LOGITS: by_position(logits)}


def layer_features(network: nn.Module, subject: Subject, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """The activations of the layers for N raw samples, from first to last: (N, D), beginning with the normalised input.

    With more than `MAX_LAYERS` layers, that many, evenly spaced. A layer with more than `MAX_FEATURES` numbers is
    averaged over neighbouring positions: all layers of all samples may not fit in memory.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for x in batches(subject, images):
        outputs = select_layers({INPUT: x.cpu(), **_layer_outputs.layer_outputs(network, x)})
        for name, output in outputs.items():
            parts.setdefault(name, []).append(_pool(output).flatten(1).numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def batches(subject: Subject, images: NDArray[Any]) -> Iterator[Tensor]:
    """Raw samples as inputs of the network, in batches that fit in memory."""
    size = _layer_outputs.batch_size_for(subject.inputs(images[:1]))
    for start in range(0, len(images), size):
        yield subject.inputs(images[start : start + size])


def select_layers(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """At most `MAX_LAYERS` of the layers, evenly spaced, with the first and the last."""
    names = list(layers)
    return {names[n]: layers[names[n]] for n in _draw.evenly_spaced(len(names), MAX_LAYERS)}


def _pool(output: Tensor) -> Tensor:
    """Averaged over positions to at most MAX_FEATURES numbers for a sample, where there are positions."""
    if output[0].numel() <= MAX_FEATURES:
        return output
    if output.ndim == 4:
        side = max(1, math.isqrt(MAX_FEATURES // output.shape[1]))
        return F.adaptive_avg_pool2d(output, (min(side, output.shape[2]), min(side, output.shape[3])))
    if output.ndim == 3:
        steps = max(1, min(MAX_FEATURES // output.shape[2], output.shape[1]))
        return F.adaptive_avg_pool1d(output.transpose(1, 2), steps)
    return output


def replace_modules(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy of the network, without gradients of parameters, in which `replacement` of a module, unless None, takes
    the module's place."""
    changed = copy.deepcopy(network).requires_grad_(False)
    for name, module in list(changed.named_modules()):
        if name and (new := replacement(module)) is not None:
            changed.set_submodule(name, new)
    return changed


def receptive_field(network: nn.Module, spec: Spec, layer: str, positions: list[int]) -> NDArray[np.bool_]:
    """(P, H, W) for P positions of a layer: True for each pixel of the image that can change the units there.

    The gradient at a pixel can be zero by chance: a ReLU is off, another pixel won the maximum, two paths cancel. So
    this uses a copy of the network in which none of that happens, without activations, with averages for maxima and
    with positive weights. There the gradient is zero only without a path. The field is the same for all units and
    images.
    """
    paths = replace_modules(network, _linear).cpu().double()
    generator = torch.Generator().manual_seed(0)
    for parameter in paths.parameters():
        if parameter.ndim == 1:  # biases, and the gains of norms
            parameter.fill_(1)
        else:
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
            parameter.copy_(values / parameter[0].numel())  # so small that no gate saturates
    x = torch.rand(1, *spec.shape, generator=generator, dtype=torch.float64)
    weights: Tensor | None = None  # of units, as the unweighted sum over the output of a LayerNorm is constant
    fields = []
    for batch in torch.split(torch.tensor(positions), _layer_outputs.batch_size_for(x)):
        images = x.expand(len(batch), *spec.shape).clone().requires_grad_()
        units = differentiable_outputs(paths, images)[layer][range(len(batch)), :, batch]  # (P, U)
        weights = torch.rand(units.shape[1], generator=generator, dtype=torch.float64) if weights is None else weights
        (gradient,) = torch.autograd.grad((units * weights).sum(), images)
        fields.append((gradient != 0).any(1))
    return torch.cat(fields).numpy()


def _linear(module: nn.Module) -> nn.Module | None:
    """The linear module that stands for a maximum or an activation; None for the others."""
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
    if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention):
        return nn.Identity()
    return None
