"""Digits: 1,797 handwritten digits, 8x8, included in scikit-learn (Alpaydin and Kaynak 1998, UCI). No download.

They are the test set of the UCI data, by 13 writers who are not identified, so training and test split share writers.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from nnx.datasets import DatasetConfig, Source, Split, _sklearn, stratified_sample

TEST = 360  # a fifth


class Config(DatasetConfig):
    """Handwritten digits included in scikit-learn, 8x8."""

    packaged: ClassVar[bool] = True
    name: Literal["digits"] = "digits"


def load(config: Config, folder: Path) -> Source:
    """The digits, 0..16 scaled to 0..255. The test split is the same for every seed. `folder` is not used."""
    rows = np.loadtxt(_sklearn.data_file("digits.csv.gz"), delimiter=",", dtype=np.uint16)
    images = ((rows[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    samples = Split(images, rows[:, 64].astype(np.int64))
    test = stratified_sample(samples.labels, TEST, seed=0)
    train = np.delete(np.arange(len(samples)), test)
    return Source(samples.take(train), lambda: samples.take(test), tuple("0123456789"))
