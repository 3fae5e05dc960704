"""Ridge regression by its closed form, for probes: a layer's numbers to a property, fitted to some samples and scored
on others.

The weights w minimise |Xw - y|² + penalty |w|² (Hoerl & Kennard 1970), X and y centred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # as shares of the mean sum of squares of a sample
HELD_OUT = 0.25  # of the samples to fit to: what the penalty is chosen by
SHUFFLES = 20


@dataclass(frozen=True)
class Property:
    """What is to be told of each sample: its class, from 0 to `classes` - 1, or a number, where `classes` is 0."""

    name: str
    fit: NDArray[np.int64] | NDArray[np.float64]
    test: NDArray[np.int64] | NDArray[np.float64]
    classes: int = 0

    @property
    def chance(self) -> float:
        """What one scores who does not look at the sample: of a class on average, of a number at best."""
        return 1 / len(np.unique(self.test)) if self.classes else 0.0

    def targets(self, order: NDArray[np.int64]) -> Tensor:
        """(N, K) one-hot, or (N, 1), of the samples to fit to in this order: what is regressed to."""
        values = torch.from_numpy(self.fit[order])
        return torch.nn.functional.one_hot(values, self.classes).double() if self.classes else values.double()[:, None]


@dataclass(frozen=True)
class Probed:
    """How well a property was told of the test samples: its score, and of a class whether each of M was right, (M,).

    `shuffled`: the scores where each sample to fit to was given the property of another one, drawn anew each time.
    """

    score: float
    right: NDArray[np.bool_]
    shuffled: NDArray[np.float64]
    penalty: float


def probe(
    fit: NDArray[np.float32],
    test: NDArray[np.float32],
    properties: Sequence[Property],
    seed: int,
    shuffles: int = SHUFFLES,
) -> list[Probed]:
    """A layer of (N, D) samples to fit to, in random order, and (M, D) to score on -> for each property how well it can
    be told.

    The penalty is that of `PENALTIES` which does best on the last quarter of the N when fitted to the others, for each
    property by itself, and for the shuffled ones, too: the control is the whole procedure.
    """
    x, z = torch.from_numpy(fit), torch.from_numpy(test)
    mean = x.mean(0)
    x, z = x - mean, z - mean
    cut = round(len(x) * (1 - HELD_OUT))
    trial, final = _Ridge(x[:cut], x[cut:]), _Ridge(x, z)
    straight = np.arange(len(x))
    drawing = np.random.default_rng(seed)
    shuffled = [drawing.permutation(len(x)) for _ in range(shuffles)]

    def scores(each: Property, orders: list[NDArray[np.int64]]) -> tuple[NDArray[np.float64], float, Tensor]:
        """Of the test samples, for each order of the samples to fit to; the penalty; and what is said of them in the
        first order."""
        targets = torch.cat([each.targets(order) for order in orders], 1)

        def held_out(penalty: float) -> float:
            told = trial.told(targets[:cut], penalty).chunk(len(orders), 1)
            return float(
                np.mean([score(each, said, each.fit[order[cut:]]) for said, order in zip(told, orders, strict=True)])
            )

        penalty = max(PENALTIES, key=held_out)
        told = final.told(targets, penalty).chunk(len(orders), 1)
        return np.array([score(each, said, each.test) for said in told]), penalty, told[0]

    found = []
    for each in properties:
        (reached,), penalty, said = scores(each, [straight])
        right = said.argmax(1).numpy() == each.test if each.classes else np.zeros(0, dtype=bool)
        found.append(Probed(float(reached), right, scores(each, shuffled)[0] if shuffled else np.zeros(0), penalty))
    return found


def score(each: Property, said: Tensor, truth: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Of a class: the share of right answers among the samples of each class, averaged over classes, so that chance is
    one in K however frequent each is. Of a number: R², the share of its variance that is told; 0 where always the mean
    is said, less where worse.
    """
    if each.classes:
        right = said.argmax(1).numpy() == truth
        return float(np.mean([right[truth == k].mean() for k in np.unique(truth)]))
    missed = said[:, 0].numpy() - truth
    return float(1 - (missed**2).sum() / ((truth - truth.mean()) ** 2).sum())


class _Ridge:
    """Weights fitted to (N, D) centred samples, and what they say of (M, D) others, for any targets and penalty.

    By X'X, or by XX' where that is smaller: the layers of a network are both narrower and wider than there are samples.
    """

    def __init__(self, x: Tensor, others: Tensor) -> None:
        self.wide = x.shape[1] > len(x)
        self.unit = max(float(x.square().sum(1).mean()), 1e-30)
        self.products = (
            x @ x.T if self.wide else x.double().T @ x.double()
        ).double()  # the large ones in float32: half the time
        self.before = None if self.wide else x.double().T
        self.after = (others @ x.T if self.wide else others).double()
        self.factor = cache(self._factor)  # the same for all targets

    def _factor(self, penalty: float) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(
            self.products + penalty * self.unit * torch.eye(len(self.products), dtype=torch.float64)
        )
        return factor

    def told(self, targets: Tensor, penalty: float) -> Tensor:
        """(N, P) targets -> (M, P)."""
        mean = targets.mean(0)
        centred = targets - mean
        solved = torch.cholesky_solve(centred if self.before is None else self.before @ centred, self.factor(penalty))
        told: Tensor = self.after @ solved + mean
        return told
