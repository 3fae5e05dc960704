"""Reads the inputs of a network in batches: image files, folders of them, arrays, rows of tables, standard input.

inputs = InputSet(["seven.png", "more/", "x.npz"], classifier.spec)
for batch in inputs.batches():
    classifier(torch.from_numpy(batch.inputs)), batch.names, batch.prepared
"""

import codecs
import glob
import math
import os
import re
import sys
import time
from collections import Counter
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
from nnx.system import platform, workers

ARRAY_EXTENSIONS = (".npy", ".npz")
TABLE_EXTENSIONS = (".csv", ".tsv", ".tab", ".parquet", ".csv.gz", ".tsv.gz")
BATCH, BATCH_BYTES = 500, 2**26  # maximum number of samples in a batch, and of their bytes
CHUNK = 16  # number of files that a worker process receives at a time
PATIENCE = 3.0  # seconds: longer work is shared between all cores, whose processes take 0.5 s to start
MAX_TABLE = 2**30  # bytes of a table from standard input
STDIN = "-"

Sample = tuple[str, NDArray[Any], tuple[str, ...]]
"""A name, the input of the network, and the steps of its preparation."""

ImageSource = tuple[str, str | bytes | NDArray[np.uint8]]
"""The name of an image, and its path, its file's content or its (h, w, c) pixels."""


class Batch(NamedTuple):
    """n samples: their names, (n, *shape) as in the spec, and the steps of each one's preparation."""

    names: list[str]
    inputs: NDArray[Any]
    prepared: list[tuple[str, ...]]


@dataclass
class InputSet:
    """The inputs in `paths` for a network with this spec. Errors are collected and raised together at the end.

    If `auto` is true, images are prepared (see handwriting); otherwise they must have the right size. `notes` list what
    was skipped or chosen.
    """

    paths: Sequence[str]
    spec: Spec
    auto: bool = True
    notes: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = [file for path in self.paths for file in self._expand_path(path)]

    def batches(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Batch]:
        """All samples, in order. Calls `progress` with the number of files that are done and their total.

        Raises one DataError with all mistakes at the end; the batches before it must then be discarded.
        """
        size = min(BATCH, max(1, BATCH_BYTES // (self.spec.size * (1 if self.spec.is_image else 4))))
        samples = self._read_samples(progress)
        while chunk := list(islice(samples, size)):
            if not self.mistakes:
                names, inputs, prepared = zip(*chunk, strict=True)
                yield Batch(list(names), np.stack(inputs), list(prepared))
        if self.mistakes:
            from nnx.datasets._user_data import combine_errors

            raise combine_errors(self.mistakes)

    def _expand_path(self, path: str) -> Iterator[str]:
        """The files of `path`: itself, the images in a folder, or the matches of a pattern. Raises nothing."""
        if path == STDIN or os.path.lexists(path):
            yield from self._list_images(path) if os.path.isdir(path) and self.spec.is_image else [path]
        elif matches := sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []:
            yield from chain.from_iterable(
                self._list_images(match) if os.path.isdir(match) else [match] for match in matches
            )
        elif glob.has_magic(path):
            self.mistakes.append(f"{path}: no file matches this pattern; check the names")
        else:
            yield path  # reading it raises the error

    def _list_images(self, folder: str) -> Iterator[str]:
        """The image files in a folder and its subfolders, sorted by name, without hidden ones."""
        image_files = []
        others: Counter[str] = Counter()
        for place, folders, files in os.walk(folder, onerror=lambda error: self.mistakes.append(_unreadable(error))):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                if name.lower().endswith(images.EXTENSIONS) and os.path.isfile(os.path.join(place, name)):
                    image_files.append(os.path.join(place, name))
                else:
                    others[images.extension(name)] += 1
        if others:
            count = others.total()
            skipped = f"{count:,} files that are not images" if count > 1 else "1 file that is not an image"
            self.notes.append(f"{folder}: skipped {skipped} ({images.count_extensions(others)})")
        if not image_files:
            self.mistakes.append(f"{folder}: is a folder without images ({' '.join(images.EXTENSIONS)}); name another")
        yield from image_files

    def _read_samples(self, progress: Callable[[int, int], None]) -> Iterator[Sample]:
        tables_of_images = {file for file in self.files if self.spec.is_image and _is_table(file, self.spec)}
        files = [file for file in self.files if self._is_image(file) and file not in tables_of_images]
        image_samples = _read_images([(file, file) for file in files], self.spec, self.auto)
        for done, file in enumerate(self.files, 1):
            try:
                if file in tables_of_images:
                    yield from self._read_table_of_images(file)
                elif self._is_image(file):
                    sample, mistake = next(image_samples)
                    if sample is None:
                        raise DataError(mistake)
                    yield sample
                elif self.spec.columns:
                    yield from self._read_table(file)
                elif file.lower().endswith(ARRAY_EXTENSIONS):
                    yield from self._read_array(Path(file))
                else:
                    raise DataError(f"{file}: the network was trained on rows of numbers; give it a .npy or .npz file")
            except DataError as error:
                self.mistakes.append(str(error))
            progress(done, len(self.files))

    def _is_image(self, file: str) -> bool:
        return self.spec.is_image and not file.lower().endswith(ARRAY_EXTENSIONS)

    def _read_table_of_images(self, path: str) -> Iterator[Sample]:
        """The images in the rows of a table. Adds the mistakes in rows to `mistakes`."""
        sources, unused = _open_table_of_images(path, self.spec)
        if unused:
            shown = ", ".join(unused[:10]) + (f" and {len(unused) - 10:,} more" if len(unused) > 10 else "")
            self.notes.append(f"{_name_of(path)}: columns that are not used: {shown}")
        for sample, mistake in _read_images(sources, self.spec, self.auto):
            if sample:
                yield sample
            else:
                self.mistakes.append(mistake)

    def _read_table(self, path: str) -> Iterator[Sample]:
        """The rows of a table, encoded with the columns that the network was trained on."""
        columns = self.spec.columns
        assert columns
        if path.lower().endswith(ARRAY_EXTENSIONS):
            problem = "has no column names, but the network was trained on a table that has them"
            raise DataError(f"{path}: {problem}; give it a .csv")
        name = _name_of(path)
        table = _read_standard_input(MAX_TABLE) if path == STDIN else path
        frame = tables.read(table, name, literal=columns.notated)
        encoded = columns.encode(frame, name)
        rows = columns.apply(encoded, columns)
        self.notes += [f"{name}: {note}" for note in columns.describe_missing_and_unseen(encoded, frame)]
        for location, row in zip(tables.locate_rows(table, name, len(rows)), rows, strict=True):
            yield location, row, ()

    def _read_array(self, path: Path) -> Iterator[Sample]:
        """The samples of a .npy or .npz file."""
        from nnx.datasets import arrays

        is_archive = path.suffix.lower() == ".npz"
        stored = self._choose_array(arrays.open_npz(path), path) if is_archive else arrays.open_npy(path)
        values = _arrange_samples(stored.read(), self.spec, stored.where)
        scale = arrays.pixel_scale(values, stored.where, self.spec.white) if self.spec.is_image else 1.0
        if scale != 1:
            self.notes.append(f"{stored.where}: values from 0 to {255 / scale:g} are scaled to 0 to 255")
        for start in range(0, len(values), BATCH):
            block = arrays.convert_block(values[start : start + BATCH], scale, stored.where, start)
            for n, sample in enumerate(block, start):
                name = f"{path}[{n}]"
                if self.spec.is_image:
                    yield name, *_prepare_image(sample.transpose(1, 2, 0), self.spec, self.auto, name)
                else:
                    yield name, sample, ()

    def _choose_array(self, stored: dict[str, Any], path: Path) -> Any:
        """The array with the test inputs among those in a file, or the only array of inputs. Raises DataError."""
        from nnx.datasets.arrays import INPUTS, LABELS

        names = {name.lower(): name for name in stored}
        preferred = [*(name for kind in INPUTS for name in (f"{kind}_test", f"test_{kind}")), *INPUTS]
        inputs = [name for name in stored if not any(word in name.lower().split("_") for word in LABELS)]
        only = inputs[0] if len(inputs) == 1 else None
        name = next((names[key] for key in preferred if key in names), only)
        listed = ", ".join(sorted(stored)[:10])
        if name is None:
            cure = "call the input x_test, test_images or images, or save it alone"
            raise DataError(f"{path}: contains {listed or 'nothing'}; {cure}")
        if len(stored) > 1:
            self.notes.append(f"{path}: {name} is the input, of {listed}")
        return stored[name]


# ---------------------------------------------------------------- images


def _read_images(sources: Sequence[ImageSource], spec: Spec, auto: bool) -> Iterator[tuple[Sample | None, str]]:
    """`_read_image` of each image, in order, on all cores if that takes long. Reads a file only when its turn comes."""
    start = time.perf_counter()
    cores = platform.cores()
    for n, source in enumerate(sources):
        elapsed = time.perf_counter() - start
        if n and cores > 1 and elapsed / n * (len(sources) - n) > PATIENCE and (STDIN, STDIN) not in sources[n:]:
            chunks = ((sources[first : first + CHUNK], spec, auto) for first in range(n, len(sources), CHUNK))
            for results in workers.map_in_processes(_read_chunk, chunks, cores):
                yield from results
            return
        yield _read_image(source, spec, auto)


def decode_image(file: str, spec: Spec) -> NDArray[np.uint8]:
    """An image file, the only image of a table, or standard input -> (h, w, 1 or 3) pixels for a network of images.
    Raises DataError."""
    if not _is_table(file, spec):
        return _decode(file, file, spec)
    sources, _ = _open_table_of_images(file, spec)
    if len(sources) > 1:
        problem = f"is a table of {len(sources):,} images, only one can be shown"
        raise DataError(f"{_name_of(file)}: {problem}; save one row, or use nnx predict for all of them")
    return _decode(*sources[0], spec)


def _decode(name: str, source: str | bytes | NDArray[np.uint8], spec: Spec) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return source
    max_pixels = spec.max_pixels or images.MAX_PIXELS
    data = _read_standard_input(max(images.MAX_JPEG_BYTES, 4 * max_pixels)) if source == STDIN else source
    pixels = images.decode(data, _name_of(name), white=spec.white, max_pixels=max_pixels, reduce=True)
    _check_channels(pixels, spec, name)
    return pixels


def _read_chunk(sources: Sequence[ImageSource], spec: Spec, auto: bool) -> list[tuple[Sample | None, str]]:
    return [_read_image(source, spec, auto) for source in sources]


def _read_image(source: ImageSource, spec: Spec, auto: bool) -> tuple[Sample | None, str]:
    """An image -> its sample and "", or None and the error message."""
    name = source[0]
    try:
        return (name, *_prepare_image(_decode(*source, spec), spec, auto, name)), ""
    except DataError as error:
        return None, str(error)


def _is_table(file: str, spec: Spec) -> bool:
    """Whether a file, or standard input, is a table rather than an image: by its ending, or its first bytes."""
    if file != STDIN:
        return file.lower().endswith(TABLE_EXTENSIONS)
    peek = getattr(sys.stdin.buffer, "peek", None)
    if peek is None or sys.stdin.isatty():
        return False
    head = peek(1)
    if head.startswith(b"PAR1"):
        return True
    words = {word.strip(b' \r\n"') for word in re.split(rb"[,;\t|\n]", head.removeprefix(codecs.BOM_UTF8))}
    columns = spec.image_columns
    return bool(columns and columns.are_pixels and words & {name.encode() for name in columns.names})


def _open_table_of_images(file: str, spec: Spec) -> tuple[list[ImageSource], list[str]]:
    """The images in the rows of a table, read as those that the network was trained on, and the columns that are not
    used. Raises DataError."""
    from nnx.datasets import _table_images

    name = _name_of(file)
    table = _read_standard_input(MAX_TABLE) if file == STDIN else file
    frame = tables.read(table, name)
    columns = spec.image_columns
    are_pixels = columns is not None and columns.are_pixels
    column = _table_images.find_image_column(frame.schema, columns)
    if column and not (are_pixels and columns and columns.names[0] in frame.columns):
        sources: list[ImageSource] = []
        for row, data in enumerate(_table_images.file_bytes(frame[column]), 1):
            if data is None:
                raise DataError(f"{name}, row {row}: has no image in column {column!r}; drop the row")
            sources.append((f"{name}, row {row}", data))
        return sources, [other for other in frame.columns if other != column]
    if not (columns and are_pixels):
        problem = "has no column of image files, and the network was not trained on columns of pixels"
        raise DataError(f"{name}: {problem}; give it images, folders of images, .npy or .npz files")
    C, H, W = spec.shape
    chosen = _table_images.trained_pixels(frame, columns, name)
    pixels, _ = _table_images.reshape_pixels(chosen, [H, W, C], name, scale=columns.scale)
    rows = zip(tables.locate_rows(table, name, len(pixels)), pixels.transpose(0, 2, 3, 1), strict=True)
    return list(rows), [other for other in frame.columns if other not in set(columns.names)]


def _prepare_image(
    pixels: NDArray[np.uint8], spec: Spec, auto: bool, name: str
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(h, w, c) -> an input of the network, and the steps of its preparation. Raises DataError for a wrong number of
    channels, and for a wrong size unless `auto` is true or the training images were resized, too."""
    _, H, W = spec.shape
    _check_channels(pixels, spec, name)
    if pixels.shape[:2] != (H, W) and not (auto or spec.fit):
        size, expected = (f"{width} wide and {height} high" for height, width in (pixels.shape[:2], (H, W)))
        problem = f"is {size}, but the network was trained on images {expected}"
        raise DataError(f"{name}: {problem}; save it in that size, or use --prepare auto")
    if not auto:
        return handwriting.resize_to_spec(pixels, spec), ()
    image, steps = handwriting.prepare(pixels, spec)
    return image, tuple(step.text for step in steps)


def _check_channels(pixels: NDArray[np.uint8], spec: Spec, name: str) -> None:
    c, C = pixels.shape[2], spec.shape[0]
    if c != C and {c, C} != {1, 3}:
        problem = f"has {c} channel{'s' * (c > 1)}, but the network was trained on images with {C}"
        raise DataError(f"{name}: {problem}; give it images with {C}")


# ---------------------------------------------------------------- arrays


def _arrange_samples(values: NDArray[Any], spec: Spec, where: str) -> NDArray[Any]:
    """An array -> (N, C, H, W) images of any size, or (N, F) rows of the right length. Raises DataError."""
    from nnx.datasets import arrays

    shape = values.shape
    if values.dtype.kind not in "uifb" or not values.size:
        content = "no values" if not values.size else f"values of type {values.dtype}"
        raise DataError(f"{where}: contains {content}; give it numbers")
    if not spec.is_image:
        if len(shape) > 1 and math.prod(shape[1:]) == spec.size:
            return values.reshape(len(values), -1)
        expected = f"rows of {spec.size} numbers (N x {spec.size})"
    elif len(shape) == 2 and shape[1] == spec.size:
        return values.reshape(-1, *spec.shape)
    elif len(shape) == 2 and shape == spec.shape[1:]:
        return values[None, None]
    elif len(shape) in (3, 4):
        C, H, W = spec.shape
        last = len(shape) == 4 and shape[1:] != (C, H, W) and (shape[1:] == (H, W, C) or shape[3] <= shape[1])
        return arrays.channels_first(values, 3 if last else 1)
    else:
        expected = f"images (N x H x W, N x H x W x C or N x C x H x W), or N x {spec.size}"
    described = " x ".join(map(str, shape)) or "of a single number"
    raise DataError(f"{where}: has the shape {described}; the network was trained on {expected}")


# ---------------------------------------------------------------- standard input


def _read_standard_input(limit: int) -> bytes:
    """All of standard input, up to one byte more than `limit`. Raises DataError if it is a terminal."""
    if sys.stdin.isatty():
        cure = "redirect a file into it, as in: nnx predict checkpoint.pt - < seven.png"
        raise DataError(f"standard input: is a terminal; {cure}")
    return sys.stdin.buffer.read(limit + 1)


def _name_of(file: str) -> str:
    return "standard input" if file == STDIN else file


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: can't be read ({error.strerror}); check its permissions"
