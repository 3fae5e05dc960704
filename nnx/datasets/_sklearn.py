"""The small datasets that scikit-learn ships, read without importing it, which takes 2 s."""

import importlib.util
from pathlib import Path

import numpy as np

from nnx.datasets import Source, Split, _user_data
from nnx.preprocessing.columns import Columns, NumberColumn

TEST = 0.2  # of the rows


def packaged(file: str) -> Path:
    """The path of one of scikit-learn's data files."""
    sklearn = importlib.util.find_spec("sklearn")
    assert sklearn is not None
    assert sklearn.origin is not None
    return Path(sklearn.origin).parent / "datasets/data" / file


def table(file: str, names: tuple[str, ...]) -> Source:
    """The table in `file`: its first line names the classes, the others are rows of numbers, of the columns `names`,
    and the class.

    A fifth of the rows is the test part, the same for every seed.
    """
    path = packaged(file)
    with path.open(encoding="utf-8") as lines:
        _, _, *classes = next(lines).strip().split(",")
        rows = np.loadtxt(lines, delimiter=",")
    everything = Split(rows[:, :-1], rows[:, -1].astype(np.int64))
    return _user_data.cut(everything, TEST, tuple(classes), file, columns=Columns(tuple(map(NumberColumn, names))))
