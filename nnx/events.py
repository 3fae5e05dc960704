"""The events of a run, as plain values in chronological order. Progress, files, pruning and tests all read them.

Started, then (Step* Epoch)*, then Finished. With --watch, a Health event follows Started and each Epoch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Choice:
    """An automatic choice and its reason: `Choice("device", "cpu", "no CUDA device found")`."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class LayerSummary:
    """A row of the model table. `shape` is the output shape for one sample."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int | None = None  # of a forward pass of one sample; None if not counted


@dataclass(frozen=True)
class Started:
    """Everything is ready for the first step, or for the next step of a resumed run."""

    run: Path
    choices: tuple[Choice, ...]
    samples: dict[str, int]  # split -> number of samples, without the test set, which is not loaded yet
    layers: tuple[LayerSummary, ...]
    parameters: int
    epochs: int
    steps_per_epoch: int
    epoch: int  # first epoch to train: 0, or a later one after a resume
    step: int
    warnings: tuple[str, ...] = ()
    # of a resumed run: the lines of metrics.jsonl so far, without times, and the one of the best epoch
    history: tuple[dict[str, Any], ...] = ()
    best: dict[str, Any] | None = None


@dataclass(frozen=True)
class Step:
    """Progress within an epoch. `epoch` counts from 0; `batch` is the number of its steps done."""

    epoch: int
    batch: int
    step: int
    loss: float  # mean over the epoch so far
    lr: float
    samples_per_second: float


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch, after validation: a line of metrics.jsonl. `epoch` counts from 1.

    Without validation samples, `val_loss` and `val_accuracy` are None, and each epoch is the best so far.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    seconds: float  # of training, without validation
    samples_per_second: float
    is_best: bool
    stopping: str | None = None  # why training stops before its last epoch


@dataclass(frozen=True)
class Health:
    """The health of the network on some training samples: before the first step (epoch 0) and after each epoch."""

    epoch: int
    samples: int
    loss: float  # mean -log p of the true class
    guess: float  # ln K, the loss of uniform probabilities
    dead: dict[str, float]  # ReLU layer -> share of units that are 0 for all samples
    gradients: dict[str, float]  # layer, first to last -> norm of the loss gradient of its weights
    update: float | None  # |change of all weights| / |all weights| of the largest measured step; None before the first
    warnings: tuple[str, ...]  # problems with their likely cause and cure, each once per run


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a finished training: `health` in summary.json."""

    # healthy, not learning, barely learning, still learning, diverging, dead units, overfitting or underfitting
    verdict: str
    epoch: int | None  # from which the problem is visible, where there is such an epoch
    evidence: str
    advice: str  # what to try, with its --set; may be empty


@dataclass(frozen=True)
class Finished:
    """The final figures, as in summary.json and `--json`."""

    summary: dict[str, Any]


Event = Started | Step | Epoch | Health | Finished
