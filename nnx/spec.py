"""What a dataset tells a model: the shape of one input, the classes, and the statistics that normalise it.

It travels in the checkpoint, so that train, eval, predict and export all prepare an input in the same way.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spec:
    """One input is a (C, H, W) uint8 image, or a row of (F,) float32 features; K classes.

    `mean` and `std` are per channel, in units of [0, 1] for images, or per feature in the feature's own units.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """Numbers in one input: C*H*W or F."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and text, for the checkpoint's JSON."""
        return {key: list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Spec":
        """Inverse of `to_dict`."""
        spec = cls(**{key: tuple(data[key]) for key in ("shape", "classes", "mean", "std")})
        right = (
            len(spec.shape) in (1, 3)
            and all(type(n) is int and n > 0 for n in spec.shape)
            and all(type(name) is str for name in spec.classes)
            and len(spec.classes) > 1
            and len(spec.mean) == len(spec.std) == spec.shape[0]
            and all(type(n) in (int, float) and math.isfinite(n) for n in (*spec.mean, *spec.std))
            and min(spec.std) > 0
        )
        if not right:
            raise ValueError("not a spec")
        return spec
