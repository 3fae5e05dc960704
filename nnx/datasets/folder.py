"""Your own image files: one folder per class, or a CSV file that lists files and labels."""

import csv
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from nnx.config.registry import suggest
from nnx.datasets import DatasetConfig, SampleNames, Source, Split, _cache, _decode, _user_data
from nnx.errors import ConfigError, DataError, MachineError
from nnx.events import Choice
from nnx.preprocessing import images
from nnx.preprocessing.columns import sort_naturally
from nnx.preprocessing.spec import Fit
from nnx.system import platform

ALL = "all"  # the name of the only split of data that is not divided into train, validation and test
WORTH_WARNING = 0.1  # of the files of a class: if more are left out, it is a warning
MAX_HEADER = 100_000  # characters of a CSV file's first line
FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMN = "split"


def _validate_size(value: Any) -> int | list[int]:
    sides = value if isinstance(value, list) else [value]
    if len(sides) in (1, 2) and all(type(side) is int and 1 <= side <= 4096 for side in sides) and value != [value]:
        size: int | list[int] = value if isinstance(value, int) else [sides[0], sides[-1]]
        return size
    raise PydanticCustomError("nnx", "expected a number of pixels (28), or height and width ([28, 32])")


Size = Annotated[int | list[int], PlainValidator(_validate_size, json_schema_input_type=int | list[int])]


class Config(DatasetConfig):
    """Images in one folder per class (or in train/, val/, test/), or a CSV file with the columns file and label."""

    name: Literal["folder"] = "folder"
    path: str = Field(examples=["pictures"], description="the folder, or the CSV file")
    test: _user_data.TestData = Field(
        0.2,
        description="test data if path contains none: another folder or CSV file, a count, a fraction, or 0: no test",
    )
    size: Size | None = Field(
        None, description="resize images to this height and width, 28 or [28, 32]; by default all must have one size"
    )
    fit: Fit = Field("pad", description="pad: keep the aspect ratio, fill with the border colour; stretch: do not")
    grayscale: Literal["auto"] | bool = Field("auto", description="auto: true if no image is coloured")
    white: _user_data.White | None = Field(
        None,
        examples=[4095],
        description="value of white in images of more than 8 bits: 255, 4095, ..., or auto: as the training images "
        "need; by default 65535",
    )
    max_pixels: int = Field(
        images.MAX_PIXELS,
        ge=1,
        le=images.HIGHEST_MAX_PIXELS,
        description="pixels of the largest image to decode; with size, a larger JPEG is decoded at 1/2, 1/4 or 1/8",
    )
    folder: str | None = Field(
        None, description="folder of the files that a CSV file lists; by default its own", examples=["pictures/train"]
    )
    suffix: str | None = Field(
        None, description="ending to add to the names that a CSV file lists without it", examples=[".jpg"]
    )
    skip_bad: bool = Field(False, description="leave out files that can't be read, instead of stopping")


class ImageFiles(NamedTuple):
    """The image files of a split and the class of each. Lists, because every run checks all of maybe millions of files.

    Names are relative to the folder of their class, or to the CSV file that lists them. Sizes are in bytes, -1 for a
    missing file; modification times are in ns.
    """

    root: str  # the folder of the class folders, or of the CSV file
    listed: bool  # in a CSV file
    names: list[str]
    sizes: list[int]
    modified: list[int]
    labels: list[str]
    left_out: dict[str, Counter[str]]  # the endings of the other files in the folder of a class, and their numbers
    list_path: str = ""
    lines: NDArray[np.int64] | Sequence[int] = ()  # of each file in the list

    def path(self, index: int) -> str:
        """The path of the file at this index."""
        return os.path.join(self.root, *([] if self.listed else [self.labels[index]]), self.names[index])

    def name(self, index: int) -> str:
        """What messages call the file at this index: its path, after the line of the list, if there is one."""
        return f"{self.list_path}:{self.lines[index]} {self.path(index)}" if self.listed else self.path(index)

    def order(self) -> list[int]:
        """The indices in training order: that of the CSV file, otherwise by name, whatever the class.

        Shorter names come first, so numbered names are in numerical order, with or without leading zeros.
        """
        indices = range(len(self.names))
        if self.listed:
            return [*indices]
        names = self.names
        labels = self.labels
        return sorted(indices, key=lambda index: (len(names[index]), names[index], labels[index]))


def load(config: Config, folder: Path) -> Source:
    """The images under `config.path`, decoded once (see `_cache`), in the order of `ImageFiles.order`.

    `folder` is not used. Raises ConfigError, DataError, MachineError.
    """
    path = _user_data.resolve_path(config.path)
    place = ListPlace(config.folder and str(_user_data.resolve_path(config.folder, "dataset.folder")), config.suffix)
    splits, notes = _find_splits(path, place)
    if isinstance(config.test, str):
        if own := splits.get("test"):
            notes = (*notes, _user_data.describe_unused_test(len(own.names), path, config.test))
        splits["test"], test_notes = _find_test(_user_data.resolve_path(config.test, "dataset.test"), place)
        notes = (*notes, *test_notes)
    if any(place) and not any(files.listed for files in splits.values()):
        key = "folder" if place.folder else "suffix"
        raise ConfigError.at(
            f"dataset.{key}", "applies only to a CSV file of images, but the data is a folder; remove it"
        )
    notes = (*notes, *_left_out_note(splits))
    classes = _find_classes(splits, path)
    forms = {"inputs": ("uint8", 4), "labels": ("int64", 1), "files": ("int64", 1)}
    arrays = {f"{name}-{kind}": form for name in splits for kind, form in forms.items()}
    decode = partial(_decode_splits, config, splits, classes)
    cached = _cache.load_or_decode(
        "folder",
        _cache_key(config, path, splits),
        decode,
        arrays,
        {"bad": int, "skipped": str, "white": int, "highest": int, "dark": int},
        partial(_is_possible, splits, len(classes)),
    )

    def split(name: str) -> Split:
        inputs, labels, files = (cached.arrays[f"{name}-{kind}"] for kind in forms)
        return Split(inputs, np.array(labels), SampleNames(splits[name].name, np.array(files)))

    notes = (*notes, cached.note)
    if bad := cached.facts["bad"]:
        reason = f"they can't be used (dataset.skip_bad): {cached.facts['skipped']}"
        notes = (*notes, Choice("left out", f"{bad:,} files", reason))
    fields: dict[str, Any] = {
        "validation": split("validation") if "validation" in splits else None,
        "fit": config.fit if config.size else None,
        "white": cached.facts["white"] or None,
        "max_pixels": config.max_pixels,
        "notes": (*notes, *_white_notes(config, cached.facts)),
    }
    train = split(ALL if ALL in splits else "train")
    if "test" in splits:
        return Source(train, lambda: split("test"), classes, **fields)
    assert not isinstance(config.test, str)
    return _user_data.split_off_test(train, config.test, classes, path, **fields)


def _is_possible(splits: dict[str, ImageFiles], classes: int, cached: _cache.CachedData) -> bool:
    """Whether each cached image has a file, and a label in [0, classes)."""
    for name, files in splits.items():
        inputs, labels, indices = (cached.arrays[f"{name}-{kind}"] for kind in ("inputs", "labels", "files"))
        in_range = _cache.in_range(labels, classes) and _cache.in_range(indices, len(files.names))
        if not (len(inputs) == len(labels) == len(indices) and in_range):
            return False
    return True


def _white_notes(config: Config, facts: dict[str, Any]) -> tuple[Choice, ...]:
    """Which value is white in images of more than 8 bits, if there are any, and a warning if it may not be the same in
    all of them."""
    if not facts["highest"]:
        return ()
    notes = _user_data.describe_white(config.white, facts["white"], facts["highest"])
    if not facts["dark"]:
        return notes
    problem = f"no value in them reaches 1/16 of {facts['white']:,}, the white of the others"
    cure = "check that all images have the same white"
    return (*notes, Choice("warning", f"{facts['dark']:,} images are dark", f"{problem}; {cure}"))


def _find_classes(splits: dict[str, ImageFiles], path: Path) -> tuple[str, ...]:
    """The classes of the training images, sorted. Raises DataError for too many, or one that only another split has."""
    known = {*(splits.get("train") or splits[ALL]).labels}
    if len(known) > _user_data.MAX_CLASSES:
        problem = f"contains {len(known):,} classes, more than {_user_data.MAX_CLASSES:,}"
        raise DataError(f"{path}: {problem}; check that they are classes")
    classes = sort_naturally(known)
    for files in splits.values():
        if unknown := {*files.labels} - known:
            index = next(k for k, label in enumerate(files.labels) if label in unknown)
            label = files.labels[index]
            hint = f" ({suggest(label, classes)[2:]})" if len(classes) <= 100 else ""
            problem = f"has the class {label!r}, which has no training images{hint}"
            raise DataError(f"{files.path(index)}: {problem}; rename the class, or add training images")
    return classes


def _cache_key(config: Config, path: Path, splits: dict[str, ImageFiles]) -> _cache.CacheKey:
    """Everything that the decoded images depend on."""
    options = config.model_dump(include={"size", "fit", "grayscale", "white", "max_pixels", "skip_bad"})
    options |= {"parts": list(splits), "test": config.test if isinstance(config.test, str) else None}
    texts: list[str] = []
    numbers: list[int] = []
    for name, files in splits.items():
        texts += [name, files.root, *files.names, *files.labels]
        numbers += [len(files.names), *files.sizes, *files.modified]
    return _cache.CacheKey(os.path.abspath(path), options, _cache.hash_stats(texts, numbers))


# ---------------------------------------------------------------- finding the files


class ListPlace(NamedTuple):
    """Where the files are that a list names: in which folder, by default that of the list, and with which ending."""

    folder: str | None
    suffix: str | None


def _find_test(path: Path, place: ListPlace) -> tuple[ImageFiles, tuple[Choice, ...]]:
    """The files of the test split in `path`, or of its only split. Raises DataError if it has several others."""
    splits, notes = _find_splits(path, place, required="test")
    if "test" not in splits and len(splits) > 1:
        raise DataError(f"{path}: contains {' and '.join(splits)} data, but no test data; add it, or name other data")
    return splits.get("test") or next(iter(splits.values())), notes


def _find_splits(
    path: Path, place: ListPlace, required: str = "train"
) -> tuple[dict[str, ImageFiles], tuple[Choice, ...]]:
    """The files of the train, validation and test splits that are present, or of ALL; and notes on ignored folders.

    Raises DataError if there is nothing to train on and `required` is train.
    """
    if not path.is_dir():
        return _list_csv(path, place, required)
    folders, loose = _list_folders(path)
    split_folders = [name for name in folders if name.lower() in _user_data.SPLIT_NAMES]
    others = [name for name in folders if name.lower() not in _user_data.SPLIT_NAMES]
    # Classes, too, may be called train and test: their folders have no class folders inside
    if not split_folders or (others and not any(_list_folders(path / name)[0] for name in split_folders)):
        files = _list_classes(path, folders)
        return {ALL: files}, (*_check_nested(path, folders), *_loose_note({str(path): loose}))
    folder_of: dict[str, str] = {}
    for name in split_folders:
        split = _user_data.SPLIT_NAMES[name.lower()]
        if split in folder_of:
            problem = f"has two folders of {split} data, {folder_of[split]} and {name}"
            raise DataError(f"{path}: {problem}; put their files into one")
        folder_of[split] = name
    if "train" not in folder_of and required == "train":
        raise DataError(f"{path}: has a folder {split_folders[0]}, but no folder train; add it")
    splits: dict[str, ImageFiles] = {
        split: _list_classes(path / folder_of[split]) for split in ("train", "validation", "test") if split in folder_of
    }
    places = {str(path): loose} | {str(path / name): _list_folders(path / name)[1] for name in folder_of.values()}
    notes = _loose_note(places)
    if not others:
        return splits, notes
    return splits, (*notes, Choice("not looked at", _shorten(others), "the classes are in train, not beside it"))


def _list_folders(path: Path) -> tuple[list[str], int]:
    """The names of the folders in `path`, sorted, without hidden ones, and how many images lie beside them. Raises
    MachineError."""
    folders = []
    loose = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(images.EXTENSIONS):
                    loose += 1
    except OSError as error:
        raise _unreadable(path, error) from None
    return sorted(folders), loose


def _loose_note(places: dict[str, int]) -> tuple[Choice, ...]:
    """A warning of images that lie beside the class folders of `places`, if there are any."""
    if not (total := sum(places.values())):
        return ()
    where = ", ".join(place for place, count in places.items() if count)
    reason = f"they lie in {where}, not in a class folder; move them into the folder of their class, or away"
    return (Choice("warning", f"{total:,} image{'s' * (total > 1)} left out", reason),)


def _check_nested(path: Path, classes: Sequence[str]) -> tuple[Choice, ...]:
    """A warning of class folders that contain the same folders: these may be the classes. Raises DataError if their
    names are those of splits."""
    inner = [{*_list_folders(path / name)[0]} for name in classes]
    if len(inner) == 1 and len(inner[0]) > 1:
        problem = f"contains only the folder {classes[0]}, which contains {_shorten(sort_naturally(inner[0]))}"
        raise DataError(f"{path}: {problem}; if those are the classes, give {path / classes[0]}")
    shared = set.intersection(*inner) if len(inner) > 1 else set()
    if len(shared) < 2:
        return ()
    problem = f"the folders {_shorten(classes)} contain the same folders, {_shorten(sort_naturally(shared))}"
    if sum(bool(_user_data.SPLIT_WORD.search(name)) for name in classes) > 1:
        cure = "name them train, validation and test to divide the images by them"
        raise DataError(f"{path}: {problem}, as if they were splits; {cure}")
    reason = "if those are the classes, give their folder as dataset.path"
    return (Choice("warning", f"classes {_shorten(classes)}", f"{problem}; {reason}"),)


def _list_classes(path: Path, classes: Sequence[str] = ()) -> ImageFiles:
    """The images in the class folders of `path`. Raises DataError if there are none, or a class has none."""
    files = ImageFiles(str(path), False, [], [], [], [], {})
    for name in classes or _list_folders(path)[0]:
        before = len(files.names)
        try:
            others = _scan_folder(f"{path}/{name}", files)
        except OSError as error:
            raise _unreadable(path / name, error) from None
        added = len(files.names) - before
        if not added:
            cure = f"add some for the class {name!r}, or remove the folder"
            content = f", but {images.count_extensions(others)}" if others else ""
            raise DataError(f"{path / name}: contains no images ({' '.join(images.EXTENSIONS)}){content}; {cure}")
        if others:
            files.left_out[name] = others
        files.labels.extend([name] * added)
    if not files.names:
        cure = "put the images of each class into a folder named after the class"
        raise DataError(f"{path}: contains no folders; {cure}")
    return files


def _scan_folder(folder: str, files: ImageFiles) -> Counter[str]:
    """Add the image files in `folder` and its subfolders to `files`, without hidden ones, and count the endings of the
    other files. Raises OSError.

    Follows links, but scans each folder only once, because a link may lead back.
    """
    others: Counter[str] = Counter()
    scanned = set()
    pending = [""]
    while pending:
        subfolder = pending.pop()
        place = f"{folder}/{subfolder}"
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in scanned:
            continue
        scanned.add((status.st_dev, status.st_ino))
        deeper = []
        for name, stat_of_file in platform.list_folder(place):
            if name.startswith("."):
                continue
            size, modified, is_folder = _file_stats(stat_of_file)
            if is_folder:
                deeper.append(f"{subfolder}{name}/")
            elif name.lower().endswith(images.EXTENSIONS):
                files.names.append(subfolder + name)
                files.sizes.append(size)
                files.modified.append(modified)
            else:
                others[images.extension(name)] += 1
        pending += reversed(deeper)
    return others


def _left_out_note(splits: dict[str, ImageFiles]) -> tuple[Choice, ...]:
    """How many files of each class were left out because of their endings: a warning if a class loses many."""
    losses = []
    for split, files in splits.items():
        used = Counter(files.labels) if files.left_out else {}
        for name, others in files.left_out.items():
            count = others.total()
            place = name if split == ALL else f"{split}/{name}"
            text = f"{place} {count:,} of {count + used[name]:,} ({images.count_extensions(others)})"
            losses.append((count / (count + used[name]), count, text))
    if not losses:
        return ()
    losses.sort(key=lambda loss: -loss[0])
    total = sum(count for _, count, _ in losses)
    reason = "; ".join(text for *_, text in losses[:10]) + f"; and {len(losses) - 10} more classes" * (len(losses) > 10)
    files_of = f"{total:,} file{'s' * (total > 1)}"
    if losses[0][0] > WORTH_WARNING:
        cure = "save them as PNG if they are images"
        return (Choice("warning", f"{files_of} left out", f"their endings are not those of images: {reason}; {cure}"),)
    return (Choice("left out", files_of, f"their endings are not those of images: {reason}"),)


def _file_stats(status: os.stat_result | None) -> tuple[int, int, bool]:
    """A file's size and modification time, -1 and 0 if it is missing, and whether it is a folder."""
    if status is None:
        return -1, 0, False
    # the time of change, too: unlike that of modification, it can't be set back
    return status.st_size, status.st_mtime_ns + status.st_ctime_ns, stat.S_ISDIR(status.st_mode)


def _unreadable(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{path}: can't be read ({error.strerror}); check its permissions")


class ListedImages(NamedTuple):
    """What a CSV file lists: the files, their labels, their splits if it has a column of them, unused columns, and the
    line of each file."""

    names: list[str]
    labels: list[str]
    splits: list[str]
    unused: dict[str, set[str]]  # the columns, with at most a few of their values
    lines: list[int]


def _list_csv(path: Path, place: ListPlace, required: str) -> tuple[dict[str, ImageFiles], tuple[Choice, ...]]:
    """The images that a CSV file of files and labels lists, relative to `place`, in its order, by their split.

    They are the split ALL if the file has no column for it. Raises DataError, naming the line.
    """
    problem = "is neither a folder nor a UTF-8 CSV file of images and labels; give one of these"
    if not path.is_file():  # opening a FIFO would wait for a writer
        raise DataError(f"{path}: {problem}")
    try:
        listed = _read_csv(path)
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: {problem}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not listed.names:
        raise DataError(f"{path}: lists no images; add lines with a file and a label")
    if listed.splits and required == "train" and "train" not in listed.splits:
        raise DataError(f"{path}: its column {SPLIT_COLUMN} has no line with train; add training images")
    everything = ImageFiles(
        place.folder or str(path.parent),
        True,
        [],
        [],
        [],
        listed.labels,
        {},
        str(path),
        np.array(listed.lines, np.int64),
    )
    for name in listed.names:
        _add_listed(name if name.endswith(suffix := place.suffix or "") else name + suffix, everything)
    if max(everything.sizes) < 0:
        problem = f"no such file, nor any other of the {len(listed.names):,} that {path} lists"
        raise DataError(f"{everything.path(0)}: {problem}; {_missing_cure(listed.names[0], everything.root, place)}")
    return _split_list(everything, listed.splits), _list_notes(listed, path)


def _missing_cure(listed: str, root: str, place: ListPlace) -> str:
    """What to do about a listed file that is not in the folder `root`: specific, if a file of a similar name is."""
    suffix = place.suffix or ""
    if suffix and not suffix.startswith(".") and os.path.isfile(os.path.join(root, f"{listed}.{suffix}")):
        return f"set dataset.suffix to .{suffix}, with its point"
    added = "" if listed.endswith(suffix) else suffix
    parts = re.split(r"[\\/]+", listed)
    for start in range(1, len(parts)):
        tail = "/".join(parts[start:])
        if os.path.isfile(os.path.join(root, tail + added)):
            return f"{tail}{added} exists in {root}; remove {listed[: -len(tail)]} from the names"
    folder, name = os.path.split(os.path.join(root, listed))
    with suppress(OSError):
        endings = sorted(
            {ending for stem, ending in map(os.path.splitext, os.listdir(folder)) if stem == name and ending}
        )
        if endings:
            return f"{name}{endings[0]} exists; set dataset.suffix to {endings[0]}"
    return "correct the names, or set dataset.folder to their folder or dataset.suffix to their ending"


def _add_listed(name: str, files: ImageFiles) -> None:
    r"""Add a listed file to `files`. If there is none of this name, `\` is read as `/`, as Windows writes it."""
    size, modified, _ = _file_stats(platform.status(os.path.join(files.root, name)))
    if size < 0 and "\\" in name:
        from_windows = name.replace("\\", "/")
        size, modified, _ = _file_stats(platform.status(os.path.join(files.root, from_windows)))
        name = from_windows if size >= 0 else name
    files.names.append(name)
    files.sizes.append(size)
    files.modified.append(modified)


def _split_list(files: ImageFiles, splits: list[str]) -> dict[str, ImageFiles]:
    """The listed files by their split, or ALL of them if no splits are given."""
    if not splits:
        return {ALL: files}
    parts = {}
    for split in ("train", "validation", "test"):
        if any(chosen := [name == split for name in splits]):
            parts[split] = ImageFiles(
                files.root,
                True,
                [*compress(files.names, chosen)],
                [*compress(files.sizes, chosen)],
                [*compress(files.modified, chosen)],
                [*compress(files.labels, chosen)],
                {},
                files.list_path,
                np.array(files.lines)[chosen],
            )
    return parts


def _list_notes(listed: ListedImages, path: Path) -> tuple[Choice, ...]:
    """What the columns of a list are used for, where that is not only the files and the labels."""
    notes = []
    if listed.splits:
        sizes = ", ".join(
            f"{count:,} {split}"
            for split in dict.fromkeys(_user_data.SPLIT_NAMES.values())
            if (count := listed.splits.count(split))
        )
        notes.append(Choice("splits", sizes, f"as the column {SPLIT_COLUMN} of {path} says"))
    for name, values in listed.unused.items():
        if _user_data.may_be_split(name, values):
            cure = f"rename it to {SPLIT_COLUMN}, with train, validation and test in it, to divide the images by it"
            notes.append(
                Choice("warning", f"column {name} of {path}", f"seems to name splits, but is not used; {cure}")
            )
    if listed.unused:
        names = _shorten([*listed.unused])
        notes.append(Choice("not used", f"column{'s' * (len(listed.unused) > 1)} {names}", f"of the list {path}"))
    return tuple(notes)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _read_csv(path: Path) -> ListedImages:
    """What a CSV file lists. Raises DataError, UnicodeDecodeError, csv.Error, OSError."""
    listed = ListedImages([], [], [], {}, [])
    with path.open(newline="", encoding="utf-8-sig") as file:
        first_line = file.readline(MAX_HEADER)
        delimiter = max(",;\t|", key=first_line.count)
        columns = next(csv.reader([first_line], delimiter=delimiter), [])
        header = [name.strip().lower() for name in columns]
        file_column = next((header.index(name) for name in FILE_COLUMNS if name in header), None)
        label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
        split_column = header.index(SPLIT_COLUMN) if SPLIT_COLUMN in header else None
        if file_column is None or label_column is None:
            raise DataError(f"{path}:1: has the columns {', '.join(header)[:200]}; it needs file and label")
        used = (file_column, label_column, split_column)
        unused = {k: set[str]() for k in range(len(columns)) if k not in used}
        listed.unused.update({columns[k].strip()[:40]: values for k, values in unused.items()})
        reader = csv.reader(file, delimiter=delimiter)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header) or not (row[file_column].strip() and row[label_column].strip()):
                problem = "has no file, no label or too many values"
                raise DataError(f"{path}:{reader.line_num + 1}: {problem}; correct or remove the line")
            for k, values in unused.items():
                if len(values) <= _user_data.MAX_SPLITS:
                    values.add(row[k].strip())
            listed.names.append(row[file_column].strip())
            listed.lines.append(reader.line_num + 1)  # after the header
            listed.labels.append(row[label_column].strip())
            if split_column is not None:
                try:
                    listed.splits.append(_user_data.parse_split(row[split_column]))
                except ValueError as error:
                    raise DataError(f"{path}:{reader.line_num + 1}: {error}") from None
    return listed


# ---------------------------------------------------------------- decoding them


def _decode_splits(
    config: Config, splits: dict[str, ImageFiles], classes: tuple[str, ...], writer: _cache.Writer
) -> dict[str, Any]:
    """Write all splits to `writer`: the arrays SPLIT-inputs (N, C, H, W), SPLIT-labels and SPLIT-files (N,), the
    indices of their files.

    Raises DataError if files can't be read.
    """
    if isinstance(config.size, int):
        height = width = config.size
    else:
        height, width = config.size or _first_size(next(iter(splits.values())), config.max_pixels)
    channels = {"auto": None, True: 1, False: 3}[config.grayscale]
    white = images.WHITES[0] if config.white == "auto" else config.white or images.WHITE
    options = _decode.DecodeOptions(
        (height, width), config.fit if config.size else None, channels, white, config.max_pixels
    )
    while True:
        try:
            return _write_splits(options, config, splits, classes, writer)
        except _OtherOptions as error:
            options = error.options
            writer.restart()


class _OtherOptions(Exception):
    """An image needs other options than those with which the images before it have been decoded."""

    def __init__(self, options: _decode.DecodeOptions) -> None:
        super().__init__()
        self.options = options


def _write_splits(
    options: _decode.DecodeOptions,
    config: Config,
    splits: dict[str, ImageFiles],
    classes: tuple[str, ...],
    writer: _cache.Writer,
) -> dict[str, Any]:
    orders = {name: files.order() for name, files in splits.items()}
    paths = [files.path(index) for name, files in splits.items() for index in orders[name]]
    ends = np.cumsum([len(order) for order in orders.values()])
    readable = np.zeros(len(paths), bool)
    highest = np.zeros(len(paths), np.int64)
    errors: dict[int, str] = {}
    channels = options.channels
    brightest = 0
    with closing(_decode.decode_all(paths, options)) as chunks:
        for chunk in chunks:
            highest[chunk.indices] = chunk.highest
            if config.white == "auto" and (top := int(highest[: ends[0]].max())) > options.white:  # training images
                raise _OtherOptions(options._replace(white=images.find_white(top)))
            chunk = _refuse_above_white(chunk, paths, options.white)
            errors |= chunk.errors
            if not chunk.indices:
                continue
            channels = channels or chunk.pixels.shape[1]
            if chunk.pixels.shape[1] > channels:  # a colour image after gray ones
                raise _OtherOptions(options._replace(channels=3))
            readable[chunk.indices] = True
            brightest = max(brightest, int(chunk.pixels.max()))
            pixels = np.repeat(chunk.pixels, channels // chunk.pixels.shape[1], axis=1)
            for name, piece in zip(splits, np.split(pixels, np.searchsorted(chunk.indices, ends[:-1])), strict=True):
                writer.add(f"{name}-inputs", piece)
    messages = [_place_in_list(splits, orders, index) + errors[index] for index in sorted(errors)]
    if errors and not config.skip_bad:
        summary = f"{len(errors):,} of {len(paths):,} images can't be used"
        raise _user_data.combine_errors(messages, f"{summary}; set dataset.skip_bad: true to leave them out")
    if 0 < brightest < images.MIN_LEVELS and images.are_floats(first := paths[int(np.argmax(readable))]):
        raise DataError(f"{first}: {images.dark_floats_message(brightest)}")
    white_facts = _check_white(config, options.white, highest, int(ends[0]), paths)
    number = {name: k for k, name in enumerate(classes)}
    for name, usable in zip(splits, np.split(readable, ends[:-1]), strict=True):
        labels = np.array([number[splits[name].labels[index]] for index in orders[name]], np.int64)
        if lost := sorted({*labels.tolist()} - {*labels[usable].tolist()}):
            images_of = f"{'' if name == ALL else f'{name} '}images of the class {classes[lost[0]]!r}"
            raise DataError(f"{messages[0]} (none of the {images_of} can be read)")
        writer.add(f"{name}-labels", labels[usable])
        writer.add(f"{name}-files", np.array(orders[name], np.int64)[usable])
    return {"bad": len(errors), "skipped": "; ".join(messages[:2]), **white_facts}


def _place_in_list(splits: dict[str, ImageFiles], orders: dict[str, list[int]], index: int) -> str:
    """The line of the list that names the file at `index` among those of all splits; "" if there is no list."""
    for name, order in orders.items():
        if index < len(order):
            files = splits[name]
            return f"{files.list_path}:{files.lines[order[index]]} " if files.listed else ""
        index -= len(order)
    raise IndexError(index)


def _refuse_above_white(chunk: _decode.Chunk, paths: Sequence[str], white: int) -> _decode.Chunk:
    """`chunk` without the images that have values above `white`, which become errors."""
    usable = [top <= white for top in chunk.highest]
    if all(usable):
        return chunk
    refused = [(index, top) for index, top in zip(chunk.indices, chunk.highest, strict=True) if top > white]
    errors = {index: f"{paths[index]}: {images.above_white_message(top, white)}" for index, top in refused}
    kept = [*compress(chunk.indices, usable)]
    return _decode.Chunk(chunk.pixels[usable], kept, chunk.errors | errors, [*compress(chunk.highest, usable)])


def _check_white(
    config: Config, white: int, highest: NDArray[np.int64], train: int, paths: Sequence[str]
) -> dict[str, int]:
    """The white of the images of more than 8 bits and their highest value, both 0 if there are none, and how many of
    them are dark although others are not. The first `train` images are the training images.

    Raises DataError if 16-bit values are so low that another white is likely.
    """
    top = int(highest[:train].max(initial=0) or highest.max(initial=0))
    deep = np.flatnonzero(highest)
    if config.white is None and 0 < top < images.DARK:
        first = paths[deep[0]]
        files = first if len(deep) == 1 else f"{first} and {len(deep) - 1:,} more files"
        raise DataError(f"{files}: {images.few_levels_message(top)}")
    dark = 0 if top * 16 <= white else int((highest[deep] * 16 <= white).sum())
    if dark <= WORTH_WARNING * len(deep):
        dark = 0
    used = white if top or isinstance(config.white, int) else 0
    return {"white": used, "highest": top, "dark": dark}


def _first_size(files: ImageFiles, max_pixels: int) -> tuple[int, int]:
    """(H, W) of the first image that can be read. Raises DataError if none of the first 1000 can."""
    errors = []
    for index in files.order()[:1000]:
        try:
            height, width, _ = images.measure(files.path(index), max_pixels=max_pixels).pixels.shape
            return height, width
        except DataError as error:
            errors.append(str(error))
    cure = "none of the first images can be read; check that they are images"
    raise _user_data.combine_errors(errors[:3], cure)
