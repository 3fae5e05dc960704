"""The vision transformer: self-attention between the patches of an image (Dosovitskiy et al. 2021)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nnx.errors import ConfigError
from nnx.models import ModelConfig
from nnx.models._layers import Dropout, DropoutRate, Width, init_weights
from nnx.preprocessing.spec import Spec
from nnx.system.dropout import dropout

FEW_TOKENS = 64  # tokens, up to which attention is computed as written
FEW_TOKENS_BFLOAT16 = 256  # in training; evaluation has larger batches, whose weights would take gigabytes
VECTOR = 32  # bfloat16 numbers. Of fewer, torch's softmax takes three to ten times as long as in float32


class Config(ModelConfig):
    """A token is a patch of an image or a feature of a table."""

    name: Literal["transformer"] = "transformer"
    has_attention: ClassVar = True
    prefers_bfloat16: ClassVar = True  # 1.2 to 1.8 times as fast, see `attention`
    reads_features_singly: ClassVar = True
    patch: int = Field(
        7, ge=1, le=1024, description="width and height of a patch, in pixels; must divide those of the image"
    )
    width: Width = Field(64, description="dimensions of a token; a multiple of heads")
    depth: int = Field(4, ge=1, le=200, description="blocks, each of attention and an MLP")
    heads: int = Field(4, ge=1, le=1024, description="attention heads per block")
    mlp_ratio: float = Field(2, gt=0, le=64, description="hidden units of a block's MLP, as a multiple of width")
    dropout: DropoutRate = 0
    read: Literal["class_token", "mean"] = Field(
        "class_token", description="input of the classifier: the class token, or the mean of all tokens"
    )
    positions: Literal["learned", "sincos"] = Field(
        "learned", description="position embedding: learned, or fixed sines and cosines"
    )


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm (Xiong et al. 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D = config.width
        hidden = max(1, round(D * config.mlp_ratio))
        self.heads = config.heads
        self.dropout = config.dropout
        self.norm1 = nn.LayerNorm(D)
        self.norm2 = nn.LayerNorm(D)
        self.qkv = nn.Linear(D, 3 * D)
        self.project = nn.Linear(D, D)
        self.mlp = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, D))
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def attention(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D): softmax(q k^T / sqrt(D / heads)) v in each head."""
        B, T, D = x.shape
        q, k, v = (
            self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        )  # (B, heads, T, D/heads)
        y = attention(q, k, v, self.dropout if self.training else 0.0)
        return self.project(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


def attention(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017), with dropout of the weights. All are (B, heads, T, D).

    On the CPU, few tokens are multiplied as written. A step of mnist_transformer by torch's fused kernel takes, in ms
    for 16, 49, 196 tokens: float32 25, 68, 432, as written 25, 59, 530; bfloat16 29, 153, 518, as written 21, 36, 266
    (best steps, two cores of an AMD EPYC with avx512_bf16, torch 2.14.1).
    """
    few = FEW_TOKENS_BFLOAT16 if q.dtype == torch.bfloat16 and q.requires_grad else FEW_TOKENS
    if not q.is_cpu or q.shape[2] > few:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # (B, heads, T, T)
    if scores.element_size() < 4 and q.shape[2] < VECTOR:  # float64, of a trace, stays
        scores = scores.float()
    weights = torch.softmax(scores, -1).to(v.dtype)
    return dropout(weights, p) @ v if p else weights @ v


class Model(nn.Module):
    """Embed patches, add positions, then blocks, a norm, and a linear layer on the class token or the mean."""

    positions: Tensor

    def __init__(self, config: Config, spec: Spec, outputs: int) -> None:
        super().__init__()
        _check_sizes(config, spec)
        D = config.width
        self.patch = config.patch
        rows, columns = (size // config.patch for size in spec.shape[1:]) if spec.is_image else (spec.size, 1)
        self.embed = nn.Linear(spec.shape[0] * config.patch**2 if spec.is_image else 1, D)
        self.class_token = nn.Parameter(torch.zeros(1, 1, D)) if config.read == "class_token" else None
        T = rows * columns + (config.read == "class_token")
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(1, T, D))
        else:
            self.register_buffer("positions", _sincos(rows, columns, D, T), persistent=False)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D)
        self.output = nn.Linear(D, outputs)
        self._init_weights()

    def _init_weights(self) -> None:
        """Xavier uniform weights (Glorot & Bengio 2010) and zero biases, as in the transformers of Vaswani and
        Dosovitskiy. `init_weights` for the embedding and the output layer. Normal with std 0.02 for the class token and
        learned positions."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        init_weights(self.embed)
        init_weights(self.output)
        for parameter in (self.class_token, self.positions):
            if isinstance(parameter, nn.Parameter):
                nn.init.normal_(parameter, std=0.02)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images or (B, F) rows -> (B, T, C * patch²), or (B, T, 1) for rows."""
        if x.ndim == 2:
            return x.unsqueeze(2)
        P = self.patch
        patches = x.unfold(2, P, P).unfold(3, P, P)  # (B, C, H/P, W/P, P, P)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images or (B, F) rows -> (B, outputs) logits."""
        x = self.embed(self.tokens(x))  # (B, T, D)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.drop(x + self.positions)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.output(x[:, 0] if self.class_token is not None else x.mean(1))
        return logits


def _check_sizes(config: Config, spec: Spec) -> None:
    """Raises ConfigError, with the sizes that are possible, if heads, width or patch are not."""
    if config.width % config.heads:
        fits = [heads for heads in range(1, min(config.width, 64) + 1) if config.width % heads == 0]
        raise ConfigError.at(
            "model.heads", f"{config.heads} heads don't divide the width {config.width}; these do: {_join(fits)}"
        )
    if config.positions == "sincos" and config.width % 4:
        raise ConfigError.at(
            "model.width",
            f"sincos positions need a width divisible by 4, not {config.width}; e.g. {config.width // 4 * 4 + 4}",
        )
    if spec.is_image:
        _, H, W = spec.shape
        if H % config.patch or W % config.patch:
            fits = [patch for patch in range(1, min(H, W) + 1) if H % patch == 0 and W % patch == 0]
            raise ConfigError.at(
                "model.patch", f"patches of {config.patch} don't divide a {H}x{W} image; these do: {_join(fits)}"
            )


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _sincos(rows: int, columns: int, D: int, T: int) -> Tensor:
    """(1, T, D) position embedding: sines and cosines of the row and of the column, D / 2 each, of decreasing frequency
    (Vaswani et al. 2017, in 2-D).

    If T is one more than the positions, the first is that of the class token: zeros.
    """
    frequencies = 10_000 ** (-torch.arange(D // 4) / (D / 4))
    angles_y = torch.arange(rows)[:, None] * frequencies  # (rows, D/4)
    angles_x = torch.arange(columns)[:, None] * frequencies
    y = torch.cat([angles_y.sin(), angles_y.cos()], 1)[:, None].expand(rows, columns, D // 2)
    x = torch.cat([angles_x.sin(), angles_x.cos()], 1)[None].expand(rows, columns, D // 2)
    table = torch.cat([y, x], 2).reshape(rows * columns, D)
    return F.pad(table, (0, 0, T - rows * columns, 0))[None]
