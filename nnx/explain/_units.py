"""Units of a layer, whatever the architecture: where each is, and which pixels it can see at all.

A unit is a neuron, a filter, or one number of a state or token; it has a value at each of P places: one of a neuron,
every position of a filter's map, every step of a recurrent network, every token of a transformer.
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

INPUT = "input"
LAYERS = 12  # that are looked at
WIDEST = 4096  # numbers of a layer for a sample, where thousands of samples are kept


def by_place(output: Tensor) -> Tensor:
    """A layer's output, (N, U) of neurons, (N, U, H, W) of filters or (N, T, U) of states and tokens -> (N, U, P)."""
    return output.transpose(1, 2) if output.ndim == 3 else output.flatten(2) if output.ndim > 3 else output.unsqueeze(2)


def outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """As `_capture.outputs`, (N, U, P) of each layer, but with gradients and on the network's device."""
    modules, seen = _layer_outputs.layer_modules(network, x[:1]), {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[name] = by_place(output if isinstance(output, Tensor) else output[0])

        return hook

    with models.registered_hooks(module.register_forward_hook(note(name)) for name, module in modules.items()):
        logits = network(x)
    return {name: seen[name] for name in modules} | {_layer_outputs.LOGITS: by_place(logits)}


def features(network: nn.Module, subject: Subject, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """What the layers make of N raw samples, by their names, first to last: (N, D), beginning with the normalised
    input.

    Where there are more than `LAYERS`, so many evenly spread ones; where one has more than `WIDEST` numbers for a
    sample, neighbouring places are averaged until it hasn't: all layers of all samples may be more than memory holds.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for x in batches(subject, images):
        for name, output in some({INPUT: x.cpu(), **_layer_outputs.layer_outputs(network, x)}).items():
            parts.setdefault(name, []).append(_narrowed(output).flatten(1).numpy())
    return {name: np.concatenate(found) for name, found in parts.items()}


def batches(subject: Subject, images: NDArray[Any]) -> Iterator[Tensor]:
    """Raw samples as what the network takes, as many at a time as it may see at once."""
    size = _layer_outputs.batch_size_for(subject.inputs(images[:1]))
    for start in range(0, len(images), size):
        yield subject.inputs(images[start : start + size])


def some(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """At most `LAYERS` of the layers, evenly spread, with the first and the last."""
    names = list(layers)
    return {names[n]: layers[names[n]] for n in _draw.evenly_spaced(len(names), LAYERS)}


def _narrowed(output: Tensor) -> Tensor:
    if output[0].numel() <= WIDEST:
        return output
    if output.ndim == 4:
        side = max(1, math.isqrt(WIDEST // output.shape[1]))
        return F.adaptive_avg_pool2d(output, (min(side, output.shape[2]), min(side, output.shape[3])))
    if output.ndim == 3:
        return F.adaptive_avg_pool1d(output.transpose(1, 2), max(1, min(WIDEST // output.shape[2], output.shape[1])))
    return output


def with_other_parts(network: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy of the network in which each part that `other` gives something for is that. The copy's parameters take no
    gradients."""
    changed = copy.deepcopy(network).requires_grad_(False)
    for name, part in list(changed.named_modules()):
        if name and (new := other(part)) is not None:
            changed.set_submodule(name, new)
    return changed


def receptive_field(network: nn.Module, spec: Spec, layer: str, places: list[int]) -> NDArray[np.bool_]:
    """(P, H, W) for P places of a layer: True where some change of the image's pixel can change what units say there.

    The gradient at a pixel can be zero by chance: a ReLU is off, another pixel won the maximum, two paths cancel. So
    paths are followed through a copy of the network in which none of that happens: activations are left out, averages
    stand for maxima, and weights are positive. There the gradient is zero only where there is no path. The field is
    that of every unit and every image.
    """
    paths = with_other_parts(network, _linear).cpu().double()
    drawing = torch.Generator().manual_seed(0)
    for parameter in paths.parameters():
        if parameter.ndim == 1:  # biases, and the gains of norms
            parameter.fill_(1)
        else:
            drawn = torch.rand(parameter.shape, generator=drawing, dtype=torch.float64) + 0.5
            parameter.copy_(drawn / parameter[0].numel())  # so small that no gate saturates
    x = torch.rand(1, *spec.shape, generator=drawing, dtype=torch.float64)
    weights: Tensor | None = None  # of units, as the plain sum of what a LayerNorm gives is constant
    fields = []
    for some_places in torch.split(torch.tensor(places), _layer_outputs.batch_size_for(x)):
        asked = x.expand(len(some_places), *spec.shape).clone().requires_grad_()
        units = outputs(paths, asked)[layer][range(len(some_places)), :, some_places]  # (P, U)
        weights = torch.rand(units.shape[1], generator=drawing, dtype=torch.float64) if weights is None else weights
        (gradient,) = torch.autograd.grad((units * weights).sum(), asked)
        fields.append((gradient != 0).any(1))
    return torch.cat(fields).numpy()


def _linear(part: nn.Module) -> nn.Module | None:
    if isinstance(part, nn.MaxPool2d):
        return nn.AvgPool2d(part.kernel_size, part.stride, part.padding)
    if type(part).__module__ == nn.ReLU.__module__ and not isinstance(part, nn.MultiheadAttention):
        return nn.Identity()
    return None
