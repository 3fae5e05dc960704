"""Record the output of each layer for a batch, by forward hooks, for any architecture."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nnx import models
from nnx.preprocessing.spec import Spec

MAX_SAMPLES = 500  # in a batch, fewer for large samples
MAX_VALUES = 2_000_000  # in a batch
INPUT = "input"
LOGITS = "logits"


def layer_outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """(N, ...) normalised inputs -> each layer's output (N, ...) on the CPU, from first to last, then the logits.

    The key is the name of the layer's first row in the model table. The outputs of an MLP are its activations, those of
    a CNN the feature maps of each stage, those of an RNN the states (N, T, hidden), those of a transformer the tokens
    (N, T, D) after each block.
    """
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for batch in torch.split(x, batch_size_for(x)):
            outputs, logits = _row_outputs(network, batch)
            layers = _last_rows(network, outputs, logits)
            parts.append({name: outputs[row] for name, row in layers.items()} | {LOGITS: logits})
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}


def batch_size_for(x: Tensor) -> int:
    """The number of samples of this size in a batch."""
    return max(1, min(MAX_SAMPLES, MAX_VALUES // x[0].numel()))


def layer_modules(network: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """The module of each output of `layer_outputs`, except for the logits. `x` is a batch of one or more samples."""
    modules = dict(network.named_modules())
    with torch.no_grad():
        return {name: modules[row] for name, row in _last_rows(network, *_row_outputs(network, x)).items()}


def layer_titles(network: nn.Module, x: Tensor) -> dict[str, str]:
    """{name: title} of the input, each output of `layer_outputs` and the logits, for captions: "Layer 1: conv 3×3, 16
    filters (stages.0)". `x` is a batch of one or more samples."""
    modules = dict(network.named_modules())
    with torch.no_grad():
        outputs, logits = _row_outputs(network, x)
    layers = _last_rows(network, outputs, logits)
    titles = {
        name: f"Layer {n}: {_describe(modules[name], outputs[row])} ({name})"
        for n, (name, row) in enumerate(layers.items(), 1)
    }
    return {INPUT: "Input", **titles, LOGITS: f"Output: {logits.shape[1]} logits"}


def short_title(title: str) -> str:
    """The beginning of a layer's title, where there is little room: "Layer 1: conv 3×3"."""
    return "Output" if title.startswith("Output") else title.partition(",")[0]


def _describe(module: nn.Module, output: Tensor) -> str:
    """The kind and the size of a layer, by its first part with weights: "conv 3×3, 16 filters"."""
    if isinstance(module, models.AttentionBlock):
        return f"attention block, {module.heads} heads, {output.shape[2]} numbers per token"
    weighted = next(m for m in module.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False)))
    if isinstance(weighted, nn.Conv2d):
        height, width = weighted.kernel_size
        return f"conv {height}×{width}, {output.shape[1]} filters"
    if isinstance(weighted, nn.RNNBase):
        layers = f", {weighted.num_layers} layers" if weighted.num_layers > 1 else ""
        both = ", both directions" if weighted.bidirectional else ""
        return f"{weighted.mode.partition('_')[0]}, {weighted.hidden_size} units{layers}{both}"
    if isinstance(weighted, nn.Linear):
        return (
            f"embedding, {output.shape[2]} numbers per token"
            if output.ndim == 3
            else f"linear, {output.shape[1]} units"
        )
    return f"{type(module).__name__}, {output.shape[-1 if output.ndim == 3 else 1]} units"


def patch_grid(spec: Spec, tokens: int) -> tuple[int, int, int] | None:
    """(rows, columns) of the grid of patches that a transformer's tokens form, and the number of tokens before them: 1
    with a class token. The features of a table are a grid of one row. None if the tokens form no grid."""
    if not spec.is_image:
        return (1, spec.size, tokens - spec.size) if tokens in (spec.size, spec.size + 1) else None
    _, H, W = spec.shape
    for others in (0, 1):
        side = math.isqrt(H * W // max(1, tokens - others))
        if side and H % side == W % side == 0 and (H // side) * (W // side) == tokens - others:
            return H // side, W // side, others
    return None


def _row_outputs(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The output of every row of the model table that the forward pass calls, and the logits."""
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = output if isinstance(output, Tensor) else output[0]  # an RNN's states of all steps

        return hook

    rows = models.table_rows(network)
    with models.registered_hooks(module.register_forward_hook(record(name)) for name, module in rows):
        return outputs, network(x)


def _last_rows(network: nn.Module, outputs: dict[str, Tensor], logits: Tensor) -> dict[str, str]:
    """{first row: last row} of each layer, where the output of the last row is that of the layer.

    A layer is a weighted sum with the norm and activation after it, or a whole block. It starts at each row with
    weights (a parameter of two dimensions or more). If that row is a single operation, the following rows that keep its
    shape belong to the layer; if it is a block of several operations, the layer is complete.
    """
    layers: dict[str, str] = {}
    for name, module in models.table_rows(network):
        if name not in outputs:
            continue
        if any(p.ndim > 1 for p in module.parameters()):
            first, first_module = name, module
            layers[first] = name
        elif layers and next(first_module.children(), None) is None and _changed(outputs[layers[first]], outputs[name]):
            layers[first] = name
    if layers and outputs[layers[first]].shape == logits.shape:  # the output layer
        del layers[first]
    return layers


def _changed(before: Tensor, after: Tensor) -> bool:
    """Whether an operation kept the shape but changed the values. Dropout changes nothing in evaluation."""
    return before.shape == after.shape and before.data_ptr() != after.data_ptr()
