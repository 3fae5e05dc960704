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
SIGMAS = 3.0  # standard errors between two accuracies of different samples
PAIRED_SIGMAS = 2.0  # and of the same samples, where a chance difference is small
GAP = 0.05  # between training and validation accuracy
# A network barely learned that goes less of the way from guessing to perfect, and is not TIMES as accurate as guessing
BARELY, TIMES = 0.2, 3.0
SEPARATED = 0.9  # training accuracy of a linear network that its classes allow for
UNEQUAL = 0.8  # entropy of the classes, relative to that of equal ones
STEEP = 0.1  # share by which training and validation loss fall in the last quarter of the epochs while it learns
LEARNED = 0.02  # a loss below this share of that of a uniform guess has nowhere to fall


@dataclass(frozen=True)
class Baseline:
    """Logistic regression on the samples that the network is judged by. All are shares."""

    accuracy: float
    recall: float  # the mean over the classes
    error: float  # standard error of the difference to the network's accuracy


@dataclass(frozen=True)
class Evidence:
    """What a verdict is based on. Accuracies are shares."""

    config: Config
    history: Sequence[dict[str, Any]]  # a record per epoch: train_loss, lr, and val_loss and val_accuracy if measured
    dead: dict[str, float]  # ReLU layer -> share of units that are 0 for all probed training samples
    train_accuracy: float  # of the checkpoint, on training samples without augmentation
    train_recall: float  # the mean over the classes
    train_loss: float  # mean -log p of the true class
    recall: float  # the mean over the classes, on the validation samples; where there are none, on training samples
    most_frequent: float  # share of the most frequent training class, among the same samples
    entropy: float  # nats, of the training classes: the loss of predicting their frequencies
    classes: int
    guess: float  # validation loss of uniform probabilities
    validation_samples: int = 0
    linear: Baseline | None = None

    @property
    def best_accuracy(self) -> float | None:
        """The highest validation accuracy of an epoch."""
        return max((r["val_accuracy"] for r in self.history if r.get("val_accuracy") is not None), default=None)

    @property
    def accuracy(self) -> float:
        """What the network is judged by: its validation accuracy; without validation samples its training accuracy."""
        return self.train_accuracy if self.best_accuracy is None else self.best_accuracy

    @property
    def measured(self) -> str:
        """`accuracy` in words."""
        return f"{'training' if self.best_accuracy is None else 'validation'} accuracy {_percent(self.accuracy)}"

    @property
    def train_losses(self) -> list[float]:
        return [record["train_loss"] for record in self.history]

    @property
    def val_losses(self) -> list[float]:
        """Of the epochs after which it was measured."""
        return [record["val_loss"] for record in self.history if record.get("val_loss") is not None]

    def skill(self, accuracy: float, chance: float) -> float:
        """How far `accuracy` is from `chance`, 0, to perfect, 1."""
        return (accuracy - chance) / max(1 - chance, 1e-9)

    def deviation(self, *accuracies: float) -> float:
        """The standard error of the difference of accuracies on the validation samples."""
        return math.sqrt(sum(a * (1 - a) for a in accuracies) / max(self.validation_samples, 1))


def diagnose(evidence: Evidence) -> Diagnosis:
    """The verdict on a training: the first of these problems that it has, or healthy."""
    checks = (
        _not_learning,
        _diverging,
        _dead_units,
        _overfitting,
        _underfitting,
        _memorising,
        _barely_learning,
        _still_learning,
    )
    for check in checks:
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
    cause, advice = _cause(e)
    return Diagnosis("not learning", None, f"{_against_guessing(e)}{cause}", advice or _check_labels(e))


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
    """Logistic regression is better, in accuracy and in the mean recall of the classes: class weights trade one for the
    other. Or the network is itself linear, and its training samples are not linearly separable."""
    linear = e.linear
    if _is_linear(e) and e.train_accuracy < SEPARATED:
        cause, advice = _cause(e)
        return Diagnosis("underfitting", None, f"training accuracy {_percent(e.train_accuracy)}{cause}", advice)
    if (
        linear is None
        or linear.accuracy - e.accuracy < max(TOLERANCE, PAIRED_SIGMAS * linear.error)
        or linear.recall <= e.recall
    ):
        return None
    evidence = f"{e.measured}, logistic regression {_percent(linear.accuracy)}"
    if _gap(e) >= GAP and e.train_accuracy > linear.accuracy:
        evidence += f"; training accuracy {_percent(e.train_accuracy)}"
        return Diagnosis("overfitting", None, evidence, f"Try {_regularise(e)}")
    cause, advice = _cause(e)
    return Diagnosis("underfitting", None, f"{evidence}{cause}", advice or f"Try {_more_epochs(e)}, or a larger model")


def _memorising(e: Evidence) -> Diagnosis | None:
    """The training samples are classified far better than others, though the validation loss does not rise."""
    best = e.best_accuracy
    if best is None or _gap(e) < max(GAP, SIGMAS * e.deviation(best)):
        return None
    evidence = f"training accuracy {_percent(e.train_accuracy)}, validation accuracy {_percent(best)}"
    return Diagnosis("overfitting", None, evidence, f"Try {_regularise(e)}")


def _barely_learning(e: Evidence) -> Diagnosis | None:
    """The network is hardly better than guessing, and logistic regression is not better."""
    if (
        e.skill(e.accuracy, e.most_frequent) >= BARELY
        or e.skill(e.recall, 1 / e.classes) >= BARELY
        or e.accuracy >= TIMES * e.most_frequent
    ):
        return None
    evidence = _against_guessing(e)
    if e.linear:
        evidence += f", logistic regression {_percent(e.linear.accuracy)}"
    cause, advice = _cause(e)
    if not advice and e.entropy < UNEQUAL * math.log(e.classes) and getattr(e.config.loss, "class_weights", 0) is None:
        cause, advice = "; the rare classes are hardly found", "Try --set loss.class_weights=balanced"
    hard = "The inputs may say little about the classes. Check that the labels belong to them"
    return Diagnosis("barely learning", None, f"{evidence}{cause}", advice or hard)


def _still_learning(e: Evidence) -> Diagnosis | None:
    """Training ended while the loss fell steeply, or after the first epoch."""
    epochs = len(e.history)
    values, name = (e.val_losses, "validation") if e.val_losses else (e.train_losses, "training")
    if values[-1] < LEARNED * e.guess:
        return None
    advice = f"More epochs would help: --set train.epochs={3 * epochs} (now {epochs})"
    if epochs == 1:
        return Diagnosis("still learning", None, f"{e.measured} after the only epoch, which shows no trend", advice)
    if not _falls(e):
        return None
    quarter = max(1, len(values) // 4)
    evidence = f"{name} loss still falls, from {_loss(values[-1 - quarter])} to {_loss(values[-1])} in the last "
    return Diagnosis("still learning", None, evidence + (f"{quarter} epochs" if quarter > 1 else "epoch"), advice)


def _healthy(e: Evidence) -> Diagnosis:
    if e.best_accuracy is None:
        evidence = "no sign of divergence or dead units; overfitting can't be seen without validation data"
    else:
        evidence = "no sign of divergence, dead units or overfitting"
    if e.linear and e.linear.accuracy >= e.accuracy:
        evidence += f"; {e.measured}, logistic regression {_percent(e.linear.accuracy)}"
    return Diagnosis("healthy", None, evidence, "")


# ---------------------------------------------------------------- causes and cures


def _against_guessing(e: Evidence) -> str:
    return f"{e.measured}; always predicting the most frequent class gives {_percent(e.most_frequent)}"


def _gap(e: Evidence) -> float:
    """By how much training accuracy exceeds validation accuracy; 0 without validation samples."""
    return e.train_accuracy - e.accuracy


def _falls(e: Evidence) -> bool:
    """Whether the losses fell steeply in the last quarter of the epochs."""
    return all(_recent_fall(losses) >= STEEP for losses in (e.train_losses, e.val_losses) if losses)


def _recent_fall(losses: Sequence[float]) -> float:
    """How far the last value lies below the lowest before the last quarter of the epochs, relative to that."""
    before = losses[: -max(1, len(losses) // 4)]
    return 1 - losses[-1] / max(min(before), 1e-30) if before else 0.0


def _cause(e: Evidence) -> tuple[str, str]:
    """Why the network learned little, to end the evidence with, and what to try; empty where that is not known."""
    lr = _optimizer(e).lr
    first, last = e.train_losses[0], e.train_losses[-1]
    if max(e.dead.values(), default=0.0) > MOST_DEAD or max(e.train_losses) > 2 * max(e.entropy, e.guess):
        return "; the learning rate is too high", f"Try {_lower_lr(e)}"
    if lr <= _default_lr(e) / 10 and (last > 0.5 * first or _falls(e)):
        return "; the learning rate is too low", f"Try {_raise_lr(e)}"
    if _is_linear(e):
        return "; without hidden layers, classes are separated by planes only", "Try --set 'model.hidden=[32]'"
    activation = getattr(e.config.model, "activation", None)
    if activation in SATURATING and _hidden_layers(e) >= 3:
        return f"; gradients vanish in {_hidden_layers(e)} layers of {activation}", "Try --set model.activation=relu"
    if getattr(e.config.model, "cell", None) == "rnn":
        return "; gradients vanish over the steps of a plain RNN", "Try --set model.cell=lstm"
    if lr >= 10 * _default_lr(e):
        return "; the learning rate is high", f"Try {_lower_lr(e)}"
    if len(e.history) == 1:
        return "; one epoch is little", f"Try {_more_epochs(e)}"
    if _recent_fall(e.train_losses) >= STEEP:
        return "; training loss still falls", f"Try {_more_epochs(e)}"
    return "", ""


def _is_linear(e: Evidence) -> bool:
    return e.config.model.name == "mlp" and not _hidden_layers(e)


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
