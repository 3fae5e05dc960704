"""Wine: 178 wines of three growers, by 13 chemical measures (Forina et al. 1988, UCI). No download.

As included in scikit-learn.
"""

from pathlib import Path
from typing import ClassVar, Literal

from nnx.datasets import DatasetConfig, Source, _sklearn

COLUMNS = (
    "alcohol",
    "malic_acid",
    "ash",
    "alcalinity_of_ash",
    "magnesium",
    "total_phenols",
    "flavanoids",
    "nonflavanoid_phenols",
    "proanthocyanins",
    "color_intensity",
    "hue",
    "od280/od315_of_diluted_wines",
    "proline",
)


class Config(DatasetConfig):
    """Wines of three growers, by 13 chemical measures; 142 for training, 36 for testing."""

    packaged: ClassVar[bool] = True
    name: Literal["wine"] = "wine"


def load(config: Config, folder: Path) -> Source:
    """The wines. The test split is the same for every seed. `folder` is not used."""
    return _sklearn.load_table("wine_data.csv", COLUMNS)
