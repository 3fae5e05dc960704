"""Gradient descent: compute the gradient of the loss on a few samples, take a small step against it, and repeat."""

from collections.abc import Iterator, Sequence
from random import Random

from nnx.backprop.network import Network


def train(
    network: Network,
    inputs: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 16,
    loss: str = "cross_entropy",
    random: Random | None = None,
) -> Iterator[float]:
    """Mini-batch gradient descent. Yields each epoch's mean loss, measured on each batch just before its update.

    An epoch uses every sample once, in a new random order, so its batches differ from those of the previous epoch.
    """
    random = random or Random(0)
    order = list(range(len(inputs)))
    for _ in range(epochs):
        random.shuffle(order)
        total = 0.0
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            gradients = network.gradients([inputs[i] for i in batch], [labels[i] for i in batch], loss)
            network.update(gradients, learning_rate)
            total += gradients.loss * len(batch)
        yield total / len(order)
