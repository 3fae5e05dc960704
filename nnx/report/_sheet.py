"""All thumbnails of samples in one PNG: the page cuts each picture from it, so that each is stored only once."""

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from nnx.datasets import Mapped

LONGEST = 48  # pixels of the longer side of a thumbnail
SHORTEST = 16  # the same, for very many thumbnails
BUDGET = 1_800_000  # bytes of the sheet before compression; noise does not compress, and base64 adds a third
SCREEN_SIZE = 60  # pixels on the screen of a thumbnail's longer side, about, by integer scaling


@dataclass(frozen=True)
class Sheet:
    """N thumbnails in rows of `columns`, each (height, width) pixels, shown `scale` times as large. `positions`: sample
    -> its number on the sheet."""

    url: str  # data:image/png;base64,…
    height: int
    width: int
    columns: int
    positions: dict[int, int]

    @property
    def rows(self) -> int:
        return math.ceil(len(self.positions) / self.columns)

    @property
    def scale(self) -> int:
        """An integer, so that all pixels have the same size on the screen."""
        return max(1, SCREEN_SIZE // max(self.height, self.width))

    def x(self, sample: int) -> int:
        """The column of a sample's thumbnail."""
        return self.positions[sample] % self.columns

    def y(self, sample: int) -> int:
        """The row of a sample's thumbnail."""
        return self.positions[sample] // self.columns


def build(images: NDArray[Any] | Mapped, samples: Iterable[int], longest: int = LONGEST) -> Sheet:
    """The thumbnails of these `samples` of (N, C, H, W) uint8 images, their longer side at most `longest` pixels."""
    positions = {sample: position for position, sample in enumerate(dict.fromkeys(samples))}
    height, width = thumbnail_size(images.shape[2:], longest)
    thumbnails = shrink(images[list(positions)], height, width)  # (n, h, w, c)
    columns = max(1, math.ceil(math.sqrt(len(positions) * height / width)))
    empty = -len(positions) % columns
    tiles = np.concatenate([thumbnails, np.zeros((empty, *thumbnails.shape[1:]), np.uint8)])
    rows = len(tiles) // columns
    pixels = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2).reshape(rows * height, columns * width, -1)
    return Sheet(png(pixels) if positions else "", height, width, columns, positions)


def longest_side_for(shape: tuple[int, ...], samples: int) -> int:
    """The longer side of thumbnails of (C, H, W) images at which that many `samples` fit on the sheet."""
    return next((side for side in range(LONGEST, SHORTEST, -4) if capacity(shape, side) >= samples), SHORTEST)


def capacity(shape: tuple[int, ...], longest: int = LONGEST) -> int:
    """How many thumbnails of (C, H, W) images fit on the sheet."""
    height, width = thumbnail_size(shape[1:], longest)
    return BUDGET // (height * width * (3 if shape[0] >= 3 else 1))


def thumbnail_size(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Height and width of the thumbnail of an image of that size: never larger than the image."""
    factor = min(1.0, longest / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def shrink(images: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """(n, C, H, W) uint8 -> (n, height, width, c) uint8, c 1 or 3: the first three of three or more channels, else the
    first."""
    visible = images[:, : 3 if images.shape[1] >= 3 else 1]
    if visible.shape[2:] != (height, width):
        one_by_one = (torch.from_numpy(np.ascontiguousarray(image)).float()[None] for image in visible)
        visible = torch.cat(
            [F.interpolate(image, (height, width), mode="area").round().byte() for image in one_by_one]
        ).numpy()
    return visible.transpose(0, 2, 3, 1)


def png(pixels: NDArray[np.uint8]) -> str:
    """(H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA pixels -> a data: URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
