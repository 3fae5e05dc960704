"""CIFAR-10: 60,000 photographs in ten classes, 32x32 in colour (Krizhevsky 2009)."""

from pathlib import Path
from typing import Literal

from nnx.datasets import DatasetConfig, Source, _torchvision

TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


class Config(DatasetConfig):
    """Photographs, ten classes, 32x32 in colour: 50,000 for training, 10,000 for testing."""

    name: Literal["cifar10"] = "cifar10"


def load(config: Config, folder: Path) -> Source:
    """CIFAR-10 from `folder`/cifar-10-batches-py."""
    return _torchvision.cifar(
        "cifar10", "CIFAR10", folder, "cifar-10-batches-py", train=TRAIN, test="test_batch", meta="batches.meta"
    )
