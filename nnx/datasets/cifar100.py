"""CIFAR-100: 60,000 photographs in a hundred classes, 32x32 in colour (Krizhevsky 2009)."""

from pathlib import Path
from typing import Literal

from nnx.datasets import DatasetConfig, Source, _torchvision


class Config(DatasetConfig):
    """Photographs, a hundred classes, 32x32 in colour: 50,000 for training, 10,000 for testing."""

    name: Literal["cifar100"] = "cifar100"


def load(config: Config, folder: Path) -> Source:
    """CIFAR-100, with its fine labels, from `folder`/cifar-100-python."""
    return _torchvision.cifar(
        "cifar100", "CIFAR100", folder, "cifar-100-python", train=["train"], test="test", meta="meta"
    )
