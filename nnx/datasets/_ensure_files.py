"""Brings the files of a dataset to where they belong: downloads its archives, and takes out of them what is wanted."""

import fcntl
import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from nnx.datasets import _download, _progress
from nnx.datasets._archives import ARCHIVES
from nnx.errors import DataError, MachineError

WORK = ".download"  # the sub-folder where all that is not complete and verified lies


def ensure_files(name: str, folder: Path, files: Sequence[str]) -> None:
    """Return once every one of `files` of dataset `name` is in `folder`, as it is or as .gz; download what is missing.

    All work is done in a sub-folder, WORK, out of which complete and verified files are moved. There the beginning of a
    download that was cut or killed stays, as NAME.part, and the next goes on from it. A second process waits for the
    first.

    Raises DataError, naming the files and where to put them, where NNX_OFFLINE is set or no mirror has them;
    MachineError where `folder` can't be written, and then leaves nothing there that takes room.
    """
    missing = _missing(folder, files)
    if not missing and not (folder / WORK).exists():  # there is one, too, where a process was killed at tidying up
        return
    absent = f"{name} is not in {folder}"
    if missing and os.environ.get("NNX_OFFLINE", "0") not in ("", "0"):
        raise DataError(
            f"{absent} and NNX_OFFLINE is set. {_put(folder, files)}, or unset NNX_OFFLINE to download them"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{WORK}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however this process ends
            try:
                _download_missing(name, folder, files)
            except OSError:
                shutil.rmtree(folder / WORK, ignore_errors=True)  # a full disk needs the room
                raise
            Path(lock.name).unlink(missing_ok=True)
            shutil.rmtree(folder / WORK, ignore_errors=True)
    except DataError as error:
        raise DataError(
            f"{absent} and can't be downloaded. {_put(folder, files)}, or try again with a network. ({error})"
        ) from None
    except OSError as error:
        if not missing:  # there was only to tidy up, which a folder that can't be written does without
            return
        why = f"{error.filename or folder}: can't be written ({error.strerror})"
        raise MachineError(
            f"{why}. {absent} and has to be downloaded: make room, or name another folder as dataset.root"
        ) from None


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file() and not (folder / f"{file}.gz").is_file()]


def _put(folder: Path, files: Sequence[str]) -> str:
    return f"Put these files there: {', '.join(_missing(folder, files))}"


def _download_missing(name: str, folder: Path, files: Sequence[str]) -> None:
    with _progress.downloads() as progress:
        for archive in ARCHIVES[name]:
            missing = _missing(
                folder, files
            )  # looked up here, as another process may have brought them while this one waited
            alone = archive.name.removesuffix(".gz")  # the one file that it is or packs, unless it is a tar or zip
            if missing and (alone in missing or alone not in files):
                part = folder / WORK / f"{archive.name}.part"
                part.parent.mkdir(exist_ok=True)
                _download.fetch(archive, part, progress)
                _unpack(part, archive.name, folder, files)


def _unpack(part: Path, name: str, folder: Path, files: Sequence[str]) -> None:
    """Put into `folder` what the archive `part`, by its right name `name`, holds, or the archive itself if it is one of
    `files`.

    Only base names are taken from inside an archive, never `extractall`: no member can choose where it goes. Of
    EMNIST's zip, whose six splits are 1.8 GB, only what `files` names is gunzipped; the rest stays .gz, which is read
    as well.
    """

    def put(content: IO[bytes], packed: str) -> None:
        name = packed.removesuffix(".gz") if packed.removesuffix(".gz") in files else packed
        with part.with_name(name).open("wb") as target:
            shutil.copyfileobj(content if name == packed else gzip.GzipFile(fileobj=content), target)
        part.with_name(name).replace(folder / name)

    if name in files:
        part.replace(folder / name)
        return
    if name.endswith(".tar.gz"):
        with tarfile.open(part) as tar:
            for member in tar:
                base, content = PurePosixPath(member.name).name, tar.extractfile(member) if member.isfile() else None
                if content and base in files:
                    put(content, base)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(part) as zipped:
            for entry in zipped.infolist():
                if entry.filename.endswith(".gz"):
                    with zipped.open(entry) as content:
                        put(content, PurePosixPath(entry.filename).name)
    else:
        with part.open("rb") as content:
            put(content, name)
    part.unlink()
