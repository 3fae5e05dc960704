"""The inner loop: forward, loss, backward, update. Everything else in nnx exists to keep it on one screen."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from nnx.errors import DivergedError
from nnx.events import Step
from nnx.loader.batches import BatchLoader
from nnx.losses import Criterion
from nnx.system.device import Runtime
from nnx.training.state import GradientFunction, State, StepFunction


@dataclass(frozen=True)
class EpochEnd:
    """All batches of an epoch are done; validation comes next. `seconds` and `samples` are of this epoch's training."""

    train_loss: float
    lr: float
    seconds: float
    samples: int


def backpropagation(
    criterion: Criterion, runtime: Runtime, fuse: Callable[[Any], Any] = lambda loss: loss
) -> GradientFunction:
    """Forward, loss, backward, by torch's autograd. `fuse` may make a faster function of the forward pass (see
    nnx.training.step).

    A batch of `accumulate` x batch_size is taken in parts, whose gradients add up to that of its mean.
    """

    @fuse
    def forward(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with runtime.autocast():
            logits = model(inputs)
        return criterion(logits.float(), targets)

    def gradients(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        size, total = state.config.train.batch_size, state.loss.new_zeros(())
        for part, wanted in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
            loss = forward(state.model, part, wanted)
            if len(part) < len(inputs):
                loss = loss * (len(part) / len(inputs))
            state.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    return gradients


def train_step(gradients: GradientFunction) -> StepFunction:
    """A function that makes one step: gradients, then the weights move along them."""

    def step(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = gradients(state, inputs, targets)
        state.descend()
        return loss

    return step


def train(
    state: State,
    batches: BatchLoader,
    step: StepFunction,
    *,
    log_every: int = 50,
    pausing: Callable[[], bool] = lambda: False,
) -> Iterator[Step | EpochEnd]:
    """Train from wherever `state` stands to the config's last epoch, yielding a look every `log_every` steps and each
    epoch's end.

    Where `pausing()` is true, the step that has just ended is yielded too, so that the reader can save, or leave.
    Raises DivergedError within `log_every` steps of a loss or a weight that is infinite or NaN.
    """
    config = state.config
    while state.epoch < config.train.epochs:
        state.model.train()  # the reader of our events may have evaluated it
        begun, seen = time.perf_counter(), state.samples
        for inputs, targets in batches.epoch(state.epoch, config.train, config.seed, start=state.batch):
            state.begin_step()
            loss = step(state, inputs, targets)
            state.end_step(loss, len(inputs))
            del inputs, targets  # so that the next batch gets their memory, which is still in the processor's cache
            if state.step % log_every == 0 or pausing():
                yield _progress(
                    state, (state.samples - seen) / (time.perf_counter() - begun)
                )  # the one place that waits for the device
        look = _progress(state, 0)
        seconds, samples = time.perf_counter() - begun, state.samples - seen
        state.end_epoch()
        yield EpochEnd(look.loss, look.lr, seconds, samples)


def check_finite(value: float, name: str, state: State) -> None:
    """Raise DivergedError, saying where and what to do, if the loss or norm of this name is infinite or NaN."""
    if not math.isfinite(value):
        raise DivergedError(f"step {state.step}: the {name} is {value}. {state.cure}")


def _progress(state: State, samples_per_second: float) -> Step:
    loss = state.mean_loss()
    check_finite(loss, "training loss", state)
    check_finite(float(get_total_norm(state.model.parameters())), "norm of the weights", state)
    return Step(
        state.epoch, state.batch, state.step, loss, float(state.optimizers[0].param_groups[0]["lr"]), samples_per_second
    )
