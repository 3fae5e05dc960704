"""How a network learns, in numbers that one can follow by hand: plain Python on lists of floats, no library but math
and random.

The story in order. A neuron weighs its inputs (`neuron`) and bends the sum (`activations`); neurons side by side make a
layer, layers one after the other a network (`network`). A loss says how wrong its answer is (`losses`). Backpropagation
takes that loss backwards, through loss, activation and weighted sum, to a gradient for each weight (`losses`, `neuron`,
`network`, in this order), and gradient descent takes a small step against it (`descent`). Here a network learns XOR,
which no single neuron can:

    >>> from random import Random
    >>> from nnx.backprop import Network, train
    >>> inputs, labels = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> network = Network([2, 8, 2], activation="relu", random=Random(0))
    >>> losses = list(train(network, inputs, labels, epochs=200, learning_rate=0.5))
    >>> losses[0] > 0.5, losses[-1] < 0.02
    (True, True)
    >>> [network.predict(pair) for pair in inputs]
    [0, 1, 1, 0]

It is slow and it is exact: logits, losses and every gradient are PyTorch's to nine digits, which makes it the oracle of
other tests.
"""

from nnx.backprop.activations import relu, sigmoid, softmax
from nnx.backprop.descent import train
from nnx.backprop.losses import cross_entropy, mean_squared_error
from nnx.backprop.network import Gradients, Layer, Network
from nnx.backprop.neuron import Neuron

__all__ = [
    "Gradients",
    "Layer",
    "Network",
    "Neuron",
    "cross_entropy",
    "mean_squared_error",
    "relu",
    "sigmoid",
    "softmax",
    "train",
]
