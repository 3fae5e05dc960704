"""How the loss comes from the probabilities, with the numbers of one sample, in plain Python."""

import math
from collections.abc import Sequence

from nnx import losses
from nnx.config.registry import Component


def derive(
    config: Component, log_p: Sequence[float], label: int, name: str, counts: Sequence[int]
) -> tuple[list[str], float | None]:
    """The steps from K log-probabilities to the loss of the class `label`, called `name`, and what they come to.

    `counts` are the training samples of each class. None for a loss that is not of nnx itself.
    """
    p, own, weights = [math.exp(each) for each in log_p], -log_p[label], _weights(config, counts)
    surprise = f'-log p("{name}") = -log {_probable(log_p[label])} = {_short(own)}'
    match config:
        case losses.CrossEntropy():
            smoothing, K = config.label_smoothing, len(p)
            if not smoothing:
                return _weighed([surprise], own, weights, label)
            if weights:
                every = -sum(w * each for w, each in zip(weights, log_p, strict=True)) / K
                value = (1 - smoothing) * weights[label] * own + smoothing * every
                mixed = f"{1 - smoothing:g} × {_short(weights[label])} × {_short(own)} + {smoothing:g} × {_short(every)} = {_short(value)}"
                return [surprise, f"-log p of every class, times its weight, on average: {_short(every)}", mixed], value
            every = -sum(log_p) / K
            value = (1 - smoothing) * own + smoothing * every
            mixed = f"softened labels: {1 - smoothing:g} × {_short(own)} + {smoothing:g} × {_short(every)} = {_short(value)}"
            return [surprise, f"-log p of every class, on average: {_short(every)}", mixed], value
        case losses.BinaryCrossEntropy():
            return [surprise], own
        case losses.MeanSquaredError():
            targets = [float(k == label) for k in range(len(p))]
            value = sum((each - target) ** 2 for each, target in zip(p, targets, strict=True)) / len(p)
            return [
                f'mean over the classes of (p - target)², the target 1 for "{name}" and 0 for others: {_short(value)}'
            ], value
        case losses.Focal():
            wrong = -math.expm1(log_p[label])
            value = wrong**config.gamma * own
            step = f"(1 - p)^{config.gamma:g} × {_short(own)} = {_short(wrong)}^{config.gamma:g} × {_short(own)} = {_short(value)}"
            return _weighed([surprise, step], value, weights, label)
    return [], None


def _weights(config: Component, counts: Sequence[int]) -> list[float]:
    """Of each class, none where all count alike; balanced: n / (K * n_class)."""
    wanted = getattr(config, "class_weights", None)
    return [sum(counts) / (len(counts) * max(n, 1)) for n in counts] if wanted == "balanced" else list(wanted or ())


def _weighed(steps: list[str], value: float, weights: Sequence[float], label: int) -> tuple[list[str], float]:
    if not weights:
        return steps, value
    return [
        *steps,
        f"times the class's weight: {_short(weights[label])} × {_short(value)} = {_short(weights[label] * value)}",
    ], (weights[label] * value)


def _probable(log_p: float) -> str:
    """A probability in four digits, those of what it lacks where it is nearly 1."""
    return _short(math.exp(log_p)) if log_p < -1e-3 else f"(1 - {-math.expm1(log_p):.4g})"


def _short(number: float) -> str:
    return f"{number:.4g}"
