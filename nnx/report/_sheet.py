"""Thumbnails on one PNG, from which the page cuts every picture of a sample: each is stored once, however often it is
shown."""

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

LONGEST = 48  # pixels of a thumbnail's longer side, at most
SHORTEST = 16  # where there are very many
BUDGET = 1_800_000  # bytes of the sheet before it is compressed; noise does not get smaller, and base64 adds a third
SHOWN = 60  # pixels on the screen that a thumbnail should be about as wide as, by whole multiples


@dataclass(frozen=True)
class Sheet:
    """N thumbnails in rows of `columns`, each (height, width) pixels, shown `scale` times as large. `places`: sample ->
    number on it."""

    url: str  # data:image/png;base64,…
    height: int
    width: int
    columns: int
    places: dict[int, int]

    @property
    def rows(self) -> int:
        return math.ceil(len(self.places) / self.columns)

    @property
    def scale(self) -> int:
        """By whole numbers, so that all pixels stay equally large."""
        return max(1, SHOWN // max(self.height, self.width))

    def x(self, sample: int) -> int:
        """Column of a sample's thumbnail."""
        return self.places[sample] % self.columns

    def y(self, sample: int) -> int:
        """Row of a sample's thumbnail."""
        return self.places[sample] // self.columns


def make(images: NDArray[Any] | Mapped, samples: Iterable[int], longest: int = LONGEST) -> Sheet:
    """The thumbnails of those `samples` of (N, C, H, W) uint8 images, no longer than `longest`."""
    places = {sample: place for place, sample in enumerate(dict.fromkeys(samples))}
    height, width = thumbnail(images.shape[2:], longest)
    chosen = small(images[list(places)], height, width)  # (n, h, w, c)
    columns = max(1, math.ceil(math.sqrt(len(places) * height / width)))
    empty = -len(places) % columns
    tiles = np.concatenate([chosen, np.zeros((empty, *chosen.shape[1:]), np.uint8)])
    rows = len(tiles) // columns
    whole = tiles.reshape(rows, columns, *chosen.shape[1:]).swapaxes(1, 2).reshape(rows * height, columns * width, -1)
    return Sheet(png(whole) if places else "", height, width, columns, places)


def longest_for(shape: tuple[int, ...], samples: int) -> int:
    """How long thumbnails of (C, H, W) images may be, so that so many `samples` fit into the sheet."""
    return next((longest for longest in range(LONGEST, SHORTEST, -4) if room(shape, longest) >= samples), SHORTEST)


def room(shape: tuple[int, ...], longest: int = LONGEST) -> int:
    """How many thumbnails of (C, H, W) images fit into the sheet."""
    height, width = thumbnail(shape[1:], longest)
    return BUDGET // (height * width * (3 if shape[0] >= 3 else 1))


def thumbnail(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Height and width of an image of that size as a thumbnail: its own, or less."""
    shrunk = min(1.0, longest / max(size))
    height, width = (max(1, round(side * shrunk)) for side in size)
    return height, width


def small(images: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """(n, C, H, W) uint8 -> (n, height, width, c) uint8, c 1 or 3: of four channels and more the first three, of two
    the first."""
    shown = images[:, : 3 if images.shape[1] >= 3 else 1]
    if shown.shape[2:] != (height, width):
        one_by_one = (torch.from_numpy(np.ascontiguousarray(image)).float()[None] for image in shown)
        shown = torch.cat(
            [F.interpolate(image, (height, width), mode="area").round().byte() for image in one_by_one]
        ).numpy()
    return shown.transpose(0, 2, 3, 1)


def png(pixels: NDArray[np.uint8]) -> str:
    """(H, W, 1) gray or (H, W, 3) colour pixels -> a data: address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
