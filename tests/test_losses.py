"""Losses compared with torch.nn and formulas in numpy, and the properties that all share."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from nnx import config, losses
from nnx.config import registry
from nnx.errors import ConfigError

CPU = torch.device("cpu")
COUNTS = [7, 2, 1, 10]
WEIGHTS = [0.5, 2.0, 0.0, 3.5]


def dtype_for(settings):
    return torch.float32 if "class_weights" in settings else torch.float64


def classes(name):
    return 2 if name == "binary_cross_entropy" else len(COUNTS)


def batch(name="cross_entropy", size=12, spread=3.0, dtype=torch.float64):
    """(B, K) logits and (B,) labels, in float64 except with class weights, which are float32."""
    generator, K = torch.Generator().manual_seed(3), classes(name)
    logits = (
        torch.randn(size, losses.outputs(registry.find("loss", name)(), K), generator=generator, dtype=torch.float64)
        * spread
    )
    return logits.to(dtype).requires_grad_(), torch.randint(K, (size,), generator=generator)


def criterion(name, **settings):
    return registry.find("loss", name)(**settings).build(COUNTS[: classes(name)], CPU)


def one_hot(labels, K):
    return torch.eye(K, dtype=torch.float64)[labels]


def soft_targets(labels, K):
    """(B, K) probabilities that give part of each label to the next class, as mixup does."""
    return 0.7 * one_hot(labels, K) + 0.3 * one_hot((labels + 1) % K, K)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


# ---------------------------------------------------------------- every loss

NAMES = registry.names("loss")
VARIANTS = [
    *[(name, {}) for name in NAMES],
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("cross_entropy", {"class_weights": WEIGHTS}),
    ("cross_entropy", {"class_weights": "balanced", "label_smoothing": 0.2}),
    ("focal", {"gamma": 0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"class_weights": WEIGHTS}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_labels_are_one_hot_probabilities(name, settings):
    logits, labels = batch(name, dtype=dtype_for(settings))
    loss = criterion(name, **settings)
    torch.testing.assert_close(loss(logits, labels), loss(logits, one_hot(labels, classes(name)).to(logits.dtype)))


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_the_mean_over_parts_is_the_whole(name, settings, soft):
    """Loss and gradient of a batch equal those of two unequal parts, weighted by their numbers of samples."""
    logits, labels = batch(name, dtype=dtype_for(settings))
    targets = soft_targets(labels, classes(name)) if soft else labels
    loss = criterion(name, **settings)
    whole = loss(logits, targets)
    in_parts = (5 * loss(logits[:5], targets[:5]) + 7 * loss(logits[5:], targets[5:])) / 12
    torch.testing.assert_close(in_parts, whole)
    (one,), (two,) = torch.autograd.grad(whole, logits), torch.autograd.grad(in_parts, logits)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("name", "settings"), [(name, more) for name, more in VARIANTS if "class_weights" not in more], ids=str
)
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_match_finite_differences(name, settings, soft):
    logits, labels = batch(name, size=4, spread=1.0)
    targets = soft_targets(labels, classes(name)) if soft else labels
    assert torch.autograd.gradcheck(lambda x: criterion(name, **settings)(x, targets), logits)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_losses_of_certain_predictions_are_finite(name, settings):
    """At logits of 100 float32 probabilities are exactly 0 and 1: loss and gradient stay finite, right is cheaper than
    wrong."""
    K = classes(name)
    labels = torch.arange(K)
    right = 100 * torch.eye(K) if K > 2 else torch.tensor([[-100.0], [100.0]])
    loss = criterion(name, **settings)
    found = {}
    for what, logits in (("right", right), ("wrong", -right)):
        logits = logits.clone().requires_grad_()
        found[what] = loss(logits, labels)
        (gradient,) = torch.autograd.grad(found[what], logits)
        assert gradient.isfinite().all(), what
        assert found[what].isfinite(), what
    assert found["right"] < found["wrong"]
    if not settings.get("label_smoothing"):
        assert found["right"] < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_probabilities(name):
    logits, _ = batch(name)
    K = classes(name)
    assert logits.shape[1] == (1 if name == "binary_cross_entropy" else K)
    found = losses.probabilities(logits.detach().bfloat16())
    assert found.shape == (12, K)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(12))
    z = logits.detach().bfloat16().double().numpy()
    expected = np.hstack([1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))]) if z.shape[1] == 1 else softmax(z)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


# ---------------------------------------------------------------- each by itself


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_torchs(smoothing, soft):
    logits, labels = batch()
    targets = soft_targets(labels, 4) if soft else labels
    ours = criterion("cross_entropy", label_smoothing=smoothing)(logits, targets)
    torch.testing.assert_close(ours, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets))


def test_weighted_cross_entropy_by_the_formula():
    logits, labels = batch()
    log_p = np.log(softmax(logits.detach().numpy()))
    expected = np.mean([-WEIGHTS[y] * row[y] for row, y in zip(log_p, labels.numpy(), strict=True)])
    ours = criterion("cross_entropy", class_weights=WEIGHTS)(logits.float(), labels)
    assert ours.item() == pytest.approx(expected, rel=1e-6)


def test_equal_weights_change_nothing():
    logits, labels = batch()
    weighted = criterion("cross_entropy", class_weights=[1, 1, 1, 1], label_smoothing=0.1)(logits.float(), labels)
    torch.testing.assert_close(weighted, criterion("cross_entropy", label_smoothing=0.1)(logits.float(), labels))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_balanced_is_scikit_learns(name):
    labels = np.repeat(np.arange(4), COUNTS)
    by_hand = compute_class_weight("balanced", classes=np.arange(4), y=labels).tolist()
    logits, targets = batch()
    balanced = criterion(name, class_weights="balanced")(logits.float(), targets)
    torch.testing.assert_close(balanced, criterion(name, class_weights=by_hand)(logits.float(), targets))
    assert balanced != criterion(name)(logits.float(), targets), "the control: weights matter"


def test_mse_is_that_of_the_probabilities():
    logits, labels = batch()
    expected = np.mean((softmax(logits.detach().numpy()) - np.eye(4)[labels]) ** 2)
    assert criterion("mse")(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_binary_cross_entropy_is_torchs(soft):
    logits, labels = batch("binary_cross_entropy")
    second = soft_targets(labels, 2)[:, 1] if soft else labels.double()
    ours = criterion("binary_cross_entropy")(logits, soft_targets(labels, 2) if soft else labels)
    torch.testing.assert_close(ours, nn.BCELoss()(logits[:, 0].sigmoid(), second))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_the_papers(gamma):
    logits, labels = batch()
    p = softmax(logits.detach().numpy())[np.arange(12), labels.numpy()]
    expected = np.mean(-((1 - p) ** gamma) * np.log(p))
    assert criterion("focal", gamma=gamma)(logits, labels).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weights", [None, WEIGHTS, "balanced"])
def test_focal_without_focus_is_cross_entropy(weights):
    logits, labels = (batch()[0].float(), batch()[1])
    focal, plain = (
        criterion(name, class_weights=weights, **more)
        for name, more in (("focal", {"gamma": 0.0}), ("cross_entropy", {}))
    )
    torch.testing.assert_close(focal(logits, labels), plain(logits, labels))


# ---------------------------------------------------------------- what can't work


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_wrong_number_of_weights(name, count):
    with pytest.raises(ConfigError) as caught:
        criterion(name, class_weights=[1.0] * count)
    (problem,) = caught.value.problems
    assert problem.key == "loss.class_weights"
    assert str(count) in problem.message
    assert "4 classes" in problem.message


def test_binary_cross_entropy_needs_two_classes():
    with pytest.raises(ConfigError) as caught:
        registry.find("loss", "binary_cross_entropy")().build([5] * 10, CPU)
    (problem,) = caught.value.problems
    assert problem.key == "loss.name"
    assert "10" in problem.message
    assert "cross_entropy" in problem.message


@pytest.mark.parametrize(
    "weights", ["[]", "[0, 0]", "[1, -1]", "[1, .nan]", "[1, .inf]", "[true, 1]", "[1, x]", "rare", "3", "{a: 1}"]
)
def test_invalid_class_weights(weights, tiny):
    with pytest.raises(ConfigError, match=r"a\.yaml:3:\d+: loss\.class_weights: expected balanced"):
        config.parse(tiny(f"loss: {{class_weights: {weights}}}"), "a.yaml")
