"""A picture that somebody made -> an image such as a network was trained on: one's own handwriting just works.

array, steps = prepare(images.decode("note.jpg"), classifier.spec)  # (C, H, W) uint8, and what was done

Where the training images are ink on a plain background (see image_statistics), the ink is found, separated from its
paper, and made as large, as wide and as centred as theirs. Nothing here is assumed of digits. Other images only get the
size and the channels.
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
from nnx.preprocessing.segmentation import Ink, Paper
from nnx.preprocessing.spec import Spec

Pixels = NDArray[np.uint8]

LOOKED_AT = 512  # pixels of the larger side in which ink is looked for
FINE, FINEST = 5, 400  # pixels for one of the training images', in which it is separated; and of the whole ink, at most
MARGIN = 0.25  # round the ink, as a share of its larger side, where it is looked at closely
PAGES, PAGE_EDGE = 3, 0.02  # pages on pages, at most; how much of a page's edge is cut off, as a share of its side
THIN, FAT = 0.8, 1.35  # times the training images' stroke width: beyond these strokes are changed
PALE = 0.95  # of the ink's level: strokes that don't reach it, as they are narrower than a pixel, are made darker
SAME_BOX, SAME_PLACE = (
    0.15,
    0.06,
)  # of the ink's size: so far from the training images' box and centre it stays where it is


@dataclass(frozen=True)
class Step:
    """Something that was done, in words, and the picture after it: (h, w, C) uint8, of whatever size it then has."""

    text: str
    picture: Pixels


def prepare(pixels: Pixels, spec: Spec) -> tuple[Pixels, list[Step]]:
    """(h, w, 1 or 3) -> (C, H, W) as `spec` has it, and the steps that changed something.

    An image that has the size and the polarity of the training images is taken as it is, as is one that gets the size
    in the way in which they did (`spec.fit`), so that what was trained on is seen again as it was. Where the training
    images are no strokes of ink, or nothing is known of them, an image of another size is only resized.
    """
    _, H, W = spec.shape
    sized = images.to_size(pixels, H, W, spec.fit) if spec.fit else pixels
    if (
        spec.image_statistics
        and spec.image_statistics.plain
        and (sized.shape[:2] != (H, W) or _is_inverted(sized, spec.image_statistics))
    ):
        steps = _as_ink(pixels, spec, spec.image_statistics)
        return resize_to_spec(steps[-1].picture if steps else pixels, spec), steps
    found = resize_to_spec(pixels, spec)
    if pixels.shape[:2] == (H, W):
        return found, []
    why = (
        ", as in the training"
        if spec.fit
        else ""
        if spec.image_statistics
        else ", and no more: the checkpoint does not say what its images look like"
    )
    return found, [Step(f"resized from {_size(pixels)}{why}", np.ascontiguousarray(found.transpose(1, 2, 0)))]


def resize_to_spec(pixels: Pixels, spec: Spec) -> Pixels:
    """(h, w, 1 or 3) -> (C, H, W), with the channels of `spec`, and resized: all that is done where nothing is
    prepared."""
    C, H, W = spec.shape
    return images.to_size(images.to_channels(pixels, C), H, W, spec.fit or "pad").transpose(2, 0, 1)


def _is_inverted(pixels: Pixels, look: ImageStatistics) -> bool:
    return bool(look.is_inverted(images.border(images.to_channels(pixels, 1)))[0])


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


# ---------------------------------------------------------------- ink


def _as_ink(pixels: Pixels, spec: Spec, look: ImageStatistics) -> list[Step]:
    """What makes the ink on a picture look as in the training images, step by step."""
    steps = _Steps(pixels)
    gray = images.to_channels(pixels, 1)
    steps.add("made gray", gray)
    if _is_in_place(~gray, spec, look):
        steps.add("inverted", ~gray)
        return steps.taken
    found, pixels, scale = _looked_for(pixels, steps)
    if found is None:
        steps.add("no ink found", np.full((*spec.shape[1:], 1), look.background, np.uint8))
        return steps.taken
    gray = images.to_channels(pixels, 1)
    if found.darker != (look.ink < look.background):
        gray = ~gray
        steps.add("inverted", gray)
    top, bottom, left, right = (edge / scale for edge in found.box)
    margin = MARGIN * max(bottom - top, right - left) + 1
    part = (
        slice(max(0, int(top - margin)), int(bottom + margin)),
        slice(max(0, int(left - margin)), int(right + margin)),
    )
    besides = f", {found.others} other mark{'s' * (found.others > 1)} left aside" if found.others else ""
    steps.add(f"cropped to {_size(gray[part])}{besides}", gray[part])

    box = min(look.box, max(spec.shape[1:]))
    fine = min(FINE * box, FINEST) / max(bottom - top, right - left)  # pixels for one of the picture's
    closely = _closely(found, pixels, part, scale, fine)
    if closely.paper != "even":
        steps.add("evened out the light", _levels(closely.share, look))
    strokes = np.clip((closely.share - 0.25) * 2, 0, 1)
    steps.add("separated the ink from its paper", _levels(strokes, look))
    strokes = strokes * _beside(closely.kept)
    steps.add("removed what else there was", _levels(strokes, look))
    strokes, text = _as_wide(strokes, spec, look, box)
    steps.add(text, _levels(strokes, look))

    placed = _placed(strokes, spec, look, box)
    steps.add(f"scaled to {box} pixels, centred by {look.centred}", _levels(placed, look))
    full = float(np.percentile(placed[placed > LEVEL], 95)) if (placed > LEVEL).any() else 1.0
    steps.add("stretched the contrast", _levels(placed / (full if full < PALE else 1), look))
    return steps.taken


class _Steps:
    """The steps that changed something, from the picture that was there first."""

    def __init__(self, first: Pixels) -> None:
        self.taken: list[Step] = []
        self.latest = first

    def add(self, text: str, picture: Pixels) -> None:
        if (
            picture.shape[:2] != self.latest.shape[:2] or (picture != self.latest).any()
        ):  # gray in three channels is gray
            self.taken.append(Step(text, picture))
            self.latest = picture


def _looked_for(pixels: Pixels, steps: "_Steps") -> tuple[Ink | None, Pixels, float]:
    """The ink; the picture that it is on, or the page on that; and how many pixels were looked at for one of the
    picture's."""
    for _ in range(PAGES):
        scale = min(1.0, LOOKED_AT / max(pixels.shape))
        found = segmentation.find_ink(_scaled(pixels, scale))
        if found is None or not found.page:
            return found, pixels, scale
        top, bottom, left, right = (edge / scale for edge in found.box)
        inside = PAGE_EDGE * max(bottom - top, right - left)
        page = pixels[int(top + inside) : int(bottom - inside) + 1, int(left + inside) : int(right - inside) + 1]
        if not page.size:
            break
        pixels = np.ascontiguousarray(page)
        steps.add(f"cut out the page, {_size(pixels)}", images.to_channels(pixels, 1))
    return None, pixels, 1.0


def _closely(found: Ink, pixels: Pixels, part: tuple[slice, slice], scale: float, fine: float) -> Ink:
    """The ink in a part of the picture, looked at with `fine` pixels for one: on the same paper, or a simpler one.

    Where that finds nothing, or its opposite, it is what was found before, with `scale` pixels for one.
    """
    papers: tuple[Paper, ...] = ("even", "smooth") if found.paper == "smooth" else (found.paper,)
    close = _scaled(pixels[part], fine)
    reach = round(max(found.share.shape) * segmentation.REACH * fine / scale)
    closely = segmentation.find_ink(close, papers, max(3, reach))
    if closely and closely.darker == found.darker and not closely.page:
        return closely
    rows, columns = (slice(int(side.start * scale), int(side.stop * scale) + 1) for side in part)
    size = close.shape[:2]
    share, kept = (_resized(whole[rows, columns], *size) for whole in (found.share, found.kept.astype(np.float32)))
    return replace(found, share=share, kept=kept > 0.5)


def _beside(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The marks and their soft edges."""
    from scipy import ndimage

    grown: NDArray[np.bool_] = ndimage.binary_dilation(kept, np.ones((3, 3)), iterations=2)
    return grown


def _as_wide(strokes: Floats, spec: Spec, look: ImageStatistics, box: int) -> tuple[Floats, str]:
    """Strokes as wide as the training images' once they are as small, where they are far from it; and what was done."""
    now = first = _width(strokes, spec, look, box)
    wanted = min(max(look.stroke, 0.5), box / 2)
    if not first or THIN * wanted <= first <= FAT * wanted:
        return strokes, ""
    pixel, more, changed = _side(strokes) / box, 0.0, strokes
    narrow = _narrow(strokes) if first > wanted else 0.0
    for _ in range(
        4
    ):  # as a stroke of less than a pixel does not look narrower than one, and the box grows with its strokes
        if abs(now - wanted) < 0.1 * wanted:
            break
        more += (wanted - now) / 2 * pixel  # on each side
        if narrow:
            more = max(
                more, min(0.0, wanted / 2 * pixel - narrow)
            )  # loops may be filled; the narrow strokes say how fat the pen was
        changed = _grown(strokes, more)
        now = _width(changed, spec, look, box)
    if not more:
        return strokes, ""
    return changed, f"strokes {'thickened' if now > first else 'thinned'} from {first:.1f} to {now:.1f} pixels"


def _width(strokes: Floats, spec: Spec, look: ImageStatistics, box: int) -> float:
    """How wide strokes are in pixels of the training images, once they are as small as there."""
    return float(stroke_width(_placed(strokes, spec, look, box)[None])[0])


def _narrow(strokes: Floats) -> float:
    """Half the width of the narrow strokes: a fifth are narrower."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(strokes, 1) > 0.5)
    ridge = (depth >= ndimage.maximum_filter(depth, 3)) & (depth > depth.max() / 4)
    return float(np.percentile(depth[ridge], 20)) if ridge.any() else 0.0


def _grown(strokes: Floats, more: float) -> Floats:
    """Strokes with so many pixels more on each side, or less."""
    from scipy import ndimage

    within = np.pad(strokes, int(max(more, 0)) + 2) > 0.5
    inside, outside = (ndimage.distance_transform_edt(part) for part in (within, ~within))
    grown: Floats = np.clip(np.where(within, inside, 1 - outside) + more, 0, 1).astype(np.float32)
    return grown


def _placed(strokes: Floats, spec: Spec, look: ImageStatistics, box: int) -> Floats:
    """(H, W): the ink, its box as large as in the training images, where it is in them."""
    _, H, W = spec.shape
    first, last, left, right = (int(edge) for edge in np.nan_to_num(ink_box(strokes[None])[0]))
    part = strokes[first : last + 1, left : right + 1]
    scale = box / max(part.shape)
    height, width = (max(1, min(most, round(n * scale))) for n, most in zip(part.shape, (H, W), strict=True))
    small = _resized(part, height, width)
    centre = mass_centre(small[None])[0] if look.centred == "mass" and small.any() else (np.array(small.shape) - 1) / 2
    wanted = (np.array([H, W]) - 1) / 2 + look.centre
    y, x = (
        int(min(max(round(float(n)), 0), room))
        for n, room in zip(wanted - centre, (H - height, W - width), strict=True)
    )
    placed = np.zeros((H, W), np.float32)
    placed[y : y + height, x : x + width] = small
    return placed


def _is_in_place(gray: Pixels, spec: Spec, look: ImageStatistics) -> bool:
    """Whether an image of the right size and polarity is as the training images are: its paper, its ink's box and
    centre."""
    if gray.shape[:2] != spec.shape[1:]:
        return False
    share = contrast(gray[None, :, :, 0], look.background, look.ink)
    box = ink_box(share)[0]
    centre = mass_centre(share)[0] if look.centred == "mass" else box.reshape(2, 2).mean(1)
    off = np.abs(centre - (np.array(share.shape[1:]) - 1) / 2 - look.centre).max()
    larger = max(box[1] - box[0], box[3] - box[2]) + 1
    clean = float(np.median(images.border(share[0]))) < 0.05 and float(share.max()) > 0.8
    return (
        clean and abs(larger - look.box) <= max(1, SAME_BOX * look.box) and bool(off <= max(1, SAME_PLACE * look.box))
    )


def _side(strokes: Floats) -> float:
    box = np.nan_to_num(ink_box(strokes[None])[0], nan=-1)
    return float(max(box[1] - box[0], box[3] - box[2]) + 1) if box[0] >= 0 else 0.0


def _levels(share: Floats, look: ImageStatistics) -> Pixels:
    """(h, w) shares of ink -> (h, w, 1) gray levels as in the training images."""
    levels = look.background + (look.ink - look.background) * np.clip(share, 0, 1)
    return np.rint(levels).astype(np.uint8)[:, :, None]


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    return images.to_size(pixels, height, width, "stretch")


def _resized(share: Floats, height: int, width: int) -> Floats:
    """(h, w) shares -> (height, width), antialiased, in steps of 1/255."""
    pixels = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)[:, :, None]
    return images.to_size(pixels, height, width, "stretch")[:, :, 0].astype(np.float32) / np.float32(255)
