"""Losses: a loss is one number that says how wrong the output is. Backpropagation starts with its gradient.

A loss takes the K logits and the label (0 to K - 1) of one sample. The loss of a batch is the mean over its samples.
"""

import math
from collections.abc import Sequence

from nnx.backprop.activations import softmax, softmax_backward


def one_hot(label: int, classes: int) -> list[float]:
    """The target probabilities: 1 for the label, 0 for the other classes."""
    return [1.0 if k == label else 0.0 for k in range(classes)]


def cross_entropy(logits: Sequence[float], label: int) -> float:
    """-log p, where p is the label's probability from softmax: 0 for p = 1, without bound as p approaches 0. Computed
    from the logits as log(e^z_1 + ... + e^z_K) - z_label, because a p that rounds to 0 has no logarithm."""
    largest = max(logits)
    return math.log(sum(math.exp(logit - largest) for logit in logits)) - (logits[label] - largest)


def cross_entropy_gradient(logits: Sequence[float], label: int) -> list[float]:
    """dL/dz = probability - target. The logarithm's 1/p cancels softmax's p, so a large error has a large gradient."""
    return [p - target for p, target in zip(softmax(logits), one_hot(label, len(logits)), strict=True)]


def mean_squared_error(logits: Sequence[float], label: int) -> float:
    """Mean over classes of (probability - target)²."""
    K = len(logits)
    return sum((p - target) ** 2 for p, target in zip(softmax(logits), one_hot(label, K), strict=True)) / K


def mean_squared_error_gradient(logits: Sequence[float], label: int) -> list[float]:
    """dL/dp = 2 (probability - target) / K, then back through softmax, whose derivative is small for probabilities near
    0 and 1: a confident error has a small gradient."""
    K = len(logits)
    probabilities = softmax(logits)
    gradient = [2 * (p - target) / K for p, target in zip(probabilities, one_hot(label, K), strict=True)]
    return softmax_backward(probabilities, gradient)


LOSSES = {
    "cross_entropy": (cross_entropy, cross_entropy_gradient),
    "mse": (mean_squared_error, mean_squared_error_gradient),
}
