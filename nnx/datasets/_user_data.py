"""Shared by the datasets that read the user's own files, given by `path`: folders, arrays, IDX pairs and tables."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from nnx.datasets import Source, Split, stratified_sample
from nnx.errors import MAX_LINES, ConfigError, DataError, printable
from nnx.events import Choice
from nnx.preprocessing import images
from nnx.preprocessing.columns import sort_naturally

MAX_CLASSES = 10_000
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What people call a split, in lower case -> its name, in the order of training, validation and test data."""

MAX_SPLITS = 10  # values of a column: one of more does not name splits
SPLIT_WORD = re.compile(
    r"(^|[\W_]|(?-i:(?<=[a-z])(?=[A-Z])))(train|trn|test|tst|val|vld|valid|validation|dev|holdout)(ing)?($|[\W_\d]|set|data)",
    re.IGNORECASE,
)
_SPLIT_COLUMN = re.compile(
    r"(is|in|for)[ _-]?(train|test|val|valid|validation)(ing)?|.*folds?|subset|partition|.*[ _-]split"
)


def may_be_split(name: str, values: Collection[str]) -> bool:
    """Whether a column of this name, with these values, seems to say which samples are for training and which for
    tests: by the words of its values or, if it has few, by its name."""
    if not 1 < len(values) <= MAX_SPLITS:
        return False
    return all(map(SPLIT_WORD.search, values)) or bool(_SPLIT_COLUMN.fullmatch(name.strip().lower()))


def _validate_test_data(value: Any) -> int | float | str:
    valid_number = (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1)
    if valid_number or (isinstance(value, str) and value):
        test_data: int | float | str = value
        return test_data
    if type(value) in (int, float) and value == 0:
        return 0
    raise PydanticCustomError("nnx", "expected a path, a count (1000), a fraction (0.2), or 0 for none")


TestData = Annotated[int | float | str, PlainValidator(_validate_test_data, json_schema_input_type=int | float | str)]
"""Test data: its path, or a count or fraction of the samples to set aside; 0 for none."""


def _validate_white(value: Any) -> int | str:
    if (type(value) is int and 1 <= value <= images.WHITE) or value == "auto":
        white: int | str = value
        return white
    raise PydanticCustomError("nnx", "expected the value that is white, such as 255, 4095 or 65535, or auto")


White = Annotated[int | Literal["auto"], PlainValidator(_validate_white, json_schema_input_type=int | Literal["auto"])]
"""The value that is white in images of more than 8 bits, or auto."""


def describe_white(white: int | str | None, used: int, highest: int) -> tuple[Choice, ...]:
    """Which value becomes white in training images of more than 8 bits, whose `highest` value is above 0; a warning if
    that leaves few gray levels. `white` is the value in the config."""
    if white == "auto":
        others = ", ".join(map(str, images.WHITES[:-1]))
        reason = f"lowest of {others} and {images.WHITE} not below the training images' highest value, {highest:,}"
    else:
        reason = "dataset.white" if white else "white of 16 bits; dataset.white sets another"
    notes = [Choice("white", str(used), reason)]
    if highest < used / 4:
        problem = f"{highest:,} is the highest value in the training images, so that {used:,} as white"
        cure = "dataset.white: auto measures it"
        levels = round(highest * 255 / used) + 1
        notes.append(Choice("warning", "images are dark", f"{problem} leaves {levels} of 256 gray levels; {cure}"))
    return tuple(notes)


def _check_unique(names: list[str]) -> list[str]:
    if len({*names}) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise PydanticCustomError("nnx", "{name} appears twice", {"name": repr(repeated)})
    return names


ClassNames = Annotated[list[str], Field(min_length=2, max_length=MAX_CLASSES), AfterValidator(_check_unique)]


def resolve_path(path: str, key: str = "dataset.path") -> Path:
    """The existing file or folder of this name, with `~` expanded. Raises ConfigError for `key` if there is none."""
    resolved = Path(os.path.expanduser(path))
    try:
        if resolved.exists():
            return resolved
    except (OSError, ValueError):  # for example, the name is too long
        pass
    where = "" if resolved.is_absolute() else f" in {Path.cwd()}"
    cure = "give the file or folder of the data, absolute or relative to the current folder"
    raise ConfigError.at(key, f"there is no {path}{where}; {cure}")


def parse_split(text: str) -> str:
    """A value of a column `split`, in any case -> train, validation or test. Raises ValueError with what is wrong."""
    try:
        return SPLIT_NAMES[text.strip().lower()]
    except KeyError:
        name = f"the split {text.strip()!r}, which is not one of" if text.strip() else "no split: write one of"
        problem = f"has {name} train, validation (val, valid) and test"
        raise ValueError(f"{problem}; correct it, or rename the column") from None


def describe_unused_test(count: int, path: object, test: str) -> Choice:
    """A warning that the `count` test samples in `path` are not used, because the config names the data `test`."""
    reason = f"the test data is {test} (dataset.test), so {path}'s own are neither trained on nor tested"
    return Choice("warning", f"{count:,} test sample{'s' * (count > 1)} not used", reason)


def split_off_test(samples: Split, test: int | float, classes: tuple[str, ...], where: object, **fields: Any) -> Source:
    """The source that sets `test` of all `samples` aside as test data, stratified and the same for every run's seed.
    If it is 0, there is no test data.

    `fields` are further fields of the Source. Raises ConfigError if no class or sample would be left for training.
    """
    if test == 0:
        return Source(samples, None, classes, **{**fields, "notes": tuple(fields.get("notes", ()))})
    count = test if isinstance(test, int) else round(test * len(samples))
    most = len(samples) - len(np.unique(samples.labels))
    if not 1 <= count <= most:
        cure = f"give a count from 1 to {most:,}, or 0 for none" if most else "give 0 for none, or get more data"
        raise ConfigError.at(
            "dataset.test", f"can't set aside {test} of the {len(samples):,} samples in {where}; {cure}"
        )
    samples = samples.named(lambda row: f"{where}[{row}]")
    test_indices = stratified_sample(samples.labels, count, seed=0)
    train = samples.take(np.delete(np.arange(len(samples)), test_indices))
    note = Choice(
        "test data",
        f"{count:,} of {len(samples):,} samples",
        "set aside, stratified by class, the same for every seed (dataset.test)",
    )
    notes = (note, *fields.pop("notes", ()))
    return Source(train, lambda: samples.take(test_indices), classes, notes=notes, **fields)


def combine_errors(messages: Sequence[str], cure: str = "") -> DataError:
    """One DataError for all `messages`, of which it shows the first MAX_LINES, followed by a `cure` for all of them."""
    lines = MAX_LINES - bool(cure)
    shown = [printable(message) for message in messages]
    if len(messages) > lines:
        shown = [*shown[: lines - 1], f"... and {len(messages) - lines + 1:,} more"]
    error = DataError("\nerror: ".join([*shown, printable(cure)] if cure else shown))
    error.has_lines = True
    return error


def encode_labels(
    labels: NDArray[Any],
    where: object,
    *,
    names: Sequence[str] | None = None,
    known: Mapping[str, int] | None = None,
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(N,) or (N, 1) labels, whole numbers or names -> (N,) class numbers, and the number of each label.

    With class `names` from the config, a number is an index into them and a word is one of them. Otherwise labels get
    their numbers from `known`, those of the training data, or in natural order. Raises DataError, naming the row (from
    0), for a label that is invalid or unknown.
    """
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "USiubf":
        problem = f"contains labels of shape {' x '.join(map(str, labels.shape)) or '()'} and type {labels.dtype}"
        one_hot = " (from one-hot labels: labels.argmax(1))" if labels.ndim == 2 else ""
        raise DataError(f"{where}: {problem}; give one whole number or name per sample{one_hot}")
    is_text = labels.dtype.kind in "US"
    labels = _check_text(labels, where) if is_text else _to_integers(labels, where)
    if names:
        known = {(name if is_text else str(k)): k for k, name in enumerate(names)}
    distinct, codes = np.unique(labels, return_inverse=True)
    texts = [str(label) for label in distinct]
    if len(texts) > MAX_CLASSES:
        problem = f"contains {len(texts):,} different labels, more than {MAX_CLASSES:,}"
        raise DataError(f"{where}: {problem}; check that they are class labels")
    numbers = dict(known or {label: k for k, label in enumerate(sort_naturally(texts))})
    if unknown := [k for k, label in enumerate(texts) if label not in numbers]:
        row = int(np.nonzero(codes == unknown[0])[0][0])
        classes = f"{', '.join([*numbers][:5])}{', ...' if len(numbers) > 5 else ''}"
        problem = f"row {row} has the label {texts[unknown[0]]!r}, which is not one of the classes ({classes})"
        raise DataError(f"{where}: {problem}; correct it, or drop the row")
    return np.array([numbers[label] for label in texts], np.int64)[codes], numbers


def _to_integers(labels: NDArray[Any], where: object) -> NDArray[np.int64]:
    """Numeric labels as int64. Raises DataError, naming the row, for a label that is not whole, such as NaN."""
    if labels.dtype.kind == "f":
        whole = (np.abs(labels) < 2**53) & (labels == np.rint(labels))
        if len(wrong := np.nonzero(~whole)[0]):
            problem = f"row {wrong[0]} has the label {labels[wrong[0]]:g}, which is not a whole number"
            raise DataError(f"{where}: {problem}; correct it, or drop the row")
    return labels.astype(np.int64)


def _check_text(labels: NDArray[Any], where: object) -> NDArray[np.str_]:
    """Text labels as str.

    Raises DataError, naming the row, for an empty label, and for a single word among labels of which over 90 % are
    numbers: probably a typing error.
    """
    try:
        text = labels.astype(np.str_)
    except UnicodeDecodeError:
        raise DataError(f"{where}: contains labels with bytes that are not ASCII; save them as text") from None
    if len(empty := np.nonzero(np.char.strip(text) == "")[0]):
        raise DataError(f"{where}: row {empty[0]} has no label; fill it in, or drop the row")
    distinct, first, counts = np.unique(text, return_index=True, return_counts=True)
    is_number = np.char.isdecimal(distinct)
    if counts[is_number].sum() > 0.9 * len(text) and (counts[~is_number] == 1).any():
        row = int(first[~is_number & (counts == 1)].min())
        problem = f"row {row} has the label {str(text[row])!r}, but the other labels are numbers"
        raise DataError(f"{where}: {problem}; correct it, or drop the row")
    return text
