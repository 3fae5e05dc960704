"""Optimised inputs: images made by gradient ascent that maximise the activation of a unit (Erhan et al. 2009; Olah et
al. 2017)."""

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
RATE = 0.06  # of the range of grey values: the first step's mean change of a pixel that matters; the last is a tenth
CONTRAST = 2.0  # of an optimised colour image, in standard deviations of the dataset's pixels
LEAK = 0.1


@dataclass(frozen=True)
class Target:
    """A unit of a layer, at one of its positions."""

    layer: str
    unit: int
    position: int
    shift: int  # pixels by which the image is shifted at most: the unit must respond at nearby positions, too
    blur: float  # pixels: standard deviation of the Gaussian that smooths each step
    pull: float  # to the mean image, as a share of a pixel's distance from it: keeps pixels there that hardly matter


def maximise(
    network: nn.Module,
    prepare: Normalise,
    mean: NDArray[np.float64],
    targets: Sequence[Target],
    seed: int,
    colours: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Images (N, C, H, W) in [0, 1], one for each target, starting from the mean image (C, H, W) with a little seeded
    noise.

    All are optimised at once, by normalised gradients, so that the images of all units change equally fast. Without
    regularisation the result is noise that resembles no image. So each step shifts the image by a few pixels, fewer
    with time, blurs the gradient (Olah et al. 2017), and pulls the image to the mean (L2, as in Yosinski et al. 2015).
    An inactive ReLU has a zero gradient: the optimised copy of the network has leaky ReLUs.

    `colours` (C, C) is the covariance of the channels over the pixels of the dataset, of values in [0, 1]. With it,
    each step is taken in decorrelated colours (Olah et al. 2017), and all images are pulled to the mean so strongly
    that their contrast stays near the dataset's. Without it, colour images become saturated at almost all pixels.
    """
    leaky = _units.replace_modules(network, lambda part: nn.LeakyReLU(LEAK) if isinstance(part, nn.ReLU) else None)
    generator = torch.Generator().manual_seed(seed)
    base = torch.from_numpy(mean).float()
    images = (base + 0.02 * torch.randn(len(targets), *base.shape, generator=generator)).clamp(0, 1)
    shifts = torch.tensor([target.shift for target in targets])[:, None]
    pull = torch.tensor([target.pull for target in targets])[:, None, None, None]
    blur = _make_blur([target.blur for target in targets], len(base))
    contrast = 1.0
    if colours is not None:
        variance = float(np.trace(colours)) / len(colours)
        contrast = CONTRAST * math.sqrt(variance)
        mix = torch.from_numpy(colours / max(variance, 1e-12)).float()
        pull = torch.ones_like(pull)
    for step in range(STEPS):
        remaining = 1 - step / STEPS
        offsets = (
            (shifts * remaining * (2 * torch.rand(len(targets), 2, generator=generator) - 1)).round().int().tolist()
        )
        gradient = _gradient(leaky, prepare, _shift(images, offsets), targets)
        sharp = _shift(gradient, [(-down, -right) for down, right in offsets])
        gradient = blur(sharp)
        if colours is not None:
            gradient = torch.einsum("cd,ndhw->nchw", mix, gradient)
        # in colour, the blur's halo does not count: a small receptive field would change too fast, into saturation
        visible = ((gradient if colours is None else sharp) != 0).flatten(1).sum(1).clamp(min=1)
        size = gradient.flatten(1).norm(dim=1) / visible.sqrt()  # root mean square over the visible pixels
        change = contrast * gradient / size.clamp(min=1e-12)[:, None, None, None] - pull * (images - base)
        images = (images + RATE * (0.1 + 0.9 * remaining) * change).clamp(0, 1)
    return images.numpy()


def _gradient(network: nn.Module, prepare: Normalise, images: Tensor, targets: Sequence[Target]) -> Tensor:
    """(N, C, H, W): the gradient of the activation of each image's target."""
    size = _layer_outputs.batch_size_for(images)
    gradients = []
    for start in range(0, len(images), size):
        batch = images[start : start + size].to(prepare.factor.device).requires_grad_()
        outputs = _units.differentiable_outputs(network, prepare(batch * 255))
        activations = [
            outputs[target.layer][n, target.unit, target.position]
            for n, target in enumerate(targets[start : start + size])
        ]
        (gradient,) = torch.autograd.grad(torch.stack(activations).sum(), batch)
        gradients.append(gradient.cpu())
    return torch.cat(gradients)


def _shift(images: Tensor, offsets: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack(
        [image.roll((down, right), (1, 2)) for image, (down, right) in zip(images, offsets, strict=True)]
    )


def _make_blur(sigmas: Sequence[float], channels: int) -> Callable[[Tensor], Tensor]:
    """A function that blurs each of N images (N, C, H, W) by its own Gaussian, first the columns, then the rows."""
    radius = math.ceil(2 * max(sigmas))
    x = torch.arange(-radius, radius + 1)
    widths = torch.tensor(sigmas, dtype=torch.float32).clamp(min=0.1)[:, None]  # 0.1 is the identity
    kernels = torch.exp(-0.5 * (x / widths) ** 2)
    weight = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (N*C, 1, 2*radius+1)

    def blur(images: Tensor) -> Tensor:
        stacked = images.flatten(0, 1)[None]  # each image in its own channels
        stacked = F.conv2d(stacked, weight[:, :, None], padding=(0, radius), groups=len(weight))
        return F.conv2d(stacked, weight[:, :, :, None], padding=(radius, 0), groups=len(weight)).view(images.shape)

    return blur
