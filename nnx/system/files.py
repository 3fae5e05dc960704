"""Write files atomically."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from nnx.errors import MachineError
from nnx.system import platform

NAME_LENGTH = 58  # characters, of up to 4 bytes each: with the rest at most 255 bytes
# FAT, some network drives. macOS and Windows have numbers of their own for them.
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def replace(path: Path, data: bytes, *, keep: Path | None = None) -> None:
    """Replace the file `path` atomically: write `data` to a temporary file, sync it to disk, then rename it.

    After a crash at any moment, `path` is the old file or the new one. With `keep`, the old file is kept under that
    name. Raises MachineError if writing fails; the old file is then unchanged.
    """
    replaced = False
    temporary = _temporary(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        # O_EXCL: a link that somebody prepared under this name is not followed
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | platform.OPEN_FLAGS, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            platform.sync(file.fileno())
        if keep and path.exists():
            _link(path, keep)
        platform.replace(temporary, path)
        replaced = True
        platform.sync_folder(path.parent)
    except OSError as error:
        state = "it may be lost if the machine stops now" if replaced else "the previous file is unchanged"
        raise MachineError(f"{path}: could not be saved ({error.strerror}); {state}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write(path: Path, text: str) -> None:
    """Like `replace`, for text. Creates the folder if it is missing. Raises MachineError."""
    make_folder(path.parent)
    replace(path, text.encode())


def check_regular(path: Path) -> None:
    """Raises OSError if `path` can't be read as a file: opening a pipe waits, and a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def make_folder(folder: Path) -> None:
    """Create the folder and its parents if they are missing. Raises MachineError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder}: can't be made ({error.strerror})") from None


def remove_stale_files(folder: Path) -> None:
    """Remove the temporary files that processes left in `folder` when they were killed."""
    for path in folder.glob(".*.*.tmp"):
        if not is_alive(path):
            with contextlib.suppress(OSError):
                path.unlink()


def remove(path: Path) -> None:
    """Remove a folder and all in it, or the file, link or pipe of that name. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # it would wait for ever for a pipe of this name (Python 3.12)
    else:
        path.unlink()


def is_alive(temporary: Path) -> bool:
    """Whether the process that writes `temporary`, named `.NAME.<pid>.tmp`, is running. Also true for a name without a
    process number, which nnx must not remove."""
    pid = temporary.name.split(".")[-2]
    return not pid.isdigit() or platform.is_running(int(pid))


def _temporary(path: Path) -> Path:
    """`.NAME.<pid>.tmp` beside `path`. A name that is almost as long as the file system takes is cut."""
    return path.with_name(f".{path.name[:NAME_LENGTH]}.{os.getpid()}.tmp")


def _link(path: Path, second: Path) -> None:
    """Give the file at `path` a `second` name, replacing the file of that name. `path` exists at all times, except on
    file systems without hard links."""
    link = _temporary(second.with_name(f"link-{second.name}"))  # never the file that is being written
    try:
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        os.link(path, link)
        platform.replace(link, second)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        platform.replace(path, second)
    finally:
        with contextlib.suppress(OSError):
            link.unlink()
