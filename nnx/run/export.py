"""Exports a checkpoint: encodes it, checks the file against PyTorch on real samples, and only then writes it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nnx import checkpoint, export, losses
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.errors import CheckFailed, InputError
from nnx.events import Choice
from nnx.export import _check, _network, _quantize
from nnx.inference.baselines import evenly_spread
from nnx.inference.metrics import Predictions, evaluate
from nnx.inference.onnx_file import OnnxNetwork
from nnx.loader.batches import BatchLoader
from nnx.preprocessing.raw_rows import raw_rows
from nnx.run import folder as run_folder
from nnx.run.evaluate import dataset_of, settings_of
from nnx.system import device as devices
from nnx.system import files
from nnx.training.setup import build_criterion, runtime_for

FORMAT = 1  # of the metadata


@dataclass(frozen=True)
class Exported:
    """The files that were written, by size; what they carry; how they compare with PyTorch; choices to print."""

    files: dict[Path, int]
    facts: dict[str, Any]
    rows: list[_check.Row]
    tolerance: float
    choices: tuple[Choice, ...]
    quantized: dict[str, _quantize.Measured] = field(default_factory=dict)  # float32 and int8, with --quantize


def export_checkpoint(
    path: Path,
    name: str,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
    quantize: bool = False,
) -> Exported:
    """Export the checkpoint that `path` is, or that of the run in that folder, in the format called `name`.

    With `quantize`, the file that passed is then rounded to 8 bits, and measured beside the float one on the test set.
    Raises CheckFailed, and writes nothing, unless the file predicts what PyTorch does in float32. Raises
    CheckpointError, ConfigError, DataError, InputError, MachineError.
    """
    exporter = export.exporter(name)
    path = checkpoint.locate(path)
    if quantize and name != "onnx":
        raise InputError(f"--quantize int8: is for --format onnx only, not for {name}; leave it out")
    default = path.with_name(f"{path.stem}-int8{exporter.ENDING}" if quantize else f"{path.stem}{exporter.ENDING}")
    file = _check_name(out or default, name, exporter.ENDING)
    export.check_packages(name)
    saved = checkpoint.read(path)
    config = settings_of(saved, path, overrides, "cpu")
    runtime = runtime_for(config, precision="float32")
    dataset = dataset_of(saved, config, path, data_dir)
    split = dataset.split_names[0]
    samples = dataset.split(split)
    network = _network.build(saved)
    with devices.explain_out_of_memory("Close other programs"):
        criterion = build_criterion(losses.evaluated_loss(config.loss), dataset, runtime)
        predictions = evaluate(network.network, BatchLoader(samples, saved.spec, runtime.device), criterion, runtime)
        facts = _facts(saved, path, split, predictions)
        devices.load_meta_kernels()  # torch's exporters fail if they are the first to load them
        inputs = _raw_inputs(samples, saved)
        expected, labels = predictions.probabilities[: len(inputs)], predictions.labels[: len(inputs)]
        contents, rows, chosen = _check.encode(name, network, facts, inputs, expected, labels)
    _raise_if_different(rows, exporter.TOLERANCE, file)
    measured: dict[str, _quantize.Measured] = {}
    if quantize:
        whole = contents[exporter.ENDING]
        calibration = evenly_spread(dataset.train, _quantize.CALIBRATION)  # training samples, never others
        rounded = _quantize.quantize(whole, _raw_inputs(calibration, saved))

        def predict(network: OnnxNetwork) -> Predictions:
            batches = BatchLoader(samples, saved.spec, runtime.device, nn.Identity())
            return evaluate(network, batches, criterion, runtime)

        measured = {
            precision: _quantize.measure(content, inputs[:1], predict)
            for precision, content in (("float32", whole), ("int8", rounded))
        }
        facts |= {"accuracy": _accuracy(split, measured["int8"].predictions), "precision": "int8"}
        contents = {exporter.ENDING: _quantize.with_accuracy(rounded, facts["accuracy"])}
    files.make_folder(file.parent)
    written = {file.with_suffix(ending): content for ending, content in contents.items()}
    for place, content in sorted(written.items(), key=lambda item: item[0] == file):  # the main file last
        files.replace(place, content)
    sizes = {place: len(content) for place, content in written.items()}
    choices = (*_choices(facts, path), *chosen)
    return Exported(sizes, facts, rows, exporter.TOLERANCE, choices, measured)


def _check_name(file: Path, name: str, ending: str) -> Path:
    """`file` itself. Raises InputError for another ending, so that no other file, such as checkpoint.pt, is
    replaced."""
    if file.is_dir():
        raise InputError(f"--out {file}: is a folder; name a file in it, such as {file / 'model'}{ending}")
    if file.suffix != ending:
        raise InputError(f"--out {file}: the name of a file in format {name} ends with {ending}")
    run_folder.check_folder(file.parent)
    return file


def _facts(saved: Checkpoint, path: Path, split: str, predictions: Predictions) -> dict[str, Any]:
    """What an exported file says about itself, as plain values: the same for equal checkpoints."""
    versions = devices.environment()
    return {
        "format": FORMAT,
        "nnx": versions["nnx"],
        "torch": versions["torch"],
        "model": saved.config.model.name,
        "classes": list(saved.spec.classes),
        "input": _network.describe_input(saved.spec),
        "output": "probabilities, B x classes, float32",
        "accuracy": _accuracy(split, predictions),
        "precision": "float32",
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "config": saved.config.to_dict(),
        "spec": saved.spec.to_dict(),
    }


def _accuracy(split: str, predictions: Predictions) -> dict[str, Any]:
    return {"split": split, "samples": len(predictions.labels), "accuracy": predictions.accuracy}


def _raw_inputs(samples: Split, saved: Checkpoint) -> Any:
    """The first samples of a split, as many as the check needs, as the exported network takes them."""
    inputs = np.ascontiguousarray(samples.inputs[: max(_check.BATCHES)])
    return raw_rows(inputs, saved.spec.columns) if saved.spec.columns else inputs


def _raise_if_different(rows: Sequence[_check.Row], tolerance: float, file: Path) -> None:
    """Raises CheckFailed for the first batch that differs from PyTorch's."""
    for row in rows:
        if not row.passes(tolerance):
            raise CheckFailed(
                f"{file}: not written: on {row.samples:,} samples, probabilities differ from PyTorch's by up to "
                f"{row.difference:.1e} (at most {tolerance:.0e} is accepted), and {row.labels:,} labels differ"
            )


def _choices(facts: dict[str, Any], path: Path) -> tuple[Choice, ...]:
    """What was chosen for the user: the precision, and the samples to check with where there are no test samples."""
    trained = run_folder.read_summary(path.parent).get("precision", facts["config"]["precision"])
    exported = facts["precision"]
    reason = f"the network was trained in {trained}" if trained not in ("auto", "float32") else "as in training"
    choices = [Choice("precision", exported, reason)]
    if exported == "int8":
        choices = [Choice("precision", "int8", f"calibrated on at most {_quantize.CALIBRATION} training samples")]
    if (split := facts["accuracy"]["split"]) != "test":
        choices.append(Choice("checked on", f"{split} samples", "the dataset has no test samples"))
    return tuple(choices)
