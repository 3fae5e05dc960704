"""Which samples the page shows: behind each cell of the confusion matrix, and the most telling ones of all."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnx.inference.metrics import Predictions

A_CELL = 24  # samples shown behind a cell, at most
GALLERY = 24
# classes whose confusion matrix can still be read, and clicked on a phone; of more, the pairs that are mixed up most
# are listed
MATRIX = 20
PAIRS = 40


@dataclass(frozen=True)
class Cell:
    """The samples of one true class that were taken for one class: how many, and which of them are shown."""

    true: int
    predicted: int
    count: int
    samples: list[int]

    @property
    def name(self) -> str:
        return f"cell-{self.true}-{self.predicted}"

    @property
    def is_right(self) -> bool:
        return self.true == self.predicted


def confident_mistakes(predictions: Predictions, most: int = GALLERY) -> list[int]:
    """The samples that the network is wrong about, the ones it is surest of first."""
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    return _by(-confidence(predictions), wrong)[:most]


def uncertain_hits(predictions: Predictions, most: int = GALLERY) -> list[int]:
    """The samples that the network is right about, the ones it is least sure of first."""
    right = np.flatnonzero(predictions.predicted == predictions.labels)
    return _by(confidence(predictions), right)[:most]


def confidence(predictions: Predictions) -> NDArray[np.float32]:
    """(N,) the probability of the most probable class."""
    sure: NDArray[np.float32] = predictions.probabilities.max(1)
    return sure


def cells(predictions: Predictions) -> list[Cell]:
    """Every cell of the matrix that is not empty, or, of more than MATRIX classes, the PAIRS off its diagonal that hold
    most; the fullest first. Mistakes show the surest first, what is right the least sure: A_CELL at most."""
    labels, predicted, sure = predictions.labels, predictions.predicted, confidence(predictions)
    K = predictions.probabilities.shape[1]
    order = np.lexsort((np.where(labels == predicted, sure, -sure), labels * K + predicted))
    numbers, begins, counts = np.unique((labels * K + predicted)[order], return_index=True, return_counts=True)
    chosen = sorted(
        zip(counts.tolist(), numbers.tolist(), begins.tolist(), strict=True), key=lambda cell: (-cell[0], cell[1])
    )
    if K > MATRIX:
        chosen = [cell for cell in chosen if cell[1] // K != cell[1] % K][:PAIRS]
    return [
        Cell(n // K, n % K, count, order[begin : begin + min(count, A_CELL)].tolist()) for count, n, begin in chosen
    ]


def fitted(cells: list[Cell], room: int) -> list[Cell]:
    """The same cells, each with as many samples as all can show without exceeding `room`, one at least."""
    each = next((most for most in range(A_CELL, 1, -1) if sum(len(cell.samples[:most]) for cell in cells) <= room), 1)
    return [replace(cell, samples=cell.samples[:each]) for cell in cells]


def _by(key: NDArray[np.float32], samples: NDArray[np.int64]) -> list[int]:
    ordered: list[int] = samples[np.argsort(key[samples], kind="stable")].tolist()
    return ordered
