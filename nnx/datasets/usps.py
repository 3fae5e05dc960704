"""USPS: 9,298 handwritten digits from envelopes, 16x16 (Hull 1994)."""

from pathlib import Path
from typing import Literal

import numpy as np

from nnx.datasets import DatasetConfig, Source, Split, _torchvision
from nnx.datasets._ensure_files import ensure_files


class Config(DatasetConfig):
    """Digits from envelopes, 16x16: 7,291 for training, 2,007 for testing."""

    name: Literal["usps"] = "usps"


def load(config: Config, folder: Path) -> Source:
    """USPS from `folder`/usps."""
    folder = folder / "usps"
    ensure_files("usps", folder, ["usps.bz2", "usps.t.bz2"])

    def split(*, train: bool) -> Split:
        data = _torchvision.read("USPS", folder, train=train)
        return Split(data.data[:, None], np.array(data.targets, np.int64))  # (N, 1, H, W)

    return Source(
        split(train=True), lambda: split(train=False), tuple("0123456789"), test_files=(folder / "usps.t.bz2",)
    )
