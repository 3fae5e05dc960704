"""A split to predictions, and predictions to figures."""

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

BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Predictions:
    """What a network says of N samples: probabilities (N, K) float32, the true labels (N,), and the mean loss."""

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
    """Run `model` over every sample once, in order; of several ranks each over its share. Draws no random numbers;
    leaves the model in evaluation mode."""
    begun = time.perf_counter()
    model.eval()
    total, said, labels = 0.0, [], []
    for inputs, targets in batches.in_order(distributed.shard(len(batches))):
        with torch.no_grad(), runtime.autocast():
            logits = model(inputs)
        logits = logits.float()
        total += (
            float(criterion(logits, targets)) * len(targets) if len(targets) else 0.0
        )  # of few samples, a rank may have none
        said.append(probabilities(logits).cpu())
        labels.append(targets.cpu())
    probable, right = (distributed.all_gather(torch.cat(parts), len(batches)) for parts in (said, labels))
    loss = float(
        distributed.all_gather(torch.tensor([total], dtype=torch.float64), distributed.current().world).sum()
    ) / len(batches)
    return Predictions(probable.numpy(), right.numpy(), loss, time.perf_counter() - begun)


def compute_metrics(predictions: Predictions, classes: tuple[str, ...], split: str) -> dict[str, Any]:
    """The figures of `nnx eval`, as plain values. Confusion matrix: rows are true classes, columns predicted ones.

    Precision, recall and F1 are 0 where there is nothing to divide by, as in scikit-learn, whose figures these are
    (tested). Not by scikit-learn itself, which takes 0.9 s to import: a third of a short run, which writes them into
    its report.
    """
    K, labels = len(classes), predictions.labels
    confusions = np.bincount(labels * K + predictions.predicted, minlength=K * K).reshape(K, K)
    right, support, said = confusions.diagonal(), confusions.sum(1), confusions.sum(0)
    precision, recall, f1 = (
        right * times / np.maximum(of, 1) for times, of in ((1, said), (1, support), (2, said + support))
    )
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
    """For each of the BINS bins of confidence, b / 15 to (b + 1) / 15: its samples, how many are right, and their mean
    confidence, which is 0 where there are none."""

    samples: NDArray[np.int64]
    right: NDArray[np.int64]
    confidence: NDArray[np.float64]


def calibration(predictions: Predictions) -> Calibration:
    """How often the network is right, by how sure it is."""
    confidence = predictions.probabilities.max(1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bin b holds (b / 15, (b + 1) / 15]
    samples = np.bincount(bins, minlength=BINS)
    right = np.bincount(bins[predictions.predicted == predictions.labels], minlength=BINS)
    return Calibration(samples, right, np.bincount(bins, weights=confidence, minlength=BINS) / np.maximum(samples, 1))


def expected_calibration_error(predictions: Predictions) -> float:
    """Mean |accuracy - confidence| over 15 equal-width bins of confidence, weighted by their samples (Guo et al.
    2017)."""
    bins = calibration(predictions)
    return float(np.abs(bins.right - bins.samples * bins.confidence).sum() / len(predictions.labels))
