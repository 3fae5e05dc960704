"""Parts that architectures share: activations by name, and the initialisation of weights."""

import math
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from nnx.config.registry import suggest
from nnx.system.dropout import dropout

# Not elementwise: gates, functions of a whole row, attention; Threshold requires arguments
_EXCLUDED = {"MultiheadAttention", "GLU", "Softmax", "Softmin", "LogSoftmax", "Softmax2d", "Threshold"}


@cache
def activations() -> dict[str, Callable[[], nn.Module]]:
    """torch's activations by the names of torch.nn.functional: relu, leaky_relu, gelu, silu, hardswish, ..."""
    functions = {
        name.replace("_", ""): name
        for name in dir(nn.functional)
        if not name.startswith("_") and not name.endswith("_")
    }
    kinds = [getattr(nn, name) for name in nn.modules.activation.__all__ if name not in _EXCLUDED]
    return {functions.get(kind.__name__.lower(), kind.__name__.lower()): kind for kind in kinds}


def _check_activation(name: str) -> str:
    if name not in activations():
        raise PydanticCustomError(
            "activation", "unknown activation '{name}'{hint}", {"name": name, "hint": suggest(name, activations())}
        )
    return name


Activation = Annotated[str, AfterValidator(_check_activation)]
Width = Annotated[int, Field(ge=1, le=65_536)]
DropoutRate = Annotated[
    float, Field(ge=0, lt=1, description="probability of zeroing an activation in training (Srivastava et al. 2014)")
]


class Dropout(nn.Dropout):
    """nn.Dropout, with nnx's faster mask."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), unchanged in evaluation."""
        return dropout(x, self.p) if self.training and self.p else x


def activation(name: str) -> nn.Module:
    """A new module for the activation of this name."""
    return activations()[name]()


def init_weights(layer: Any, activation: str | None = None) -> Any:
    """Initialise the weights of a linear or convolutional layer for the activation that follows. Returns the layer.

    The weights are normal(0, gain / sqrt(fan_in)), which keeps the scale of activations constant through the layers:
    gain sqrt(2) for the ReLU family (He et al. 2015), 1 otherwise (LeCun et al. 1998). The output layer has gain 1, so
    that the first loss is near ln K. Biases are zero.
    """
    saturating = (None, "sigmoid", "tanh", "softsign", "hardtanh", "hardsigmoid", "tanhshrink", "logsigmoid", "selu")
    gain = 1.0 if activation in saturating else math.sqrt(2)
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
