"""What one forward and backward pass computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nnx.preprocessing.spec import Spec
from nnx.trace.layers import LayerCall, WeightedLayer, convolution, linear
from nnx.trace.recurrent import RecurrentLayer, unroll


@dataclass(frozen=True, eq=False)
class RecordedPass:
    """Every layer call, and by name the layers that compute weighted sums, both in order of execution."""

    model: nn.Module
    spec: Spec
    sample: Tensor  # (C, H, W) or (F,), normalised
    calls: Sequence[LayerCall]
    layers: dict[str, WeightedLayer]
    recurrent: dict[str, RecurrentLayer]  # those of `layers` that are recurrent
    gate_error: float | None  # largest difference of unrolled recurrent layers from PyTorch's; None without such layers


def collect_layers(model: nn.Module, spec: Spec, sample: Tensor, calls: Sequence[LayerCall]) -> RecordedPass:
    """Find the weighted layers among `calls`, whose gradients the backward pass has already added."""
    layers: dict[str, WeightedLayer] = {}
    recurrent: dict[str, RecurrentLayer] = {}
    gate_error = None
    for call in calls:
        match call.module:
            case nn.Linear():
                layers[call.name] = linear(call)
            case nn.Conv2d() if call.input.ndim == 3 and call.module.padding_mode == "zeros":
                layers[call.name] = convolution(call)
            case nn.RNNBase() if not call.module.proj_size:
                unrolled, error = unroll(call)
                gate_error = max(error, gate_error or 0.0)
                layers |= {layer.weighted.name: layer.weighted for layer in unrolled}
                recurrent |= {layer.weighted.name: layer for layer in unrolled}
    return RecordedPass(model, spec, sample, calls, layers, recurrent, gate_error)
