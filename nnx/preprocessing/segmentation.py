"""Where the ink is on a picture of any paper, board or screen, in any light, and which of it belongs together.

found = find(pixels)  # (H, W, 1 or 3) -> how much of each pixel is ink, whether that is darker than its paper, its box

What paper is, is tried out: one even colour; a smooth change of light; what is left when everything dark and narrow is
filled up (the edge of a shadow stays), or everything bright and narrow. The simplest that explains the picture is taken
(see `_doubt`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing import images
from nnx.preprocessing.image_statistics import Floats

Paper = Literal["even", "smooth", "dark", "bright"]
Box = tuple[int, int, int, int]  # first row, row after the last, first column, column after the last

FAINT = 12  # gray levels at least between paper and ink
NOISE = 6  # times the paper's noise, at least
CLEAR = 0.06  # less doubt than that, and no other paper is tried
BETTER = 0.8  # times the doubt, at most, for a less simple paper to be taken
REACH = 1 / 6  # of the picture's larger side: what is narrower can be ink, where the paper is neither even nor smooth
NEAR = 0.2  # of the size of the ink found so far: what is no farther from it belongs to it
SPECK = 0.02  # of the area of the largest mark: smaller ones are specks
COARSE = 64  # pixels of the larger side in which the shape of a mark is judged


@dataclass(frozen=True)
class Ink:
    """What was found on an (H, W) picture."""

    share: Floats  # (H, W), from 0, paper, to 1, as dark (or bright) as the ink is; noise goes below and beyond
    kept: NDArray[np.bool_]  # (H, W), the marks that belong together
    box: Box
    darker: bool  # than its paper
    paper: Paper
    others: int  # marks left aside, specks not counted
    page: bool  # whether this is no ink at all, but the page, on a table of another colour
    doubt: float


def find_ink(
    pixels: NDArray[np.uint8], papers: tuple[Paper, ...] = ("even", "smooth", "dark", "bright"), reach: int = 0
) -> Ink | None:
    """The ink on a picture, of the simplest of these papers that explains it; None where nothing stands out.

    `reach` in pixels: what is narrower can be ink, on the last two papers.
    """
    best: Ink | None = None
    reach = reach or max(3, round(max(pixels.shape) * REACH))
    picture = pixels[:, :, :1] if (pixels == pixels[:, :, :1]).all() else pixels
    for paper, surface in _papers(picture.astype(np.float32), papers, reach):
        found = _on(picture.astype(np.float32), paper, surface)
        if found and found.page:
            return found
        if found and (best is None or found.doubt < best.doubt * BETTER):
            best = found
        if best and best.doubt < CLEAR:
            break
    return best


# ---------------------------------------------------------------- paper


def _papers(picture: Floats, wanted: tuple[Paper, ...], reach: int) -> Iterator[tuple[Paper, Floats]]:
    """What each kind of paper would look like without ink, (H, W, C) or (1, 1, C)."""
    from scipy import ndimage

    if "even" in wanted:
        yield "even", np.median(images.border(picture), axis=0).astype(np.float32)[None, None]
    if "smooth" in wanted:
        yield "smooth", _smooth(picture)
    kinds: tuple[tuple[Paper, Callable[..., Floats]], ...] = (
        ("dark", ndimage.grey_closing),
        ("bright", ndimage.grey_opening),
    )
    for kind, filled in kinds:
        if kind in wanted:
            softened = ndimage.gaussian_filter(picture, (1, 1, 0))  # or its noise would lift the paper
            yield kind, filled(softened, size=(reach, reach, 1), mode="nearest")


def _smooth(picture: Floats) -> Floats:
    """Polynomials of the fourth degree through what is not ink, by least squares that leave out what is far off
    (Tukey's biweight).

    Without BLAS, here and below: for so little its threads take seven times as long as one does, waiting for each
    other.
    """
    H, W, C = picture.shape
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (H, W))
    powers = [(i, j) for i in range(5) for j in range(5 - i)]
    step = max(1, round((H * W / 1500) ** 0.5))  # some 1500 pixels are enough
    some = picture[::step, ::step].reshape(-1, C).astype(np.float64)
    terms = np.stack([np.outer(y[::step] ** i, x[::step] ** j).ravel() for i, j in powers], 1).astype(np.float64)
    gray, weight = some.mean(1), np.ones(len(some))
    for _ in range(8):
        off = gray - np.einsum("nk,k->n", terms, _fitted(terms, gray[:, None], weight)[:, 0])
        spread = 1.4826 * float(np.median(np.abs(off[weight > 0.1]) if (weight > 0.1).any() else np.abs(off))) + 1
        weight = np.clip(1 - (off / (4 * spread)) ** 2, 0, 1) ** 2
    rows = np.zeros((5, W, C))  # what y, y^2, ... are multiplied with
    for (i, j), factors in zip(powers, _fitted(terms, some, weight), strict=True):
        rows[i] += x[:, None] ** j * factors
    surface = np.zeros((H, W, C), np.float32)
    for i, row in enumerate(rows.astype(np.float32)):
        surface += (y**i)[:, None, None] * row
    return np.clip(surface, 0, 255)


def _fitted(
    terms: NDArray[np.float64], values: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, K) terms, (N, C) values -> the (K, C) factors of weighted least squares; where they are not determined, the
    smallest."""
    weighted = terms * weight[:, None]
    found: NDArray[np.float64]
    found, *_ = np.linalg.lstsq(
        np.einsum("nk,nl->kl", weighted, terms), np.einsum("nk,nc->kc", weighted, values), rcond=1e-10
    )
    return found


# ---------------------------------------------------------------- ink on a given paper


def _on(picture: Floats, paper: Paper, surface: Floats) -> Ink | None:
    """The ink, if that is the paper; None where nothing stands out from it."""
    from scipy import ndimage

    off, darker, raw = _away(picture, surface)
    off = ndimage.gaussian_filter(off, 0.7)
    candidates = off[off > max(FAINT, NOISE * _noise(off))]
    if not len(candidates) or (paper, darker) in (("dark", False), ("bright", True)):
        return None
    level = float(np.median(candidates[candidates >= otsu(candidates)]))
    marks = _marks(off / level)
    if marks is None:
        return None
    kept, box, others = marks
    found = Ink(off / level, kept, box, darker, paper, others, False, 0.0)
    found = replace(found, page=paper == "even" and _is_page(kept, box))
    return replace(found, doubt=_doubt(found, raw / level))


def _away(picture: Floats, surface: Floats) -> tuple[Floats, bool, Floats]:
    """How far, in gray levels, each pixel is from the paper, in the direction in which most of what is far off is;
    whether that is darker; and the picture along that direction.

    Cubes decide on the direction, as noise is as often here as there, and ink only here. Darkness is relative to the
    paper, as light multiplies: in half the light ink is half as far from its paper.
    """
    off = picture - surface
    flat = off[::2, ::2].reshape(-1, off.shape[2])  # a quarter of it is enough
    direction = (flat * (flat * flat).sum(1, keepdims=True)).sum(0, dtype=np.float64)
    direction = (direction / (np.linalg.norm(direction) or 1)).astype(np.float32)
    darker = bool(direction.sum() <= 0)
    if darker:
        off = (picture / np.maximum(surface, 1) - 1) * surface.mean((0, 1))
    along, raw = (sum(part[:, :, c] * direction[c] for c in range(len(direction))) for part in (off, picture))
    return along, darker, raw


def _noise(off: Floats) -> float:
    """The standard deviation of the noise, from what each square of four pixels is uneven by; edges are too few to
    count."""
    corners = off[1:, 1:] + off[:-1, :-1] - off[1:, :-1] - off[:-1, 1:]
    return 1.4826 / 2 * float(np.median(np.abs(corners))) if corners.size else 0.0


def otsu(values: Floats) -> float:
    """The threshold that leaves the least variance on both sides (Otsu 1979), from a histogram of 128 bins; of equal
    values, that value."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    counts, edges = np.histogram(values, 128, (low, high))
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)
    total, mean = len(values), sums[-1] / len(values)
    between = (mean * below - sums[:-1]) ** 2 / np.maximum(below * (total - below), 1)  # up to a factor
    return float(edges[1 + int(between.argmax())])


# ---------------------------------------------------------------- marks


def _marks(share: Floats) -> tuple[NDArray[np.bool_], Box, int] | None:
    """What is more ink than paper, as marks that touch: the largest, those near it, their box; and how many others
    there are.

    A mark that runs into the edge of the picture is a shadow, a table, or a line of the paper, where there is another.
    """
    from scipy import ndimage

    labels, count = ndimage.label(share > 0.5, np.ones((3, 3)))
    if not count:
        return None
    area = np.bincount(labels.ravel())[1:].astype(float)
    found = ndimage.find_objects(labels)
    boxes = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in found])
    H, W = share.shape
    inside = (boxes[:, 0] > 0) & (boxes[:, 1] < H) & (boxes[:, 2] > 0) & (boxes[:, 3] < W)
    if inside.any() and area[inside].max() > 0.05 * area.max():
        area[~inside] = 0
    largest = int(area.argmax())
    box, keep = boxes[largest], np.zeros(count, bool)
    keep[largest] = grown = True
    large = area >= SPECK * area[largest]
    while grown:
        gap = np.max([boxes[:, 0] - box[1], box[0] - boxes[:, 1], boxes[:, 2] - box[3], box[2] - boxes[:, 3]], axis=0)
        more = large & ~keep & (gap <= NEAR * max(box[1] - box[0], box[3] - box[2]))
        keep |= more
        grown = bool(more.any())
        part = boxes[keep]
        box = np.array([part[:, 0].min(), part[:, 1].max(), part[:, 2].min(), part[:, 3].max()])
    kept: NDArray[np.bool_] = np.concatenate([[False], keep])[labels]
    others = int((~keep & (area >= 0.1 * area[largest])).sum())
    return kept, (int(box[0]), int(box[1]), int(box[2]), int(box[3])), others


def _shape(kept: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    """The marks in their box, COARSE pixels large."""
    part = np.where(kept[box[0] : box[1], box[2] : box[3], None], np.uint8(255), np.uint8(0))
    height, width = (max(1, round(n * COARSE / max(part.shape))) for n in part.shape[:2])
    shape: NDArray[np.bool_] = images.to_size(part, height, width, "stretch")[:, :, 0] > 127
    return shape


def _is_page(kept: NDArray[np.bool_], box: Box) -> bool:
    """Whether the marks fill their box, but for holes: a page with something written on it. (A zero fills 79 % of its
    box.)

    What touches three sides of the picture is rather half of it in a shadow.
    """
    from scipy import ndimage

    shape = _shape(kept, box)
    touching = (box[0] == 0) + (box[1] == kept.shape[0]) + (box[2] == 0) + (box[3] == kept.shape[1])
    if touching > 2 or min(shape.shape) < 0.4 * max(shape.shape):
        return False
    filled = ndimage.binary_fill_holes(shape)
    return bool(filled.mean() > 0.83 and (filled & ~shape).mean() > 0.01)


def _doubt(found: Ink, raw: Floats) -> float:
    """How badly the paper explains the picture, from 0: what is left on it that is no ink; how much ink lies elsewhere;
    how much of the ink's edge is no edge in the picture; and how fat the ink is, beyond what a pen can do.

    `raw` is the picture along the ink's direction, in units of the ink's contrast.
    """
    from scipy import ndimage

    ink = found.share > 0.5
    left = float(np.sqrt(np.square(found.share[~ink]).mean())) if not ink.all() else 0.0
    elsewhere = 1 - float((found.kept & ink).sum() / ink.sum())
    rim = found.kept & ~ndimage.binary_erosion(found.kept, np.ones((3, 3)))
    steep = ndimage.maximum_filter(ndimage.gaussian_gradient_magnitude(raw, 1), 3) > 0.1
    unfounded = 1 - float(steep[rim].mean())
    fat = 2 * float(ndimage.distance_transform_edt(np.pad(_shape(found.kept, found.box), 1)).max()) / COARSE
    at_edge = float(images.border(found.kept).mean())
    shadow = at_edge > 0.15 and fat > 0.35
    return left + elsewhere / 2 + unfounded / 2 + max(0.0, fat - 0.6) + shadow
