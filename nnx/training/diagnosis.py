"""The verdict on a finished training: what went wrong, from which evidence, and what to try.

    diagnose(Evidence(config, state.history, ...))  # Diagnosis("overfitting", 5, "validation loss rises ...", ...)

It measures nothing during training: the history of every run suffices, with one forward pass over a few samples at
the end. Training loss may include label smoothing, class weights or mixup, and is of the raw weights; validation loss
is plain, and with train.ema of the average. So each is only compared with itself.

The thresholds are wide, because a false alarm is worse than none: all shipped recipes are healthy (tested).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, cast

from nnx.config import Config
from nnx.events import Diagnosis
from nnx.formatting import loss as _loss
from nnx.formatting import percent as _percent
from nnx.optimizers import OptimizerConfig
from nnx.training.health import MOST_DEAD, SATURATING

# Share of the way from guessing to perfect that a network has to go to have learned anything
LITTLE = 0.1
# A loss above this share of that of the class frequencies is as good as guessing
AS_GUESSING = 0.98
LATER = 3  # epochs over which a loss must have changed, and over which its last values are averaged
# A rise of the validation loss: relative to its lowest value, and to the loss of a uniform guess
RELATIVE_RISE = 0.2
RISE = 0.05
FEW = 5  # samples; a rise that so many confident mistakes explain is noise
TOLERANCE = 0.02  # accuracy below that of a linear model that is not worth a word
SIGMAS = 3.0  # standard errors between two accuracies on the validation samples


@dataclass(frozen=True)
class Evidence:
    """What a verdict is based on. Accuracies are shares."""

    config: Config
    history: Sequence[dict[str, Any]]  # a record per epoch: train_loss, lr, and val_loss and val_accuracy if measured
    dead: dict[str, float]  # ReLU layer -> share of units that are 0 for all probed training samples
    train_accuracy: float  # of the checkpoint, on training samples without augmentation
    train_recall: float  # the mean over the classes
    train_loss: float  # mean -log p of the true class
    most_frequent: float  # share of the most frequent training class, among the validation samples
    entropy: float  # nats, of the training classes: the loss of predicting their frequencies
    classes: int
    guess: float  # validation loss of uniform probabilities
    validation_samples: int = 0
    linear: float | None = None  # validation accuracy of logistic regression

    @property
    def best_accuracy(self) -> float | None:
        """The highest validation accuracy of an epoch."""
        return max((r["val_accuracy"] for r in self.history if r.get("val_accuracy") is not None), default=None)

    @property
    def train_losses(self) -> list[float]:
        return [record["train_loss"] for record in self.history]

    def skill(self, accuracy: float, chance: float) -> float:
        """How far `accuracy` is from `chance`, 0, to perfect, 1."""
        return (accuracy - chance) / max(1 - chance, 1e-9)

    def deviation(self, *accuracies: float) -> float:
        """The standard error of the difference of accuracies on the validation samples."""
        return math.sqrt(sum(a * (1 - a) for a in accuracies) / max(self.validation_samples, 1))


def diagnose(evidence: Evidence) -> Diagnosis:
    """The verdict on a training: the first of these problems that it has, or healthy."""
    for check in (_not_learning, _diverging, _dead_units, _overfitting, _underfitting):
        if diagnosis := check(evidence):
            return diagnosis
    return _healthy(evidence)


def _not_learning(e: Evidence) -> Diagnosis | None:
    """The network predicts no better than without looking at its input, even on its training samples."""
    best = e.best_accuracy
    if (
        e.skill(e.train_recall, 1 / e.classes) >= LITTLE
        or (best is not None and e.skill(best, e.most_frequent) >= LITTLE)
        or e.train_loss < AS_GUESSING * e.entropy
    ):
        return None
    measured = (
        f"training accuracy {_percent(e.train_accuracy)}" if best is None else f"validation accuracy {_percent(best)}"
    )
    evidence = f"{measured}; always predicting the most frequent class gives {_percent(e.most_frequent)}"
    cause, advice = _cause(e)
    return Diagnosis("not learning", None, f"{evidence}{cause}", advice or _check_labels(e))


def _diverging(e: Evidence) -> Diagnosis | None:
    """The training loss has risen again, by a quarter of all that it fell at least, and for two epochs."""
    losses = e.train_losses
    lowest = losses.index(min(losses))
    if len(losses) - 1 - lowest < 2:
        return None
    last = min(losses[-2:])
    if last <= 1.5 * losses[lowest] or last - losses[lowest] < (max(losses[: lowest + 1]) - losses[lowest]) / 4:
        return None
    epoch = e.history[lowest]["epoch"]
    evidence = f"training loss rises from {_loss(losses[lowest])} at epoch {epoch} to {_loss(losses[-1])}"
    clip = "" if e.config.train.clip_grad_norm else ", or --set train.clip_grad_norm=1"
    return Diagnosis("diverging", epoch, evidence, f"Try {_lower_lr(e)}{clip}")


def _dead_units(e: Evidence) -> Diagnosis | None:
    """Most units of a layer are 0 for every sample, so they get no gradient."""
    dead = {name: share for name, share in e.dead.items() if share > MOST_DEAD}
    if not dead:
        return None
    worst = max(dead, key=dead.__getitem__)
    others = f", and most of those of {len(dead) - 1} more layer{'s' * (len(dead) > 2)}" if len(dead) > 1 else ""
    evidence = f"{100 * dead[worst]:.0f} % of the ReLUs of {worst}{others} output 0 for all samples"
    return Diagnosis("dead units", None, evidence, f"Try {_lower_lr(e)}, or --set model.activation=leaky_relu")


def _overfitting(e: Evidence) -> Diagnosis | None:
    """Validation loss rises while training loss falls, and training accuracy is higher than validation accuracy."""
    measured = [record for record in e.history if record.get("val_loss") is not None]
    if len(measured) <= LATER:
        return None
    values = [record["val_loss"] for record in measured]
    smooth = [values[0], *(median(values[n - 1 : n + 2]) for n in range(1, len(values) - 1)), values[-1]]
    lowest = smooth.index(min(smooth))
    rise = fmean(values[-LATER:]) - smooth[lowest]
    accuracy = fmean(record["val_accuracy"] for record in measured[-LATER:])
    trained = [record["train_loss"] for record in measured]
    if (
        len(values) - 1 - lowest < LATER
        or rise < max(RELATIVE_RISE * smooth[lowest], max(RISE, FEW / e.validation_samples) * e.guess)
        or fmean(trained[-LATER:]) >= trained[lowest]
        or e.train_accuracy - accuracy < max(0.01, 2 * e.deviation(accuracy))
    ):
        return None
    epoch = measured[lowest]["epoch"]
    evidence = f"validation loss rises from epoch {epoch} ({_loss(values[lowest])} to {_loss(values[-1])}), training "
    best = cast(float, e.best_accuracy)
    if e.skill(best, e.most_frequent) < LITTLE:
        evidence += (
            f"loss falls; training accuracy {_percent(e.train_accuracy)}, validation accuracy {_percent(best)}: "
            "what was learned does not carry over"
        )
        return Diagnosis("overfitting", epoch, evidence, _check_labels(e))
    return Diagnosis("overfitting", epoch, f"{evidence}loss falls", f"Try {_regularise(e)}")


def _underfitting(e: Evidence) -> Diagnosis | None:
    """Logistic regression is better."""
    best = e.best_accuracy
    if e.linear is None or best is None:
        return None
    if e.linear - best < max(TOLERANCE, SIGMAS * e.deviation(e.linear, best)):
        return None
    evidence = f"validation accuracy {_percent(best)}, logistic regression {_percent(e.linear)}"
    cause, advice = _cause(e)
    return Diagnosis("underfitting", None, f"{evidence}{cause}", advice or f"Try {_more_epochs(e)}")


def _healthy(e: Evidence) -> Diagnosis:
    if e.best_accuracy is None:
        return Diagnosis("healthy", None, "training loss falls; overfitting can't be seen without validation data", "")
    evidence = "no sign of divergence, dead units or overfitting"
    return Diagnosis("healthy", None, evidence, f"May improve with {_more_epochs(e)}" if _is_improving(e) else "")


# ---------------------------------------------------------------- causes and cures


def _cause(e: Evidence) -> tuple[str, str]:
    """Why the network learned little, to end the evidence with, and what to try; empty where that is not known."""
    lr = _optimizer(e).lr
    first, last = e.train_losses[0], e.train_losses[-1]
    if max(e.dead.values(), default=0.0) > MOST_DEAD or max(e.train_losses) > 2 * max(e.entropy, e.guess):
        return "; the learning rate is too high", f"Try {_lower_lr(e)}"
    if lr <= _default_lr(e) / 10 and last > 0.5 * first:
        return "; the learning rate is too low", f"Try {_raise_lr(e)}"
    activation = getattr(e.config.model, "activation", None)
    if activation in SATURATING and _hidden_layers(e) >= 3:
        return f"; gradients vanish in {_hidden_layers(e)} layers of {activation}", "Try --set model.activation=relu"
    if getattr(e.config.model, "cell", None) == "rnn":
        return "; gradients vanish over the steps of a plain RNN", "Try --set model.cell=lstm"
    if lr >= 10 * _default_lr(e):
        return "; the learning rate is high", f"Try {_lower_lr(e)}"
    if _is_improving(e) or last < first * 0.95:
        return "; training loss still falls", f"Try {_more_epochs(e)}"
    return "", ""


def _is_improving(e: Evidence) -> bool:
    """Whether the last epochs, at a learning rate that no schedule has brought to its end, were the best."""
    key = "train_loss" if e.best_accuracy is None else "val_loss"
    values: list[float] = [record[key] for record in e.history if record.get(key) is not None]
    is_decayed = e.history[-1]["lr"] < _optimizer(e).lr / 2
    if is_decayed or len(values) <= 2 or values[-1] < RISE * e.guess:
        return False
    return values[-1] < 0.98 * values[-2] < 0.98**2 * min(values[:-2])


def _hidden_layers(e: Evidence) -> int:
    """Of an MLP, or the stages of a CNN and its hidden layers."""
    return sum(len(getattr(e.config.model, key, ())) for key in ("channels", "hidden"))


def _optimizer(e: Evidence) -> OptimizerConfig:
    return cast(OptimizerConfig, e.config.optimizer)


def _default_lr(e: Evidence) -> float:
    return float(type(e.config.optimizer).model_fields["lr"].default)


def _lower_lr(e: Evidence) -> str:
    lr, default = _optimizer(e).lr, _default_lr(e)
    return f"--set optimizer.lr={default if lr > 2 * default else lr / 10:g} (now {lr:g})"


def _raise_lr(e: Evidence) -> str:
    lr, default = _optimizer(e).lr, _default_lr(e)
    return f"--set optimizer.lr={default if lr < default / 2 else lr * 10:g} (now {lr:g})"


def _more_epochs(e: Evidence) -> str:
    return f"--set train.epochs={3 * e.config.train.epochs} (now {e.config.train.epochs})"


def _regularise(e: Evidence) -> str:
    """The first of these that is not in use: dropout, or early stopping."""
    if getattr(e.config.model, "dropout", 1) == 0:
        return "--set model.dropout=0.3, or more training samples"
    if not e.config.train.patience:
        return f"--set train.patience={LATER} to stop earlier, or more training samples"
    return "more training samples, or a smaller model"


def _check_labels(e: Evidence) -> str:
    return f"Check that the labels belong to the inputs, or try {_lower_lr(e)}"
