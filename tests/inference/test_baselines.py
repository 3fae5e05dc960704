"""Logistic regression as a baseline: as accurate as scikit-learn's, and without influence on anything else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nnx import checkpoint, config, datasets
from nnx.datasets import Split
from nnx.events import Finished
from nnx.inference import baselines
from nnx.inference.baselines import evenly_spread, fit_linear
from nnx.preprocessing.spec import Spec
from nnx.run.pipeline import run


def data_of(recipe):
    return datasets.load(config.load(recipe).dataset, seed=0)


def normalised(split, spec):
    inputs, labels = (np.concatenate(part) for part in zip(*baselines._batches(split, spec), strict=True))
    return inputs, labels


@pytest.mark.parametrize("recipe", ["digits_mlp", "iris_mlp", "wine_mlp", "breast_cancer_mlp", "spirals_mlp"])
def test_26_logistic_regression_is_as_accurate_as_that_of_scikit_learn(recipe):
    data = data_of(recipe)
    ours = fit_linear(data.train, data.validation, data.spec)
    strength = ours.strength if len(data.spec.classes) > 2 else 2 * ours.strength  # a row per class: half the penalty
    theirs = LogisticRegression(C=strength, max_iter=1000).fit(*normalised(data.train, data.spec))
    test = data.test()
    accuracy, loss = ours.measure(test)
    inputs, labels = normalised(test, data.spec)
    assert accuracy == pytest.approx(theirs.score(inputs, labels), abs=0.01)
    log_p = theirs.predict_log_proba(inputs)[np.arange(len(labels)), labels]
    assert loss == pytest.approx(-log_p.mean(), abs=0.02)


def test_validation_samples_choose_the_regularisation_and_test_samples_do_not():
    data = data_of("digits_mlp")
    models = baselines._models(data.train, data.spec, baselines.STRENGTHS)
    fitted = [model.measure(data.validation)[1] for model in models]
    chosen = fit_linear(data.train, data.validation, data.spec)
    assert chosen.strength == baselines.STRENGTHS[int(np.argmin(fitted))]
    for nothing in (None, data.validation.take(np.zeros(0, np.int64))):
        assert fit_linear(data.train, nothing, data.spec).strength == 1


def test_wide_data_takes_fewer_samples_or_none(monkeypatch):
    data = data_of("digits_mlp")
    monkeypatch.setattr(baselines, "NUMBERS", 64 * 10 * 200)
    assert fit_linear(data.train, data.validation, data.spec).samples == 200
    monkeypatch.setattr(baselines, "NUMBERS", 64 * 10 * 99)
    assert fit_linear(data.train, data.validation, data.spec) is None


def test_a_sample_contains_all_classes_of_sorted_data():
    split = Split(np.zeros((1000, 2), np.float32), np.arange(10).repeat(100))
    assert np.bincount(evenly_spread(split, 50).labels).tolist() == [5] * 10
    assert evenly_spread(split, 1000) is split


def test_classes_without_a_sample_are_no_obstacle():
    random = np.random.default_rng(0)
    split = Split(random.normal(size=(60, 3)).astype(np.float32), random.integers(2, size=60) * 2)
    spec = Spec((3,), ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)
    assert 0.3 < fit_linear(split, None, spec).measure(split)[0] <= 1


def test_26_baselines_and_training_accuracy_change_no_bit_of_the_training(tmp_path, monkeypatch):
    """Two runs with a report and two without, in one process, leave the same checkpoints."""
    monkeypatch.chdir(tmp_path)
    random = str(np.random.get_state())  # noqa: NPY002 - the global one, which must not change
    for name, report in (("a", True), ("b", False), ("c", True), ("d", False)):
        chosen = config.load("digits_mlp", ["train.epochs=2", f"train.report={str(report).lower()}", "threads=1"])
        *_, finished = run(chosen, out=Path(name))
        assert isinstance(finished, Finished)
        assert torch.get_num_threads() == 1
        assert str(np.random.get_state()) == random  # noqa: NPY002
    summary = json.loads(Path("a/summary.json").read_text())
    assert summary["train_samples"] == 1150
    assert summary["train_accuracy"] > 0.8
    assert summary["baselines"]["logistic_regression"] | {"accuracy": 0} == {
        "accuracy": 0,
        "train_samples": 1150,
        "C": 10.0,
    }
    assert summary["baselines"]["most_frequent_class"]["label"] == "3"
    assert len({Path(name, "checkpoint.pt").read_bytes() for name in "ac"}) == 1
    weights = {str(checkpoint.read(Path(name, "checkpoint.pt")).model) for name in "abcd"}
    assert len(weights) == 1
