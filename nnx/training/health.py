"""How a training fares: dead ReLUs, gradients, how far a step moves the weights. What is off is said with its likely
cause and its cure.

    watch = Watch(state, job.loader(train.take(probe(len(train)))), job.criterion)
    step = watch.over(job.make_step())        # notes how far a few steps of each epoch move the weights
    yield watch.look()                   # a Health, at each epoch's end

Nothing here draws a random number or changes the network: a watched run has the bits of one that is not (tested).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import models
from nnx.events import Health
from nnx.loader.batches import BatchLoader
from nnx.losses import Criterion, probabilities
from nnx.training.state import State, StepFunction

FEWEST, MOST = 64, 256  # samples that are looked at, once an epoch: of MNIST's 55,000 it is 0.5 %
TOO_LONG, TOO_SHORT = (
    1e-1,
    1e-5,
)  # a step, of the length of the weights; 1e-3 is usual (Karpathy, CS231n, "ratio of weights:updates")
MOST_DEAD = 0.5  # of a layer's ReLUs
# the very first step, which is the longest of rmsprop and adagrad: 0.1 for digits_cnn at their own learning rates
FIRST_TOO_LONG = 3e-1
VANISHED = 1e-4  # the first layer's gradient, of the last layer's
EXPLODED = (
    1e3  # the gradient; that of cross-entropy in the logits is sqrt(2) at most, so that all else comes from the layers
)
# nats above ln K at the start: logits that deviate by 2 are as much above it, freshly drawn networks of nnx by 0.5
TOO_WRONG = 2.0
NORMALISED = 5.0  # root mean square of inputs, at most; it is 1 where they are normalised
RELUS = (nn.ReLU, nn.ReLU6)
SATURATING = ("sigmoid", "tanh", "softsign", "hardtanh", "hardsigmoid", "logsigmoid")


def probe_size(samples: int) -> NDArray[np.int64]:
    """Which of so many samples to look at: a hundredth of them, but 64 at least and 256 at most, evenly spread."""
    return np.linspace(0, samples - 1, min(samples, max(FEWEST, min(MOST, samples // 100)))).round().astype(np.int64)


class HealthMonitor:
    """Looks after a network in training. What it has warned of, it does not say again."""

    def __init__(self, state: State, samples: BatchLoader, criterion: Criterion) -> None:
        self.state, self.samples, self.criterion = state, samples, criterion
        self.layers = dict(_layers(state.model))
        self._steps: list[
            tuple[Tensor, float, float]
        ] = []  # since the last look: how long, how long they may be, learning rate
        self._too_long = False  # whether any step ever was
        self._said: set[str] = set()

    def over(self, step: StepFunction) -> StepFunction:
        """`step` itself, but that the first, the middle and the last of each epoch are measured: how far they move the
        weights."""
        weights = [weight for layer in self.layers.values() for weight in layer]

        def measured(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
            if state.batch not in (0, state.steps_per_epoch // 2, state.steps_per_epoch - 1):
                return step(state, inputs, targets)
            before = [weight.detach().clone() for weight in weights]
            loss = step(state, inputs, targets)
            with torch.no_grad():
                moved = _norm([weight - old for weight, old in zip(weights, before, strict=True)]) / _norm(
                    before
                ).clamp(min=1e-30)
            self._steps.append((moved, TOO_LONG if state.step else FIRST_TOO_LONG, state.lr))
            return loss

        return measured

    def look(self) -> Health:
        """How the network fares now, and on the steps since the last look."""
        inputs, labels = next(self.samples.in_order())
        model, was_training = self.state.model, self.state.model.training
        model.eval()  # no random numbers
        with (
            _dead_units(model) as dead,
            _own_statistics(model),
            _recurrent_gradients(inputs.device),
            torch.enable_grad(),
        ):
            logits = model(inputs).float()
            weights = [weight for layer in self.layers.values() for weight in layer]
            found = torch.autograd.grad(self.criterion(logits, labels), weights, allow_unused=True)
        model.train(was_training)
        gradients = iter(found)
        norms = {
            name: float(_norm([g for g in (next(gradients) for _ in layer) if g is not None]))
            for name, layer in self.layers.items()
        }
        p = probabilities(logits.detach()).gather(1, labels[:, None])
        steps, self._steps = [(float(moved), limit, lr) for moved, limit, lr in self._steps], []
        health = Health(
            epoch=self.state.epoch,
            samples=len(labels),
            loss=float(-p.clamp(min=1e-30).log().mean()),
            guess=math.log(self.samples.classes),
            dead={name: float(share) for name, share in dead.items()},
            gradients=norms,
            update=max((moved for moved, _, _ in steps), default=None),
            warnings=(),
        )
        self._too_long |= any(moved > limit for moved, limit, _ in steps)
        fast = max((lr for _, _, lr in steps), default=0.0) > self.state.peak_lr / 10
        spread = {"inputs": float(inputs.square().mean().sqrt()), "logits": float(logits.detach().std(correction=0))}
        warned = dict(_judge(health, self.state, fast=fast, too_long=self._too_long, spread=spread))
        new = tuple(text for kind, text in warned.items() if kind not in self._said)
        self._said |= warned.keys()
        return replace(health, warnings=new)


# ---------------------------------------------------------------- what is off


def _judge(
    health: Health, state: State, *, fast: bool, too_long: bool, spread: dict[str, float]
) -> Iterator[tuple[str, str]]:
    """What is off, by kind, each in a sentence with its likely cause and cure. A cause is named before what it brings
    about.

    `fast`: whether a step was measured near the full learning rate, not where a schedule has it low. `too_long`:
    whether any step of the run was.
    """
    rate, when = (
        f"optimizer.lr (now {state.peak_lr:g})",
        f"epoch {health.epoch}" if health.epoch else "before the first step",
    )
    if state.step == 0 and not health.loss <= health.guess + TOO_WRONG:
        guess = f"where a guess has ln {round(math.exp(health.guess))} = {health.guess:.3g}"
        yield "start", f"{when}: the loss is {health.loss:.3g}, {guess}: {_loud(spread)}"
    if too_long and health.update is not None:
        far = f"{when}: a step moved the weights by {health.update:.2g} of their length, where 0.001 or so is usual"
        slowly = ", or add schedule.warmup: 1" if getattr(state.config.schedule, "warmup", 1) == 0 else ""
        yield "long", f"{far}: the learning rate is too high; lower {rate}{slowly}"
    dead = {name: share for name, share in health.dead.items() if share > MOST_DEAD}
    hardly = health.update is not None and health.update < TOO_SHORT and not (too_long or dead)
    if hardly and fast and health.loss > health.guess / 2:
        far = f"{when}: no step moved the weights by more than {health.update:.1g} of their length, where 0.001 or so is usual"
        yield "short", f"{far}, and the loss is still {health.loss:.3g}: the learning rate is too low; raise {rate}"
    again = f"steps were too long: begin anew with a lower {rate}"
    if dead:
        name, others = max(dead, key=dead.__getitem__), f" (and most of {len(dead) - 1} more)" if len(dead) > 1 else ""
        lost = f"{when}: {dead[name]:.0%} of the ReLUs of {name}{others} are dead, 0 for each of {health.samples} samples, and can't learn"
        begun = "they begin so; draw weights of both signs, and begin biases at 0"
        usual = f"lower {rate}, or set model.activation: leaky_relu"
        yield "dead", f"{lost}; {begun if state.step == 0 else again if too_long else usual}".replace("%", " %")
    first, *_, last = [*health.gradients.values()] * 2 or [0.0, 0.0]
    if not dead and first < VANISHED * last:
        small = f"{when}: the gradient of the first layer ({first:.1g}) is {first / last:.0e} of the last layer's: it vanishes on the way"
        yield "vanishing", f"{small}, and the first layers hardly learn; {again if too_long else _open(state, health)}"
    everything = math.hypot(*health.gradients.values())
    if not everything <= EXPLODED:
        clip = "" if state.config.train.clip_grad_norm else "set train.clip_grad_norm: 1, or "
        yield (
            "exploding",
            f"{when}: the gradient has the norm {everything:.2g}: it explodes; {again if too_long else f'{clip}lower {rate}'}",
        )


def _loud(spread: dict[str, float]) -> str:
    """Why logits are large before any training, and what to do."""
    if not spread["inputs"] <= NORMALISED:
        return f"inputs are not normalised, their size is {spread['inputs']:.3g} (root mean square), not 1; look for outliers, or a wrong mean"
    return f"the weights begin too large, logits deviate by {spread['logits']:.3g}, not by 1 or less; draw smaller ones in the model"


def _open(state: State, health: Health) -> str:
    """What lets gradients through, of what this architecture has."""
    model = state.config.model
    kind, norm, cell = (getattr(model, key, None) for key in ("activation", "norm", "cell"))
    cures = [f"model.activation: relu instead of {kind}"] if kind in SATURATING else []
    cures += [f"model.norm: {'batch' if hasattr(model, 'channels') else 'layer'}"] if norm == "none" else []
    cures += ["model.cell: lstm"] if cell == "rnn" else []
    return f"set {', or '.join(cures)}" if cures else f"use fewer of the {len(health.gradients)} layers"


# ---------------------------------------------------------------- what is measured


def _layers(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """The layers that weigh their inputs, first to last, each with its matrices and filters; biases, norms and
    positions left aside."""
    for name, module in model.named_modules():
        weights = [p for p in module.parameters(recurse=False) if p.ndim > 1 and p.requires_grad]
        if name and weights:
            yield name, weights


def _norm(tensors: list[Tensor]) -> Tensor:
    """Of all their numbers together."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm() if tensors else torch.zeros(())


@contextmanager
def _dead_units(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, notes of each layer of ReLUs what share of its units is 0 for all samples, at all places of its map."""
    dead: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            units = (
                output.detach().transpose(0, 1) if output.ndim in (2, 4) else output.detach().movedim(-1, 0)
            )  # maps have theirs second
            dead[name] = (units.flatten(1) == 0).all(1).float().mean()

        return hook

    relus = ((name, module) for name, module in model.named_modules() if isinstance(module, RELUS))
    with models.registered_hooks(module.register_forward_hook(note(name)) for name, module in relus):
        yield dead


@contextmanager
def _own_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm takes the batch's mean and variance, as in training, and leaves what it keeps alone: before
    any training that says nothing, and the loss of digits_cnn would be 5.2 instead of 2.9."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(module._buffers, module._buffers["running_mean"], module._buffers["running_var"]) for module in norms]
    for buffers, _, _ in kept:
        buffers["running_mean"] = buffers["running_var"] = None
    try:
        yield
    finally:
        for buffers, mean, var in kept:
            buffers["running_mean"], buffers["running_var"] = mean, var


def _recurrent_gradients(device: torch.device) -> AbstractContextManager[object]:
    """cuDNN has no gradients of recurrent layers in evaluation; torch's own kernels have."""
    return torch.backends.cudnn.flags(enabled=False) if device.type == "cuda" else nullcontext()
