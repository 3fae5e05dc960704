"""Reports as runs and evaluations write them: last of all, so that nothing is lost with them."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from nnx import config, formatting, report
from nnx.cli import run_command
from nnx.errors import MachineError
from nnx.run import folder as run_folder
from nnx.run.evaluate import evaluate_checkpoint
from nnx.run.pipeline import run

QUICK = ("--set", "train.epochs=2", "--set", "model.hidden=[8]")


@pytest.fixture
def nnx(monkeypatch, capsys, tmp_path):
    """The command line, in an empty current folder -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["nnx", *map(str, words)])
        capsys.readouterr()
        return (run_command(), *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "r"
    for _ in run(config.load("digits_mlp", ["train.epochs=2", "train.film=true", "train.report=false"]), out=folder):
        pass
    return folder


def test_train_writes_it_and_says_where(nnx, page):
    code, out, err = nnx("train", "digits_mlp", *QUICK, "--out", "r", "--json", "-q")
    summary = json.loads(out)
    assert (code, err) == (0, "")
    assert summary["report"] == "r/report.html"
    found = page(Path("r/report.html").read_text())
    assert found.data["figures"]["accuracy"] == summary["test_accuracy"]
    assert found.data["figures"]["loss"] == summary["test_loss"]
    records = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert found.data["records"] == records
    visible = "".join(found.text)
    assert config.load("r/config.yaml").to_yaml() in visible
    assert f"{summary['parameters']:,}" in visible
    assert summary["environment"]["torch"] in visible
    assert summary["health"]["evidence"] in visible
    assert f"on {summary['train_samples']:,} training samples" in visible
    assert formatting.percent(summary["baselines"]["logistic_regression"]["accuracy"]) in visible
    assert formatting.percent(summary["baselines"]["most_frequent_class"]["accuracy"]) in visible
    for choice in ("device", "precision", "threads", "step", "data path"):
        assert choice in visible, "what was chosen, and why"
    assert "backpropagation without autograd" in visible
    _, out, _ = nnx("train", "digits_mlp", *QUICK, "--out", "s", "-q")
    assert re.search("^report +s/report.html$", out, re.M)


def test_without_one_there_is_none(nnx):
    code, out, _ = nnx("train", "digits_mlp", *QUICK, "--set", "train.report=false", "--out", "r", "--json", "-q")
    assert code == 0
    assert json.loads(out)["report"] is None
    assert not Path("r/report.html").exists()
    assert (
        json.loads(nnx("train", "--resume", "r", "--set", "train.report=true", "-q", "--json")[1])["report"]
        == "r/report.html"
    )
    assert Path("r/report.html").exists(), "a resume may ask for it"


def test_the_fast_recipes_have_none_the_others_do():
    wanted = {name: config.load(name).train.report for name in config.recipes()}
    assert [name for name, report in wanted.items() if not report] == ["mnist_cnn_fast", "mnist_mlp_fast"]
    assert all(config.load(name).train.film == "auto" for name in config.recipes())


def test_one_that_fails_loses_nothing(nnx, monkeypatch):
    def full(path, content):
        raise MachineError(f"{path}: could not be saved (No space left on device)")

    monkeypatch.setattr(report, "write", full)
    code, out, err = nnx("train", "digits_mlp", *QUICK, "--out", "r", "--json", "-q")
    assert code == 3
    assert (out, err.count("\n")) == ("", 1)
    assert "report.html: could not be saved" in err
    summary = json.loads(Path("r/summary.json").read_text())
    assert summary["test_accuracy"] == evaluate_checkpoint(Path("r/checkpoint.pt")).metrics["accuracy"]


def test_a_signal_while_it_is_made_leaves_the_rest(nnx, monkeypatch):
    def slow(path, content):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(report, "write", slow)
    code, _, err = nnx("train", "digits_mlp", *QUICK, "--out", "r", "-q")
    assert code == 143
    assert "report.html was not written; everything else is finished" in err
    assert Path("r/summary.json").exists()


def test_eval_writes_one_of_its_split(nnx, page, trained):
    code, out, _ = nnx("eval", trained / "checkpoint.pt", "--split", "validation", "--out", "e", "--json", "-q")
    assert code == 0
    assert sorted(os.listdir("e")) == ["eval.json", "report.html"]
    found = page(Path("e/report.html").read_text())
    assert found.data["figures"] | {"seconds": 0, "samples_per_second": 0} == json.loads(out) | {
        "seconds": 0,
        "samples_per_second": 0,
    }
    assert json.loads(Path("e/eval.json").read_text()) == json.loads(out)
    assert "validation accuracy" in "".join(found.text)
    assert len(found.data["records"]) == 2, "of metrics.jsonl beside the checkpoint"
    assert found.data["film"]["steps"][0] == 0, "and of film.npz"
    code, out, _ = nnx("eval", trained / "checkpoint.pt", "-q")
    assert code == 0
    assert sorted(os.listdir()) == ["e"], "without --out nothing is written"


def assessed(text):
    """What a report says of health, baselines and training accuracy."""
    marks = {"health": 'class="health', "baselines": "fitted to", "training accuracy": "training accuracy"}
    return {what for what, mark in marks.items() if mark in text}


def test_eval_reports_health_and_baselines_of_its_run(trained):
    whole = shutil.copytree(trained, trained.parent / "whole")
    for _ in run(config.load("digits_mlp", ["train.epochs=2"]), out=whole, force=True):
        pass
    summary = json.loads((whole / "summary.json").read_text())
    text = report.render(evaluate_checkpoint(whole))
    assert assessed(text) == {"health", "baselines", "training accuracy"}
    assert summary["health"]["evidence"] in text
    assert formatting.percent(summary["baselines"]["logistic_regression"]["accuracy"]) in text
    # the baselines were measured on the test samples, and only on these
    other_split = report.render(evaluate_checkpoint(whole, split="validation"))
    (whole / "summary.json").write_text(json.dumps(summary | {"test_data": "0" * 64}))
    other_data = report.render(evaluate_checkpoint(whole))
    assert assessed(other_split) == assessed(other_data) == {"health", "training accuracy"}
    for change in ({"best_epoch": 9}, {"val_loss": 0.1}, {"health": "fine"}, {"baselines": {"x": 1}}):
        (whole / "summary.json").write_text(json.dumps(summary | change))
        assert assessed(report.render(evaluate_checkpoint(whole))) == set(), "of another network, or nonsense"


@pytest.mark.parametrize("damage", ["another run's", "nonsense", "gone", "not finite"])
def test_curves_are_only_those_of_the_checkpoints_own_run(trained, tmp_path, damage):
    folder = Path(shutil.copytree(trained, tmp_path / "r"))
    path = folder / "metrics.jsonl"
    if damage == "another run's":
        path.write_text(
            path.read_text().replace('"val_loss": 0', '"val_loss": 1').replace('"val_loss": 1', '"val_loss": 2')
        )
    elif damage == "nonsense":
        path.write_text(path.read_text().replace('"lr": ', '"lr": "x", "l": '))
    elif damage == "not finite":
        path.write_text(path.read_text().replace('"lr": ', '"lr": NaN, "l": '))
    else:
        path.unlink()
    content = evaluate_checkpoint(folder / "checkpoint.pt")
    assert list(content.records) == []
    assert content.film is None
    assert "Learning rate" not in report.render(content)
    assert len(run_folder.matching_metrics(trained, content.checkpoint.record)) == 2, "the control"


def test_a_file_as_folder_is_an_error_before_anything_is_measured(nnx, trained, monkeypatch):
    Path("file").write_text("x")
    monkeypatch.setattr("nnx.run.evaluate.evaluate_checkpoint", None)
    code, _, err = nnx("eval", trained / "checkpoint.pt", "--out", "file")
    assert code == 2
    assert "file: is a file, not a folder" in err


def test_rows_of_a_table_have_their_original_units(nnx, page):
    code, _, err = nnx("train", "iris_mlp", "--set", "train.epochs=2", "--out", "r", "-q")
    assert code == 0, err
    from sklearn.datasets import load_iris

    known = {tuple(f"{value:.4g}" for value in row) for row in load_iris().data}
    tables = [table for table in page(Path("r/report.html").read_text()).tables if table[0][:1] == ["sample"]]
    assert tables
    for head, *rows in tables:
        assert head[4:] == ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
        assert {tuple(row[4:]) for row in rows} <= known
