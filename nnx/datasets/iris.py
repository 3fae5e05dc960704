"""Iris: 150 flowers of three species, by four measures of their petals and sepals (Fisher 1936, as scikit-learn ships
it). No download."""

from pathlib import Path
from typing import ClassVar, Literal

from nnx.datasets import DatasetConfig, Source, _sklearn

COLUMNS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")


class Config(DatasetConfig):
    """Flowers of three species, by four measures; 120 to train on, 30 to test."""

    packaged: ClassVar[bool] = True
    name: Literal["iris"] = "iris"


def load(config: Config, folder: Path) -> Source:
    """The flowers. The test part is the same for every seed. `folder` is not looked at."""
    return _sklearn.table("iris.csv", COLUMNS)
