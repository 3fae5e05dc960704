"""A neuron: a weighted sum of its inputs plus a bias, then an activation; and the chain rule back through both.

z = weights[0] * inputs[0] + weights[1] * inputs[1] + ... + bias
output = activation(z)
"""

from collections.abc import Sequence

from nnx.backprop.activations import ACTIVATIONS


class Neuron:
    """One weight per input, a bias, and an activation chosen by name. It stores no results of its computations."""

    def __init__(self, weights: Sequence[float], bias: float = 0.0, activation: str = "relu") -> None:
        self.weights = list(weights)
        self.bias = bias
        self.activation, self.derivative = ACTIVATIONS[activation]

    def weighted_sum(self, inputs: Sequence[float]) -> float:
        """n inputs -> z. Raises ValueError if the number of inputs differs from the number of weights."""
        return sum(weight * x for weight, x in zip(self.weights, inputs, strict=True)) + self.bias

    def forward(self, inputs: Sequence[float]) -> float:
        """n inputs -> the output."""
        return self.activation(self.weighted_sum(inputs))

    def backward(self, inputs: Sequence[float], output_gradient: float) -> tuple[list[float], float, list[float]]:
        """The inputs of a forward pass and dL/doutput -> (dL/dweights, dL/dbias, dL/dinputs), by the chain rule.

        Through the activation:     dL/dz = dL/doutput * activation'(z)
        through the weighted sum:   dL/dweight = dL/dz * input,   dL/dbias = dL/dz,   dL/dinput = dL/dz * weight
        """
        z_gradient = output_gradient * self.derivative(self.weighted_sum(inputs))
        return [z_gradient * x for x in inputs], z_gradient, [z_gradient * weight for weight in self.weights]

    def update(self, weight_gradients: Sequence[float], bias_gradient: float, learning_rate: float) -> None:
        """One step of gradient descent: weight - learning_rate * gradient, as the loss grows along the gradient."""
        self.weights = [w - learning_rate * g for w, g in zip(self.weights, weight_gradients, strict=True)]
        self.bias -= learning_rate * bias_gradient
