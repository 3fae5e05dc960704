"""The columns of a table, and how each row of it becomes the features that a network sees.

    columns = infer(frame, "data.csv")  # which columns are numbers, which are categories
    encoded = columns.encode(frame, "data.csv")  # (N, columns) float64
    fitted = columns.fit(encoded[training_rows])  # means, standard deviations, medians, the categories that occur
    features = fitted.apply(encoded, columns)  # (N, F) float32

Numbers are standardised, categories are one-hot encoded. A missing number is replaced by the median of the training
rows, and an extra feature marks it; a missing category is a category of its own. A category that does not occur in the
training rows is encoded as all zeros.
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
from nnx.preprocessing.images import EXTENSIONS
from nnx.preprocessing.notations import MIXED, MOSTLY, Doubt, Notation, detect, parse
from nnx.preprocessing.suspects import are_dates
from nnx.preprocessing.tables import WHOLE, locate_row, parse_number, replace_missing

if TYPE_CHECKING:
    import polars as pl

MAX_COLUMNS = 10_000
MAX_CATEGORIES = 1000  # of one column
MAX_CATEGORIES_IN_ALL = 100_000
MAX_LENGTH = 200  # characters of a name
MAX_WORDS = 100  # further words for missing values
LARGEST = 1e100  # the sum of squares of a column of larger numbers may be infinite
# Features are clipped to this many standard deviations from the mean. In fewer than 10^12 training rows no value is
# that far from it, as |x - mean| <= sqrt(N) * std.
CLIP = 1e6
MIN_GROUPED = 20  # different values such as 1.234 that are worth a warning: of decimals, some would have fewer digits
UNSEEN = -1  # encodes a category that the column does not list


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers.

    Fitting learns the median, which replaces missing values, and then the mean and the standard deviation. `notation`
    is how the training data writes the numbers, if not as 1234.5.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0  # 0 for a constant column: its feature is always 0, as no weight could be learned for it
    missing: float = 0.0  # replaces a missing value: the median
    indicator: bool = False  # whether training values were missing: if so, a second feature is 1 for a missing value
    notation: Notation | None = None

    kind: ClassVar[str] = "number"

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name} is missing") if self.indicator else (self.name,)

    def round(self, values: Any) -> Any:
        """Values computed from float32 features, to the digits that these have, so that 0 is not 6e-08."""
        size = self.std or abs(self.mean) or 1.0
        return np.round(values, 5 - math.floor(math.log10(size)))

    def encode(self, series: "pl.Series", where: str) -> NDArray[np.float64]:
        """(N,) the numbers, NaN for missing ones. Raises DataError for text and for numbers that are too large."""
        numbers = _as_numbers(series, self.notation)
        if wrong := (numbers.is_null() & series.is_not_null()).arg_true().to_list():
            problem = f"column {self.name!r} contains {_quote(series[wrong[0]])}, which is not a number"
            problem += f" in its notation ({self.notation})" if self.notation else ""
            raise DataError(f"{locate_first_row(where, wrong)}: {problem}; correct it, or leave it empty")
        values: NDArray[np.float64] = np.asarray(numbers.to_numpy(), np.float64)
        if len(large := np.flatnonzero(np.abs(values) > LARGEST)):
            first = values[large[0]]
            number = "an infinite number" if np.isinf(first) else f"{first:g}, which is too large to compute with"
            location = locate_first_row(where, large.tolist())
            raise DataError(f"{location}: column {self.name!r} contains {number}; correct it, or leave it empty")
        return values

    def fit(self, values: NDArray[np.float64]) -> "NumberColumn":
        """This column, fitted on (N,) training values."""
        absent = np.isnan(values)
        if absent.all():
            return replace(self, mean=0.0, std=0.0, missing=0.0, indicator=False)
        median = float(np.median(values[~absent]))
        filled = np.where(absent, median, values)
        constant = filled.min() == filled.max()  # rounding may give equal values a standard deviation above 0
        std = 0.0 if constant else float(filled.std())
        return replace(self, mean=float(filled.mean()), std=std, missing=median, indicator=bool(absent.any()))

    def recode(self, values: NDArray[np.float64], source: "NumberColumn | CategoryColumn") -> NDArray[np.float64]:
        """Values that `source`, a column of the same name, encoded -> as this column encodes them. Raises DataError."""
        if isinstance(source, NumberColumn):
            unit = source.notation.unit if source.notation else ""
            own_unit = self.notation.unit if self.notation else ""
            if unit not in ("", own_unit):
                training = f"in {own_unit!r}" if own_unit else "without a unit"
                problem = f"column {self.name!r} is in {unit!r}, but was {training} in the training data"
                raise DataError(f"{problem}; convert it")
            return values
        numbers = []
        for text in source.categories:
            value = _parse_text(text, self.notation)
            if value is None or abs(value) > LARGEST:
                problem = f"column {self.name!r} contains {_quote(text)}, but contained numbers in the training data"
                raise DataError(f"{problem}; correct it")
            numbers.append(value)
        return _look_up(numbers, values, unseen=math.nan)

    def write_features(self, features: NDArray[np.float32], values: NDArray[np.float64]) -> None:
        """Write (value - mean) / std of (N,) values, and whether each is missing, into (N, 1 or 2) `features`."""
        absent = np.isnan(values)
        offset = np.where(absent, self.missing, values) - self.mean
        with np.errstate(over="ignore"):
            features[:, 0] = np.clip(offset / self.std, -CLIP, CLIP) if self.std else 0
        features[:, 1:] = absent[:, None]


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories. Fitting learns which of them occur in the training rows, and whether some are missing."""

    name: str
    categories: tuple[str, ...] = ()
    indicator: bool = False  # whether training values were missing: if so, the last feature is 1 for a missing value

    kind: ClassVar[str] = "category"

    @property
    def feature_names(self) -> tuple[str, ...]:
        names = tuple(f"{self.name} = {category}" for category in self.categories)
        return (*names, f"{self.name} is missing") if self.indicator else names

    def encode(self, series: "pl.Series", where: str) -> NDArray[np.float64]:
        """(N,) indices into `categories`, NaN for missing values, UNSEEN for categories that it does not contain."""
        import polars as pl

        texts = category_names(series)
        known = texts.cast(pl.Enum(self.categories), strict=False).to_physical().cast(pl.Float64)
        codes: NDArray[np.float64] = np.where(texts.is_null().to_numpy(), np.nan, known.fill_null(UNSEEN).to_numpy())
        return codes

    def fit(self, values: NDArray[np.float64]) -> "CategoryColumn":
        """This column with the categories that occur in (N,) training values."""
        indices = np.unique(values[values >= 0]).astype(int)
        categories = tuple(self.categories[index] for index in indices)
        return replace(self, categories=categories, indicator=bool(np.isnan(values).any()))

    def recode(self, values: NDArray[np.float64], source: "NumberColumn | CategoryColumn") -> NDArray[np.float64]:
        """Values that `source`, a column of the same name, encoded -> as this column encodes them."""
        index = {category: float(n) for n, category in enumerate(self.categories)}
        if isinstance(source, NumberColumn):
            if source.notation:  # the training data did not show the notation, or an older nnx did not know it
                parsed = [(category, _parse_text(category, source.notation)) for category in self.categories]
                index |= {repr(value): index[category] for category, value in parsed if value is not None}
                index |= {WHOLE.sub(r"\1", name): n for name, n in index.items()}
            numbers, inverse = np.unique(values, return_inverse=True)
            codes = [
                math.nan if np.isnan(number) else index.get(WHOLE.sub(r"\1", repr(float(number))), UNSEEN)
                for number in numbers
            ]
            return _look_up(codes, inverse.astype(np.float64), unseen=UNSEEN)
        return _look_up([index.get(category, UNSEEN) for category in source.categories], values, unseen=UNSEEN)

    def write_features(self, features: NDArray[np.float32], values: NDArray[np.float64]) -> None:
        """Write (N,) values, one-hot encoded, and whether each is missing, into (N, categories [+ 1]) `features`."""
        features[:] = 0
        known = np.flatnonzero(values >= 0)
        features[known, values[known].astype(int)] = 1
        features[:, len(self.categories) :] = np.isnan(values)[:, None]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a network sees, in its order. The checkpoint contains the fitted columns.

    `missing` are further words for missing values, besides those that `tables.read` knows.
    """

    columns: tuple[NumberColumn | CategoryColumn, ...]
    missing: tuple[str, ...] = ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The name of each of the F features."""
        return tuple(name for column in self.columns for name in column.feature_names)

    @property
    def notated(self) -> list[str]:
        """The columns of numbers that are not written as 1234.5: `tables.read` must not change their text."""
        return [column.name for column in self.columns if isinstance(column, NumberColumn) and column.notation]

    @property
    def units(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(F,) offsets and (F,) scales: features * scales + offsets are the values in the table's units. One-hot
        features do not change."""
        pairs = [
            (column.mean, column.std) if isinstance(column, NumberColumn) and n == 0 else (0.0, 1.0)
            for column in self.columns
            for n in range(len(column.feature_names))
        ]
        offsets, scales = np.array(pairs).T
        return offsets, scales

    @property
    def features(self) -> int:
        """F, the number of features of a row."""
        return sum(len(column.feature_names) for column in self.columns)

    def encode(self, frame: "pl.DataFrame", where: str) -> NDArray[np.float64]:
        """The rows of `frame`, read from the table `where` -> (N, columns): numbers unchanged, categories as indices,
        NaN for missing values.

        Ignores other columns of `frame`. Raises DataError for a missing column, and for text in a column of numbers,
        with its line.
        """
        for column in self.columns:
            if column.name not in frame.columns:
                raise DataError(f"{where}: {missing_column_message(column.name, frame.columns)}")
        frame = replace_missing(frame.select(column.name for column in self.columns), self.missing)
        return np.stack([column.encode(frame[column.name], where) for column in self.columns], axis=1)

    def describe_missing_and_unseen(self, encoded: NDArray[np.float64], frame: "pl.DataFrame") -> list[str]:
        """Notes on the values in (N, columns) `encoded` rows of `frame` that the network does not see: missing ones,
        and categories that these columns do not list."""
        missing = []
        unseen = []
        for column, values in zip(self.columns, encoded.T, strict=True):
            if count := int(np.isnan(values).sum()):
                missing.append(f"{column.name} {count:,}")
            if isinstance(column, CategoryColumn) and len(rows := np.flatnonzero(values == UNSEEN)):
                example = _quote(category_names(frame[column.name])[int(rows[0])])
                unseen.append(f"{column.name} {len(rows):,}, for example {example}")
        notes = [f"missing values are filled in as in training: {', '.join(missing)}"] if missing else []
        if unseen:
            notes.append(f"categories that the training data does not contain are ignored: {'; '.join(unseen)}")
        return notes

    def fit(self, encoded: NDArray[np.float64]) -> "Columns":
        """These columns, fitted on (N, columns) training rows that they encoded."""
        fitted = tuple(column.fit(values) for column, values in zip(self.columns, encoded.T, strict=True))
        return replace(self, columns=fitted)

    def apply(self, encoded: NDArray[np.float64], source: "Columns") -> NDArray[np.float32]:
        """(N, columns) rows that the columns `source` encoded -> (N, F) features.

        Matches columns and categories by name. Raises DataError if `source` lacks a column, or has text where this has
        numbers.
        """
        sources = {column.name: (column, values) for column, values in zip(source.columns, encoded.T, strict=True)}
        features = np.empty((len(encoded), self.features), np.float32)
        start = 0
        for column in self.columns:
            if column.name not in sources:
                raise DataError(f"{missing_column_message(column.name, sources)}. The network was trained with it")
            other, values = sources[column.name]
            end = start + len(column.feature_names)
            recoded = values if other == column else column.recode(values, other)
            column.write_features(features[:, start:end], recoded)
            start = end
        return features

    def with_categories_of(self, frame: "pl.DataFrame") -> "Columns":
        """These columns, not fitted yet, with the additional categories of `frame`, if it contains the column."""
        frame = replace_missing(frame, self.missing)
        columns = [
            replace(column, categories=sort_naturally({*column.categories, *_categories(frame[column.name])}))
            if isinstance(column, CategoryColumn) and column.name in frame.columns
            else column
            for column in self.columns
        ]
        return replace(self, columns=tuple(columns))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON. Keys that older versions do not know are left out where unused."""
        dicts = [{"kind": column.kind, **asdict(column)} for column in self.columns]
        dicts = [{key: value for key, value in column.items() if value is not None} for column in dicts]
        return {
            "columns": [
                {key: list(value) if isinstance(value, tuple) else value for key, value in column.items()}
                for column in dicts
            ],
            **({"missing": list(self.missing)} if self.missing else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Columns":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError if `data` is not valid."""
        dicts = data["columns"]
        words = data.get("missing", [])
        valid = data.keys() <= {"columns", "missing"} and type(dicts) is list and 1 <= len(dicts) <= MAX_COLUMNS
        valid = valid and type(words) is list and len(words) <= MAX_WORDS
        if not valid or not all(type(word) is str and len(word) <= MAX_LENGTH for word in words):
            raise ValueError("not columns")
        columns = cls(tuple(_column_from_dict(column) for column in dicts), tuple(words))
        names = [column.name for column in columns.columns]
        categories = sum(len(column.categories) for column in columns.columns if isinstance(column, CategoryColumn))
        if len(set(names)) != len(names) or categories > MAX_CATEGORIES_IN_ALL or not columns.features:
            raise ValueError("not columns")
        return columns


def infer(frame: "pl.DataFrame", where: str, categorical: Sequence[str] = (), missing: Sequence[str] = ()) -> Columns:
    """The columns of `frame`, read from the table `where`. Those named in `categorical` and those of text are
    categories, the others are numbers. `missing` are further words for missing values.

    Raises DataError for a column that is neither, with the line if there is one to name.
    """
    if frame.width > MAX_COLUMNS:
        problem = f"has {frame.width:,} columns, at most {MAX_COLUMNS:,} can be used"
        raise DataError(f"{where}: {problem}; list the others under drop")
    frame = replace_missing(frame, missing)
    columns = tuple(_infer_column(frame[name], where, name in categorical) for name in frame.columns)
    count = sum(len(column.categories) for column in columns if isinstance(column, CategoryColumn))
    if count > MAX_CATEGORIES_IN_ALL:
        problem = f"has {count:,} categories in all, at most {MAX_CATEGORIES_IN_ALL:,} can be used"
        raise DataError(f"{where}: {problem}; list columns under drop")
    return Columns(columns, tuple(missing))


def parse_notated(series: "pl.Series") -> "pl.Series":
    """The numbers in a column in the notation that it shows, float64. Null for missing values and text."""
    notation = _detect_notation(series)
    return _as_numbers(series, notation if isinstance(notation, Notation) else None)


def describe_notations(
    frame: "pl.DataFrame", columns: Columns, categorical: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Of the rows `frame` that `columns` were inferred from: how each column with a notation is read, and each column
    of categories, not listed in `categorical`, whose values may be numbers, with the cure."""
    read = []
    doubts = []
    for column in columns.columns:
        if isinstance(column, NumberColumn) and column.notation:
            texts = frame[column.name].drop_nulls()
            parsed = parse(texts, column.notation)
            row = int(parsed.is_not_null().arg_true()[0])
            read.append(f"{column.name} has {column.notation}, {_quote(texts[row])} is {parsed[row]:.15g}")
        elif column.name in categorical or isinstance(column, NumberColumn):
            continue
        elif are_dates(category_names(frame[column.name])):
            continue  # these have a warning of their own
        elif isinstance(doubt := _detect_notation(frame[column.name]), Doubt):
            doubts.append(_describe_doubt(column.name, doubt))
    return read, doubts


def describe_doubtful_numbers(frame: "pl.DataFrame", columns: Columns) -> list[str]:
    """Of the rows `frame` that `columns` were inferred from: each column whose text is read as numbers, but may mean
    others, with the cure: 1.234 beside 999 or beside columns with decimal commas, and codes such as 00123."""
    import polars as pl

    has_comma = any(isinstance(c, NumberColumn) and c.notation and c.notation.decimal == "," for c in columns.columns)
    doubts = []
    for column in columns.columns:
        texts = frame[column.name].drop_nulls()
        if not isinstance(column, NumberColumn) or column.notation or texts.dtype != pl.String:
            continue
        pointed = texts.filter(texts.str.contains(".", literal=True))
        others = len(texts) - len(pointed)
        thousands = pointed.str.contains(r"^[+-]?[1-9][0-9]{0,2}\.[0-9]{3}$").all() and pointed.n_unique() > MIN_GROUPED
        if thousands and (
            has_comma or (others and texts.str.contains(r"^[+-]?([0-9]{1,3}|[0-9]{1,3}\.[0-9]{3})$").all())
        ):
            example = pointed[0]
            problem = f"{column.name!r} contains {_quote(example)}, read as {float(example):g}"
            doubts.append(f"{problem}; if points separate its thousands, write {example.replace('.', '')}")
        elif texts.str.contains(r"^0[0-9]{3,}$").any() and texts.str.len_bytes().n_unique() == 1:
            example = texts.filter(texts.str.starts_with("0"))[0]
            problem = f"{column.name!r} contains {_quote(example)}, read as {float(example):g}"
            doubts.append(f"{problem}; if these are codes, list the column under categorical or drop")
    return doubts


def category_names(series: "pl.Series") -> "pl.Series":
    """Values as strings, with 1.0 as "1": a column of whole numbers has fractions if some of them are missing."""
    import polars as pl

    return series.cast(pl.String).str.replace(WHOLE.pattern, "$1")


def sort_naturally(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted as people sort: numbers by value, and numbers within text by value too, "a2" before "a10"."""
    names = list(names)
    if all((number := parse_number(name)) is not None and not math.isnan(number) for name in names):
        return tuple(sorted(names, key=lambda name: (parse_number(name), name)))
    return tuple(
        sorted(names, key=lambda name: ([(text, int(digits or 0)) for text, digits in _PIECES.findall(name)], name))
    )


def missing_column_message(name: str, columns: Iterable[str]) -> str:
    """An error message for a column `name` that is not one of `columns`."""
    columns = list(columns)
    if all(parse_number(column) is not None for column in columns):
        return f"has no column {name!r}, and all column names are numbers; the first line must name the columns"
    suggestion = suggest(name, columns)
    if not suggestion.endswith("?") and len(columns) > 20:
        suggestion = f" among its {len(columns):,} columns"
    return f"has no column {name!r}{suggestion}"


def locate_first_row(where: str, rows: list[int]) -> str:
    """The location of the first of `rows`, and the number of the others: "data.csv:57 (and 3 more rows)"."""
    more = f" (and {len(rows) - 1:,} more row{'s' * (len(rows) > 2)})" if len(rows) > 1 else ""
    return f"{locate_row(where, rows[0])}{more}"


_PIECES = re.compile(r"(\D*)([0-9]{1,18})?")


def _infer_column(series: "pl.Series", where: str, categorical: bool) -> NumberColumn | CategoryColumn:
    import polars as pl

    _check_column_name(series.name, where)
    name = series.name
    if not series.dtype.is_numeric() and series.dtype != pl.String:
        problem = f"column {name!r} contains {series.dtype}, neither numbers nor text"
        raise DataError(f"{where}: {problem}; list it under drop")
    known = len(series) - series.null_count()
    if not known:
        raise DataError(f"{where}: column {name!r} has no value in any row; list it under drop")
    if not categorical:
        numbers = _as_numbers(series)
        count = len(numbers.drop_nulls())
        if count == known:
            return NumberColumn(name)
        notation = _detect_notation(series)
        if isinstance(notation, Notation) and len(parse(series, notation).drop_nulls()) > count:
            _check_notation(series, notation, where)
            return NumberColumn(name, notation=notation)
        if count >= MOSTLY * known:
            wrong = (numbers.is_null() & series.is_not_null()).arg_true().to_list()
            problem = f"column {name!r} contains {_quote(series[wrong[0]])} but is otherwise numeric"
            cure = "correct it, leave it empty, list it under missing, or the column under categorical"
            raise DataError(f"{locate_first_row(where, wrong)}: {problem}; {cure}")
    categories = _categories(series)
    if len(categories) > MAX_CATEGORIES or (len(categories) == known >= 20 and not categorical):
        if series.dtype == pl.String and are_dates(series):
            example = _quote(series.drop_nulls()[0])
            cure = "list it under drop, or replace it by numbers such as the month"
            raise DataError(f"{where}: column {name!r} contains dates, such as {example}; {cure}")
        if not categorical and isinstance(doubt := _detect_notation(series), Doubt):
            raise DataError(f"{where}: column {_describe_doubt(name, doubt)}")
        if all(text.lower().endswith(EXTENSIONS) for text in categories):
            problem = f"column {name!r} names image files, such as {_quote(categories[0])}"
            raise DataError(f"{where}: {problem}; use the dataset folder, which reads lists of images")
        problem = f"column {name!r} has {len(categories):,} different values in {known:,} rows"
        raise DataError(f"{where}: {problem}, so it identifies rows rather than describing them; list it under drop")
    if long := next((text for text in categories if len(text) > MAX_LENGTH), None):
        problem = f"column {name!r} contains text of {len(long):,} characters, {_quote(long)}, which is not a category"
        raise DataError(f"{where}: {problem}; list it under drop")
    return CategoryColumn(name, categories)


def _check_column_name(name: str, where: str) -> None:
    if not name:
        problem = "a column has no name, as when an index is saved with the table"
        raise DataError(f"{where}: {problem}; drop it with drop: [''], or name it")
    if len(name) > MAX_LENGTH:
        problem = f"the column {_quote(name)} has a name of {len(name):,} characters"
        raise DataError(f"{where}: {problem}; shorten it to at most {MAX_LENGTH}")


def _categories(series: "pl.Series") -> tuple[str, ...]:
    return sort_naturally(category_names(series).drop_nulls().unique().to_list())


def _as_numbers(series: "pl.Series", notation: Notation | None = None) -> "pl.Series":
    """float64, null for missing values and for text."""
    import polars as pl

    if notation and series.dtype == pl.String:
        return parse(series, notation)
    return series.cast(pl.Float64, strict=False)


def _parse_text(text: str, notation: Notation | None) -> float | None:
    """The number in `text`, None if it is not one."""
    import polars as pl

    return parse(pl.Series([text]), notation)[0] if notation else parse_number(text)


def _detect_notation(series: "pl.Series") -> Notation | Doubt | None:
    """The notation of a column of text that contains other than plain numbers."""
    import polars as pl

    return detect(series) if series.dtype == pl.String else None


def _describe_doubt(name: str, doubt: Doubt) -> str:
    first, second = map(_quote, doubt.examples)
    examples = first if first == second else f"{first} and {second}"
    cure = "write its numbers as 1234.5, in one unit, or list it under categorical"
    if doubt.problem == MIXED:
        cure = "list words that mean a missing value under missing, or the column under categorical or drop"
    return f"{name!r} contains numbers that {doubt.problem} ({examples}); {cure}"


def _check_notation(series: "pl.Series", notation: Notation, where: str) -> None:
    """Raises DataError for a value that is not a number in `notation`."""
    if wrong := (parse(series, notation).is_null() & series.is_not_null()).arg_true().to_list():
        problem = f"column {series.name!r} contains {_quote(series[wrong[0]])} but otherwise numbers ({notation})"
        cure = "correct it, leave it empty, list it under missing, or the column under categorical"
        raise DataError(f"{locate_first_row(where, wrong)}: {problem}; {cure}")


def _look_up(codes: Sequence[float], indices: NDArray[np.float64], *, unseen: float) -> NDArray[np.float64]:
    """`codes` at each index; NaN for an index of NaN, `unseen` for an index of UNSEEN."""
    table = np.array([*codes, unseen, math.nan], np.float64)
    positions = np.where(np.isnan(indices), -1, np.where(indices == UNSEEN, -2, indices)).astype(int)
    result: NDArray[np.float64] = table[positions]
    return result


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _column_from_dict(data: dict[str, Any]) -> NumberColumn | CategoryColumn:
    """A column, with the type and the range of each value checked. Raises ValueError, KeyError or TypeError."""
    kind, name, indicator = (data[key] for key in ("kind", "name", "indicator"))
    valid = type(name) is str and 0 < len(name) <= MAX_LENGTH and type(indicator) is bool
    column: NumberColumn | CategoryColumn
    if kind == NumberColumn.kind:
        mean, std, missing = (data[key] for key in ("mean", "std", "missing"))
        notation = Notation.from_dict(data["notation"]) if "notation" in data else None
        numbers = (mean, std, missing)
        valid = valid and all(type(value) in (int, float) and abs(value) <= LARGEST for value in numbers) and std >= 0
        column = NumberColumn(name, mean, std, missing, indicator, notation)
    else:
        texts = data["categories"]
        valid = valid and kind == CategoryColumn.kind and type(texts) is list and len(texts) <= MAX_CATEGORIES
        valid = valid and all(type(text) is str and 0 < len(text) <= MAX_LENGTH for text in texts)
        valid = valid and len(set(texts)) == len(texts)
        column = CategoryColumn(name, tuple(texts), indicator)
    optional = set() if "notation" in data else {"notation"}
    if not valid or data.keys() != {"kind", *asdict(column)} - optional:
        raise ValueError("not a column")
    return column
