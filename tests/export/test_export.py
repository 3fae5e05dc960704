"""Exported files predict what PyTorch does, carry their metadata, and are kept only if they pass the check."""

import hashlib
import json
import os
import shutil
import warnings

import numpy as np
import onnx
import pytest
import safetensors
import torch
from tiny_networks import ARCHITECTURES, DATA

import nnx
from nnx import checkpoint, datasets, export, models
from nnx.config import registry
from nnx.errors import CheckFailed, InputError, MachineError
from nnx.export import _check, _network, _quantize
from nnx.inference.classifier import Classifier
from nnx.preprocessing.raw_rows import raw_rows
from nnx.run.evaluate import evaluate_checkpoint
from nnx.run.export import export_checkpoint
from nnx.system import files
from nnx.terminal import export as export_view

CASES = [
    (architecture, data)
    for architecture in ARCHITECTURES
    for data in DATA
    if (architecture, data) not in (("cnn", "arrays"), ("cnn", "table"))
]


def test_all_architectures_are_exported():
    assert set(ARCHITECTURES) == set(registry.names("model"))


@pytest.mark.parametrize("name", export.names())
def test_an_exported_network_predicts_what_pytorch_does(trained, tmp_path, check_here, name):
    """Each architecture on each kind of data. To save time, nnx's own check runs in this process, and one fresh process
    runs all files of the format."""
    exporter = export.exporter(name)
    jobs = []
    for architecture, data in CASES:
        run = trained(architecture, data)
        file = tmp_path / f"{architecture}-{data}{exporter.ENDING}"
        exported = export_checkpoint(run, name, out=file)
        assert all(row.difference <= exporter.TOLERANCE and row.labels == 0 for row in exported.rows)
        assert [row.samples for row in exported.rows][:3] == [1, 2, 7]
        inputs, expected = samples(run)
        given, answers = (tmp_path / f"{architecture}-{data}-{kind}.npz" for kind in ("inputs", "outputs"))
        np.savez(given, inputs)
        jobs.append((file, given, answers, expected))
    _check.start_fresh_process(name, *(path for job in jobs for path in job[:3]))
    for file, _, answers, expected in jobs:
        with np.load(answers) as stored:
            (output,) = (stored[key] for key in stored.files)
        assert output.dtype == np.float32
        assert _check.compare_batch(output, expected).passes(exporter.TOLERANCE), file
        assert np.abs(expected - expected[0]).max() > 0.01, "predictions differ between samples"


def samples(run, count=20):
    """Raw inputs drawn at random, and the probabilities that nnx.load's classifier gives them."""
    saved = checkpoint.read(run / "checkpoint.pt")
    rng = np.random.default_rng(1)
    classifier: Classifier = nnx.load(run)
    if saved.spec.is_image:
        inputs = features = rng.integers(0, 256, (count, *saved.spec.shape)).astype(np.uint8)
    elif columns := saved.spec.columns:
        inputs = np.stack(
            [
                1_700_000_000 + rng.integers(-500, 2000, count),
                np.where(rng.random(count) < 0.3, np.nan, rng.normal(0.001, 0.001, count)),
                rng.choice([np.nan, -1, 0, 1, 2], count),
                rng.choice([-1, 0, 1], count),
                rng.choice([7, 8, np.nan], count),
            ],
            axis=1,
        ).astype(np.float64)
        features = columns.apply(inputs, columns)
    else:
        inputs = features = (rng.normal(0, 1, (count, *saved.spec.shape)) * saved.spec.std + saved.spec.mean).astype(
            np.float32
        )
    with torch.inference_mode():
        return inputs, classifier(torch.from_numpy(features)).numpy()


@pytest.mark.parametrize("name", export.names())
def test_a_file_that_predicts_otherwise_is_5_and_leaves_nothing(trained, tmp_path, monkeypatch, name):
    """The control of the check: each format, with another bias in the output layer."""
    exporter = export.exporter(name)
    encode = exporter.encode

    def encode_other(network, facts):
        with torch.no_grad():
            next(parameter for parameter in reversed(list(network.parameters()))).add_(torch.linspace(0, 0.02, 10))
        return encode(network, facts)

    monkeypatch.setattr(exporter, "encode", encode_other)
    file = tmp_path / "out" / f"model{exporter.ENDING}"
    with pytest.raises(CheckFailed, match="probabilities differ") as failed:
        export_checkpoint(trained("mlp"), name, out=file)
    assert failed.value.exit_code == 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", export.names())
def test_a_damaged_file_is_5_and_leaves_the_old_one(trained, tmp_path, monkeypatch, name):
    exporter = export.exporter(name)
    encode = exporter.encode
    monkeypatch.setattr(
        exporter,
        "encode",
        lambda *given: {ending: content[: len(content) // 2] for ending, content in encode(*given).items()},
    )
    file = tmp_path / f"model{exporter.ENDING}"
    file.write_text("old")
    with pytest.raises(CheckFailed, match="can't be run, so it was not kept"):
        export_checkpoint(trained("mlp"), name, out=file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_difference_that_is_not_a_number_fails():
    expected = np.array([[0.9, 0.1]], np.float32)
    assert _check.compare_batch(expected, expected).passes(0)
    assert not _check.compare_batch(np.array([[np.nan, 0.1]]), expected).passes(1e-4)
    assert not _check.compare_batch(np.array([[0.9]]), expected).passes(1e-4)
    assert not _check.compare_batch(expected[:, ::-1], expected).passes(2)


def test_equally_probable_labels_may_be_exchanged():
    expected = np.array([[0.5, 0.4999999]], np.float32)
    assert _check.compare_batch(expected[:, ::-1], expected).passes(1e-4)


def test_raw_rows_lead_to_the_same_features(trained):
    """The rows that the check uses give back each feature, also gaps and unseen categories."""
    columns = checkpoint.read(trained("mlp", "table") / "checkpoint.pt").spec.columns
    rows = np.array([[1_700_000_100, np.nan, np.nan, 1, 7], [1_700_000_000, 0.002, -1, 0, 7]])
    features = columns.apply(rows, columns)
    again = raw_rows(features, columns)
    assert np.allclose(again, rows, rtol=1e-6, equal_nan=True)
    module = _network.TableRows(columns)
    assert np.array_equal(module(torch.from_numpy(rows)).numpy(), features)


def test_facts(trained, tmp_path, check_here):
    """What the metadata says is so."""
    run = trained("cnn")
    facts = export_checkpoint(run, "safetensors", out=tmp_path / "model.safetensors").facts
    assert facts["checkpoint_sha256"] == hashlib.sha256((run / "checkpoint.pt").read_bytes()).hexdigest()
    assert facts["classes"] == [str(n) for n in range(10)]
    assert facts["input"]["shape"] == ["B", 1, 8, 8]
    assert facts["input"]["type"] == "uint8"
    assert facts["config"]["model"]["name"] == facts["model"] == "cnn"
    assert facts["accuracy"] == {
        "split": "test",
        "samples": 360,
        "accuracy": nnx.evaluate(run, overrides=[])["accuracy"],
    }
    table = export_checkpoint(trained("mlp", "table"), "safetensors", out=tmp_path / "table.safetensors").facts
    assert table["input"]["columns"][2] == {
        "name": "colour",
        "kind": "category",
        "categories": ["blue, dark", "green", "red"],
    }
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("name", ["onnx", "numpy", "pt2", "safetensors"])
def test_the_metadata_of_each_format_has_all_facts(trained, tmp_path, check_here, name):
    """As another program reads them."""
    file = tmp_path / f"model{export.exporter(name).ENDING}"
    run = trained("rnn")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # none reaches the user
        facts = export_checkpoint(run, name, out=file).facts
    if name == "onnx":
        stored = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
        del stored["content_sha256"]
    elif name == "numpy":
        stored = json.loads(str(np.load(file.with_suffix(".npz"))["facts"]))
    elif name == "pt2":
        extra = {"nnx.json": ""}
        torch.export.load(file, extra_files=extra)
        stored = json.loads(extra["nnx.json"])
    else:
        with safetensors.safe_open(file, "pt") as opened:
            stored = json.loads(opened.metadata()["nnx"])
    assert stored == json.loads(json.dumps(facts))
    assert stored["checkpoint_sha256"] == hashlib.sha256((run / "checkpoint.pt").read_bytes()).hexdigest()
    assert {"classes", "input", "config", "accuracy", "spec", "precision"} <= stored.keys()


def test_a_network_trained_in_bfloat16_is_exported_in_float32_and_says_so(trained, tmp_path, check_here):
    run = tmp_path / "run"
    shutil.copytree(trained("mlp"), run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "precision": "bfloat16"}))
    choice, *_ = export_checkpoint(run, "safetensors", out=tmp_path / "model.safetensors").choices
    assert (choice.value, choice.reason) == ("float32", "the network was trained in bfloat16")


def test_int8_is_measured_beside_float32(trained, tmp_path, monkeypatch, check_here, capsys):
    """Calibrated on training samples, smaller, opened as any exported file, with its own accuracy in the metadata."""
    given = []
    quantize = _quantize.quantize
    monkeypatch.setattr(
        _quantize, "quantize", lambda content, inputs: given.append(inputs) or quantize(content, inputs)
    )
    run = trained("{name: mlp, hidden: [256, 64]}")  # the file of a tiny network would become larger
    file = tmp_path / "model.onnx"
    exported = export_checkpoint(run, "onnx", out=file, quantize=True)
    config = checkpoint.read(run / "checkpoint.pt").config
    train = {sample.tobytes() for sample in datasets.load(config.dataset, seed=config.seed).train.inputs}
    assert len(given[0]) == _quantize.CALIBRATION
    assert all(sample.tobytes() in train for sample in given[0])
    assert exported.quantized["int8"].bytes < exported.quantized["float32"].bytes
    measured = evaluate_checkpoint(file)
    assert measured.metrics["accuracy"] == exported.facts["accuracy"]["accuracy"]
    assert np.array_equal(measured.predictions.probabilities, exported.quantized["int8"].predictions.probabilities)
    stored = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert stored["precision"] == "int8"
    assert stored["accuracy"] == exported.facts["accuracy"]
    export_view.print_tables(exported)
    printed = capsys.readouterr().out
    assert "int8 and float32: largest difference" in printed


@pytest.mark.parametrize("name", sorted({*export.names()} - {"onnx"}))
def test_int8_is_for_onnx_only(trained, tmp_path, name):
    with pytest.raises(InputError, match=f"--quantize int8: is for --format onnx only, not for {name}; leave it out"):
        export_checkpoint(trained("mlp"), name, out=tmp_path / f"m{export.exporter(name).ENDING}", quantize=True)


def test_equal_checkpoints_give_equal_bytes(trained, tmp_path, check_here):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    export_checkpoint(trained("mlp"), "safetensors", out=first)
    export_checkpoint(trained("mlp"), "safetensors", out=second)
    assert first.read_bytes() == second.read_bytes()


def test_a_full_disk_keeps_the_old_file(trained, tmp_path, check_here, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MachineError, match="could not be saved"):
        export_checkpoint(trained("mlp"), "safetensors", out=file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(export.exporter("safetensors"), "PACKAGES", ("torch", "not_there"))
    with pytest.raises(
        MachineError,
        match=r"--format safetensors: needs not_there, which is not installed; run: pip install 'nnx\[export\]'",
    ):
        export.check_packages("safetensors")


def test_an_exported_network_is_in_evaluation_mode(trained):
    network = _network.build(checkpoint.read(trained("mlp") / "checkpoint.pt"))
    assert not any(module.training for module in network.modules())
    assert models.count_parameters(network.network) > 0
    assert files
