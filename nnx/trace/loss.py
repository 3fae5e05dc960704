"""The loss of one sample, computed from its probabilities step by step in plain Python."""

import math
from collections.abc import Sequence

from nnx import losses
from nnx.config.registry import Component


def explain_loss(
    config: Component, log_p: Sequence[float], label: int, name: str, counts: Sequence[int]
) -> tuple[list[str], float | None]:
    """The steps from K log-probabilities to the loss of class `label`, whose name is `name`; and their result.

    `counts` are the training samples of each class. Without steps, and None, for a loss that is not part of nnx.
    """
    p = [math.exp(log_probability) for log_probability in log_p]
    nll = -log_p[label]  # negative log-likelihood
    weights = _class_weights(config, counts)
    first_step = f'-log p("{name}") = -log {_probability(log_p[label])} = {_short(nll)}'
    match config:
        case losses.CrossEntropy() if config.label_smoothing:
            steps, value = _smooth(config.label_smoothing, log_p, label, weights)
            return [first_step, *steps], value
        case losses.CrossEntropy():
            return _apply_class_weight([first_step], nll, weights, label)
        case losses.BinaryCrossEntropy():
            return [first_step], nll
        case losses.MeanSquaredError():
            targets = [float(k == label) for k in range(len(p))]
            value = sum((p_k - target) ** 2 for p_k, target in zip(p, targets, strict=True)) / len(p)
            step = (
                f'mean over the classes of (p - target)², target 1 for "{name}" and 0 for the others: {_short(value)}'
            )
            return [step], value
        case losses.Focal():
            wrong = -math.expm1(log_p[label])
            value = wrong**config.gamma * nll
            formula = f"(1 - p)^{config.gamma:g} × {_short(nll)}"
            step = f"{formula} = {_short(wrong)}^{config.gamma:g} × {_short(nll)} = {_short(value)}"
            return _apply_class_weight([first_step, step], value, weights, label)
    return [], None


def _smooth(smoothing: float, log_p: Sequence[float], label: int, weights: Sequence[float]) -> tuple[list[str], float]:
    """Cross-entropy with label smoothing: (1 - smoothing) of the target's term, smoothing of the mean over classes."""
    nll = -log_p[label]
    K = len(log_p)
    if weights:
        mean = -sum(w * log_probability for w, log_probability in zip(weights, log_p, strict=True)) / K
        value = (1 - smoothing) * weights[label] * nll + smoothing * mean
        target_term = f"{1 - smoothing:g} × {_short(weights[label])} × {_short(nll)}"
        mean_step = f"mean over the classes of class weight × -log p: {_short(mean)}"
    else:
        mean = -sum(log_p) / K
        value = (1 - smoothing) * nll + smoothing * mean
        target_term = f"{1 - smoothing:g} × {_short(nll)}"
        mean_step = f"mean over the classes of -log p: {_short(mean)}"
    return [mean_step, f"label smoothing: {target_term} + {smoothing:g} × {_short(mean)} = {_short(value)}"], value


def _class_weights(config: Component, counts: Sequence[int]) -> list[float]:
    """The weight of each class; empty where all are equal. Balanced: n / (K * n_class)."""
    class_weights = getattr(config, "class_weights", None)
    if class_weights == "balanced":
        return [sum(counts) / (len(counts) * max(n, 1)) for n in counts]
    return list(class_weights or ())


def _apply_class_weight(
    steps: list[str], value: float, weights: Sequence[float], label: int
) -> tuple[list[str], float]:
    """Multiply a loss by its target's class weight, as one more step."""
    if not weights:
        return steps, value
    weighted = weights[label] * value
    return [
        *steps,
        f"times the class weight: {_short(weights[label])} × {_short(value)} = {_short(weighted)}",
    ], weighted


def _probability(log_p: float) -> str:
    """A probability in four digits, near 1 as its difference from 1."""
    return _short(math.exp(log_p)) if log_p < -1e-3 else f"(1 - {-math.expm1(log_p):.4g})"


def _short(number: float) -> str:
    return f"{number:.4g}"
