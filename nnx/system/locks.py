"""Lock files: one process at a time may write to a folder or an entry of the cache.

The kernel releases a lock however its process ends. The folder may have been prepared by somebody else, so that a lock
file is never followed through a link, must be a regular file of one name, and is not changed before it is locked.
"""

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO

from nnx.errors import InputError

WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # some network drives


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of the regular file at `path`, opened with `flags` and made where `flags` ask for that.

    Raises InputError where it is a link, a file of several names, or no regular file; OSError.
    """
    refused = "remove it; nnx does not write through links"
    try:  # O_NONBLOCK: opening a named pipe would wait for a reader
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno in (errno.ENXIO, errno.EISDIR) and path.exists()):
            raise InputError(f"{path}: is a link, or not a regular file; {refused}") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise InputError(f"{path}: is not a regular file, or has a second name; {refused}")
    return descriptor


def acquire(path: Path, *, wait: bool = False) -> BinaryIO | None:
    """The lock file at `path`, locked and open for reading and writing; None where another process has the lock and
    `wait` is false. A network drive without locks is used without one.

    Raises InputError where `path` is a link or no regular file; OSError.
    """
    while True:
        file = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
        with contextlib.suppress(FileNotFoundError):  # removed by its last owner: the next file must be locked
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        file.close()


def release(path: Path, file: BinaryIO) -> None:
    """Remove the lock file and unlock it."""
    with contextlib.suppress(OSError):
        path.unlink()
    file.close()
