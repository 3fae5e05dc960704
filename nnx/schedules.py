"""Learning-rate schedules: pure functions of the step, so that a resumed run needs only the step.

    lr = optimizer.lr * config.schedule.factor(step, Horizon(steps_per_epoch, epochs, val_losses))

Each schedule equals the one of the same name in torch.optim.lr_scheduler (tested) after `warmup` epochs of linear
warm-up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from nnx.config.registry import Component

Warmup = Annotated[float, Field(ge=0, le=10_000, description="epochs of linear warm-up from zero; fractions allowed")]
Floor = Annotated[float, Field(ge=0, le=1, description="final learning rate, as a fraction of lr")]


@dataclass(frozen=True)
class Horizon:
    """The length of the run and the validation losses of the epochs so far."""

    steps_per_epoch: int
    epochs: int
    val_losses: Sequence[float] = ()

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs


class Constant(Component):
    """Constant learning rate."""

    name: Literal["constant"] = "constant"
    warmup: Warmup = 0

    def factor(self, step: int, horizon: Horizon) -> float:
        return _warm_up(step, self.warmup * horizon.steps_per_epoch)


class Cosine(Component):
    """Cosine decay from the learning rate to `end` (Loshchilov & Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"
    warmup: Warmup = 0
    end: Floor = 0

    def factor(self, step: int, horizon: Horizon) -> float:
        warm_up = self.warmup * horizon.steps_per_epoch
        return (
            _warm_up(step, warm_up) if step < warm_up else _cosine(1, self.end, _progress(step, warm_up, horizon.steps))
        )


class Linear(Component):
    """Linear decay from the learning rate to `end`."""

    name: Literal["linear"] = "linear"
    warmup: Warmup = 0
    end: Floor = 0

    def factor(self, step: int, horizon: Horizon) -> float:
        warm_up = self.warmup * horizon.steps_per_epoch
        return (
            _warm_up(step, warm_up) if step < warm_up else 1 + (self.end - 1) * _progress(step, warm_up, horizon.steps)
        )


class OneCycle(Component):
    """Cosine rise to the learning rate, then cosine decay to almost zero (Smith & Topin 2018).

    Momentum stays constant.
    """

    name: Literal["one_cycle"] = "one_cycle"
    peak: float = Field(0.3, gt=0, lt=1, description="fraction of the run at which the learning rate peaks")
    start: float = Field(0.04, gt=0, le=1, description="initial learning rate, as a fraction of lr")
    end: float = Field(4e-6, ge=0, le=1, description="final learning rate, as a fraction of lr")

    def factor(self, step: int, horizon: Horizon) -> float:
        top, last = self.peak * horizon.steps - 1, horizon.steps - 1
        if step <= top:
            return _cosine(self.start, 1, step / top if top > 0 else 1)
        return _cosine(1, self.end, (step - top) / max(last - top, 1))


class StepDecay(Component):
    """Multiply the learning rate by `gamma` every `every` epochs."""

    name: Literal["step"] = "step"
    warmup: Warmup = 0
    every: int = Field(10, ge=1, le=100_000, description="epochs between two reductions")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each reduction")

    def factor(self, step: int, horizon: Horizon) -> float:
        reductions = step // horizon.steps_per_epoch // self.every
        return _warm_up(step, self.warmup * horizon.steps_per_epoch) * self.gamma**reductions


class Plateau(Component):
    """Multiply the learning rate by `gamma` after more than `patience` epochs without a better validation loss."""

    name: Literal["plateau"] = "plateau"
    warmup: Warmup = 0
    patience: int = Field(3, ge=0, le=100_000, description="epochs without improvement before a reduction")
    gamma: float = Field(0.1, gt=0, lt=1, description="factor of each reduction")
    threshold: float = Field(1e-4, ge=0, lt=1, description="minimum relative improvement of the validation loss")

    def factor(self, step: int, horizon: Horizon) -> float:
        best = math.inf
        bad_epochs = 0
        reductions = 0
        for loss in horizon.val_losses:  # recomputed from the start, so that there is no state to save
            improved = loss < best * (1 - self.threshold)
            best, bad_epochs = (loss, 0) if improved else (best, bad_epochs + 1)
            if bad_epochs > self.patience:
                reductions += 1
                bad_epochs = 0
        return _warm_up(step, self.warmup * horizon.steps_per_epoch) * self.gamma**reductions


Schedule = Constant | Cosine | Linear | OneCycle | StepDecay | Plateau


def _warm_up(step: int, steps: float) -> float:
    """Linear warm-up: (step + 1) / steps, at most 1. `step` counts from 0, so the first step is not zero."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def _progress(step: int, begin: float, end: float) -> float:
    """The position of `step` between `begin` and `end`, from 0 to 1; it stays at 1 after `end`."""
    return min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` to `end`, at `progress` from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
