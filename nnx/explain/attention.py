"""Attention: which patches each head of a transformer attends to, and the rollout of all blocks."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import models
from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _draw
from nnx.models import AttentionBlock, ModelConfig, _layer_outputs

SAMPLES = 10  # with a rollout
PICTURES = 3  # samples with a picture of all heads
BLOCKS, HEADS = 6, 8  # in such a picture
COLUMNS = 5
NAMES = 8  # of a table's features below a small chart
READING = (
    "A bright patch, or a long bar, receives much attention: from one head, or, in the rollout, from the prediction "
    "through all blocks. Look for bright patches on what matters, such as strokes, and for heads that attend to "
    "different patches."
)


def applies(checkpoint: Checkpoint) -> str | None:
    model = checkpoint.config.model
    return None if cast(ModelConfig, model).has_attention else f"the {model.name} has no attention; use a transformer"


def explain(subject: Subject) -> Explanation:
    maps = [A.numpy() for A in attention(subject.network, subject.inputs())]
    received = [_received(A, subject) for A in maps]  # (N, heads, T) of each block
    rolled_out = _received(rollout(maps), subject)  # (N, T)
    figures: dict[str, Any] = {
        "blocks": [[_statistics(A[:, h], subject) for h in range(A.shape[1])] for A in maps],
        "rollout": {name: row.tolist() for name, row in zip(subject.names, rolled_out, strict=True)},
    }
    pictures = [_draw_heads(subject, received, n) for n in range(min(PICTURES, len(subject.images)))]
    return Explanation(READING, (_draw_rollouts(subject, rolled_out), *pictures), figures)


def attention(network: nn.Module, x: Tensor) -> list[Tensor]:
    """(N, heads, T, T) of each block: how much each token (last index) contributes to each token; rows sum to 1.

    softmax(q k^T / sqrt(D / heads)) of the network's own queries and keys, which its fused attention does not return
    (Vaswani et al. 2017).
    """
    maps: list[Tensor] = []

    def recorder(block: AttentionBlock) -> Any:
        def hook(module: nn.Module, _: object, qkv: Tensor) -> None:
            heads = qkv.view(*qkv.shape[:2], 3, block.heads, -1)
            q, k, _v = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, T, D / heads)
            maps.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).cpu())

        return hook

    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    hooks = (block.qkv.register_forward_hook(recorder(block)) for block in blocks)
    with models.registered_hooks(hooks), torch.no_grad():
        network(x)
    return maps


def rollout(blocks: list[NDArray[Any]]) -> NDArray[Any]:
    """(N, T, T): the share of each input token in each output token, if a block were only attention and its residual
    connection.

    The product of (mean over heads + identity) / 2 over the blocks, from the first (Abnar & Zuidema 2020).
    """
    N, _, T, _ = blocks[0].shape
    rolled = np.broadcast_to(np.eye(T, dtype=blocks[0].dtype), (N, T, T))
    for A in blocks:
        rolled = (A.mean(1) + np.eye(T, dtype=A.dtype)) / 2 @ rolled
    return rolled


def _received(A: NDArray[Any], subject: Subject) -> NDArray[Any]:
    """(..., T, T) -> (..., T): the attention to each token from the class token; or, if the classifier reads the mean
    of all tokens, the mean attention from all."""
    return A[..., 0, :] if _reads_class_token(subject) else A.mean(-2)


def _reads_class_token(subject: Subject) -> bool:
    return getattr(subject.checkpoint.config.model, "read", None) == "class_token"


def _statistics(A: NDArray[Any], subject: Subject) -> dict[str, float]:
    """Of a head's attention (N, T, T): its mean entropy, from 0 (one token gets all) to 1 (uniform), and its mean
    distance in pixels.

    The distance is that between the middles of two patches, weighted by attention (Dosovitskiy et al. 2021, figure 7).
    """
    T = A.shape[-1]
    entropy = -(A * np.log(A.clip(1e-12))).sum(-1).mean() / np.log(T) if T > 1 else 0.0
    statistics = {"entropy": float(entropy)}
    patches = _layer_outputs.patch_grid(subject.spec, T)
    if patches and subject.spec.is_image:
        rows, columns, others = patches
        y, x = np.divmod(np.arange(rows * columns), columns)
        distance = np.hypot(y[:, None] - y, x[:, None] - x) * (subject.spec.shape[1] / rows)
        between = A[:, others:, others:]
        statistics["distance"] = float((between * distance).sum() / between.sum())
    return statistics


# ---------------------------------------------------------------- pictures


def _draw_rollouts(subject: Subject, rolled_out: NDArray[Any]) -> Picture:
    """Samples, each with its rollout below."""
    N = min(SAMPLES, len(subject.images))
    columns = min(COLUMNS, N)
    rows = -(-N // columns)
    figure = _draw.new_figure(1.6 * columns + 0.6, 2 * rows * (0.25 + 1.5 * _draw.aspect_ratio(subject)))
    table = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in table.ravel():
        _draw.hide_axes(axes)
    for n in range(N):
        top, below = table[n // columns * 2 : n // columns * 2 + 2, n % columns]
        _draw.draw_sample(top, subject, n)
        _draw_weights(below, subject, rolled_out[n], n, has_names=True)
        predicted = _draw.shorten(subject.classes[subject.predicted[n]])
        below.set_title(f"predicted {predicted}", fontsize=8 if len(predicted) > 5 else None)
    if subject.spec.is_image:
        _draw.relative_bar(figure, table.ravel().tolist(), "attention rollout", aspect=40)
    caption = (
        "Each sample, and below it the attention rollout: how much of each patch, or feature, reaches the prediction "
        "through all blocks. Each map has its own scale from zero."
    )
    return Picture("attention-rollout", caption, _draw.to_png(figure))


def _draw_heads(subject: Subject, received: list[NDArray[Any]], n: int) -> Picture:
    """One sample: a row per block, a column per head."""
    blocks = _draw.evenly_spaced(len(received), BLOCKS)
    titles = _block_titles(subject, len(received))
    heads = _draw.evenly_spaced(received[0].shape[1], HEADS)
    size = min(1.5, 8 / (1 + len(heads)))  # inches
    figure = _draw.new_figure(size * (1 + len(heads)) + 0.6, 0.3 + size * _draw.aspect_ratio(subject) * len(blocks))
    table = figure.subplots(len(blocks), 1 + len(heads), squeeze=False)
    for block, (left, *row) in zip(blocks, table, strict=True):
        _draw.hide_axes(left)
        if block == 0:
            _draw.draw_sample(left, subject, n)
        for head, axes in zip(heads, row, strict=True):
            is_last = block == blocks[-1]
            _draw_weights(_draw.hide_axes(axes), subject, received[block][n, head], n, has_names=is_last)
            axes.set_title(f"head {head}" if block == 0 else "")
        row[0].set_ylabel(titles[block])
    if subject.spec.is_image:
        _draw.relative_bar(figure, table.ravel().tolist(), "attention", aspect=30)
    source = "the class token" if _reads_class_token(subject) else "all tokens together"
    limits = [f"{len(blocks)} of {len(received)} blocks"] if len(blocks) < len(received) else []
    limits += [f"{len(heads)} of {received[0].shape[1]} heads"] if len(heads) < received[0].shape[1] else []
    shown = f" ({', '.join(limits)})" if limits else ""
    caption = (
        f"{subject.names[n]}: the attention of {source} to each patch, or feature. Rows are blocks, columns are heads"
        f"{shown}. Each map has its own scale from zero."
    )
    return Picture(f"attention-{n + 1}", caption, _draw.to_png(figure))


def _block_titles(subject: Subject, blocks: int) -> list[str]:
    """The short title of the layer of each block, on two lines."""
    layers = _layer_outputs.layer_modules(subject.network, subject.inputs(subject.images[:1]))
    titles = [subject.short_title(name) for name, module in layers.items() if isinstance(module, AttentionBlock)]
    if len(titles) != blocks:  # a network of its own kind, whose blocks are parts of layers
        return [f"block {n}" for n in range(blocks)]
    return [title.replace(": ", "\n") for title in titles]


def _draw_weights(axes: Any, subject: Subject, weights: NDArray[Any], n: int, *, has_names: bool) -> None:
    """(T,) weights over the image to which they belong, or as bars for a table, with the names of its features."""
    patches = _layer_outputs.patch_grid(subject.spec, len(weights))
    assert patches
    rows, columns, others = patches
    grid = weights[others:].reshape(rows, columns)
    if not subject.spec.is_image:
        axes.bar(range(columns), grid[0])
        axes.set_yticks([0, float(grid.max())], ["0", f"{grid.max():.2g}"], fontsize=6)
        if has_names:
            shown = _draw.evenly_spaced(columns, NAMES)
            axes.set_xticks(shown, [_draw.shorten(subject.features[k]) for k in shown], rotation=90, fontsize=6)
        return
    _, H, W = subject.spec.shape
    _draw.draw_heatmap(axes, grid.repeat(H // rows, 0).repeat(W // columns, 1), subject.images[n])
