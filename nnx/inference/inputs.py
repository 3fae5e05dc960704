"""What a network is asked about: image files, folders of them, arrays, rows of tables, standard input -> samples, a
batch at a time.

asked = Asked(["seven.png", "more/", "x.npz"], classifier.spec)
for batch in asked.batches():
    classifier(torch.from_numpy(batch.inputs)), batch.names, batch.prepared
"""

import glob
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnx.errors import DataError
from nnx.preprocessing import handwriting, images, tables
from nnx.preprocessing.spec import Spec
from nnx.system import workers

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
ARRAYS = (".npy", ".npz")
BATCH, BATCH_BYTES = 500, 2**26  # samples that a network is given at once, at most, and their bytes
CHUNK = 16  # files that a process is given at a time
PATIENCE = 3.0  # seconds: what would take longer is shared between all cores; their processes are there after 0.5 s
MAX_TABLE = 2**30  # bytes of a table from standard input
STDIN = "-"

Sample = tuple[str, NDArray[Any], tuple[str, ...]]
"""A name, what is given to the network, and how it was prepared."""


class Batch(NamedTuple):
    """n samples: their names, (n, *shape) as the spec has it, and how each was prepared."""

    names: list[str]
    inputs: NDArray[Any]
    prepared: list[tuple[str, ...]]


@dataclass
class InputSet:
    """What `paths` name, for a network of that spec. What is wrong with any of it is said when all has been looked at.

    With `auto`, images are prepared (see handwriting); else they must have the right size. `notes` say what was left
    out or chosen.
    """

    paths: Sequence[str]
    spec: Spec
    auto: bool = True
    notes: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.things = [thing for path in self.paths for thing in self._found(path)]

    def batches(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Batch]:
        """All samples, in order. `progress` is told how many of how many files and arrays are done.

        Raises DataError, at the end, for all that is wrong. What comes before that is then to be forgotten.
        """
        size = min(BATCH, max(1, BATCH_BYTES // (self.spec.size * (1 if self.spec.is_image else 4))))
        samples = self._samples(progress)
        while some := list(islice(samples, size)):
            if not self.mistakes:
                names, inputs, prepared = zip(*some, strict=True)
                yield Batch(list(names), np.stack(inputs), list(prepared))
        if self.mistakes:
            from nnx.datasets._own import refuse

            raise refuse(self.mistakes)

    def _found(self, path: str) -> Iterator[str]:
        """The files that `path` names: itself, what is in it, or what fits it. Raises nothing."""
        if path == STDIN or os.path.lexists(path):
            yield from self._inside(path) if os.path.isdir(path) and self.spec.is_image else [path]
        elif fitting := sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []:
            yield from chain.from_iterable(self._inside(each) if os.path.isdir(each) else [each] for each in fitting)
        elif glob.has_magic(path):
            self.mistakes.append(f"{path}: no file fits this pattern; check the names")
        else:
            yield path  # whoever reads it says that it is not there

    def _inside(self, folder: str) -> Iterator[str]:
        """The image files in a folder and the folders in it, in the order of their names; hidden ones are passed
        over."""
        found, others = [], 0
        for place, folders, files in os.walk(folder, onerror=lambda error: self.mistakes.append(_unreadable(error))):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                if name.lower().endswith(ENDINGS) and os.path.isfile(os.path.join(place, name)):
                    found.append(os.path.join(place, name))
                else:
                    others += 1
        if others:
            self.notes.append(
                f"{folder}: {others:,} file{'s' * (others > 1)} passed over that {'are' if others > 1 else 'is'} no image"
            )
        if not found:
            self.mistakes.append(f"{folder}: is a folder without images ({' '.join(ENDINGS)}); name another")
        yield from found

    def _samples(self, progress: Callable[[int, int], None]) -> Iterator[Sample]:
        read = _read_all([thing for thing in self.things if self._is_image(thing)], self.spec, self.auto)
        for done, thing in enumerate(self.things, 1):
            try:
                if self._is_image(thing):
                    sample, mistake = next(read)
                    if sample is None:
                        raise DataError(mistake)
                    yield sample
                elif self.spec.columns:
                    yield from self._rows(thing)
                elif thing.lower().endswith(ARRAYS):
                    yield from self._array(Path(thing))
                else:
                    raise DataError(
                        f"{thing}: the network was trained on rows of numbers; give it a .npy or .npz file of such"
                    )
            except DataError as error:
                self.mistakes.append(str(error))
            progress(done, len(self.things))

    def _is_image(self, thing: str) -> bool:
        return self.spec.is_image and not thing.lower().endswith(ARRAYS)

    def _rows(self, path: str) -> Iterator[Sample]:
        """The rows of a table, by the columns that the network was trained on."""
        assert self.spec.columns
        if path.lower().endswith(ARRAYS):
            raise DataError(
                f"{path}: has no names for its columns, as the table has that the network was trained on; give it a .csv"
            )
        name = "standard input" if path == STDIN else path
        table = _standard_input(MAX_TABLE) if path == STDIN else path
        frame = tables.read(table, name)
        coded = self.spec.columns.encode(frame, name)
        rows = self.spec.columns.apply(coded, self.spec.columns)
        self.notes += [f"{name}: {remark}" for remark in self.spec.columns.describe_missing_and_unseen(coded, frame)]
        for where, row in zip(tables.locate_rows(table, name, len(rows)), rows, strict=True):
            yield where, row, ()

    def _array(self, path: Path) -> Iterator[Sample]:
        """The samples of a .npy or .npz file."""
        from nnx.datasets import arrays

        stored = self._chosen(arrays._npz(path), path) if path.suffix.lower() == ".npz" else arrays._npy(path)
        values, start = _as_samples(stored.read(), self.spec, stored.where), 0
        scale = arrays._scale(values, stored.where) if self.spec.is_image else 1.0
        if scale == 255:
            self.notes.append(f"{stored.where}: 0 to 1 is taken for 0 to 255")
        while start < len(values):
            block = arrays._converted(values[start : start + BATCH], scale, stored.where, start)
            for n, each in enumerate(block, start):
                name = f"{path}[{n}]"
                yield (
                    name,
                    *(
                        _prepared(each.transpose(1, 2, 0), self.spec, self.auto, name)
                        if self.spec.is_image
                        else (each, ())
                    ),
                )
            start += BATCH

    def _chosen(self, there: dict[str, Any], path: Path) -> Any:
        """Of the arrays in a file the one with test data, or the only one. Raises DataError."""
        from nnx.datasets.arrays import INPUTS, LABELS

        plain = {name.lower(): name for name in there}
        wanted = [*(name for kind in INPUTS for name in (f"{kind}_test", f"test_{kind}")), *INPUTS]
        inputs = [name for name in there if not any(word in name.lower().split("_") for word in LABELS)]
        name = next((plain[each] for each in wanted if each in plain), inputs[0] if len(inputs) == 1 else None)
        if name is None:
            listed = ", ".join(sorted(there)[:10]) or "nothing"
            raise DataError(
                f"{path}: holds {listed}; call what is asked about x_test, test_images or images, or save it alone"
            )
        if len(there) > 1:
            self.notes.append(f"{path}: {name} is asked about, of {', '.join(sorted(there)[:10])}")
        return there[name]


# ---------------------------------------------------------------- images


def _read_all(files: Sequence[str], spec: Spec, auto: bool) -> Iterator[tuple[Sample | None, str]]:
    """`_read_image` of each file, in order: where that takes long, by all cores. (A generator: of the next call each begins
    with its file.)"""
    begun, cores = time.perf_counter(), workers.available_cores()
    for n, file in enumerate(files):
        taken = time.perf_counter() - begun
        if n and cores > 1 and taken / n * (len(files) - n) > PATIENCE and STDIN not in files[n:]:
            chunks = ((files[start : start + CHUNK], spec, auto) for start in range(n, len(files), CHUNK))
            for some in workers.map_in_processes(_read_some, chunks, cores):
                yield from some
            return
        yield _read_image(file, spec, auto)


def decode_image(file: str, spec: Spec) -> NDArray[np.uint8]:
    """An image file, or standard input, as (h, w, 1 or 3) pixels for a network of images. Raises DataError."""
    pixels = (
        images.decode(_standard_input(images.MAX_BYTES), "standard input") if file == STDIN else images.decode(file)
    )
    _check_channels(pixels, spec, file)
    return pixels


def _read_some(files: Sequence[str], spec: Spec, auto: bool) -> list[tuple[Sample | None, str]]:
    return [_read_image(file, spec, auto) for file in files]


def _read_image(file: str, spec: Spec, auto: bool) -> tuple[Sample | None, str]:
    """An image file as a sample, or what is wrong with it."""
    try:
        return (file, *_prepared(decode_image(file, spec), spec, auto, file)), ""
    except DataError as error:
        return None, str(error)


def _prepared(
    pixels: NDArray[np.uint8], spec: Spec, auto: bool, name: str
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(h, w, c) as an input of the network, and what was done to it. Raises DataError where that can't be, or shall
    not."""
    _, H, W = spec.shape
    _check_channels(pixels, spec, name)
    if pixels.shape[:2] != (H, W) and not (auto or spec.fit):
        found, wanted = (f"{width} wide and {height} high" for height, width in (pixels.shape[:2], (H, W)))
        raise DataError(
            f"{name}: is {found}, but the network was trained on images {wanted}; save it in that size, or use --prepare auto"
        )
    if not auto:
        return handwriting.resize_to_spec(pixels, spec), ()
    image, steps = handwriting.prepare(pixels, spec)
    return image, tuple(step.text for step in steps)


def _check_channels(pixels: NDArray[np.uint8], spec: Spec, name: str) -> None:
    c, C = pixels.shape[2], spec.shape[0]
    if c != C and {c, C} != {1, 3}:
        raise DataError(
            f"{name}: has {c} channel{'s' * (c > 1)}, but the network was trained on images with {C}; give it such"
        )


# ---------------------------------------------------------------- arrays


def _as_samples(values: NDArray[Any], spec: Spec, where: str) -> NDArray[Any]:
    """Whatever an array holds as (N, C, H, W) images of any size, or (N, F) rows of the right length. Raises
    DataError."""
    from nnx.datasets import arrays

    shape = values.shape
    if values.dtype.kind not in "uifb" or not values.size:
        raise DataError(
            f"{where}: holds {'no values' if not values.size else f'values of type {values.dtype}'}; give it numbers"
        )
    if not spec.is_image:
        if len(shape) == 2 and shape[1] == spec.size:
            return values
        wanted = f"rows of {spec.size} numbers (N x {spec.size})"
    elif len(shape) == 2 and shape[1] == spec.size:
        return values.reshape(-1, *spec.shape)
    elif len(shape) == 2 and shape == spec.shape[1:]:
        return values[None, None]
    elif len(shape) in (3, 4):
        C, H, W = spec.shape
        last = len(shape) == 4 and shape[1:] != (C, H, W) and (shape[1:] == (H, W, C) or shape[3] <= shape[1])
        return arrays._arranged(values, 3 if last else 1)
    else:
        wanted = f"images (N x H x W, N x H x W x C or N x C x H x W), or N x {spec.size}"
    raise DataError(
        f"{where}: has the shape {' x '.join(map(str, shape)) or 'of a number'}; the network was trained on {wanted}"
    )


# ---------------------------------------------------------------- standard input


def _standard_input(most: int) -> bytes:
    """All that comes, but hardly more than so many bytes. Raises DataError where that would be what somebody types."""
    if sys.stdin.isatty():
        raise DataError(
            "standard input: is the keyboard; send a file into it, as in: nnx predict checkpoint.pt - < seven.png"
        )
    return sys.stdin.buffer.read(most + 1)


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: can't be read ({error.strerror}); check its permissions"
