"""Attention: which patches each head of a transformer looks at, and, through all blocks, which the answer goes back
to."""

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
PICTURES = 3  # of every head
BLOCKS, HEADS = 6, 8  # in them
COLUMNS = 5
READING = (
    "A bright patch, or a long bar, is one that is looked at, by a head or, in the rollout, by the answer through all blocks: what "
    "matters, such as strokes, should be bright, and heads should differ from one another."
)


def applies(kept: Checkpoint) -> str | None:
    model = kept.config.model
    return None if cast(ModelConfig, model).has_attention else f"the {model.name} has no attention; ask a transformer"


def explain(subject: Subject) -> Explanation:
    each = [A.numpy() for A in attention(subject.network, subject.inputs())]
    rolled = rollout(each)
    seen = [_by_reader(A, subject) for A in (*each, rolled)]  # (N, heads, T) or (N, T)
    figures: dict[str, Any] = {
        "blocks": [[_facts(A[:, h], subject) for h in range(A.shape[1])] for A in each],
        "rollout": {name: row.tolist() for name, row in zip(subject.names, seen[-1], strict=True)},
    }
    pictures = [_heads(subject, seen[:-1], n) for n in range(min(PICTURES, len(subject.images)))]
    return Explanation(READING, (_rollouts(subject, seen[-1]), *pictures), figures)


def attention(network: nn.Module, x: Tensor) -> list[Tensor]:
    """(N, heads, T, T) of each block: how much of each token (last index) goes into each token; every row adds up to 1.

    softmax(q k^T / sqrt(D / heads)) of the network's own queries and keys, as its fused attention does not give it
    (Vaswani et al. 2017).
    """
    found: list[Tensor] = []

    def note(block: AttentionBlock) -> Any:
        def hook(module: nn.Module, _: object, qkv: Tensor) -> None:
            q, k, _v = qkv.view(*qkv.shape[:2], 3, block.heads, -1).permute(
                2, 0, 3, 1, 4
            )  # each (N, heads, T, D / heads)
            found.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).cpu())

        return hook

    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    with models.registered_hooks(block.qkv.register_forward_hook(note(block)) for block in blocks), torch.no_grad():
        network(x)
    return found


def rollout(blocks: list[NDArray[Any]]) -> NDArray[Any]:
    """(N, T, T): how much of each token of the input is in each token at the end, were attention and the way past it
    all there is.

    The product over blocks of (mean over heads + identity) / 2, from the first (Abnar & Zuidema 2020).
    """
    N, _, T, _ = blocks[0].shape
    rolled = np.broadcast_to(np.eye(T, dtype=blocks[0].dtype), (N, T, T))
    for A in blocks:
        rolled = (A.mean(1) + np.eye(T, dtype=A.dtype)) / 2 @ rolled
    return rolled


def _by_reader(A: NDArray[Any], subject: Subject) -> NDArray[Any]:
    """(..., T, T) -> (..., T): what the token that the classifier reads looks at, or, where it reads the mean of all,
    what they look at."""
    return A[..., 0, :] if _reads_class_token(subject) else A.mean(-2)


def _reads_class_token(subject: Subject) -> bool:
    return getattr(subject.kept.config.model, "read", None) == "class_token"


def _facts(A: NDArray[Any], subject: Subject) -> dict[str, float]:
    """Of a head's (N, T, T): its mean entropy, from 0 (it looks at one token) to 1 (at all alike), and how far away it
    looks, in pixels.

    The distance is from the middle of a patch to that of the one looked at, weighted by attention (Dosovitskiy et al.
    2021, figure 7).
    """
    T = A.shape[-1]
    entropy = -(A * np.log(A.clip(1e-12))).sum(-1).mean() / np.log(T) if T > 1 else 0.0
    facts = {"entropy": float(entropy)}
    places = _layer_outputs.patch_grid(subject.spec, T)
    if places and subject.spec.is_image:
        rows, columns, others = places
        y, x = np.divmod(np.arange(rows * columns), columns)
        apart = np.hypot(y[:, None] - y, x[:, None] - x) * (subject.spec.shape[1] / rows)
        among = A[:, others:, others:]
        facts["distance"] = float((among * apart).sum() / among.sum())
    return facts


# ---------------------------------------------------------------- pictures


def _rollouts(subject: Subject, rolled: NDArray[Any]) -> Picture:
    """Samples, and the rollout over each below it."""
    N = min(SAMPLES, len(subject.images))
    columns = min(COLUMNS, N)
    lines = -(-N // columns)
    figure = _draw.new(1.6 * columns, 2 * lines * (0.25 + 1.5 * _draw.shape(subject)))
    table = figure.subplots(2 * lines, columns, squeeze=False)
    for axes in table.ravel():
        _draw.bare(axes)
    for n in range(N):
        top, below = table[n // columns * 2 : n // columns * 2 + 2, n % columns]
        _draw.asked(top, subject, n)
        _over(below, subject, rolled[n], n)
        below.set_title(f"says {_draw.shortened(subject.classes[subject.predicted[n]])}")
    caption = "Each sample, and below it the rollout: the patches that the answer goes back to, each on its own scale from zero."
    return Picture("attention-rollout", caption, _draw.png(figure))


def _heads(subject: Subject, seen: list[NDArray[Any]], n: int) -> Picture:
    """One sample: a line a block, a column a head."""
    blocks, heads = _draw.spread(len(seen), BLOCKS), _draw.spread(seen[0].shape[1], HEADS)
    each = min(1.5, 8 / (1 + len(heads)))  # inches
    figure = _draw.new(each * (1 + len(heads)), 0.3 + each * _draw.shape(subject) * len(blocks))
    table = figure.subplots(len(blocks), 1 + len(heads), squeeze=False)
    for block, (left, *line) in zip(blocks, table, strict=True):
        _draw.bare(left)
        if block == 0:
            _draw.asked(left, subject, n)
        for head, axes in zip(heads, line, strict=True):
            _over(_draw.bare(axes), subject, seen[block][n, head], n)
            axes.set_title(f"head {head}" if block == 0 else "")
        line[0].set_ylabel(f"block {block}")
    looks = "what the class token looks at" if _reads_class_token(subject) else "what all patches together look at"
    few = f"{len(blocks)} of {len(seen)} blocks, " if len(blocks) < len(seen) else ""
    few += f"{len(heads)} of {seen[0].shape[1]} heads, " if len(heads) < seen[0].shape[1] else ""
    caption = f"{subject.names[n]}: {looks}, head by head; {few}each map on its own scale from zero."
    return Picture(f"attention-{n + 1}", caption, _draw.png(figure))


def _over(axes: Any, subject: Subject, weights: NDArray[Any], n: int) -> None:
    """(T,) weights over the image that they belong to, or as bars where there is none."""
    places = _layer_outputs.patch_grid(subject.spec, len(weights))
    assert places
    rows, columns, others = places
    grid = weights[others:].reshape(rows, columns)
    if not subject.spec.is_image:
        axes.bar(range(columns), grid[0])
        return
    _, H, W = subject.spec.shape
    _draw.veiled(axes, grid.repeat(H // rows, 0).repeat(W // columns, 1), subject.images[n])
