"""nnx export: what it prints and writes, and its exit codes."""

import json
import subprocess
import sys

import pytest
import safetensors

from nnx import export

TINY = ["--set", "train.epochs=1", "--set", "model.hidden=[8]"]


@pytest.fixture
def run(nnx, tmp_path):
    assert nnx("train", "digits_mlp", "--out", "r", "-q", *TINY).code == 0
    return tmp_path / "r"


def test_the_check_is_printed_and_the_file_lies_next_to_the_checkpoint(nnx, run):
    result = nnx("export", "r", "--format", "safetensors")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["batch", "largest", "difference", "labels"]
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "7", "360"]
    assert all(line.endswith("equal") for line in lines[1:5])
    assert "r/checkpoint.safetensors" in lines[5]
    assert result.err.startswith("precision  float32")
    with safetensors.safe_open(run / "checkpoint.safetensors", "np") as file:
        assert json.loads(file.metadata()["nnx"])["classes"] == [str(n) for n in range(10)]


def test_json(nnx, run):
    result = nnx("export", "r", "--format", "safetensors", "--out", "models/digits.safetensors", "--json", "-q")
    document = json.loads(result.out)
    assert result.err == ""
    assert document["file"] == "models/digits.safetensors"
    assert document["files"] == [
        {"file": "models/digits.safetensors", "bytes": (run.parent / "models/digits.safetensors").stat().st_size}
    ]
    assert [check["samples"] for check in document["checks"]] == [1, 2, 7, 360]
    assert all(check["largest_difference"] <= document["tolerance"] == 1e-4 for check in document["checks"])
    assert document["split"] == "test"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "safetensor"), "--format safetensor: unknown format, did you mean 'safetensors'?"),
        (("--format", "safetensors", "--out", "r/checkpoint.pt"), "ends with .safetensors"),
        (
            ("--format", "safetensors", "--out", "r"),
            "--out r: is a folder; name a file in it, such as r/model.safetens",
        ),
        (("--format", "safetensors", "--set", "model.hidden=[9]"), "only dataset.… can be set here"),
        (("--format", "safetensors", "--out", "r/config.yaml/x.safetensors"), "r/config.yaml: is a file, not a folder"),
        ((), "Missing option '--format'"),
    ],
)
def test_wrong_input_is_2_and_nothing_is_written(nnx, run, words, message):
    before = sorted(run.parent.rglob("*"))
    result = nnx("export", "r", *words)
    assert result.code == 2, result.err
    assert message in result.err
    assert sorted(run.parent.rglob("*")) == before


def test_a_failed_check_is_5(nnx, run, monkeypatch):
    monkeypatch.setattr(export.exporter("safetensors"), "TOLERANCE", 0.0)
    result = nnx("export", "r", "--format", "safetensors")
    assert result.code == 5
    assert result.err.startswith("error: r/checkpoint.safetensors: not written: on 1 samples, probabilities differ")
    assert result.out == ""
    assert not (run / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(("hidden", "grows"), [("[2]", True), ("[64, 64]", False)])
def test_int8_that_is_larger_than_float32_warns(nnx, hidden, grows):
    pytest.importorskip("onnxruntime")
    settings = ("--set", "train.epochs=1", "--set", f"model.hidden={hidden}")
    assert nnx("train", "digits_mlp", "--out", "r", "-q", *settings).code == 0
    result = nnx("export", "r", "--format", "onnx", "--quantize", "int8")
    assert result.code == 0, result.err
    assert ("warning: int8 takes" in result.err) == grows
    assert ("leave --quantize out" in result.err) == grows


def test_formats_are_listed(nnx):
    listed = json.loads(nnx("list", "formats", "--json").out)
    assert list(listed["formats"]) == export.names()
    assert all(listed["formats"].values())


@pytest.mark.parametrize("name", export.names())
def test_every_format_is_written_by_a_fresh_process(environment, run, name):
    """In a process of its own: the command line imports parts of torch later than a library does."""
    command = [sys.executable, "-m", "nnx", "export", "r", "--format", name]
    done = subprocess.run(command, cwd=run.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a bug in nnx" not in done.stderr
    assert done.stdout.count("equal") == 4
