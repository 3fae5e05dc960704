"""Breast cancer: 569 tumours, malignant or benign, by 30 measures of nuclei (Street et al. 1993, UCI; from
scikit-learn). No download."""

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
# of each measure, over the nuclei in a picture: its mean, the error of that, and the mean of the three largest
COLUMNS = (
    *(f"mean {measure}" for measure in MEASURES),
    *(f"{measure} error" for measure in MEASURES),
    *(f"worst {measure}" for measure in MEASURES),
)


class Config(DatasetConfig):
    """Tumours, malignant or benign, by 30 measures of cell nuclei; 455 to train on, 114 to test."""

    packaged: ClassVar[bool] = True
    name: Literal["breast_cancer"] = "breast_cancer"


def load(config: Config, folder: Path) -> Source:
    """The tumours. The test part is the same for every seed. `folder` is not looked at."""
    return _sklearn.table("breast_cancer.csv", COLUMNS)
