"""The rows of a table from the features that `nnx.preprocessing.columns` has made of them, as exported networks take
them."""

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing.columns import UNSEEN, Columns, NumberColumn


def raw_rows(features: NDArray[np.float32], columns: Columns) -> NDArray[np.float64]:
    """(N, F) features of a table -> (N, columns) rows. Inverse of `Columns.apply`.

    A row holds a number, or the index of a category, UNSEEN for any other category; NaN for a missing value.
    """
    rows = np.empty((len(features), len(columns.columns)))
    start = 0
    for n, column in enumerate(columns.columns):
        end = start + len(column.feature_names)
        own = features[:, start:end].astype(np.float64)
        if isinstance(column, NumberColumn):
            rows[:, n] = own[:, 0] * column.std + column.mean
        elif column.categories:
            flags = own[:, : len(column.categories)]
            rows[:, n] = np.where(flags.any(1), flags.argmax(1), UNSEEN)
        else:
            rows[:, n] = UNSEEN
        if column.indicator:
            rows[own[:, -1] == 1, n] = np.nan
        start = end
    return rows
