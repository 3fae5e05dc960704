"""All that training changes. Saved and loaded, it goes on as if it had never stopped.

Everything else is a function of the config and of (seed, epoch, step): order, augmentation, dropout, learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from nnx.checkpoint.schema import COUNTERS, MAX_RECORDED_LOSSES
from nnx.config import Config
from nnx.errors import DivergedError
from nnx.optimizers import OptimizerConfig, fast_step
from nnx.schedules import Horizon, Schedule
from nnx.system.device import Runtime, seed_step

GradientFunction = Callable[["State", Tensor, Tensor], Tensor]
"""On one batch, (B, *shape) inputs and (B,) or (B, K) targets: leaves the mean loss's gradient in each parameter and
returns the loss."""

StepFunction = Callable[["State", Tensor, Tensor], Tensor]
"""Makes one step on such a batch and returns its mean loss."""


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
    losses: Tensor  # of each of the first steps, for `nnx verify`: (RECORDED,), of which `recorded` are there
    samples: int = 0  # of this epoch so far
    epoch: int = 0  # epochs done
    batch: int = 0  # steps done in the running epoch
    step: int = 0  # steps done in all
    recorded: int = 0
    recording: bool = True  # no longer where a resume has changed train.epochs, on which a schedule counts
    history: list[dict[str, Any]] = field(default_factory=list)  # a record an epoch: metrics.jsonl without its times

    @classmethod
    def new(cls, config: Config, model: nn.Module, runtime: Runtime, steps_per_epoch: int) -> "State":
        """The state before the first step, on the runtime's device."""
        model = runtime.place(model)
        decay = config.train.ema
        return cls(
            config,
            model,
            cast(OptimizerConfig, config.optimizer).build(model),
            torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16),
            AveragedModel(model, use_buffers=True) if decay else None,
            steps_per_epoch,
            torch.zeros((), device=runtime.device),
            torch.zeros(MAX_RECORDED_LOSSES, device=runtime.device),
        )

    @property
    def evaluated(self) -> nn.Module:
        """The network that is measured and kept: the moving average where there is one."""
        module: nn.Module = self.average.module if self.average else self.model
        return module

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the first of the epochs with the highest validation accuracy and, among those, the lowest
        loss."""
        return (
            min(self.history, key=lambda record: (-record["val_accuracy"], record["val_loss"]))
            if self.history
            else None
        )

    @property
    def over(self) -> str | None:
        """Why training ends before its last epoch, if it does."""
        patience = self.config.train.patience
        if patience is None or self.best is None or (since := self.epoch - self.best["epoch"]) < patience:
            return None
        return f"no better validation accuracy for {since} epochs"

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        horizon = Horizon(
            self.steps_per_epoch, self.config.train.epochs, [record["val_loss"] for record in self.history]
        )
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
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)  # in place: a CUDA graph reads it there
                else:
                    group["lr"] = lr
        seed_step(self.config.seed, self.step, self.loss.device)

    def descend(self) -> None:
        """Move the weights along the gradients, which are gone then."""
        if limit := self.config.train.clip_grad_norm:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)  # does nothing but for float16
            nn.utils.clip_grad_norm_(self._parameters, limit)
        for optimizer, descend in zip(self.optimizers, self._descents, strict=True):
            if self.scaler.is_enabled():
                self.scaler.step(optimizer)
            else:
                descend()
        self.scaler.update()
        for parameter in self._parameters:
            parameter.grad = None

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @cached_property
    def _descents(self) -> list[Callable[[], None]]:
        return [fast_step(optimizer) for optimizer in self.optimizers]

    @torch.no_grad()
    def _move_average(self, average: AveragedModel) -> None:
        """averaged += (1 - decay) * (current - averaged), the decay rising to train.ema as (1 + n) / (10 + n), n steps
        in: else the first epochs are measured on what is mostly the initial weights (mnist_mlp: 87 % after an epoch,
        not 96). As in TensorFlow's ExponentialMovingAverage. AveragedModel's own update pairs the tensors anew each
        time, and waits for the device."""
        decay = min(cast(float, self.config.train.ema), (1 + self.step) / (10 + self.step)) if self.step else 0.0
        (averaged, current), counters = self._averaged
        _lerp(averaged, current, 1 - decay)
        for kept, counter in counters:
            kept.copy_(counter)
        average.n_averaged += 1

    @cached_property
    def _averaged(self) -> tuple[tuple[list[Tensor], list[Tensor]], list[tuple[Tensor, Tensor]]]:
        """(averaged, current) tensors, and pairs of those that only count."""
        both = [[*module.parameters(), *module.buffers()] for module in (self.evaluated, self.model)]
        pairs = [(averaged.detach(), current.detach()) for averaged, current in zip(*both, strict=True)]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        return ([a for a, _ in floating], [c for _, c in floating]), [
            pair for pair in pairs if not pair[0].is_floating_point()
        ]

    def end_step(self, loss: Tensor, samples: int) -> None:
        """Count a step of `samples` samples with this mean `loss`; the moving average follows the weights."""
        if self.average:
            self._move_average(self.average)
        self.loss.add_(loss, alpha=samples)
        if self.recording and self.step == self.recorded < MAX_RECORDED_LOSSES:
            self.losses[self.step] = loss
            self.recorded += 1
        self.samples += samples
        self.batch += 1
        self.step += 1

    def check_finite(self) -> None:
        """Raise DivergedError where a weight, a moment or an average is infinite or NaN: such a state is not worth
        keeping."""
        modules = [self.model, *([self.average] if self.average else [])]
        moments = [
            value for optimizer in self.optimizers for kept in optimizer.state.values() for value in kept.values()
        ]
        for tensor in (*(value for module in modules for value in module.state_dict().values()), *moments):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise DivergedError(f"step {self.step}: weights or moments became infinite or NaN. {self.cure}")

    @property
    def cure(self) -> str:
        """What to do about a training that diverges."""
        return f"Lower optimizer.lr (now {self.peak_lr:g}), add schedule.warmup, or set train.clip_grad_norm: 1"

    def mean_loss(self) -> float:
        """Of the epoch so far. Waits for the device."""
        return float(self.loss) / max(self.samples, 1)

    def end_epoch(self) -> None:
        """Count an epoch; the next one's loss starts at zero."""
        self.epoch += 1
        self.batch = self.samples = 0
        self.loss.zero_()

    # ---------------------------------------------------------------- saving and going on

    def counters(self) -> dict[str, Any]:
        """What is not a tensor, as plain values."""
        return {name: getattr(self, name) for name in COUNTERS}

    def tensors(self) -> dict[str, Any]:
        """What is, as nested dicts and lists of tensors and numbers."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "loss": self.loss,
            "losses": self.losses[: self.recorded],
        }

    def restore(self, counters: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Go on from what `counters` and `tensors` gave. Raises KeyError, RuntimeError or ValueError where they don't
        fit."""
        self.model.load_state_dict(tensors["model"])
        if self.average:
            self.average.load_state_dict(tensors["average"])
        for optimizer, saved in zip(self.optimizers, tensors["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # the settings are the config's; the file's may lack one
            rates = [{"lr": float(group["lr"])} for group in saved["param_groups"]]
            merged = [group | rate for group, rate in zip(groups, rates, strict=True)]
            optimizer.load_state_dict({"state": saved["state"], "param_groups": merged})
            for parameter, moments in optimizer.state.items():
                for name, moment in moments.items():
                    if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                        moments[name] = torch.empty_like(parameter).copy_(
                            moment
                        )  # laid out as the weights: fused kernels count on it
        self.__dict__.pop("_descents", None)  # they hold on to the moments that were
        self.scaler.load_state_dict(tensors["scaler"])
        self.loss.copy_(tensors["loss"])
        self.recorded = len(tensors["losses"])
        self.losses[: self.recorded].copy_(tensors["losses"])
        for name in COUNTERS:
            setattr(self, name, counters[name])


def _lerp(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each of `tensors` by `weight` of the way to its end, in place: all at once where torch can, which it does in
    private."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(tensors, ends, weight)
    else:
        for tensor, end in zip(tensors, ends, strict=True):
            tensor.lerp_(end, weight)
