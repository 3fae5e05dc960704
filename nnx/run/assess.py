"""What a finished run is judged by: its training accuracy, baselines, and the verdict on its training."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from nnx import losses
from nnx.checkpoint import Checkpoint, build_network
from nnx.datasets import Split
from nnx.events import Diagnosis
from nnx.inference.baselines import LinearModel, evenly_spread, fit_linear
from nnx.inference.metrics import Predictions, evaluate
from nnx.system import distributed
from nnx.training.diagnosis import TOLERANCE, Baseline, Evidence, diagnose
from nnx.training.health import dead_units, probe_size
from nnx.training.setup import TrainingSetup

MOST = 10_000  # training samples for the training accuracy
QUICK = 1_000  # the same of a run with train.report: false; and samples for recall and the comparison with the baseline
MOST_BYTES = 2**28  # of a copy of them


@dataclass(frozen=True)
class Assessment:
    """Of a run with train.report: false, only the diagnosis and what it needed, to save time."""

    diagnosis: Diagnosis
    train: Predictions | None  # of the checkpoint, for training samples without augmentation
    baselines: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Its part of summary.json."""
        return {
            "train_accuracy": self.train.accuracy if self.train else None,
            "train_samples": len(self.train.labels) if self.train else None,
            "baselines": self.baselines,
            "health": asdict(self.diagnosis),
        }


def assess(setup: TrainingSetup, best: Checkpoint, test: Split | None) -> Assessment:
    """Judge a finished run by its history and its best network. `test`, if there is any, measures the baselines and
    nothing else: it has no influence on the verdict. All ranks call this."""
    is_full = setup.config.train.report
    train, validation = setup.dataset.train, setup.dataset.validation or None
    most = MOST if is_full else QUICK
    network = setup.runtime.place(build_network(best))

    def predict(split: Split) -> Predictions:
        return evaluate(network, setup.loader(split), setup.evaluation_criterion, setup.runtime)

    seen = evenly_spread(train, min(most, MOST_BYTES // _bytes_per_sample(train) + 1))
    fitted = predict(seen)
    judged = validation or seen
    part = evenly_spread(judged, QUICK)
    outcome = predict(part)
    linear = None
    # Without a report, only where there is room for it to be better: it takes up to a second
    if distributed.current().rank == 0 and (is_full or outcome.accuracy <= 1 - TOLERANCE):
        linear = fit_linear(train, validation, setup.dataset.spec)
    evidence = Evidence(
        config=setup.config,
        history=setup.state.history,
        dead=dead_units(setup.state.model, setup.loader(train.take(probe_size(len(train))))),
        train_accuracy=fitted.accuracy,
        train_recall=_recall(fitted.predicted, fitted.labels),
        train_loss=_cross_entropy(fitted),
        recall=_recall(outcome.predicted, outcome.labels),
        most_frequent=float((judged.labels == _most_frequent(setup)).mean()),
        entropy=_entropy(setup),
        classes=len(setup.dataset.spec.classes),
        guess=_loss_of_guessing(setup),
        validation_samples=len(validation or ()),
        linear=_compare(linear, judged, part, outcome) if linear else None,
    )
    return Assessment(diagnose(evidence), fitted if is_full else None, _baselines(setup, test, linear))


class _MostFrequent(pydantic.BaseModel):
    label: str
    accuracy: float | None


class _Linear(pydantic.BaseModel):
    accuracy: float | None
    train_samples: int


class _Baselines(pydantic.BaseModel):
    most_frequent_class: _MostFrequent
    logistic_regression: _Linear | None


class _Health(pydantic.BaseModel):
    verdict: str
    evidence: str
    advice: str


class _Summary(pydantic.BaseModel):
    """What `known_assessment` reads of summary.json, which anyone may have edited."""

    best_epoch: int
    val_loss: float | None
    test_data: str | None
    train_accuracy: float | None
    train_samples: int | None
    baselines: _Baselines
    health: _Health


def known_assessment(summary: dict[str, Any], best: Checkpoint, test_data: str | None) -> dict[str, Any]:
    """What the summary of a run says of its network `best`: training accuracy, health, and the baselines, where they
    were measured on the test samples of the SHA-256 `test_data`. Empty where the summary is of another network."""
    try:
        known = _Summary.model_validate(summary)
    except pydantic.ValidationError:  # of an older version, or damaged
        return {}
    if (known.best_epoch, known.val_loss) != (best.record.get("epoch"), best.record.get("val_loss")):
        return {}
    is_same_test = test_data is not None and known.test_data == test_data
    fields = {"train_accuracy", "train_samples", "health"} | ({"baselines"} if is_same_test else set())
    return known.model_dump(include=fields)


def _bytes_per_sample(split: Split) -> int:
    return max(1, split.inputs.nbytes // len(split))


def _baselines(setup: TrainingSetup, test: Split | None, linear: LinearModel | None) -> dict[str, Any]:
    """The test accuracy of always predicting the most frequent training class, and of logistic regression."""
    label = _most_frequent(setup)
    measured = test is not None and len(test)
    return {
        "most_frequent_class": {
            "label": setup.dataset.spec.classes[label],
            "accuracy": float((test.labels == label).mean()) if test is not None and measured else None,
        },
        "logistic_regression": {
            "accuracy": linear.measure(test)[0] if test is not None and measured else None,
            "train_samples": linear.samples,
            "C": linear.strength,
        }
        if linear
        else None,
    }


def _most_frequent(setup: TrainingSetup) -> int:
    return int(np.bincount(setup.dataset.train.labels).argmax())


def _compare(linear: LinearModel, judged: Split, part: Split, network: Predictions) -> Baseline:
    """The linear model on the judged samples; its difference to the network's predictions of a part of them."""
    predicted = linear.predict(part)
    lead = (predicted == part.labels).astype(np.float64) - (network.predicted == part.labels)
    return Baseline(
        accuracy=linear.measure(judged)[0],
        recall=_recall(predicted, part.labels),
        error=float(lead.std() / np.sqrt(len(judged))),
    )


def _recall(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The mean, over the classes present, of the share of a class that is found."""
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def _cross_entropy(predictions: Predictions) -> float:
    p = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels].astype(np.float64)
    return float(-np.log(p.clip(1e-30)).mean())


def _entropy(setup: TrainingSetup) -> float:
    """Of the training labels, in nats: the loss of predicting the frequencies of the classes."""
    shares = np.unique(setup.dataset.train.labels, return_counts=True)[1] / len(setup.dataset.train)
    return float(-(shares * np.log(shares)).sum())


def _loss_of_guessing(setup: TrainingSetup) -> float:
    """The validation loss of uniform probabilities: ln K for cross-entropy."""
    outputs = losses.outputs(setup.config.loss, len(setup.dataset.spec.classes))
    logits = torch.zeros(1, outputs, device=setup.runtime.device)
    return float(setup.evaluation_criterion(logits, logits.new_zeros(1, dtype=torch.long)))
