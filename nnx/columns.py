"""The columns of a table, and how a row of it becomes the features that a network sees."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Columns:
    """Fitted on the training rows. Kept in the checkpoint."""

    names: tuple[str, ...]

    @property
    def features(self) -> int:
        """F, the numbers that a row becomes."""
        return len(self.names)

    def fitted(self, coded: NDArray[np.float64]) -> "Columns":
        """These columns with what is to be learned from (N, columns) training rows, coded by them."""
        raise NotImplementedError

    def apply(self, coded: NDArray[np.float64], by: "Columns") -> NDArray[np.float32]:
        """(N, columns) rows as `by` has coded them -> (N, F) features."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Columns":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        return cls(tuple(data["names"]))
