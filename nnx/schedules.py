"""How the learning rate moves: pure functions of the step, so that a resume needs nothing but the step.

    lr = optimizer.lr * config.schedule.factor(step, Horizon(steps_per_epoch, epochs, val_losses))

Each schedule agrees with torch.optim.lr_scheduler's of the same name (tested), and starts with `warmup` epochs of
linear rise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from nnx.config.registry import Component

Warmup = Annotated[float, Field(ge=0, le=10_000, description="epochs, or part of one, of linear rise from zero")]
Floor = Annotated[float, Field(ge=0, le=1, description="fraction of the learning rate to end at")]


@dataclass(frozen=True)
class Horizon:
    """What a schedule may know: the length of the run and the validation losses of the epochs so far."""

    steps_per_epoch: int
    epochs: int
    val_losses: Sequence[float] = ()

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs


class Constant(Component):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"
    warmup: Warmup = 0

    def factor(self, step: int, horizon: Horizon) -> float:
        return _rise(step, self.warmup * horizon.steps_per_epoch)


class Cosine(Component):
    """Half a cosine from the learning rate down to `end` (Loshchilov & Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"
    warmup: Warmup = 0
    end: Floor = 0

    def factor(self, step: int, horizon: Horizon) -> float:
        rise = self.warmup * horizon.steps_per_epoch
        return _rise(step, rise) if step < rise else _cosine(1, self.end, _progress(step, rise, horizon.steps))


class Linear(Component):
    """A straight line from the learning rate down to `end`."""

    name: Literal["linear"] = "linear"
    warmup: Warmup = 0
    end: Floor = 0

    def factor(self, step: int, horizon: Horizon) -> float:
        rise = self.warmup * horizon.steps_per_epoch
        return _rise(step, rise) if step < rise else 1 + (self.end - 1) * _progress(step, rise, horizon.steps)


class OneCycle(Component):
    """Up to the learning rate and down to almost nothing, both by half a cosine (Smith & Topin 2018); momentum is left
    alone."""

    name: Literal["one_cycle"] = "one_cycle"
    peak: float = Field(0.3, gt=0, lt=1, description="fraction of the run at which the learning rate is reached")
    start: float = Field(0.04, gt=0, le=1, description="fraction of the learning rate to start at")
    end: float = Field(4e-6, ge=0, le=1, description="fraction of the learning rate to end at")

    def factor(self, step: int, horizon: Horizon) -> float:
        top, last = self.peak * horizon.steps - 1, horizon.steps - 1
        if step <= top:
            return _cosine(self.start, 1, step / top if top > 0 else 1)
        return _cosine(1, self.end, (step - top) / max(last - top, 1))


class StepDecay(Component):
    """Multiply by `gamma` every `every` epochs."""

    name: Literal["step"] = "step"
    warmup: Warmup = 0
    every: int = Field(10, ge=1, le=100_000, description="epochs between two drops")
    gamma: float = Field(0.1, gt=0, le=1, description="what each drop multiplies by")

    def factor(self, step: int, horizon: Horizon) -> float:
        drops = step // horizon.steps_per_epoch // self.every
        return _rise(step, self.warmup * horizon.steps_per_epoch) * self.gamma**drops


class Plateau(Component):
    """Multiply by `gamma` whenever the validation loss has not improved for more than `patience` epochs."""

    name: Literal["plateau"] = "plateau"
    warmup: Warmup = 0
    patience: int = Field(3, ge=0, le=100_000, description="epochs without improvement that are borne")
    gamma: float = Field(0.1, gt=0, lt=1, description="what each drop multiplies by")
    threshold: float = Field(1e-4, ge=0, lt=1, description="relative improvement that counts")

    def factor(self, step: int, horizon: Horizon) -> float:
        best, bad, drops = math.inf, 0, 0
        for loss in horizon.val_losses:  # replayed rather than kept: then there is no state to save
            improved = loss < best * (1 - self.threshold)
            best, bad = (loss, 0) if improved else (best, bad + 1)
            if bad > self.patience:
                drops, bad = drops + 1, 0
        return _rise(step, self.warmup * horizon.steps_per_epoch) * self.gamma**drops


Schedule = Constant | Cosine | Linear | OneCycle | StepDecay | Plateau


def _rise(step: int, steps: float) -> float:
    """Linear warm-up: (step + 1) / steps, at most 1; step counts from 0, so the very first step already moves."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def _progress(step: int, begin: float, end: float) -> float:
    """How far `step` is from `begin` to `end`, from 0 to 1; a run that goes on past its end stays at 1."""
    return min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
