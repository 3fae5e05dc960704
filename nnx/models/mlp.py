"""The multilayer perceptron: fully connected layers with activations between them."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from nnx.models import ModelConfig
from nnx.models._layers import Activation, Dropout, DropoutRate, Width, activation, init_weights
from nnx.preprocessing.spec import Spec


class Config(ModelConfig):
    """`hidden: [256, 128]` is the network 784-256-128-10 on MNIST; `hidden: []` is a linear classifier."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[list[Width], Field(max_length=1000)] = Field([256, 128], description="units of each hidden layer")
    activation: Activation = Field("relu", description="elementwise activation, by its name in torch.nn.functional")
    norm: Literal["none", "batch", "layer"] = Field(
        "none", description="batch or layer normalisation before each activation"
    )
    dropout: DropoutRate = 0


class Model(nn.Module):
    """Flatten, then (linear, norm, activation, dropout) for each hidden layer, then a linear output layer."""

    def __init__(self, config: Config, spec: Spec, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, units in pairwise([spec.size, *config.hidden]):
            layers.append(init_weights(nn.Linear(inputs, units), config.activation))
            if config.norm != "none":
                layers.append(nn.BatchNorm1d(units) if config.norm == "batch" else nn.LayerNorm(units))
            layers.append(activation(config.activation))
            if config.dropout:
                layers.append(Dropout(config.dropout))
        layers.append(init_weights(nn.Linear([spec.size, *config.hidden][-1], outputs)))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images or (B, F) rows -> (B, outputs) logits."""
        logits: Tensor = self.layers(x)
        return logits

    def plain_layers(self) -> list[nn.Module]:
        """The layers of `forward`, in order, without the leading Flatten."""
        return list(self.layers)[1:]
