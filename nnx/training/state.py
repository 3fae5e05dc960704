"""All that training changes. Saved and loaded, training continues as if it had never stopped.

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
"""For one batch of (B, *shape) inputs and (B,) or (B, K) targets: puts the gradient of the mean loss into each
parameter and returns the loss."""

StepFunction = Callable[["State", Tensor, Tensor], Tensor]
"""Makes one step on such a batch and returns its mean loss."""


@dataclass
class State:
    """A network in training: its weights, its optimizers' moments, and its progress."""

    config: Config
    model: nn.Module
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler  # float16 only; else it does nothing
    average: AveragedModel | None  # moving average of the weights
    steps_per_epoch: int
    loss: Tensor  # sum over the samples of this epoch so far; stays on the device
    losses: Tensor  # of the first steps, for `nnx verify`: (MAX_RECORDED_LOSSES,), of which `recorded` are set
    samples: int = 0  # of this epoch so far
    epoch: int = 0  # finished epochs
    batch: int = 0  # steps so far in the current epoch
    step: int = 0  # steps so far in all
    recorded: int = 0
    recording: bool = True  # false after a resume with other train.epochs, on which schedules depend
    history: list[dict[str, Any]] = field(default_factory=list)  # a record per epoch: metrics.jsonl without its times

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
        """The network to evaluate and save: the moving average where there is one."""
        module: nn.Module = self.average.module if self.average else self.model
        return module

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the epoch with the highest validation accuracy; of equals the lowest loss, then the first.
        Without validation it is the last."""
        if not self.history:
            return None
        if "val_loss" not in self.history[-1]:
            return self.history[-1]
        return min(self.history, key=lambda record: (-record["val_accuracy"], record["val_loss"]))

    @property
    def stop_reason(self) -> str | None:
        """Why training stops before its last epoch, if it does. Without validation, never."""
        patience = self.config.train.patience
        if patience is None or self.best is None or (since := self.epoch - self.best["epoch"]) < patience:
            return None
        return f"no better validation accuracy for {since} epochs"

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.lr_at(self.step, self.config.train.epochs)

    def lr_at(self, step: int, epochs: int) -> float:
        """The learning rate of a step in a run of `epochs` epochs, after the validation losses so far."""
        val_losses = [record["val_loss"] for record in self.history if "val_loss" in record]
        horizon = Horizon(self.steps_per_epoch, epochs, val_losses)
        return self.peak_lr * cast(Schedule, self.config.schedule).factor(step, horizon)

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

    def update_weights(self) -> None:
        """Update the weights by their gradients, and clear the gradients."""
        if limit := self.config.train.clip_grad_norm:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)  # only float16 has a scale
            nn.utils.clip_grad_norm_(self._parameters, limit)
        for optimizer, step in zip(self.optimizers, self._fast_steps, strict=True):
            if self.scaler.is_enabled():
                self.scaler.step(optimizer)
            else:
                step()
        self.scaler.update()
        for parameter in self._parameters:
            parameter.grad = None

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @cached_property
    def _fast_steps(self) -> list[Callable[[], None]]:
        return [fast_step(optimizer) for optimizer in self.optimizers]

    @torch.no_grad()
    def _move_average(self, average: AveragedModel) -> None:
        """averaged += (1 - decay) * (current - averaged), where the decay rises to train.ema as (1 + n) / (10 + n) at
        step n, as in TensorFlow's ExponentialMovingAverage. Otherwise the average of the first epochs is mostly the
        initial weights (mnist_mlp: 87 % after an epoch, not 96). AveragedModel's own update pairs the tensors again
        each time, and waits for the device."""
        decay = min(cast(float, self.config.train.ema), (1 + self.step) / (10 + self.step)) if self.step else 0.0
        (averaged, current), counters = self._averaged
        _lerp(averaged, current, 1 - decay)
        for averaged_counter, counter in counters:
            averaged_counter.copy_(counter)
        average.n_averaged += 1

    @cached_property
    def _averaged(self) -> tuple[tuple[list[Tensor], list[Tensor]], list[tuple[Tensor, Tensor]]]:
        """The (averaged, current) floating-point tensors, and the pairs of integer counters."""
        both = [[*module.parameters(), *module.buffers()] for module in (self.evaluated, self.model)]
        pairs = [(averaged.detach(), current.detach()) for averaged, current in zip(*both, strict=True)]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        return ([averaged for averaged, _ in floating], [current for _, current in floating]), counters

    def end_step(self, loss: Tensor, samples: int) -> None:
        """Count a step of `samples` samples with this mean `loss`, and update the moving average."""
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
        """Raise DivergedError where a weight, a moment or an average is infinite or NaN: such a state must not be
        saved."""
        modules = [self.model, *([self.average] if self.average else [])]
        weights = [value for module in modules for value in module.state_dict().values()]
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        for tensor in (*weights, *(value for state in states for value in state.values())):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise DivergedError(f"step {self.step}: weights or moments became infinite or NaN. {self.cure}")

    @property
    def cure(self) -> str:
        """What to do about diverging training."""
        return f"Lower optimizer.lr (now {self.peak_lr:g}), add schedule.warmup, or set train.clip_grad_norm: 1"

    def mean_loss(self) -> float:
        """The mean loss of the epoch so far. Waits for the device."""
        return float(self.loss) / max(self.samples, 1)

    def end_epoch(self) -> None:
        """Count an epoch, and reset the loss for the next."""
        self.epoch += 1
        self.batch = self.samples = 0
        self.loss.zero_()

    # ---------------------------------------------------------------- saving and resuming

    def counters(self) -> dict[str, Any]:
        """Everything that is not a tensor, as plain values."""
        return {name: getattr(self, name) for name in COUNTERS}

    def tensors(self) -> dict[str, Any]:
        """Everything that is a tensor, as nested dicts and lists of tensors and numbers."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "loss": self.loss,
            "losses": self.losses[: self.recorded],
        }

    def restore(self, counters: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Restore what `counters` and `tensors` returned. Raises KeyError, RuntimeError or ValueError where it does not
        fit."""
        self.model.load_state_dict(tensors["model"])
        if self.average:
            self.average.load_state_dict(tensors["average"])
        for optimizer, saved in zip(self.optimizers, tensors["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # settings come from the config: the file may lack one
            rates = [{"lr": float(group["lr"])} for group in saved["param_groups"]]
            merged = [group | rate for group, rate in zip(groups, rates, strict=True)]
            optimizer.load_state_dict({"state": saved["state"], "param_groups": merged})
            for parameter, moments in optimizer.state.items():
                for name, moment in moments.items():
                    if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                        # in the weights' memory format, which fused kernels assume
                        moments[name] = torch.empty_like(parameter).copy_(moment)
        self.__dict__.pop("_fast_steps", None)  # they hold the previous moments
        self.scaler.load_state_dict(tensors["scaler"])
        self.loss.copy_(tensors["loss"])
        self.recorded = len(tensors["losses"])
        self.losses[: self.recorded].copy_(tensors["losses"])
        for name in COUNTERS:
            setattr(self, name, counters[name])


def _lerp(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each of `tensors` by `weight` of the way to its end, in place: all at once where torch has its private
    function for that."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(tensors, ends, weight)
    else:
        for tensor, end in zip(tensors, ends, strict=True):
            tensor.lerp_(end, weight)
