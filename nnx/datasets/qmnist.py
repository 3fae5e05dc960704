"""QMNIST: MNIST rebuilt from its NIST originals, with all 60,000 test digits (Yadav and Bottou 2019)."""

from pathlib import Path
from typing import Literal

from nnx.datasets import DatasetConfig, Source, _idx

FILES = (
    ("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
    ("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
)


class Config(DatasetConfig):
    """Handwritten digits, 28x28: 60,000 for training, 60,000 for testing."""

    name: Literal["qmnist"] = "qmnist"


def load(config: Config, folder: Path) -> Source:
    """QMNIST from `folder`/QMNIST/raw. Only the class is used of the eight label columns (class, writer, form, ...)."""
    return _idx.source("qmnist", "QMNIST", folder, "0123456789", files=FILES)
