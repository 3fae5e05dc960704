"""Decodes many image files into one array, on all cores."""

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from itertools import starmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnx.datasets._progress import count_progress
from nnx.errors import DataError
from nnx.preprocessing import images
from nnx.preprocessing.spec import Fit
from nnx.system import platform, workers

WORTH_PROCESSES = 3000  # files; starting two processes takes 0.5 s, in which one process decodes some 2,000
CHUNK = 256  # files per task of a process, at most
CHUNK_BYTES = 2**25  # of their pixels
TINT = 2  # gray levels: channels that differ by no more are gray, as WebP returns a gray image


class DecodeOptions(NamedTuple):
    """How to decode an image to `size`, (H, W), and `channels`; None: one channel, or three if it is coloured.

    An image of another size is resized as `fit` says, or rejected if that is None. Values of more than 8 bits become
    white from `white` on. Files of more than `max_pixels` are errors, except JPEGs that are resized: they are decoded
    smaller.
    """

    size: tuple[int, int]
    fit: Fit | None
    channels: int | None
    white: int = images.WHITE
    max_pixels: int = images.MAX_PIXELS


class Chunk(NamedTuple):
    """(n, C, H, W) images, their indices in the list of files, and the error messages of the other files by index."""

    pixels: NDArray[np.uint8]
    indices: list[int]
    errors: dict[int, str]
    highest: list[int]  # value of each image of more than 8 bits, before scaling; 0 for the others


def decode(path: str, options: DecodeOptions) -> images.Decoded:
    """An image file -> (H, W, C) uint8. Raises DataError, naming it."""
    pixels, highest = images.measure(
        path, white=options.white, max_pixels=options.max_pixels, reduce=options.fit is not None
    )
    return images.Decoded(_fit(pixels, path, options), highest)


def _fit(pixels: NDArray[np.uint8], path: str, options: DecodeOptions) -> NDArray[np.uint8]:
    """(h, w, c) -> the size and the channels that `options` ask for. Raises DataError for a wrong size."""
    if options.channels:
        pixels = images.to_channels(pixels, options.channels)
    elif pixels.shape[2] == 3 and (np.ptp(pixels, axis=2) <= TINT).all():
        pixels = images.to_channels(pixels, 1)
    H, W = options.size
    if options.fit:
        return images.to_size(pixels, H, W, options.fit)
    height, width = pixels.shape[:2]
    if (height, width) != (H, W):
        problem = f"is {width} wide and {height} high, but the first image is {W} by {H}"
        raise DataError(f"{path}: {problem}; set dataset.size: {max(H, W)} to resize all images")
    return pixels


def decode_all(paths: Sequence[str], options: DecodeOptions) -> Generator[Chunk, None, None]:
    """The images of all files, in chunks, in order. Many files are decoded on all cores, with progress on stderr.

    Raises MachineError if one of the processes is killed.
    """
    many = len(paths) >= WORTH_PROCESSES
    size = max(1, min(CHUNK, CHUNK_BYTES // (options.size[0] * options.size[1] * (options.channels or 3))))
    tasks = [(start, paths[start : start + size], options) for start in range(0, len(paths), size)]
    cores = platform.cores()
    with count_progress("decoding", len(paths), "images") if many else nullcontext(lambda done: None) as progress:
        parallel = many and cores > 1
        chunks = workers.map_in_processes(_decode_chunk, tasks, cores) if parallel else starmap(_decode_chunk, tasks)
        for chunk in chunks:
            progress(len(chunk.indices) + len(chunk.errors))
            yield chunk


def _decode_chunk(start: int, paths: Sequence[str], options: DecodeOptions) -> Chunk:
    decoded = []
    highest = []
    indices = []
    errors = {}
    for index, path in enumerate(paths, start):
        try:
            image = decode(path, options)
            decoded.append(image.pixels)
            highest.append(image.highest)
            indices.append(index)
        except DataError as error:
            errors[index] = str(error)
    channels = options.channels or max((pixels.shape[2] for pixels in decoded), default=1)
    result = np.empty((len(decoded), channels, *options.size), np.uint8)
    for image, pixels in zip(result, decoded, strict=True):
        image[:] = pixels.transpose(2, 0, 1)  # repeats the channel of a gray image if others in the chunk are coloured
    return Chunk(result, indices, errors, highest)
