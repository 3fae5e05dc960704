"""Properties of a drawing, measured from its pixels without a network: stroke width, slant, number of holes.

All take the ink of N images, (N, H, W) in [0, 1], as returned by `ink`, and no labels. For an empty image all are 0.
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


def _magnify(drawn: Ink) -> NDArray[np.bool_]:
    """(N, H, W) -> (N, MAGNIFICATION*H, MAGNIFICATION*W): True where interpolated ink is more than half of the
    largest."""
    with torch.no_grad():
        fine = F.interpolate(
            torch.from_numpy(drawn)[:, None], scale_factor=MAGNIFICATION, mode="bilinear", align_corners=False
        )
    return (fine[:, 0] > 0.5).numpy()
