"""Which samples the page shows: those of each cell of the confusion matrix, and the most informative ones of all."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnx.inference.metrics import Predictions

CELL_SAMPLES = 24  # samples of a cell of the confusion matrix
GALLERY_SIZE = 24
MAX_MATRIX_CLASSES = 20  # with more classes a matrix can't be read, or tapped on a phone: the page lists confusions
LISTED_CONFUSIONS = 40


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: the number of its samples, and those that the page shows."""

    true: int
    predicted: int
    count: int
    samples: list[int]

    @property
    def name(self) -> str:
        return f"cell-{self.true}-{self.predicted}"

    @property
    def is_correct(self) -> bool:
        return self.true == self.predicted


def most_confident_mistakes(predictions: Predictions, limit: int = GALLERY_SIZE) -> list[int]:
    """Misclassified samples, the most confident first."""
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    return _sort_by(-confidence(predictions), wrong)[:limit]


def least_confident_hits(predictions: Predictions, limit: int = GALLERY_SIZE) -> list[int]:
    """Correctly classified samples, the least confident first."""
    correct = np.flatnonzero(predictions.predicted == predictions.labels)
    return _sort_by(confidence(predictions), correct)[:limit]


def confidence(predictions: Predictions) -> NDArray[np.float32]:
    """(N,) the probability of the predicted class."""
    highest: NDArray[np.float32] = predictions.probabilities.max(1)
    return highest


def cells(predictions: Predictions) -> list[Cell]:
    """The non-empty cells of the confusion matrix, the largest first; with more than MAX_MATRIX_CLASSES classes only
    the LISTED_CONFUSIONS largest off the diagonal.

    Each has at most CELL_SAMPLES samples: mistakes with the most confident first, correct ones with the least confident
    first.
    """
    labels = predictions.labels
    predicted = predictions.predicted
    sure = confidence(predictions)
    K = predictions.probabilities.shape[1]
    order = np.lexsort((np.where(labels == predicted, sure, -sure), labels * K + predicted))
    numbers, starts, counts = np.unique((labels * K + predicted)[order], return_index=True, return_counts=True)
    chosen = sorted(
        zip(counts.tolist(), numbers.tolist(), starts.tolist(), strict=True), key=lambda cell: (-cell[0], cell[1])
    )
    if K > MAX_MATRIX_CLASSES:
        chosen = [cell for cell in chosen if cell[1] // K != cell[1] % K][:LISTED_CONFUSIONS]
    return [
        Cell(n // K, n % K, count, order[start : start + min(count, CELL_SAMPLES)].tolist())
        for count, n, start in chosen
    ]


def limit_samples(cells: list[Cell], capacity: int) -> list[Cell]:
    """The cells, each with the same limit on its samples, so that all together are at most `capacity`; at least one
    each."""
    fitting = (n for n in range(CELL_SAMPLES, 1, -1) if sum(len(cell.samples[:n]) for cell in cells) <= capacity)
    limit = next(fitting, 1)
    return [replace(cell, samples=cell.samples[:limit]) for cell in cells]


def _sort_by(key: NDArray[np.float32], samples: NDArray[np.int64]) -> list[int]:
    ordered: list[int] = samples[np.argsort(key[samples], kind="stable")].tolist()
    return ordered
