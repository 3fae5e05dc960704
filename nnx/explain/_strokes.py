"""Properties of an image, measured from its pixels without a network: the direction of its edges; of a drawing also
stroke width, slant, number of holes, number of stroke ends.

The properties of drawings take the ink of N images, (N, H, W) in [0, 1], as returned by `ink`. None takes labels. For
an empty image all are 0.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Ink = NDArray[np.float32]

# the share of border pixels that are background: MNIST has 0.9998, digits of 8x8 pixels 0.74, patches of photographs
# 0.1 to 0.68
MIN_BACKGROUND = 0.7
TOLERANCE = 0.1  # of the range of grey values, within which two values count as equal
GROUND = 1 / 3  # the background is at most this bright, or this dark
INK = 0.75  # of the darkest ink: less, but more than TOLERANCE, is grey
FLAT = 0.25  # grey values of 3x3 pixels of shading differ by less; at the edge of a stroke they differ by more
# the share of the ink that is shading: MNIST and digits of 8x8 pixels have 0.000, MNIST enlarged to 84x84 0.02,
# Fashion-MNIST 0.21, and 0.09 at 14x14
MAX_SHADING = 0.05
MAGNIFICATION = 4  # a stroke of two pixels is too coarse to be measured in whole pixels
EMPTY = 1e-6
EDGE_BATCH = 100  # images
THIN_SIDE = (20, 48)  # pixels of the shorter side within which strokes are thinned


def ink(images: NDArray[Any]) -> Ink | None:
    """(N, C, H, W) uint8 images -> (N, H, W): the distance of each pixel from the background value, as a share of the
    image's largest.

    None if the images are not one ink on a plain background: in colour, with a background of many values or of medium
    grey, so that drawing and background can't be told apart, or shaded, as photographs are. Black on white and white on
    black give the same ink.
    """
    if (images != images[:, :1]).any():  # colours
        return None
    grey = images[:, 0].astype(np.float32) / 255
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, 1:-1, 0], grey[:, 1:-1, -1]], axis=1)
    background = np.median(border)
    is_plain = (np.abs(border - background) <= TOLERANCE).mean() >= MIN_BACKGROUND
    if not is_plain or GROUND < background < 1 - GROUND:
        return None
    distance = np.abs(grey - background)
    shares: Ink = (distance / np.maximum(distance.max((1, 2), keepdims=True), EMPTY)).astype(np.float32)
    return shares if _shading(shares) <= MAX_SHADING else None


def _shading(drawn: Ink) -> float:
    """The share of the ink that is grey without being an edge: a pen leaves none, a photograph much."""
    from scipy.ndimage import maximum_filter, minimum_filter

    inked = drawn > TOLERANCE
    differences = maximum_filter(drawn, (1, 3, 3)) - minimum_filter(drawn, (1, 3, 3))
    shaded = inked & (drawn < INK) & (differences < FLAT)
    return float(shaded.sum() / max(1, inked.sum()))


def stroke_width(drawn: Ink) -> NDArray[np.float64]:
    """(N,) in pixels: four times the mean distance of the ink to its edge, which is the width of a long stroke.

    Across a stroke of width w that distance rises from 0 to w / 2 and falls again, so its mean is w / 4. Unlike 2 area
    / perimeter, which pixels make up to 16 % smaller for slanted strokes than for upright ones, it hardly depends on
    the direction (6 %).
    """
    from scipy.ndimage import distance_transform_edt

    # the transform measures from centre to centre: half a pixel more than to the edge between two pixels
    return np.array(
        [
            4 * (distance_transform_edt(image)[image].mean() - 0.5) / MAGNIFICATION if image.any() else 0.0
            for image in _magnify(drawn)
        ]
    )


def slant(drawn: Ink) -> NDArray[np.float64]:
    """(N,) in degrees from upright, positive if the top leans to the right: the shift of the rows with their height, by
    least squares.

    Undoing this shear makes the mixed second moment of x and y zero: the deslanting of LeCun et al. 1998.
    """
    H, W = drawn.shape[1:]
    mass = np.maximum(drawn.sum((1, 2), dtype=np.float64), EMPTY)
    x = np.arange(W, dtype=np.float64)
    up = -np.arange(H, dtype=np.float64)
    columns = drawn.sum(1, dtype=np.float64)  # (N, W)
    rows = drawn.sum(2, dtype=np.float64)  # (N, H)
    x_mean = columns @ x / mass
    up_mean = rows @ up / mass
    covariance = np.einsum("nhw,h,w->n", drawn, up, x) / mass - x_mean * up_mean
    variance = rows @ up**2 / mass - up_mean**2
    degrees: NDArray[np.float64] = np.degrees(np.arctan2(covariance, np.maximum(variance, EMPTY)))
    return degrees


def holes(drawn: Ink) -> NDArray[np.int64]:
    """(N,) the number of background regions enclosed by ink: 0 has one, 8 two, 1 none.

    Background connects along sides only, ink across corners, too, so that a thin slanted line encloses (Rosenfeld
    1970).
    """
    from scipy.ndimage import label

    # padded, so that all background at the border is one region
    backgrounds = [np.pad(~image, 1, constant_values=True) for image in _magnify(drawn)]
    return np.array([label(background)[1] - 1 for background in backgrounds], dtype=np.int64)


def stroke_ends(drawn: Ink) -> NDArray[np.int64]:
    """(N,) the number of ends of the strokes, thinned to lines: 0 has none, 6 one, 2 two."""
    side = min(drawn.shape[1:])
    smallest, largest = THIN_SIDE
    if side < smallest:
        strokes = _magnify(drawn)
    elif side > largest:
        shrunk = F.interpolate(torch.from_numpy(drawn)[:, None], scale_factor=largest / side, mode="area")[:, 0]
        strokes = (shrunk > 0.5 * shrunk.amax((1, 2), keepdim=True)).numpy()
    else:
        strokes = drawn > 0.5
    lines = thin(strokes)
    is_end = lines & (NEIGHBOURS[_neighbours(lines)] == 1)
    ends: NDArray[np.int64] = is_end.sum((1, 2))
    return ends


def thin(strokes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, H, W) -> the same strokes, one pixel wide (Zhang & Suen 1984)."""
    lines = strokes.copy()
    active = np.arange(len(lines))  # images that still change
    while len(active):
        before = lines[active]
        after = before
        for removable in REMOVABLE:
            after = after & ~removable[_neighbours(after)]
        lines[active] = after
        active = active[(after != before).any((1, 2))]
    return lines


def _neighbours(lines: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(N, H, W): the eight neighbours of each pixel as bits, clockwise from the one above; none beyond the border."""
    _, H, W = lines.shape
    padded = np.pad(lines.view(np.uint8), ((0, 0), (1, 1), (1, 1)))
    bits = np.zeros(lines.shape, np.uint8)
    for bit, (down, right) in enumerate(((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))):
        bits |= padded[:, down : down + H, right : right + W] << bit
    return bits


def _tables() -> tuple[NDArray[np.int64], list[NDArray[np.bool_]]]:
    """For each of the 256 neighbourhoods: the number of neighbours, and, for the two half steps of Zhang and Suen,
    whether a pixel with it may be removed."""
    around = (np.arange(256)[:, None] >> np.arange(8)) & 1  # (256, 8)
    count = around.sum(1)
    runs = ((around == 0) & (np.roll(around, -1, 1) == 1)).sum(1)
    up, right, down, left = around[:, ::2].T
    is_edge = (count >= 2) & (count <= 6) & (runs == 1)
    return count, [
        is_edge & (up * right * down == 0) & (right * down * left == 0),
        is_edge & (up * right * left == 0) & (up * down * left == 0),
    ]


NEIGHBOURS, REMOVABLE = _tables()


def edge_direction(images: NDArray[Any]) -> NDArray[np.float64]:
    """(N, C, H, W) images -> (N,): the direction of the edges in the middle half of the image, from -1 (all horizontal)
    to 1 (all vertical).

    From the structure tensor (Bigun & Granlund 1987): the sum of squared differences across minus that down the image,
    as a share of both.
    """
    from scipy.ndimage import correlate1d

    def energy(values: NDArray[np.float32], axis: int, other: int) -> NDArray[np.float64]:
        """(N,) the sum of the squared differences along an axis of the image (Sobel filters)."""
        differences = correlate1d(correlate1d(values, [-1, 0, 1], axis), [1, 2, 1], other)
        energies: NDArray[np.float64] = np.square(differences).sum((1, 2, 3), dtype=np.float64)
        return energies

    H, W = images.shape[2:]
    middle = images[:, :, H // 4 : H - H // 4, W // 4 : W - W // 4]
    directions = np.zeros(len(images))
    for start in range(0, len(images), EDGE_BATCH):
        batch = middle[start : start + EDGE_BATCH].astype(np.float32)
        across = energy(batch, 3, 2)
        down = energy(batch, 2, 3)
        directions[start : start + EDGE_BATCH] = (across - down) / np.maximum(across + down, EMPTY)
    return directions


def _magnify(drawn: Ink) -> NDArray[np.bool_]:
    """(N, H, W) -> (N, MAGNIFICATION*H, MAGNIFICATION*W): True where interpolated ink is more than half of the
    largest."""
    with torch.no_grad():
        fine = F.interpolate(
            torch.from_numpy(drawn)[:, None], scale_factor=MAGNIFICATION, mode="bilinear", align_corners=False
        )
    return (fine[:, 0] > 0.5).numpy()
