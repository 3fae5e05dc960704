"""Your own table: a .csv, .tsv or .parquet file with a row per sample and a column for the class.

Values may be missing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx.datasets import DatasetConfig, SampleNames, Source, Split, _cache, _table_images, _user_data
from nnx.errors import ConfigError, DataError
from nnx.events import Choice
from nnx.preprocessing import columns, suspects, tables
from nnx.preprocessing.columns import (
    UNSEEN,
    CategoryColumn,
    Columns,
    category_names,
    locate_first_row,
    missing_column_message,
    sort_naturally,
)
from nnx.preprocessing.image_columns import ImageColumns

if TYPE_CHECKING:
    import polars as pl

MAX_CLASSES = 1000
SPLITS = ("train", "validation", "test")
SPLIT_COLUMN = "split"
MAX_NAMES = 10  # columns or classes that a message lists
LOCATED = 2**25  # bytes of a table: in a larger one, a row is named by its number instead of its line
CACHED_FROM = 2**23  # bytes of a table: larger ones load faster from the cache, 0.1 s for a CSV of this size


class Config(DatasetConfig):
    """Rows of a .csv, .tsv or .parquet file."""

    name: Literal["table"] = "table"
    path: str = Field(
        examples=["data.csv"],
        description="a .csv, .tsv or .parquet file, absolute or relative to the current folder",
    )
    target: str = Field(examples=["species"], description="the column with the class")
    drop: list[str] = Field([], description="columns to ignore")
    categorical: list[str] = Field([], description="columns of numbers that are categories, such as zip codes")
    missing: list[str] = Field(
        [],
        max_length=columns.MAX_WORDS,
        examples=[["-999", "unknown"]],
        description="further words for a missing value; in the target, only an empty cell is missing",
    )
    image: list[Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None,
        min_length=2,
        max_length=3,
        examples=[[28, 28]],
        description="height and width (and channels, 1 or 3) of images whose pixels are the columns, row by row",
    )
    white: _user_data.White | None = Field(
        None,
        examples=[4095],
        description="value of white in images of more than 8 bits: 255, 4095, ..., or auto: as the images need",
    )
    test: _user_data.TestData = Field(
        0.2, description="test rows if path marks none: another file, a count, a fraction, or 0: no test"
    )


def load(config: Config, folder: Path) -> Source:
    """The table at `config.path`. If no column called split divides it, its test rows are the same for every seed.
    `folder` is not used.

    Raises ConfigError for columns that do not exist, DataError, with the line, for a table without classes to learn.
    """
    path = str(_user_data.resolve_path(config.path))
    test_path = str(_user_data.resolve_path(config.test, "dataset.test")) if isinstance(config.test, str) else None
    if config.image or _has_image_files(config, path):
        return _load_images(config, path, test_path)
    if config.white is not None:
        raise ConfigError.at("dataset.white", "applies only to images, but the table has none; remove it")
    table = _load_cached(config, path, test_path) or _encode_table(config, path, test_path)
    table = replace(table, train=table.train.named(partial(_locate_row, path)))
    train, validation, own_test = _divide(table)
    test = table.test or own_test
    notes = (*table.notes, *_describe_unused_test(config, own_test, path))
    fields: dict[str, Any] = {"columns": table.columns, "notes": notes, "validation": validation}
    if test:
        return Source(train, lambda: test, table.classes, **fields)
    assert not isinstance(config.test, str)
    if config.test and not len(table.splits):
        _check_class_sizes(train.labels, table.classes, path)
    return _user_data.split_off_test(train, config.test, table.classes, path, **fields)


def _has_image_files(config: Config, path: str) -> bool:
    """Whether a table is a Parquet file with a column of image files that the config does not drop."""
    import polars as pl

    try:
        with open(path, "rb") as file:
            if not os.path.isfile(path) or file.read(4) != b"PAR1":
                return False
        schema = pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return False  # `tables.read` says what is wrong
    return _table_images.find_image_column(pl.Schema(_without(schema, config))) is not None


def _without(schema: "Mapping[str, pl.DataType]", config: Config) -> "dict[str, pl.DataType]":
    return {name: kind for name, kind in schema.items() if name not in {config.target, *config.drop}}


def _load_images(config: Config, path: str, test_path: str | None) -> Source:
    """The images in a table: files in a column, or a column per pixel. Raises ConfigError, DataError."""
    for key in ("categorical", "missing"):
        if getattr(config, key):
            raise ConfigError.at(f"dataset.{key}", f"does not apply to the images in {path}; remove it")
    frame = tables.read(path, target=config.target)
    _check_columns(config, frame, path)
    split_column = _find_split_column(frame, config)
    classes = _find_classes(frame[config.target], path)
    labels = _encode_target(frame[config.target], classes, path)
    splits = _encode_splits(frame, split_column, path)
    notes: tuple[Choice, ...] = ()
    if split_column:
        _check_splits(labels, splits, classes, path)
        notes = (_describe_splits(splits, split_column[0], path),)
    rows = frame.drop({config.target, *config.drop, *split_column})
    scale = white = None
    trained = config._trained_columns
    column = None if config.image else _table_images.find_image_column(rows.schema, trained)
    if column is not None:
        image_columns = ImageColumns((column,))
        pixels, white, white_notes = _table_images.decode_files(rows[column], path, config.white)
        notes = (*notes, *white_notes)
        unused = [name for name in rows.columns if name != column]
        reason = f"not used: {_join_names(unused)}" if unused else f"image files of {path}"
        notes = (*notes, Choice("images", f"column {column}", reason))
        notes = (*notes, *_warn_of_splits(_flat_columns(rows.select(unused)), use="is not used"))
    else:
        assert config.image
        if trained and trained.are_pixels:
            unused = [name for name in rows.columns if name not in trained.names]
            notes = (*notes, Choice("not used", _join_names(unused), f"columns of {path}")) if unused else notes
            rows = _table_images.trained_pixels(rows, trained, path)
            scale = trained.scale
        else:
            rows = rows.select(_table_images.pixel_order(rows.columns))
        pixels, scale = _table_images.reshape_pixels(rows, config.image, path, config.white, scale=scale)
        white = round(255 / scale) if scale < 1 else None
        image_columns = ImageColumns(tuple(rows.columns), round(255 / scale))
    _table_images.check_names(image_columns, path)
    test = None
    if test_path:
        test_frame = tables.read(test_path, target=config.target)
        for name in (config.target, *rows.columns):
            if name not in test_frame.columns:
                raise DataError(f"{test_path}: {missing_column_message(name, test_frame.columns)}, as in {path}")
        if column is not None:
            test_pixels, _, _ = _table_images.decode_files(
                test_frame[column], test_path, white or config.white, pixels.shape[1:]
            )
        else:
            assert config.image
            test_rows = test_frame.select(rows.columns)
            test_pixels, _ = _table_images.reshape_pixels(test_rows, config.image, test_path, scale=scale)
        test_names = _name_rows(test_path, np.arange(test_frame.height))
        test = Split(test_pixels, _encode_target(test_frame[config.target], classes, test_path), test_names)
        test = test.take(_find_test_rows(config, test_frame, test_path))
    names = _table_images.class_names(path, config.target)
    if names and "-1" in classes:  # so Hugging Face marks samples of a test set
        problem = f"{int((frame[config.target] == -1).sum()):,} rows have no label: {config.target!r} is -1"
        raise DataError(f"{path}: {problem}; remove them")
    if names and all(text.isdecimal() and int(text) < len(names) for text in classes):
        classes = tuple(names[int(text)] for text in classes)
    train = Split(pixels, labels).named(partial(_locate_row, path))
    table = EncodedTable(train, test, splits, classes, Columns(()), notes)
    train, validation, own_test = _divide(table)
    test = test or own_test
    notes = (*notes, *_describe_unused_test(config, own_test, path))
    fields: dict[str, Any] = {"validation": validation, "white": white, "image_columns": image_columns, "notes": notes}
    if test:
        held_out = test
        return Source(train, lambda: held_out, classes, **fields)
    assert not isinstance(config.test, str)
    if config.test and not len(splits):
        _check_class_sizes(train.labels, classes, path)
    return _user_data.split_off_test(train, config.test, classes, path, **fields)


def _divide(table: "EncodedTable") -> tuple[Split, Split | None, Split | None]:
    """The training, validation and test rows of a table, by its column split: without one, all are training rows."""
    if not len(table.splits):
        return table.train, None, None
    train, validation, test = (np.flatnonzero(table.splits == split) for split in range(len(SPLITS)))
    return (
        table.train.take(train),
        table.train.take(validation) if len(validation) else None,
        table.train.take(test) if len(test) else None,
    )


@dataclass(frozen=True)
class EncodedTable:
    """A table in numbers: rows (N, columns) float64 from `Columns.encode`, and test rows if they are in a file."""

    train: Split
    test: Split | None
    splits: NDArray[np.int64]  # (N,) indices into SPLITS of the rows in `train`; empty without a column called split
    classes: tuple[str, ...]
    columns: Columns  # not fitted yet
    notes: tuple[Choice, ...]


def _load_cached(config: Config, path: str, test_path: str | None) -> EncodedTable | None:
    """A large table from the cache (see `_cache`), where it is encoded once; None for a small one, which reads fast."""
    files = [Path(file) for file in (path, test_path) if file]
    if sum(file.stat().st_size for file in files) < CACHED_FROM:
        return None

    def encode(writer: _cache.Writer) -> dict[str, Any]:
        table = _encode_table(config, path, test_path)
        for name, split in (("train", table.train), ("test", table.test)):
            writer.add(f"{name}-rows", np.asarray(split.inputs if split else table.train.inputs[:0]))
            writer.add(f"{name}-labels", split.labels if split else table.train.labels[:0])
        writer.add("test-lines", table.test.names.rows if table.test and table.test.names else np.zeros(0, np.int64))
        writer.add("splits", table.splits)
        notes = [[note.what, note.value, note.reason] for note in table.notes]
        return {"classes": list(table.classes), "columns": table.columns.to_dict(), "notes": notes}

    options = config.model_dump(include={"target", "drop", "categorical", "missing"})
    options |= {"test": test_path and os.path.abspath(test_path)}
    arrays = {
        f"{split}-{kind}": form
        for split in ("train", "test")
        for kind, form in (("rows", ("float64", 2)), ("labels", ("int64", 1)))
    } | {"splits": ("int64", 1), "test-lines": ("int64", 1)}
    key = _cache.CacheKey(os.path.abspath(path), options, _cache.hash_file_stats(files))
    facts = {"classes": list, "columns": dict, "notes": list}
    cached = _cache.load_or_decode("table", key, encode, arrays, facts, _is_possible)
    train, test = (
        Split(cached.arrays[f"{split}-rows"], np.array(cached.arrays[f"{split}-labels"])) for split in ("train", "test")
    )
    try:
        notes = tuple(Choice(*note) for note in cached.facts["notes"])
        return EncodedTable(
            train,
            replace(test, names=_name_rows(test_path, np.array(cached.arrays["test-lines"]))) if test_path else None,
            np.array(cached.arrays["splits"]),
            tuple(cached.facts["classes"]),
            Columns.from_dict(cached.facts["columns"]),
            (*notes, cached.note),
        )
    except (ValueError, KeyError, TypeError):  # damaged, or with more categories than a checkpoint accepts
        return None


def _is_possible(cached: _cache.CachedData) -> bool:
    """Whether each cached row has a label, a value for each column and, if there are splits, one of them."""
    try:
        width = len(Columns.from_dict(cached.facts["columns"]).columns)
    except (ValueError, KeyError, TypeError):
        return False
    for split in ("train", "test"):
        rows, labels = cached.arrays[f"{split}-rows"], cached.arrays[f"{split}-labels"]
        if rows.shape != (len(labels), width) or not _cache.in_range(labels, len(cached.facts["classes"])):
            return False
    splits = cached.arrays["splits"]
    lines = cached.arrays["test-lines"]
    if len(splits) not in (0, len(cached.arrays["train-rows"])) or not _cache.in_range(splits, len(SPLITS)):
        return False
    return len(lines) == len(cached.arrays["test-rows"])


def _encode_table(config: Config, path: str, test_path: str | None) -> EncodedTable:
    """The table in the file `path`, and the test table in `test_path`, if given. Raises ConfigError, DataError."""
    frame = tables.read(path, target=config.target)
    _check_columns(config, frame, path)
    targets = frame[config.target]
    split_column = _find_split_column(frame, config)
    rows = tables.replace_missing(frame.drop({config.target, *config.drop, *split_column}), config.missing)
    if not rows.width:
        raise DataError(f"{path}: has no columns other than the target {config.target!r}; drop fewer")
    classes = _find_classes(targets, path)
    table_columns = columns.infer(rows, path, config.categorical, config.missing)
    notes = (
        _describe_columns(table_columns, config.drop),
        *_describe_missing(rows),
        *_warn_of_unused_words(frame.select(rows.columns), config.missing),
        *_describe_notations(rows, table_columns, config.categorical),
        *_describe_class_words(targets, classes),
        *_warn_of_splits(rows, config.categorical),
    )
    splits = _encode_splits(frame, split_column, path)
    if split_column:
        notes = (*notes, _describe_splits(splits, split_column[0], path))
    test = None
    if test_path:
        test_frame = _read_test(config, path, test_path, table_columns)
        table_columns = table_columns.with_categories_of(test_frame)
        test_labels = _encode_target(test_frame[config.target], classes, test_path)
        names = _name_rows(test_path, np.arange(test_frame.height))
        test = Split(table_columns.encode(test_frame, test_path), test_labels, names)
        test = test.take(_find_test_rows(config, test_frame, test_path))
        notes = (*notes, *_describe_unused(config, table_columns, test_frame, test_path))
    train = Split(table_columns.encode(rows, path), _encode_target(targets, classes, path))
    encoded = np.asarray(train.inputs)
    notes = (*notes, *_warn_of_columns(table_columns, encoded, rows, config.categorical))
    notes = (*notes, *_warn_of_copies(table_columns, encoded, train.labels, config.target))
    if split_column:
        _check_splits(train.labels, splits, classes, path)
    return EncodedTable(train, test, splits, classes, table_columns, notes)


def _name_rows(path: str, rows: NDArray[np.int64]) -> SampleNames:
    return SampleNames(partial(_locate_row, path), rows)


def _locate_row(path: str, row: int) -> str:
    """`tables.locate_row`, which reads the file again, unless that takes seconds."""
    large = os.path.getsize(path) > LOCATED
    return f"{path}, row {row + 1}" if large else tables.locate_row(path, row)


def _find_split_column(frame: "pl.DataFrame", config: Config) -> list[str]:
    """The column called split, in any case, if the config does not give it another use and it has the name of a
    split."""
    other_use = {config.target, *config.drop, *config.categorical}
    return [
        name
        for name in frame.columns
        if name.strip().lower() == SPLIT_COLUMN
        and name not in other_use
        and any(str(value).strip().lower() in _user_data.SPLIT_NAMES for value in frame[name].unique())
    ][:1]


def _flat_columns(rows: "pl.DataFrame") -> "pl.DataFrame":
    return rows.select(name for name, kind in rows.schema.items() if not kind.is_nested() and str(kind) != "Binary")


def _warn_of_splits(
    rows: "pl.DataFrame", categorical: Sequence[str] = (), use: str = "is an input"
) -> tuple[Choice, ...]:
    """A warning of a column, with this `use`, whose values, or whose name, are those of splits."""
    warnings = []
    cure = f"in a column {SPLIT_COLUMN}, train, validation and test divide the rows; else list it under dataset.drop"
    for name in rows.columns:
        values = {str(value).strip() for value in rows[name].unique().head(20) if value is not None}
        if name in categorical:
            continue
        if _user_data.may_be_split(name, values):
            warnings.append(Choice("warning", f"column {name}", f"seems to name splits, but {use}; {cure}"))
        elif name.strip().lower() == SPLIT_COLUMN:
            warnings.append(Choice("warning", f"column {name}", f"names no splits, so it {use}; {cure}"))
    return tuple(warnings)


def _encode_splits(frame: "pl.DataFrame", split_column: list[str], path: str) -> NDArray[np.int64]:
    """(N,) the split of each row, as an index into SPLITS; empty without a column. Raises DataError."""
    if not split_column:
        return np.zeros(0, np.int64)
    values = frame[split_column[0]]
    indices = {}
    for value in values.unique(maintain_order=True):
        try:
            indices[value] = SPLITS.index(_user_data.parse_split(str(value or "")))
        except ValueError as error:
            rows = (values.is_null() if value is None else values == value).arg_true().to_list()
            raise DataError(f"{locate_first_row(path, rows)}: {error}") from None
    return np.array([indices[value] for value in values], np.int64)


def _find_test_rows(config: Config, frame: "pl.DataFrame", path: str) -> NDArray[np.int64]:
    """The rows of a test file that are test data: those that its column split says, else all. Raises DataError."""
    splits = _encode_splits(frame, _find_split_column(frame, config), path)
    test = SPLITS.index("test")
    present = np.unique(splits)
    if len(present) > 1 and test not in present:
        raise DataError(f"{path}: its column {SPLIT_COLUMN} has no row with test; add test rows, or drop the column")
    return np.flatnonzero(splits == test) if test in present else np.arange(frame.height)


def _check_splits(labels: NDArray[np.int64], splits: NDArray[np.int64], classes: tuple[str, ...], path: str) -> None:
    """Raises DataError for a table without training rows, and for a class that has none."""
    train = splits == SPLITS.index("train")
    if not train.any():
        raise DataError(f"{path}: its column {SPLIT_COLUMN} has no row with train; add training rows")
    untrained = np.flatnonzero(~np.isin(labels, labels[train])).tolist()
    if untrained:
        problem = f"class {classes[labels[untrained[0]]]!r} has no training row"
        raise DataError(f"{locate_first_row(path, untrained)}: {problem}; add some, or drop the row")


def _describe_unused_test(config: Config, test: Split | None, path: str) -> tuple[Choice, ...]:
    """A warning if the table has test rows, but the config names another test file."""
    if test is None or not isinstance(config.test, str):
        return ()
    return (_user_data.describe_unused_test(len(test), path, config.test),)


def _describe_splits(splits: NDArray[np.int64], column: str, path: str) -> Choice:
    counts = zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)), strict=True)
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts if count)
    return Choice("splits", sizes, f"as the column {column} of {path} says")


def _describe_unused(
    config: Config, table_columns: Columns, test_frame: "pl.DataFrame", test_path: str
) -> tuple[Choice, ...]:
    """The columns of the test file that the training file does not have, if any."""
    used = {config.target, *config.drop, *(column.name for column in table_columns.columns)}
    unused = [name for name in test_frame.columns if name not in used and name.lower() != SPLIT_COLUMN]
    if not unused:
        return ()
    names = _join_names([repr(name) for name in unused])
    return (
        Choice("not used", f"column{'s' * (len(unused) > 1)} {names}", f"of {test_path}, not in the training data"),
    )


def _check_columns(config: Config, frame: "pl.DataFrame", path: str) -> None:
    """Raises ConfigError for a column in the config that the table does not have, or that is also the target."""
    for key, names in (("target", [config.target]), ("drop", config.drop), ("categorical", config.categorical)):
        for name in names:
            if name not in frame.columns:
                raise ConfigError.at(f"dataset.{key}", f"{path} {missing_column_message(name, frame.columns)}")
            if key != "target" and name == config.target:
                raise ConfigError.at(f"dataset.{key}", f"{name!r} is the target, not an input; remove it from {key}")


def _read_test(config: Config, path: str, test_path: str, table_columns: Columns) -> "pl.DataFrame":
    """The table in the test file. Raises ConfigError, DataError."""
    frame = tables.read(test_path, target=config.target, literal=table_columns.notated)
    if os.path.samefile(path, test_path):
        raise ConfigError.at(
            "dataset.test", f"{test_path} is also the training file; give another file, or a fraction of it (0.2)"
        )
    if config.target not in frame.columns:
        problem = missing_column_message(config.target, frame.columns)
        raise DataError(f"{test_path}: {problem}, which is the target of {path}")
    return frame


def _find_classes(targets: "pl.Series", path: str) -> tuple[str, ...]:
    """The classes of a target column, sorted: numbers by value. Raises DataError if it does not contain classes."""

    name = targets.name
    texts = category_names(targets)
    if missing := texts.is_null().arg_true().to_list():
        raise _missing_target(name, missing, path)
    classes = sort_naturally(texts.unique().to_list())
    numbers = columns.parse_notated(texts).fill_nan(None)  # nan may be a class
    regression = "looks like a regression target; choose another column, or group its values into classes"
    if not numbers.has_nulls() and (fractions := (numbers % 1 != 0).arg_true().to_list()):
        problem = f"the target column {name!r} contains {texts[fractions[0]]}, which {regression}"
        raise DataError(f"{locate_first_row(path, fractions)}: {problem}")
    if len(classes) > MAX_CLASSES:
        problem = f"the target column {name!r} has {len(classes):,} different values, more than {MAX_CLASSES:,}"
        raise DataError(f"{path}: {problem}; {'choose another column' if numbers.has_nulls() else 'it ' + regression}")
    return classes


def _encode_target(targets: "pl.Series", classes: tuple[str, ...], path: str) -> NDArray[np.int64]:
    """(N,) the class of each row, as an index into `classes`. Raises DataError for a missing or unknown class."""
    codes = CategoryColumn(targets.name, classes).encode(targets, path)
    if missing := np.flatnonzero(np.isnan(codes)).tolist():
        raise _missing_target(targets.name, missing, path)
    if unknown := np.flatnonzero(codes == UNSEEN).tolist():
        known = ", ".join(map(repr, classes[:MAX_NAMES])) + (", ..." if len(classes) > MAX_NAMES else "")
        label = category_names(targets)[unknown[0]]
        problem = f"class {label!r} is not in the training data, whose {len(classes)} classes are {known}"
        raise DataError(f"{locate_first_row(path, unknown)}: {problem}; correct it, or drop the row")
    return codes.astype(np.int64)


def _missing_target(name: str, rows: list[int], path: str) -> DataError:
    problem = f"no value in the target column {name!r}"
    return DataError(f"{locate_first_row(path, rows)}: {problem}; fill it in, or drop the row")


def _check_class_sizes(labels: NDArray[np.int64], classes: tuple[str, ...], path: str) -> None:
    """Raises DataError for a class that has only one row."""
    single = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 1)
    if len(single) and len(classes) > 1:
        row = int(np.flatnonzero(labels == single[0])[0])
        more = f" (as do {len(single) - 1:,} more classes)" if len(single) > 1 else ""
        problem = f"class {classes[single[0]]!r} has only this row{more}, too few for training and test data"
        raise DataError(f"{tables.locate_row(path, row)}: {problem}; add rows of this class, or drop the row")


def _describe_columns(table_columns: Columns, dropped: Sequence[str]) -> Choice:
    """Which columns are numbers, which are categories, and which are left out."""
    categories = [
        f"{column.name} ({len(column.categories)})"
        for column in table_columns.columns
        if isinstance(column, CategoryColumn)
    ]
    numbers = [column.name for column in table_columns.columns if not isinstance(column, CategoryColumn)]
    groups = (("numbers", numbers), ("categories", categories), ("left out", dropped))
    reason = "; ".join(f"{title}: {_join_names(names)}" for title, names in groups if names)
    return Choice("columns", f"{len(numbers)} of numbers, {len(categories)} of categories", reason)


def _describe_missing(rows: "pl.DataFrame") -> tuple[Choice, ...]:
    """How many values are missing, if any."""
    counts = {name: rows[name].null_count() for name in rows.columns if rows[name].has_nulls()}
    if not counts:
        return ()
    total = sum(counts.values())
    listed = _join_names([f"{name} {count:,}" for name, count in counts.items()])
    treatment = "numbers become the training median plus an indicator feature, categories a category of their own"
    return (Choice("missing", f"{total:,} value{'s' * (total > 1)}", f"{listed}; {treatment}"),)


def _warn_of_unused_words(rows: "pl.DataFrame", words: Sequence[str]) -> tuple[Choice, ...]:
    """A warning of words for missing values that occur in none of the `rows`, which still contain them."""
    before = sum(rows.null_count().row(0))
    unused = [word for word in words if sum(tables.replace_missing(rows, [word]).null_count().row(0)) == before]
    unused = [word for word in unused if word not in tables.MISSING]  # these are replaced when the file is read
    if not unused:
        return ()
    reason = "no value is written like this; correct dataset.missing"
    return (Choice("warning", f"missing {_join_names([repr(word) for word in unused])}", reason),)


def _describe_notations(rows: "pl.DataFrame", table_columns: Columns, categorical: Sequence[str]) -> tuple[Choice, ...]:
    """How numbers that are not written as 1234.5 are read, and a warning of columns where that is not clear."""
    read, doubts = columns.describe_notations(rows, table_columns, categorical)
    notes = (
        [Choice("notation", f"of {len(read)} column{'s' * (len(read) > 1)}", _join_names(read, "; "))] if read else []
    )
    others = columns.describe_doubtful_numbers(rows, table_columns)
    return (
        *notes,
        *(Choice("warning", "numbers are categories", doubt) for doubt in doubts[:MAX_NAMES]),
        *(Choice("warning", "numbers may be others", doubt) for doubt in others[:MAX_NAMES]),
    )


def _warn_of_columns(
    table_columns: Columns, encoded: NDArray[Any], rows: "pl.DataFrame", categorical: Sequence[str]
) -> tuple[Choice, ...]:
    """Warnings of columns that identify rows or dates rather than describe them, with the `drop` that leaves them
    out."""
    numbers = {
        column.name: values
        for column, values in zip(table_columns.columns, encoded.T, strict=True)
        if not isinstance(column, CategoryColumn)
    }
    texts = {
        column.name: category_names(rows[column.name])
        for column in table_columns.columns
        if isinstance(column, CategoryColumn) and column.name not in categorical
    }
    return tuple(
        Choice(
            "warning",
            f"column{'s' * (len(names) > 1)} {_join_names(names)}",
            f"{_WARNINGS[problem]}; if so, leave out with dataset.drop: [{_join_names([repr(n) for n in names])}]",
        )
        for problem, names in suspects.find(numbers, texts).items()
    )


_WARNINGS = {
    suspects.ORDER: "values follow the row order: an id or a time lets the network learn the order of the file",
    suspects.DISTINCT: "another value in every row: an id does not help with new rows",
    suspects.YEARS: "years: the network has not learned what follows the last of them",
    suspects.DATES: "dates or times: as numbers or categories they do not help with new ones",
}


def _warn_of_copies(
    table_columns: Columns, encoded: NDArray[Any], labels: NDArray[np.int64], target: str
) -> tuple[Choice, ...]:
    """A warning of columns with one value for each class: they name the class."""
    classes = len(np.unique(labels))
    if len(labels) < suspects.MIN_ROWS or classes < 2:
        return ()
    copies = []
    for column, values in zip(table_columns.columns, encoded.T, strict=True):
        if len(np.unique(values[: 10 * classes + 1000])) > classes or np.isnan(values).any():
            continue
        distinct, codes = np.unique(values, return_inverse=True)
        if len(distinct) == classes == len(np.unique(codes * classes + labels)):
            copies.append(column.name)
    if not copies:
        return ()
    problem = f"one value for each class of {target!r}: a copy of it under another name"
    cure = f"if so, leave out with dataset.drop: [{_join_names([repr(n) for n in copies])}]"
    return (Choice("warning", f"column{'s' * (len(copies) > 1)} {_join_names(copies)}", f"{problem}; {cure}"),)


def _describe_class_words(targets: "pl.Series", classes: tuple[str, ...]) -> tuple[Choice, ...]:
    """Which classes have a name that means a missing value in other columns, if any."""
    words = [name for name in classes if name in tables.MISSING]
    if not words:
        return ()
    quoted = _join_names([f"{word!r} ({(targets == word).sum():,} rows)" for word in words])
    reason = f"only an empty cell is missing in {targets.name!r}; delete these rows if they have no class"
    return (Choice("class", quoted, reason),)


def _join_names(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(names[:MAX_NAMES]) + (
        f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    )
