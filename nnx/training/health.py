"""Health checks of a network in training: dead ReLUs, gradients, and how far a step moves the weights.

    monitor = HealthMonitor(state, setup.loader(train.take(probe_size(len(train)))), setup.criterion)
    step = monitor.wrap(setup.make_step())    # measures the weight change of a few steps in each epoch
    yield monitor.check()                     # a Health event, at the end of each epoch

Each warning names the problem, the evidence and the cure. The checks draw no random number and change nothing in the
network: a run has the same bits with and without them (tested).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import models
from nnx.events import Health
from nnx.loader.batches import BatchLoader
from nnx.losses import Criterion, probabilities
from nnx.system import accelerator
from nnx.training.state import State, StepFunction

FEWEST, MOST = 64, 256  # samples in a check, once an epoch; 256 are 0.5 % of MNIST's 55,000
# Length of a step relative to the norm of the weights; 1e-3 is typical (Karpathy, CS231n, "ratio of weights:updates")
TOO_LONG, TOO_SHORT = 1e-1, 1e-5
# The very first step is the longest with rmsprop and adagrad: 0.1 for digits_cnn at their default learning rates
FIRST_TOO_LONG = 3e-1
MOST_DEAD = 0.5  # fraction of a layer's ReLUs
VANISHED = 1e-4  # gradient of the first layer, relative to the last layer
# Norm of the gradient. That of cross-entropy in the logits is at most sqrt(2), so anything beyond comes from the layers
EXPLODED = 1e3
# Nats of initial loss above ln K: logits with a standard deviation of 2 give that much, nnx's initial networks 0.5
TOO_WRONG = 2.0
NORMALISED = 5.0  # largest root mean square of the inputs; it is 1 for normalised inputs
RELUS = (nn.ReLU, nn.ReLU6)
SATURATING = ("sigmoid", "tanh", "softsign", "hardtanh", "hardsigmoid", "logsigmoid")


def probe_size(samples: int) -> NDArray[np.int64]:
    """The indices of the samples to check, evenly spread: 1 % of `samples`, but at least 64 and at most 256."""
    return np.linspace(0, samples - 1, min(samples, max(FEWEST, min(MOST, samples // 100)))).round().astype(np.int64)


class HealthMonitor:
    """Checks a network in training. It gives each warning once."""

    def __init__(self, state: State, samples: BatchLoader, criterion: Criterion) -> None:
        self.state = state
        self.samples = samples
        self.criterion = criterion
        self.layers = dict(_layers(state.model))
        # Steps since the last check: |change of all weights| / |all weights|, its limit, and the learning rate
        self._steps: list[tuple[Tensor, float, float]] = []
        self._too_long = False  # whether any step of the run was
        self._warned: set[str] = set()

    def wrap(self, step: StepFunction) -> StepFunction:
        """`step`, which also measures how far the first, middle and last step of each epoch move the weights."""
        weights = [weight for layer in self.layers.values() for weight in layer]

        def measured(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
            if state.batch not in (0, state.steps_per_epoch // 2, state.steps_per_epoch - 1):
                return step(state, inputs, targets)
            before = [weight.detach().clone() for weight in weights]
            loss = step(state, inputs, targets)
            with torch.no_grad():
                difference = [weight - old for weight, old in zip(weights, before, strict=True)]
                change = _norm(difference) / _norm(before).clamp(min=1e-30)
            self._steps.append((change, TOO_LONG if state.step else FIRST_TOO_LONG, state.lr))
            return loss

        return measured

    def check(self) -> Health:
        """Check the present network, and the steps since the last check."""
        inputs, labels = next(self.samples.in_order())
        dead: dict[str, Tensor] = {}
        logits, gradients = self._backpropagate(inputs, labels, dead)
        p = probabilities(logits).gather(1, labels[:, None])
        steps = [(float(change), limit, lr) for change, limit, lr in self._steps]
        self._steps = []
        health = Health(
            epoch=self.state.epoch,
            samples=len(labels),
            loss=float(-p.clamp(min=1e-30).log().mean()),
            guess=math.log(self.samples.classes),
            dead={name: float(fraction) for name, fraction in dead.items()},
            gradients=gradients,
            update=max((change for change, _, _ in steps), default=None),
            warnings=(),
        )
        self._too_long |= any(change > limit for change, limit, _ in steps)
        diagnosis = _Diagnosis(
            health,
            self.state,
            is_full_lr=max((lr for _, _, lr in steps), default=0.0) > self.state.peak_lr / 10,
            too_long=self._too_long,
            input_rms=float(inputs.square().mean().sqrt()),
            logit_std=float(logits.std(correction=0)),
        )
        warnings = dict(diagnosis.warnings())
        new = tuple(text for kind, text in warnings.items() if kind not in self._warned)
        self._warned |= warnings.keys()
        return replace(health, warnings=new)

    def _backpropagate(
        self, inputs: Tensor, labels: Tensor, dead: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """The logits, and the norm of each layer's gradient. Stores each layer's fraction of dead ReLUs in `dead`."""
        model = self.state.model
        was_training = model.training
        model.eval()  # no random numbers
        with (
            _record_dead_units(model, dead),
            _batch_statistics(model),
            accelerator.differentiable_rnn(inputs.device),
            torch.enable_grad(),
        ):
            logits = model(inputs).float()
            weights = [weight for layer in self.layers.values() for weight in layer]
            gradients = iter(torch.autograd.grad(self.criterion(logits, labels), weights, allow_unused=True))
        model.train(was_training)
        norms = {
            name: float(_norm([g for g in (next(gradients) for _ in layer) if g is not None]))
            for name, layer in self.layers.items()
        }
        return logits.detach(), norms


# ---------------------------------------------------------------- warnings


@dataclass(frozen=True)
class _Diagnosis:
    """The evidence of one check, and the warnings that follow from it."""

    health: Health
    state: State
    is_full_lr: bool  # whether a step was measured near the full learning rate, not where a schedule has lowered it
    too_long: bool  # whether any step of the run was
    input_rms: float  # root mean square of the inputs
    logit_std: float

    def warnings(self) -> Iterator[tuple[str, str]]:
        """(kind, text) of each problem, with its evidence and cure. A cause comes before its consequences."""
        yield from self._initial_loss()
        yield from self._step_length()
        yield from self._dead_relus()
        yield from self._vanishing_gradients()
        yield from self._exploding_gradients()

    @property
    def _when(self) -> str:
        return f"epoch {self.health.epoch}" if self.health.epoch else "before the first step"

    @property
    def _lr(self) -> str:
        return f"optimizer.lr (now {self.state.peak_lr:g})"

    @property
    def _restart(self) -> str:
        return f"The steps were too long: start again with a lower {self._lr}"

    @property
    def _dead(self) -> dict[str, float]:
        """The layers with too many dead ReLUs."""
        return {name: fraction for name, fraction in self.health.dead.items() if fraction > MOST_DEAD}

    def _initial_loss(self) -> Iterator[tuple[str, str]]:
        health = self.health
        if self.state.step or health.loss <= health.guess + TOO_WRONG:
            return
        chance = f"random guessing gives ln {round(math.exp(health.guess))} = {health.guess:.3g}"
        if not self.input_rms <= NORMALISED:
            cause = (
                f"The inputs are not normalised: their root mean square is {self.input_rms:.3g}, not 1. "
                "Check for outliers or a wrong mean"
            )
        else:
            cause = (
                f"The initial weights are too large: the logits have a standard deviation of {self.logit_std:.3g}, "
                "more than 1. Initialise the model with smaller weights"
            )
        yield "start", f"{self._when}: the loss is {health.loss:.3g}, but {chance}. {cause}"

    def _step_length(self) -> Iterator[tuple[str, str]]:
        health = self.health
        if health.update is None:
            return
        typical = "times their norm (typical: 0.001)"
        if self.too_long:
            has_no_warmup = getattr(self.state.config.schedule, "warmup", 1) == 0
            warmup = ", or add schedule.warmup: 1" if has_no_warmup else ""
            yield (
                "long",
                f"{self._when}: learning rate too high: a step changed the weights by {health.update:.2g} {typical}. "
                f"Lower {self._lr}{warmup}",
            )
        elif health.update < TOO_SHORT and not self._dead and self.is_full_lr and health.loss > health.guess / 2:
            yield (
                "short",
                f"{self._when}: learning rate too low: no step changed the weights by more than {health.update:.1g} "
                f"{typical}, and the loss is still {health.loss:.3g}. Raise {self._lr}",
            )

    def _dead_relus(self) -> Iterator[tuple[str, str]]:
        dead = self._dead
        if not dead:
            return
        worst = max(dead, key=dead.__getitem__)
        others = f" (and most of those of {len(dead) - 1} more)" if len(dead) > 1 else ""
        if self.state.step == 0:
            cure = "They are dead from the start: initialise weights with both signs, and biases with 0"
        elif self.too_long:
            cure = self._restart
        else:
            cure = f"Lower {self._lr}, or set model.activation: leaky_relu"
        yield (
            "dead",
            f"{self._when}: dead ReLUs: {100 * dead[worst]:.0f} % of the units of {worst}{others} output 0 for all "
            f"{self.health.samples} samples, so they get no gradient. {cure}",
        )

    def _vanishing_gradients(self) -> Iterator[tuple[str, str]]:
        norms = list(self.health.gradients.values()) or [0.0]
        first, last = norms[0], norms[-1]
        if self._dead or not first < VANISHED * last:
            return
        cure = self._restart if self.too_long else _gradient_cure(self.state, self.health)
        yield (
            "vanishing",
            f"{self._when}: vanishing gradients: the gradient of the first layer ({first:.1g}) is {first / last:.0e} "
            f"times that of the last layer, so the first layers hardly learn. {cure}",
        )

    def _exploding_gradients(self) -> Iterator[tuple[str, str]]:
        norm = math.hypot(*self.health.gradients.values())
        if norm <= EXPLODED:
            return
        if self.too_long:
            cure = self._restart
        elif self.state.config.train.clip_grad_norm:
            cure = f"Lower {self._lr}"
        else:
            cure = f"Set train.clip_grad_norm: 1, or lower {self._lr}"
        yield "exploding", f"{self._when}: exploding gradients: the norm of the gradient is {norm:.2g}. {cure}"


def _gradient_cure(state: State, health: Health) -> str:
    """The settings of this architecture that keep gradients from vanishing."""
    model = state.config.model
    activation, norm, cell = (getattr(model, key, None) for key in ("activation", "norm", "cell"))
    cures = [f"model.activation: relu instead of {activation}"] if activation in SATURATING else []
    cures += [f"model.norm: {'batch' if hasattr(model, 'channels') else 'layer'}"] if norm == "none" else []
    cures += ["model.cell: lstm"] if cell == "rnn" else []
    return f"Set {', or '.join(cures)}" if cures else f"Use fewer than {len(health.gradients)} layers"


# ---------------------------------------------------------------- measurements


@torch.no_grad()
def dead_units(model: nn.Module, samples: BatchLoader) -> dict[str, float]:
    """Each ReLU layer's fraction of units that are 0 for all `samples`, in evaluation mode; the mode is restored."""
    inputs, _ = next(samples.in_order())
    dead: dict[str, Tensor] = {}
    was_training = model.training
    with _record_dead_units(model.eval(), dead):
        model(inputs)
    model.train(was_training)
    return {name: float(fraction) for name, fraction in dead.items()}


def _layers(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """The layers with weight matrices or filters, first to last, without biases, norms and positions."""
    for name, module in model.named_modules():
        weights = [p for p in module.parameters(recurse=False) if p.ndim > 1 and p.requires_grad]
        if name and weights:
            yield name, weights


def _norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all numbers of the tensors together."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm() if tensors else torch.zeros(())


@contextmanager
def _record_dead_units(model: nn.Module, dead: dict[str, Tensor]) -> Iterator[None]:
    """Inside, store in `dead`, by layer of ReLUs, the fraction of units that are 0 for all samples and positions."""

    def make_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            unit_axis = 1 if output.ndim in (2, 4) else -1  # rows and feature maps: 1; sequences: last
            units = output.detach().movedim(unit_axis, 0)
            dead[name] = (units.flatten(1) == 0).all(1).float().mean()

        return hook

    relus = ((name, module) for name, module in model.named_modules() if isinstance(module, RELUS))
    with models.registered_hooks(module.register_forward_hook(make_hook(name)) for name, module in relus):
        yield


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm uses the batch's mean and variance, as in training, and leaves its running ones unchanged.

    Before training the running ones mean nothing: the loss of digits_cnn would be 5.2 instead of 2.9.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    running = [(module._buffers, module._buffers["running_mean"], module._buffers["running_var"]) for module in norms]
    for buffers, _, _ in running:
        buffers["running_mean"] = buffers["running_var"] = None
    try:
        yield
    finally:
        for buffers, mean, var in running:
            buffers["running_mean"] = mean
            buffers["running_var"] = var
