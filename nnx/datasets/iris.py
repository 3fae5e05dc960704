"""Iris: 150 flowers of three species, by four measures of petals and sepals (Fisher 1936). No download.

As included in scikit-learn.
"""

from pathlib import Path
from typing import ClassVar, Literal

from nnx.datasets import DatasetConfig, Source, _sklearn

COLUMNS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")


class Config(DatasetConfig):
    """Flowers of three species, by four measures; 120 for training, 30 for testing."""

    packaged: ClassVar[bool] = True
    name: Literal["iris"] = "iris"


def load(config: Config, folder: Path) -> Source:
    """The flowers. The test split is the same for every seed. `folder` is not used."""
    return _sklearn.load_table("iris.csv", COLUMNS)
