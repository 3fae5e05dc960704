"""The columns of a table, and how a row of it becomes the features that a network sees.

    columns = infer(frame, "data.csv")  # which are numbers, which categories
    coded = columns.code(frame, "data.csv")  # (N, columns) float64
    fitted = columns.fitted(coded[training_rows])  # means, deviations, medians, the categories that are there
    fitted.apply(coded, columns)  # (N, F) float32

Numbers are standardised, categories one-hot. A missing number is the median of the training rows and says so in a
feature of its own; a missing category is a category. What was not in the training rows can't be known: an unseen
category has all of its features 0.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nnx.config.registry import suggest
from nnx.errors import DataError
from nnx.preprocessing import tables
from nnx.preprocessing.tables import number, place

if TYPE_CHECKING:
    import polars as pl

read = tables.read

MAX_COLUMNS = 10_000
MAX_CATEGORIES = 1000  # of one column
MAX_CATEGORIES_IN_ALL = 100_000
MAX_LENGTH = 200  # characters of a name
LARGEST = 1e100  # beyond it the sum of squares of a column may be infinite
MOSTLY = 0.9  # numbers among the values of a column, from which on the others are taken for mistakes
# deviations from the mean: in fewer than 10^12 training rows none is so far off, as |x - mean| <= sqrt(N) * std
CLIP = 1e6
UNSEEN = -1  # codes a category that the columns don't list


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers. What is learned from the training rows: mean and deviation once missing ones are filled in,
    and the filling."""

    name: str
    mean: float = 0.0
    std: float = 1.0  # 0 of a constant column, whose feature is always 0: no weight of it could be learned
    missing: float = 0.0  # the median, which stands in for a missing value
    indicator: bool = False  # whether some were missing: then a feature of its own is 1 where one is

    kind: ClassVar[str] = "number"

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name} is missing") if self.indicator else (self.name,)

    def code(self, series: "pl.Series", where: str) -> NDArray[np.float64]:
        """(N,) the numbers, NaN where missing. Raises DataError for what is none, or too large."""
        numbers = _as_numbers(series)
        if wrong := (numbers.is_null() & series.is_not_null()).arg_true().to_list():
            what = f"column {self.name!r} holds {_shown(series[wrong[0]])}, which is no number"
            raise DataError(f"{places(where, wrong)}: {what}; correct it, or leave it empty")
        values: NDArray[np.float64] = np.asarray(numbers.to_numpy(), np.float64)
        if len(large := np.flatnonzero(np.abs(values) > LARGEST)):
            what = (
                "an infinite number"
                if np.isinf(values[large[0]])
                else f"{values[large[0]]:g}, too large to compute with"
            )
            raise DataError(
                f"{places(where, large.tolist())}: column {self.name!r} holds {what}; correct it, or leave it empty"
            )
        return values

    def fitted(self, values: NDArray[np.float64]) -> "NumberColumn":
        """This column with what (N,) training values say of it."""
        absent = np.isnan(values)
        if absent.all():
            return replace(self, mean=0.0, std=0.0, missing=0.0, indicator=False)
        median = float(np.median(values[~absent]))
        filled = np.where(absent, median, values)
        constant = filled.min() == filled.max()  # where rounding may leave some deviation
        std = 0.0 if constant else float(filled.std())
        return replace(self, mean=float(filled.mean()), std=std, missing=median, indicator=bool(absent.any()))

    def recoded(self, values: NDArray[np.float64], by: "NumberColumn | CategoryColumn") -> NDArray[np.float64]:
        """Values that `by`, a column of the same name, has coded, as this one would. Raises DataError."""
        if isinstance(by, NumberColumn):
            return values
        numbers = []
        for text in by.categories:
            value = number(text)
            if value is None or abs(value) > LARGEST:
                raise DataError(
                    f"column {self.name!r} holds {_shown(text)}, but was numbers when the network was trained; correct it"
                )
            numbers.append(value)
        return _looked_up(numbers, values, unseen=math.nan)

    def fill(self, features: NDArray[np.float32], values: NDArray[np.float64]) -> None:
        """Write into (N, 1 or 2) features what (N,) values say: (value - mean) / std, and whether it was missing."""
        absent = np.isnan(values)
        offset = np.where(absent, self.missing, values) - self.mean
        with np.errstate(over="ignore"):
            features[:, 0] = np.clip(offset / self.std, -CLIP, CLIP) if self.std else 0
        features[:, 1:] = absent[:, None]


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories. What is learned from the training rows: those that are in them, and whether some were
    missing."""

    name: str
    categories: tuple[str, ...] = ()
    indicator: bool = False

    kind: ClassVar[str] = "category"

    @property
    def feature_names(self) -> tuple[str, ...]:
        names = tuple(f"{self.name} = {category}" for category in self.categories)
        return (*names, f"{self.name} is missing") if self.indicator else names

    def code(self, series: "pl.Series", where: str) -> NDArray[np.float64]:
        """(N,) indices into `categories`, NaN where missing, UNSEEN where it is not among them."""
        import polars as pl

        texts = as_text(series)
        known = texts.cast(pl.Enum(self.categories), strict=False).to_physical().cast(pl.Float64)
        codes: NDArray[np.float64] = np.where(texts.is_null().to_numpy(), np.nan, known.fill_null(UNSEEN).to_numpy())
        return codes

    def fitted(self, values: NDArray[np.float64]) -> "CategoryColumn":
        """This column with the categories that (N,) training values have."""
        found = np.unique(values[values >= 0]).astype(int)
        return replace(
            self, categories=tuple(self.categories[index] for index in found), indicator=bool(np.isnan(values).any())
        )

    def recoded(self, values: NDArray[np.float64], by: "NumberColumn | CategoryColumn") -> NDArray[np.float64]:
        """Values that `by`, a column of the same name, has coded, as this one would."""
        index = {category: float(place) for place, category in enumerate(self.categories)}
        if isinstance(by, NumberColumn):
            found, inverse = np.unique(values, return_inverse=True)
            codes = [
                math.nan if np.isnan(value) else index.get(_WHOLE.sub(r"\1", repr(float(value))), UNSEEN)
                for value in found
            ]
            return _looked_up(codes, inverse.astype(np.float64), unseen=UNSEEN)
        return _looked_up([index.get(category, UNSEEN) for category in by.categories], values, unseen=UNSEEN)

    def fill(self, features: NDArray[np.float32], values: NDArray[np.float64]) -> None:
        """Write into (N, categories [+ 1]) features what (N,) values say: one-hot, and whether it was missing."""
        features[:] = 0
        known = np.flatnonzero(values >= 0)
        features[known, values[known].astype(int)] = 1
        features[:, len(self.categories) :] = np.isnan(values)[:, None]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a network sees, in its order. Fitted on the training rows, they are kept in the
    checkpoint."""

    columns: tuple[NumberColumn | CategoryColumn, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each of the F features is."""
        return tuple(name for column in self.columns for name in column.feature_names)

    @property
    def units(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(F,) offsets and (F,) scales: features * scales + offsets are values as the table has them; what is one-hot
        stays so."""
        pairs = [
            (column.mean, column.std) if isinstance(column, NumberColumn) and place == 0 else (0.0, 1.0)
            for column in self.columns
            for place in range(len(column.feature_names))
        ]
        offsets, scales = np.array(pairs).T
        return offsets, scales

    @property
    def features(self) -> int:
        """F, the numbers that a row becomes."""
        return sum(len(column.feature_names) for column in self.columns)

    def code(self, frame: "pl.DataFrame", where: str) -> NDArray[np.float64]:
        """The rows of `frame`, of the table `where`, as (N, columns): numbers as they are, the index of a category, NaN
        where missing.

        Other columns don't matter. Raises DataError for one that is not there, and for text among numbers, with its
        line.
        """
        for column in self.columns:
            if column.name not in frame.columns:
                raise DataError(f"{where}: {is_missing(column.name, frame.columns)}")
        return np.stack([column.code(frame[column.name], where) for column in self.columns], axis=1)

    def remarks(self, coded: NDArray[np.float64], frame: "pl.DataFrame") -> list[str]:
        """What there is to say of (N, columns) rows that are coded out of `frame`: values that are missing, and
        categories that these columns don't list, of which a network sees nothing."""
        missing, unseen = [], []
        for column, values in zip(self.columns, coded.T, strict=True):
            if count := int(np.isnan(values).sum()):
                missing.append(f"{column.name} {count:,}")
            if isinstance(column, CategoryColumn) and len(rows := np.flatnonzero(values == UNSEEN)):
                unseen.append(
                    f"{column.name} {len(rows):,}, {_shown(as_text(frame[column.name])[int(rows[0])])} for instance"
                )
        said = [f"values are missing and filled in as in the training: {', '.join(missing)}"] if missing else []
        return said + (
            [f"values are none that the training data had, and count as none: {'; '.join(unseen)}"] if unseen else []
        )

    def fitted(self, coded: NDArray[np.float64]) -> "Columns":
        """These columns with what is to be learned from (N, columns) training rows, coded by them."""
        return Columns(tuple(column.fitted(values) for column, values in zip(self.columns, coded.T, strict=True)))

    def apply(self, coded: NDArray[np.float64], by: "Columns") -> NDArray[np.float32]:
        """(N, columns) rows as `by` has coded them -> (N, F) features.

        Columns and categories are matched by their names. Raises DataError where `by` lacks a column, or has text where
        numbers were.
        """
        theirs = {column.name: (column, values) for column, values in zip(by.columns, coded.T, strict=True)}
        features = np.empty((len(coded), self.features), np.float32)
        start = 0
        for column in self.columns:
            if column.name not in theirs:
                raise DataError(f"{is_missing(column.name, theirs)}. The network was trained with it")
            other, values = theirs[column.name]
            end = start + len(column.feature_names)
            column.fill(features[:, start:end], values if other == column else column.recoded(values, other))
            start = end
        return features

    def widened(self, frame: "pl.DataFrame") -> "Columns":
        """These columns, not fitted yet, with the categories that `frame` has besides, where it has the column."""
        widened = [
            replace(column, categories=natural_sort_key({*column.categories, *_categories(frame[column.name])}))
            if isinstance(column, CategoryColumn) and column.name in frame.columns
            else column
            for column in self.columns
        ]
        return Columns(tuple(widened))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        plain = [{"kind": column.kind, **asdict(column)} for column in self.columns]
        return {
            "columns": [
                {key: list(value) if isinstance(value, tuple) else value for key, value in each.items()}
                for each in plain
            ]
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Columns":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        listed = data["columns"]
        if data.keys() != {"columns"} or type(listed) is not list or not 1 <= len(listed) <= MAX_COLUMNS:
            raise ValueError("not columns")
        columns = cls(tuple(_from_dict(each) for each in listed))
        names = [column.name for column in columns.columns]
        categories = sum(len(column.categories) for column in columns.columns if isinstance(column, CategoryColumn))
        if len(set(names)) != len(names) or categories > MAX_CATEGORIES_IN_ALL or not columns.features:
            raise ValueError("not columns")
        return columns


def infer(frame: "pl.DataFrame", where: str, categorical: Sequence[str] = ()) -> Columns:
    """The columns of `frame`, of the table `where`: categories are those named in `categorical`, and those of text; the
    rest are numbers.

    Raises DataError for a column of neither kind, with its line where it can be told.
    """
    if frame.width > MAX_COLUMNS:
        raise DataError(
            f"{where}: has {frame.width:,} columns, at most {MAX_COLUMNS:,} can be used; put others under drop"
        )
    columns = Columns(tuple(_infer(frame[name], where, name in categorical) for name in frame.columns))
    count = sum(len(column.categories) for column in columns.columns if isinstance(column, CategoryColumn))
    if count > MAX_CATEGORIES_IN_ALL:
        raise DataError(
            f"{where}: has {count:,} categories in all, at most {MAX_CATEGORIES_IN_ALL:,} can be used; put columns under drop"
        )
    return columns


def as_text(series: "pl.Series") -> "pl.Series":
    """Values as names: 1.0 is 1, as a whole number is written with a fraction where others of its column are
    missing."""
    import polars as pl

    return series.cast(pl.String).str.replace(_WHOLE.pattern, "$1")


def natural_sort_key(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted as people do: numbers by their value, text with the numbers in it by theirs, "a2" before "a10"."""
    names = list(names)
    if all(number(name) is not None for name in names):
        return tuple(sorted(names, key=lambda name: (number(name), name)))
    return tuple(
        sorted(names, key=lambda name: ([(text, int(digits or 0)) for text, digits in _PIECES.findall(name)], name))
    )


def is_missing(name: str, columns: Iterable[str]) -> str:
    """What there is to say where `name` is not among `columns`."""
    columns = list(columns)
    if all(number(column) is not None for column in columns):
        return f"has no column {name!r}, only numbers for names; the first line has to name the columns"
    known = suggest(name, columns)
    return f"has no column {name!r}{known if known.endswith('?') or len(columns) <= 20 else f', among the {len(columns):,} that it has'}"


def places(where: str, rows: list[int]) -> str:
    """The place of the first of `rows`, and how many more there are: "data.csv:57 (and 3 more rows)"."""
    more = f" (and {len(rows) - 1:,} more row{'s' * (len(rows) > 2)})" if len(rows) > 1 else ""
    return f"{place(where, rows[0])}{more}"


_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_PIECES = re.compile(r"(\D*)([0-9]{1,18})?")


def _infer(series: "pl.Series", where: str, categorical: bool) -> NumberColumn | CategoryColumn:
    import polars as pl

    name = series.name
    if not name:
        raise DataError(
            f"{where}: a column has no name, as of an index that was written along; drop it with drop: [''], or give it one"
        )
    if len(name) > MAX_LENGTH:
        raise DataError(
            f"{where}: the column {_shown(name)} has a name of {len(name):,} characters; shorten it to at most {MAX_LENGTH}"
        )
    if not series.dtype.is_numeric() and series.dtype != pl.String:
        raise DataError(f"{where}: column {name!r} holds {series.dtype}, neither numbers nor text; put it under drop")
    known = len(series) - series.null_count()
    if not known:
        raise DataError(f"{where}: column {name!r} has no value in any row; put it under drop")
    if not categorical:
        count = len(_as_numbers(series).drop_nulls())
        if count == known:
            return NumberColumn(name)
        if count >= MOSTLY * known:
            wrong = (_as_numbers(series).is_null() & series.is_not_null()).arg_true().to_list()
            what = f"column {name!r} holds {_shown(series[wrong[0]])} but is otherwise numbers"
            raise DataError(
                f"{places(where, wrong)}: {what}; correct it, leave it empty, or name the column under categorical"
            )
    categories = _categories(series)
    if len(categories) > MAX_CATEGORIES or (len(categories) == known >= 20 and not categorical):
        what = f"column {name!r} has {len(categories):,} different values in {known:,} rows"
        raise DataError(f"{where}: {what}, so it names rows rather than describing them; put it under drop")
    if long := next((text for text in categories if len(text) > MAX_LENGTH), None):
        what = f"column {name!r} holds text of {len(long):,} characters, {_shown(long)}, which is no category"
        raise DataError(f"{where}: {what}; put it under drop")
    return CategoryColumn(name, categories)


def _categories(series: "pl.Series") -> tuple[str, ...]:
    return natural_sort_key(as_text(series).drop_nulls().unique().to_list())


def _as_numbers(series: "pl.Series") -> "pl.Series":
    """float64; null where it is missing or no number."""
    import polars as pl

    return series.cast(pl.Float64, strict=False)


def _looked_up(codes: Sequence[float], index: NDArray[np.float64], *, unseen: float) -> NDArray[np.float64]:
    """`codes` at each index, NaN where that is NaN, `unseen` where it is UNSEEN."""
    table = np.array([*codes, unseen, math.nan], np.float64)
    found: NDArray[np.float64] = table[np.where(np.isnan(index), -1, np.where(index == UNSEEN, -2, index)).astype(int)]
    return found


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _from_dict(data: dict[str, Any]) -> NumberColumn | CategoryColumn:
    """A column out of plain values, each of its right type and range. Raises ValueError, KeyError or TypeError."""
    kind, name, indicator = (data[key] for key in ("kind", "name", "indicator"))
    right = type(name) is str and 0 < len(name) <= MAX_LENGTH and type(indicator) is bool
    column: NumberColumn | CategoryColumn
    if kind == NumberColumn.kind:
        mean, std, missing = (data[key] for key in ("mean", "std", "missing"))
        right = (
            right
            and all(type(value) in (int, float) and abs(value) <= LARGEST for value in (mean, std, missing))
            and std >= 0
        )
        column = NumberColumn(name, mean, std, missing, indicator)
    else:
        texts = data["categories"]
        right = right and kind == CategoryColumn.kind and type(texts) is list and len(texts) <= MAX_CATEGORIES
        right = (
            right
            and all(type(text) is str and 0 < len(text) <= MAX_LENGTH for text in texts)
            and len(set(texts)) == len(texts)
        )
        column = CategoryColumn(name, tuple(texts), indicator)
    if not right or data.keys() != {"kind", *asdict(column)}:
        raise ValueError("not a column")
    return column
