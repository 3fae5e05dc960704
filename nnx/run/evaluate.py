"""A checkpoint measured on a split of its dataset, and the end of a run: its best network on the test set."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from nnx import checkpoint, datasets, losses, models
from nnx import config as configs
from nnx.checkpoint import Checkpoint, build_network
from nnx.config import Config
from nnx.datasets import Dataset, DatasetConfig, Duplicates, Split
from nnx.errors import CheckpointError, InputError
from nnx.events import Choice
from nnx.inference.classifier import Classifier, open_network
from nnx.inference.metrics import Predictions, evaluate
from nnx.inference.onnx_file import OnnxNetwork, onnx_runtime
from nnx.loader.batches import EVALUATION_BATCH, BatchLoader
from nnx.losses import Criterion
from nnx.report import ReportContent
from nnx.run import folder as run_folder
from nnx.run.assess import assess, known_assessment
from nnx.run.saver import RunSaver
from nnx.system import device as devices
from nnx.system.device import Runtime
from nnx.training import film
from nnx.training.setup import build_criterion, hash_training_data, runtime_for, with_supported_precision
from nnx.training.state import State


def evaluate_checkpoint(
    path: Path,
    *,
    split: str = "test",
    device: str | None = None,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
) -> ReportContent:
    """Measure the checkpoint that `path` is, or that of the run in that folder, or an exported ONNX file, on a split of
    its dataset, or of the dataset that `overrides` describe: the `metrics` of the result, or a report of it.

    Raises CheckpointError, ConfigError, DataError, DeviceError, MachineError.
    """
    path = checkpoint.locate(path)
    saved, network = open_network(path)
    if is_exported := isinstance(network, OnnxNetwork):
        runtime = onnx_runtime(device)
        config = settings_of(saved, path, overrides, "cpu")
    else:
        config = settings_of(saved, path, overrides, device)
        runtime = runtime_for(config)
    dataset = dataset_of(saved, config, path, data_dir)
    if not is_exported:
        runtime = with_supported_precision(runtime, config, network, saved.spec)
        multiply_adds = models.multiply_adds(network, saved.spec) * EVALUATION_BATCH
        runtime = runtime.adding(devices.set_threads(config.threads, multiply_adds))
    cure = "Close other programs, or use --device cpu where it is the device's memory that is full"
    with devices.explain_out_of_memory(cure):
        samples = dataset.split(split)
        classifier = Classifier(runtime.place(network), saved.spec, runtime.device)
        batches = BatchLoader(samples, saved.spec, runtime.device, classifier.normalise)
        criterion = build_criterion(losses.evaluated_loss(config.loss), dataset, runtime)
        predictions = evaluate(classifier.network, batches, criterion, runtime)
    records = run_folder.matching_metrics(path.parent, saved.record)
    frames = film.read_or_none(path.parent) if records else None
    duplicates = datasets.find_duplicates(dataset.seen, samples, saved.spec.classes) if split == "test" else None
    summary = run_folder.read_summary(path.parent)
    test_data = _fingerprint(samples) if split == "test" else None
    changes = [] if overrides else _changed_data(saved, summary, dataset, test_data)
    choices = (*runtime.choices, *dataset.notes, *changes, *_changed_division(saved, config, split))
    assessment = known_assessment(summary, saved, test_data)
    return ReportContent(
        saved, split, samples, predictions, choices, records, assessment, film=frames, duplicates=duplicates
    )


def settings_of(saved: Checkpoint, path: Path, overrides: Sequence[str] = (), device: str | None = None) -> Config:
    """The config of the checkpoint from `path`, pointed at another dataset or device. Raises InputError where
    `overrides` set anything else, and ConfigError."""
    if strange := [text for text in overrides if not text.startswith("dataset.")]:
        raise InputError(f"--set {strange[0]}: only dataset.… can be set here; the checkpoint fixes the rest")
    return configs.from_dict(saved.config.to_dict(), str(path), overrides, {"device": device} if device else None)


def dataset_of(saved: Checkpoint, config: Config, path: Path, data_dir: str | None = None) -> Dataset:
    """The dataset of `config`, for the network from `path`. Raises CheckpointError where its inputs or classes differ
    from those that the network was trained on, ConfigError, DataError, MachineError."""
    with config.locate():
        dataset = datasets.load(
            cast(DatasetConfig, config.dataset), seed=config.seed, data_dir=data_dir, like=saved.spec
        )
    shape = dataset.train.inputs.shape[1:]
    if shape != saved.spec.shape:
        has, wanted = ("x".join(map(str, each)) for each in (shape, saved.spec.shape))
        raise CheckpointError(f"{path}: was trained on inputs of {wanted}, the dataset has {has}")
    return dataset


def _fingerprint(samples: Split) -> str | None:
    """The SHA-256 of the samples; None of data larger than memory: hashing it takes minutes."""
    return None if datasets.is_mapped(samples.inputs) else datasets.fingerprint(samples)


def _changed_data(saved: Checkpoint, summary: dict[str, Any], dataset: Dataset, test_data: str | None) -> list[Choice]:
    """What changed in the dataset since training, by the hashes in the checkpoint and in summary.json. `test_data` is
    that of the test samples, if they are measured. Data that is larger than memory is not compared."""
    if datasets.is_mapped(dataset.train.inputs):
        return []
    changes = []
    if saved.data not in (None, hash_training_data(dataset)):
        reason = "training or validation samples differ from those that the network was trained on"
        changes.append(Choice("warning", "data changed", reason))
    if test_data is not None and summary.get("test_data") not in (None, test_data):
        changes.append(Choice("warning", "data changed", "test samples differ from those of the run's own test"))
    return changes


def _changed_files(dataset: Dataset) -> list[Choice]:
    """A warning for each file that was rewritten during the run, before its test."""
    reason = "changed during the run: the test figures are of other data than at its start"
    return [Choice("warning", str(path), reason) for path in dataset.find_changed_files()]


def _changed_division(saved: Checkpoint, config: Config, split: str) -> list[Choice]:
    """A warning if `config` sets other samples of the same data aside for `split` than the training did."""
    before, now = saved.config.dataset.model_dump(), config.dataset.model_dump()
    sizes = before.pop(split, None), now.pop(split, None)
    if sizes[0] == sizes[1] or isinstance(sizes[1], str) or before != now:
        return []
    reason = f"dataset.{split} was {sizes[0]} in training: the network may have been trained on these samples"
    return [Choice("warning", "other samples", reason)]


def evaluate_best(saver: RunSaver, choices: Sequence[Choice], begun: float) -> ReportContent:
    """The best network on the test set, which is read here and nowhere else; with the run's summary, and all that its
    report shows. `begun` is when the run began, by time.perf_counter().

    Without test samples, the report shows those of validation, or else those of training.
    """
    setup, folder = saver.setup, saver.folder
    best = _best_saved(setup.state, folder)
    split = setup.dataset.split_names[0]
    samples = setup.dataset.split(split)
    is_test = split == "test"
    duplicates = datasets.find_duplicates(setup.dataset.seen, samples, best.spec.classes) if is_test else None
    predictions = _predict(best, setup.loader(samples), setup.runtime, setup.evaluation_criterion)
    test_data = _fingerprint(samples) if is_test else None
    assessment = assess(setup, best, samples if is_test else None).summary()
    changed = _changed_files(setup.dataset) if is_test else []
    test = predictions if is_test else None
    seconds = time.perf_counter() - begun
    summary = _summary(saver, best, test, test_data=test_data, duplicates=duplicates, seconds=seconds)
    summary |= assessment | {"warnings": [f"{choice.value}: {choice.reason}" for choice in changed]}
    frames = film.read_or_none(folder)
    choices = (*choices, *changed)
    return ReportContent(
        best, split, samples, predictions, choices, saver.metrics, assessment, summary, frames, duplicates, setup.config
    )


def _best_saved(state: State, folder: Path) -> Checkpoint:
    """The checkpoint of the best epoch. Raises CheckpointError where the folder holds another one."""
    saved = checkpoint.read(folder / "checkpoint.pt")
    if saved.record != state.best:
        raise CheckpointError(
            f"{folder / 'checkpoint.pt'}: is not of this run's best epoch; another program wrote there"
        )
    return saved


def _predict(saved: Checkpoint, batches: BatchLoader, runtime: Runtime, criterion: Criterion) -> Predictions:
    return evaluate(runtime.place(build_network(saved)), batches, criterion, runtime)


def _summary(
    saver: RunSaver,
    best: Checkpoint,
    test: Predictions | None,
    *,
    test_data: str | None,
    duplicates: Duplicates | None,
    seconds: float,
) -> dict[str, Any]:
    """The contents of summary.json: None for what was not measured. `test_data` is the SHA-256 of the test samples,
    `seconds` the whole run's time."""
    setup, folder = saver.setup, saver.folder
    timed = [record for record in saver.metrics if record["seconds"] is not None]
    train_seconds = sum(record["seconds"] for record in timed)
    samples = sum(record["samples_per_second"] * record["seconds"] for record in timed)
    return {
        "run": str(folder),
        "checkpoint": str(folder / "checkpoint.pt"),
        "report": str(folder / "report.html") if setup.config.train.report else None,
        "epochs": setup.state.epoch,
        "best_epoch": best.record["epoch"],
        "val_accuracy": best.record.get("val_accuracy"),
        "val_loss": best.record.get("val_loss"),
        "test_accuracy": test.accuracy if test else None,
        "test_loss": test.loss if test else None,
        "test_samples": len(test.labels) if test else 0,
        "test_data": test_data,
        "test_duplicates": duplicates and duplicates.count,
        "test_duplicate_conflicts": duplicates and duplicates.conflicts,
        "test_duplicate_examples": list(duplicates.examples) if duplicates else [],
        "parameters": models.count_parameters(setup.state.model),
        "train_seconds": train_seconds,
        "seconds": seconds,
        "samples_per_second": samples / max(train_seconds, 1e-9),
        "device": str(setup.runtime.device),
        "precision": setup.runtime.precision,
        "environment": devices.environment(),
    }
