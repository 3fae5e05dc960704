"""Datasets, one file each: a `Config` and `load(config, folder) -> Source`. The file's name is the dataset's.

Every source becomes one uint8 array of images (N, C, H, W) or one float32 array of rows (N, F), with int64 labels.

    dataset = load(config.dataset, seed=config.seed)
    dataset.spec, dataset.train, dataset.validation, dataset.test()
"""

import os
import unicodedata
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from nnx.config import CountOrFraction, registry
from nnx.config.registry import Component
from nnx.datasets import _changes, _progress
from nnx.datasets._mapped import Mapped, fits, is_mapped
from nnx.datasets._progress import silent
from nnx.datasets._statistics import (
    Duplicates,
    describe_balance,
    describe_repeats,
    describe_similar_classes,
    find_duplicates,
    fingerprint,
    mean_std,
    oversampled_indices,
    stratified_sample,
)
from nnx.errors import ConfigError, DataError, InputError
from nnx.events import Choice
from nnx.preprocessing.columns import Columns
from nnx.preprocessing.image_columns import ImageColumns
from nnx.preprocessing.image_statistics import ImageStatistics
from nnx.preprocessing.images import MAX_PIXELS
from nnx.preprocessing.spec import Fit, Spec

__all__ = [
    "Dataset",
    "DatasetConfig",
    "Duplicates",
    "Mapped",
    "Source",
    "Split",
    "check_split",
    "describe_location",
    "find_duplicates",
    "find_folder",
    "fingerprint",
    "is_mapped",
    "load",
    "mean_std",
    "silent",
    "stratified_sample",
]

Numbers = Annotated[list[float], Field(min_length=1, max_length=100_000)]
Deviations = Annotated[list[Annotated[float, Field(ge=1e-9)]], Field(min_length=1, max_length=100_000)]


class DatasetConfig(Component):
    """The options of every dataset."""

    packaged: ClassVar[bool] = False  # whether it comes with a library or is computed, so that it needs no folder
    root: str | None = Field(
        None, description="data folder; by default --data-dir, NNX_DATA_DIR or the user's cache folder"
    )
    validation: CountOrFraction = Field(
        0.1,
        description="training samples to set aside for validation: a count, a fraction, or 0: keep the last epoch",
    )
    balance: Literal["none", "oversample"] = Field(
        "none", description="oversample: repeat training samples until all classes have equal numbers"
    )
    mean: Numbers | None = Field(
        None, description="value to subtract per channel, in units of [0, 1], or feature; by default the training mean"
    )
    std: Deviations | None = Field(
        None, description="value to divide by, likewise; by default the standard deviation of the training data"
    )
    _trained_columns: ImageColumns | None = PrivateAttr(None)

    def with_columns_of(self, columns: ImageColumns) -> Self:
        """This config for a network that was trained on these columns of a table of images."""
        config = self.model_copy()
        config._trained_columns = columns
        return config


@dataclass(frozen=True)
class Split:
    """N samples: inputs (N, C, H, W) uint8 or (N, F) float32, labels (N,) int64 in [0, K).

    The rows of a table are float64 until they are converted to features. `names` is what messages call the samples.
    """

    inputs: NDArray[Any] | Mapped
    labels: NDArray[np.int64]
    names: "SampleNames | None" = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> "Split":
        """The samples at `index`, in that order."""
        inputs = self.inputs
        names = self.names and SampleNames(self.names.name, self.names.rows[index])
        if is_mapped(inputs) and not isinstance(inputs, Mapped):
            return Split(Mapped(inputs, index), self.labels[index], names)
        return Split(inputs.take(index, axis=0), self.labels[index], names)

    def named(self, name: Callable[[int], str]) -> "Split":
        """The same samples, called `name(0)`, `name(1)`, ... unless they have names."""
        return self if self.names else replace(self, names=SampleNames(name, np.arange(len(self))))


@dataclass(frozen=True)
class SampleNames:
    """What messages call the samples of a split: a file, or a line of a table, found only when it is needed."""

    name: Callable[[int], str]
    rows: NDArray[np.int64]  # the argument of `name` for each sample

    def __getitem__(self, index: int) -> str:
        return self.name(int(self.rows[index]))


@dataclass(frozen=True)
class Source:
    """What a dataset's file loads: all training data, the test data not read yet (None: there is none), and the names
    of the K classes.

    `wait_until_verified` waits for a check of the training files that is still running, and raises DataError if they
    are damaged. `test_files` are those that `test` opens. `validation` is set if the data has its own validation split.
    `columns`, of a table, are not fitted yet: the splits then contain (N, columns) float64 from `Columns.encode`.
    `notes` tell the user what was chosen, and why.
    """

    train: Split
    test: Callable[[], Split] | None
    classes: tuple[str, ...]
    wait_until_verified: Callable[[], None] = lambda: None
    test_files: tuple[Path, ...] = ()
    validation: Split | None = None
    columns: Columns | None = None
    fit: Fit | None = None
    white: int | None = None  # scaled to 255, if the images had more than 8 bits
    max_pixels: int | None = None  # of an image file
    image_columns: ImageColumns | None = None  # of a table of images
    notes: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A dataset ready for use. `test` reads the test set; a run calls it once, at its end.

    `validation` and `test` are None if the config sets nothing aside for them.
    """

    spec: Spec
    train: Split
    validation: Split | None
    test: Callable[[], Split] | None
    folder: Path
    notes: tuple[Choice, ...] = ()
    read_later: tuple[_changes.FileState, ...] = ()  # the files that are read after loading, as they were then

    @property
    def seen(self) -> tuple[Split, ...]:
        """What a training sees: the training samples, and the validation samples if there are any."""
        return (self.train, self.validation) if self.validation else (self.train,)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that have samples, first the one that shows best how a network does on new samples: test,
        validation, train."""
        present = {"test": self.test, "validation": self.validation, "train": self.train}
        return tuple(name for name, split in present.items() if split)

    def find_changed_files(self) -> list[Path]:
        """The files whose content changed after loading, so that what is read from them is of other data."""
        return [state.path for state in self.read_later if state.has_changed]

    def split(self, name: str) -> Split:
        """The split of this name: train, validation or test. Raises InputError if there is none."""
        if name == "train":
            return self.train
        split = self.validation if name == "validation" else self.test and self.test()
        if split is None:
            others = "train or validation" if name == "test" and self.validation else "train"
            other_data = ", or name test data: --set dataset.test=FILE" if name == "test" else ""
            problem = f"the dataset has none (dataset.{name}: 0)"
            raise InputError(f"{name} split: {problem}; use --split {others}{other_data}")
        return split


def load(
    config: DatasetConfig,
    *,
    seed: int,
    data_dir: str | None = None,
    progress: _progress.Progress | None = None,
    like: Spec | None = None,
) -> Dataset:
    """The dataset that `config` names, with a validation split cut from its training data. Downloads missing files.

    `seed` decides which samples validate. `data_dir` is `--data-dir`. `progress` receives the progress of downloads
    (see `_progress.Progress`), which otherwise goes to stderr. `like`, the spec of a trained network, is applied as it
    is: its classes, columns, mean and deviation; nothing is measured.

    Raises DataError if files are damaged, or missing while NNX_OFFLINE is set; ConfigError if `validation` leaves
    nothing to train on, or is 0 although the data has its own; MachineError if downloading, reading or writing fails.
    """
    folder = find_folder(config, data_dir)
    config = _with_white_of(config, like)
    if like and like.image_columns:
        config = config.with_columns_of(like.image_columns)
    with _changes.recording() as mapped_files, _progress.reporting(progress) if progress else nullcontext():
        source: Source = registry.module("dataset", config.name).load(config, folder)
    read_later = (*mapped_files, *(_changes.FileState.of(path) for path in source.test_files))
    where = describe_location(config, folder)
    if like is None:
        _check_none_wanted(config, source, where)
    source = _match_classes(source, like, where)
    _check_class_names(source.classes, where)
    K = len(source.classes)
    if K < 2:
        problem = f"all samples have the class {source.classes[0]!r}"
        raise DataError(f"{where}: {problem}; a classifier needs samples of at least two classes")
    samples = check_split(source.train, K, where).named("training sample {}".format)
    shape = samples.inputs.shape[1:]
    keep = _read_into_memory if fits(samples.inputs.nbytes) else _leave_in_file
    rows = np.arange(len(samples))
    train = samples
    validation = None
    if source.validation:
        validation = check_split(source.validation, K, where, shape=shape).named("validation sample {}".format)
    elif count := _validation_count(config.validation, samples.labels):
        validation_rows = stratified_sample(samples.labels, count, seed=seed)
        rows = np.delete(rows, validation_rows)
        train = samples.take(rows)
        validation = samples.take(validation_rows)
    train = keep(train)
    validation = validation and keep(validation)
    columns = like.columns if like else source.columns and source.columns.fit(np.asarray(samples.inputs[rows]))
    to_features = _feature_converter(source, columns, where)
    train = to_features(train)
    validation = validation and to_features(validation)
    spec = like or _measure_spec(config, source, train, columns)
    source.wait_until_verified()
    repeats: tuple[Choice, ...] = ()
    if like is None:
        seen = (train, validation) if validation else (train,)
        is_own = hasattr(config, "path")
        repeats = describe_repeats(seen, source.classes, packaged=not is_own)
        repeats += describe_similar_classes(source.classes) if is_own else ()
    oversample = config.balance == "oversample"
    notes = (*source.notes, *repeats, *describe_balance(train.labels, source.classes, oversample=oversample))
    if oversample:
        train = train.take(oversampled_indices(train.labels, seed=seed))
    load_test = source.test  # not `source`, which would keep all training data in memory a second time

    def test(load_test: Callable[[], Split]) -> Split:
        split = check_split(load_test(), K, where, shape=shape).named("test sample {}".format)
        return to_features(_read_into_memory(split) if fits(split.inputs.nbytes) else _leave_in_file(split))

    return Dataset(spec, train, validation, load_test and partial(test, load_test), folder, notes, read_later)


def _with_white_of(config: DatasetConfig, like: Spec | None) -> DatasetConfig:
    """`config` with the white that the network with the spec `like` was trained with. Raises ConfigError for another
    value."""
    if like is None or like.white is None or not hasattr(config, "white"):
        return config
    if config.white not in (None, "auto", like.white):
        problem = f"is {config.white}, but the network was trained with {like.white}"
        raise ConfigError.at("dataset.white", f"{problem}; remove it")
    return config.model_copy(update={"white": like.white})


def find_folder(config: DatasetConfig, data_dir: str | None = None) -> Path:
    """The data folder: `dataset.root`, else --data-dir, else NNX_DATA_DIR, else the user's cache folder."""
    if named := config.root or data_dir or os.environ.get("NNX_DATA_DIR"):
        return Path(named).expanduser()
    import platformdirs  # 20 ms

    return platformdirs.user_cache_path("nnx") / "data"


def describe_location(config: DatasetConfig, folder: Path) -> str:
    """Where the data is, for messages: the config's `path`, or the dataset's name and its folder, if it needs one."""
    return getattr(config, "path", None) or f"dataset {config.name}{'' if config.packaged else f' in {folder}'}"


def check_split(split: Split, classes: int, where: str | Path, *, shape: tuple[int, ...] | None = None) -> Split:
    """`split` itself. Raises DataError, naming `where`, unless it has samples and a label in [0, K) for each.

    Where `shape` is given, that of the training inputs, each input must have it.
    """
    inputs = split.inputs
    labels = split.labels
    cure = "correct the files; if nnx downloaded them, delete them and run again"
    if len(inputs) != len(labels):
        problem = f"contains {len(inputs):,} inputs but {len(labels):,} labels"
        raise DataError(f"{where}: {problem}; each input needs one label; {cure}")
    if not len(labels):
        raise DataError(f"{where}: contains no samples; {cure}")
    low = labels.min()
    high = labels.max()
    if low < 0 or high >= classes:
        raise DataError(f"{where}: contains labels from {low} to {high}, outside 0 to {classes - 1}; {cure}")
    if shape and inputs.shape[1:] != shape:
        problem = f"has inputs of shape {inputs.shape[1:]}, but the training inputs have shape {shape}"
        raise DataError(f"{where}: {problem}; {cure}")
    return split


def _check_class_names(classes: tuple[str, ...], where: str | Path) -> None:
    """Raises DataError for a class name that would garble the output: blank, or with line ends or escape codes."""
    for name in classes:
        if not name.strip() or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            problem = f"the class name {name!r} is blank or contains unprintable characters"
            raise DataError(f"{where}: {problem}; rename the class")


def _check_none_wanted(config: DatasetConfig, source: Source, where: str | Path) -> None:
    """Raises ConfigError for `validation: 0` or `test: 0` if the data has its own validation or test samples."""
    own = {"validation": source.validation, "test": source.test}
    for key, samples in own.items():
        if samples is not None and getattr(config, key, None) == 0:
            problem = f"0 does not apply: {where} has its own {key} data, which nnx does not train on"
            cure = f"remove dataset.{key}, or make the {key} data part of the training data in your files"
            raise ConfigError.at(f"dataset.{key}", f"{problem}; {cure}")


def _validation_count(wanted: int | float, labels: NDArray[np.int64]) -> int:
    """`wanted`, a count or a fraction, as a count that leaves a training sample of each class; 0 if that is wanted.

    Raises ConfigError.
    """
    if wanted == 0:
        return 0
    count = wanted if isinstance(wanted, int) else round(wanted * len(labels))
    most = len(labels) - len(np.unique(labels))
    if not 1 <= count <= most:
        problem = "sets nothing aside" if count < 1 else "leaves too little to train on"
        cure = (
            f"give a count from 1 to {most}, which leaves one of each class for training, or 0 for none"
            if most
            else "give 0 for none, or get more data"
        )
        raise ConfigError.at("dataset.validation", f"{wanted} {problem}: there are {len(labels)} samples; {cure}")
    return count


def _measure_spec(config: DatasetConfig, source: Source, train: Split, columns: Columns | None) -> Spec:
    """What a model must know about the data. Raises ConfigError if the config's mean or std does not fit the data."""
    shape: tuple[int, ...] = train.inputs.shape[1:]
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values and columns:
            problem = "does not apply to a table, whose columns are standardised separately"
            raise ConfigError.at(f"dataset.{key}", f"{problem}; remove it")
        if values and len(values) != shape[0]:
            unit = "channel" if len(shape) == 3 else "feature"
            problem = f"has {len(values)} values, but the data has {shape[0]} {unit}s"
            raise ConfigError.at(f"dataset.{key}", f"{problem}; give one per {unit}")
    if columns:
        return Spec(shape, source.classes, (0.0,) * shape[0], (1.0,) * shape[0], columns=columns)
    mean, std = (config.mean, config.std) if config.mean and config.std else mean_std(train.inputs)
    statistics = ImageStatistics.measure(train.inputs) if len(shape) == 3 else None
    return Spec(
        shape,
        source.classes,
        tuple(config.mean or mean),
        tuple(config.std or std),
        source.fit,
        statistics,
        white=source.white if len(shape) == 3 else None,
        max_pixels=source.max_pixels if source.max_pixels != MAX_PIXELS else None,
        image_columns=source.image_columns,
    )


def _read_into_memory(split: Split) -> Split:
    """`split`, with inputs that are in a file read into memory."""
    return replace(split, inputs=np.array(split.inputs, order="C")) if is_mapped(split.inputs) else split


def _leave_in_file(split: Split) -> Split:
    """`split`, with inputs that are in a file left there, as `Mapped`."""
    return split.take(np.arange(len(split))) if is_mapped(split.inputs) else split


def _match_classes(source: Source, like: Spec | None, where: str | Path) -> Source:
    """`source` with its classes numbered as in `like`, which may have more of them.

    Raises DataError for a class that `like` does not have, and if only one of the two is a table.
    """
    if like and (source.columns is None) != (like.columns is None):
        problem = (
            "is not a table, but the network was trained on one"
            if like.columns
            else "is a table, but the network was not trained on one"
        )
        raise DataError(f"{where}: {problem}; give data of the kind that it was trained on")
    if like is None or source.classes == like.classes:
        return source
    number_of = {name: k for k, name in enumerate(like.classes)}
    if unknown := [name for name in source.classes if name not in number_of]:
        known = f"{', '.join(like.classes[:5])}{', ...' if len(like.classes) > 5 else ''}"
        problem = f"has the class {unknown[0]!r}, which is not one of the network's {len(like.classes)} classes"
        raise DataError(f"{where}: {problem}: {known}")
    numbers = np.array([number_of[name] for name in source.classes], np.int64)

    def renumber(split: Split) -> Split:
        return replace(split, labels=numbers[split.labels])

    load_test = source.test
    return replace(
        source,
        train=renumber(source.train),
        test=(lambda: renumber(load_test())) if load_test else None,
        validation=source.validation and renumber(source.validation),
        classes=like.classes,
    )


def _feature_converter(source: Source, columns: Columns | None, where: str | Path) -> Callable[[Split], Split]:
    """A function that converts a table's rows to features by the fitted `columns`, and returns images unchanged."""
    encoding = source.columns
    if columns is None or encoding is None:
        return lambda split: split

    def convert(split: Split) -> Split:
        try:
            return replace(split, inputs=columns.apply(np.asarray(split.inputs), encoding))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    return convert
