"""What training minimises. A loss takes (B, K) logits and targets, (B,) labels or (B, K) probabilities, and gives their
mean.

    criterion = config.loss.build(counts, device)
    criterion(logits, targets)  # a scalar: the mean over the batch

Every loss is a mean over samples, so that a batch in two halves gives the same gradient as the whole.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError
from torch import Tensor
from torch.nn import functional as F

from nnx.config.registry import Component
from nnx.errors import ConfigError

Criterion = Callable[[Tensor, Tensor], Tensor]


def _class_weights(value: Any) -> list[float] | str | None:
    if value is None or value == "balanced":
        weights: str | None = value
        return weights
    if (
        isinstance(value, list)
        and 0 < len(value) <= 1000
        and all(type(item) in (int, float) and 0 <= item < 1e6 for item in value)
        and any(value)
    ):
        return [float(item) for item in value]
    raise PydanticCustomError("nnx", "expected balanced, or a list with a weight of 0 or more for each class")


ClassWeights = Annotated[
    list[float] | str | None,
    PlainValidator(_class_weights, json_schema_input_type=list[float] | Literal["balanced"] | None),
]
WEIGHTS = "balanced (rare classes count more, n / (K * n_class)), or a weight for each class"


class CrossEntropy(Component):
    """-log of the probability that softmax gives to the right class."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(
        0, ge=0, lt=1, description="share of the target spread over all classes (Szegedy et al. 2016)"
    )
    class_weights: ClassWeights = Field(None, description=WEIGHTS)

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        weight = _weights(self.class_weights, counts, device)
        if weight is None and self.label_smoothing:
            return self._smoothed
        if weight is None:
            return F.cross_entropy

        def weighted(logits: Tensor, targets: Tensor) -> Tensor:
            # torch's own mean divides by the batch's sum of weights, which makes a sample's pull depend on its
            # neighbours
            return F.cross_entropy(
                logits, targets, weight, label_smoothing=self.label_smoothing, reduction="none"
            ).mean()

        return weighted

    def _smoothed(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._of(logits.log_softmax(1), targets)

    def _of(self, log_p: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of (B, K) log-probabilities. torch's own takes a fifth longer where the target is smoothed."""
        right = F.nll_loss(log_p, targets) if targets.ndim == 1 else -(targets * log_p).sum(1).mean()
        return (
            (1 - self.label_smoothing) * right - self.label_smoothing * log_p.mean() if self.label_smoothing else right
        )

    def with_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and, (B, K), its gradient by the logits: (probabilities - targets) / B. For no class
        weights."""
        (B, K), share = logits.shape, self.label_smoothing
        log_p = logits.log_softmax(1)
        loss = self._of(log_p, targets)
        delta = log_p.exp_()
        if targets.ndim == 1:
            delta.scatter_add_(1, targets[:, None], delta.new_full((B, 1), share - 1))
        else:
            delta.sub_(targets, alpha=1 - share)
        return loss, (delta.sub_(share / K) if share else delta).div_(B)


class MeanSquaredError(Component):
    """Mean over samples and classes of (probability - target)², target one-hot."""

    name: Literal["mse"] = "mse"

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        return lambda logits, targets: F.mse_loss(logits.softmax(1), soft(targets, logits.shape[1], logits.dtype))


class BinaryCrossEntropy(Component):
    """For two classes: one sigmoid output, the probability of the second class."""

    name: Literal["binary_cross_entropy"] = "binary_cross_entropy"

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        if len(counts) != 2:
            raise ConfigError.at(
                "loss.name", f"binary_cross_entropy is for 2 classes, the data has {len(counts)}; use cross_entropy"
            )

        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits[:, 0], soft(targets, 2, logits.dtype)[:, 1])

        return criterion


class Focal(Component):
    """Cross-entropy that counts what is already right less: -(1 - p)^gamma log p (Lin et al. 2017)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2, ge=0, le=10, description="how much less; zero is cross-entropy")
    class_weights: ClassWeights = Field(None, description=WEIGHTS)

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        weight = _weights(self.class_weights, counts, device)

        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            log_p = logits.log_softmax(1)
            wrong = (-torch.expm1(log_p)).clamp(
                min=torch.finfo(log_p.dtype).tiny
            )  # 1 - p, never 0: 0**gamma has no gradient below gamma 1
            loss = -soft(targets, logits.shape[1], logits.dtype) * wrong**self.gamma * log_p  # (B, K)
            return (loss if weight is None else loss * weight).sum(1).mean()

        return criterion


Loss = CrossEntropy | MeanSquaredError | BinaryCrossEntropy | Focal


def outputs(loss: Component, classes: int) -> int:
    """How many numbers the network must give for K `classes`: K, or one where a sigmoid decides between two."""
    return 1 if isinstance(loss, BinaryCrossEntropy) else classes


def probabilities(logits: Tensor) -> Tensor:
    """(B, K) logits -> (B, K) probabilities by softmax; (B, 1) -> (B, 2) by sigmoid. In float32 whatever came in."""
    logits = logits.float()
    if logits.shape[1] == 1:
        second = logits.sigmoid()
        return torch.cat([1 - second, second], dim=1)
    return logits.softmax(1)


def soft(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(B,) labels -> (B, K) one-hot probabilities; (B, K) probabilities stay."""
    return (targets if targets.ndim == 2 else F.one_hot(targets, classes)).to(dtype)


def _weights(weights: list[float] | str | None, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """(K,) weights, from the `counts` of training samples a class where they are "balanced" (King & Zeng 2001)."""
    if weights is None:
        return None
    if isinstance(weights, list):
        if len(weights) != len(counts):
            raise ConfigError.at(
                "loss.class_weights", f"has {len(weights)} weights, the data has {len(counts)} classes"
            )
        return torch.tensor(weights, device=device)
    return torch.tensor([sum(counts) / (len(counts) * max(count, 1)) for count in counts], device=device)
