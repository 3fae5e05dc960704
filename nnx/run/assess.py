"""What a finished run is judged by: its training accuracy, baselines, and the verdict on its training."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pydantic
import torch

from nnx import losses
from nnx.checkpoint import Checkpoint, build_network
from nnx.datasets import Split
from nnx.events import Diagnosis
from nnx.inference.baselines import LinearModel, evenly_spread, fit_linear
from nnx.inference.metrics import Predictions, evaluate
from nnx.system import distributed
from nnx.training.diagnosis import Evidence, diagnose
from nnx.training.health import dead_units, probe_size
from nnx.training.setup import TrainingSetup

MOST = 10_000  # training samples for the training accuracy
MOST_BYTES = 2**28  # of a copy of them


@dataclass(frozen=True)
class Assessment:
    """Of a run with train.report: false, only the diagnosis and the most frequent class, to save time."""

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
    train = setup.dataset.train
    probe = train.take(probe_size(len(train)))
    sample = evenly_spread(train, min(MOST, MOST_BYTES // _bytes_per_sample(train) + 1)) if is_full else probe
    network = setup.runtime.place(build_network(best))
    predictions = evaluate(network, setup.loader(sample), setup.evaluation_criterion, setup.runtime)
    linear = None
    if is_full and distributed.current().rank == 0:
        linear = fit_linear(train, setup.dataset.validation, setup.dataset.spec)
    diagnosis = diagnose(_evidence(setup, predictions, dead_units(setup.state.model, setup.loader(probe)), linear))
    return Assessment(diagnosis, predictions if is_full else None, _baselines(setup, test, linear))


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


def _evidence(setup: TrainingSetup, train: Predictions, dead: dict[str, float], linear: LinearModel | None) -> Evidence:
    dataset = setup.dataset
    validation = dataset.validation if dataset.validation is not None and len(dataset.validation) else None
    K = len(dataset.spec.classes)
    shares = np.bincount(dataset.train.labels, minlength=K) / len(dataset.train)
    shares = shares[shares > 0]
    present = np.unique(train.labels)
    recalls = [(train.predicted[train.labels == label] == label).mean() for label in present]
    probabilities = train.probabilities[np.arange(len(train.labels)), train.labels].astype(np.float64)
    return Evidence(
        config=setup.config,
        history=setup.state.history,
        dead=dead,
        train_accuracy=train.accuracy,
        train_recall=float(np.mean(recalls)),
        train_loss=float(-np.log(probabilities.clip(1e-30)).mean()),
        most_frequent=float(((validation or dataset.train).labels == _most_frequent(setup)).mean()),
        entropy=float(-(shares * np.log(shares)).sum()),
        classes=K,
        guess=_loss_of_guessing(setup),
        validation_samples=len(validation) if validation else 0,
        linear=linear.measure(validation)[0] if linear and validation else None,
    )


def _loss_of_guessing(setup: TrainingSetup) -> float:
    """The validation loss of uniform probabilities: ln K for cross-entropy."""
    outputs = losses.outputs(setup.config.loss, len(setup.dataset.spec.classes))
    logits = torch.zeros(1, outputs, device=setup.runtime.device)
    return float(setup.evaluation_criterion(logits, logits.new_zeros(1, dtype=torch.long)))
