"""Optimised inputs: images made by gradient ascent to excite a unit as much as they can (Erhan et al. 2009; Olah et al.
2017)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nnx.explain import _units
from nnx.models import _layer_outputs
from nnx.preprocessing.normalise import Normalise

STEPS = 100
# of the range of grey values: how far the first step moves the pixels that matter; the last one moves them a tenth of
# it
RATE = 0.06
LEAK = 0.1


@dataclass(frozen=True)
class Target:
    """A unit of a layer, at one of its places."""

    layer: str
    unit: int
    place: int
    shift: int  # pixels by which the image is moved at most: the unit has to be excited by what is nearby, too
    blur: float  # pixels: standard deviation of the Gaussian that smooths each step
    pull: (
        float  # back to the mean image, as a share of a pixel's distance from it: pixels that hardly matter stay there
    )


def maximise(
    network: nn.Module, prepare: Normalise, mean: NDArray[np.float64], targets: Sequence[Target], seed: int
) -> NDArray[np.float32]:
    """Images (N, C, H, W) in [0, 1], one for each target, beginning at the mean image (C, H, W) with a little seeded
    noise.

    All are made at once. Of each gradient only the direction counts, so that every unit moves its image equally fast.
    Without regularisation the result is noise like no image: so the image is moved about by a few pixels, less and
    less, its steps are blurred (Olah et al. 2017), and it is drawn back to the mean (L2, as in Yosinski et al. 2015).
    Where a unit is off its gradient is zero: the network that is climbed leaks a little through its ReLUs.
    """
    climbed = _units.with_other_parts(network, lambda part: nn.LeakyReLU(LEAK) if isinstance(part, nn.ReLU) else None)
    drawing = torch.Generator().manual_seed(seed)
    base = torch.from_numpy(mean).float()
    images = (base + 0.02 * torch.randn(len(targets), *base.shape, generator=drawing)).clamp(0, 1)
    shifts = torch.tensor([target.shift for target in targets])[:, None]
    pull = torch.tensor([target.pull for target in targets])[:, None, None, None]
    blur = _blurring([target.blur for target in targets], len(base))
    for step in range(STEPS):
        left = 1 - step / STEPS
        moves = (shifts * left * (2 * torch.rand(len(targets), 2, generator=drawing) - 1)).round().int().tolist()
        gradient = _gradient(climbed, prepare, _moved(images, moves), targets)
        gradient = blur(_moved(gradient, [(-down, -right) for down, right in moves]))
        size = (
            gradient.flatten(1).norm(dim=1) / (gradient != 0).flatten(1).sum(1).clamp(min=1).sqrt()
        )  # of the pixels that it sees
        climb = gradient / size.clamp(min=1e-12)[:, None, None, None] - pull * (images - base)
        images = (images + RATE * (0.1 + 0.9 * left) * climb).clamp(0, 1)
    return images.numpy()


def _gradient(network: nn.Module, prepare: Normalise, images: Tensor, targets: Sequence[Target]) -> Tensor:
    """(N, C, H, W), of each image's own unit."""
    size, gradients = _layer_outputs.batch_size_for(images), []
    for start in range(0, len(images), size):
        part = images[start : start + size].to(prepare.factor.device).requires_grad_()
        found = _units.outputs(network, prepare(part * 255))
        asked = [
            found[target.layer][n, target.unit, target.place] for n, target in enumerate(targets[start : start + size])
        ]
        (gradient,) = torch.autograd.grad(torch.stack(asked).sum(), part)
        gradients.append(gradient.cpu())
    return torch.cat(gradients)


def _moved(images: Tensor, moves: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([image.roll((down, right), (1, 2)) for image, (down, right) in zip(images, moves, strict=True)])


def _blurring(sigmas: Sequence[float], channels: int) -> Callable[[Tensor], Tensor]:
    """A function that blurs each of N images (N, C, H, W) by a Gaussian of its own, rows and columns apart."""
    reach = math.ceil(2 * max(sigmas))
    x = torch.arange(-reach, reach + 1)
    kernels = torch.exp(
        -0.5 * (x / torch.tensor(sigmas, dtype=torch.float32).clamp(min=0.1)[:, None]) ** 2
    )  # 0.1: the identity
    weight = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (N*C, 1, 2*reach+1)

    def blur(images: Tensor) -> Tensor:
        stacked = images.flatten(0, 1)[None]  # each image in channels of its own
        stacked = F.conv2d(stacked, weight[:, :, None], padding=(0, reach), groups=len(weight))
        return F.conv2d(stacked, weight[:, :, :, None], padding=(reach, 0), groups=len(weight)).view(images.shape)

    return blur
