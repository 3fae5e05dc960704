"""A table of your own: a .csv, .tsv or .parquet file, a row a sample, a column that holds the class. Values may be
missing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx.datasets import DatasetConfig, Source, Split, _cache, _user_data
from nnx.errors import ConfigError, DataError
from nnx.events import Choice
from nnx.preprocessing import columns, tables
from nnx.preprocessing.columns import (
    UNSEEN,
    CategoryColumn,
    Columns,
    category_names,
    locate_first_row,
    missing_column_message,
    sort_naturally,
)

if TYPE_CHECKING:
    import polars as pl

MAX_CLASSES = 1000
SHOWN = 10  # columns that a note names
WORTH_KEEPING = 2**23  # bytes: from there on the cache is quicker, 0.1 s for such a CSV


class Config(DatasetConfig):
    """Rows of a .csv, .tsv or .parquet file."""

    name: Literal["table"] = "table"
    path: str = Field(
        examples=["data.csv"],
        description="a .csv, .tsv or .parquet file, relative to the folder that nnx is started in",
    )
    target: str = Field(examples=["species"], description="the column that holds the class")
    drop: list[str] = Field([], description="columns to leave out")
    categorical: list[str] = Field(
        [], description="columns that are categories though they hold numbers, as of zip codes"
    )
    test: _user_data.PartOrPath = Field(0.2, description="rows to test on: another file, a count or a fraction")


def load(config: Config, folder: Path) -> Source:
    """The table that `config.path` names. Which rows are set aside to test on is the same for every seed. `folder` is
    not looked at.

    Raises ConfigError for columns that are not there, DataError for what is no table to learn classes from, with its
    line.
    """
    where = str(_user_data.existing(config.path))
    there = str(_user_data.existing(config.test, "dataset.test")) if isinstance(config.test, str) else None
    coded = _kept(config, where, there) or _coded(config, where, there)
    if coded.test:
        test = coded.test
        return Source(coded.train, lambda: test, coded.classes, columns=coded.columns, notes=coded.notes)
    assert not isinstance(config.test, str)
    return _user_data.cut(coded.train, config.test, coded.classes, where, columns=coded.columns, notes=coded.notes)


@dataclass(frozen=True)
class Coded:
    """A table in numbers: rows (N, columns) float64 as `Columns.encode` gives them, test rows where they have a file of
    their own."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    columns: Columns  # not fitted yet
    notes: tuple[Choice, ...]


def _kept(config: Config, where: str, there: str | None) -> Coded | None:
    """A large table out of the cache (see `_cache`), where it is read and coded once; None of a small one, which is
    read as quickly."""
    files = [Path(file) for file in (where, there) if file]
    if sum(file.stat().st_size for file in files) < WORTH_KEEPING:
        return None

    def code(writer: _cache.Writer) -> dict[str, Any]:
        coded = _coded(config, where, there)
        for name, split in (("train", coded.train), ("test", coded.test)):
            writer.add(f"{name}-rows", np.asarray(split.inputs if split else coded.train.inputs[:0]))
            writer.add(f"{name}-labels", split.labels if split else coded.train.labels[:0])
        notes = [[note.what, note.value, note.reason] for note in coded.notes]
        return {"classes": list(coded.classes), "columns": coded.columns.to_dict(), "notes": notes}

    options = config.model_dump(include={"target", "drop", "categorical"}) | {"test": there and os.path.abspath(there)}
    arrays = {
        f"{part}-{what}": form
        for part in ("train", "test")
        for what, form in (("rows", ("float64", 2)), ("labels", ("int64", 1)))
    }
    depends = _cache.Depends(os.path.abspath(where), options, _cache.stamp_of(files))
    kept = _cache.cached("table", depends, code, arrays, {"classes": list, "columns": dict, "notes": list})
    train, test = (
        Split(kept.arrays[f"{part}-rows"], np.array(kept.arrays[f"{part}-labels"])) for part in ("train", "test")
    )
    try:
        notes = tuple(Choice(*note) for note in kept.facts["notes"])
        return Coded(
            train,
            test if there else None,
            tuple(kept.facts["classes"]),
            Columns.from_dict(kept.facts["columns"]),
            (*notes, kept.note),
        )
    except (ValueError, KeyError, TypeError):  # damaged, or with more categories than a checkpoint would take
        return None


def _coded(config: Config, where: str, there: str | None) -> Coded:
    """The table in the file `where`, and that to test on, if it is `there`. Raises ConfigError, DataError."""
    frame = tables.read(where)
    _check_keys(config, frame, where)
    targets, rows = frame[config.target], frame.drop({config.target, *config.drop})
    if not rows.width:
        raise DataError(f"{where}: has no column to learn from besides the target {config.target!r}; drop fewer")
    classes = _classes(targets, where)
    found = columns.infer(rows, where, config.categorical)
    notes, test = (_kinds(found, config.drop), *_missing(rows)), None
    if there:
        other = _test_frame(config, where, there)
        found = found.with_categories_of(other)
        test = Split(found.encode(other, there), _labels(other[config.target], classes, there))
    train = Split(found.encode(rows, where), _labels(targets, classes, where))
    if not test:
        _check_enough(train.labels, classes, where)
    return Coded(train, test, classes, found, notes)


def _check_keys(config: Config, frame: "pl.DataFrame", where: str) -> None:
    """Raises ConfigError for a column that the config names and the table has not, or that is both the target and
    something else."""
    for key, names in (("target", [config.target]), ("drop", config.drop), ("categorical", config.categorical)):
        for name in names:
            if name not in frame.columns:
                raise ConfigError.at(f"dataset.{key}", f"{where} {missing_column_message(name, frame.columns)}")
            if key != "target" and name == config.target:
                raise ConfigError.at(f"dataset.{key}", f"{name!r} is the target, which is no input; take it out")


def _test_frame(config: Config, where: str, there: str) -> "pl.DataFrame":
    """What is in the file to test on. Raises ConfigError, DataError."""
    frame = tables.read(there)
    if os.path.samefile(where, there):
        raise ConfigError.at(
            "dataset.test", f"{there} is the file that is trained on; name another, or a fraction of it (0.2)"
        )
    if config.target not in frame.columns:
        raise DataError(
            f"{there}: {missing_column_message(config.target, frame.columns)}, which is the target of {where}"
        )
    return frame


def _classes(targets: "pl.Series", where: str) -> tuple[str, ...]:
    """The classes of a target column, sorted: numbers by their value. Raises DataError where it holds no classes."""
    import polars as pl

    name, texts = targets.name, category_names(targets)
    if absent := texts.is_null().arg_true().to_list():
        raise _no_value(name, absent, where)
    classes = sort_naturally(texts.unique().to_list())
    numbers = texts.cast(pl.Float64, strict=False)
    regression = (
        "looks like a regression target, and a classifier learns classes; name another column, or make classes of it"
    )
    if not numbers.has_nulls() and (fractions := (numbers % 1 != 0).arg_true().to_list()):
        raise DataError(
            f"{locate_first_row(where, fractions)}: the target column {name!r} holds {texts[fractions[0]]}, which {regression}"
        )
    if len(classes) > MAX_CLASSES:
        what = f"the target column {name!r} has {len(classes):,} different values, more than the {MAX_CLASSES:,} classes there may be"
        raise DataError(f"{where}: {what}; {'it ' + regression if not numbers.has_nulls() else 'name another column'}")
    return classes


def _labels(targets: "pl.Series", classes: tuple[str, ...], where: str) -> NDArray[np.int64]:
    """(N,) which of `classes` each row has. Raises DataError for a row with none, or another."""
    codes = CategoryColumn(targets.name, classes).encode(targets, where)
    if absent := np.flatnonzero(np.isnan(codes)).tolist():
        raise _no_value(targets.name, absent, where)
    if unknown := np.flatnonzero(codes == UNSEEN).tolist():
        known = ", ".join(map(repr, classes[:SHOWN])) + (", ..." if len(classes) > SHOWN else "")
        what = f"class {category_names(targets)[unknown[0]]!r} is not in the training data, whose {len(classes)} classes are {known}"
        raise DataError(f"{locate_first_row(where, unknown)}: {what}; correct it, or drop the row")
    return codes.astype(np.int64)


def _no_value(name: str, rows: list[int], where: str) -> DataError:
    return DataError(
        f"{locate_first_row(where, rows)}: no value in the target column {name!r}; fill it in, or drop the row"
    )


def _check_enough(labels: NDArray[np.int64], classes: tuple[str, ...], where: str) -> None:
    """Raises DataError for a class of a single row."""
    alone = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 1)
    if len(alone) and len(classes) > 1:
        row = int(np.flatnonzero(labels == alone[0])[0])
        more = f" (as do {len(alone) - 1:,} more classes)" if len(alone) > 1 else ""
        what = f"class {classes[alone[0]]!r} has this row only{more}, which can't be both trained on and tested"
        raise DataError(f"{tables.locate_row(where, row)}: {what}; get more of it, or drop the row")


def _kinds(found: Columns, dropped: Sequence[str]) -> Choice:
    """Which columns are taken for numbers, and which for categories."""
    categories = [
        f"{column.name} ({len(column.categories)})" for column in found.columns if isinstance(column, CategoryColumn)
    ]
    numbers = [column.name for column in found.columns if not isinstance(column, CategoryColumn)]
    parts = [
        f"{title}: {_listed(names)}"
        for title, names in (("numbers", numbers), ("categories", categories), ("left out", dropped))
        if names
    ]
    return Choice("columns", f"{len(numbers)} of numbers, {len(categories)} of categories", "; ".join(parts))


def _missing(rows: "pl.DataFrame") -> tuple[Choice, ...]:
    """How many values are missing, where some are."""
    counts = {name: rows[name].null_count() for name in rows.columns if rows[name].has_nulls()}
    if not counts:
        return ()
    how = "numbers become the training rows' median and say so in a feature of their own, categories a category"
    total = sum(counts.values())
    where = _listed([f"{name} {count:,}" for name, count in counts.items()])
    return (Choice("missing", f"{total:,} value{'s' * (total > 1)}", f"{where}; {how}"),)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
