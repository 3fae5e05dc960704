"""Columns of a table that identify rows or dates rather than describe them: a network may learn the order of the file.

find({"id": values}, texts={"day": series})  # {"follow the row order": ["id"], "contain dates": ["day"]}
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

MIN_ROWS = 20  # of fewer rows, distinct or ordered values say little
MAX_ROWS = 10_000  # rows, evenly spaced, whose order is compared
ORDERED = 0.99  # rank correlation with the row number from which a column follows it
MOSTLY = 0.9
_DATE = r"^([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.]([0-9]{2}|[0-9]{4}))([T ,].*)?$"

DATES = "contain dates"
ORDER = "follow the row order"
DISTINCT = "have another value in every row"


def find(numbers: Mapping[str, NDArray[np.float64]], texts: Mapping[str, "pl.Series"]) -> dict[str, list[str]]:
    """What is suspicious -> the names of the columns, of (N,) numbers with NaN for missing ones and of categories."""
    suspects: dict[str, list[str]] = {}
    for name, values in numbers.items():
        if problem := _check_numbers(values):
            suspects.setdefault(problem, []).append(name)
    for name, series in texts.items():
        if problem := _check_texts(series):
            suspects.setdefault(problem, []).append(name)
    return suspects


def are_dates(texts: "pl.Series") -> bool:
    """Whether nearly all values are dates, such as 2024-01-31, 31.1.2024 or 1/31/24, with or without a time."""
    values = texts.drop_nulls()
    return len(values) > 0 and int(values.str.contains(_DATE).sum()) >= MOSTLY * len(values)


def _check_numbers(values: NDArray[np.float64]) -> str | None:
    known = values[~np.isnan(values)]
    if len(known) < MIN_ROWS:
        return None
    whole = bool((known == np.rint(known)).all())
    if whole and _are_dates(known):
        return DATES
    sample = known[:: -(-len(known) // MAX_ROWS)]
    distinct = len(np.unique(sample))
    if distinct > len(sample) / 2 and abs(_rank_correlation(sample)) >= ORDERED:
        return ORDER
    if whole and distinct == len(sample) and len(np.unique(known)) == len(known):
        return DISTINCT
    return None


def _are_dates(numbers: NDArray[np.float64]) -> bool:
    """Whether whole numbers are dates such as 20240131."""
    year, rest = np.divmod(numbers, 10_000)
    month, day = np.divmod(rest, 100)
    valid = (year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return bool(valid.all() and len(np.unique(numbers)) > 1)


def _rank_correlation(values: NDArray[np.float64]) -> float:
    """Spearman's correlation of values, ranked with ties in row order, with the row number."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def _check_texts(series: "pl.Series") -> str | None:
    known = series.drop_nulls()
    if len(known) < MIN_ROWS:
        return None
    if are_dates(known):
        return DATES
    return DISTINCT if known.n_unique() > MOSTLY * len(known) else None
