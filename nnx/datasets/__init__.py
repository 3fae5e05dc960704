"""Datasets, one file each: a `Config`, and `load(config, folder) -> Source`. The file's name is the dataset's.

Whatever the source, the result is one uint8 array of images (N, C, H, W), or one float32 array of rows (N, F), with
int64 labels.

    dataset = load(config.dataset, seed=config.seed)
    dataset.spec, dataset.train, dataset.validation, dataset.test()
"""

import os
import unicodedata
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx.config import CountOrFraction, registry
from nnx.config.registry import Component
from nnx.datasets import _progress
from nnx.datasets._mapped import Mapped, fits, is_mapped
from nnx.datasets._progress import silent
from nnx.datasets._statistics import balanced, duplicates, fingerprint, mean_std, repeated, stratified
from nnx.errors import ConfigError, DataError
from nnx.events import Choice
from nnx.preprocessing.columns import Columns
from nnx.preprocessing.image_statistics import ImageStatistics
from nnx.preprocessing.spec import Fit, Spec

__all__ = [
    "Dataset",
    "DatasetConfig",
    "Mapped",
    "Source",
    "Split",
    "checked",
    "duplicates",
    "find_folder",
    "fingerprint",
    "load",
    "mean_std",
    "place",
    "repeated",
    "silent",
    "stratified",
]

Numbers = Annotated[list[float], Field(min_length=1, max_length=100_000)]


class DatasetConfig(Component):
    """What every dataset can be told."""

    packaged: ClassVar[bool] = False  # whether it comes with a library, or is computed: no folder is looked at
    root: str | None = Field(
        None, description="folder of the data; else --data-dir, NNX_DATA_DIR, or the user's cache folder"
    )
    validation: CountOrFraction = Field(
        0.1, description="how much of the training data to set aside: a count or a fraction"
    )
    balance: Literal["none", "oversample"] = Field(
        "none", description="oversample: repeat training samples until classes have equal numbers"
    )
    mean: Numbers | None = Field(
        None, description="what to subtract, for each channel, in units of [0, 1], or feature; else the training data's"
    )
    std: Numbers | None = Field(
        None, description="what to divide by, likewise; else the training data's standard deviation"
    )


@dataclass(frozen=True)
class Split:
    """N samples: inputs (N, C, H, W) uint8 or (N, F) float32, labels (N,) int64 in [0, K). A table's rows are float64
    until prepared."""

    inputs: NDArray[Any] | Mapped
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> "Split":
        """The samples at `index`, in that order."""
        inputs = self.inputs
        if is_mapped(inputs) and not isinstance(inputs, Mapped):
            return Split(Mapped(inputs, index), self.labels[index])
        return Split(inputs.take(index, axis=0), self.labels[index])


@dataclass(frozen=True)
class Source:
    """A dataset as its file gives it: all training data, the test data unopened, and the names of the K classes.

    `verified` waits for a check of the training files that still goes on, and raises DataError where they are damaged.
    `validation` is there where the data has such a part of its own. `columns`, of a table, are not fitted yet: its
    splits then hold (N, columns) float64 as `Columns.encode` gives them. `notes` say what was chosen for the user, and
    why.
    """

    train: Split
    test: Callable[[], Split]
    classes: tuple[str, ...]
    verified: Callable[[], None] = lambda: None
    validation: Split | None = None
    columns: Columns | None = None
    fit: Fit | None = None
    notes: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A dataset ready for use. `test` reads the test set, which a run does once, at its end."""

    spec: Spec
    train: Split
    validation: Split
    test: Callable[[], Split]
    folder: Path
    notes: tuple[Choice, ...] = ()

    def split(self, name: str) -> Split:
        """The split by its name: train, validation or test."""
        splits: dict[str, Callable[[], Split]] = {
            "train": lambda: self.train,
            "validation": lambda: self.validation,
            "test": self.test,
        }
        return splits[name]()


def load(
    config: DatasetConfig,
    *,
    seed: int,
    data_dir: str | None = None,
    progress: _progress.Progress | None = None,
    like: Spec | None = None,
) -> Dataset:
    """The dataset that `config` names, with a validation part cut from its training data. Downloads what is missing.

    `seed` decides which samples are set aside. `data_dir` is `--data-dir`. `progress` is told of a download (see
    `_progress.Progress`); by default it shows on stderr. With `like`, of a trained network, everything is prepared as
    that says, and nothing is measured.

    Raises DataError where files are missing and can't be downloaded, or are broken; ConfigError where `validation`
    leaves nothing to train on; MachineError where the machine fails at reading or writing.
    """
    folder = find_folder(config, data_dir)
    with _progress.reporting(progress) if progress else nullcontext():
        source: Source = registry.module("dataset", config.name).load(config, folder)
    where = place(config, folder)
    source, classes = _known_as(source, like, where), len(source.classes if like is None else like.classes)
    _check_names(source.classes, where)
    if classes < 2:
        raise DataError(
            f"{where}: all samples are of one class, {source.classes[0]!r}; a classifier needs samples of two at least"
        )
    whole = checked(source.train, classes, where)
    hold = _in_memory if fits(whole.inputs.nbytes) else _left
    rows, train, validation, shape = np.arange(len(whole)), whole, source.validation, whole.inputs.shape[1:]
    if validation:
        validation = checked(validation, classes, where, shape=shape)
    else:
        aside = stratified(whole.labels, _validation_count(config.validation, whole.labels), seed=seed)
        rows = np.delete(rows, aside)
        train, validation = whole.take(rows), whole.take(aside)
    train, validation = hold(train), hold(validation)
    columns = like.columns if like else source.columns and source.columns.fit(np.asarray(whole.inputs[rows]))
    prepare = _preparation(source, columns, where)
    train, validation = prepare(train), prepare(validation)
    spec = like or _measured(config, source, train, columns)
    source.verified()
    notes = (*source.notes, *balanced(train.labels, source.classes, oversample=config.balance == "oversample"))
    if config.balance == "oversample":
        train = train.take(repeated(train.labels, seed=seed))
    open_test = source.test  # not `source`, which would keep the whole training data in memory beside its parts

    def test() -> Split:
        found = checked(open_test(), classes, where, shape=shape)
        return prepare(_in_memory(found) if fits(found.inputs.nbytes) else _left(found))

    return Dataset(spec, train, validation, test, folder, notes)


def find_folder(config: DatasetConfig, data_dir: str | None = None) -> Path:
    """Where the data lies: `dataset.root`, else --data-dir, else NNX_DATA_DIR, else the user's cache folder."""
    if named := config.root or data_dir or os.environ.get("NNX_DATA_DIR"):
        return Path(named).expanduser()
    import platformdirs  # 20 ms

    return platformdirs.user_cache_path("nnx") / "data"


def place(config: DatasetConfig, folder: Path) -> str:
    """Where the data lies, for a message: the path that `config` names, or the dataset's name and its folder, if it
    needs one."""
    return getattr(config, "path", None) or f"dataset {config.name}{'' if config.packaged else f' in {folder}'}"


def checked(split: Split, classes: int, where: str | Path, *, shape: tuple[int, ...] | None = None) -> Split:
    """The split itself, if it is one: some samples, a label in [0, K) for each, inputs of `shape`. Else DataError
    naming `where`."""
    inputs, labels = split.inputs, split.labels
    cure = "put the right files there, or delete them and run again to get them afresh"
    if len(inputs) != len(labels) or not len(labels):
        raise DataError(
            f"{where}: {len(inputs):,} inputs and {len(labels):,} labels; there must be one label for each, and some; {cure}"
        )
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise DataError(f"{where}: labels run from {low} to {high}, but must lie within 0 to {classes - 1}; {cure}")
    if shape and inputs.shape[1:] != shape:
        raise DataError(
            f"{where}: test inputs of shape {inputs.shape[1:]}, but training inputs of shape {shape}; {cure}"
        )
    return split


def _check_names(classes: tuple[str, ...], where: str | Path) -> None:
    """Raises DataError for a class whose name would break up what it is written into: with line ends, escape codes, or
    not Unicode."""
    if odd := [
        name for name in classes if not name.strip() or any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
    ]:
        raise DataError(f"{where}: the name of the class {odd[0]!r} has characters that can't be shown; rename it")


def _validation_count(wanted: int | float, labels: NDArray[np.int64]) -> int:
    """`wanted`, a count or a fraction, as a count that leaves a training sample of each class. Raises ConfigError."""
    count = wanted if isinstance(wanted, int) else round(wanted * len(labels))
    most = len(labels) - len(np.unique(labels))
    if not 1 <= count <= most:
        what = "sets nothing aside" if count < 1 else "leaves nothing to train on"
        cure = f"give a count from 1 to {most}, as one of each class stays for training" if most else "get more data"
        raise ConfigError.at("dataset.validation", f"{wanted} {what}: there are {len(labels)} samples; {cure}")
    return count


def _measured(config: DatasetConfig, source: Source, train: Split, columns: Columns | None) -> Spec:
    """What a model must know of the data. Raises ConfigError where the config's mean or deviation is none for it."""
    shape: tuple[int, ...] = train.inputs.shape[1:]
    for key, given in (("mean", config.mean), ("std", config.std)):
        if given and columns:
            raise ConfigError.at(
                f"dataset.{key}", "is not for a table, whose columns are standardised each by itself; leave it away"
            )
        if given and len(given) != shape[0]:
            what = "channels" if len(shape) == 3 else "features"
            raise ConfigError.at(
                f"dataset.{key}", f"has {len(given)} values, the data has {shape[0]} {what}; give one for each"
            )
    if config.std and min(config.std) <= 0:
        raise ConfigError.at("dataset.std", "holds a value that is not above 0, as a standard deviation is")
    if columns:
        return Spec(shape, source.classes, (0.0,) * shape[0], (1.0,) * shape[0], columns=columns)
    mean, std = (config.mean, config.std) if config.mean and config.std else mean_std(train.inputs)
    statistics = ImageStatistics.measure(train.inputs) if len(shape) == 3 else None
    return Spec(shape, source.classes, tuple(config.mean or mean), tuple(config.std or std), source.fit, statistics)


def _in_memory(split: Split) -> Split:
    """`split`, read into memory where it lies in a file."""
    return Split(np.array(split.inputs, order="C"), split.labels) if is_mapped(split.inputs) else split


def _left(split: Split) -> Split:
    """`split`, left in its file where it lies in one."""
    return split.take(np.arange(len(split))) if is_mapped(split.inputs) else split


def _known_as(source: Source, like: Spec | None, where: str | Path) -> Source:
    """`source` with its classes numbered as in `like`, which may know more of them. Raises DataError for one that it
    does not know.

    Raises it, too, where only one of the two is a table.
    """
    if like and (source.columns is None) != (like.columns is None):
        was, now = ("a table", "is no table") if like.columns else ("what is none", "is a table")
        raise DataError(
            f"{where}: {now}, but the network was trained on {was}; name data of the kind that it was trained on"
        )
    if like is None or source.classes == like.classes:
        return source
    known_as = {name: k for k, name in enumerate(like.classes)}
    if unknown := [name for name in source.classes if name not in known_as]:
        known = f"{', '.join(like.classes[:5])}{', ...' if len(like.classes) > 5 else ''}"
        raise DataError(
            f"{where}: has the class {unknown[0]!r}, which the network does not know; it knows {len(like.classes)}: {known}"
        )
    number = np.array([known_as[name] for name in source.classes], np.int64)

    def renumbered(split: Split) -> Split:
        return Split(split.inputs, number[split.labels])

    validation = source.validation and renumbered(source.validation)
    return replace(
        source,
        train=renumbered(source.train),
        test=lambda: renumbered(source.test()),
        validation=validation,
        classes=like.classes,
    )


def _preparation(source: Source, columns: Columns | None, where: str | Path) -> Callable[[Split], Split]:
    """What makes features of a table's rows, by the fitted `columns`; images stay as they are."""
    coded_by = source.columns
    if columns is None or coded_by is None:
        return lambda split: split

    def prepare(split: Split) -> Split:
        try:
            return Split(columns.apply(np.asarray(split.inputs), coded_by), split.labels)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    return prepare
