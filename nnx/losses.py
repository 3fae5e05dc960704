"""Loss functions: (B, K) logits and targets -> the mean loss. Targets are (B,) labels or (B, K) probabilities.

    criterion = config.loss.build(counts, device)  # counts: training samples of each class
    criterion(logits, targets)  # a scalar: the mean over the batch

Every loss is a mean over samples, so that the mean over two halves of a batch equals that of the whole.
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
WEIGHTS = "weight of each class, or balanced: n / (K * n_class), larger for rare classes"


class CrossEntropy(Component):
    """-log p of the true class, p by softmax."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(
        0,
        ge=0,
        lt=1,
        description="share of the target probability spread evenly over all classes (Szegedy et al. 2016)",
    )
    class_weights: ClassWeights = Field(None, description=WEIGHTS)

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        weight = _weights(self.class_weights, counts, device)
        if weight is None and self.label_smoothing:
            return self._smoothed
        if weight is None:
            return F.cross_entropy

        def weighted(logits: Tensor, targets: Tensor) -> Tensor:
            # torch's mean divides by the sum of the batch's weights: a sample's gradient would depend on the others
            losses = F.cross_entropy(logits, targets, weight, label_smoothing=self.label_smoothing, reduction="none")
            return losses.mean()

        return weighted

    def _smoothed(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._mean_loss(logits.log_softmax(1), targets)

    def _mean_loss(self, log_p: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of (B, K) log-probabilities. torch's function takes a fifth longer with label smoothing."""
        loss = F.nll_loss(log_p, targets) if targets.ndim == 1 else -(targets * log_p).sum(1).mean()
        return (1 - self.label_smoothing) * loss - self.label_smoothing * log_p.mean() if self.label_smoothing else loss

    def with_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and its gradient with respect to the logits, (B, K): (probabilities - targets) / B.

        Class weights are not supported.
        """
        B, K = logits.shape
        share = self.label_smoothing
        log_p = logits.log_softmax(1)
        loss = self._mean_loss(log_p, targets)
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
        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(logits.softmax(1), soft_targets(targets, logits.shape[1], logits.dtype))

        return criterion


class BinaryCrossEntropy(Component):
    """-log p of the true class, p by a single sigmoid output. For two classes."""

    name: Literal["binary_cross_entropy"] = "binary_cross_entropy"

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        if len(counts) != 2:
            mistake = f"binary_cross_entropy needs 2 classes, the data has {len(counts)}"
            raise ConfigError.at("loss.name", f"{mistake}; use cross_entropy")

        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits[:, 0], soft_targets(targets, 2, logits.dtype)[:, 1])

        return criterion


class Focal(Component):
    """Cross-entropy with a smaller weight for well-classified samples: -(1 - p)^gamma log p (Lin et al. 2017)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2, ge=0, le=10, description="exponent of the weight (1 - p)^gamma; 0 is cross-entropy")
    class_weights: ClassWeights = Field(None, description=WEIGHTS)

    def build(self, counts: Sequence[int], device: torch.device) -> Criterion:
        weight = _weights(self.class_weights, counts, device)

        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            log_p = logits.log_softmax(1)
            # 1 - p, but never 0: for gamma < 1, 0**gamma has no gradient
            one_minus_p = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
            target_p = soft_targets(targets, logits.shape[1], logits.dtype)
            loss = -target_p * one_minus_p**self.gamma * log_p  # (B, K)
            return (loss if weight is None else loss * weight).sum(1).mean()

        return criterion


Loss = CrossEntropy | MeanSquaredError | BinaryCrossEntropy | Focal


TRAINING_ONLY = ("label_smoothing", "class_weights")  # of a loss: evaluation leaves them out


def evaluated_loss(loss: Component) -> Component:
    """The loss that evaluation reports: `loss` without label smoothing and class weights, so that it is comparable
    between configs and with other tools (scikit-learn's log_loss, for cross-entropy)."""
    fields = type(loss).model_fields
    return loss.model_copy(update={key: fields[key].default for key in TRAINING_ONLY if key in fields})


def outputs(loss: Component, classes: int) -> int:
    """The number of outputs the network needs for K `classes`: K, or 1 for a loss with a sigmoid."""
    return 1 if isinstance(loss, BinaryCrossEntropy) else classes


def probabilities(logits: Tensor) -> Tensor:
    """(B, K) logits -> (B, K) probabilities by softmax; (B, 1) -> (B, 2) by sigmoid. Always in float32."""
    logits = logits.float()
    if logits.shape[1] == 1:
        second = logits.sigmoid()
        return torch.cat([1 - second, second], dim=1)
    return logits.softmax(1)


def soft_targets(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(B,) labels -> (B, K) one-hot probabilities. (B, K) probabilities only change their dtype."""
    return (targets if targets.ndim == 2 else F.one_hot(targets, classes)).to(dtype)


def _weights(weights: list[float] | str | None, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """(K,) class weights. "balanced" computes them from the `counts` of training samples (King & Zeng 2001)."""
    if weights is None:
        return None
    if isinstance(weights, list):
        if len(weights) != len(counts):
            raise ConfigError.at(
                "loss.class_weights", f"has {len(weights)} weights, the data has {len(counts)} classes"
            )
        return torch.tensor(weights, device=device)
    return torch.tensor([sum(counts) / (len(counts) * max(count, 1)) for count in counts], device=device)
