"""Patterns: the images of the dataset, and the optimised image, that activate units of each layer most."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _ascent, _draw, _units
from nnx.models import _layer_outputs

IMAGES = 5000  # of the test split, if there is one
UNITS = 8  # of a layer in a picture
BEST = 9  # images of a unit
BLUR = 0.25  # of the square root of a field's side: 1.3 pixels for 28, 0.8 for 10, 0.5 for 4
COLOUR_BLUR = 1.6  # times as wide in colour, where each channel brings noise of its own
JITTER = 6  # the image shifts by at most a sixth of its field's side,
TOKEN_JITTER = 10  # or by a tenth for tokens and states, which tell the patches and rows of an image apart,
TOKEN_BLUR = 0.2  # and whose patches meet in sharp edges
MAGNIFICATION = 3  # so that a frame is thinner than a pixel
FRAME = (0.9, 0.62, 0.0)  # orange
READING = (
    "Each row is one unit. On the left is an image optimised by gradient ascent to maximise its activation; on the "
    "right are the nine {split} images with the highest activation, cut to the unit's receptive field. Where layers "
    "build on one another, look for edges first, then strokes and parts, and whole classes last."
)


def applies(checkpoint: Checkpoint) -> str | None:
    return None if checkpoint.spec.is_image else "needs images; this network reads rows of numbers"


def explain(subject: Subject) -> Explanation:
    measured = subject.measured(measure)
    figures: dict[str, Any] = {"images": len(measured.images), "layers": {}}
    pictures = []
    for layer in measured.layers:
        statistics = measured.statistics[layer.name]
        figures["layers"][layer.name] = statistics
        pictures.append(_draw_layer(layer, subject, measured.optimised[layer.name], measured.images, statistics))
    return Explanation(READING.format(split=subject.held_out_word), tuple(pictures), figures)


@dataclass(frozen=True)
class Patterns:
    """The images that activate the shown units of each layer most: `images` (N, C, H, W) of the test split, and
    optimised ones, (units shown, C, H, W) in [0, 1]."""

    images: NDArray[Any]
    layers: list["LayerPatterns"]
    optimised: dict[str, NDArray[np.float32]]  # of each layer
    statistics: dict[str, dict[str, Any]]  # of each layer


def measure(subject: Subject) -> Patterns:
    test = subject.held_out
    chosen = np.sort(np.random.default_rng(subject.seed).permutation(len(test))[:IMAGES])
    images = test.inputs[chosen]
    labels = test.labels[chosen]
    layers = find_activations(subject.network, subject, images)
    untrained = find_activations(subject.untrained, subject, images)
    first_tokens = next((layer for layer in layers if len(layer.shape) == 2), layers[0])
    for layer in layers:
        layer.find_fields(subject, first_tokens)
    optimised = _ascent.maximise(
        subject.network,
        subject.prepare,
        images.mean(0) / 255,
        [target for layer in layers for target in layer.targets],
        subject.seed,
        _colour_covariance(images) if images.shape[1] > 1 else None,
    )
    of_layers: dict[str, NDArray[np.float32]] = {}
    statistics = {}
    for layer, control in zip(layers, untrained, strict=True):
        of_layers[layer.name] = own = optimised[: len(layer.units)]
        optimised = optimised[len(layer.units) :]
        statistics[layer.name] = _statistics(layer, subject, own, labels) | {
            "same_class_untrained": _same_class(control, labels)
        }
    return Patterns(images, layers, of_layers, statistics)


def _colour_covariance(images: NDArray[Any]) -> NDArray[np.float64]:
    """(C, C): the covariance of the channels of images (N, C, H, W), scaled to [0, 1], over all pixels, around the mean
    image."""
    mean = images.mean(0)
    total: NDArray[np.float64] = np.zeros((len(mean), len(mean)))
    for image in images:
        difference = ((image - mean) / 255).reshape(len(mean), -1)
        total += difference @ difference.T
    covariance: NDArray[np.float64] = total / (len(images) * mean[0].size)
    return covariance


@dataclass
class LayerPatterns:
    """How strongly images activate the units of a layer. `units` are those in the picture."""

    name: str
    shape: tuple[int, ...]  # of the layer's output for one image
    highest: NDArray[np.float32]  # (N, U) activation over all positions
    position: NDArray[np.int64]  # (N, U) at which it is reached

    def __post_init__(self) -> None:
        is_logits = self.name == _layer_outputs.LOGITS
        by_variance = np.argsort(-self.highest.var(0), kind="stable")
        self.units = np.arange(min(self.highest.shape[1], 10)) if is_logits else by_variance[:UNITS]
        order = np.argsort(-self.highest[:, self.units], axis=0, kind="stable")
        self.best = order[:BEST].T  # (units shown, 9), highest first
        self.positions = self.position[self.best, self.units[:, None]]
        # the middle of a feature map, where the receptive field is largest; else the position in the best image
        self.own_positions = self.positions[:, 0]
        if len(self.shape) == 3:
            _, H, W = self.shape
            self.own_positions = np.array([H // 2 * W + W // 2] * len(self.units))

    def find_fields(self, subject: Subject, first_tokens: "LayerPatterns") -> None:
        """Find the receptive fields at the shown positions. For tokens that see the whole image, also each token's own
        patch: its receptive field in `first_tokens`, the first layer of tokens."""
        positions = np.unique(np.append(self.positions, self.own_positions)).tolist()
        fields = _units.receptive_field(subject.network, subject.spec, self.name, positions)
        self.fields = dict(zip(positions, fields, strict=True))
        is_tokens = len(self.shape) == 2
        self.blur = (TOKEN_BLUR if is_tokens else BLUR) * (COLOUR_BLUR if subject.spec.shape[0] > 1 else 1)
        boxes = [_box(field) for field in fields]
        self.size = tuple(max(box[axis].stop - box[axis].start for box in boxes) for axis in (0, 1))
        self.patches: dict[int, NDArray[np.bool_]] = {}
        if first_tokens is not self and len(self.shape) == len(first_tokens.shape) == 2 and fields.all():
            others = self.shape[0] - first_tokens.shape[0]  # 1 with a class token, which comes before the patches
            if own := [position for position in positions if position >= others]:
                in_first = [position - others for position in own]
                patches = _units.receptive_field(subject.network, subject.spec, first_tokens.name, in_first)
                self.patches = dict(zip(own, patches, strict=True))

    @property
    def targets(self) -> list[_ascent.Target]:
        side = min(self.size)
        shift = side // (TOKEN_JITTER if len(self.shape) == 2 else JITTER)
        # a field of few pixels leaves no room for noise
        regularisation = {"shift": shift, "blur": self.blur * side**0.5, "pull": min(1, side / 28)}
        pairs = zip(self.units.tolist(), self.own_positions.tolist(), strict=True)
        return [_ascent.Target(self.name, unit, position, **regularisation) for unit, position in pairs]


def find_activations(network: nn.Module, subject: Subject, images: NDArray[Any]) -> list[LayerPatterns]:
    """How strongly each of N images (N, C, H, W) activates each unit of each layer of the network."""
    parts: dict[str, list[tuple[NDArray[np.float32], NDArray[np.int64]]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for x in _units.batches(subject, images):  # a layer's output for all images may not fit in memory
        for name, output in _units.select_layers(_layer_outputs.layer_outputs(network, x)).items():
            highest, position = _units.by_position(output).max(2)
            parts.setdefault(name, []).append((highest.numpy(), position.numpy()))
            shapes[name] = tuple(output.shape[1:])
    return [
        LayerPatterns(name, shapes[name], *(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
        for name, batches in parts.items()
    ]


def _same_class(layer: LayerPatterns, labels: NDArray[np.int64]) -> float:
    """The share of a unit's nine images that belong to one class, averaged over the shown units."""
    return float(np.mean([np.bincount(labels[best]).max() / len(best) for best in layer.best]))


def _statistics(
    layer: LayerPatterns, subject: Subject, optimised: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    outputs = _layer_outputs.layer_outputs(subject.network, subject.inputs(optimised * 255))
    reached = _units.by_position(outputs[layer.name])
    units = []
    for n, unit in enumerate(layer.units.tolist()):
        units.append(
            {
                "unit": unit,
                "strongest": float(layer.highest[layer.best[n, 0], unit]),
                "optimised": float(reached[n, unit, layer.own_positions[n]]),
                "classes": [subject.classes[label] for label in labels[layer.best[n]]],
            }
        )
    return {
        "units": layer.highest.shape[1],
        "field": list(layer.size),
        "shown": units,
        "optimised_stronger": float(np.mean([unit["optimised"] > unit["strongest"] for unit in units])),
        "same_class": _same_class(layer, labels),
    }


# ---------------------------------------------------------------- pictures


def _draw_layer(
    layer: LayerPatterns,
    subject: Subject,
    optimised: NDArray[np.float32],
    images: NDArray[Any],
    statistics: dict[str, Any],
) -> Picture:
    """A row per unit: its optimised image, and the images with the highest activation."""
    own = [crop(image, layer, position) for image, position in zip(optimised, layer.own_positions, strict=True)]
    best = [
        crop(images[n] / 255, layer, position)
        for row, positions in zip(layer.best, layer.positions, strict=True)
        for n, position in zip(row, positions, strict=True)
    ]
    left = _draw.tile(own, 1)
    right = _draw.tile(best, layer.best.shape[1])
    figure = _draw.new_figure(8, 0.35 + 7.2 * left.shape[0] / (left.shape[1] + right.shape[1]))
    axes = figure.subplots(1, 2, width_ratios=[left.shape[1], right.shape[1]])
    for side, sheet in zip(axes, (left, right), strict=True):
        _draw.show(_draw.hide_axes(side), sheet)
        side.set_facecolor(_draw.FAINT)  # marks where white ink ends on a white page
    is_logits = layer.name == _layer_outputs.LOGITS
    names = [_draw.shorten(subject.classes[unit]) if is_logits else f"{unit}" for unit in layer.units]
    middles = (np.arange(len(names)) + 0.5) * left.shape[0] / len(names)
    axes[0].set_yticks(middles, names)
    axes[0].tick_params(length=0)
    axes[0].set_ylabel("class" if is_logits else "unit")
    axes[0].set_title("optimised")
    axes[1].set_title(f"{subject.held_out_word} images with the highest activation, highest first")
    title = subject.layer_titles[layer.name]
    figure.suptitle(title, x=0, ha="left", fontsize=10)
    return Picture(f"patterns-{layer.name}", _caption(title, layer, statistics), _draw.to_png(figure))


def _caption(title: str, layer: LayerPatterns, statistics: dict[str, Any]) -> str:
    shown = len(layer.units)
    total = statistics["units"]
    noun = "classes" if layer.name == _layer_outputs.LOGITS else "units"
    which = f"all {total} {noun}" if shown == total else f"{shown} of {total} {noun}"
    if noun == "units" and shown < total:
        which += ", those whose activation varies most between images"
    height, width = layer.size
    note = ""
    if layer.patches:
        note = "; the frame marks the token's own patch"
    elif len(layer.shape) == 2 and any(
        field.shape == layer.size and not field.all() for field in layer.fields.values()
    ):
        note = " at most: early states have not read the later rows"
    gray = "Gray between and beside the images is no part of them"
    if any(field.shape != layer.size and not _is_whole(field, layer.size) for field in layer.fields.values()):
        gray += ", such as the part of a field that extends beyond the edge of its image"
    return (
        f"{title}: {which}. The receptive field is {height}×{width} pixels{note}. On average, "
        f"{100 * statistics['same_class']:.0f} % of a unit's nine images belong to one class "
        f"({100 * statistics['same_class_untrained']:.0f} % in the untrained network). {gray}. In an optimised image, "
        "pixels that hardly matter stay at the mean of the images."
    )


def _is_whole(field: NDArray[np.bool_], size: tuple[int, ...]) -> bool:
    """Whether the field of a position has the size of the layer's largest: the edge of the image does not cut it."""
    return tuple(span.stop - span.start for span in _box(field)) == size


def _box(field: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns of the bounding box of a field."""
    rows = np.flatnonzero(field.any(1))
    columns = np.flatnonzero(field.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def crop(image: NDArray[Any], layer: LayerPatterns, position: int) -> NDArray[Any]:
    """The receptive field of a position in an image (C, H, W) in [0, 1], as (h, w, 3) of the layer's size; all else is
    transparent.

    At the edge of the image the field is smaller; its pixels are where they would be in a whole field.
    """
    field = layer.fields[position]
    pixels = _draw.as_image(image)
    rgb = pixels if pixels.ndim == 3 else pixels[:, :, None].repeat(3, 2)
    visible = np.where(field[:, :, None], rgb, np.nan)
    tile = np.full((*layer.size, 3), np.nan)
    source = _box(field)
    target = []
    for span, size, image_size in zip(source, layer.size, field.shape, strict=True):
        length = span.stop - span.start
        is_cut_before = size < image_size and span.start == 0
        start = span.start if size == image_size else size - length if is_cut_before else 0
        target.append(slice(start, start + length))
    tile[tuple(target)] = visible[source]
    return _draw_frame(tile, layer.patches.get(position)) if layer.patches else tile


def _draw_frame(tile: NDArray[Any], patch: NDArray[np.bool_] | None) -> NDArray[Any]:
    """A whole image (H, W, 3), enlarged, with a thin frame around the patch."""
    tile = tile.repeat(MAGNIFICATION, 0).repeat(MAGNIFICATION, 1)
    if patch is not None:
        rows, columns = (slice(span.start * MAGNIFICATION, span.stop * MAGNIFICATION) for span in _box(patch))
        inside = tile[rows, columns]
        for side in (inside[:1], inside[-1:], inside[:, :1], inside[:, -1:]):
            side[:] = FRAME
    return tile
