"""Turns a picture that a user made into an image like those a network was trained on: your own handwriting just works.

array, steps = prepare(images.decode("note.jpg"), classifier.spec)  # (C, H, W) uint8, and what was done

If the training images are ink on a plain background (see image_statistics), the ink is found, separated from its paper,
and given the size, the stroke width and the position of the ink in the training images. Nothing here is specific to
digits. Other images are only resized and converted to the right number of channels.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing import images, segmentation
from nnx.preprocessing.image_statistics import (
    LEVEL,
    Floats,
    ImageStatistics,
    contrast,
    ink_box,
    mass_centre,
    stroke_width,
)
from nnx.preprocessing.segmentation import Ink, PaperModel
from nnx.preprocessing.spec import Spec

Pixels = NDArray[np.uint8]

SEARCH_SIZE = 512  # pixels of the larger side of the picture in which ink is searched
DETAIL = 5  # pixels per pixel of the training images, when the ink is separated from its paper
MAX_DETAIL = 400  # pixels of the whole ink, at most, when it is separated
MARGIN = 0.25  # around the ink, as a share of its larger side, when it is separated
MAX_PAGES = 3  # number of nested pages to cut out, at most
PAGE_EDGE = 0.02  # how much of a page's edge is cut off, as a share of its side
THIN, FAT = 0.8, 1.35  # strokes outside this range, in units of the training images' stroke width, are changed
PALE = 0.95  # ink paler than this share of the ink's level, as strokes narrower than a pixel are, is made darker
# Ink stays where it is if its bounding box and its centre differ from the training images' by less than this share of
# its size.
SAME_BOX, SAME_PLACE = 0.15, 0.06


@dataclass(frozen=True)
class Step:
    """A step of the preparation, in words, and the picture after it: (h, w, C) uint8 of any size."""

    text: str
    picture: Pixels


def prepare(pixels: Pixels, spec: Spec) -> tuple[Pixels, list[Step]]:
    """(h, w, 1 or 3) -> (C, H, W) as in `spec`, and the steps that changed something.

    An image with the size and the polarity of the training images is not changed. If the training images were resized
    (`spec.fit`), an image of their polarity is only resized in the same way, so the network sees its training images as
    it did in training. If the training images are not strokes of ink, or their statistics are unknown, an image of
    another size is only resized.
    """
    _, H, W = spec.shape
    statistics = spec.image_statistics
    sized = images.to_size(pixels, H, W, spec.fit) if spec.fit else pixels
    if statistics and statistics.plain and (sized.shape[:2] != (H, W) or _is_inverted(sized, statistics)):
        steps = _prepare_ink(pixels, spec, statistics)
        return resize_to_spec(steps[-1].picture if steps else pixels, spec), steps
    image = resize_to_spec(pixels, spec)
    if pixels.shape[:2] == (H, W):
        return image, []
    if spec.fit:
        reason = ", as in the training"
    elif statistics:
        reason = ""
    else:
        reason = ", and no more: the checkpoint does not say what its images look like"
    text = f"resized from {_format_size(pixels)}{reason}"
    return image, [Step(text, np.ascontiguousarray(image.transpose(1, 2, 0)))]


def resize_to_spec(pixels: Pixels, spec: Spec) -> Pixels:
    """(h, w, 1 or 3) -> (C, H, W) with the channels and the size of `spec`, without any other preparation."""
    C, H, W = spec.shape
    return images.to_size(images.to_channels(pixels, C), H, W, spec.fit or "pad").transpose(2, 0, 1)


def _is_inverted(pixels: Pixels, statistics: ImageStatistics) -> bool:
    return bool(statistics.is_inverted(images.border(images.to_channels(pixels, 1)))[0])


def _format_size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


# ---------------------------------------------------------------- ink


def _prepare_ink(pixels: Pixels, spec: Spec, statistics: ImageStatistics) -> list[Step]:
    """The steps that make the ink in a picture look like that of the training images."""
    steps = _StepLog(pixels)
    gray = images.to_channels(pixels, 1)
    steps.add("made gray", gray)
    if _is_aligned(~gray, spec, statistics):
        steps.add("inverted", ~gray)
        return steps.steps
    ink, pixels, scale = _find_ink(pixels, steps)
    if ink is None:
        steps.add("no ink found", np.full((*spec.shape[1:], 1), statistics.background, np.uint8))
        return steps.steps
    gray = images.to_channels(pixels, 1)
    if ink.darker != (statistics.ink < statistics.background):
        gray = ~gray
        steps.add("inverted", gray)
    top, bottom, left, right = (edge / scale for edge in ink.box)
    size = max(bottom - top, right - left)
    margin = MARGIN * size + 1
    part = (
        slice(max(0, int(top - margin)), int(bottom + margin)),
        slice(max(0, int(left - margin)), int(right + margin)),
    )
    besides = f", {ink.others} other mark{'s' * (ink.others > 1)} left aside" if ink.others else ""
    steps.add(f"cropped to {_format_size(gray[part])}{besides}", gray[part])

    box = min(statistics.box, max(spec.shape[1:]))
    ink = _refine_ink(ink, pixels, part, scale, min(DETAIL * box, MAX_DETAIL) / size)
    strokes = _separate_strokes(ink, statistics, steps)
    strokes, text = _match_stroke_width(strokes, spec, statistics, box)
    steps.add(text, _to_gray_levels(strokes, statistics))

    placed = _place_ink(strokes, spec, statistics, box)
    steps.add(f"scaled to {box} pixels, centred by {statistics.centred}", _to_gray_levels(placed, statistics))
    full = float(np.percentile(placed[placed > LEVEL], 95)) if (placed > LEVEL).any() else 1.0
    steps.add("stretched the contrast", _to_gray_levels(placed / (full if full < PALE else 1), statistics))
    return steps.steps


class _StepLog:
    """The steps that changed something, starting from a first picture."""

    def __init__(self, first: Pixels) -> None:
        self.steps: list[Step] = []
        self.latest = first

    def add(self, text: str, picture: Pixels) -> None:
        """Add a step, unless it changed nothing. (Gray in three channels equals gray in one.)"""
        if picture.shape[:2] != self.latest.shape[:2] or (picture != self.latest).any():
            self.steps.append(Step(text, picture))
            self.latest = picture


def _find_ink(pixels: Pixels, steps: _StepLog) -> tuple[Ink | None, Pixels, float]:
    """The ink; the picture that it is in, or the page in that; and the scale at which the picture was searched."""
    for _ in range(MAX_PAGES):
        scale = min(1.0, SEARCH_SIZE / max(pixels.shape))
        ink = segmentation.find_ink(_rescale(pixels, scale))
        if ink is None or not ink.page:
            return ink, pixels, scale
        top, bottom, left, right = (edge / scale for edge in ink.box)
        edge = PAGE_EDGE * max(bottom - top, right - left)
        page = pixels[int(top + edge) : int(bottom - edge) + 1, int(left + edge) : int(right - edge) + 1]
        if not page.size:
            break
        pixels = np.ascontiguousarray(page)
        steps.add(f"cut out the page, {_format_size(pixels)}", images.to_channels(pixels, 1))
    return None, pixels, 1.0


def _refine_ink(ink: Ink, pixels: Pixels, part: tuple[slice, slice], scale: float, fine_scale: float) -> Ink:
    """The ink in a part of the picture, found again at `fine_scale`, with the same paper model or a simpler one.

    If that finds nothing, or the opposite, the result is `ink`, which was found at `scale`, resized to `fine_scale`. So
    it is for ink on even paper in a small picture, such as a drawing: a second search would see no more, and takes 3 of
    8 ms.
    """
    if ink.paper != "even" or scale < min(1, fine_scale):
        papers: tuple[PaperModel, ...] = ("even", "smooth") if ink.paper == "smooth" else (ink.paper,)
        reach = round(max(ink.share.shape) * segmentation.REACH * fine_scale / scale)
        refined = segmentation.find_ink(_rescale(pixels[part], fine_scale), papers, max(3, reach))
        if refined and refined.darker == ink.darker and not refined.page:
            return refined
    height, width = (max(1, round(n * fine_scale)) for n in pixels[part].shape[:2])
    rows, columns = (slice(int(side.start * scale), int(side.stop * scale) + 1) for side in part)
    share = _resize_ink(ink.share[rows, columns], height, width)
    mask = _resize_ink(ink.mask.astype(np.float32)[rows, columns], height, width) > 0.5
    return replace(ink, share=share, mask=mask)


def _separate_strokes(ink: Ink, statistics: ImageStatistics, steps: _StepLog) -> Floats:
    """(h, w) strokes from 0 to 1, without their paper and without other marks."""
    if ink.paper != "even":
        steps.add("evened out the light", _to_gray_levels(ink.share, statistics))
    strokes: Floats = np.clip((ink.share - 0.25) * 2, 0, 1)
    steps.add("separated the ink from its paper", _to_gray_levels(strokes, statistics))
    strokes = strokes * segmentation.dilate(ink.mask)  # with the soft edges of the marks, two pixels wide
    steps.add("removed what else there was", _to_gray_levels(strokes, statistics))
    return strokes


def _match_stroke_width(strokes: Floats, spec: Spec, statistics: ImageStatistics, box: int) -> tuple[Floats, str]:
    """Strokes that are as wide as those of the training images once scaled to their size, and a description of the
    change. Unchanged, with an empty description, if their width is close to it."""
    first = _scaled_stroke_width(strokes, spec, statistics, box)
    target = min(max(statistics.stroke, 0.5), box / 2)
    if not first or THIN * target <= first <= FAT * target:
        return strokes, ""
    current = first
    pixel = _ink_size(strokes) / box
    growth = 0.0
    changed = strokes
    narrow = _narrow_half_width(strokes) if first > target else 0.0
    # In up to 4 steps: a stroke narrower than a pixel does not look narrower, and the box grows with its strokes.
    for _ in range(4):
        if abs(current - target) < 0.1 * target:
            break
        growth += (target - current) / 2 * pixel  # on each side
        if narrow:
            # Filled loops look like wide strokes; the narrow strokes show how wide the pen was.
            growth = max(growth, min(0.0, target / 2 * pixel - narrow))
        changed = _grow(strokes, growth)
        current = _scaled_stroke_width(changed, spec, statistics, box)
    if not growth:
        return strokes, ""
    verb = "thickened" if current > first else "thinned"
    return changed, f"strokes {verb} from {first:.1f} to {current:.1f} pixels"


def _scaled_stroke_width(strokes: Floats, spec: Spec, statistics: ImageStatistics, box: int) -> float:
    """The width of strokes in pixels of the training images, once scaled to their size."""
    return float(stroke_width(_place_ink(strokes, spec, statistics, box)[None])[0])


def _narrow_half_width(strokes: Floats) -> float:
    """Half the width of the narrow strokes: the 20th percentile along the strokes' centre lines."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(strokes, 1) > 0.5)
    ridge = (depth >= ndimage.maximum_filter(depth, 3)) & (depth > depth.max() / 4)
    return float(np.percentile(depth[ridge], 20)) if ridge.any() else 0.0


def _grow(strokes: Floats, growth: float) -> Floats:
    """Strokes that are wider by `growth` pixels on each side, or narrower if it is negative."""
    from scipy import ndimage

    solid = np.pad(strokes, int(max(growth, 0)) + 2) > 0.5
    inside, outside = (ndimage.distance_transform_edt(part) for part in (solid, ~solid))
    grown: Floats = np.clip(np.where(solid, inside, 1 - outside) + growth, 0, 1).astype(np.float32)
    return grown


def _place_ink(strokes: Floats, spec: Spec, statistics: ImageStatistics, box: int) -> Floats:
    """(h, w) strokes -> (H, W), with the size and the position of the ink in the training images."""
    _, H, W = spec.shape
    first, last, left, right = (int(edge) for edge in np.nan_to_num(ink_box(strokes[None])[0]))
    part = strokes[first : last + 1, left : right + 1]
    scale = box / max(part.shape)
    height, width = (max(1, min(most, round(n * scale))) for n, most in zip(part.shape, (H, W), strict=True))
    small = _resize_ink(part, height, width)
    by_mass = statistics.centred == "mass" and small.any()
    centre = mass_centre(small[None])[0] if by_mass else (np.array(small.shape) - 1) / 2
    target = (np.array([H, W]) - 1) / 2 + statistics.centre
    offset = target - centre
    y, x = (int(min(max(round(float(n)), 0), room)) for n, room in zip(offset, (H - height, W - width), strict=True))
    placed = np.zeros((H, W), np.float32)
    placed[y : y + height, x : x + width] = small
    return placed


def _is_aligned(gray: Pixels, spec: Spec, statistics: ImageStatistics) -> bool:
    """Whether an image has the size, the background, and the bounding box and centre of the ink of the training
    images."""
    if gray.shape[:2] != spec.shape[1:]:
        return False
    share = contrast(gray[None, :, :, 0], statistics.background, statistics.ink)
    box = ink_box(share)[0]
    centre = mass_centre(share)[0] if statistics.centred == "mass" else box.reshape(2, 2).mean(1)
    offset = np.abs(centre - (np.array(share.shape[1:]) - 1) / 2 - statistics.centre).max()
    size = max(box[1] - box[0], box[3] - box[2]) + 1
    clean = float(np.median(images.border(share[0]))) < 0.05 and float(share.max()) > 0.8
    same_size = abs(size - statistics.box) <= max(1, SAME_BOX * statistics.box)
    return clean and same_size and bool(offset <= max(1, SAME_PLACE * statistics.box))


def _ink_size(strokes: Floats) -> float:
    """The larger side of the ink's bounding box in pixels, 0 without ink."""
    box = np.nan_to_num(ink_box(strokes[None])[0], nan=-1)
    return float(max(box[1] - box[0], box[3] - box[2]) + 1) if box[0] >= 0 else 0.0


def _to_gray_levels(share: Floats, statistics: ImageStatistics) -> Pixels:
    """(h, w) shares of ink -> (h, w, 1) gray levels as in the training images."""
    levels = statistics.background + (statistics.ink - statistics.background) * np.clip(share, 0, 1)
    return np.rint(levels).astype(np.uint8)[:, :, None]


def _rescale(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    return images.to_size(pixels, height, width, "stretch")


def _resize_ink(share: Floats, height: int, width: int) -> Floats:
    """(h, w) shares -> (height, width), antialiased, in steps of 1/255."""
    pixels = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)[:, :, None]
    return images.to_size(pixels, height, width, "stretch")[:, :, 0].astype(np.float32) / np.float32(255)
