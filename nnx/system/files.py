"""Files, written whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path

from nnx.errors import MachineError

WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # FAT, some network drives


def replace(path: Path, data: bytes, *, keep: Path | None = None) -> None:
    """Write `data` beside `path`, make it durable, then put it in place of `path` in one step.

    After a crash at any moment `path` is the old file or the new one. With `keep`, the old file goes on under that
    name. Raises MachineError where the disk does not take it; the old file is then untouched.
    """
    replaced = False
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            _keep(path, keep)
        os.replace(temporary, path)
        replaced = True
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        state = "it may be lost if the machine stops now" if replaced else "what was there before is untouched"
        raise MachineError(f"{path}: could not be saved ({error.strerror}); {state}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write(path: Path, text: str) -> None:
    """`replace`, of text, making the folder where it is missing. Raises MachineError."""
    make_folder(path.parent)
    replace(path, text.encode())


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, where they are missing. Raises MachineError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder}: can't be made ({error.strerror})") from None


def remove_stale_files(folder: Path) -> None:
    """Remove from `folder` what processes that are no more left half-written."""
    for path in folder.glob(".*.*.tmp"):
        if not is_alive(path):
            with contextlib.suppress(OSError):
                path.unlink()


def is_alive(temporary: Path) -> bool:
    """Whether the process still runs that writes `temporary`, `.NAME.<pid>.tmp`; a name without a process is nobody's
    to remove."""
    pid = temporary.name.split(".")[-2]
    return not pid.isdigit() or _alive(int(pid))


def _keep(path: Path, kept: Path) -> None:
    """Give the file at `path` the name `kept` too, in place of what had it. `path` is there all the time, where links
    are known."""
    link = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        os.link(path, link)
        os.replace(link, kept)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        os.replace(path, kept)
    finally:
        with contextlib.suppress(OSError):
            link.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
