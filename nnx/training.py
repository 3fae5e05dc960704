"""The inner loop. Forward, loss, backward, update: everything else in nnx exists so that this can stay on one screen."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.errors import DivergedError
from nnx.events import Step
from nnx.feed.resident import Resident
from nnx.losses import Criterion
from nnx.runtime import Runtime
from nnx.state import State

StepFunction = Callable[[State, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EpochEnd:
    """All batches of an epoch are done; validation comes next. `seconds` and `samples` are of this epoch's training."""

    train_loss: float
    lr: float
    seconds: float
    samples: int


def train_step(criterion: Criterion, runtime: Runtime) -> StepFunction:
    """A function that makes one step on one batch, (B, *shape) inputs and (B,) or (B, K) targets, and returns the batch's mean loss."""

    def step(state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        train, total = state.config.train, torch.zeros((), device=inputs.device)
        for part, wanted in zip(*(torch.split(whole, train.batch_size) for whole in (inputs, targets)), strict=True):
            with runtime.autocast():
                logits = state.model(part)
            loss = criterion(logits.float(), wanted) * (len(part) / len(inputs))
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if train.clip_grad_norm:
            for optimizer in state.optimizers:
                state.scaler.unscale_(optimizer)  # does nothing but for float16
            nn.utils.clip_grad_norm_(state.model.parameters(), train.clip_grad_norm)
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad()
        state.scaler.update()
        if state.average:
            state.average.update_parameters(state.model)
        return total

    return step


def train(
    state: State, batches: Resident, step: StepFunction, *, log_every: int = 50, stopping: Callable[[], bool] = lambda: False
) -> Iterator[Step | EpochEnd]:
    """Train from wherever `state` stands to the config's last epoch, yielding a look every `log_every` steps and each epoch's end.

    Once `stopping()` is true, the step that has just ended is yielded, so that the reader can save and leave.
    Raises DivergedError within `log_every` steps of a loss that is infinite or NaN.
    """
    config = state.config
    while state.epoch < config.train.epochs:
        state.model.train()  # the reader of our events may have evaluated it
        begun, seen = time.perf_counter(), state.samples
        for inputs, targets in batches.epoch(state.epoch, config.train, config.seed, start=state.batch):
            state.begin_step()
            loss = step(state, inputs, targets)
            state.end_step(loss, len(inputs))
            if state.step % log_every == 0 or stopping():
                yield _look(state, (state.samples - seen) / (time.perf_counter() - begun))  # the one place that waits for the device
        look = _look(state, 0)
        seconds, samples = time.perf_counter() - begun, state.samples - seen
        state.end_epoch()
        yield EpochEnd(look.loss, look.lr, seconds, samples)


def check_finite(loss: float, name: str, state: State) -> None:
    """Raise DivergedError, saying where and what to do, if the loss of this name is infinite or NaN."""
    if not math.isfinite(loss):
        cure = f"Lower optimizer.lr (now {state.peak_lr:g}), add schedule.warmup, or set train.clip_grad_norm: 1"
        raise DivergedError(f"step {state.step}: the {name} loss is {loss}. {cure}")


def _look(state: State, samples_per_second: float) -> Step:
    loss = state.mean_loss()
    check_finite(loss, "training", state)
    return Step(state.epoch, state.batch, state.step, loss, state.optimizers[0].param_groups[0]["lr"], samples_per_second)
