"""What nnx takes from torchvision: where data sets are to be had, with their MD5s, and the readers of CIFAR, SVHN and USPS.

torchvision takes 5 s to import, so only what is called when it is needed imports it: a download, or those three readers.
"""

import fcntl
import gzip
import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nnx.datasets import Source, Split, _download
from nnx.errors import DataError, MachineError


@dataclass(frozen=True)
class Archive:
    """A file to download: its mirrors and its MD5."""

    urls: tuple[str, ...]
    md5: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.urls[0]).name


def ensure(name: str, folder: Path, files: Sequence[str], cls: str, *, sha256: Mapping[str, str] | None = None) -> None:
    """Return once every one of `files` is in `folder`, as it is or as .gz; download what torchvision's class `cls` names if not.

    All work is done in a sub-folder, `.download`, out of which complete and verified files are moved: a killed download
    leaves only that, and the next one starts it over. A second process waits for the first. `sha256` is of unpacked files.

    Raises DataError, naming the files and where to put them, where NNX_OFFLINE is set or no mirror has them; MachineError
    where `folder` can't be written.
    """
    if not _missing(folder, files):
        return
    absent = f"{name} is not in {folder}"
    if os.environ.get("NNX_OFFLINE", "0") not in ("", "0"):
        raise DataError(f"{absent} and NNX_OFFLINE is set. {_put(folder, files)}, or unset NNX_OFFLINE to download them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".download.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however this process ends
            _download_missing(folder, files, cls, sha256 or {})
            Path(lock.name).unlink(missing_ok=True)
    except DataError as error:
        raise DataError(f"{absent} and can't be downloaded. {_put(folder, files)}, or try again with a network. ({error})") from None
    except OSError as error:
        why = f"{error.filename or folder}: can't be written ({error.strerror})"
        raise MachineError(f"{why}. {absent} and has to be downloaded: make room, or name another folder as dataset.root") from None


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file() and not (folder / f"{file}.gz").is_file()]


def _put(folder: Path, files: Sequence[str]) -> str:
    return f"Put these files there: {', '.join(_missing(folder, files))}"


def _download_missing(folder: Path, files: Sequence[str], cls: str, sha256: Mapping[str, str]) -> None:
    part = folder / ".download"
    shutil.rmtree(part, ignore_errors=True)  # of a download that was killed
    try:
        with _download.shown() as progress:
            for archive in archives(cls):
                missing = _missing(folder, files)  # looked up here, as another process may have brought them while this one waited
                alone = archive.name.removesuffix(".gz")  # the one file that it is or packs, unless it is a tar or zip
                if not missing or (alone in files and alone not in missing):
                    continue
                part.mkdir()
                _download.fetch(archive.urls, part / archive.name, md5=archive.md5, progress=progress)
                _unpack(part / archive.name, files)
                for path in sorted(part.iterdir()):
                    if path.name in sha256 and (found := _sha256(path)) != sha256[path.name]:
                        raise DataError(f"{path.name} is not the expected content: its SHA-256 is {found}, not {sha256[path.name]}")
                    path.replace(folder / path.name)
                part.rmdir()
    finally:
        shutil.rmtree(part, ignore_errors=True)


def archives(cls: str) -> list[Archive]:
    """What torchvision would download for its dataset class `cls`, training and test."""
    table = _class(cls)
    if cls == "QMNIST":
        return [Archive((url,), md5) for half in ("train", "test") for url, md5 in table.resources[half]]
    if cls in ("USPS", "SVHN"):
        return [Archive((url,), md5) for url, _, md5 in (table.split_list["train"], table.split_list["test"])]
    if cls == "EMNIST":
        return [Archive((table.url,), table.md5)]
    if cls in ("CIFAR10", "CIFAR100"):
        return [Archive((table.url,), table.tgz_md5)]
    return [Archive(tuple(mirror + file for mirror in table.mirrors), md5) for file, md5 in table.resources]


def _unpack(archive: Path, files: Sequence[str]) -> None:
    """Replace `archive`, unless it is itself one of `files`, by what it holds.

    Only base names are taken from inside an archive, never `extractall`: no member can choose where it goes. Of EMNIST's zip,
    whose six splits are 1.8 GB, only what `files` names is gunzipped; the rest stays .gz, which is read as well.
    """
    part = archive.parent
    if archive.name in files:
        return
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            for member in tar:
                name, content = PurePosixPath(member.name).name, tar.extractfile(member) if member.isfile() else None
                if content and name in files:
                    with content, (part / name).open("wb") as target:
                        shutil.copyfileobj(content, target)
        archive.unlink()
    elif archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                path = part / PurePosixPath(entry.filename).name
                if path.suffix == ".gz":
                    with packed.open(entry) as content, path.open("wb") as target:
                        shutil.copyfileobj(content, target)
                    _gunzip(path, files)
        archive.unlink()
    else:
        _gunzip(archive, files)


def _gunzip(path: Path, files: Sequence[str]) -> None:
    if path.stem in files:
        with gzip.open(path) as content, path.with_suffix("").open("wb") as target:
            shutil.copyfileobj(content, target)
        path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(cls: str, folder: Path, *, only: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """torchvision's dataset object of class `cls`, read from `folder`; `only` replaces tables of that class.

    Raises DataError where torchvision can't read the files, MachineError where the machine can't.
    """
    try:
        return type(cls, (_class(cls),), dict(only or {}))(folder, **options)
    except (PermissionError, MemoryError) as error:
        raise MachineError(f"{folder}: {cls} can't be read ({error}); check the files' permissions and the memory") from None
    except Exception as error:  # its parsers trip over broken files in many ways
        raise DataError(
            f"{folder}: the files of {cls} can't be read ({error}); delete them and run again to download them afresh"
        ) from None


def cifar(name: str, cls: str, folder: Path, base: str, *, train: Sequence[str], test: str, meta: str) -> Source:
    """CIFAR in `folder`/`base`, from the files that hold its training data, test data and class names.

    The files are pickles, which can run code when read: torchvision reads them only if their MD5s are those in its table.
    """
    ensure(name, folder / base, [*train, test, meta], cls)

    def half(*, training: bool) -> Any:
        other: dict[str, list[str]] = {"test_list" if training else "train_list": []}  # else torchvision opens the test data to hash it
        return read(cls, folder, only=other, train=training)

    def split(data: Any) -> Split:
        return Split(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets, np.int64))  # (N, 3, H, W)

    training = half(training=True)
    return Source(split(training), lambda: split(half(training=False)), tuple(training.classes))


def _class(cls: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, cls)
