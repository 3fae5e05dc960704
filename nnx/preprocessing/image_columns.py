"""The columns of a table that hold images: one of image files, or one per pixel. The checkpoint contains them."""

from dataclasses import asdict, dataclass
from typing import Any

from nnx.preprocessing.images import WHITE

MAX_COLUMNS = 10_000  # no table has more (see `tables`)
MAX_LENGTH = 200  # characters of a name


@dataclass(frozen=True)
class ImageColumns:
    """The column of image files, or the columns of the pixels, row by row, and the value in them that is white."""

    names: tuple[str, ...]
    white: int | None = None  # None: image files, which have their own

    @property
    def are_pixels(self) -> bool:
        """Whether each column is a pixel."""
        return self.white is not None

    @property
    def scale(self) -> float | None:
        """The factor that brings the values of pixels to 0 to 255; None for image files."""
        return 255 / self.white if self.white else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        return {**asdict(self), "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ImageColumns":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError if `data` is not valid."""
        names, white = data["names"], data["white"]
        valid = (
            data.keys() == {"names", "white"}
            and type(names) is list
            and 1 <= len(names) <= MAX_COLUMNS
            and all(type(name) is str and len(name) <= MAX_LENGTH for name in names)
            and len(set(names)) == len(names)
            and (len(names) == 1 if white is None else type(white) is int and 1 <= white <= WHITE)
        )
        if not valid:
            raise ValueError("not columns of images")
        return cls(tuple(names), white)
