"""Data of one's own, named by a `path`: what folders, arrays and pairs of files have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from nnx.columns import naturally
from nnx.datasets import Source, Split, stratified
from nnx.errors import MAX_LINES, ConfigError, DataError
from nnx.events import Choice

MOST_CLASSES = 10_000


def _part_or_path(value: Any) -> int | float | str:
    number = (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1)
    if number or (isinstance(value, str) and value):
        part: int | float | str = value
        return part
    raise PydanticCustomError("nnx", "expected a path, a count (1000) or a fraction between 0 and 1 (0.2)")


PartOrPath = Annotated[int | float | str, PlainValidator(_part_or_path, json_schema_input_type=int | float | str)]
"""Test data by its path, or as a count or fraction of the data that there is."""

Names = Annotated[list[str], Field(min_length=2, max_length=MOST_CLASSES)]


def existing(path: str, key: str = "dataset.path") -> Path:
    """The file or folder of this name. Raises ConfigError, saying where it was looked for."""
    found = Path(path).expanduser()
    try:
        if found.exists():
            return found
    except (OSError, ValueError):  # too long a name, say
        pass
    where = "" if found.is_absolute() else f" in {Path.cwd()}"
    raise ConfigError.at(key, f"there is no {path}{where}; name the file or folder of the data, from where nnx is started or from /")


def cut(everything: Split, test: int | float, classes: tuple[str, ...], where: object, **known: Any) -> Source:
    """A source of one lot of samples, `test` of them set aside as test data: the same ones whatever the seed of a run."""
    count = test if isinstance(test, int) else round(test * len(everything))
    most = len(everything) - len(np.unique(everything.labels))
    if not 1 <= count <= most:
        raise ConfigError.at(
            "dataset.test", f"{test} of the {len(everything):,} samples in {where} can't be set aside; at most {most:,} can"
        )
    aside = stratified(everything.labels, count, seed=0)
    train = everything.take(np.delete(np.arange(len(everything)), aside))
    note = Choice(
        "test data", f"{count:,} of {len(everything):,} samples", "set aside evenly by class, the same for every seed (dataset.test)"
    )
    return Source(train, lambda: everything.take(aside), classes, notes=(note, *known.pop("notes", ())), **known)


def refuse(mistakes: Sequence[str], more: str = "") -> DataError:
    """One error for all that is wrong, the first of them in full. `more` is the cure for all."""
    room = MAX_LINES - bool(more)
    shown = list(mistakes) if len(mistakes) <= room else [*mistakes[: room - 1], f"... and {len(mistakes) - room + 1:,} more"]
    return DataError("\nerror: ".join(shown) + (f"\nerror: {more}" if more else ""))


def numbers_of(names: Sequence[str] | None) -> dict[str, int] | None:
    """Where the config names the classes: the number of each label, which may be such a name or its place."""
    return {str(k): k for k in range(len(names))} | {name: k for k, name in enumerate(names)} if names else None


def numbered(labels: NDArray[Any], where: object, among: Mapping[str, int] | None = None) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(N,) labels, whole numbers or names -> (N,) class numbers, and the number of each label: those of `among`, else those that occur,
    in their natural order. (N, 1) is taken for (N,).

    Raises DataError, naming the row (from 0), for what is no label, or none of `among`.
    """
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "USiubf":
        shape = " x ".join(map(str, labels.shape))
        raise DataError(
            f"{where}: labels of shape {shape} and type {labels.dtype}; give one class, a whole number or a name, for each sample"
        )
    if labels.dtype.kind in "US":
        _check_mixed(labels.astype(str), where)
    elif len(odd := np.nonzero(~(np.isfinite(labels) & (labels == np.round(labels))))[0]):
        raise DataError(f"{where}: the label of row {odd[0]} is {labels[odd[0]]:g}, not a whole number; correct it, or drop the row")
    found, codes = np.unique(labels if labels.dtype.kind in "US" else labels.astype(np.int64), return_inverse=True)
    words = [str(label) for label in found.astype(str)]
    if len(words) > MOST_CLASSES:
        raise DataError(f"{where}: {len(words):,} different labels, more than {MOST_CLASSES:,}; are they labels of classes?")
    numbers = dict(among or {label: k for k, label in enumerate(naturally(words))})
    if unknown := [k for k, label in enumerate(words) if label not in numbers]:
        row = int(np.nonzero(codes == unknown[0])[0][0])
        listed = f"{', '.join([*numbers][:5])}{', ...' if len(numbers) > 5 else ''}"
        raise DataError(
            f"{where}: row {row} has the label {words[unknown[0]]!r}, which is none of the classes ({listed}); correct or drop it"
        )
    return np.array([numbers[label] for label in words], np.int64)[codes], numbers


def _check_mixed(text: NDArray[np.str_], where: object) -> None:
    """Raises DataError where nearly all labels are numbers, but one is a word: a slip, not a class."""
    numbers = np.char.isdecimal(text)
    if numbers.mean() > 0.9 and not numbers.all():
        row = int(np.nonzero(~numbers)[0][0])
        raise DataError(f"{where}: the label of row {row} is {str(text[row])!r}, the others are numbers; correct it, or drop the row")
