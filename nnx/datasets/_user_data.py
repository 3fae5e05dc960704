"""Data of one's own, named by a `path`: what folders, arrays and pairs of files have in common."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from nnx.datasets import Source, Split, stratified
from nnx.errors import MAX_LINES, ConfigError, DataError
from nnx.events import Choice
from nnx.preprocessing.columns import sort_naturally

MOST_CLASSES = 10_000


def _part_or_path(value: Any) -> int | float | str:
    number = (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1)
    if number or (isinstance(value, str) and value):
        part: int | float | str = value
        return part
    raise PydanticCustomError("nnx", "expected a path, a count (1000) or a fraction between 0 and 1 (0.2)")


PartOrPath = Annotated[int | float | str, PlainValidator(_part_or_path, json_schema_input_type=int | float | str)]
"""Test data by its path, or as a count or fraction of the data that there is."""


def _different(names: list[str]) -> list[str]:
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PydanticCustomError("nnx", "{name} is named twice", {"name": repr(twice)})
    return names


Names = Annotated[list[str], Field(min_length=2, max_length=MOST_CLASSES), AfterValidator(_different)]


def existing(path: str, key: str = "dataset.path") -> Path:
    """The file or folder of this name. Raises ConfigError, saying where it was looked for."""
    found = Path(os.path.expanduser(path))
    try:
        if found.exists():
            return found
    except (OSError, ValueError):  # too long a name, say
        pass
    where = "" if found.is_absolute() else f" in {Path.cwd()}"
    raise ConfigError.at(
        key, f"there is no {path}{where}; name the file or folder of the data, from where nnx is started or from /"
    )


def cut(everything: Split, test: int | float, classes: tuple[str, ...], where: object, **known: Any) -> Source:
    """A source of one lot of samples, `test` of them set aside as test data: the same ones whatever the seed of a
    run."""
    count = test if isinstance(test, int) else round(test * len(everything))
    most = len(everything) - len(np.unique(everything.labels))
    if not 1 <= count <= most:
        raise ConfigError.at(
            "dataset.test",
            f"{test} of the {len(everything):,} samples in {where} can't be set aside; at most {most:,} can",
        )
    aside = stratified(everything.labels, count, seed=0)
    train = everything.take(np.delete(np.arange(len(everything)), aside))
    note = Choice(
        "test data",
        f"{count:,} of {len(everything):,} samples",
        "set aside evenly by class, the same for every seed (dataset.test)",
    )
    return Source(train, lambda: everything.take(aside), classes, notes=(note, *known.pop("notes", ())), **known)


def refuse(mistakes: Sequence[str], more: str = "") -> DataError:
    """One error for all that is wrong, the first of them in full. `more` is the cure for all."""
    room = MAX_LINES - bool(more)
    shown = (
        list(mistakes)
        if len(mistakes) <= room
        else [*mistakes[: room - 1], f"... and {len(mistakes) - room + 1:,} more"]
    )
    return DataError("\nerror: ".join(shown) + (f"\nerror: {more}" if more else ""))


def numbered(
    labels: NDArray[Any], where: object, *, names: Sequence[str] | None = None, among: Mapping[str, int] | None = None
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(N,) labels, whole numbers or names -> (N,) class numbers, and the number of each label. (N, 1) is taken for
    (N,).

    With the `names` of the classes from the config, a number is a place among them, a word is one of them. Else the
    labels are numbered as in `among`, those of training data, or in their natural order. Raises DataError, naming the
    row (from 0), for what is no label, or none of these.
    """
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "USiubf":
        what = f"labels of shape {' x '.join(map(str, labels.shape)) or '()'} and type {labels.dtype}"
        one_hot = " (of one-hot ones: labels.argmax(1))" if labels.ndim == 2 else ""
        raise DataError(f"{where}: {what}; give one class, a whole number or a name, for each sample{one_hot}")
    words = labels.dtype.kind in "US"
    labels = _words(labels, where) if words else _whole(labels, where)
    if names:
        among = {(name if words else str(k)): k for k, name in enumerate(names)}
    found, codes = np.unique(labels, return_inverse=True)
    texts = [str(label) for label in found]
    if len(texts) > MOST_CLASSES:
        raise DataError(
            f"{where}: {len(texts):,} different labels, more than {MOST_CLASSES:,}; are they labels of classes?"
        )
    numbers = dict(among or {label: k for k, label in enumerate(sort_naturally(texts))})
    if unknown := [k for k, label in enumerate(texts) if label not in numbers]:
        row = int(np.nonzero(codes == unknown[0])[0][0])
        listed = f"{', '.join([*numbers][:5])}{', ...' if len(numbers) > 5 else ''}"
        raise DataError(
            f"{where}: row {row} has the label {texts[unknown[0]]!r}, which is none of the classes ({listed}); correct or drop it"
        )
    return np.array([numbers[label] for label in texts], np.int64)[codes], numbers


def _whole(labels: NDArray[Any], where: object) -> NDArray[np.int64]:
    """Labels that are numbers as int64. Raises DataError, naming the row, for one that is not whole."""
    if labels.dtype.kind == "f" and len(
        odd := np.nonzero(~((np.abs(labels) < 2**53) & (labels == np.rint(labels))))[0]
    ):  # nor NaN
        raise DataError(
            f"{where}: the label of row {odd[0]} is {labels[odd[0]]:g}, not a whole number; correct it, or drop the row"
        )
    return labels.astype(np.int64)


def _words(labels: NDArray[Any], where: object) -> NDArray[np.str_]:
    """Labels that are text. Raises DataError, naming the row, for none, and for a single word where nearly all are
    numbers: a slip."""
    try:
        text = labels.astype(np.str_)
    except UnicodeDecodeError:
        raise DataError(f"{where}: holds labels of bytes that are not ASCII; save them as text") from None
    if len(empty := np.nonzero(np.char.strip(text) == "")[0]):
        raise DataError(f"{where}: row {empty[0]} has no label; fill it in, or drop the row")
    found, first, times = np.unique(text, return_index=True, return_counts=True)
    numbers = np.char.isdecimal(found)
    if times[numbers].sum() > 0.9 * len(text) and (times[~numbers] == 1).any():
        row = int(first[~numbers & (times == 1)].min())
        raise DataError(
            f"{where}: the label of row {row} is {str(text[row])!r}, the others are numbers; correct it, or drop the row"
        )
    return text
