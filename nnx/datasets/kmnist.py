"""Kuzushiji-MNIST: 70,000 cursive hiragana, 28x28, in MNIST's format (Clanuwat et al. 2018)."""

from pathlib import Path
from typing import Literal

from nnx.datasets import DatasetConfig, Source, _idx

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


class Config(DatasetConfig):
    """Cursive hiragana, 28x28: 60,000 for training, 10,000 for testing."""

    name: Literal["kmnist"] = "kmnist"


def load(config: Config, folder: Path) -> Source:
    """Kuzushiji-MNIST from `folder`/KMNIST/raw."""
    return _idx.source("kmnist", "KMNIST", folder, CLASSES)
