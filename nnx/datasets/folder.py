"""Image files of one's own: a folder for each class, or a list of files and labels."""

import csv
import os
import stat
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from nnx.config.registry import suggest
from nnx.datasets import DatasetConfig, Source, Split, _cache, _decode, _user_data
from nnx.errors import DataError, MachineError
from nnx.events import Choice
from nnx.preprocessing import images
from nnx.preprocessing.columns import sort_naturally
from nnx.preprocessing.spec import Fit

PARTS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
ALL = "all"  # the part that everything is in where it is not parted
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MAX_HEAD = 100_000  # characters of a list's first line
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "path", "image"), ("label", "class")


def _size(value: Any) -> int | list[int]:
    sides = value if isinstance(value, list) else [value]
    if len(sides) in (1, 2) and all(type(side) is int and 1 <= side <= 4096 for side in sides) and value != [value]:
        size: int | list[int] = value if isinstance(value, int) else [sides[0], sides[-1]]
        return size
    raise PydanticCustomError("nnx", "expected a number of pixels (28), or height and width ([28, 32])")


Size = Annotated[int | list[int], PlainValidator(_size, json_schema_input_type=int | list[int])]


class Config(DatasetConfig):
    """Images in a folder for each class (perhaps under train/, val/, test/), or listed in a CSV file with the columns
    file and label."""

    name: Literal["folder"] = "folder"
    path: str = Field(examples=["pictures"], description="the folder, or the CSV file")
    test: _user_data.PartOrPath = Field(
        0.2, description="test data where there is no folder test/: another folder or list, a count or a fraction"
    )
    size: Size | None = Field(
        None, description="height and width of the images, 28 or [28, 32]; else all must have the same"
    )
    fit: Fit = Field("pad", description="pad: keep the aspect, fill with the border's colour; stretch: do not")
    grayscale: Literal["auto"] | bool = Field("auto", description="auto: where no image has a colour")
    skip_bad: bool = Field(False, description="leave out files that can't be read, instead of refusing them all")


class Part(NamedTuple):
    """The files of a part of the data, and the class of each. Lists, as there may be millions of files, and every run
    looks at them all.

    A name is that inside the folder of its class or, of a listed one, beside the list. Sizes are in bytes, -1 where
    there is no file, times of change in ns.
    """

    root: str  # the folder of the class folders, or of the list
    listed: bool
    names: list[str]
    sizes: list[int]
    changed: list[int]
    labels: list[str]

    def path(self, place: int) -> str:
        """The path of the file at this place."""
        return os.path.join(self.root, *([] if self.listed else [self.labels[place]]), self.names[place])

    def order(self) -> list[int]:
        """The places in the order of training: a list's own, else that of the names, whatever their class. Names that
        count keep the order of counting, padded by zeros or not, as shorter ones come first."""
        places, names, labels = range(len(self.names)), self.names, self.labels
        return (
            [*places]
            if self.listed
            else sorted(places, key=lambda place: (len(names[place]), names[place], labels[place]))
        )


def load(config: Config, folder: Path) -> Source:
    """The images under `config.path`, decoded once (see `_cache`); `folder` is not looked at. Their order: see
    `Part.order`.

    Raises ConfigError, DataError, MachineError.
    """
    path = _user_data.existing(config.path)
    parts, notes = _parts(path)
    if isinstance(config.test, str):
        there, _ = _parts(_user_data.existing(config.test, "dataset.test"), to="test")
        parts["test"] = there.get("test") or next(iter(there.values()))
    known = {*(parts.get("train") or parts[ALL]).labels}
    if len(known) > _user_data.MOST_CLASSES:
        raise DataError(f"{path}: {len(known):,} classes, more than {_user_data.MOST_CLASSES:,}; are they classes?")
    classes = sort_naturally(known)
    for part in parts.values():
        if unknown := {*part.labels} - known:
            first = next(place for place, label in enumerate(part.labels) if label in unknown)
            label, hint = (
                part.labels[first],
                f" ({suggest(part.labels[first], classes)[2:]})" if len(classes) <= 100 else "",
            )
            raise DataError(
                f"{part.path(first)}: is of the class {label!r}, which has no training images{hint}; rename it, or add some"
            )
    arrays = {
        f"{name}-{what}": form for name in parts for what, form in (("inputs", ("uint8", 4)), ("labels", ("int64", 1)))
    }
    decode = partial(_decoded, config, parts, classes)
    kept = _cache.cached("folder", _depends(config, path, parts), decode, arrays, {"bad": int, "skipped": str})

    def split(name: str) -> Split:
        return Split(kept.arrays[f"{name}-inputs"], np.array(kept.arrays[f"{name}-labels"]))

    notes = (*notes, kept.note)
    if kept.facts["bad"]:
        notes = (
            *notes,
            Choice("left out", f"{kept.facts['bad']:,} files", f"as dataset.skip_bad says: {kept.facts['skipped']}"),
        )
    whole, validation = split(ALL if ALL in parts else "train"), split("validation") if "validation" in parts else None
    fit = config.fit if config.size else None
    if "test" in parts:
        return Source(whole, lambda: split("test"), classes, validation=validation, fit=fit, notes=notes)
    assert not isinstance(config.test, str)
    return _user_data.cut(whole, config.test, classes, path, validation=validation, fit=fit, notes=notes)


def _depends(config: Config, path: Path, parts: dict[str, Part]) -> _cache.Depends:
    """What the decoded images depend on."""
    options = config.model_dump(include={"size", "fit", "grayscale", "skip_bad"})
    options |= {"parts": list(parts), "test": config.test if isinstance(config.test, str) else None}
    texts: list[str] = []
    numbers: list[int] = []
    for name, part in parts.items():
        texts += [name, part.root, *part.names, *part.labels]
        numbers += [len(part.names), *part.sizes, *part.changed]
    return _cache.Depends(os.path.abspath(path), options, _cache.stamp(texts, numbers))


# ---------------------------------------------------------------- which files there are


def _parts(path: Path, to: str = "train") -> tuple[dict[str, Part], tuple[Choice, ...]]:
    """The files of train, validation and test, as far as they are there, or of ALL; and what there is to say. Raises
    DataError where there are none to train on, if it is `to` train."""
    if not path.is_dir():
        return {ALL: _of_csv(path)}, ()
    folders = _folders(path)
    named = [name for name in folders if name.lower() in PARTS]
    others = [name for name in folders if name.lower() not in PARTS]
    if not named or (
        others and not any(_folders(path / name) for name in named)
    ):  # classes may be called train and test, too
        return {ALL: _of_classes(path, folders)}, ()
    found: dict[str, str] = {}
    for name in named:
        if (part := PARTS[name.lower()]) in found:
            raise DataError(
                f"{path}: has the folders {found[part]} and {name}, both of {part} data; put their files into one"
            )
        found[part] = name
    if "train" not in found and to == "train":
        raise DataError(f"{path}: has a folder {named[0]}, but none called train; add it")
    note = Choice(
        "not looked at", ", ".join(others[:5]) + ", ..." * (len(others) > 5), "as the classes are in train, beside it"
    )
    return {part: _of_classes(path / found[part]) for part in ("train", "validation", "test") if part in found}, (
        note,
    ) if others else ()


def _folders(path: Path) -> list[str]:
    """The names of the folders in `path`, sorted; hidden ones are left out. Raises MachineError."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise _unreadable(path, error) from None


def _of_classes(path: Path, classes: Sequence[str] = ()) -> Part:
    """The images in the class folders of `path`."""
    part = Part(str(path), False, [], [], [], [])
    for name in classes or _folders(path):
        before = len(part.names)
        try:
            _look(f"{path}/{name}", part)
        except OSError as error:
            raise _unreadable(path / name, error) from None
        if not (found := len(part.names) - before):
            kinds = " ".join(ENDINGS)
            raise DataError(
                f"{path / name}: holds no images ({kinds}); add some for the class {name!r}, or remove the folder"
            )
        part.labels.extend([name] * found)
    if not part.names:
        raise DataError(
            f"{path}: holds no folders; put the images of each class into a folder of its own, called as the class"
        )
    return part


def _look(folder: str, part: Part) -> None:
    """Add to `part` the image files in `folder` and in those inside it; hidden ones are left out. Links are followed,
    but each folder is looked into once, as a link may lead back. Raises OSError.

    Names relative to an open folder: 60,000 take 0.19 s of one core's time, os.scandir with its entries' stat 0.26 s.
    """
    seen, inside = set(), [""]
    while inside:
        at = inside.pop()
        opened = os.open(f"{folder}/{at}", os.O_RDONLY)
        try:
            status = os.fstat(opened)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            deeper = []
            for name in sorted(os.listdir(opened)):
                if name.startswith("."):
                    continue
                size, changed, is_folder = _stamped(name, opened)
                if is_folder:
                    deeper.append(f"{at}{name}/")
                elif name.lower().endswith(ENDINGS):
                    part.names.append(at + name)
                    part.sizes.append(size)
                    part.changed.append(changed)
            inside += reversed(deeper)
        finally:
            os.close(opened)


def _stamped(name: str, folder: int | None = None) -> tuple[int, int, bool]:
    """A file's size and time of change, -1 and 0 where it is not there, and whether it is a folder. `name` is as seen
    from that folder."""
    try:
        status = os.stat(name, dir_fd=folder)
        return status.st_size, status.st_mtime_ns, stat.S_ISDIR(status.st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in a name
        return -1, 0, False


def _unreadable(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{path}: can't be read ({error.strerror}); check its permissions")


def _of_csv(path: Path) -> Part:
    """The images that a table of files and labels names, relative to where it lies, in its order. Raises DataError,
    naming the line."""
    what = "is not a folder, nor a CSV file of images and labels in UTF-8; name one of these"
    if not path.is_file():  # to open a FIFO would wait for a writer
        raise DataError(f"{path}: {what}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline(MAX_HEAD)
            delimiter = max(",;\t", key=head.count)
            header = [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])]
            columns = [
                next((header.index(name) for name in names if name in header), None)
                for names in (FILE_COLUMNS, LABEL_COLUMNS)
            ]
            if None in columns:
                raise DataError(f"{path}:1: has the columns {', '.join(header)[:200]}; it needs file and label")
            names, labels = [], []
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header) or not all(row[column or 0].strip() for column in columns):
                    raise DataError(
                        f"{path}:{reader.line_num + 1}: has no file, no label, or too many values; correct or remove the line"
                    )
                names.append(row[columns[0] or 0].strip())
                labels.append(row[columns[1] or 0].strip())
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: {what}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not names:
        raise DataError(f"{path}: names no images; add lines of file and label")
    root = str(path.parent)
    sizes, changed, _ = zip(*(_stamped(os.path.join(root, name)) for name in names), strict=True)
    return Part(root, True, names, [*sizes], [*changed], labels)


# ---------------------------------------------------------------- decoding them


def _decoded(config: Config, parts: dict[str, Part], classes: tuple[str, ...], writer: _cache.Writer) -> dict[str, Any]:
    """All parts into `writer`: arrays PART-inputs (N, C, H, W) and PART-labels (N,). Raises DataError where files can't
    be read."""
    size = (
        (config.size, config.size)
        if isinstance(config.size, int)
        else config.size or _size_of_first(next(iter(parts.values())))
    )
    channels = {"auto": None, True: 1, False: 3}[config.grayscale]
    how = _decode.How((size[0], size[1]), config.fit if config.size else None, channels)
    with suppress(_Coloured):
        return _write(how, config.skip_bad, parts, classes, writer)
    writer.restart()  # a colour after gray ones: from the beginning, in colours
    return _write(how._replace(channels=3), config.skip_bad, parts, classes, writer)


class _Coloured(Exception):
    """An image with a colour came after gray ones had been written."""


def _write(
    how: _decode.How, skip_bad: bool, parts: dict[str, Part], classes: tuple[str, ...], writer: _cache.Writer
) -> dict[str, Any]:
    orders = {name: part.order() for name, part in parts.items()}
    paths = [part.path(place) for name, part in parts.items() for place in orders[name]]
    number = {name: k for k, name in enumerate(classes)}
    ends = np.cumsum([len(order) for order in orders.values()])
    there, bad, channels = np.zeros(len(paths), bool), [], how.channels
    with closing(_decode.decoded(paths, how)) as chunks:
        for pixels, places, wrong in chunks:
            bad += wrong
            if not places:
                continue
            channels = channels or pixels.shape[1]
            if pixels.shape[1] > channels:
                raise _Coloured
            there[places] = True
            pixels = np.repeat(pixels, channels // pixels.shape[1], axis=1)
            for part, piece in zip(parts, np.split(pixels, np.searchsorted(places, ends[:-1])), strict=True):
                writer.add(f"{part}-inputs", piece)
    if bad and not skip_bad:
        raise _user_data.refuse(
            bad, f"{len(bad):,} of {len(paths):,} images can't be used; dataset.skip_bad: true leaves them out"
        )
    for name, kept in zip(parts, np.split(there, ends[:-1]), strict=True):
        labels = np.array([number[parts[name].labels[place]] for place in orders[name]], np.int64)
        if lost := sorted({*labels.tolist()} - {*labels[kept].tolist()}):
            raise DataError(
                f"{bad[0]} (none of the {'' if name == ALL else f'{name} '}images of the class {classes[lost[0]]!r} can be read)"
            )
        writer.add(f"{name}-labels", labels[kept])
    return {"bad": len(bad), "skipped": "; ".join(bad[:2])}


def _size_of_first(part: Part) -> tuple[int, int]:
    """(H, W) of the first image that can be read."""
    for place in part.order()[:1000]:
        with suppress(DataError):
            height, width, _ = images.decode(part.path(place)).shape
            return height, width
    raise _user_data.refuse([f"{part.path(0)}: none of the first images can be read; are they images?"])
