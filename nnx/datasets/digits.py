"""Digits: the 1,797 handwritten digits, 8x8, that scikit-learn ships (Alpaydin and Kaynak 1998, UCI). No download.

They are the test set of the UCI data: 13 writers, none named, so its own test part here shares writers with the
training data.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from nnx.datasets import DatasetConfig, Source, Split, _sklearn, stratified

TEST = 360  # a fifth


class Config(DatasetConfig):
    """Handwritten digits of scikit-learn, 8x8."""

    packaged: ClassVar[bool] = True
    name: Literal["digits"] = "digits"


def load(config: Config, folder: Path) -> Source:
    """The digits, 0..16 scaled to 0..255. The test part is the same for every seed. `folder` is not looked at."""
    rows = np.loadtxt(_sklearn.packaged("digits.csv.gz"), delimiter=",", dtype=np.uint16)
    images = ((rows[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    everything = Split(images, rows[:, 64].astype(np.int64))
    test = stratified(everything.labels, TEST, seed=0)
    train = np.delete(np.arange(len(everything)), test)
    return Source(everything.take(train), lambda: everything.take(test), tuple("0123456789"))
