"""What happens in a run, as plain values in the order of happening. Progress, files, pruning and tests all read these.

Started, then (Step* Epoch)*, then Finished. Where the run is watched, a Health after Started and after each Epoch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Choice:
    """Something decided for the user, and why: `Choice("device", "cpu", "no CUDA device found")`."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class LayerSummary:
    """A row of the model table. `shape` is that of the output for one sample."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int | None = None  # of a forward pass of one sample; None where they were not counted


@dataclass(frozen=True)
class Started:
    """Everything is ready; the first step comes next (or the next, after a resume)."""

    run: Path
    choices: tuple[Choice, ...]
    samples: dict[str, int]  # split -> how many; the test set is not opened yet
    layers: tuple[LayerSummary, ...]
    parameters: int
    epochs: int
    steps_per_epoch: int
    epoch: int  # where training begins: 0, or later after a resume
    step: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A look at the running epoch. `epoch` counts from 0, `batch` is the number of steps done in it."""

    epoch: int
    batch: int
    step: int
    loss: float  # mean over the epoch so far
    lr: float
    samples_per_second: float


@dataclass(frozen=True)
class Epoch:
    """An epoch's end, after validation: a line of metrics.jsonl. `epoch` counts from 1, as people do."""

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float  # of training, validation not included
    samples_per_second: float
    is_best: bool
    stopping: str | None = None  # why training ends before its last epoch


@dataclass(frozen=True)
class Health:
    """How the network fares on some of its training samples: before the first step, epoch 0, and after each epoch."""

    epoch: int
    samples: int
    loss: float  # mean -log p of the right class
    guess: float  # ln K, what a network that knows nothing has
    dead: dict[str, float]  # layer of ReLUs -> share of units that are 0 for every sample
    gradients: dict[str, float]  # layer, first to last -> norm of the loss's gradient in its weights
    update: float | None  # longest step looked at: |change of all weights| / |all weights|; None before the first
    warnings: tuple[str, ...]  # what is off, each with its likely cause and cure; once a run


@dataclass(frozen=True)
class Finished:
    """The final figures, as summary.json and `--json` hold them."""

    summary: dict[str, Any]


Event = Started | Step | Epoch | Health | Finished
