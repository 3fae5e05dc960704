"""What a neuron sees, in words: "row 3, column 4" for a pixel, "unit 7" for what another layer gave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnx.errors import printable
from nnx.models import PatchModel
from nnx.preprocessing.spec import Spec
from nnx.trace.layers import Weighted, corner
from nnx.trace.recorded_pass import RecordedPass


@dataclass(frozen=True)
class Names:
    """A name for each input by its number, the place in words, and the part of the image that is seen from there.

    `window` is top, left, bottom, right; `kernel` maps, height and width of a filter.
    """

    of: Callable[[int], str]
    where: str = ""
    window: tuple[int, int, int, int] | None = None
    kernel: tuple[int, int, int] | None = None


def naming(seen: RecordedPass, layer: Weighted, place: Sequence[int]) -> Names:
    """The names of what a layer's units see at a place."""
    module, inputs = layer.call.module, layer.call.input
    if layer.name in seen.recurrent:
        return _of_a_step(seen, layer, place[0])
    if isinstance(module, nn.Conv2d):
        return _of_a_filter(seen, layer, module, place)
    if isinstance(seen.model, PatchModel) and module is seen.model.embed:
        return _of_a_patch(seen, seen.model, place[0])
    if inputs.shape == (seen.spec.size,) and torch.equal(inputs, seen.sample.flatten()):
        return Names(lambda i: pixel(seen.spec, i))
    named = tokens(seen, inputs) if len(place) == 1 else []
    where = named[place[0]] if named else f"position {','.join(map(str, place))}" if place else ""
    maps = next((call.output for call in reversed(seen.calls) if _flattens_to(call.output, inputs)), None)
    if maps is not None:
        _, H, W = maps.shape
        return Names(lambda i: f"map {i // (H * W)}, row {i // W % H}, column {i % W}", where)
    return Names(lambda i: f"unit {i}", where)


def feature(spec: Spec, i: int) -> str:
    """The name of a table's feature: its column's, where that has one."""
    return printable(spec.columns.feature_names[i]) if spec.columns else f"feature {i}"


def pixel(spec: Spec, i: int) -> str:
    """The name of number `i` of an input."""
    if not spec.is_image:
        return feature(spec, i)
    C, H, W = spec.shape
    return f"{_channel(C, i // (H * W))}row {i // W % H}, column {i % W}"


def tokens(seen: RecordedPass, sequence: Tensor) -> list[str]:
    """The names of the rows of (T, D), if they are a transformer's tokens; else none."""
    if not isinstance(seen.model, PatchModel) or sequence.ndim != 2:
        return []
    spec, P = seen.spec, seen.model.patch
    patches = (spec.shape[1] // P) * (spec.shape[2] // P) if spec.is_image else spec.size
    return ["class token"] * (len(sequence) - patches) + [_patch(spec, P, t) for t in range(patches)]


def _of_a_filter(seen: RecordedPass, layer: Weighted, module: nn.Conv2d, place: Sequence[int]) -> Names:
    (height, width), (down, across) = module.kernel_size, module.dilation
    top, left = corner(module, place)
    maps, H, W = layer.call.input.shape
    sees_image = (maps, H, W) == seen.spec.shape and torch.equal(layer.call.input, seen.sample)

    def name(i: int) -> str:
        row, column = top + i // width % height * down, left + i % width * across
        of = _channel(maps, i // (height * width)) if sees_image else f"map {i // (height * width)}, "
        return of + (f"row {row}, column {column}" if 0 <= row < H and 0 <= column < W else "outside")

    window = (top, left, top + (height - 1) * down + 1, left + (width - 1) * across + 1)
    return Names(
        name,
        f"row {place[0]}, column {place[1]}",
        window if sees_image else None,
        (maps // module.groups, height, width),
    )


def _of_a_step(seen: RecordedPass, layer: Weighted, t: int) -> Names:
    spec, n, known = seen.spec, layer.weights(0)[0].count, seen.recurrent[layer.name]
    where = f"row {t}" if spec.is_image else feature(spec, t)
    past = f"the {'row' if spec.is_image else 'step'} {'after' if known.backwards else 'before'}"

    def name(i: int) -> str:
        if i >= n:
            return f"unit {i - n} at {past}"
        if known.depth:
            return f"unit {i} of layer {known.depth} below"
        return (
            f"{_channel(spec.shape[0], i // spec.shape[2])}{where}, column {i % spec.shape[2]}"
            if spec.is_image
            else where
        )

    return Names(name, where, (t, 0, t + 1, spec.shape[2]) if spec.is_image and not known.depth else None)


def _of_a_patch(seen: RecordedPass, model: PatchModel, t: int) -> Names:
    spec, P = seen.spec, model.patch
    if not spec.is_image:
        return Names(lambda i: feature(spec, t), feature(spec, t))
    C, _, W = spec.shape
    top, left = (P * at for at in divmod(t, W // P))
    name = lambda i: f"{_channel(C, i // P**2)}row {top + i // P % P}, column {left + i % P}"  # noqa: E731
    return Names(name, _patch(spec, P, t), (top, left, top + P, left + P))


def _patch(spec: Spec, P: int, t: int) -> str:
    if not spec.is_image:
        return feature(spec, t)
    top, left = (P * at for at in divmod(t, spec.shape[2] // P))
    return f"patch {t}, rows {top}-{top + P - 1}, columns {left}-{left + P - 1}"


def _channel(channels: int, number: int) -> str:
    return f"channel {number}, " if channels > 1 else ""


def _flattens_to(maps: Tensor, inputs: Tensor) -> bool:
    return maps.ndim == 3 and inputs.ndim == 1 and maps.numel() == len(inputs) and torch.equal(maps.flatten(), inputs)
