"""Columns of a table that identify rows or dates rather than describe them: a network may learn the order of the file.

find({"id": values}, texts={"day": series})  # {"follow the row order": ["id"], "contain dates": ["day"]}
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

MIN_ROWS = 20  # of fewer rows or values, distinct or ordered values say little
MAX_ROWS = 10_000  # rows, evenly spaced, whose order is compared
ORDERED = 0.99  # rank correlation with the row number from which a column follows it
MIN_LEVELS = 10  # different values that are worth a comparison with the row order
MOSTLY = 0.9
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?)\.?"
)
_DAY = r"[0-9]{1,2}(st|nd|rd|th)?"
_NUMBERS = r"[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.]([0-9]{2}|[0-9]{4})"
_NAMED = rf"([a-z]{{2,9}}\.?,? )?({_DAY}[-/. ]+)?{_MONTH}[-/. ]*({_DAY},? )?[0-9]{{2,4}}"
_OTHER_NAMED = r"(\p{L}+\.?,? )?[0-9]{1,2}\.? (de )?\p{L}{3,10}\.?,? (de )?[12][0-9]{3}"  # 3. Mai 2024
_PARTS = (
    r"[12][0-9]{3}[-/](0?[1-9]|1[0-2])|(0?[1-9]|1[0-2])[-/.][12][0-9]{3}|[12][0-9]{3}-?W[0-5][0-9](-?[1-7])?"
    r"|[12][0-9]{3}[-/ ]?Q[1-4]|Q[1-4][-/ ]?[12][0-9]{3}|(0?[1-9]|[12][0-9]|3[01])\.(0?[1-9]|1[0-2])\."
)
_DATE = rf"(?i)^({_NUMBERS}|{_NAMED}|{_OTHER_NAMED}|{_PARTS})([T ,].*)?$"
_TIME = r"(?i)^([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?( ?[ap]m)?$"
MIN_TIMES = 20  # different times of day that are worth a warning: fewer are categories, such as shifts
_EPOCH = (946_684_800, 2_208_988_800)  # seconds since 1970 of the years 2000 to 2039
# Days since an epoch of the years 1970 to 2099: of spreadsheets, Julian, MATLAB. Other numbers may lie there, too.
_DAYS = ((25_569, 73_051), (2_440_587.5, 2_488_069.5), (719_529, 767_011))
_NAMES_DATES = re.compile(r"date|datum|fecha|time|zeit|(^|[\W_])(day|tag|dt|ts|at)s?($|[\W_])", re.IGNORECASE)
_YEARS = (1900, 2100)

DATES = "contain dates"
YEARS = "are years"
ORDER = "follow the row order"
DISTINCT = "have another value in every row"


def find(numbers: Mapping[str, NDArray[np.float64]], texts: Mapping[str, "pl.Series"]) -> dict[str, list[str]]:
    """What is suspicious -> the names of the columns, of (N,) numbers with NaN for missing ones and of categories."""
    suspects: dict[str, list[str]] = {}
    for name, values in numbers.items():
        if problem := _check_numbers(name, values):
            suspects.setdefault(problem, []).append(name)
    for name, series in texts.items():
        if problem := _check_texts(series):
            suspects.setdefault(problem, []).append(name)
    return suspects


def are_dates(texts: "pl.Series") -> bool:
    """Whether nearly all values are dates, such as 2024-01-31, 31.1.2024, 1/31/24, Jan 31, 2024, or weeks, months or
    quarters, such as 2024-W05, 2024-01, 2024 Q1, with or without a time."""
    values = texts.drop_nulls()
    return len(values) > 0 and int(values.str.contains(_DATE).sum()) >= MOSTLY * len(values)


def _check_numbers(name: str, values: NDArray[np.float64]) -> str | None:
    known = values[~np.isnan(values)]
    if len(known) < MIN_ROWS:
        return None
    whole = bool((known == np.rint(known)).all())
    if known.min() < known.max() and (_are_times(known, name) or (whole and _are_dates(known))):
        return DATES
    start, end = _YEARS
    if whole and known.min() >= start and known.max() <= end and len(np.unique(known)) > 2:
        return YEARS
    sample = known[:: -(-len(known) // MAX_ROWS)]
    distinct = len(np.unique(sample))
    if distinct >= MIN_LEVELS and abs(_rank_correlation(sample)) >= ORDERED:
        return ORDER
    if not whole or distinct <= MOSTLY * len(sample):
        return None
    different = len(np.unique(known))
    is_dense = known.max() - known.min() < 2 * len(known)  # as many draws would often give a number twice
    return DISTINCT if different == len(known) or (is_dense and different > MOSTLY * len(known)) else None


def _are_times(numbers: NDArray[np.float64], name: str) -> bool:
    """Whether numbers are seconds, or parts of them, since 1970; or days, if the column has the `name` of such."""
    low, high = numbers.min(), numbers.max()
    start, end = _EPOCH
    if any(start * unit <= low and high < end * unit for unit in (1, 10**3, 10**6, 10**9)):
        return True
    return bool(_NAMES_DATES.search(name)) and any(start <= low and high < end for start, end in _DAYS)


def _are_dates(numbers: NDArray[np.float64]) -> bool:
    """Whether whole numbers are dates such as 20240131, 31012024, 240131 or, with a time, 202401311230."""
    low, high = _YEARS

    def valid(year: NDArray[Any], month: NDArray[Any], day: NDArray[Any], first: int, last: int) -> bool:
        in_month = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        return bool((in_month & (year >= first) & (year <= last)).all())

    for time in (1, 10**4, 10**6):
        year, rest = np.divmod(numbers // time, 10_000)
        if valid(year, *np.divmod(rest, 100), low, high):
            return True
    day_month, year = np.divmod(numbers, 10_000)
    day, month = np.divmod(day_month, 100)
    two_digits, rest = np.divmod(numbers, 10_000)
    return valid(year, month, day, low, high) or (
        numbers.max() >= 10**5
        and len(np.unique(numbers)) >= MIN_ROWS
        and valid(two_digits, *np.divmod(rest, 100), 0, 99)
    )


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
