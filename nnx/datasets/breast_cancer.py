"""Breast cancer: 569 tumours, malignant or benign, by 30 measures of nuclei (Street et al. 1993). No download.

From UCI, as included in scikit-learn.
"""

from pathlib import Path
from typing import ClassVar, Literal

from nnx.datasets import DatasetConfig, Source, _sklearn

MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)
# Of each measure, over the nuclei in an image: its mean, the standard error, and the mean of the three largest
COLUMNS = (
    *(f"mean {measure}" for measure in MEASURES),
    *(f"{measure} error" for measure in MEASURES),
    *(f"worst {measure}" for measure in MEASURES),
)


class Config(DatasetConfig):
    """Tumours, malignant or benign, by 30 measures of cell nuclei; 455 for training, 114 for testing."""

    packaged: ClassVar[bool] = True
    name: Literal["breast_cancer"] = "breast_cancer"


def load(config: Config, folder: Path) -> Source:
    """The tumours. The test split is the same for every seed. `folder` is not used."""
    return _sklearn.load_table("breast_cancer.csv", COLUMNS)
