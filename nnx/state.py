"""All that training changes. Saved and loaded, it goes on as if it had never stopped.

Everything else is a function of the config and of (seed, epoch, step): order, augmentation, dropout, learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nnx.config import Config
from nnx.optim import OptimizerConfig
from nnx.runtime import Runtime, seed_step
from nnx.schedule import Horizon, Schedule


@dataclass
class State:
    """A network in training: its weights, its optimizers' moments, and how far it has come."""

    config: Config
    model: nn.Module
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler  # float16 only; else it does nothing
    average: AveragedModel | None  # moving average of the weights
    steps_per_epoch: int
    loss: Tensor  # sum over the samples of this epoch so far; stays on the device
    samples: int = 0  # of this epoch so far
    epoch: int = 0  # epochs done
    batch: int = 0  # steps done in the running epoch
    step: int = 0  # steps done in all
    history: list[dict[str, Any]] = field(default_factory=list)  # a record an epoch: metrics.jsonl without its times

    @classmethod
    def new(cls, config: Config, model: nn.Module, runtime: Runtime, steps_per_epoch: int) -> "State":
        """The state before the first step, on the runtime's device."""
        model = model.to(runtime.device)
        decay = config.train.ema
        return cls(
            config,
            model,
            cast(OptimizerConfig, config.optimizer).build(model),
            torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16),
            AveragedModel(model, multi_avg_fn=_moving_average(decay), use_buffers=True) if decay else None,
            steps_per_epoch,
            torch.zeros((), device=runtime.device),
        )

    @property
    def evaluated(self) -> nn.Module:
        """The network that is measured and kept: the moving average where there is one."""
        module: nn.Module = self.average.module if self.average else self.model
        return module

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        horizon = Horizon(self.steps_per_epoch, self.config.train.epochs, [record["val_loss"] for record in self.history])
        return self.peak_lr * cast(Schedule, self.config.schedule).factor(self.step, horizon)

    @property
    def peak_lr(self) -> float:
        """The config's learning rate, which the schedule scales."""
        return cast(OptimizerConfig, self.config.optimizer).lr

    def begin_step(self) -> None:
        """Set the learning rate and the seed of the next step."""
        lr = self.lr
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        seed_step(self.config.seed, self.step)

    def end_step(self, loss: Tensor, samples: int) -> None:
        """Count a step of `samples` samples with this mean `loss`."""
        self.loss += loss * samples
        self.samples += samples
        self.batch += 1
        self.step += 1

    def mean_loss(self) -> float:
        """Of the epoch so far. Waits for the device."""
        return float(self.loss) / max(self.samples, 1)

    def end_epoch(self) -> None:
        """Count an epoch; the next one's loss starts at zero."""
        self.epoch += 1
        self.batch = self.samples = 0
        self.loss.zero_()

    # ---------------------------------------------------------------- saving and going on

    COUNTERS = ("epoch", "batch", "step", "samples", "history")

    def counters(self) -> dict[str, Any]:
        """What is not a tensor, as plain values."""
        return {name: getattr(self, name) for name in self.COUNTERS}

    def tensors(self) -> dict[str, Any]:
        """What is, as nested dicts and lists of tensors and numbers."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "loss": self.loss,
        }

    def restore(self, counters: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Go on from what `counters` and `tensors` gave. Raises KeyError, RuntimeError or ValueError where they don't fit."""
        self.model.load_state_dict(tensors["model"])
        if self.average:
            self.average.load_state_dict(tensors["average"])
        for optimizer, saved in zip(self.optimizers, tensors["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(tensors["scaler"])
        self.loss.copy_(tensors["loss"])
        for name in self.COUNTERS:
            setattr(self, name, counters[name])


def _moving_average(decay: float) -> Callable[..., None]:
    """torch's exponential moving average, its decay rising to `decay` as (1 + n) / (10 + n), n updates in: else the first epochs are
    measured on what is mostly the initial weights (mnist_mlp: 87 % after an epoch, not 96). As in TensorFlow's ExponentialMovingAverage."""

    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, updates)  # type: ignore[no-untyped-call]

    return update
