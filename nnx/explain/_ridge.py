"""Ridge regression in closed form, for linear probes: from a layer's activations to a property, fitted to some samples
and scored on others.

The weights w minimise |Xw - y|² + penalty |w|² (Hoerl & Kennard 1970), X and y centred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # as shares of the mean squared norm of a sample
HELD_OUT = 0.25  # of the samples to fit to: they choose the penalty
SHUFFLES = 20


@dataclass(frozen=True)
class Property:
    """A property of each sample to predict: its class, from 0 to `classes` - 1, or a number, where `classes` is 0."""

    name: str
    fit: NDArray[np.int64] | NDArray[np.float64]
    test: NDArray[np.int64] | NDArray[np.float64]
    classes: int = 0

    @property
    def chance(self) -> float:
        """The expected score for a class, or the best score for a number, of a prediction that ignores the sample."""
        return 1 / len(np.unique(self.test)) if self.classes else 0.0

    def targets(self, order: NDArray[np.int64]) -> Tensor:
        """(N, K) one-hot, or (N, 1): the targets of the regression for the samples to fit to, in this order."""
        values = torch.from_numpy(self.fit[order])
        return torch.nn.functional.one_hot(values, self.classes).double() if self.classes else values.double()[:, None]


@dataclass(frozen=True)
class ProbeResult:
    """How well a property of the test samples is predicted: the score, and for a class which of M samples are correct,
    (M,).

    `shuffled`: the control scores, each with the property permuted among the samples to fit to.
    """

    score: float
    correct: NDArray[np.bool_]
    shuffled: NDArray[np.float64]
    penalty: float


def probe(
    fit: NDArray[np.float32],
    test: NDArray[np.float32],
    properties: Sequence[Property],
    seed: int,
    shuffles: int = SHUFFLES,
) -> list[ProbeResult]:
    """A layer's activations (N, D) of the samples to fit to, in random order, and (M, D) of those to score on -> the
    result for each property.

    The penalty is the one of `PENALTIES` with the best score on the last quarter of the N when fitted to the others,
    chosen for each property, and again for the shuffled ones: the control repeats the whole procedure.
    """
    x = torch.from_numpy(fit)
    z = torch.from_numpy(test)
    mean = x.mean(0)
    x = x - mean
    z = z - mean
    cut = round(len(x) * (1 - HELD_OUT))
    trial = _Ridge(x[:cut], x[cut:])
    final = _Ridge(x, z)
    original = np.arange(len(x))
    rng = np.random.default_rng(seed)
    permutations = [rng.permutation(len(x)) for _ in range(shuffles)]

    def scores(target: Property, orders: list[NDArray[np.int64]]) -> tuple[NDArray[np.float64], float, Tensor]:
        """The test scores, one for each order of the samples to fit to; the penalty; and the predictions for the first
        order."""
        targets = torch.cat([target.targets(order) for order in orders], 1)

        def held_out_score(penalty: float) -> float:
            predictions = trial.predict(targets[:cut], penalty).chunk(len(orders), 1)
            pairs = zip(predictions, orders, strict=True)
            return float(np.mean([score(target, predicted, target.fit[order[cut:]]) for predicted, order in pairs]))

        penalty = max(PENALTIES, key=held_out_score)
        predictions = final.predict(targets, penalty).chunk(len(orders), 1)
        return np.array([score(target, predicted, target.test) for predicted in predictions]), penalty, predictions[0]

    results = []
    for target in properties:
        (reached,), penalty, predicted = scores(target, [original])
        correct = predicted.argmax(1).numpy() == target.test if target.classes else np.zeros(0, dtype=bool)
        shuffled = scores(target, permutations)[0] if permutations else np.zeros(0)
        results.append(ProbeResult(float(reached), correct, shuffled, penalty))
    return results


def score(target: Property, predicted: Tensor, truth: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Of a class: balanced accuracy, the recall averaged over the classes, so that chance is one in K for any
    frequencies. Of a number: R², the explained share of its variance; 0 for the mean, negative for worse.
    """
    if target.classes:
        correct = predicted.argmax(1).numpy() == truth
        return float(np.mean([correct[truth == k].mean() for k in np.unique(truth)]))
    residual = predicted[:, 0].numpy() - truth
    return float(1 - (residual**2).sum() / ((truth - truth.mean()) ** 2).sum())


class _Ridge:
    """Fits weights to (N, D) centred samples and predicts (M, D) others, for any targets and penalty.

    It uses X'X, or XX' if that is smaller: a layer can be narrower or wider than the number of samples.
    """

    def __init__(self, x: Tensor, others: Tensor) -> None:
        self.wide = x.shape[1] > len(x)
        self.unit = max(float(x.square().sum(1).mean()), 1e-30)
        # the large products in float32: half the time
        self.products = (x @ x.T if self.wide else x.double().T @ x.double()).double()
        self.before = None if self.wide else x.double().T
        self.after = (others @ x.T if self.wide else others).double()
        self.factor = cache(self._factor)  # the same for all targets

    def _factor(self, penalty: float) -> Tensor:
        diagonal = penalty * self.unit * torch.eye(len(self.products), dtype=torch.float64)
        factor: Tensor = torch.linalg.cholesky(self.products + diagonal)
        return factor

    def predict(self, targets: Tensor, penalty: float) -> Tensor:
        """(N, P) targets of the fitted samples -> (M, P) predictions for the others."""
        mean = targets.mean(0)
        centred = targets - mean
        solved = torch.cholesky_solve(centred if self.before is None else self.before @ centred, self.factor(penalty))
        predictions: Tensor = self.after @ solved + mean
        return predictions
