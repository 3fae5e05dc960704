"""What a dataset tells a model: the shape of one input, the classes, and the statistics that normalise it.

It travels in the checkpoint, so that train, eval, predict and export all prepare an input in the same way.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nnx.preprocessing.columns import Columns
from nnx.preprocessing.image_statistics import ImageStatistics

Fit = Literal["pad", "stretch"]


@dataclass(frozen=True)
class Spec:
    """One input is a (C, H, W) uint8 image, or a row of (F,) float32 features; K classes.

    `mean` and `std` are per channel, in units of [0, 1] for images, or per feature in the feature's own units.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit | None = (
        None  # where it was trained on image files of any size: how they got this one, keeping their aspect or not
    )
    look: ImageStatistics | None = None  # of images: what the training images have in common
    columns: Columns | None = None  # of a table: how its rows become features

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """Numbers in one input: C*H*W or F."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and text, for the checkpoint's JSON."""
        plain = {key: list(getattr(self, key)) for key in ("shape", "classes", "mean", "std")}
        look, columns = (part and part.to_dict() for part in (self.look, self.columns))
        return {**plain, "fit": self.fit, "look": look, "columns": columns}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Spec":
        """Inverse of `to_dict`, also of what lacks the later keys. Raises ValueError, KeyError or TypeError for
        anything else."""
        plain = {key: tuple(data[key]) for key in ("shape", "classes", "mean", "std")}
        look, columns = data.get("look"), data.get("columns")
        spec = cls(
            **plain,
            fit=data.get("fit"),
            look=look and ImageStatistics.from_dict(look),
            columns=columns and Columns.from_dict(columns),
        )
        right = (
            len(spec.shape) in (1, 3)
            and all(type(n) is int and n > 0 for n in spec.shape)
            and all(type(name) is str for name in spec.classes)
            and len(spec.classes) > 1
            and len(spec.mean) == len(spec.std) == spec.shape[0]
            and all(type(n) in (int, float) and math.isfinite(n) for n in (*spec.mean, *spec.std))
            and min(spec.std) > 0
            and spec.fit in (None, *get_args(Fit))
            and (spec.look is None or spec.is_image)
            and (spec.columns is None or spec.shape == (spec.columns.features,))
        )
        if not right:
            raise ValueError("not a spec")
        return spec
