"""What each layer of a network gives out for a batch, by forward hooks: for any architecture, as it asks nothing about
it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nnx import models
from nnx.preprocessing.spec import Spec

BATCH = 500  # samples that the network sees at once, or fewer where they are large
NUMBERS = 2_000_000  # in them
LOGITS = "logits"


def layer_outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """(N, ...) normalised inputs -> each layer's output (N, ...), first to last, on the CPU, by the name of the row of
    the model table that it begins with; the last are the logits.

    An MLP gives its activations, a CNN the maps of each stage, an RNN the states (N, T, hidden), a transformer the
    tokens (N, T, D) behind each block.
    """
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for batch in torch.split(x, batch_size_for(x)):
            seen, logits = _seen(network, batch)
            parts.append({name: seen[row] for name, row in _named(network, seen, logits).items()} | {LOGITS: logits})
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}


def batch_size_for(x: Tensor) -> int:
    """How many samples like these the network may see at once."""
    return max(1, min(BATCH, NUMBERS // x[0].numel()))


def layer_modules(network: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """The module behind each output of `outputs`, but for the logits. `x` is a batch, of one sample for instance."""
    modules = dict(network.named_modules())
    with torch.no_grad():
        return {name: modules[row] for name, row in _named(network, *_seen(network, x)).items()}


def patch_grid(spec: Spec, tokens: int) -> tuple[int, int, int] | None:
    """Rows and columns of the patches that a transformer's tokens are, and how many tokens stand before them (a class
    token); of a table one row of features. None where they are no patches."""
    if not spec.is_image:
        return (1, spec.size, tokens - spec.size) if tokens in (spec.size, spec.size + 1) else None
    _, H, W = spec.shape
    for others in (0, 1):
        side = math.isqrt(H * W // max(1, tokens - others))
        if side and H % side == W % side == 0 and (H // side) * (W // side) == tokens - others:
            return H // side, W // side, others
    return None


def _seen(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The output of every row of the model table that was called, and the network's own."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[name] = (
                output if isinstance(output, Tensor) else output[0]
            )  # of an RNN the states, without the last one apart

        return hook

    with models.registered_hooks(
        module.register_forward_hook(note(name)) for name, module in models.table_rows(network)
    ):
        return seen, network(x)


def _named(network: nn.Module, seen: dict[str, Tensor], logits: Tensor) -> dict[str, str]:
    """The layers as a person sees them, a weighted sum together with the norm and activation behind it, or a whole
    block: the row that each begins with, and the row whose output is the layer's.

    A layer begins at each row with weights (a parameter of two dimensions or more). Where that row is a single
    operation, the rows behind it that keep its shape belong to it, and their output is the layer's; where it is a block
    of several, it is complete.
    """
    found: dict[str, str] = {}
    for name, module in models.table_rows(network):
        if name not in seen:
            continue
        if any(p.ndim > 1 for p in module.parameters()):
            first, begun = name, module
            found[first] = name
        elif found and next(begun.children(), None) is None and _changed(seen[found[first]], seen[name]):
            found[first] = name
    if found and seen[found[first]].shape == logits.shape:  # the output layer
        del found[first]
    return found


def _changed(before: Tensor, after: Tensor) -> bool:
    """Whether an operation kept the shape, and did something: dropout does nothing in evaluation."""
    return before.shape == after.shape and before.data_ptr() != after.data_ptr()
