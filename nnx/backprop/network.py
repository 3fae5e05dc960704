"""Layers and networks. In the forward pass, outputs go from layer to layer; in the backward pass, gradients return."""

import math
from collections.abc import Sequence
from random import Random

from nnx.backprop.activations import softmax
from nnx.backprop.losses import LOSSES
from nnx.backprop.neuron import Neuron


class Layer:
    """Neurons side by side, all with the same inputs."""

    def __init__(self, neurons: Sequence[Neuron]) -> None:
        self.neurons = list(neurons)

    def forward(self, inputs: Sequence[float]) -> list[float]:
        """The inputs -> the output of each neuron."""
        return [neuron.forward(inputs) for neuron in self.neurons]

    def backward(
        self, inputs: Sequence[float], output_gradients: Sequence[float]
    ) -> tuple[list[list[float]], list[float], list[float]]:
        """Inputs and each neuron's dL/doutput -> (dL/dweights[neuron][input], dL/dbiases[neuron], dL/dinputs[input]).
        An input affects the loss through every neuron of the layer, so its gradient is the sum over the neurons."""
        pairs = zip(self.neurons, output_gradients, strict=True)
        results = [neuron.backward(inputs, gradient) for neuron, gradient in pairs]
        weights, biases, by_neuron = zip(*results, strict=True)
        return list(weights), list(biases), [sum(gradients) for gradients in zip(*by_neuron, strict=True)]


class Gradients:
    """The loss, and its gradient for each weight and bias: weights[layer][neuron][input], biases[layer][neuron]."""

    def __init__(self, loss: float, weights: list[list[list[float]]], biases: list[list[float]]) -> None:
        self.loss = loss
        self.weights = weights
        self.biases = biases


class Network:
    """A multilayer perceptron: Network([64, 32, 10]) has 64 inputs, a hidden layer of 32 neurons and 10 logits.

    Biases start at 0. Weights start at random values, because equal neurons would get equal gradients and stay equal.
    They are normally distributed with variance 2 / inputs for relu (He et al. 2015) and 1 / inputs otherwise (LeCun et
    al. 1998), which keeps the size of the signals roughly constant from layer to layer.
    """

    def __init__(self, sizes: Sequence[int], *, activation: str = "relu", random: Random | None = None) -> None:
        random = random or Random(0)
        self.layers: list[Layer] = []
        for depth in range(1, len(sizes)):
            inputs, units = sizes[depth - 1], sizes[depth]
            name = activation if depth < len(sizes) - 1 else "identity"
            deviation = math.sqrt((2 if name == "relu" else 1) / inputs)
            neurons = [Neuron([random.gauss(0, deviation) for _ in range(inputs)], 0.0, name) for _ in range(units)]
            self.layers.append(Layer(neurons))

    @property
    def weights(self) -> list[list[list[float]]]:
        """A copy of weights[layer][neuron][input]; each layer's part has the shape of torch.nn.Linear's. Can be set."""
        return [[list(neuron.weights) for neuron in layer.neurons] for layer in self.layers]

    @weights.setter
    def weights(self, values: Sequence[Sequence[Sequence[float]]]) -> None:
        for layer, rows in zip(self.layers, values, strict=True):
            for neuron, row in zip(layer.neurons, rows, strict=True):
                neuron.weights = list(row)

    @property
    def biases(self) -> list[list[float]]:
        """A copy of biases[layer][neuron]. Can be set."""
        return [[neuron.bias for neuron in layer.neurons] for layer in self.layers]

    @biases.setter
    def biases(self, values: Sequence[Sequence[float]]) -> None:
        for layer, row in zip(self.layers, values, strict=True):
            for neuron, bias in zip(layer.neurons, row, strict=True):
                neuron.bias = bias

    def activations(self, inputs: Sequence[float]) -> list[list[float]]:
        """One sample -> the sample, then the outputs of each layer. The last ones are the logits."""
        outputs = [list(inputs)]
        for layer in self.layers:
            outputs.append(layer.forward(outputs[-1]))
        return outputs

    def forward(self, inputs: Sequence[float]) -> list[float]:
        """One sample -> its K logits."""
        return self.activations(inputs)[-1]

    def probabilities(self, inputs: Sequence[float]) -> list[float]:
        """One sample -> its K probabilities, by softmax."""
        return softmax(self.forward(inputs))

    def predict(self, inputs: Sequence[float]) -> int:
        """One sample -> the label with the largest logit, the first one if several are equal."""
        logits = self.forward(inputs)
        return logits.index(max(logits))

    def backpropagate(self, inputs: Sequence[float], label: int, loss: str = "cross_entropy") -> Gradients:
        """One sample and its label -> the loss and its gradients, by a forward and a backward pass. The gradient of a
        layer's inputs is that of the previous layer's outputs, so one backward pass gives all gradients."""
        *outputs, logits = self.activations(inputs)
        function, derivative = LOSSES[loss]
        gradients = Gradients(function(logits, label), [], [])
        output_gradients = derivative(logits, label)
        for layer, layer_inputs in zip(reversed(self.layers), reversed(outputs), strict=True):
            weights, biases, output_gradients = layer.backward(layer_inputs, output_gradients)
            gradients.weights.insert(0, weights)
            gradients.biases.insert(0, biases)
        return gradients

    def gradients(
        self, batch_inputs: Sequence[Sequence[float]], batch_labels: Sequence[int], loss: str = "cross_entropy"
    ) -> Gradients:
        """A batch -> its mean loss and the mean of its samples' gradients. `loss` is "cross_entropy" or "mse"."""
        B = len(batch_inputs)
        mean_loss = 0.0
        weights = [[[0.0] * len(neuron.weights) for neuron in layer.neurons] for layer in self.layers]
        biases = [[0.0] * len(layer.neurons) for layer in self.layers]
        for inputs, label in zip(batch_inputs, batch_labels, strict=True):
            sample = self.backpropagate(inputs, label, loss)
            mean_loss += sample.loss / B
            for depth, rows in enumerate(sample.weights):
                for n, row in enumerate(rows):
                    weights[depth][n] = [mean + g / B for mean, g in zip(weights[depth][n], row, strict=True)]
                    biases[depth][n] += sample.biases[depth][n] / B
        return Gradients(mean_loss, weights, biases)

    def update(self, gradients: Gradients, learning_rate: float) -> None:
        """One step of gradient descent for every weight and bias: weight - learning_rate * gradient."""
        for layer, rows, biases in zip(self.layers, gradients.weights, gradients.biases, strict=True):
            for neuron, row, bias in zip(layer.neurons, rows, biases, strict=True):
                neuron.update(row, bias, learning_rate)
