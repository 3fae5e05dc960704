"""One sample put to a network: what it answers, how wrong that is, and how the loss moves with every weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.losses import Criterion
from nnx.trace.layers import Call, recorded


@dataclass(frozen=True, eq=False)
class Question:
    """(1, *shape) input and (1,) label, and the criterion of training. The network stays as it is."""

    model: nn.Module
    x: Tensor
    target: Tensor
    criterion: Criterion

    @torch.no_grad()
    def ask(self) -> tuple[float, float]:
        """The loss, and the probability of the right class."""
        logits = self.model(self.x)
        return float(self.criterion(logits, self.target)), float(log_probabilities(logits)[0, self.target].exp())

    def learn(self) -> "Answer":
        """Forwards and backwards, noting all on the way."""
        with recorded(self.model) as calls:
            logits = self.model(self.x)
        logits.retain_grad()
        loss = self.criterion(logits, self.target)
        torch.autograd.backward(loss)
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return Answer(calls, logits.detach()[0], float(loss.detach()), logits.grad[0], gradients)


@dataclass(frozen=True, eq=False)
class Answer:
    """Every layer's turn, the logits, the loss, dL/dlogits, and the gradient of each parameter that the loss depends
    on."""

    calls: Sequence[Call]
    logits: Tensor
    loss: float
    slopes: Tensor
    gradients: dict[str, Tensor]


def log_probabilities(logits: Tensor) -> Tensor:
    """(B, K) logits -> (B, K), or (B, 1) -> (B, 2): as `losses.probabilities`, whose float32 would be too coarse
    here."""
    if logits.shape[1] == 1:
        return nn.functional.logsigmoid(torch.cat([-logits, logits], 1))
    return logits.log_softmax(1)
