"""The small datasets inside scikit-learn, read without importing it, which takes 2 s."""

import importlib.util
from pathlib import Path

import numpy as np

from nnx.datasets import Source, Split
from nnx.datasets._user_data import split_off_test
from nnx.preprocessing.columns import Columns, NumberColumn

TEST = 0.2  # of the rows


def data_file(name: str) -> Path:
    """The path of one of scikit-learn's data files."""
    sklearn = importlib.util.find_spec("sklearn")
    assert sklearn is not None
    assert sklearn.origin is not None
    return Path(sklearn.origin).parent / "datasets/data" / name


def load_table(file: str, names: tuple[str, ...]) -> Source:
    """The table in `file`: its first line ends with the class names, the others are numbers and the class.

    `names` are those of the columns of numbers. A fifth of the rows is the test split, the same for every seed.
    """
    path = data_file(file)
    with path.open(encoding="utf-8") as lines:
        _, _, *classes = next(lines).strip().split(",")
        rows = np.loadtxt(lines, delimiter=",")
    samples = Split(rows[:, :-1], rows[:, -1].astype(np.int64))
    return split_off_test(samples, TEST, tuple(classes), file, columns=Columns(tuple(map(NumberColumn, names))))
