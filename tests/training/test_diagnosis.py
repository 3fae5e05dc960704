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
from nnx.training.diagnosis import Baseline, Evidence, diagnose

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
    is_whole = epochs == config.load(recipe).train.epochs
    expected = ["healthy"] if is_whole else ["healthy", "still learning", "underfitting"]
    assert summary["health"]["verdict"] in expected, summary["health"]
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


def write_unequal_classes(signal):
    """Of 2,000 rows of noise, 5 % are of the second class and have `signal` added to a feature."""
    random = np.random.default_rng(0)
    labels = (random.random(2000) < 0.05).astype(np.int64)
    inputs = random.normal(size=(2000, 8)).astype(np.float32)
    inputs[:, 0] += signal * labels
    np.savez("noise.npz", inputs=inputs, labels=labels)


BALANCED = "loss={name: cross_entropy, class_weights: balanced}"


@pytest.mark.parametrize("report", ["true", "false"])
def test_unequal_classes_are_no_alarm(report, folder):
    """Accuracy is that of the most frequent class, but the rare one is found too."""
    write_unequal_classes(3)
    settings = ["model.hidden=[8]", f"train.report={report}"]
    for loss in ([], [BALANCED]):
        health = on_arrays(*settings, *loss, epochs=12)["health"]
        assert health["verdict"] in ("healthy", "still learning"), (loss, health)


@pytest.mark.parametrize("report", ["true", "false"])
def test_a_network_that_always_predicts_the_frequent_class_is_not_healthy(report, folder):
    write_unequal_classes(0.8)
    health = on_arrays("model.hidden=[8]", f"train.report={report}", epochs=12)["health"]
    assert health["verdict"] == "barely learning", health
    assert "the rare classes are hardly found" in health["evidence"]
    assert health["advice"] == "Try --set loss.class_weights=balanced"


@pytest.mark.parametrize("report", ["true", "false"])
@pytest.mark.parametrize(
    ("settings", "verdict", "evidence"),
    [
        (["train.epochs=1"], "underfitting", "logistic regression 9"),
        (["optimizer.lr=2e-5", "train.epochs=30"], "underfitting", "the learning rate is too low"),
        (["model.hidden=[2]", "train.epochs=40"], "underfitting", "logistic regression 9"),
        (["dataset.validation=0", "optimizer.lr=2e-5", "train.epochs=30"], "underfitting", "training accuracy "),
        (["train.epochs=2", "train.ema=null", "schedule=constant"], "still learning", "validation loss still falls"),
    ],
)
def test_a_network_that_loses_to_a_linear_one_or_still_learns_is_not_healthy(
    settings, verdict, evidence, report, folder
):
    health = summary_of("digits_mlp", *settings, f"train.report={report}")["health"]
    assert health["verdict"] == verdict, health
    assert evidence in health["evidence"]


def test_without_hidden_layers_spirals_cannot_be_learned(folder):
    health = summary_of("spirals_mlp", "model.hidden=[]", "train.epochs=10")["health"]
    assert health["verdict"] == "underfitting", health
    assert health["evidence"].startswith("training accuracy 5")
    assert health["advice"] == "Try --set 'model.hidden=[32]'"


def test_a_run_without_a_report_measures_the_baseline_only_where_it_decides(folder):
    good = summary_of("digits_mlp", "train.report=false")
    assert good["health"]["verdict"] == "healthy"
    assert good["train_accuracy"] is good["train_samples"] is None
    assert good["baselines"]["logistic_regression"] is None
    assert summary_of("digits_mlp", "train.epochs=1", "train.report=false")["baselines"]["logistic_regression"]


# ---------------------------------------------------------------- the verdict by itself


def histories(train_loss, val_loss, val_accuracy):
    rows = zip(train_loss, val_loss, val_accuracy, strict=True)
    return [
        {"epoch": n, "train_loss": t, "val_loss": v, "val_accuracy": a, "lr": 0.001}
        for n, (t, v, a) in enumerate(rows, 1)
    ]


GOOD = Evidence(
    config=config.load("mnist_mlp"),
    history=histories([1.0, 0.5, 0.3, 0.28], [0.8, 0.5, 0.4, 0.39], [0.7, 0.8, 0.85, 0.86]),
    dead={"layers.2": 0.02},
    train_accuracy=0.9,
    train_recall=0.9,
    train_loss=0.3,
    recall=0.86,
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
    rising = replace(GOOD, history=RISING, train_accuracy=0.84)
    assert diagnose(rising).verdict == "overfitting"
    assert diagnose(replace(rising, **changes)).verdict == "healthy"


def test_diverging_is_a_training_loss_that_climbs_back():
    diagnosis = diagnose(replace(GOOD, history=CLIMBING))
    assert (diagnosis.verdict, diagnosis.epoch) == ("diverging", 3)
    assert diagnosis.evidence == "training loss rises from 0.3000 at epoch 3 to 1.200"
    assert diagnosis.advice == "Try --set optimizer.lr=0.0001 (now 0.001), or --set train.clip_grad_norm=1"
    assert diagnose(replace(GOOD, history=CLIMBING[:4], train_accuracy=0.87)).verdict == "healthy"  # a single bad epoch


def test_without_validation_the_training_samples_decide():
    history = [{key: record[key] for key in ("epoch", "train_loss", "lr")} for record in RISING]
    assert "can't be seen without validation data" in diagnose(replace(GOOD, history=history)).evidence
    empty = [record | {"val_loss": None, "val_accuracy": None} for record in RISING]
    assert diagnose(replace(GOOD, history=empty, validation_samples=0)).verdict == "healthy"
    guessing = replace(GOOD, history=empty, train_loss=2.31, train_recall=0.1, train_accuracy=0.11)
    assert diagnose(guessing).verdict == "not learning"


@pytest.mark.parametrize(
    ("linear", "verdict"),
    [
        (Baseline(0.90, 0.90, 0.005), "underfitting"),
        (Baseline(0.90, 0.90, 0.03), "healthy"),  # the difference is not significant
        (Baseline(0.87, 0.87, 0.001), "healthy"),  # nor worth a word
        (Baseline(0.95, 0.60, 0.005), "healthy"),  # class weights give up accuracy for the recall of rare classes
    ],
)
def test_a_network_clearly_worse_than_logistic_regression_is_underfitting(linear, verdict):
    assert diagnose(replace(GOOD, linear=linear)).verdict == verdict


def test_a_network_that_logistic_regression_equals_is_told_so():
    evidence = diagnose(replace(GOOD, linear=Baseline(0.87, 0.87, 0.001))).evidence
    assert evidence.endswith("; validation accuracy 86.00 %, logistic regression 87.00 %")
    assert "logistic" not in diagnose(replace(GOOD, linear=Baseline(0.8, 0.8, 0.001))).evidence


def test_a_network_worse_than_logistic_regression_that_knows_its_training_samples_overfits():
    diagnosis = diagnose(replace(GOOD, train_accuracy=1.0, linear=Baseline(0.9, 0.9, 0.005)))
    assert (diagnosis.verdict, diagnosis.epoch) == ("overfitting", None)
    assert diagnosis.evidence.endswith("logistic regression 90.00 %; training accuracy 100.00 %")


def test_a_gap_between_training_and_validation_accuracy_is_overfitting_without_a_rising_loss():
    diagnosis = diagnose(replace(GOOD, train_accuracy=0.99))
    assert diagnosis.verdict == "overfitting"
    assert diagnosis.evidence == "training accuracy 99.00 %, validation accuracy 86.00 %"
    assert diagnose(replace(GOOD, train_accuracy=0.99, validation_samples=40)).verdict == "healthy"
    assert diagnose(replace(GOOD, train_accuracy=0.90)).verdict == "healthy"


@pytest.mark.parametrize(
    ("accuracy", "changes", "verdict"),
    [
        (0.24, {}, "barely learning"),
        (0.24, {"most_frequent": 0.01, "classes": 100, "guess": 4.6, "entropy": 4.6}, "healthy"),
        (0.56, {"most_frequent": 0.5, "recall": 0.56, "classes": 2, "entropy": 0.693}, "barely learning"),
        (0.75, {"most_frequent": 0.5, "recall": 0.75, "classes": 2, "entropy": 0.693}, "healthy"),
        (0.95, {"most_frequent": 0.95, "recall": 0.5, "classes": 2, "entropy": 0.2}, "barely learning"),
        (0.95, {"most_frequent": 0.95, "recall": 0.7, "classes": 2, "entropy": 0.2}, "healthy"),
        (0.85, {"most_frequent": 0.95, "recall": 0.85, "classes": 2, "entropy": 0.2}, "healthy"),
    ],
)
def test_a_network_hardly_better_than_guessing_is_not_healthy(accuracy, changes, verdict):
    history = histories([2.2, 2.1, 2.05, 2.04], [2.2, 2.1, 2.05, 2.04], [accuracy] * 4)
    weak = {"history": history, "train_accuracy": accuracy, "train_loss": 0.1, "recall": accuracy}
    diagnosis = diagnose(replace(GOOD, **weak | changes))
    assert diagnosis.verdict == verdict, diagnosis
    if verdict != "healthy":
        assert "; always predicting the most frequent class gives " in diagnosis.evidence
        unequal = changes.get("entropy") == 0.2
        assert diagnosis.advice.startswith("Try --set loss.class_weights=balanced" if unequal else "The inputs may")


def test_a_loss_that_falls_to_the_end_means_still_learning():
    falling = histories([1, 0.8, 0.6, 0.5], [1, 0.8, 0.6, 0.5], [0.5, 0.6, 0.7, 0.8])
    diagnosis = diagnose(replace(GOOD, history=falling, train_accuracy=0.8))
    assert diagnosis.verdict == "still learning"
    assert diagnosis.evidence == "validation loss still falls, from 0.6000 to 0.5000 in the last epoch"
    assert diagnosis.advice == "More epochs would help: --set train.epochs=12 (now 4)"
    slow = [0.985**n for n in range(40)]
    diagnosis = diagnose(replace(GOOD, history=histories(slow, slow, [0.86] * 40)))
    assert diagnosis.evidence.endswith("in the last 10 epochs")
    tiny = [0.01 * loss for loss in slow]
    assert diagnose(replace(GOOD, history=histories(tiny, tiny, [0.89] * 40))).verdict == "healthy"
    level = [*slow[:30], *[slow[29]] * 10]
    assert diagnose(replace(GOOD, history=histories(slow, level, [0.86] * 40))).verdict == "healthy"


def test_one_epoch_shows_no_trend():
    diagnosis = diagnose(replace(GOOD, history=histories([0.3], [0.2], [0.88])))
    assert diagnosis.verdict == "still learning"
    assert diagnosis.evidence == "validation accuracy 88.00 % after the only epoch, which shows no trend"
    assert diagnosis.advice == "More epochs would help: --set train.epochs=3 (now 1)"
    worse = replace(GOOD, history=histories([1.3], [1.2], [0.79]), linear=Baseline(0.9, 0.9, 0.005))
    assert diagnose(worse).verdict == "underfitting"
    assert diagnose(worse).evidence.endswith("; one epoch is little")
