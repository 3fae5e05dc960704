"""Ensures that the files of a dataset are in its folder: downloads its archives and extracts the files."""

import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from nnx.datasets import _download, _progress
from nnx.datasets._archives import ARCHIVES
from nnx.errors import DataError, InputError, MachineError
from nnx.system import locks
from nnx.system.files import remove

WORK = ".download"  # the subfolder for files that are not complete and verified yet


def ensure_files(name: str, folder: Path, files: Sequence[str]) -> None:
    """Return when all `files` of dataset `name` are in `folder`, plain or as .gz; download the missing ones.

    Files are downloaded to a subfolder, WORK, and moved once they are complete and verified. The beginning of an
    interrupted download stays there as NAME.part, and the next download resumes it. A second process waits for the
    first.

    Raises DataError, naming the files and their folder, if NNX_OFFLINE is set; MachineError if no mirror has them, or
    `folder` can't be written, which also removes all partial files. Nothing else is left behind.
    """
    missing = _missing(folder, files)
    if not missing and not (folder / WORK).exists():  # it also exists if a process was killed while cleaning up
        return
    absent = f"{name} is not in {folder}"
    if missing and os.environ.get("NNX_OFFLINE", "0") not in ("", "0"):
        cure = f"{_where_to_put(folder, files)}, or unset NNX_OFFLINE to download them"
        raise DataError(f"{absent} and NNX_OFFLINE is set. {cure}")
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            try:
                _download_missing(name, folder, files)
                _remove_work(folder)
            except OSError:
                _remove_work(folder)  # a full disk needs the space
                raise
    except _download.DownloadError as error:
        cure = f"{_where_to_put(folder, files)}, or try again with a network connection"
        raise MachineError(f"{absent} and can't be downloaded. {cure}. ({error})") from None
    except OSError as error:
        if not missing:  # only the cleaning up failed, which is harmless
            return
        problem = f"{error.filename or folder}: can't be written ({error.strerror})"
        cure = "free some space, or set dataset.root to another folder"
        raise MachineError(f"{problem}. {absent} and must be downloaded: {cure}") from None
    finally:
        _remove_empty(new_folders)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of downloads to `folder`. At the end remove it, and WORK unless it has the beginning of a file."""
    lock_path = folder / f"{WORK}.lock"
    lock = locks.acquire(lock_path, wait=True)
    assert lock
    try:
        yield
    finally:
        with suppress(OSError):
            if not (folder / WORK).is_symlink():
                for part in (folder / WORK).glob("*.part"):
                    if not part.stat().st_size:
                        part.unlink()
        _remove_empty([folder / WORK])
        locks.release(lock_path, lock)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove these folders, in their order, if they are empty."""
    with suppress(OSError):
        for path in folders:
            path.rmdir()


def _remove_work(folder: Path) -> None:
    with suppress(OSError):
        remove(folder / WORK)


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file() and not (folder / f"{file}.gz").is_file()]


def _where_to_put(folder: Path, files: Sequence[str]) -> str:
    return f"Put these files there: {', '.join(_missing(folder, files))}"


def _download_missing(name: str, folder: Path, files: Sequence[str]) -> None:
    with _progress.download_progress() as progress:
        for archive in ARCHIVES[name]:
            missing = _missing(folder, files)  # again: another process may have downloaded them while this one waited
            single = archive.name.removesuffix(".gz")  # the only file in it, unless it is a tar or zip
            if missing and (single in missing or single not in files):
                part = folder / WORK / f"{archive.name}.part"
                with suppress(FileExistsError):
                    part.parent.mkdir()
                if part.parent.is_symlink() or not part.parent.is_dir():
                    raise InputError(f"{part.parent}: is a link, or not a folder; remove it")
                _download.fetch(archive, part, progress)
                _unpack(part, archive.name, folder, files)


def _unpack(part: Path, name: str, folder: Path, files: Sequence[str]) -> None:
    """Move the content of the archive `part`, whose real name is `name`, to `folder`; or itself if it is in `files`.

    Only base names are taken from inside an archive, never `extractall`, so that no member can choose its place. Of
    EMNIST's zip, whose six splits are 1.8 GB, only `files` are gunzipped; the others stay .gz, which can be read too.
    """

    def extract(content: IO[bytes], packed: str) -> None:
        target = packed.removesuffix(".gz") if packed.removesuffix(".gz") in files else packed
        unpacked = part.with_name(target)
        unpacked.unlink(missing_ok=True)
        with unpacked.open("xb") as file:  # x: a link that somebody prepared is not followed
            shutil.copyfileobj(content if target == packed else gzip.GzipFile(fileobj=content), file)
        unpacked.replace(folder / target)

    if name in files:
        part.replace(folder / name)
        return
    if name.endswith(".tar.gz"):
        with tarfile.open(part) as tar:
            for member in tar:
                base = PurePosixPath(member.name).name
                content = tar.extractfile(member) if member.isfile() else None
                if content and base in files:
                    extract(content, base)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(part) as zipped:
            for entry in zipped.infolist():
                if entry.filename.endswith(".gz"):
                    with zipped.open(entry) as content:
                        extract(content, PurePosixPath(entry.filename).name)
    else:
        with part.open("rb") as content:
            extract(content, name)
    part.unlink()
