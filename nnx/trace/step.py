"""The update: plain gradient descent, weight - learning_rate * gradient, and a step of the config's optimizer."""

import torch
from torch import Tensor, nn

from nnx.config.registry import Component
from nnx.optimizers import SGD
from nnx.trace.gradients import BackwardPass, LossFunction
from nnx.trace.result import Outcome, Update
from nnx.training.state import State

ADAPTIVE = (
    "divides each gradient by an estimate of its magnitude, so its first step moves every weight by about the same "
    "amount, however small its gradient"
)
ORTHOGONAL = (
    "replaces the gradient of a weight matrix by the nearest orthogonal matrix, so every direction moves equally far; "
    "adamw updates all other parameters"
)
DESCRIPTIONS = {
    "adam": ADAPTIVE,
    "adamw": ADAPTIVE,
    "nadam": ADAPTIVE,
    "rmsprop": ADAPTIVE,
    "adagrad": ADAPTIVE,
    "muon": ORTHOGONAL,
}


def update_weights(
    state: State, loss_function: LossFunction, backward: BackwardPass
) -> tuple[Update, dict[str, Tensor], dict[str, Tensor]]:
    """Make both steps, each from the present weights of the state's model, and restore these weights.

    Returns the update, all weights after gradient descent, and all weights after the optimizer's step.
    """
    parameters = dict(state.model.named_parameters())
    gradients = backward.gradients
    learning_rate = state.lr
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def evaluate_and_restore() -> tuple[Outcome, dict[str, Tensor]]:
        after = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        change = sum(float((gradients[name] * (after[name] - before[name])).sum()) for name in gradients)
        loss, probability = loss_function.evaluate()
        _set_weights(parameters, before)
        return Outcome(loss, backward.loss + change, probability), after

    target_weights = {
        name: weight - learning_rate * gradients[name] if name in gradients else weight
        for name, weight in before.items()
    }
    _set_weights(parameters, target_weights)
    descent, after_descent = evaluate_and_restore()
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.clone()
    state.begin_step()
    state.update_weights()
    optimized, after_optimizer = evaluate_and_restore()

    norm = float(torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients.values()])))
    limit = state.config.train.clip_grad_norm
    clipped = limit / norm if limit and norm > limit else None
    optimizer = state.config.optimizer
    update = Update(
        learning_rate=learning_rate,
        schedule=_describe_schedule(state),
        gradient_norm=norm,
        clipped=clipped,
        optimizer=optimizer.name,
        says=_describe_optimizer(optimizer),
        is_plain=(
            isinstance(optimizer, SGD) and not optimizer.momentum and not optimizer.weight_decay and clipped is None
        ),
        descent=descent,
        optimized=optimized,
    )
    return update, after_descent, after_optimizer


@torch.no_grad()
def _set_weights(parameters: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _describe_schedule(state: State) -> str:
    if state.lr == state.peak_lr:
        return "optimizer.lr"
    return f"first step of the schedule {state.config.schedule.name}; optimizer.lr is {state.peak_lr:g}"


def _describe_optimizer(optimizer: Component) -> str:
    """What the optimizer does with a gradient at its first step, as a sentence without its subject."""
    if not isinstance(optimizer, SGD):
        summary = (type(optimizer).__doc__ or "").partition("\n")[0].rstrip(".")
        action = DESCRIPTIONS.get(optimizer.name) or (f"has its own rule: {summary}" if summary else "has its own rule")
    elif not optimizer.momentum:
        action = "is plain gradient descent"
    elif optimizer.nesterov:
        action = f"uses Nesterov momentum, which makes the first step {1 + optimizer.momentum:g} times as long"
    else:
        action = "adds momentum, a fraction of the previous step; the first step has none"
    decay = getattr(optimizer, "weight_decay", 0)
    return f"{action}; weight_decay {decay:g} shrinks each weight, but no bias, slightly towards 0" if decay else action
