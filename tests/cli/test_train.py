"""nnx train and nnx eval, from YAML to metrics."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import nnx as library
from nnx import config, errors
from nnx.config import registry
from nnx.datasets import load as load_dataset
from nnx.events import Step
from nnx.run.pipeline import run

QUICK = ("--set", "train.epochs=2")


def recipe(model: str) -> list[str]:
    """The digits by architecture: its recipe, or, for one that has none, the MLP's with the model replaced."""
    return [f"digits_{model}"] if f"digits_{model}" in config.recipes() else ["digits_mlp", "--set", f"model={model}"]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_files_and_the_summary_of_a_run(nnx, tmp_path):
    result = nnx("train", "digits_mlp", *QUICK, "--out", "r", "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    expected = "run checkpoint epochs val_accuracy test_accuracy test_loss parameters train_seconds samples_per_second"
    assert {*expected.split(), "device", "precision"} <= set(summary)
    assert summary["test_duplicates"] == 0
    assert summary["parameters"] == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "checkpoint.pt",
        "config.yaml",
        "film.npz",
        "last.pt",
        "metrics.jsonl",
        "previous.pt",
        "report.html",
        "summary.json",
    ]
    assert json.loads((tmp_path / "r/summary.json").read_text()) == summary
    lines = records(tmp_path / "r")
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {
        "epoch",
        "step",
        "train_loss",
        "val_loss",
        "val_accuracy",
        "lr",
        "seconds",
        "samples_per_second",
    }
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert "\x1b" not in result.err  # no terminal, no escape codes
    assert sum(line.startswith("epoch ") for line in result.err.splitlines()) == 2


def test_test_samples_in_the_training_data_are_counted_and_reported(nnx, tmp_path, monkeypatch):
    from nnx.datasets import digits

    def overlapping(config, folder, load=digits.load):
        source = load(config, folder)
        # some of these samples are in the validation split, which counts as training data
        return replace(source, test=lambda: source.train.take(np.arange(12)))

    monkeypatch.setattr(digits, "load", overlapping)
    result = nnx("train", "digits_mlp", *QUICK, "--out", "r")
    assert result.code == 0
    known = "12 of 12 test samples are also in the training data"
    assert f"duplicates      {known}" in result.out
    assert result.err.splitlines()[-1].startswith(f"warning: {known}")
    assert json.loads((tmp_path / "r/summary.json").read_text())["test_duplicates"] == 12
    measured = nnx("eval", "r/checkpoint.pt", "--out", "e")
    assert f"warning: {known}" in measured.err
    assert "warning" not in nnx("eval", "r/checkpoint.pt", "--split", "validation").err
    for page in ("r/report.html", "e/report.html"):
        assert "12 of these images are also in the training data" in (tmp_path / page).read_text()


@pytest.mark.parametrize("model", registry.names("model"))
def test_eval_reproduces_the_figure_of_the_run_exactly(nnx, model):
    summary = json.loads(nnx("train", *recipe(model), *QUICK, "--out", "r", "--json", "-q").out)
    metrics = json.loads(nnx("eval", "r/checkpoint.pt", "--json", "-q").out)
    assert (metrics["accuracy"], metrics["loss"]) == (summary["test_accuracy"], summary["test_loss"])
    assert metrics["samples"] == summary["test_samples"] == sum(map(sum, metrics["confusion_matrix"]))
    validation = json.loads(nnx("eval", "r/checkpoint.pt", "--split", "validation", "--json", "-q").out)
    assert validation["accuracy"] == summary["val_accuracy"]


def test_the_resolved_config_gives_the_same_bytes_again(nnx, tmp_path):
    assert nnx("train", "digits_mlp", *QUICK, "--seed", 3, "--out", "a").code == 0
    assert nnx("train", "a/config.yaml", "--out", "b").code == 0
    for name in ("checkpoint.pt", "last.pt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert nnx("train", "digits_mlp", *QUICK, "--seed", 4, "--out", "c").code == 0
    assert (tmp_path / "a/checkpoint.pt").read_bytes() != (tmp_path / "c/checkpoint.pt").read_bytes()


ALL_ON = [
    "train.report=false",
    "train.epochs=3",
    "train.ema=0.9",
    "train.mixup=0.2",
    "train.accumulate=2",
    "train.clip_grad_norm=1",
    "train.augment={shift: 1, rotate: 10, erase: 0.2}",
    "schedule={name: cosine, warmup: 0.5}",
]


@pytest.mark.parametrize("model", registry.names("model"))
@pytest.mark.parametrize("steps", [1, 18, 19, 30])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, model, steps):
    """Stopped after any step, with all random features on, and resumed: the same bytes."""
    name, *sets = recipe(model)
    randomness = ["model={name: mlp, dropout: 0.1, norm: batch}"] if model == "mlp" else ["model.dropout=0.1"]
    chosen = config.load(
        name, [*sets[1:], *ALL_ON, *(randomness if "dropout" in registry.find("model", model).model_fields else [])]
    )
    for _ in run(chosen, out=tmp_path / "whole"):
        pass
    calls = 0

    def stop() -> int:
        nonlocal calls
        calls += 1
        return signal.SIGTERM if calls >= steps else 0  # called once per step and per epoch; an epoch has 18 steps here

    with pytest.raises(errors.Stopped) as stopped:
        for _ in run(chosen, out=tmp_path / "cut", signal=stop):
            pass
    assert stopped.value.exit_code == 143
    for _ in run(chosen, resume=tmp_path / "cut"):
        pass
    for name in ("checkpoint.pt", "last.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert len(records(tmp_path / "cut")) == 3


def test_resume_takes_more_epochs_and_refuses_other_changes(nnx, tmp_path):
    assert nnx("train", "digits_mlp", *QUICK, "--out", "r").code == 0
    more = nnx("train", "digits_mlp", "--set", "train.epochs=3", "--out", "r", "--resume")
    assert more.code == 0, more.err
    assert [line["epoch"] for line in records(tmp_path / "r")] == [1, 2, 3]
    before = (tmp_path / "r/last.pt").read_bytes()
    other = nnx("train", "digits_mlp", "--set", "train.epochs=3", "--set", "optimizer.lr=0.1", "--out", "r", "--resume")
    assert other.code == 2
    assert "optimizer.lr: 0.003 → 0.1" in other.err
    assert (tmp_path / "r/last.pt").read_bytes() == before
    assert nnx("train", "digits_mlp", "--out", "nothing", "--resume").code == 2
    assert not (tmp_path / "nothing").exists()


def test_ctrl_c_saves_and_the_printed_command_resumes(tmp_path, environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "nnx", "train", "digits_mlp", "--set", "train.epochs=2000", "--out", "r"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "r/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    command = err.split("Resume with: ")[1].strip().split()
    done = len(records(tmp_path / "r"))
    saved = torch.load(tmp_path / "r/last.pt", weights_only=True)
    epoch = json.loads(saved["json"])["counters"]["epoch"]
    assert epoch == done >= 1
    again = subprocess.run(
        [sys.executable, "-m", *command, "--set", f"train.epochs={epoch + 2}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert len(records(tmp_path / "r")) == epoch + 2


def test_the_best_epoch_is_kept_and_patience_ends_the_run(nnx, tmp_path):
    result = nnx("train", "digits_mlp", "--set", "train.epochs=60", "--set", "train.patience=3", "--out", "r", "--json")
    summary, lines = json.loads(result.out), records(tmp_path / "r")
    best = max(lines, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert summary["best_epoch"] == best["epoch"] == summary["epochs"] - 3
    assert summary["val_accuracy"] == best["val_accuracy"]
    assert "no better validation accuracy for 3 epochs" in result.err


def test_eval_agrees_with_scikit_learn_on_the_loaded_classifiers_predictions(nnx, tmp_path):
    nnx("train", "digits_mlp", *QUICK, "--out", "r")
    metrics = json.loads(nnx("eval", "r/checkpoint.pt", "--json", "-q").out)
    classifier = library.load(tmp_path / "r/checkpoint.pt")
    test = load_dataset(config.load("digits_mlp").dataset, seed=0).test()
    with torch.no_grad():
        probabilities = classifier(torch.from_numpy(test.inputs))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(test)))
    predicted = probabilities.argmax(1).numpy()
    assert metrics["accuracy"] == (predicted == test.labels).mean()
    theirs = f1_score(test.labels, predicted, average=None)
    assert [row["f1"] for row in metrics["per_class"]] == pytest.approx(theirs.tolist())


def test_fail_under(nnx):
    nnx("train", "digits_mlp", "--set", "train.epochs=1", "--out", "r")
    assert nnx("eval", "r/checkpoint.pt", "--fail-under", 0.2).code == 0
    failed = nnx("eval", "r/checkpoint.pt", "--fail-under", 1, "--out", "e")
    assert failed.code == 5
    assert "under --fail-under 1" in failed.err
    assert json.loads(Path("e/eval.json").read_text())["split"] == "test"


def test_python_is_as_thin_as_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = library.train("digits_mlp", ["train.epochs=1"], out="r")
    assert done.checkpoint == Path("r/checkpoint.pt")
    assert library.evaluate(done.checkpoint)["accuracy"] == done.summary["test_accuracy"]
    with pytest.raises(errors.ConfigError, match="unknown key"):
        library.train("digits_mlp", ["train.epoch=1"], out="s")
    assert not Path("s").exists()


@pytest.mark.parametrize("kind", ["loss", "optimizer", "schedule"])
def test_every_part_by_name_trains(kind, tmp_path):
    """The loss falls on the real digits with every loss, optimizer and schedule."""
    for name in registry.names(kind):
        sets = [f"{kind}={name}", "train.epochs=3", "dataset.validation=0.5", "train.report=false"]
        if name == "binary_cross_entropy":
            continue  # two classes only: in test_losses
        chosen = config.load("digits_mlp", sets)
        for _ in run(chosen, out=tmp_path / name):
            pass
        losses = [line["train_loss"] for line in records(tmp_path / name)]
        assert losses[-1] < losses[0], name


def test_divergence_is_4_and_names_a_cure(nnx):
    result = nnx(
        "train", "digits_mlp", "--set", "optimizer={name: sgd, lr: 1000}", "--set", "loss=cross_entropy", "--out", "r"
    )
    assert result.code == 4, result.err
    assert "Lower optimizer.lr (now 1000)" in result.err


def test_step_events_come_between_the_epochs(tmp_path):
    events = list(run(config.load("digits_mlp", ["train.epochs=2", "train.film=false"]), out=tmp_path / "r"))
    assert [type(event).__name__ for event in events[:2] + events[-2:]] == ["Started", "Step", "Epoch", "Finished"]
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == list(range(3, 73, 3))  # ten or so an epoch of 36 steps, counted over both
    assert all(event.batch == event.step - 36 * event.epoch for event in events if isinstance(event, Step))


def test_training_imports_no_unused_packages(tmp_path, environment):
    """`nnx train` imports neither torchvision nor scikit-learn's model selection, nor torch's compiler; without a
    report nor matplotlib, nor scipy where the network is too good for logistic regression to be clearly better."""
    code = (
        "import sys; from nnx.cli import run_command\n"
        "sys.argv = ['nnx', 'train', 'digits_mlp', '--set', 'train.epochs=40', '--set', 'train.report=false', '-q']\n"
        "sys.argv += ['--out', 'r']\n"
        "assert run_command() == 0\n"
        "heavy = {'torchvision', 'sklearn', 'scipy', 'matplotlib', 'jinja2', 'torch._dynamo'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert os.listdir(tmp_path) == ["r"]
