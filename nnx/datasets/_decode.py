"""Many image files to one array, on all cores."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnx import images
from nnx.errors import DataError
from nnx.spec import Fit

WORTH_PROCESSES = 3000  # files; two processes are there after 0.5 s, in which one decodes some 2,000
CHUNK = 256  # files that a process is given at a time


class How(NamedTuple):
    """What becomes of an image: `channels` None is one, unless it has a colour; others than of `size` are refused unless `fit` is given."""

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
    elif pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = np.ascontiguousarray(pixels[:, :, :1])
    H, W = how.size
    if how.fit:
        return images.to_size(pixels, H, W, how.fit)
    if pixels.shape[:2] != (H, W):
        height, width = pixels.shape[:2]
        raise DataError(
            f"{path}: is {width} wide and {height} high, the first image is {W} by {H}; give all one size by dataset.size: {max(H, W)}"
        )
    return pixels


def decoded(paths: Sequence[str], how: How) -> Iterator[Chunk]:
    """The images of all files, some at a time, in order, on all cores where there are many, with progress on stderr."""
    chunks = [(start, paths[start : start + CHUNK]) for start in range(0, len(paths), CHUNK)]
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _shown(len(paths)) as progress:
        if len(paths) < WORTH_PROCESSES or processes < 2:
            results: Iterator[Chunk] = (_some(start, some, how) for start, some in chunks)
            yield from _counted(results, progress)
            return
        spawn = multiprocessing.get_context("spawn")  # not fork: torch's threads run already
        with ProcessPoolExecutor(processes, spawn, initializer=_begin) as pool:
            try:
                starts, files = zip(*chunks, strict=True)
                yield from _counted(pool.map(_some, starts, files, [how] * len(chunks)), progress)
            except BaseException:  # a signal, too: nothing of it is wanted any more
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise


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


def _begin() -> None:
    """A process that decodes: Ctrl-C is its parent's to answer, and it does not outlive that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():

        def follow() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _counted(results: Iterator[Chunk], progress: Callable[[int], None]) -> Iterator[Chunk]:
    for chunk in results:
        progress(len(chunk[1]) + len(chunk[2]))
        yield chunk


@contextmanager
def _shown(total: int) -> Iterator[Callable[[int], None]]:
    """What to tell of each so many files done: a bar where stderr is a terminal, a line where it is none; nothing for few."""
    if total < WORTH_PROCESSES:
        yield lambda done: None
    elif not sys.stderr.isatty():
        print(f"decoding {total:,} images", file=sys.stderr)  # noqa: T201 (to stderr)
        yield lambda done: None
    else:
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.TextColumn("decoding"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.advance(task, done)
