"""Logistic regression: the accuracy that a network without hidden layers reaches on the same split and preprocessing.

    linear = fit_linear(dataset.train, dataset.validation, spec)
    accuracy, loss = linear.measure(dataset.test())

It draws no random numbers. It is scikit-learn's LogisticRegression (tested), but does not use it: importing that takes
1 s, a third of a short run. scipy's optimiser takes 0.3 s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnx.datasets import Split
from nnx.loader.batches import BatchLoader
from nnx.preprocessing.spec import Spec

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse L2 regularisation: C in scikit-learn
DEFAULT = 1.0  # without validation samples: scikit-learn's default
MOST = 10_000  # training samples
# Training samples x features x classes, at most: 3,800 of MNIST, which take 1 s at most on one core of an AMD EPYC
NUMBERS = 30_000_000
FEWEST_PER_CLASS = 10  # where the limits leave fewer samples, there is no baseline
ITERATIONS = 50  # of L-BFGS for each strength, from the weights of the one before


@dataclass(frozen=True)
class LinearModel:
    """A fitted logistic regression. `samples` is the number of training samples that it was fitted to."""

    spec: Spec
    samples: int
    strength: float  # C
    weights: NDArray[np.float32]  # (F + 1, K), the biases last

    def measure(self, split: Split) -> tuple[float, float]:
        """The share of the samples that are classified correctly, and the mean cross-entropy."""
        correct = 0
        loss = 0.0
        for log_p, labels in self._log_probabilities(split):
            correct += int((log_p.argmax(1) == labels).sum())
            loss -= float(log_p[np.arange(len(labels)), labels].sum())
        return correct / len(split), loss / len(split)

    def predict(self, split: Split) -> NDArray[np.int64]:
        """(N,) the most probable class of each sample."""
        return np.concatenate([log_p.argmax(1) for log_p, _ in self._log_probabilities(split)])

    def _log_probabilities(self, split: Split) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        for inputs, labels in _batches(split, self.spec):
            yield _log_softmax(inputs @ self.weights[:-1] + self.weights[-1]), labels


def fit_linear(train: Split, validation: Split | None, spec: Spec) -> LinearModel | None:
    """A logistic regression on at most MOST evenly spread training samples, fewer if they are wide. None where too few
    are left.

    The validation loss chooses the strength of the regularisation: it becomes weaker as long as that helps.
    """
    most = min(MOST, NUMBERS // (spec.size * len(spec.classes)))
    if most < min(len(train), FEWEST_PER_CLASS * len(spec.classes)):
        return None
    sample = evenly_spread(train, most)
    if validation is None or not len(validation):
        return next(_models(sample, spec, [DEFAULT]))
    best: LinearModel | None = None
    lowest = np.inf
    for model in _models(sample, spec, STRENGTHS):
        _, loss = model.measure(validation)
        if loss >= lowest:
            break
        best, lowest = model, loss
    return best


def evenly_spread(split: Split, most: int) -> Split:
    """At most `most` samples of a split, evenly spread over it: all classes are included, whatever their order."""
    if len(split) <= most:
        return split
    return split.take(np.linspace(0, len(split) - 1, most).round().astype(np.int64))


def _models(sample: Split, spec: Spec, strengths: Sequence[float]) -> Iterator[LinearModel]:
    """A model for each strength. Each starts from the one before."""
    from scipy.optimize import minimize

    inputs, labels = (np.concatenate(part) for part in zip(*_batches(sample, spec), strict=True))
    shape = (spec.size + 1, len(spec.classes))
    weights = np.zeros(shape).ravel()
    for strength in strengths:
        result = minimize(
            _loss, weights, (inputs, labels, strength), "L-BFGS-B", jac=True, options={"maxiter": ITERATIONS}
        )
        weights = result.x
        yield LinearModel(spec, len(sample), strength, weights.reshape(shape).astype(np.float32))


def _loss(
    flat: NDArray[np.float64], inputs: NDArray[np.float32], labels: NDArray[np.int64], strength: float
) -> tuple[float, NDArray[np.float64]]:
    """Mean cross-entropy of softmax plus |weights|² / 2 C N, and its gradient; the biases are not regularised."""
    N = len(labels)
    weights = flat.reshape(inputs.shape[1] + 1, -1)
    narrow = weights.astype(np.float32)
    log_p = _log_softmax(inputs @ narrow[:-1] + narrow[-1])
    true = np.arange(N), labels
    decay = weights[:-1] / (strength * N)
    loss = -log_p[true].mean() + (decay * weights[:-1]).sum() / 2
    delta = np.exp(log_p)
    delta[true] -= 1
    delta /= N
    gradient = np.concatenate([inputs.T @ delta.astype(np.float32) + decay, delta.sum(0, keepdims=True)])
    return float(loss), gradient.ravel()


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, K) -> the logarithms of the probabilities, along the classes."""
    shifted = (logits - logits.max(1, keepdims=True)).astype(np.float64)
    log_p: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_p


def _batches(split: Split, spec: Spec) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """The samples in order, as a network gets them: (B, F) float32 inputs and (B,) labels."""
    for inputs, labels in BatchLoader(split, spec, torch.device("cpu")).in_order():
        yield inputs.flatten(1).numpy(), labels.numpy()
