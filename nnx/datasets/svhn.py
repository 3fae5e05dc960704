"""SVHN: 99,289 digits of house numbers in street views, one per image, 32x32 in colour (Netzer et al. 2011)."""

from pathlib import Path
from typing import Literal

import numpy as np

from nnx.datasets import DatasetConfig, Source, Split, _torchvision
from nnx.datasets._ensure_files import ensure_files


class Config(DatasetConfig):
    """House numbers, 32x32 in colour: 73,257 for training, 26,032 for testing."""

    name: Literal["svhn"] = "svhn"


def load(config: Config, folder: Path) -> Source:
    """SVHN from `folder`/svhn, without its extra training data."""
    folder = folder / "svhn"
    ensure_files("svhn", folder, ["train_32x32.mat", "test_32x32.mat"])

    def split(name: str) -> Split:
        data = _torchvision.read("SVHN", folder, split=name)
        return Split(np.ascontiguousarray(data.data), data.labels)  # (N, 3, H, W)

    test_files = (folder / "test_32x32.mat",)
    return Source(split("train"), lambda: split("test"), tuple("0123456789"), test_files=test_files)
