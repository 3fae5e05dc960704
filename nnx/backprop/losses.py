"""How wrong an answer is, in one number, and where backpropagation begins: how that number moves with each logit.

A loss takes the K logits and the label (0 to K - 1) of one sample. Over a batch it is the mean of its samples'.
"""

import math
from collections.abc import Sequence

from nnx.backprop.activations import softmax, softmax_backward


def one_hot(label: int, classes: int) -> list[float]:
    """The probabilities that one would like to see: 1 for the label, 0 for the others."""
    return [1.0 if k == label else 0.0 for k in range(classes)]


def cross_entropy(logits: Sequence[float], label: int) -> float:
    """-log of the probability that softmax gives to the label: 0 when sure and right, without bound when sure and
    wrong.

    From the logits, as log(e^z_1 + ... + e^z_K) - z_label, since a probability that rounds to 0 has no logarithm.
    """
    largest = max(logits)
    return math.log(sum(math.exp(logit - largest) for logit in logits)) - (logits[label] - largest)


def cross_entropy_gradient(logits: Sequence[float], label: int) -> list[float]:
    """dL/dz = probability - target. The -1/p of the logarithm cancels against the p of softmax: what is wrong by much
    learns fast."""
    return [p - target for p, target in zip(softmax(logits), one_hot(label, len(logits)), strict=True)]


def mean_squared_error(logits: Sequence[float], label: int) -> float:
    """Mean over classes of (probability - target)²."""
    return sum((p - target) ** 2 for p, target in zip(softmax(logits), one_hot(label, len(logits)), strict=True)) / len(
        logits
    )


def mean_squared_error_gradient(logits: Sequence[float], label: int) -> list[float]:
    """dL/dp = 2 (probability - target) / K, then back through softmax, whose p stays: what is surely wrong hardly
    learns."""
    probabilities = softmax(logits)
    gradient = [
        2 * (p - target) / len(logits) for p, target in zip(probabilities, one_hot(label, len(logits)), strict=True)
    ]
    return softmax_backward(probabilities, gradient)


LOSSES = {
    "cross_entropy": (cross_entropy, cross_entropy_gradient),
    "mse": (mean_squared_error, mean_squared_error_gradient),
}
