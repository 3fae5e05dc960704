"""What the training images of a network have in common, so that others can be made to look like them.

Digits of MNIST, say: bright strokes, 2.3 pixels wide, on black, 20 pixels large, their centre of mass in the middle of
28. All of that is measured from the images themselves, and kept with the network.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing.images import border, to_size

Centred = Literal["mass", "box"]
Floats = NDArray[np.float32]

SAMPLES = 500  # images that are measured
NUMBERS = 600_000  # in them, at most
LEVEL = 0.2  # of the contrast between background and ink: from there on it's ink
CONTRAST = 40  # gray levels at least from the background to the ink
PAPER = 0.6  # of the pixels of the borders, at least, are about the background's level (8x8 digits: 0.74)
SLENDER, FULL = (
    0.25,
    0.7,
)  # strokes are at most so wide, as a share of their box's side, and cover so much of it (digits: 0.22, 0.6)
AVERAGE = 32  # pixels a side, at most, of the average image


@dataclass(frozen=True)
class ImageStatistics:
    """Measured from training images. Kept in the checkpoint. Gray levels are 0 to 255, lengths in pixels of the
    training images."""

    background: int  # of the border
    ink: int  # the level that is farthest from the background, in the usual image
    plain: bool  # whether the images are strokes of ink on that background; if not, the next four mean little
    box: int  # the larger side of the box round the ink
    stroke: float  # how wide the strokes are
    centred: Centred  # what keeps its place in the image: the ink's centre of mass, or the middle of its box
    centre: tuple[float, float]  # that place, down and right of the middle of the image
    average: tuple[
        tuple[int, ...], ...
    ]  # the mean of the images in gray, made smaller where they are larger than 32 x 32

    @classmethod
    def measure(cls, images: Any) -> "ImageStatistics":
        """The look of (N, C, H, W) uint8 training images, an array or Mapped, from 500 of them at most, evenly spaced:
        6 ms."""
        count = max(1, min(SAMPLES, NUMBERS // math.prod(images.shape[1:])))
        some = np.asarray(images[:: -(-len(images) // count)])
        gray = some.mean(1, dtype=np.float32) if some.shape[1] > 1 else some[:, 0].astype(np.float32)
        edges = border(gray.transpose(1, 2, 0))  # (pixels, N)
        background = round(float(np.median(edges)))
        low, high = (round(float(np.median(found))) for found in (gray.min((1, 2)), gray.max((1, 2))))
        ink = high if high - background >= background - low else low
        strokes = contrast(gray, background, ink)
        there = (strokes > LEVEL).any((1, 2))  # of an image without ink nothing is known
        if not there.any():
            return cls(background, ink, False, max(gray.shape[1:]), 0.0, "box", (0.0, 0.0), _small(gray.mean(0)))
        box = ink_box(strokes[there])
        size = round(float(np.median((box[:, 1::2] - box[:, ::2] + 1).max(1))))
        stroke = round(float(np.median(stroke_width(strokes[there]))), 2)
        look = cls(background, ink, False, size, stroke, *_centred(strokes[there], box), _small(gray.mean(0)))
        paper = np.abs(edges - background) < LEVEL * abs(ink - background)
        plain = (
            some.shape[1] in (1, 3)
            and bool((some == some[:, :1]).all())  # no colours
            and abs(ink - background) >= CONTRAST
            and bool(paper.mean() > PAPER)
            and _are_strokes(strokes[there], box)
            and not look.is_inverted(edges).any()
        )
        return replace(look, plain=plain)

    def is_inverted(self, edges: NDArray[Any]) -> NDArray[np.bool_]:
        """(pixels, N) borders of N images -> whether most of each is of the ink's level rather than of the
        background's."""
        inverted: NDArray[np.bool_] = (contrast(edges, self.background, self.ink) > 0.5).mean(0) > 0.5
        return inverted

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        return {**asdict(self), "centre": list(self.centre), "average": [list(row) for row in self.average]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ImageStatistics":
        """Inverse of `to_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        rows, most = data["average"], 2**26  # pixels a side: more than any input has
        if (
            not 1 <= len(rows) <= AVERAGE
            or not all(1 <= len(row) == len(rows[0]) <= AVERAGE for row in rows)
            or len(data["centre"]) != 2
        ):
            raise ValueError("not a look")
        look = cls(**{**data, "centre": tuple(data["centre"]), "average": tuple(tuple(row) for row in rows)})
        right = (
            all(
                type(level) is int and 0 <= level <= 255
                for level in (look.background, look.ink, *sum(look.average, ()))
            )
            and type(look.plain) is bool
            and type(look.box) is int
            and 0 < look.box <= most
            and all(type(number) in (int, float) and abs(number) <= most for number in (look.stroke, *look.centre))
            and look.stroke >= 0
            and look.centred in get_args(Centred)
            and (not look.plain or look.ink != look.background)
        )
        if not right:
            raise ValueError("not a look")
        return look


def contrast(gray: NDArray[Any], background: float, ink: float) -> Floats:
    """Gray levels as shares of the way from the background, 0, to the ink, 1; all 0 where these are the same."""
    span = ink - background or math.inf
    share: Floats = np.clip((gray - np.float32(background)) / np.float32(span), 0, 1)
    return share


def stroke_width(strokes: Floats) -> Floats:
    """(N, H, W) ink from 0 to 1 -> (N,) how wide its strokes are, in pixels.

    Twice the area over the length of the edge, as a stroke has two. The edge of soft ink is its total variation (the
    coarea formula), so blurring it changes nothing, as long as a stroke stays as dark.
    """
    width = np.empty(len(strokes), np.float32)
    for start in range(
        0, len(strokes), 50
    ):  # as many as stay in the processor's cache: 3 ms instead of 9 for 500 of 28x28
        part = np.pad(strokes[start : start + 50], ((0, 0), (1, 1), (1, 1)))
        down, right = part[:, 1:, :-1] - part[:, :-1, :-1], part[:, :-1, 1:] - part[:, :-1, :-1]
        edge = np.sqrt(down * down + right * right).sum((1, 2))
        width[start : start + 50] = 2 * part.sum((1, 2)) / np.maximum(edge, np.float32(1e-6))
    return width


def mass_centre(strokes: Floats) -> NDArray[np.float64]:
    """(N, H, W) ink -> (N, 2), the place (y, x) of its centre of mass; NaN where there is none."""
    y, x = (np.arange(n, dtype=np.float64) for n in strokes.shape[1:])
    rows, columns = strokes.sum(2, dtype=np.float64), strokes.sum(1, dtype=np.float64)
    mass = rows.sum(1)
    mass[mass == 0] = np.nan
    return np.stack([rows @ y / mass, columns @ x / mass], 1)


def ink_box(strokes: Floats) -> NDArray[np.float64]:
    """(N, H, W) ink -> (N, 4), its first and last row, first and last column; NaN where there is none."""
    found = np.full((len(strokes), 4), np.nan)
    for n, axis in ((0, 2), (2, 1)):
        there = np.any(strokes > LEVEL, axis=axis)
        some = there.any(1)
        found[some, n] = there[some].argmax(1)
        found[some, n + 1] = there.shape[1] - 1 - there[some, ::-1].argmax(1)
    return found


def _centred(strokes: Floats, box: NDArray[np.float64]) -> tuple[Centred, tuple[float, float]]:
    """Which centre varies less from one of (N, H, W) images to the next, and its mean distance from the middle, down
    and right."""
    middle = (np.array(strokes.shape[1:]) - 1) / 2
    offsets: dict[Centred, NDArray[np.float64]] = {
        "mass": mass_centre(strokes) - middle,
        "box": box.reshape(-1, 2, 2).mean(2) - middle,
    }
    kind: Centred = "mass" if offsets["mass"].var(0).sum() < offsets["box"].var(0).sum() else "box"
    down, right = offsets[kind].mean(0).tolist()
    return kind, (round(down, 2), round(right, 2))


def _are_strokes(strokes: Floats, box: NDArray[np.float64]) -> bool:
    """Whether the usual one of (N, H, W) images is drawn with strokes, rather than filled as a shirt is."""
    solid = (strokes > LEVEL).astype(np.float32)
    height, width = box[:, 1] - box[:, 0] + 1, box[:, 3] - box[:, 2] + 1
    slender = np.median(stroke_width(solid) / np.maximum(height, width)) <= SLENDER
    return bool(slender and np.median(solid.sum((1, 2)) / (height * width)) <= FULL)


def _small(gray: Floats) -> tuple[tuple[int, ...], ...]:
    """(H, W) as rows of whole numbers, no more than AVERAGE of either."""
    H, W = gray.shape
    scale = min(1, AVERAGE / max(H, W))
    pixels = np.rint(gray).astype(np.uint8)[:, :, None]
    small = to_size(pixels, max(1, round(H * scale)), max(1, round(W * scale)), "stretch")
    return tuple(tuple(row) for row in small[:, :, 0].tolist())
