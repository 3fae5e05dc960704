"""The network of a recipe as a plain torch module, and the FLOPs of its training."""

from torch import Tensor, nn
from torch.nn import functional as F


def build(recipe: str, overrides: list[str], *, device: str = "cpu") -> nn.Module:
    """The network that nnx trains for `recipe` on MNIST."""
    import torch

    from nnx import config, models
    from nnx.preprocessing.spec import Spec

    spec = Spec((1, 28, 28), tuple("0123456789"), (0.1307,), (0.3081,))
    with torch.device(device):
        return models.build(config.load(recipe, overrides).model, spec, 10)


def flops(recipe: str, overrides: list[str], batch: int = 128) -> float:
    """FLOPs of the matrix products and convolutions in the forward and backward pass of one sample."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # On the meta device a recurrent network consists of matrix products; on the CPU it is one opaque call
    model = build(recipe, overrides, device="meta")
    images = torch.empty(batch, 1, 28, 28, device="meta")
    labels = torch.empty(batch, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        loss: Tensor = F.cross_entropy(model(images), labels)
        loss.backward()
    return counter.get_total_flops() / batch
