"""Fashion-MNIST: 70,000 images of clothes, 28x28, in MNIST's format (Xiao, Rasul and Vollgraf 2017)."""

from pathlib import Path
from typing import Literal

from nnx.datasets import DatasetConfig, Source, _idx

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Config(DatasetConfig):
    """Clothes, 28x28: 60,000 for training, 10,000 for testing."""

    name: Literal["fashion_mnist"] = "fashion_mnist"


def load(config: Config, folder: Path) -> Source:
    """Fashion-MNIST from `folder`/FashionMNIST/raw."""
    return _idx.source("fashion_mnist", "FashionMNIST", folder, CLASSES)
