"""The convolutional network: stages of convolutions and pooling, then a classifier."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from nnx.errors import ConfigError
from nnx.models import ModelConfig
from nnx.models._layers import Activation, Dropout, DropoutRate, Width, activation, init_weights
from nnx.preprocessing.spec import Spec

Value = TypeVar("Value")


def OneOrEach(kind: Any) -> BeforeValidator:  # noqa: N802 - used as a type
    """Accept a list with a value for each stage, or a single value for all stages."""
    return BeforeValidator(
        lambda value: value if isinstance(value, list) else [value], json_schema_input_type=kind | list[kind]
    )


Kernel = Annotated[int, Field(ge=1, le=63)]
Pool = Literal["max", "average", "stride", "none"]


class Config(ModelConfig):
    """`channels: [32, 64]` is two stages: 32 filters, pooling, 64 filters, pooling; then the classifier."""

    name: Literal["cnn"] = "cnn"
    channels_last: ClassVar = True
    prefers_bfloat16: ClassVar = True  # 1.7 times as fast on two cores of an AMD EPYC with avx512_bf16, torch 2.15
    channels: Annotated[list[Width], Field(min_length=1, max_length=100)] = Field(
        [32, 64], description="filters of each stage"
    )
    depth: int = Field(1, ge=1, le=100, description="convolutions per stage")
    kernel: Annotated[list[Kernel], Field(min_length=1, max_length=100), OneOrEach(Kernel)] = Field(
        [3], description="width and height of a filter, in pixels; a list sets it for each stage"
    )
    padding: Literal["same", "valid"] = Field(
        "same",
        description="same: pad with zeros, so that a map keeps its size; valid: no padding, it shrinks by kernel - 1",
    )
    activation: Activation = Field("relu", description="elementwise activation, by its name in torch.nn.functional")
    norm: Literal["none", "batch"] = Field(
        "batch", description="batch normalisation after each convolution (Ioffe & Szegedy 2015)"
    )
    residual: bool = Field(False, description="add each block's input to its output (He et al. 2016)")
    pool: Annotated[list[Pool], Field(min_length=1, max_length=100), OneOrEach(Pool)] = Field(
        ["max"],
        description="how a stage halves its maps: max or average pooling after its first convolution, or a stride of 2 "
        "in it; none: no pooling; a list sets it for each stage",
    )
    head: Literal["flatten", "average"] = Field(
        "flatten", description="input of the classifier: all positions of the last maps, or their average"
    )
    hidden: Annotated[list[Width], Field(max_length=100)] = Field(
        [], description="units of each hidden layer of the classifier"
    )
    dropout: DropoutRate = Field(
        0,
        description="probability of zeroing an activation in training, before linear layers (Srivastava et al. 2014)",
    )


class Block(nn.Module):
    """activation(norm(pool(convolution(x)))). A residual block adds x before the activation.

    Pooling comes before the norm, as in airbench (Jordan 2024). Max pooling and increasing activations commute, so that
    this is nearly the same function with a quarter of the values to normalise: a step of mnist_cnn's stages takes 45 ms
    instead of 55 (median of 50 alternating pairs, two cores of a 2.5 GHz Xeon, torch 2.15).
    """

    def __init__(self, inputs: int, outputs: int, config: Config, kernel: int, pool: str) -> None:
        super().__init__()
        bias = config.norm == "none"  # batch normalisation would cancel a bias
        stride = 2 if pool == "stride" else 1
        # torch does not support "same" with a stride
        padding = (kernel - 1) // 2 if stride == 2 and config.padding == "same" else config.padding
        self.conv = init_weights(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias), config.activation)
        self.pool = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2)}.get(pool, nn.Identity())
        self.norm = nn.BatchNorm2d(outputs) if config.norm == "batch" else nn.Identity()
        self.activation = activation(config.activation)
        self.skip: nn.Module | None = None
        if config.residual:
            self.skip = nn.Identity() if inputs == outputs else init_weights(nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), H and W halved by pooling."""
        y = self.norm(self.pool(self.conv(x)))
        y = self.activation(y if self.skip is None else y + self.pool(self.skip(x)))
        return y  # type: ignore[no-any-return]


class Model(nn.Module):
    """Stages of blocks, the first of each with pooling, then a classifier on the flattened or averaged maps."""

    def __init__(self, config: Config, spec: Spec, outputs: int) -> None:
        super().__init__()
        if not spec.is_image:
            raise ConfigError.at(
                "model.name", "a cnn needs images, this dataset has feature rows; use mlp, rnn or transformer"
            )
        C, H, W = spec.shape
        kernels = _per_stage("kernel", config.kernel, config)
        pools = _per_stage("pool", config.pool, config)
        if config.residual and (config.padding == "valid" or "stride" in pools):
            raise ConfigError.at(
                "model.residual",
                "adds a block's input to its output, which padding: valid and pool: stride make smaller; "
                "use padding: same and another pool",
            )
        blocks: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise([C, *config.channels])):
            blocks.append(Block(before, after, config, kernels[stage], pools[stage]))
            blocks += [Block(after, after, config, kernels[stage], "none") for _ in range(config.depth - 1)]
            H, W = (_map_size(size, config, kernels[stage], pools[stage]) for size in (H, W))
            if min(H, W) < 1:
                cure = (
                    f"at most {stage} stages, or pool: none{' and padding: same' if config.padding == 'valid' else ''}"
                )
                size = "x".join(map(str, spec.shape[1:]))
                raise ConfigError.at(
                    "model.channels", f"{len(config.channels)} stages shrink {size} to nothing; {cure}"
                )
        self.stages = nn.Sequential(*blocks)

        head: list[nn.Module] = [nn.Flatten()] if config.head == "flatten" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        features = config.channels[-1] * (H * W if config.head == "flatten" else 1)
        for units in config.hidden:
            head += [Dropout(config.dropout)] if config.dropout else []
            head += [init_weights(nn.Linear(features, units), config.activation), activation(config.activation)]
            features = units
        head += [Dropout(config.dropout)] if config.dropout else []
        self.head = nn.Sequential(*head, init_weights(nn.Linear(features, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, outputs) logits."""
        logits: Tensor = self.head(self.stages(x))
        return logits


def _per_stage(key: str, values: list[Value], config: Config) -> list[Value]:
    """A value for each stage. A single one applies to all. Raises ConfigError for any other number of values."""
    stages = len(config.channels)
    if len(values) not in (1, stages):
        raise ConfigError.at(
            f"model.{key}",
            f"has {len(values)} values, model.channels has {stages} stages; give one for each, or one for all",
        )
    return values if len(values) == stages else values * stages


def _map_size(size: int, config: Config, kernel: int, pool: str) -> int:
    """The height or width of a feature map after a stage."""
    border = kernel - 1 if config.padding == "valid" else 0
    if pool == "stride":
        size = (size - border + 1) // 2 if config.padding == "valid" or kernel % 2 else size // 2
    else:
        size = (size - border) // (1 if pool == "none" else 2)
    return size - border * (config.depth - 1)
