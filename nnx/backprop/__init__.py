"""How a network learns, in numbers that you can follow by hand: plain Python on lists of floats.

Read the modules in this order. A neuron computes a weighted sum of its inputs (`neuron`) and applies an activation
function (`activations`). Neurons side by side form a layer; layers in sequence form a network (`network`). A loss
measures how wrong the output is (`losses`). Backpropagation goes back from the loss to the logits (`losses`), through
each neuron (`neuron`) and each layer (`network`), and gives a gradient for every weight. Gradient descent takes a small
step against the gradient (`descent`). Here a network learns XOR, which no single neuron can:

    >>> from random import Random
    >>> from nnx.backprop import Network, train
    >>> inputs, labels = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> network = Network([2, 8, 2], activation="relu", random=Random(0))
    >>> losses = list(train(network, inputs, labels, epochs=200, learning_rate=0.5))
    >>> losses[0] > 0.5, losses[-1] < 0.02
    (True, True)
    >>> [network.predict(pair) for pair in inputs]
    [0, 1, 1, 0]

The code imports only math and random. It is slow but exact: logits, losses and gradients equal PyTorch's to nine
digits, so other tests compare with it.
"""

from nnx.backprop.activations import relu, sigmoid, softmax
from nnx.backprop.descent import train
from nnx.backprop.losses import cross_entropy, mean_squared_error
from nnx.backprop.network import Gradients, Layer, Network
from nnx.backprop.neuron import Neuron

__all__ = ["Gradients", "Layer", "Network", "Neuron"]
__all__ += ["cross_entropy", "mean_squared_error", "relu", "sigmoid", "softmax", "train"]
