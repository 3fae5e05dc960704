"""Many image files to one array, on all cores."""

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from itertools import starmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnx.datasets._progress import counted
from nnx.errors import DataError
from nnx.preprocessing import images
from nnx.preprocessing.spec import Fit
from nnx.system import workers

WORTH_PROCESSES = 3000  # files; two processes are there after 0.5 s, in which one decodes some 2,000
CHUNK = 256  # files that a process is given at a time, at most
CHUNK_BYTES = 2**25  # of their pixels
TINT = 2  # gray levels: what differs by no more from channel to channel is gray, as a gray image comes back from WebP


class How(NamedTuple):
    """What becomes of an image: `channels` None is one, unless it has a colour; others than of `size` are refused
    unless `fit` is given."""

    size: tuple[int, int]
    fit: Fit | None
    channels: int | None


Chunk = tuple[NDArray[np.uint8], list[int], list[str]]
"""(n, C, H, W) images, the places of those in the list of files, and what is wrong with the others."""


def decode(path: str, how: How) -> NDArray[np.uint8]:
    """An image file -> (H, W, C) uint8. Raises DataError, naming it."""
    pixels = images.decode(path)
    if how.channels:
        pixels = images.to_channels(pixels, how.channels)
    elif pixels.shape[2] == 3 and (np.ptp(pixels, axis=2) <= TINT).all():
        pixels = images.to_channels(pixels, 1)
    H, W = how.size
    if how.fit:
        return images.to_size(pixels, H, W, how.fit)
    if pixels.shape[:2] != (H, W):
        height, width = pixels.shape[:2]
        raise DataError(
            f"{path}: is {width} wide and {height} high, the first image is {W} by {H}; give all one size by dataset.size: {max(H, W)}"
        )
    return pixels


def decoded(paths: Sequence[str], how: How) -> Generator[Chunk, None, None]:
    """The images of all files, some at a time, in order, on all cores where there are many, with progress on stderr.

    Raises MachineError where one of the processes is killed.
    """
    size = max(1, min(CHUNK, CHUNK_BYTES // (how.size[0] * how.size[1] * (how.channels or 3))))
    chunks = [(start, paths[start : start + size], how) for start in range(0, len(paths), size)]
    cores = workers.available_cores()
    with (
        counted("decoding", len(paths), "images")
        if len(paths) >= WORTH_PROCESSES
        else nullcontext(lambda done: None) as progress
    ):
        several = len(paths) >= WORTH_PROCESSES and cores > 1
        for made, places, bad in workers.map_in_processes(_some, chunks, cores) if several else starmap(_some, chunks):
            progress(len(places) + len(bad))
            yield made, places, bad


def _some(start: int, paths: Sequence[str], how: How) -> Chunk:
    good, places, bad = [], [], []
    for place, path in enumerate(paths, start):
        try:
            good.append(decode(path, how))
            places.append(place)
        except DataError as error:
            bad.append(str(error))
    channels = how.channels or max((pixels.shape[2] for pixels in good), default=1)
    made = np.empty((len(good), channels, *how.size), np.uint8)
    for image, pixels in zip(made, good, strict=True):
        image[:] = pixels.transpose(2, 0, 1)  # gray is repeated where others in the chunk have colours
    return made, places, bad
