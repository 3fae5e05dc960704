"""What the training images of a network have in common, so that others can be made to look like them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Look:
    """Measured from training images (`measured`). Kept in the checkpoint."""

    background: int  # gray level of the border, 0 to 255

    @classmethod
    def measured(cls, images: Any) -> "Look":
        """The look of (N, C, H, W) uint8 training images."""
        some = np.asarray(images[:: max(1, len(images) // 1000)])
        return cls(int(np.median(some[:, :, 0])))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Look":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        look = cls(data["background"])
        if type(look.background) is not int or not 0 <= look.background <= 255:
            raise ValueError("not a look")
        return look
