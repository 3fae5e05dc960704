"""Compares the metrics with scikit-learn and plain loops, and checks that evaluation changes nothing."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from nnx import losses
from nnx.config import registry
from nnx.datasets import Split
from nnx.inference.metrics import Predictions, calibration, compute_metrics, evaluate, expected_calibration_error
from nnx.loader import batches
from nnx.loader.batches import BatchLoader
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices

CPU = devices.choose_runtime("cpu", "float32")
NAMES = ("zero", "one", "two", "three")
SPEC = Spec((1, 4, 4), NAMES, (0.4,), (0.3,))


def predictions(N=200, K=4, *, seed=0, sharpness=2.0, never=()):
    """Random predictions that favour the true class. Classes in `never` are neither true nor predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([k for k in range(K) if k not in never], N)
    logits = rng.normal(size=(N, K)) * sharpness
    logits[np.arange(N), labels] += sharpness
    logits[:, list(never)] = -30
    powers = np.exp(logits)
    probabilities = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return Predictions(probabilities, labels, 0.5, seconds=2.0)


def split(N=150, seed=0):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (N, 1, 4, 4), dtype=np.uint8), rng.integers(0, 4, N))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def criterion(name="cross_entropy", **settings):
    return registry.find("loss", name)(**settings).build([1, 2, 3, 4], CPU.device)


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    "given",
    [
        predictions(),
        predictions(seed=1, sharpness=0.1),
        predictions(never=(1, 3)),
        predictions(N=1),
        predictions(N=20, never=(0,)),
    ],
)
def test_the_metrics_are_scikit_learns(given):
    metrics = compute_metrics(given, NAMES, "validation")
    predicted = [max(range(4), key=lambda k: row[k]) for row in given.probabilities.tolist()]
    report = sk.classification_report(
        given.labels, predicted, labels=range(4), target_names=NAMES, output_dict=True, zero_division=0.0
    )
    for row in metrics["per_class"]:
        expected = report[row["label"]]
        assert row == pytest.approx(
            {
                "label": row["label"],
                "precision": expected["precision"],
                "recall": expected["recall"],
                "f1": expected["f1-score"],
            }
            | {"support": int(expected["support"])}
        )
    assert [row["label"] for row in metrics["per_class"]] == list(NAMES)
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(given.labels, predicted))
    table = [[0] * 4 for _ in range(4)]
    for true, guess in zip(given.labels, predicted, strict=True):
        table[true][guess] += 1
    assert metrics["confusion_matrix"] == table, "rows are true classes"
    assert (metrics["split"], metrics["samples"], metrics["loss"], metrics["seconds"]) == (
        "validation",
        len(given.labels),
        0.5,
        2.0,
    )
    assert metrics["samples_per_second"] == len(given.labels) / 2


def test_the_metrics_are_plain_values():
    import json

    metrics = compute_metrics(predictions(never=(2,)), NAMES, "test")
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def loop_ece(given, bins=15):
    """Guo et al. 2017, equation 3, bin by bin and sample by sample."""
    total = 0.0
    for b in range(bins):
        inside = []
        for row, label in zip(given.probabilities.tolist(), given.labels.tolist(), strict=True):
            confidence = max(row)
            if b / bins < confidence <= (b + 1) / bins:
                inside.append((confidence, row.index(confidence) == label))
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(sure for sure, _ in inside) / len(inside)
            total += len(inside) / len(given.labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 3.0, 10.0])
def test_calibration_error_is_that_of_a_plain_loop(sharpness):
    given = predictions(300, seed=4, sharpness=sharpness)
    assert expected_calibration_error(given) == pytest.approx(loop_ece(given), abs=1e-6)
    assert expected_calibration_error(given) > 0.001


def test_the_bins_of_calibration_are_those_of_a_plain_loop():
    given = predictions(300, seed=4, sharpness=1.0)
    bins = calibration(given)
    sure = given.probabilities.max(1).tolist()
    for b in range(15):
        inside = [n for n, confidence in enumerate(sure) if b / 15 < confidence <= (b + 1) / 15]
        assert (bins.samples[b], bins.correct[b]) == (
            len(inside),
            sum(given.predicted[n] == given.labels[n] for n in inside),
        )
        assert bins.confidence[b] == pytest.approx(np.mean([sure[n] for n in inside]) if inside else 0)
    assert len(bins.samples) == 15
    assert sum(bins.samples > 0) > 5, "the control: several bins have samples"


def test_calibration_error_of_known_cases():
    sure = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    assert expected_calibration_error(Predictions(sure, np.arange(4), 0, 1)) == 0
    assert expected_calibration_error(Predictions(sure, (np.arange(4) + 1) % 4, 0, 1)) == 1
    even = np.full((8, 4), 0.25, dtype=np.float32)  # always predicts class 0, which is correct for a quarter
    assert expected_calibration_error(Predictions(even, np.arange(8) % 4, 0, 1)) == pytest.approx(0, abs=1e-7)


# ---------------------------------------------------------------- evaluation


def test_predictions_are_those_of_one_pass_over_all():
    model, data = network(), split()
    result = evaluate(model, BatchLoader(data, SPEC, CPU.device), criterion(), CPU)
    images = torch.tensor((data.inputs / 255 - 0.4) / 0.3, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(images).double()
    np.testing.assert_allclose(result.probabilities, logits.softmax(1), atol=1e-5)
    assert result.probabilities.dtype == np.float32
    assert np.array_equal(result.labels, data.labels)
    assert result.loss == pytest.approx(sk.log_loss(data.labels, logits.softmax(1).numpy(), labels=range(4)), rel=1e-5)
    assert result.accuracy == pytest.approx((logits.argmax(1).numpy() == data.labels).mean())
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *[(name, {}) for name in registry.names("loss") if name != "binary_cross_entropy"],
        ("cross_entropy", {"class_weights": "balanced"}),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 149])
def test_the_loss_does_not_depend_on_the_evaluation_batch(name, settings, size, monkeypatch):
    model, feed = network(), BatchLoader(split(), SPEC, CPU.device)
    whole = evaluate(model, feed, criterion(name, **settings), CPU)
    monkeypatch.setattr(batches, "EVALUATION_BATCH", size)
    assert len(list(feed.in_order())) == math.ceil(150 / size), "the control: batches are of that size"
    piecewise = evaluate(model, feed, criterion(name, **settings), CPU)
    assert piecewise.loss == pytest.approx(whole.loss, rel=1e-6)
    np.testing.assert_allclose(piecewise.probabilities, whole.probabilities, atol=1e-6)
    assert np.array_equal(piecewise.labels, whole.labels)


def test_two_classes_by_one_sigmoid():
    data = split()
    data = dataclasses.replace(data, labels=data.labels % 2)
    spec = Spec((1, 4, 4), ("no", "yes"), (0.4,), (0.3,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    loss = losses.BinaryCrossEntropy().build([1, 1], CPU.device)
    result = evaluate(model, BatchLoader(data, spec, CPU.device), loss, CPU)
    assert result.probabilities.shape == (150, 2)
    assert result.loss == pytest.approx(sk.log_loss(data.labels, result.probabilities[:, 1]), rel=1e-5)
    assert len(compute_metrics(result, spec.classes, "test")["per_class"]) == 2


def test_evaluation_draws_no_random_numbers_and_changes_nothing():
    model, feed = network().train(), BatchLoader(split(), SPEC, CPU.device)
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    one, two = (evaluate(model, feed, criterion(), CPU) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert not model.training
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert np.array_equal(one.probabilities, two.probabilities)
    assert one.loss == two.loss


def test_bfloat16_gives_predictions_in_float32():
    model, feed = network(), BatchLoader(split(), SPEC, CPU.device)
    exact, rough = (
        evaluate(model, feed, criterion(), devices.choose_runtime("cpu", precision))
        for precision in ("float32", "bfloat16")
    )
    assert rough.probabilities.dtype == np.float32
    assert rough.loss == pytest.approx(exact.loss, rel=0.03)
    assert rough.loss != exact.loss, "the control: bfloat16 was used"
