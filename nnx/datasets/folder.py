"""Image files of one's own: a folder for each class, or a list of files and labels."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from nnx import images
from nnx.columns import naturally
from nnx.datasets import DatasetConfig, Source, Split, _cache, _decode, _own
from nnx.errors import DataError, MachineError
from nnx.events import Choice
from nnx.parts import suggest
from nnx.spec import Fit

PARTS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
ALL = "all"  # the part that everything is in where it is not parted
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")


def _size(value: Any) -> int | list[int]:
    sides = value if isinstance(value, list) else [value]
    if len(sides) in (1, 2) and all(type(side) is int and 1 <= side <= 4096 for side in sides) and value != [value]:
        size: int | list[int] = value if isinstance(value, int) else [sides[0], sides[-1]]
        return size
    raise PydanticCustomError("nnx", "expected a number of pixels (28), or height and width ([28, 32])")


Size = Annotated[int | list[int], PlainValidator(_size, json_schema_input_type=int | list[int])]


class Config(DatasetConfig):
    """Images in a folder for each class (perhaps under train/, val/, test/), or listed in a CSV file with the columns file and label."""

    name: Literal["folder"] = "folder"
    path: str = Field(examples=["pictures"], description="the folder, or the CSV file")
    test: _own.PartOrPath = Field(
        0.2, description="test data where there is no folder test/: another folder or list, a count or a fraction"
    )
    size: Size | None = Field(None, description="height and width of the images, 28 or [28, 32]; else all must have the same")
    fit: Fit = Field("pad", description="pad: keep the aspect, fill with the border's colour; stretch: do not")
    grayscale: Literal["auto"] | bool = Field("auto", description="auto: where no image has a colour")
    skip_bad: bool = Field(False, description="leave out files that can't be read, instead of refusing them all")


class File(NamedTuple):
    """An image file, its class, and what says whether it has changed: its size (-1 where it is not there) and its time of change."""

    path: str
    label: str
    size: int
    changed: int


def load(config: Config, folder: Path) -> Source:
    """The images under `config.path`, decoded once (see `_cache`); `folder` is not looked at.

    Their order is that of their names inside the class folders, whatever their class: names that count keep the order of counting.
    Raises ConfigError, DataError, MachineError.
    """
    path = _own.existing(config.path)
    parts = _listed(path)
    if isinstance(config.test, str):
        parts["test"] = _only_part(_own.existing(config.test, "dataset.test"))
    classes = naturally({file.label for file in parts.get("train") or parts[ALL]})
    for files in parts.values():
        if unknown := [file for file in files if file.label not in classes]:
            hint = suggest(unknown[0].label, classes)
            raise DataError(f"{unknown[0].path}: is of the class {unknown[0].label!r}, which has no training images{hint}")
    options = config.model_dump(include={"size", "fit", "grayscale", "skip_bad"}) | {"parts": list(parts)}
    stamp = _cache.stamp((f"{part}/{file.label}/{file.path}", file.size, file.changed) for part in parts for file in parts[part])
    depends = _cache.Depends(os.path.abspath(path), options, stamp)
    kept = _cache.cached("folder", depends, lambda writer: _decoded(config, parts, classes, writer))
    skipped: list[str] = kept.facts["skipped"]
    left_out = (
        Choice("left out", f"{kept.facts['bad']:,} files", f"as dataset.skip_bad says: {'; '.join(skipped[:2])}") if skipped else None
    )

    def split(name: str) -> Split:
        return Split(kept.arrays[f"{name}-inputs"], np.array(kept.arrays[f"{name}-labels"]))

    fit = config.fit if config.size else None
    validation = split("validation") if "validation" in parts else None
    notes = (kept.note, *([left_out] if left_out else []))
    whole = split(ALL if ALL in parts else "train")
    if "test" in parts:
        return Source(whole, lambda: split("test"), classes, validation=validation, fit=fit, notes=notes)
    assert not isinstance(config.test, str)
    return _own.cut(whole, config.test, classes, path, validation=validation, fit=fit, notes=notes)


# ---------------------------------------------------------------- which files there are


def _listed(path: Path) -> dict[str, list[File]]:
    """The files of each part: of train, validation, test, or of ALL. Raises DataError."""
    if path.is_file():
        return {ALL: _of_csv(path)}
    found = {PARTS[child.name.lower()]: child for child in _folders(path) if child.name.lower() in PARTS}
    if not found:
        return {ALL: _of_classes(path)}
    if "train" not in found:
        raise DataError(f"{path}: has a folder {next(iter(found.values())).name}, but none called train; add it")
    return {part: _of_classes(found[part]) for part in ("train", "validation", "test") if part in found}


def _only_part(path: Path) -> list[File]:
    parts = _listed(path)
    return parts.get("test") or parts.get(ALL) or parts["train"]


def _folders(path: "Path | os.DirEntry[str]") -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise MachineError(f"{os.fspath(path)}: can't be read ({error.strerror}); check its permissions") from None


def _of_classes(path: "Path | os.DirEntry[str]") -> list[File]:
    """The images in the class folders of `path`, in the order of their names inside them."""
    classes = _folders(path)
    if not classes:
        raise DataError(f"{os.fspath(path)}: holds no folders; put the images of each class into a folder of its own, called as the class")
    found = []
    for folder in classes:
        files = list(_walk(folder.path, ""))
        if not files:
            kinds = " ".join(ENDINGS)
            raise DataError(f"{folder.path}: holds no images ({kinds}); add some for the class {folder.name!r}, or remove the folder")
        found += [(name, File(entry.path, folder.name, *_stamped(entry))) for name, entry in files]
    return [file for _, file in sorted(found, key=lambda named: (named[0], named[1].label))]


def _walk(folder: str, inside: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{inside}{entry.name}/")
            elif entry.name.lower().endswith(ENDINGS):
                yield inside + entry.name, entry


def _stamped(file: "os.DirEntry[str] | Path") -> tuple[int, int]:
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return -1, 0


def _of_csv(path: Path) -> list[File]:
    """The images that a table of files and labels names, relative to where it lies, in its order. Raises DataError, naming the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            delimiter = max(",;\t", key=head.count)
            header = [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])]
            columns = [next((header.index(name) for name in names if name in header), None) for names in (FILE_COLUMNS, LABEL_COLUMNS)]
            if None in columns:
                raise DataError(f"{path}:1: has the columns {', '.join(header)[:200]}; it needs file and label")
            found = []
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header) or not all(row[column or 0].strip() for column in columns):
                    raise DataError(f"{path}:{reader.line_num + 1}: has no file, no label, or too many values; correct or remove the line")
                name, label = (row[column or 0].strip() for column in columns)
                image = path.parent / name
                found.append(File(str(image), label, *_stamped(image)))
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: is not a folder, nor a CSV file of images and labels; name one of these") from None
    except OSError as error:
        raise MachineError(f"{path}: can't be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{path}: names no images; add lines of file and label")
    return found


# ---------------------------------------------------------------- decoding them


def _decoded(config: Config, parts: dict[str, list[File]], classes: tuple[str, ...], writer: _cache.Writer) -> dict[str, Any]:
    """All parts into `writer`: arrays PART-inputs (N, C, H, W) and PART-labels (N,). Raises DataError where files can't be read."""
    first = next(iter(parts.values()))
    size = (config.size, config.size) if isinstance(config.size, int) else config.size or _size_of_first(first)
    channels = {"auto": None, True: 1, False: 3}[config.grayscale]
    how = _decode.How((size[0], size[1]), config.fit if config.size else None, channels)
    try:
        return _write(how, config.skip_bad, parts, classes, writer)
    except _Coloured:  # after gray ones: from the beginning, in colours
        writer.restart()
        return _write(how._replace(channels=3), config.skip_bad, parts, classes, writer)


class _Coloured(Exception):
    """An image with a colour came after gray ones had been written."""


def _write(
    how: _decode.How, skip_bad: bool, parts: dict[str, list[File]], classes: tuple[str, ...], writer: _cache.Writer
) -> dict[str, Any]:
    files = [file for part in parts.values() for file in part]
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number[file.label] for file in files], np.int64)
    ends = np.cumsum([len(part) for part in parts.values()])
    there, bad, channels = np.zeros(len(files), bool), [], how.channels
    for pixels, places, wrong in _decode.decoded([file.path for file in files], how):
        bad += wrong
        written = channels or pixels.shape[1]
        if pixels.shape[1] > written:
            raise _Coloured
        channels = written if len(pixels) else channels
        there[places] = True
        pixels = np.repeat(pixels, written // pixels.shape[1], axis=1)
        for part, piece in zip(parts, np.split(pixels, np.searchsorted(places, ends[:-1])), strict=True):
            writer.add(f"{part}-inputs", piece)
    if bad and not skip_bad:
        raise _own.refuse(bad, f"{len(bad):,} of {len(files):,} images can't be used; dataset.skip_bad: true leaves them out")
    for part, own, kept in zip(parts, np.split(labels, ends[:-1]), np.split(there, ends[:-1]), strict=True):
        if lost := sorted(set(own.tolist()) - set(own[kept].tolist())):
            raise DataError(f"{bad[0]} (none of the {part} images of the class {classes[lost[0]]!r} can be read)")
        writer.add(f"{part}-labels", own[kept])
    return {"skipped": bad[:100], "bad": len(bad)}


def _size_of_first(files: Sequence[File]) -> tuple[int, int]:
    """(H, W) of the first image that can be read."""
    for file in files[:1000]:
        with suppress(DataError):
            height, width, _ = images.decode(file.path).shape
            return height, width
    raise _own.refuse([f"{files[0].path}: none of the first images can be read; are they images?"])
