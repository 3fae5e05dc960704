"""Patterns: what excites units of every layer most, among the test images and among all images that can be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _ascent, _draw, _units
from nnx.models import _layer_outputs

IMAGES = 5000  # that are looked at
UNITS = 8  # of a layer in a picture
BEST = 9  # images of a unit
BLUR = 0.15  # of the square root of a field's side: 0.8 pixels of 28, 0.5 of 10, nothing to speak of of 4
FINER = 3  # times: so that a frame is thinner than a pixel
FRAME = (0.9, 0.62, 0.0)  # orange
READING = (
    "Each line is one unit: first an image made by gradient ascent to excite it, then the nine test images that excite it most, each cut "
    "to what the unit can see; where layers build on one another, edges come first, then strokes and parts, and whole classes last."
)


def applies(checkpoint: Checkpoint) -> str | None:
    return None if checkpoint.spec.is_image else "shows images, and this network sees rows of numbers"


def explain(subject: Subject) -> Explanation:
    test = subject.data("test")
    looked_at = np.sort(np.random.default_rng(subject.seed).permutation(len(test))[:IMAGES])
    images, labels = test.inputs[looked_at], test.labels[looked_at]
    layers = excited(subject.network, subject, images)
    untrained = excited(subject.untrained, subject, images)
    below = next((layer for layer in layers if len(layer.shape) == 2), layers[0])
    for layer in layers:
        layer.see(subject, below)
    made = _ascent.maximise(
        subject.network,
        subject.prepare,
        images.mean(0) / 255,
        [target for layer in layers for target in layer.targets],
        subject.seed,
    )
    figures: dict[str, Any] = {"images": len(images), "layers": {}}
    pictures = []
    for layer, control in zip(layers, untrained, strict=True):
        own, made = made[: len(layer.units)], made[len(layer.units) :]
        found = _figures(layer, subject, own, labels) | {"same_class_untrained": _same_class(control, labels)}
        figures["layers"][layer.name] = found
        pictures.append(_picture(layer, subject, own, images, found))
    return Explanation(READING, tuple(pictures), figures)


@dataclass
class LayerPatterns:
    """How much images excite the units of a layer: (N, U) the most at any place, and (N, U) at which. `units` are those
    that are shown."""

    name: str
    shape: tuple[int, ...]  # of its output for one image
    most: NDArray[np.float32]
    where: NDArray[np.int64]

    def __post_init__(self) -> None:
        by_spread = np.argsort(-self.most.var(0), kind="stable")
        self.units = np.arange(min(self.most.shape[1], 10)) if self.name == _layer_outputs.LOGITS else by_spread[:UNITS]
        self.best = np.argsort(-self.most[:, self.units], axis=0, kind="stable")[
            :BEST
        ].T  # (units shown, 9), strongest first
        self.places = self.where[self.best, self.units[:, None]]
        middle = (
            [self.shape[1] // 2 * self.shape[2] + self.shape[2] // 2] * len(self.units)
            if len(self.shape) == 3
            else None
        )
        self.own_places = (
            np.array(middle) if middle else self.places[:, 0]
        )  # of a map, whose middle sees most; else where the best has it

    def see(self, subject: Subject, below: "LayerPatterns") -> None:
        """Find what the shown units can see at the places where they are shown; where that is the whole image and units
        are of tokens, also each token's own patch: what it was made of in the layer `below`, the first of tokens."""
        places = np.unique(np.append(self.places, self.own_places)).tolist()
        found = _units.receptive_field(subject.network, subject.spec, self.name, places)
        self.fields = dict(zip(places, found, strict=True))
        boxes = [_box(field) for field in found]
        self.size = tuple(max(box[axis].stop - box[axis].start for box in boxes) for axis in (0, 1))
        self.patches: dict[int, NDArray[np.bool_]] = {}
        if below is not self and len(self.shape) == len(below.shape) == 2 and found.all():
            others = self.shape[0] - below.shape[0]  # a class token stands before those of patches
            if own := [place for place in places if place >= others]:
                patches = _units.receptive_field(
                    subject.network, subject.spec, below.name, [place - others for place in own]
                )
                self.patches = dict(zip(own, patches, strict=True))

    @property
    def targets(self) -> list[_ascent.Target]:
        side = min(self.size)
        regular = {
            "shift": side // 10,
            "blur": BLUR * side**0.5,
            "pull": min(1, side / 28),
        }  # a field of few pixels has no room for noise
        pairs = zip(self.units.tolist(), self.own_places.tolist(), strict=True)
        return [_ascent.Target(self.name, unit, place, **regular) for unit, place in pairs]


def excited(network: nn.Module, subject: Subject, images: NDArray[Any]) -> list[LayerPatterns]:
    """How much each of N images (N, C, H, W) excites each unit of each layer of the network."""
    parts: dict[str, list[tuple[NDArray[np.float32], NDArray[np.int64]]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for x in _units.batches(subject, images):  # a layer's output for all images may be more than memory holds
        for name, output in _units.some(_layer_outputs.layer_outputs(network, x)).items():
            most, where = _units.by_place(output).max(2)
            parts.setdefault(name, []).append((most.numpy(), where.numpy()))
            shapes[name] = tuple(output.shape[1:])
    return [
        LayerPatterns(name, shapes[name], *(np.concatenate(side) for side in zip(*found, strict=True)))
        for name, found in parts.items()
    ]


def _same_class(layer: LayerPatterns, labels: NDArray[np.int64]) -> float:
    """Of a unit's nine images, the share that is of one class, averaged over the shown units."""
    return float(np.mean([np.bincount(labels[best]).max() / len(best) for best in layer.best]))


def _figures(
    layer: LayerPatterns, subject: Subject, made: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    reached = _layer_outputs.layer_outputs(subject.network, subject.inputs(made * 255))[layer.name]
    units = []
    for n, unit in enumerate(layer.units.tolist()):
        strongest = float(layer.most[layer.best[n, 0], unit])
        optimised = float(_units.by_place(reached)[n, unit, layer.own_places[n]])
        classes = [subject.classes[label] for label in labels[layer.best[n]]]
        units.append({"unit": unit, "strongest": strongest, "optimised": optimised, "classes": classes})
    return {
        "units": layer.most.shape[1],
        "field": list(layer.size),
        "shown": units,
        "optimised_stronger": float(np.mean([unit["optimised"] > unit["strongest"] for unit in units])),
        "same_class": _same_class(layer, labels),
    }


# ---------------------------------------------------------------- pictures


def _picture(
    layer: LayerPatterns, subject: Subject, made: NDArray[np.float32], images: NDArray[Any], found: dict[str, Any]
) -> Picture:
    """A line a unit: its optimised input, and the images that excite it most."""
    first = [_tile(image, layer, place) for image, place in zip(made, layer.own_places, strict=True)]
    best = [
        _tile(images[n] / 255, layer, place)
        for line, places in zip(layer.best, layer.places, strict=True)
        for n, place in zip(line, places, strict=True)
    ]
    each = layer.best.shape[1]
    left, right = _draw.tile(first, 1), _draw.tile(best, each)
    figure = _draw.new_figure(8, 0.35 + 7.2 * left.shape[0] / (left.shape[1] + right.shape[1]))
    axes = figure.subplots(1, 2, width_ratios=[left.shape[1], right.shape[1]])
    for side, sheet in zip(axes, (left, right), strict=True):
        _draw.show(_draw.hide_axes(side), sheet)
        side.set_facecolor(_draw.FAINT)  # white ink has to end somewhere on a white page
    logits = layer.name == _layer_outputs.LOGITS
    names = [_draw.shorten(subject.classes[unit]) if logits else f"{unit}" for unit in layer.units]
    lines = (np.arange(len(names)) + 0.5) * left.shape[0] / len(names)
    axes[0].set_yticks(lines, names)
    axes[0].tick_params(length=0)
    axes[0].set_ylabel("class" if logits else "unit")
    axes[0].set_title("made for it")
    axes[1].set_title("the test images that excite it most, the strongest first")
    return Picture(f"patterns-{layer.name}", _caption(layer, found), _draw.to_png(figure))


def _caption(layer: LayerPatterns, found: dict[str, Any]) -> str:
    shown, of = len(layer.units), found["units"]
    which = (
        f"all {of} units"
        if shown == of
        else f"{shown} of {of} units, those whose answers differ most from image to image"
    )
    if layer.name == _layer_outputs.LOGITS:
        which = f"{shown} of {of} classes" if shown < of else f"all {of} classes"
    height, width = layer.size
    marked = ""
    if layer.patches:
        marked = ", of which the frame is its own patch"
    elif len(layer.shape) == 2 and any(
        field.shape == layer.size and not field.all() for field in layer.fields.values()
    ):
        marked = " at most: what comes later in the image it did not know yet"
    return (
        f"{layer.name}: {which}. A unit sees {height}×{width} pixels{marked}. Of its nine images {100 * found['same_class']:.0f} % are of "
        f"one class, with random weights {100 * found['same_class_untrained']:.0f} %."
    )


def _box(field: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns that a field spans."""
    rows, columns = np.flatnonzero(field.any(1)), np.flatnonzero(field.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _tile(image: NDArray[Any], layer: LayerPatterns, place: int) -> NDArray[Any]:
    """What a unit sees of an image (C, H, W) in [0, 1] at a place, as (h, w, 3) of the layer's size; the rest is
    transparent.

    At the edge of the image a unit sees less, and that stands where it would in the whole field.
    """
    field = layer.fields[place]
    grey = _draw.as_image(image)
    seen = np.where(field[:, :, None], grey if grey.ndim == 3 else grey[:, :, None], np.nan).repeat(
        3 if grey.ndim == 2 else 1, 2
    )
    tile = np.full((*layer.size, 3), np.nan)
    source, target = [], []
    for span, size, whole in zip(_box(field), layer.size, field.shape, strict=True):
        length = span.stop - span.start
        from_end = size < whole and span.start == 0
        begin = span.start if size == whole else size - length if from_end else 0
        source.append(span)
        target.append(slice(begin, begin + length))
    tile[tuple(target)] = seen[tuple(source)]
    return _framed(tile, layer.patches.get(place)) if layer.patches else tile


def _framed(tile: NDArray[Any], patch: NDArray[np.bool_] | None) -> NDArray[Any]:
    """A whole image (H, W, 3) with a thin frame around its patch."""
    tile = tile.repeat(FINER, 0).repeat(FINER, 1)
    if patch is not None:
        rows, columns = (slice(span.start * FINER, span.stop * FINER) for span in _box(patch))
        inside = tile[rows, columns]
        for side in (inside[:1], inside[-1:], inside[:, :1], inside[:, -1:]):
            side[:] = FRAME
    return tile
