"""What bends a weighted sum z. Without it any stack of layers would be one linear map, and XOR out of reach.

Each activation comes with its derivative, how much the output moves when z does: backpropagation multiplies by it.
"""

import math
from collections.abc import Sequence


def relu(z: float) -> float:
    """z where it is positive, else 0."""
    return z if z > 0 else 0.0


def relu_derivative(z: float) -> float:
    """1 where z is positive, else 0; at 0, where there is no derivative, 0 as in PyTorch."""
    return 1.0 if z > 0 else 0.0


def sigmoid(z: float) -> float:
    """1 / (1 + e^-z), between 0 and 1: for two classes, the probability of the second."""
    power = math.exp(-abs(z))  # e^-z overflows below -709, where e^z / (1 + e^z), the same fraction, does not
    return (1 if z >= 0 else power) / (1 + power)


def sigmoid_derivative(z: float) -> float:
    """s * (1 - s) for s = sigmoid(z): 1/4 at most, so that deep stacks of sigmoids hardly learn (the vanishing
    gradient)."""
    s = sigmoid(z)
    return s * (1 - s)


def identity(z: float) -> float:
    """z itself: what the output layer has, whose weighted sums are the logits."""
    return z


def identity_derivative(z: float) -> float:
    """1."""
    return 1.0


ACTIVATIONS = {
    "relu": (relu, relu_derivative),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "identity": (identity, identity_derivative),
}


def softmax(logits: Sequence[float]) -> list[float]:
    """K logits -> K probabilities that add up to 1: p_k = e^z_k / (e^z_1 + ... + e^z_K)."""
    largest = max(logits)  # taken from every logit it cancels out, and no power overflows
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def softmax_backward(probabilities: Sequence[float], gradient: Sequence[float]) -> list[float]:
    """K probabilities and dL/dp -> dL/dz of the logits z: dL/dz_j = p_j * (dL/dp_j - sum over k of p_k * dL/dp_k).

    Raising one logit raises its own probability at the cost of all others, hence the sum.
    """
    average = sum(p * g for p, g in zip(probabilities, gradient, strict=True))
    return [p * (g - average) for p, g in zip(probabilities, gradient, strict=True)]
