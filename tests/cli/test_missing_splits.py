"""Commands on a network trained without test samples, or on everything: another split, by name, or one error."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

CONFIG = """
dataset: {name: arrays, path: digits.npz, validation: %s, test: 0}
model: {name: cnn, channels: [4]}
train: {epochs: 1, report: false}
"""


@pytest.fixture
def trained(nnx, tmp_path):
    """A function that trains with so many validation samples and no test samples."""
    images, labels = load_digits(return_X_y=True)
    np.savez("digits.npz", images=(images[:400] * 15).astype(np.uint8).reshape(-1, 8, 8), labels=labels[:400])

    def train(validation):
        (tmp_path / "c.yaml").write_text(CONFIG % validation)
        return nnx("train", "c.yaml", "--out", "r")

    return train


def test_train_prints_what_is_not_measured_and_the_json_has_null(nnx, trained):
    done = trained(0)
    assert done.code == 0, done.err
    lines = [" ".join(line.split()) for line in done.err.splitlines()]
    kept = "no validation samples (dataset.validation: 0): the last epoch is kept; early stopping is off"
    assert f"validation not measured {kept}" in lines
    unknown = "no test samples (dataset.test: 0): how the network does on new samples is unknown"
    assert f"test not measured {unknown}" in lines
    assert "samples 400 train" in lines
    assert "val" not in lines[-1]
    document = json.loads(nnx("train", "c.yaml", "--out", "r", "--force", "--json", "-q").out)
    assert document["val_accuracy"] is document["test_accuracy"] is None
    assert nnx("show", "c.yaml").code == 0


@pytest.mark.parametrize("command", ["eval", "trace", "explain"])
def test_a_split_without_samples_is_one_line_that_names_the_cure(nnx, trained, command):
    trained(40)
    refused = nnx(command, "r", "--split", "test")
    cure = "use --split train or validation, or name test data: --set dataset.test=FILE"
    assert refused.code == 2
    assert refused.err == f"error: test split: the dataset has none (dataset.test: 0); {cure}\n"
    assert nnx("eval", "r").err == refused.err, "the default"
    assert nnx("eval", "r", "--split", "validation", "--json").code == 0


@pytest.mark.parametrize(("validation", "split", "word"), [(60, "validation", "validation"), (0, "train", "training")])
def test_explain_takes_samples_of_another_split_and_says_which(nnx, trained, validation, split, word):
    trained(validation)
    only = [part for name in ("activations", "embedding", "patterns", "probe") for part in ("--only", name)]
    done = nnx("explain", "r", *only, "--json")
    assert done.code == 0, done.err
    assert f"the dataset has no test samples (dataset.test: 0): explaining {split} samples" in done.err
    document = json.loads(done.out)["explainers"]
    assert f"one {word} sample" in document["embedding"]["reading"]
    assert f"nine {word} images" in document["patterns"]["reading"]
    probe = document["probe"]["figures"]
    assert probe["scored_on"]["split"] == split
    assert probe["fitted_to"] == {"split": "train", "samples": 340 if validation else 200}
    assert probe["scored_on"]["samples"] == (validation or 200)


def test_eval_takes_test_data_from_a_file(nnx, trained):
    trained(0)
    images, labels = load_digits(return_X_y=True)
    np.savez("new.npz", images=(images[400:500] * 15).astype(np.uint8).reshape(-1, 8, 8), labels=labels[400:500])
    done = nnx("eval", "r", "--set", "dataset.test=new.npz", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["samples"] == 100
    assert "may have been trained on" not in done.err


def test_predict_needs_no_split(nnx, trained):
    trained(0)
    assert nnx("predict", "r", "digits.npz").code == 0


def test_fail_under_without_test_samples_is_2_not_5(nnx, trained):
    trained(0)
    assert nnx("eval", "r", "--fail-under", "0.1").code == 2
    assert nnx("eval", "r", "--split", "train", "--fail-under", "1").code in (0, 5)


def test_verify(nnx, trained):
    trained(0)
    done = nnx("verify", "r")
    assert done.code == 0, done.err
    assert "bitwise equal" in done.out
