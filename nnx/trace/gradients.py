"""The loss of one sample as a function of the network's weights, and its gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.losses import Criterion
from nnx.trace.layers import LayerCall, record_calls


@dataclass(frozen=True, eq=False)
class LossFunction:
    """The loss of one sample: a (1, *shape) input, a (1,) target, and the training criterion.

    Its methods leave the network unchanged.
    """

    model: nn.Module
    x: Tensor
    target: Tensor
    criterion: Criterion

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """The loss, and the probability of the target class, with the network's present weights."""
        logits = self.model(self.x)
        return float(self.criterion(logits, self.target)), float(log_probabilities(logits)[0, self.target].exp())

    def backpropagate(self) -> "BackwardPass":
        """Run a forward and a backward pass, recording every layer call."""
        with record_calls(self.model) as calls:
            logits = self.model(self.x)
        logits.retain_grad()
        loss = self.criterion(logits, self.target)
        torch.autograd.backward(loss)
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return BackwardPass(calls, logits.detach()[0], float(loss.detach()), logits.grad[0], gradients)


@dataclass(frozen=True, eq=False)
class BackwardPass:
    """Every layer call, the logits, the loss, dL/dlogits, and the gradient of each parameter that affects the loss."""

    calls: Sequence[LayerCall]
    logits: Tensor
    loss: float
    logit_gradients: Tensor
    gradients: dict[str, Tensor]


def log_probabilities(logits: Tensor) -> Tensor:
    """(B, K) logits -> (B, K), or (B, 1) -> (B, 2): `losses.probabilities` as logarithms, but in float64.

    The float32 of `losses.probabilities` would be too coarse for the checks.
    """
    if logits.shape[1] == 1:
        return nn.functional.logsigmoid(torch.cat([-logits, logits], 1))
    return logits.log_softmax(1)
