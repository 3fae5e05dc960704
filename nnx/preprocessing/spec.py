"""What a dataset tells a model: the shape of one input, the classes, and the statistics that normalise it.

The checkpoint contains it, so that train, eval, predict and export prepare an input in the same way.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nnx.preprocessing import images
from nnx.preprocessing.columns import Columns
from nnx.preprocessing.image_columns import ImageColumns
from nnx.preprocessing.image_statistics import ImageStatistics

Fit = Literal["pad", "stretch"]
# keys that a checkpoint has only if they are set, so that older ones stay as they are
OPTIONAL = ("white", "max_pixels", "image_columns")


@dataclass(frozen=True)
class Spec:
    """One input is a (C, H, W) uint8 image, or a row of (F,) float32 features; K classes.

    `mean` and `std` are per channel, in units of [0, 1] for images, or per feature in the feature's own units. `fit` is
    set if the training images were files of any size: it says how they were resized, keeping the aspect ratio or not.
    `white` is set if they had more than 8 bits: it is the value that was scaled to 255. `max_pixels` is set if it was
    not the default (see `images`). `image_columns` is set if they were in a table.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit | None = None
    image_statistics: ImageStatistics | None = None  # images only: what the training images have in common
    columns: Columns | None = None  # tables only: how a row becomes features
    white: int | None = None
    max_pixels: int | None = None
    image_columns: ImageColumns | None = None

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """Number of values in one input: C*H*W or F."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and strings for the checkpoint's JSON, where the image statistics have the key "look".

        The keys of OPTIONAL are there only if they are set.
        """
        plain = {key: list(getattr(self, key)) for key in ("shape", "classes", "mean", "std")}
        look, columns = (part and part.to_dict() for part in (self.image_statistics, self.columns))
        optional = {key: value for key in OPTIONAL if (value := getattr(self, key)) is not None}
        if self.image_columns:
            optional["image_columns"] = self.image_columns.to_dict()
        return {**plain, "fit": self.fit, "look": look, "columns": columns, **optional}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Spec":
        """Inverse of `to_dict`. Older checkpoints lack "fit", "look" and "columns".

        Raises ValueError, KeyError or TypeError if `data` is not a valid spec.
        """
        plain = {key: tuple(data[key]) for key in ("shape", "classes", "mean", "std")}
        look, columns, image_columns = (data.get(key) for key in ("look", "columns", "image_columns"))
        spec = cls(
            **plain,
            fit=data.get("fit"),
            image_statistics=look and ImageStatistics.from_dict(look),
            columns=columns and Columns.from_dict(columns),
            white=data.get("white"),
            max_pixels=data.get("max_pixels"),
            image_columns=None if image_columns is None else ImageColumns.from_dict(image_columns),
        )
        valid = (
            len(spec.shape) in (1, 3)
            and all(type(n) is int and n > 0 for n in spec.shape)
            and all(type(name) is str for name in spec.classes)
            and len(spec.classes) > 1
            and len(spec.mean) == len(spec.std) == spec.shape[0]
            and all(type(n) in (int, float) and math.isfinite(n) for n in (*spec.mean, *spec.std))
            and min(spec.std) > 0
            and spec.fit in (None, *get_args(Fit))
            and (spec.image_statistics is None or spec.is_image)
            and all(
                value is None or (spec.is_image and type(value) is int and 1 <= value <= most)
                for value, most in ((spec.white, images.WHITE), (spec.max_pixels, images.HIGHEST_MAX_PIXELS))
            )
            and (spec.image_columns is None or (spec.is_image and _has_pixels(spec.image_columns, spec.size)))
            and (spec.columns is None or spec.shape == (spec.columns.features,))
        )
        if not valid:
            raise ValueError("not a spec")
        return spec


def _has_pixels(columns: ImageColumns, size: int) -> bool:
    """Whether the columns are those of image files, or of an image of `size` values."""
    return not columns.are_pixels or len(columns.names) == size
