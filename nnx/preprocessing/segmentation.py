"""Finds the ink in a picture of any paper, board or screen, in any light, and which marks of it belong together.

ink = find_ink(pixels)  # (H, W, 1 or 3) -> how much of each pixel is ink, whether it is darker than its paper, its box

Several models of the paper are tried: one even colour; a smooth change of light; the picture with everything dark and
narrow filled in (which keeps the edge of a shadow), or everything bright and narrow. The simplest model that explains
the picture is used (see `_misfit`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing import images
from nnx.preprocessing.image_statistics import Floats

PaperModel = Literal["even", "smooth", "dark", "bright"]
BoundingBox = tuple[int, int, int, int]  # first row, row after the last, first column, column after the last

MIN_CONTRAST = 12  # between paper and ink, in gray levels
MIN_SIGNAL = 6  # contrast between paper and ink, in standard deviations of the paper's noise
GOOD_FIT = 0.06  # with a misfit below this, no other model of the paper is tried
BETTER_FIT = 0.8  # a less simple model is used if its misfit is below this share of the simpler one's
REACH = 1 / 6  # of the picture's larger side: narrower things can be ink, for the models "dark" and "bright"
NEAR = 0.2  # of the size of the ink found so far: marks within this distance belong to it
SPECK = 0.02  # of the area of the largest mark: smaller marks are specks
FILTER = 6  # pixels that the filters of an edge reach
COARSE = 64  # pixels of the larger side when the shape of a mark is judged


@dataclass(frozen=True)
class Ink:
    """The ink in an (H, W) picture."""

    share: Floats  # (H, W) from 0 for paper to 1 for typical ink; noise exceeds this range
    mask: NDArray[np.bool_]  # (H, W) the marks that belong together
    box: BoundingBox
    darker: bool  # than its paper
    paper: PaperModel
    others: int  # number of other marks, without specks
    page: bool  # whether this is not ink but the page, on a table of another colour
    misfit: float


def find_ink(
    pixels: NDArray[np.uint8], papers: tuple[PaperModel, ...] = ("even", "smooth", "dark", "bright"), reach: int = 0
) -> Ink | None:
    """The ink in a picture, on the simplest of these paper models that explains it; None if nothing stands out.

    `reach`, in pixels: narrower things can be ink, for the models "dark" and "bright". 0 chooses it.
    """
    best: Ink | None = None
    reach = reach or max(3, round(max(pixels.shape) * REACH))
    picture = pixels[:, :, :1] if (pixels == pixels[:, :, :1]).all() else pixels
    for paper, surface in _paper_surfaces(picture.astype(np.float32), papers, reach):
        ink = _find_ink_on(picture.astype(np.float32), paper, surface)
        if ink and ink.page:
            return ink
        if ink and (best is None or ink.misfit < best.misfit * BETTER_FIT):
            best = ink
        if best and best.misfit < GOOD_FIT:
            break
    return best


# ---------------------------------------------------------------- paper


def _paper_surfaces(picture: Floats, papers: tuple[PaperModel, ...], reach: int) -> Iterator[tuple[PaperModel, Floats]]:
    """What each paper model predicts for the picture without ink, (H, W, C) or (1, 1, C)."""
    from scipy import ndimage

    if "even" in papers:
        yield "even", np.median(images.border(picture), axis=0).astype(np.float32)[None, None]
    if "smooth" in papers:
        yield "smooth", _fit_smooth_surface(picture)
    filters: tuple[tuple[PaperModel, Callable[..., Floats]], ...] = (
        ("dark", ndimage.grey_closing),
        ("bright", ndimage.grey_opening),
    )
    for paper, fill in filters:
        if paper in papers:
            softened = ndimage.gaussian_filter(picture, (1, 1, 0))  # otherwise noise would lift the paper
            yield paper, fill(softened, size=(reach, reach, 1), mode="nearest")


def _fit_smooth_surface(picture: Floats) -> Floats:
    """A polynomial of degree four through the pixels that are not ink: least squares with weights that ignore outliers
    (Tukey's biweight).

    Avoids BLAS, here and in `_solve_least_squares`: on so little data its threads wait for each other and take seven
    times as long as a single one.
    """
    H, W, C = picture.shape
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (H, W))
    powers = [(i, j) for i in range(5) for j in range(5 - i)]
    step = max(1, round((H * W / 1500) ** 0.5))  # about 1500 pixels are enough
    sample = picture[::step, ::step].reshape(-1, C).astype(np.float64)
    terms = np.stack([np.outer(y[::step] ** i, x[::step] ** j).ravel() for i, j in powers], 1).astype(np.float64)
    gray = sample.mean(1)
    weight = np.ones(len(sample))
    for _ in range(8):
        residual = gray - np.einsum("nk,k->n", terms, _solve_least_squares(terms, gray[:, None], weight)[:, 0])
        typical = residual[weight > 0.1] if (weight > 0.1).any() else residual
        spread = 1.4826 * float(np.median(np.abs(typical))) + 1
        weight = np.clip(1 - (residual / (4 * spread)) ** 2, 0, 1) ** 2
    rows = np.zeros((5, W, C))  # the coefficients of 1, y, y^2, ... in each column
    for (i, j), coefficients in zip(powers, _solve_least_squares(terms, sample, weight), strict=True):
        rows[i] += x[:, None] ** j * coefficients
    surface = np.zeros((H, W, C), np.float32)
    for i, row in enumerate(rows.astype(np.float32)):
        surface += (y**i)[:, None, None] * row
    return np.clip(surface, 0, 255)


def _solve_least_squares(
    terms: NDArray[np.float64], values: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, K) terms, (N, C) values, (N,) weights -> (K, C) coefficients of weighted least squares, the smallest ones if
    they are not unique."""
    weighted = terms * weight[:, None]
    coefficients: NDArray[np.float64]
    coefficients, *_ = np.linalg.lstsq(
        np.einsum("nk,nl->kl", weighted, terms), np.einsum("nk,nc->kc", weighted, values), rcond=1e-10
    )
    return coefficients


# ---------------------------------------------------------------- ink on a given paper


def _find_ink_on(picture: Floats, paper: PaperModel, surface: Floats) -> Ink | None:
    """The ink on a paper that looks like `surface`; None if nothing stands out from it."""
    from scipy import ndimage

    difference, darker, projected = _project_difference(picture, surface)
    difference = ndimage.gaussian_filter(difference, 0.7)
    candidates = difference[difference > max(MIN_CONTRAST, MIN_SIGNAL * _estimate_noise(difference))]
    if not len(candidates) or (paper, darker) in (("dark", False), ("bright", True)):
        return None
    level = float(np.median(candidates[candidates >= otsu(candidates)]))
    marks = _group_marks(difference / level)
    if marks is None:
        return None
    mask, box, others = marks
    ink = Ink(difference / level, mask, box, darker, paper, others, False, 0.0)
    shape = _coarse_shape(mask, box)
    page = paper == "even" and _is_page(shape, box, mask.shape)
    return replace(ink, page=page, misfit=_misfit(ink, shape, projected / level))


def _project_difference(picture: Floats, surface: Floats) -> tuple[Floats, bool, Floats]:
    """The difference in gray levels between each pixel and the paper, along the colour direction of the ink; whether
    the ink is darker; and the picture along that direction.

    Cubes determine the direction: noise goes both ways and cancels out, ink goes one way only. The difference of dark
    ink is relative to the paper, as light multiplies: in half the light, ink differs from its paper by half as much.
    """
    difference = picture - surface
    flat = difference[::2, ::2].reshape(-1, difference.shape[2])  # a quarter of the pixels is enough
    direction = (flat * (flat * flat).sum(1, keepdims=True)).sum(0, dtype=np.float64)
    direction = (direction / (np.linalg.norm(direction) or 1)).astype(np.float32)
    darker = bool(direction.sum() <= 0)
    if darker:
        difference = (picture / np.maximum(surface, 1) - 1) * surface.mean((0, 1))
    along, projected = (
        sum(part[:, :, c] * direction[c] for c in range(len(direction))) for part in (difference, picture)
    )
    return along, darker, projected


def _estimate_noise(difference: Floats) -> float:
    """The standard deviation of the noise, from the second difference over each 2x2 square. Edges are too few to affect
    the median."""
    corners = difference[1:, 1:] + difference[:-1, :-1] - difference[1:, :-1] - difference[:-1, 1:]
    return 1.4826 / 2 * float(np.median(np.abs(corners))) if corners.size else 0.0


def otsu(values: Floats) -> float:
    """The threshold with the least variance on both sides (Otsu 1979), from a histogram of 128 bins. If all values are
    equal, that value."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    counts, edges = np.histogram(values, 128, (low, high))
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)
    total = len(values)
    mean = sums[-1] / total
    between = (mean * below - sums[:-1]) ** 2 / np.maximum(below * (total - below), 1)  # up to a factor
    return float(edges[1 + int(between.argmax())])


# ---------------------------------------------------------------- marks


def _group_marks(share: Floats) -> tuple[NDArray[np.bool_], BoundingBox, int] | None:
    """The mask of the largest mark and those near it, their bounding box, and the number of other marks. A mark is a
    connected set of pixels that are more ink than paper. None if there is no mark.

    A mark that touches the edge of the picture is taken for a shadow, a table or a line of the paper, if there is
    another mark.
    """
    from scipy import ndimage

    labels, count = ndimage.label(share > 0.5, np.ones((3, 3)))
    if not count:
        return None
    area = np.bincount(labels.ravel())[1:].astype(float)
    slices = ndimage.find_objects(labels)
    boxes = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in slices])
    H, W = share.shape
    inside = (boxes[:, 0] > 0) & (boxes[:, 1] < H) & (boxes[:, 2] > 0) & (boxes[:, 3] < W)
    if inside.any() and area[inside].max() > 0.05 * area.max():
        area[~inside] = 0
    largest = int(area.argmax())
    large = area >= SPECK * area[largest]
    box = boxes[largest]
    selected = np.zeros(count, bool)
    selected[largest] = True
    growing = True
    while growing:
        gap = np.max([boxes[:, 0] - box[1], box[0] - boxes[:, 1], boxes[:, 2] - box[3], box[2] - boxes[:, 3]], axis=0)
        near = large & ~selected & (gap <= NEAR * max(box[1] - box[0], box[3] - box[2]))
        selected |= near
        growing = bool(near.any())
        part = boxes[selected]
        box = np.array([part[:, 0].min(), part[:, 1].max(), part[:, 2].min(), part[:, 3].max()])
    mask: NDArray[np.bool_] = np.concatenate([[False], selected])[labels]
    others = int((~selected & (area >= 0.1 * area[largest])).sum())
    return mask, (int(box[0]), int(box[1]), int(box[2]), int(box[3])), others


def _coarse_shape(mask: NDArray[np.bool_], box: BoundingBox) -> NDArray[np.bool_]:
    """The part of the mask in the box, resized to COARSE pixels."""
    part = np.where(mask[box[0] : box[1], box[2] : box[3], None], np.uint8(255), np.uint8(0))
    height, width = (max(1, round(n * COARSE / max(part.shape))) for n in part.shape[:2])
    shape: NDArray[np.bool_] = images.to_size(part, height, width, "stretch")[:, :, 0] > 127
    return shape


def _is_page(shape: NDArray[np.bool_], box: BoundingBox, size: tuple[int, ...]) -> bool:
    """Whether marks, given their coarse shape and their box in a picture of that size, fill this box except for holes,
    like a page with writing on it. (A zero fills 79 % of its box.)

    Something that touches three sides of the picture is more likely a shadow over half of it.
    """
    from scipy import ndimage

    touching = (box[0] == 0) + (box[1] == size[0]) + (box[2] == 0) + (box[3] == size[1])
    if touching > 2 or min(shape.shape) < 0.4 * max(shape.shape):
        return False
    filled = ndimage.binary_fill_holes(shape)
    return bool(filled.mean() > 0.83 and (filled & ~shape).mean() > 0.01)


def erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels whose 3x3 neighbours are all in the mask, none of them outside the picture. A fifth of the time of
    scipy's binary_erosion."""
    inside = np.pad(mask, 1)
    rows = inside[:-2] & inside[1:-1] & inside[2:]
    eroded: NDArray[np.bool_] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return eroded


def dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels within two of a pixel of the mask, down and across."""
    outside = np.pad(~mask, 2, constant_values=True)
    return ~erode(erode(outside))[2:-2, 2:-2]


def _misfit(ink: Ink, shape: NDArray[np.bool_], projected: Floats) -> float:
    """How badly the paper model explains the picture; 0 is best. The sum of: what remains on the paper besides ink; the
    share of ink outside the marks; the share of the marks' edge that is no edge in the picture; and how much fatter the
    ink is than a pen can draw.

    `shape` is the coarse one of the marks, `projected` the picture along the ink's colour direction, in units of the
    ink's contrast.
    """
    from scipy import ndimage

    inked = ink.share > 0.5
    remaining = float(np.sqrt(np.square(ink.share[~inked]).mean())) if not inked.all() else 0.0
    elsewhere = 1 - float((ink.mask & inked).sum() / inked.sum())
    rim = ink.mask & ~erode(ink.mask)
    top, bottom, left, right = ink.box
    near = (slice(max(0, top - FILTER), bottom + FILTER), slice(max(0, left - FILTER), right + FILTER))
    steep = ndimage.maximum_filter(ndimage.gaussian_gradient_magnitude(projected[near], 1), 3) > 0.1
    unfounded = 1 - float(steep[rim[near]].mean())
    depth = ndimage.distance_transform_edt(np.pad(shape, 1))
    fatness = 2 * float(depth.max()) / COARSE
    at_edge = float(images.border(ink.mask).mean())
    shadow = at_edge > 0.15 and fatness > 0.35
    return remaining + elsewhere / 2 + unfounded / 2 + max(0.0, fatness - 0.6) + shadow
