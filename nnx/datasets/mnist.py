"""MNIST: 70,000 handwritten digits, 28x28 (LeCun, Bottou, Bengio and Haffner 1998)."""

from pathlib import Path
from typing import Literal

from nnx.datasets import DatasetConfig, Source, _idx

PINNED = {
    "train-images-idx3-ubyte": _idx.Pin(47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": _idx.Pin(60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": _idx.Pin(7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": _idx.Pin(10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


class Config(DatasetConfig):
    """Handwritten digits, 28x28: 60,000 for training, 10,000 for testing."""

    name: Literal["mnist"] = "mnist"


def load(config: Config, folder: Path) -> Source:
    """MNIST from `folder`/MNIST/raw. Every read checks the content."""
    return _idx.source("mnist", "MNIST", folder, "0123456789", pinned=PINNED)
