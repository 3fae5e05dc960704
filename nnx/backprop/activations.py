"""Activation functions, which a neuron applies to its weighted sum z. Without them, any stack of layers would be a
single linear map, which cannot learn XOR. Each comes with its derivative, by which backpropagation multiplies."""

import math
from collections.abc import Sequence


def relu(z: float) -> float:
    """z if z is positive, else 0."""
    return z if z > 0 else 0.0


def relu_derivative(z: float) -> float:
    """1 if z is positive, else 0. At z = 0 there is no derivative; it is set to 0, as in PyTorch."""
    return 1.0 if z > 0 else 0.0


def sigmoid(z: float) -> float:
    """1 / (1 + e^-z), between 0 and 1. With two classes, the probability of the second."""
    power = math.exp(-abs(z))  # e^-z overflows for z below -709; there, the equal e^z / (1 + e^z) does not
    return (1 if z >= 0 else power) / (1 + power)


def sigmoid_derivative(z: float) -> float:
    """s * (1 - s) with s = sigmoid(z). It is at most 1/4, so gradients vanish in deep stacks of sigmoids."""
    s = sigmoid(z)
    return s * (1 - s)


def identity(z: float) -> float:
    """z itself. The output layer uses it: its weighted sums are the logits."""
    return z


def identity_derivative(z: float) -> float:
    """1 for every z."""
    return 1.0


ACTIVATIONS = {
    "relu": (relu, relu_derivative),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "identity": (identity, identity_derivative),
}


def softmax(logits: Sequence[float]) -> list[float]:
    """K logits -> K probabilities that sum to 1: p_k = e^z_k / (e^z_1 + ... + e^z_K)."""
    largest = max(logits)  # subtracting it from every logit changes no probability and prevents overflow
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def softmax_backward(probabilities: Sequence[float], gradient: Sequence[float]) -> list[float]:
    """K probabilities p and dL/dp -> dL/dz for the logits z: dL/dz_j = p_j * (dL/dp_j - sum over k of p_k * dL/dp_k).
    A larger logit raises its own probability and lowers all others, hence the sum."""
    average = sum(p * g for p, g in zip(probabilities, gradient, strict=True))
    return [p * (g - average) for p, g in zip(probabilities, gradient, strict=True)]
