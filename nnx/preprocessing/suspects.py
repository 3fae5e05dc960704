"""Columns of a table that identify rows or dates rather than describe them: a network may learn the order of the file.

find({"id": values}, texts={"day": series})  # {"follow the row order": ["id"], "contain dates": ["day"]}
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

MIN_ROWS = 20  # of fewer rows or values, distinct or ordered values say little
MAX_ROWS = 10_000  # rows, evenly spaced, whose order is compared
ORDERED = 0.99  # rank correlation with the row number from which a column follows it
MOSTLY = 0.9
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?)\.?"
)
_DAY = r"[0-9]{1,2}(st|nd|rd|th)?"
_NUMBERS = r"[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.]([0-9]{2}|[0-9]{4})"
_NAMED = rf"([a-z]{{2,9}}\.?,? )?({_DAY}[-/. ]+)?{_MONTH}[-/. ]*({_DAY},? )?[0-9]{{2,4}}"
_DATE = rf"(?i)^({_NUMBERS}|{_NAMED}|[12][0-9]{{3}}[-/](0?[1-9]|1[0-2]))([T ,].*)?$"
_TIME = r"(?i)^([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?( ?[ap]m)?$"
MIN_TIMES = 20  # different times of day that are worth a warning: fewer are categories, such as shifts
# Whole numbers that are all seconds or milliseconds since 1970 in 2000 to 2039
_EPOCH = (946_684_800, 2_208_988_800)

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
    """Whether nearly all values are dates, such as 2024-01-31, 31.1.2024, 1/31/24 or Jan 31, 2024, with or without a
    time."""
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
    if distinct >= MIN_ROWS and abs(_rank_correlation(sample)) >= ORDERED:
        return ORDER
    if whole and distinct == len(sample) and len(np.unique(known)) == len(known):
        return DISTINCT
    return None


def _are_dates(numbers: NDArray[np.float64]) -> bool:
    """Whether whole numbers are dates such as 20240131, or seconds or milliseconds since 1970."""
    year, rest = np.divmod(numbers, 10_000)
    month, day = np.divmod(rest, 100)
    valid = (year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    start, end = _EPOCH
    are_times = any(((numbers >= start * unit) & (numbers < end * unit)).all() for unit in (1, 1000))
    return bool((valid.all() or are_times) and len(np.unique(numbers)) > 1)


def _rank_correlation(values: NDArray[np.float64]) -> float:
    """Spearman's correlation of values, ranked with ties in row order, with the row number."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def _check_texts(series: "pl.Series") -> str | None:
    known = series.drop_nulls()
    if len(known) < MIN_ROWS:
        return None
    if are_dates(known) or (
        known.n_unique() > MIN_TIMES and int(known.str.contains(_TIME).sum()) >= MOSTLY * len(known)
    ):
        return DATES
    return DISTINCT if known.n_unique() > MOSTLY * len(known) else None
