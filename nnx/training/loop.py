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
    """All batches of an epoch are done, and validation comes next. `seconds` and `samples` count its training."""

    train_loss: float
    lr: float
    seconds: float
    samples: int


def backpropagation(
    criterion: Criterion, runtime: Runtime, fuse: Callable[[Any], Any] = lambda loss: loss
) -> GradientFunction:
    """Forward, loss and backward by torch's autograd. `fuse` may wrap the forward pass in a faster one (see `step`).

    A batch of accumulate x batch_size samples is split into parts, whose gradients add up to that of its mean.
    """

    @fuse
    def forward(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with runtime.autocast():
            logits = model(inputs)
        return criterion(logits.float(), targets)

    def gradients(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        size = state.config.train.batch_size
        total = state.loss.new_zeros(())
        for x, y in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
            loss = forward(state.model, x, y)
            if len(x) < len(inputs):
                loss = loss * (len(x) / len(inputs))
            state.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    return gradients


def train_step(gradients: GradientFunction) -> StepFunction:
    """A function that makes one step: compute the gradients, then update the weights."""

    def step(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = gradients(state, inputs, targets)
        state.update_weights()
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
    """Train from where `state` is to the config's last epoch, yielding the progress every `log_every` steps and each
    epoch's end.

    Where `pausing()` is true, the step that just ended is yielded too, so that the caller can save, or stop. Raises
    DivergedError within `log_every` steps of a loss or a weight that is infinite or NaN.
    """
    config = state.config
    while state.epoch < config.train.epochs:
        state.model.train()  # the caller may have evaluated it
        begun = time.perf_counter()
        resumed_at = state.samples
        for inputs, targets in batches.epoch(state.epoch, config.train, config.seed, start=state.batch):
            state.begin_step()
            loss = step(state, inputs, targets)
            state.end_step(loss, len(inputs))
            del inputs, targets  # so that the next batch reuses their memory, still in the CPU's cache
            if state.step % log_every == 0 or pausing():
                speed = (state.samples - resumed_at) / (time.perf_counter() - begun)
                yield _progress(state, speed)  # the only place that waits for the device
        last = _progress(state, 0)
        seconds = time.perf_counter() - begun
        samples = state.samples - resumed_at
        state.end_epoch()
        yield EpochEnd(last.loss, last.lr, seconds, samples)


def check_finite(value: float, name: str, state: State) -> None:
    """Raise DivergedError, with the step and the cure, if the `value` called `name` is infinite or NaN."""
    if not math.isfinite(value):
        raise DivergedError(f"step {state.step}: the {name} is {value}. {state.cure}")


def _progress(state: State, samples_per_second: float) -> Step:
    loss = state.mean_loss()
    check_finite(loss, "training loss", state)
    check_finite(float(get_total_norm(state.model.parameters())), "norm of the weights", state)
    lr = float(state.optimizers[0].param_groups[0]["lr"])
    return Step(state.epoch, state.batch, state.step, loss, lr, samples_per_second)
