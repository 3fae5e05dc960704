"""Lock files: only one process at a time may write to a folder or a cache entry.

The kernel releases a lock when its process ends, for any reason. Another user may have prepared the folder. Therefore a
lock file must be a regular file with a single name, links are not followed, and nothing is changed before it is locked.
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
    """Open the regular file at `path` with `flags` and return its descriptor.

    Raises InputError if it is a link, a file with several names, or not a regular file; OSError.
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


def acquire(path: Path, *, wait: bool = False, required: bool = True) -> BinaryIO | None:
    """Lock the file at `path` and return it, open for reading and writing. Returns None if another process has the lock
    and `wait` is false. On a network drive without locks, the file is not locked, unless that is `required`.

    Raises InputError if `path` is a link or not a regular file; OSError.
    """
    while True:
        file = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if required or error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
        with contextlib.suppress(FileNotFoundError):  # the last owner removed it: lock the next file
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        file.close()


def release(path: Path, file: BinaryIO) -> None:
    """Remove the lock file and unlock it."""
    with contextlib.suppress(OSError):
        path.unlink()
    file.close()
