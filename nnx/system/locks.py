"""Lock files: only one process at a time may write to a folder or a cache entry.

The kernel releases a lock when its process ends, for any reason. Another user may have prepared the folder. Therefore a
lock file must be a regular file with a single name, links are not followed, and nothing is changed before it is locked.

Windows has no flock: there, filelock locks the first byte of the file. Elsewhere filelock would keep less: it locks
pipes and files with a second name, and where flock is missing, its locks outlive a killed process.
"""

import contextlib
import errno
import os
import stat
import sys
from io import FileIO
from pathlib import Path

from nnx.errors import InputError
from nnx.system.platform import OPEN_FLAGS

if sys.platform == "win32":
    from filelock import FileLock, Timeout
else:
    import fcntl

# some network drives; on macOS, two of these names stand for two numbers
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
NOT_A_FILE = (errno.ENXIO, errno.EISDIR, errno.EACCES)  # of a pipe or socket; of a folder; of a folder on Windows
OWNER_BYTES = 20


def open_regular(path: Path, flags: int) -> int:
    """Open the regular file at `path` with `flags` and return its descriptor.

    Raises InputError if it is a link, a file with several names, or not a regular file; OSError.
    """
    refused = "remove it; nnx does not write through links"
    is_link = InputError(f"{path}: is a link, or not a regular file; {refused}")
    if sys.platform == "win32" and path.is_symlink():  # elsewhere, O_NOFOLLOW leaves no time between
        raise is_link
    try:
        descriptor = os.open(path, flags | OPEN_FLAGS, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno in NOT_A_FILE and path.exists() and not path.is_file()):
            raise is_link from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise InputError(f"{path}: is not a regular file, or has a second name; {refused}")
    return descriptor


if sys.platform == "win32":

    class LockFile(FileIO):
        """A locked file, open for reading and writing except for its first byte, which filelock has locked."""

        def __init__(self, path: Path, lock: FileLock) -> None:
            super().__init__(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b")
            self._lock = lock

        def close(self) -> None:
            """Unlock the file, too."""
            super().close()
            self._lock.release()

    def acquire(path: Path, *, wait: bool = False, required: bool = True) -> LockFile | None:
        """As on other systems, below."""
        os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # is it one that may be locked?
        lock = FileLock(path, timeout=-1 if wait else 0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        except OSError as error:
            if required or error.errno not in WITHOUT_LOCKS:
                raise
        try:
            return LockFile(path, lock)
        except BaseException:
            lock.release()
            raise

    def release(path: Path, file: LockFile) -> None:
        """Unlock the lock file. filelock removes it, which Windows allows only once it is closed."""
        file.close()

    def write_owner(file: LockFile) -> None:
        """Write the number of this process into the lock file, behind the locked byte. Raises OSError."""
        file.seek(1)
        file.write(f"{os.getpid():<{OWNER_BYTES - 1}}\n".encode())

else:
    LockFile = FileIO

    def acquire(path: Path, *, wait: bool = False, required: bool = True) -> LockFile | None:
        """Lock the file at `path` and return it, open for reading and writing. Returns None if another process has the
        lock and `wait` is false. On a network drive without locks, the file is not locked, unless that is `required`.

        Raises InputError if `path` is a link or not a regular file; OSError.
        """
        while True:
            file = FileIO(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b")
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

    def release(path: Path, file: LockFile) -> None:
        """Remove the lock file and unlock it."""
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()

    def write_owner(file: LockFile) -> None:
        """Write the number of this process into the lock file. Raises OSError."""
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())


def read_owner(path: Path) -> str:
    """The number of the process that has the lock file, or "unknown"."""
    try:
        with FileIO(open_regular(path, os.O_RDONLY)) as file:
            if sys.platform == "win32":
                file.seek(1)
            return file.read(OWNER_BYTES).decode(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
