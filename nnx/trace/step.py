"""The update: plain gradient descent, weight - learning_rate * gradient, and the step of the config's own optimizer."""

import torch
from torch import Tensor

from nnx.config.registry import Component
from nnx.optimizers import SGD
from nnx.trace.gradients import Answer, Question
from nnx.trace.result import Outcome, Update
from nnx.training.state import State

SCALED = (
    "divides the gradient by a measure of its own size, so that at its first step every weight moves by about as much, "
    "however small its gradient"
)
SAYS = {
    "adam": SCALED,
    "adamw": SCALED,
    "nadam": SCALED,
    "rmsprop": SCALED,
    "adagrad": SCALED,
    "muon": "turns the gradient of a matrix into the nearest orthogonal one, so that all directions move alike; the rest is left to adamw",
}


def update(state: State, question: Question, answer: Answer) -> tuple[Update, dict[str, Tensor], dict[str, Tensor]]:
    """Make both steps, each from the weights that the state's model has now, and leave it with those.

    Gives, besides, all weights after either step.
    """
    parameters, gradients, rate = dict(state.model.named_parameters()), answer.gradients, state.lr
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def outcome() -> tuple[Outcome, dict[str, Tensor]]:
        after = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        foretold = sum(float((gradients[name] * (after[name] - before[name])).sum()) for name in gradients)
        moved, probability = question.ask()
        _place(parameters, before)
        return Outcome(moved, answer.loss + foretold, probability), after

    _place(
        parameters,
        {name: weight - rate * gradients[name] if name in gradients else weight for name, weight in before.items()},
    )
    descent, descended = outcome()
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.clone()
    state.begin_step()
    state.update_weights()
    optimized, moved = outcome()

    norm = float(torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients.values()])))
    limit = state.config.train.clip_grad_norm
    clipped = limit / norm if limit and norm > limit else None
    optimizer = state.config.optimizer
    plain = isinstance(optimizer, SGD) and not optimizer.momentum and not optimizer.weight_decay and clipped is None
    told = Update(rate, _schedule(state), norm, clipped, optimizer.name, _says(optimizer), plain, descent, optimized)
    return told, descended, moved


@torch.no_grad()
def _place(parameters: dict[str, torch.nn.Parameter], weights: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _schedule(state: State) -> str:
    if state.lr == state.peak_lr:
        return "optimizer.lr"
    return f"where the schedule {state.config.schedule.name} begins with optimizer.lr {state.peak_lr:g}"


def _says(optimizer: Component) -> str:
    """What it does with a gradient at its first step, in a sentence without its subject."""
    if isinstance(optimizer, SGD):
        ahead = f"looks ahead along its momentum, which makes the first step {1 + optimizer.momentum:g} times as long"
        share = "keeps a share of the last step, of which there is none at the first"
        does = "is plain gradient descent" if not optimizer.momentum else ahead if optimizer.nesterov else share
    else:
        does = SAYS.get(optimizer.name) or (type(optimizer).__doc__ or "has a way of its own").partition("\n")[
            0
        ].rstrip(".")
    decay = getattr(optimizer, "weight_decay", 0)
    return f"{does}; weight_decay {decay:g} pulls each weight, but no bias, a little towards 0" if decay else does
