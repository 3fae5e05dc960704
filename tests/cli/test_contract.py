"""The contract of the command line: exit codes, messages, and nothing written when the input is wrong."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GOOD = "dataset: digits\nmodel: mlp\ntrain: {epochs: 1}\n"
BAD_CONFIGS = {
    "batch_size: 0": ("train: {batch_size: 0}", "bad.yaml:3:21: train.batch_size", "at least 1"),
    "batch_size: 64.5": ("train: {batch_size: 64.5}", "bad.yaml:3:21: train.batch_size", "whole number"),
    "quoted lr": ('optimizer: {lr: "0.01"}', "bad.yaml:3:17: optimizer.lr", "remove the quotes"),
    "optimizer adamm": ("optimizer: adamm", "bad.yaml:3:12: optimizer", "did you mean 'adam'"),
    "unclosed [": ("x: [1, 2", "bad.yaml:3:4", "never closed"),
    "tab": ("train:\n\tepochs: 1", "bad.yaml:4:1", "tab"),
    "two documents": ("---\nmodel: mlp", "bad.yaml:3:1", "second document"),
    "unknown key": ("sede: 1", "bad.yaml:3:1: sede", "did you mean 'seed'"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_wrong_config_is_one_clear_error_and_nothing_is_written(nnx, tmp_path, name):
    text, place, what = BAD_CONFIGS[name]
    (tmp_path / "bad.yaml").write_text("dataset: digits\nmodel: mlp\n" + text)
    result = nnx("train", "bad.yaml", "--out", "r")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(f"error: {place}"), result.err
    assert what in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 10
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("model.hidden=128", "write [128]"),
        ("model.dropout=1.5", "model.dropout: 1.5 is out of range"),
        ("model.hidden=[1000000000000]", "at most 65,536"),
        ("model.hidden=[65536, 65536, 65536, 65536]", "make it narrower"),
        ("model={name: transformer, patch: 3}", "these do: 1, 2, 4, 8"),
        ("model={name: transformer, patch: 2, width: 50, heads: 4}", "these do: 1, 2, 5, 10, 25, 50"),
        ("model={name: cnn, channels: [8, 8, 8, 8]}", "at most 3 stages"),
        ("loss=binary_cross_entropy", "needs 2 classes, the data has 10"),
        ("loss.class_weights=[1, 2]", "has 2 weights, the data has 10 classes"),
        ("dataset.validation=5000", "dataset.validation"),
        ("device=cuda:77", "this machine has: cpu"),
        ("nonsense", "expected key=value"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_is_written(nnx, tmp_path, setting, what):
    result = nnx("train", "digits_mlp", "--set", setting, "--out", "r")
    assert result.code == 2, result.err
    assert result.err.startswith("error: ")
    assert what in result.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("train", "missing.yaml"), "error: missing.yaml: no such config file or recipe"),
        (("train", "digits_mpl"), "did you mean 'digits_mlp'"),
        (("train",), "name a config file or a recipe"),
        (("train", "--resume", "nothing"), "no such run"),
        (("train", "--resume", "text.pt"), "is not a checkpoint of nnx"),
        (("train", "digits_mlp", "--resume", "a", "--out", "b"), "remove --out"),
        (("verify", "nothing"), "no such run"),
        (("train", "digits_mlp", "--devise", "cpu"), "--devise"),
        (("eval", "missing.pt"), "error: missing.pt: no such file"),
        (("eval", "."), "is a folder without a checkpoint.pt; name a run folder"),
        (("eval", "text.pt"), "is not a checkpoint of nnx"),
        (("eval", "lfs.pt"), "Git LFS pointer"),
        (("eval", "text.pt", "--fail-under", "7"), "--fail-under"),
        (("train", "digits_mlp", "--out", "text.pt"), "a file, not a folder"),
        (("train", "digits_mlp", "--out", "text.pt/deeper"), "a file, not a folder"),
        (("train", "digits_mlp", "--resume"), "--out"),
        (("init", "nothing"), "no such recipe"),
        (("list", "nothing"), "nothing"),
        (("nothing",), "nothing"),
    ],
)
def test_a_wrong_command_is_2(nnx, tmp_path, words, what):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    result = nnx(*words)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert what in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lfs.pt", "text.pt"]


@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors", "html"])
@pytest.mark.parametrize(
    "command",
    [
        "explain",
        "trace",
        "verify",
        "show",
        "check",
        "train",
        "train --resume",
        "serve --no-open",
        "doctor --checkpoint",
    ],
)
def test_an_exported_file_is_named_as_such(nnx, tmp_path, command, ending):
    """By the commands that take a checkpoint or a config, with those that take such a file."""
    if command == "doctor --checkpoint" and ending == "onnx":
        pytest.skip("it takes such a file")
    (tmp_path / f"net.{ending}").write_bytes(b"exported")
    result = nnx(*command.split(), f"net.{ending}", *(["net.png"] if "doctor" in command else []))
    assert result.code == 2
    taken = {"onnx": "only nnx eval, nnx predict and nnx doctor take", "html": "open it there"}
    assert taken.get(ending, "no nnx command takes") in result.err
    assert result.err.startswith(f"error: net.{ending}: is ")
    assert "Name the checkpoint" in result.err


LONG = "long" * 100


@pytest.mark.parametrize(
    "words",
    [
        ("train", LONG),
        ("train", "--resume", LONG),
        ("train", "digits_mlp", "--out", LONG),
        ("train", "mnist_mlp", "--data-dir", LONG),
    ]
    + [
        ("init", "digits_mlp", "--out", LONG),
        ("doctor", LONG, "--checkpoint", LONG),
        ("predict", LONG, LONG),
        ("trace", f"{LONG}.pt"),
    ]
    + [(command, LONG) for command in ("check", "show", "verify", "eval", "explain", "trace")],
)
def test_a_name_that_is_too_long_is_2_and_nothing_is_written(nnx, tmp_path, words):
    result = nnx(*words)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert LONG[:20] in result.err
    assert "bug" not in result.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_read_is_3_and_named(nnx, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "private/\nrun")

    monkeypatch.setattr("nnx.config.load", refused)
    result = nnx("check", "digits_mlp")
    assert result.code == 3
    assert result.err == "error: private/\\nrun: Permission denied; check its permissions\n"


def test_weights_that_do_not_fit_and_half_a_checkpoint_are_2(nnx, tmp_path):
    assert nnx("train", "digits_mlp", "--set", "train.epochs=1", "--out", "r").code == 0
    data = (tmp_path / "r/checkpoint.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    assert "cut short" in nnx("eval", "half.pt").err

    from dataclasses import replace

    from nnx import checkpoint, config

    saved = checkpoint.read(tmp_path / "r/checkpoint.pt")
    checkpoint.write(tmp_path / "other.pt", replace(saved, config=config.load("digits_cnn")))
    result = nnx("eval", "other.pt")
    assert result.code == 2
    assert "do not fit the cnn" in result.err
    other_data = nnx("eval", "r/checkpoint.pt", "--set", "model.hidden=[3]")
    assert other_data.code == 2
    assert "only dataset" in other_data.err


def test_a_pickle_that_runs_code_is_2_and_not_run(nnx, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"format": 1, "model": Evil()}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the control: it runs if allowed
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    for words in (("eval", "evil.pt"), ("train", "digits_mlp", "--out", ".", "--resume")):
        (tmp_path / "last.pt").write_bytes((tmp_path / "evil.pt").read_bytes())
        result = nnx(*words)
        assert result.code == 2
        assert "Traceback" not in result.err
        assert not (tmp_path / "executed").exists()


def test_a_run_is_replaced_only_by_force(nnx, tmp_path):
    assert nnx("train", "digits_mlp", "--set", "train.epochs=1", "--out", "r").code == 0
    before = (tmp_path / "r/last.pt").read_bytes()
    again = nnx("train", "digits_mlp", "--set", "train.epochs=1", "--seed", 5, "--out", "r")
    assert again.code == 2
    assert "--force" in again.err
    assert (tmp_path / "r/last.pt").read_bytes() == before
    assert nnx("train", "digits_mlp", "--set", "train.epochs=1", "--seed", 5, "--out", "r", "--force").code == 0
    assert (tmp_path / "r/last.pt").read_bytes() != before


def test_missing_data_offline_names_the_files_and_the_folder(nnx, tmp_path, monkeypatch):
    monkeypatch.setenv("NNX_OFFLINE", "1")
    result = nnx("train", "mnist_mlp", "--data-dir", "nowhere", "--out", "r")
    assert result.code == 2
    assert "train-images-idx3-ubyte" in result.err
    assert "nowhere/MNIST/raw" in result.err
    assert list(tmp_path.iterdir()) == []


def test_nnx_alone_prints_its_help(nnx):
    alone = nnx()
    assert (alone.code, alone.err) == (0, "")
    assert "predict" in alone.out
    assert alone.out == nnx("--help").out


def test_help_and_completion_import_no_torch():
    code = (
        "import sys; from nnx.cli import run_command\n"
        "sys.argv = ['nnx', '--help']\n"
        "assert run_command() == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_a_broken_pipe_is_silent_and_141():
    done = subprocess.Popen([sys.executable, "-m", "nnx", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout
    assert done.stderr
    done.stdout.close()
    assert done.wait(timeout=60) == 141
    assert done.stderr.read() == b""


def test_list_check_init_and_schema(nnx, tmp_path):
    listed = json.loads(nnx("list", "--json").out)
    assert set(listed) == {"recipes", "models", "datasets", "losses", "optimizers", "schedules", "formats"}
    assert all(text for entries in listed.values() for text in entries.values())
    assert "transformer" in nnx("list", "models").out
    assert nnx("check", *listed["recipes"]).out.count(": ok") == len(listed["recipes"])
    (tmp_path / "bad.yaml").write_text("model: mpl\n")
    mixed = nnx("check", "digits_mlp", "bad.yaml")
    assert (mixed.code, mixed.out) == (2, "digits_mlp: ok\n")
    assert "did you mean 'mlp'" in mixed.err
    assert "dataset: is missing" in mixed.err
    assert nnx("init", "mnist_cnn").code == 0
    assert nnx("check", "mnist_cnn.yaml").code == 0
    assert nnx("init", "mnist_cnn").code == 2
    schema = json.loads(nnx("schema").out)
    assert schema["properties"]["model"]["anyOf"][0] == {"enum": list(listed["models"])}


def test_a_bug_of_ours_is_1_in_one_line(nnx, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("nnx.config.load", broken)
    result = nnx("check", "digits_mlp")
    assert result.code == 1
    assert result.err == "error: a bug in nnx: ZeroDivisionError: oops. NNX_DEBUG=1 shows the traceback\n"
    monkeypatch.setenv("NNX_DEBUG", "1")
    assert "Traceback" in nnx("check", "digits_mlp").err


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("libtorch_cpu.so: failed to map segment from shared object")]
)
def test_no_memory_is_3_wherever_it_runs_out(nnx, monkeypatch, error):
    def hungry(*_, **__):
        raise error

    monkeypatch.setattr("nnx.config.load", hungry)
    result = nnx("check", "digits_mlp")
    assert (result.code, result.err) == (3, "error: out of memory; free some, or use another machine\n")


def test_a_full_disk_behind_stdout_is_3():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "nnx", "schema"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (3, "error: No space left on device; free some, or use another machine\n")
