"""Names of a neuron's inputs: "row 3, column 4" for a pixel, "unit 7" for an output of the previous layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.errors import printable
from nnx.models import PatchModel
from nnx.preprocessing.spec import Spec
from nnx.trace.layers import WeightedLayer, filter_corner
from nnx.trace.recorded_pass import RecordedPass


@dataclass(frozen=True)
class InputNames:
    """The name of each input by its index, the name of the position, and the receptive field in the image.

    `window` is top, left, bottom, right in pixels, None unless the neuron reads the image itself. `kernel` is maps,
    height and width of a filter.
    """

    name: Callable[[int], str]
    position: str = ""
    window: tuple[int, int, int, int] | None = None
    kernel: tuple[int, int, int] | None = None


def name_inputs(recorded: RecordedPass, layer: WeightedLayer, place: Sequence[int]) -> InputNames:
    """The names of the inputs of a layer's units at one position."""
    module = layer.call.module
    inputs = layer.call.input
    if layer.name in recorded.recurrent:
        return _time_step_names(recorded, layer, place[0])
    if isinstance(module, nn.Conv2d):
        return _filter_names(recorded, layer, module, place)
    if isinstance(recorded.model, PatchModel) and module is recorded.model.embed:
        return _patch_pixel_names(recorded, recorded.model, place[0])
    if inputs.shape == (recorded.spec.size,) and torch.equal(inputs, recorded.sample.flatten()):
        return InputNames(lambda i: pixel_name(recorded.spec, i))
    tokens = token_names(recorded, inputs) if len(place) == 1 else []
    position = tokens[place[0]] if tokens else f"position {','.join(map(str, place))}" if place else ""
    maps = next((call.output for call in reversed(recorded.calls) if _flattens_to(call.output, inputs)), None)
    if maps is not None:
        _, H, W = maps.shape
        return InputNames(lambda i: f"map {i // (H * W)}, row {i // W % H}, column {i % W}", position)
    return InputNames(lambda i: f"unit {i}", position)


def feature_name(spec: Spec, i: int) -> str:
    """The name of feature `i` of a table: its column's name where there is one."""
    return printable(spec.columns.feature_names[i]) if spec.columns else f"feature {i}"


def pixel_name(spec: Spec, i: int) -> str:
    """The name of entry `i` of a flattened network input."""
    if not spec.is_image:
        return feature_name(spec, i)
    C, H, W = spec.shape
    return f"{_channel_prefix(C, i // (H * W))}row {i // W % H}, column {i % W}"


def token_names(recorded: RecordedPass, sequence: Tensor) -> list[str]:
    """The names of the T rows of a (T, D) sequence of a transformer's tokens; [] for anything else."""
    if not isinstance(recorded.model, PatchModel) or sequence.ndim != 2:
        return []
    spec = recorded.spec
    P = recorded.model.patch
    patches = (spec.shape[1] // P) * (spec.shape[2] // P) if spec.is_image else spec.size
    return ["class token"] * (len(sequence) - patches) + [_patch_name(spec, P, t) for t in range(patches)]


def _filter_names(recorded: RecordedPass, layer: WeightedLayer, module: nn.Conv2d, place: Sequence[int]) -> InputNames:
    height, width = module.kernel_size
    row_step, column_step = module.dilation
    top, left = filter_corner(module, place)
    maps, H, W = layer.call.input.shape
    reads_image = (maps, H, W) == recorded.spec.shape and torch.equal(layer.call.input, recorded.sample)

    def name(i: int) -> str:
        row = top + i // width % height * row_step
        column = left + i % width * column_step
        map_index = i // (height * width)
        prefix = _channel_prefix(maps, map_index) if reads_image else f"map {map_index}, "
        return prefix + (f"row {row}, column {column}" if 0 <= row < H and 0 <= column < W else "padding")

    window = (top, left, top + (height - 1) * row_step + 1, left + (width - 1) * column_step + 1)
    return InputNames(
        name,
        f"row {place[0]}, column {place[1]}",
        window if reads_image else None,
        (maps // module.groups, height, width),
    )


def _time_step_names(recorded: RecordedPass, layer: WeightedLayer, t: int) -> InputNames:
    spec = recorded.spec
    inputs = layer.weights(0)[0].count
    recurrent = recorded.recurrent[layer.name]
    position = f"row {t}" if spec.is_image else feature_name(spec, t)
    past = f"the {'next' if recurrent.is_reverse else 'previous'} {'row' if spec.is_image else 'step'}"

    def name(i: int) -> str:
        if i >= inputs:
            return f"unit {i - inputs} at {past}"
        if recurrent.depth:
            return f"unit {i} of the layer below"
        if spec.is_image:
            W = spec.shape[2]
            return f"{_channel_prefix(spec.shape[0], i // W)}{position}, column {i % W}"
        return position

    return InputNames(name, position, (t, 0, t + 1, spec.shape[2]) if spec.is_image and not recurrent.depth else None)


def _patch_pixel_names(recorded: RecordedPass, model: PatchModel, t: int) -> InputNames:
    spec = recorded.spec
    P = model.patch
    if not spec.is_image:
        return InputNames(lambda i: feature_name(spec, t), feature_name(spec, t))
    C, _, _ = spec.shape
    top, left = _patch_corner(spec, P, t)

    def name(i: int) -> str:
        return f"{_channel_prefix(C, i // P**2)}row {top + i // P % P}, column {left + i % P}"

    return InputNames(name, _patch_name(spec, P, t), (top, left, top + P, left + P))


def _patch_name(spec: Spec, P: int, t: int) -> str:
    if not spec.is_image:
        return feature_name(spec, t)
    top, left = _patch_corner(spec, P, t)
    return f"patch {t}, rows {top}-{top + P - 1}, columns {left}-{left + P - 1}"


def _patch_corner(spec: Spec, P: int, t: int) -> tuple[int, int]:
    """Top row and left column of patch `t` of side P."""
    row, column = divmod(t, spec.shape[2] // P)
    return P * row, P * column


def _channel_prefix(channels: int, channel: int) -> str:
    return f"channel {channel}, " if channels > 1 else ""


def _flattens_to(maps: Tensor, inputs: Tensor) -> bool:
    return maps.ndim == 3 and inputs.ndim == 1 and maps.numel() == len(inputs) and torch.equal(maps.flatten(), inputs)
