"""What the training images of a network have in common, so that other images can be made to look like them.

MNIST's digits, for example, are bright strokes on black, 2.3 pixels wide and 20 pixels large, with their centre of mass
in the middle of 28 pixels. These statistics are measured on the images, and the checkpoint contains them.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing.images import border, to_size

Centred = Literal["mass", "box"]
Floats = NDArray[np.float32]

SAMPLES = 500  # maximum number of images to measure
NUMBERS = 600_000  # maximum number of values in them
LEVEL = 0.2  # a pixel is ink from this share of the contrast between background and ink on
CONTRAST = 40  # minimum difference in gray levels between background and ink
PAPER = 0.6  # minimum share of the border pixels that are close to the background's level (8x8 digits: 0.74)
SLENDER = 0.25  # maximum width of strokes, as a share of the side of their bounding box (digits: 0.22)
FULL = 0.7  # maximum share of the bounding box that strokes cover (digits: 0.6)
AVERAGE = 32  # maximum side of the average image in pixels


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the training images, stored in the checkpoint. Gray levels range from 0 to 255; lengths are in
    pixels of the training images."""

    background: int  # level of the border
    ink: int  # the level that is farthest from the background in a typical image
    plain: bool  # whether the images are strokes of ink on that background; if not, the next four mean little
    box: int  # the larger side of the ink's bounding box
    stroke: float  # width of the strokes
    centred: Centred  # which point has a fixed position: the ink's centre of mass, or the centre of its bounding box
    centre: tuple[float, float]  # that position, down and right of the middle of the image
    average: tuple[tuple[int, ...], ...]  # the mean image in gray, resized to at most 32 x 32

    @classmethod
    def measure(cls, images: Any) -> "ImageStatistics":
        """The statistics of (N, C, H, W) uint8 training images, an array or Mapped. Measures at most 500 of them,
        evenly spaced: 6 ms."""
        count = max(1, min(SAMPLES, NUMBERS // math.prod(images.shape[1:])))
        sample = np.asarray(images[:: -(-len(images) // count)])
        gray = sample.mean(1, dtype=np.float32) if sample.shape[1] > 1 else sample[:, 0].astype(np.float32)
        edges = border(gray.transpose(1, 2, 0))  # (pixels, N)
        background = round(float(np.median(edges)))
        low, high = (round(float(np.median(levels))) for levels in (gray.min((1, 2)), gray.max((1, 2))))
        ink = high if high - background >= background - low else low
        strokes = contrast(gray, background, ink)
        has_ink = (strokes > LEVEL).any((1, 2))
        average = _average_rows(gray.mean(0))
        if not has_ink.any():
            return cls(background, ink, False, max(gray.shape[1:]), 0.0, "box", (0.0, 0.0), average)
        strokes = strokes[has_ink]
        box = ink_box(strokes)
        size = round(float(np.median((box[:, 1::2] - box[:, ::2] + 1).max(1))))
        stroke = round(float(np.median(stroke_width(strokes))), 2)
        statistics = cls(background, ink, False, size, stroke, *_find_centre(strokes, box), average)
        paper = np.abs(edges - background) < LEVEL * abs(ink - background)
        plain = (
            sample.shape[1] in (1, 3)
            and bool((sample == sample[:, :1]).all())  # no colours
            and abs(ink - background) >= CONTRAST
            and bool(paper.mean() > PAPER)
            and _are_strokes(strokes, box)
            and not statistics.is_inverted(edges).any()
        )
        return replace(statistics, plain=plain)

    def is_inverted(self, edges: NDArray[Any]) -> NDArray[np.bool_]:
        """(pixels, N) borders of N images -> (N,) whether most pixels are closer to the ink's level than to the
        background's."""
        inverted: NDArray[np.bool_] = (contrast(edges, self.background, self.ink) > 0.5).mean(0) > 0.5
        return inverted

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        return {**asdict(self), "centre": list(self.centre), "average": [list(row) for row in self.average]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ImageStatistics":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError if `data` is not valid."""
        rows = data["average"]
        most = 2**26  # pixels: no input has a longer side
        if (
            not 1 <= len(rows) <= AVERAGE
            or not all(1 <= len(row) == len(rows[0]) <= AVERAGE for row in rows)
            or len(data["centre"]) != 2
        ):
            raise ValueError("not image statistics")
        statistics = cls(**{**data, "centre": tuple(data["centre"]), "average": tuple(tuple(row) for row in rows)})
        levels = (statistics.background, statistics.ink, *sum(statistics.average, ()))
        lengths = (statistics.stroke, *statistics.centre)
        valid = (
            all(type(level) is int and 0 <= level <= 255 for level in levels)
            and type(statistics.plain) is bool
            and type(statistics.box) is int
            and 0 < statistics.box <= most
            and all(type(length) in (int, float) and abs(length) <= most for length in lengths)
            and statistics.stroke >= 0
            and statistics.centred in get_args(Centred)
            and (not statistics.plain or statistics.ink != statistics.background)
        )
        if not valid:
            raise ValueError("not image statistics")
        return statistics


def contrast(gray: NDArray[Any], background: float, ink: float) -> Floats:
    """Gray levels -> 0 for the background to 1 for the ink; all 0 if the two levels are equal."""
    span = ink - background or math.inf
    share: Floats = np.clip((gray - np.float32(background)) / np.float32(span), 0, 1)
    return share


def stroke_width(strokes: Floats) -> Floats:
    """(N, H, W) ink from 0 to 1 -> (N,) the width of its strokes in pixels.

    The width is twice the area over the length of the edge, as a stroke has two edges. The edge length of soft ink is
    its total variation (the coarea formula), so blurring changes nothing as long as a stroke stays equally dark.
    """
    width = np.empty(len(strokes), np.float32)
    # 50 images at a time fit in the processor's cache: 3 ms instead of 9 for 500 of 28x28.
    for start in range(0, len(strokes), 50):
        part = np.pad(strokes[start : start + 50], ((0, 0), (1, 1), (1, 1)))
        down, right = part[:, 1:, :-1] - part[:, :-1, :-1], part[:, :-1, 1:] - part[:, :-1, :-1]
        edge = np.sqrt(down * down + right * right).sum((1, 2))
        width[start : start + 50] = 2 * part.sum((1, 2)) / np.maximum(edge, np.float32(1e-6))
    return width


def mass_centre(strokes: Floats) -> NDArray[np.float64]:
    """(N, H, W) ink -> (N, 2) position (y, x) of its centre of mass, NaN for an image without ink."""
    y, x = (np.arange(n, dtype=np.float64) for n in strokes.shape[1:])
    rows, columns = strokes.sum(2, dtype=np.float64), strokes.sum(1, dtype=np.float64)
    mass = rows.sum(1)
    mass[mass == 0] = np.nan
    return np.stack([rows @ y / mass, columns @ x / mass], 1)


def ink_box(strokes: Floats) -> NDArray[np.float64]:
    """(N, H, W) ink -> (N, 4) first and last row, first and last column of the ink, NaN for an image without ink."""
    box = np.full((len(strokes), 4), np.nan)
    for n, axis in ((0, 2), (2, 1)):
        occupied = np.any(strokes > LEVEL, axis=axis)
        has_ink = occupied.any(1)
        box[has_ink, n] = occupied[has_ink].argmax(1)
        box[has_ink, n + 1] = occupied.shape[1] - 1 - occupied[has_ink, ::-1].argmax(1)
    return box


def _find_centre(strokes: Floats, box: NDArray[np.float64]) -> tuple[Centred, tuple[float, float]]:
    """The kind of centre that varies less between (N, H, W) images, and its mean offset from the middle: y, x."""
    middle = (np.array(strokes.shape[1:]) - 1) / 2
    offsets: dict[Centred, NDArray[np.float64]] = {
        "mass": mass_centre(strokes) - middle,
        "box": box.reshape(-1, 2, 2).mean(2) - middle,
    }
    kind: Centred = "mass" if offsets["mass"].var(0).sum() < offsets["box"].var(0).sum() else "box"
    down, right = offsets[kind].mean(0).tolist()
    return kind, (round(down, 2), round(right, 2))


def _are_strokes(strokes: Floats, box: NDArray[np.float64]) -> bool:
    """Whether a typical one of (N, H, W) images consists of strokes, rather than being filled like a shirt."""
    solid = (strokes > LEVEL).astype(np.float32)
    height, width = box[:, 1] - box[:, 0] + 1, box[:, 3] - box[:, 2] + 1
    slender = np.median(stroke_width(solid) / np.maximum(height, width)) <= SLENDER
    return bool(slender and np.median(solid.sum((1, 2)) / (height * width)) <= FULL)


def _average_rows(gray: Floats) -> tuple[tuple[int, ...], ...]:
    """(H, W) -> rows of whole numbers, resized to at most AVERAGE x AVERAGE."""
    H, W = gray.shape
    scale = min(1, AVERAGE / max(H, W))
    pixels = np.rint(gray).astype(np.uint8)[:, :, None]
    small = to_size(pixels, max(1, round(H * scale)), max(1, round(W * scale)), "stretch")
    return tuple(tuple(row) for row in small[:, :, 0].tolist())
