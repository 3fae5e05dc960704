"""Evaluates a network on a split, and computes metrics from its predictions."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnx.formatting import wilson
from nnx.loader.batches import BatchLoader
from nnx.losses import Criterion, probabilities
from nnx.system import distributed
from nnx.system.device import Runtime

BINS = 15  # of the expected calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for N samples: probabilities (N, K) float32, the true labels (N,), and the mean loss."""

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    loss: float
    seconds: float

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable class of each sample."""
        labels: NDArray[np.int64] = self.probabilities.argmax(1)
        return labels

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).mean())


def evaluate(model: nn.Module, batches: BatchLoader, criterion: Criterion, runtime: Runtime) -> Predictions:
    """Run `model` once over every sample, in order; each rank of a distributed run evaluates its share. Draws no random
    numbers; leaves the model in evaluation mode."""
    start = time.perf_counter()
    model.eval()
    total_loss = 0.0
    outputs = []
    labels = []
    for inputs, targets in batches.in_order(distributed.shard(len(batches))):
        with torch.no_grad(), runtime.autocast():
            logits = model(inputs)
        logits = logits.float()
        if len(targets):  # with few samples, a rank may have none
            total_loss += float(criterion(logits, targets)) * len(targets)
        outputs.append(probabilities(logits).cpu())
        labels.append(targets.cpu())
    all_outputs, all_labels = (distributed.all_gather(torch.cat(parts), len(batches)) for parts in (outputs, labels))
    loss_by_rank = torch.tensor([total_loss], dtype=torch.float64)
    loss = float(distributed.all_gather(loss_by_rank, distributed.current().world).sum()) / len(batches)
    return Predictions(all_outputs.numpy(), all_labels.numpy(), loss, time.perf_counter() - start)


def compute_metrics(predictions: Predictions, classes: tuple[str, ...], split: str) -> dict[str, Any]:
    """The metrics of `nnx eval`, as plain values. Confusion matrix: rows are true classes, columns predicted classes.

    Precision, recall and F1 are 0 if the denominator is 0. They equal scikit-learn's (tested), but do not use it:
    importing it takes 0.9 s, a third of a short run, which writes them into its report.
    """
    K = len(classes)
    labels = predictions.labels
    confusions = np.bincount(labels * K + predictions.predicted, minlength=K * K).reshape(K, K)
    correct = confusions.diagonal()
    support = confusions.sum(1)
    predicted = confusions.sum(0)
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(support, 1)
    f1 = correct * 2 / np.maximum(predicted + support, 1)
    return {
        "split": split,
        "samples": len(labels),
        "loss": predictions.loss,
        "accuracy": predictions.accuracy,
        "accuracy_interval": list(wilson(predictions.accuracy, len(labels))),
        "per_class": [
            {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
        ],
        "confusion_matrix": confusions.tolist(),
        "expected_calibration_error": expected_calibration_error(predictions),
        "seconds": predictions.seconds,
        "samples_per_second": len(labels) / predictions.seconds,
    }


@dataclass(frozen=True)
class Calibration:
    """For each of the BINS bins of confidence, b / 15 to (b + 1) / 15: the number of samples, how many of them are
    correct, and their mean confidence, which is 0 for an empty bin."""

    samples: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: NDArray[np.float64]


def calibration(predictions: Predictions) -> Calibration:
    """Accuracy by confidence, where the confidence is the probability of the predicted class."""
    confidence = predictions.probabilities.max(1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bin b is (b / 15, (b + 1) / 15]
    samples = np.bincount(bins, minlength=BINS)
    correct = np.bincount(bins[predictions.predicted == predictions.labels], minlength=BINS)
    total_confidence = np.bincount(bins, weights=confidence, minlength=BINS)
    return Calibration(samples, correct, total_confidence / np.maximum(samples, 1))


def expected_calibration_error(predictions: Predictions) -> float:
    """Mean |accuracy - confidence| over 15 bins of equal width, weighted by their samples (Guo et al. 2017)."""
    bins = calibration(predictions)
    return float(np.abs(bins.correct - bins.samples * bins.confidence).sum() / len(predictions.labels))
