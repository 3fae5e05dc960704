"""The verdict on a finished training: runs that fail in known ways, and no alarm for those that do not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnx import config
from nnx.events import Finished
from nnx.run.pipeline import run
from nnx.terminal import console
from nnx.training.diagnosis import Evidence, diagnose

HEALTHY = {
    "digits_mlp": 40,
    "digits_cnn": 8,
    "digits_rnn": 8,
    "digits_transformer": 15,
    "iris_mlp": 40,
    "wine_mlp": 40,
    "breast_cancer_mlp": 20,
    "spirals_mlp": 40,
}  # shipped recipes, and epochs: all of them, but for the three slow ones


def summary_of(recipe, *settings):
    *_, finished = run(config.load(recipe, settings), out=Path("run"), force=True)
    assert isinstance(finished, Finished)
    return finished.summary


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_arrays(samples, features=20, classes=4, *, signal=0.0, seed=0):
    """Rows of noise with random labels; with a `signal`, one feature per class has it added."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=samples)
    inputs = random.normal(size=(samples, features)).astype(np.float32)
    inputs[np.arange(samples), labels] += signal
    np.savez("noise.npz", inputs=inputs, labels=labels)


def on_arrays(*settings, epochs=30):
    dataset = ["dataset={name: arrays, path: noise.npz, validation: 0.25, test: 0.2}"]
    common = ["train.augment={}", "train.ema=null", "schedule=constant", f"train.epochs={epochs}"]
    return summary_of("digits_mlp", *dataset, *common, *settings)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(("recipe", "epochs"), HEALTHY.items())
def test_26_shipped_recipes_are_healthy(recipe, epochs, folder):
    summary = summary_of(recipe, f"train.epochs={epochs}", "train.report=true")
    assert summary["health"]["verdict"] == "healthy", summary["health"]
    assert json.loads((folder / "run/summary.json").read_text())["health"] == summary["health"]


@pytest.mark.parametrize(
    ("settings", "verdict", "advice"),
    [
        (["optimizer.lr=0.3"], "not learning", "Try --set optimizer.lr=0.001 (now 0.3)"),
        (["optimizer.lr=1", "train.ema=null", "train.epochs=10"], "not learning", "Try --set optimizer.lr=0.001"),
        (["optimizer.lr=1e-7", "train.epochs=4"], "not learning", "Try --set optimizer.lr=0.001 (now 1e-07)"),
        (
            ["model.hidden=[32,32,32,32,32,32,32,32]", "model.activation=sigmoid", "train.epochs=4"],
            "not learning",
            "Try --set model.activation=relu",
        ),
    ],
)
def test_26_a_run_that_fails_says_so_and_what_to_try(settings, verdict, advice, folder):
    *_, finished = run(config.load("digits_mlp", settings), out=folder / "run")
    summary = finished.summary
    assert summary["health"]["verdict"] == verdict
    assert summary["health"]["advice"].startswith(advice)
    lines = str(console.result_table(summary)).splitlines()[-2:]
    assert lines[0].split(maxsplit=1)[1].startswith(f"{verdict}  validation accuracy ")
    assert "always predicting the most frequent class gives 10.1" in lines[0]
    assert lines[1].strip() == summary["health"]["advice"]
    report = (folder / "run/report.html").read_text()
    assert f"<b>{verdict.capitalize()}</b>" in report
    assert advice in report


def test_26_too_few_epochs_are_underfitting(folder):
    health = summary_of("digits_mlp", "optimizer.lr=5e-4", "train.epochs=2", "train.ema=null")["health"]
    assert health["verdict"] == "underfitting"
    assert "logistic regression 9" in health["evidence"]
    assert "train.epochs=6 (now 2)" in health["advice"]


def test_26_dead_units_are_found_though_the_network_learns(folder):
    health = summary_of("digits_cnn", "optimizer.lr=0.3", "train.epochs=5")["health"]
    assert health["verdict"] == "dead units"
    assert "of the ReLUs of stages.1.activation" in health["evidence"]


def test_26_random_labels_do_not_carry_over(folder):
    write_arrays(400)
    health = on_arrays()["health"]
    assert (health["verdict"], health["epoch"]) == ("overfitting", 1)
    assert "does not carry over" in health["evidence"]
    assert health["advice"].startswith("Check that the labels belong to the inputs")


def test_26_random_labels_that_a_network_cannot_memorise_are_not_learned(folder):
    write_arrays(2000, classes=10)
    health = on_arrays("model.hidden=[2]", epochs=4)["health"]
    assert health["verdict"] == "not learning"
    assert "Check that the labels belong to the inputs" in health["advice"]


def test_26_little_data_is_overfitted(folder):
    write_arrays(300, signal=1.5)
    health = on_arrays(epochs=40)["health"]
    assert health["verdict"] == "overfitting"
    assert 2 <= health["epoch"] <= 15
    assert health["evidence"].startswith(f"validation loss rises from epoch {health['epoch']} (")
    assert health["evidence"].endswith("training loss falls")
    assert health["advice"].startswith("Try --set model.dropout=0.3")


def test_26_unequal_classes_are_no_alarm(folder):
    """Accuracy is that of the most frequent class, but the rare one is found too."""
    random = np.random.default_rng(0)
    labels = (random.random(2000) < 0.05).astype(np.int64)
    inputs = random.normal(size=(2000, 8)).astype(np.float32)
    inputs[:, 0] += 2 * labels
    np.savez("noise.npz", inputs=inputs, labels=labels)
    assert on_arrays("loss={name: cross_entropy, class_weights: balanced}", epochs=6)["health"]["verdict"] == "healthy"
    assert on_arrays(epochs=6)["health"]["verdict"] == "healthy"


def test_26_a_run_without_a_report_has_a_verdict_but_no_training_accuracy(folder):
    summary = summary_of("digits_mlp", "train.epochs=3", "train.report=false")
    assert summary["health"]["verdict"] == "healthy"
    assert summary["train_accuracy"] is summary["train_samples"] is None
    assert summary["baselines"]["logistic_regression"] is None


# ---------------------------------------------------------------- the verdict by itself


def histories(train_loss, val_loss, val_accuracy):
    rows = zip(train_loss, val_loss, val_accuracy, strict=True)
    return [
        {"epoch": n, "train_loss": t, "val_loss": v, "val_accuracy": a, "lr": 0.001}
        for n, (t, v, a) in enumerate(rows, 1)
    ]


GOOD = Evidence(
    config=config.load("mnist_mlp"),
    history=histories([1.0, 0.5, 0.3, 0.2], [0.8, 0.5, 0.4, 0.39], [0.7, 0.8, 0.85, 0.86]),
    dead={"layers.2": 0.02},
    train_accuracy=0.9,
    train_recall=0.9,
    train_loss=0.3,
    most_frequent=0.11,
    entropy=2.3,
    classes=10,
    guess=2.3,
    validation_samples=5000,
)
MNIST_MLP = histories(
    [0.2383, 0.0944, 0.0621, 0.0441, 0.0327, 0.0291, 0.0229, 0.0214, 0.0191, 0.0176],
    [0.1191, 0.0851, 0.0769, 0.074, 0.0723, 0.0715, 0.0763, 0.0749, 0.0779, 0.0805],
    [0.965, 0.974, 0.977, 0.979, 0.98, 0.98, 0.98, 0.981, 0.982, 0.982],
)
RISING = histories([1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03], [0.9, 0.6, 0.5, 0.55, 0.6, 0.7, 0.8], [0.8] * 7)
CLIMBING = histories([1.0, 0.5, 0.3, 0.9, 1.2], [1.0, 0.5, 0.4, 1.0, 1.2], [0.6, 0.8, 0.85, 0.6, 0.5])


def test_a_slight_rise_as_of_mnist_mlp_is_no_alarm():
    assert diagnose(replace(GOOD, history=MNIST_MLP, train_accuracy=0.999)).verdict == "healthy"


def test_overfitting_is_found_in_the_trends_alone():
    diagnosis = diagnose(replace(GOOD, history=RISING, train_accuracy=0.99))
    assert (diagnosis.verdict, diagnosis.epoch) == ("overfitting", 3)
    assert diagnosis.evidence == "validation loss rises from epoch 3 (0.5000 to 0.8000), training loss falls"
    shifted = [
        record | {"train_loss": record["train_loss"] + 5} for record in RISING
    ]  # label smoothing, mixup, weights
    assert diagnose(replace(GOOD, history=shifted, train_accuracy=0.99)).verdict == "overfitting"


@pytest.mark.parametrize(
    "changes",
    [
        {"train_accuracy": 0.8},  # no better on the training samples
        {"validation_samples": 12},  # one or two samples explain it
        {"history": [record | {"train_loss": 1.0} for record in RISING]},  # training loss does not fall
        {"history": RISING[:5]},  # not for long enough
    ],
)
def test_a_rise_of_the_validation_loss_alone_is_not_overfitting(changes):
    assert diagnose(replace(GOOD, **{"history": RISING, "train_accuracy": 0.99} | changes)).verdict == "healthy"


def test_diverging_is_a_training_loss_that_climbs_back():
    diagnosis = diagnose(replace(GOOD, history=CLIMBING))
    assert (diagnosis.verdict, diagnosis.epoch) == ("diverging", 3)
    assert diagnosis.evidence == "training loss rises from 0.3000 at epoch 3 to 1.200"
    assert diagnosis.advice == "Try --set optimizer.lr=0.0001 (now 0.001), or --set train.clip_grad_norm=1"
    assert diagnose(replace(GOOD, history=CLIMBING[:4])).verdict == "healthy"  # a single bad epoch


def test_without_validation_the_training_samples_decide():
    history = [{key: record[key] for key in ("epoch", "train_loss", "lr")} for record in RISING]
    assert "can't be seen without validation data" in diagnose(replace(GOOD, history=history)).evidence
    empty = [record | {"val_loss": None, "val_accuracy": None} for record in RISING]
    assert diagnose(replace(GOOD, history=empty, validation_samples=0)).verdict == "healthy"
    guessing = replace(GOOD, history=empty, train_loss=2.31, train_recall=0.1, train_accuracy=0.11)
    assert diagnose(guessing).verdict == "not learning"


def test_a_network_worse_than_logistic_regression_is_underfitting_if_the_difference_is_significant():
    assert diagnose(replace(GOOD, linear=0.9)).verdict == "underfitting"
    assert diagnose(replace(GOOD, linear=0.9, validation_samples=100)).verdict == "healthy"
    assert diagnose(replace(GOOD, linear=0.87)).verdict == "healthy"


def test_more_epochs_are_proposed_only_while_the_validation_loss_falls():
    falling = histories([1, 0.8, 0.6, 0.5], [1, 0.8, 0.6, 0.5], [0.5, 0.6, 0.7, 0.8])
    assert diagnose(replace(GOOD, history=falling)).advice == "May improve with --set train.epochs=30 (now 10)"
    decayed = [record | {"lr": 1e-6} for record in falling]
    assert diagnose(replace(GOOD, history=decayed)).advice == ""
