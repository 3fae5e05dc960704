"""What a forward and a backward pass leave to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nnx.preprocessing.spec import Spec
from nnx.trace.layers import Call, Weighted, convolution, linear
from nnx.trace.recurrent import Cells, cells


@dataclass(frozen=True, eq=False)
class RecordedPass:
    """Every layer's turn, and the layers that weigh their inputs, by name, in the order of happening."""

    model: nn.Module
    spec: Spec
    sample: Tensor  # (C, H, W) or (F,), normalised
    calls: Sequence[Call]
    layers: dict[str, Weighted]
    recurrent: dict[str, Cells]
    apart: float | None  # of recurrent layers written out from torch's own, at most; None where there are none


def collect_layers(model: nn.Module, spec: Spec, sample: Tensor, calls: Sequence[Call]) -> RecordedPass:
    """The weighted layers among `calls`, which know their slopes by now."""
    layers: dict[str, Weighted] = {}
    recurrent: dict[str, Cells] = {}
    apart = None
    for call in calls:
        match call.module:
            case nn.Linear():
                layers[call.name] = linear(call)
            case nn.Conv2d() if call.input.ndim == 3 and call.module.padding_mode == "zeros":
                layers[call.name] = convolution(call)
            case nn.RNNBase() if not call.module.proj_size:
                found, far = cells(call)
                apart = max(far, apart or 0.0)
                layers |= {each.weighted.name: each.weighted for each in found}
                recurrent |= {each.weighted.name: each for each in found}
    return RecordedPass(model, spec, sample, calls, layers, recurrent, apart)
