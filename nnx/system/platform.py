"""What differs between Linux, macOS and Windows. Of the rest of nnx, only `locks`, `waiting` and `nnx serve` ask which
system it is.

mypy checks this file once for each system, as `sys.platform` is known to it. psutil (25 ms) and filelock (46 ms) are
imported where the standard library has no answer.
"""

import contextlib
import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl
    import resource
if TYPE_CHECKING:
    import ctypes
    from socket import socket

# Signals that stop a run once it is saved. Windows sends SIGBREAK for Ctrl-Break and where a console is closed.
if sys.platform == "win32":
    STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    OPEN_FLAGS = os.O_BINARY | os.O_NOINHERIT
    MAX_PROCESSES = 61  # as many as Windows can wait for at once; concurrent.futures refuses more
else:
    STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    OPEN_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # opening a named pipe would wait for a reader
    MAX_PROCESSES = sys.maxsize

COMPILERS = ("cl",) if sys.platform == "win32" else ("c++", "g++", "clang++")  # of C++, for torch.compile

# What writing to a pipe without a reader raises; on Windows it is an invalid argument.
BROKEN_PIPE = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)
RETRIES = 10  # of `replace` on Windows, each later by 10 ms more: half a second in total


# ---------------------------------------------------------------- cores, memory and processes


def cores() -> int:
    """The number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    if sys.platform == "win32":
        import psutil

        return len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1
    return os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of this machine's memory."""
    if sys.platform == "linux":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil

    return int(psutil.virtual_memory().total)


def free_memory() -> int:
    """Bytes that this process can still allocate: the machine's free memory, or less by a container's or its limits."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = (_read(f"/sys/fs/cgroup/{name}") for name in (limit, used))
        if most.isdigit() and now.isdigit():
            free.append(int(most) - int(now))
    taken = psutil.Process().memory_info()
    taken_by_option = {"-v": taken.vms, "-d": getattr(taken, "data", 0)}
    free += [allowed - taken_by_option[option] for option, allowed in memory_limits().items()]
    return max(0, min(free))


def memory_limits() -> dict[str, int]:
    """The limits on this process's memory in bytes, by the option of `ulimit` that sets them: -v addresses, -d data."""
    if sys.platform == "win32":
        return {}
    else:
        limits = {"-d": resource.getrlimit(resource.RLIMIT_DATA)[0], "-v": resource.getrlimit(resource.RLIMIT_AS)[0]}
        return {option: allowed for option, allowed in limits.items() if allowed != resource.RLIM_INFINITY}


def peak_memory() -> int:
    """Bytes of memory that this process used at most so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def cpu_quota() -> float | None:
    """The cores' worth of time that the container allows; None where nothing limits it."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def cpu_info(key: str) -> str:
    """The value of `key` in Linux's /proc/cpuinfo for the first core; empty on other systems."""
    lines = _read("/proc/cpuinfo").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def is_running(pid: int) -> bool:
    """Whether a process with this number is running."""
    if sys.platform == "win32":  # where os.kill(pid, 0) would end it
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def c_library() -> "ctypes.CDLL | None":
    """The functions of C's library that this process has loaded; None on Windows, which has no single one."""
    if sys.platform == "win32":
        return None
    import ctypes

    return ctypes.CDLL(None)


@contextlib.contextmanager
def blocked_terminal_signals() -> Iterator[None]:
    """Processes started inside never receive the signals of a terminal. Windows has no such mask: see
    `ignore_terminal_signals`."""
    if sys.platform == "win32":
        yield
    else:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_terminal_signals() -> None:
    """In a process started inside `blocked_terminal_signals`: ignore Ctrl-C where it could not be blocked."""
    if sys.platform == "win32":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGBREAK, signal.SIG_IGN)


def quote(argument: str) -> str:
    """`argument` as it is typed in a shell: that of Windows does not know single quotes."""
    if sys.platform == "win32":
        from subprocess import list2cmdline

        return list2cmdline([argument])
    return shlex.quote(argument)


def claim_port(listener: "socket") -> None:
    """Let `listener` take a port that a server has just left, but none that is in use: on Windows, SO_REUSEADDR would
    share it. Raises OSError."""
    import socket

    if sys.platform == "win32":
        option = socket.SO_EXCLUSIVEADDRUSE
    else:
        option = socket.SO_REUSEADDR
    listener.setsockopt(socket.SOL_SOCKET, option, 1)


# ---------------------------------------------------------------- files


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which is replaced, atomically. Raises OSError.

    On Windows this fails while a virus scanner or an indexer reads one of them: it tries again for half a second.
    """
    for attempt in range(RETRIES if sys.platform == "win32" else 0):
        with contextlib.suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(0.01 * (attempt + 1))
    os.replace(source, target)


def sync(descriptor: int) -> None:
    """Write a file's content to the disk itself. Raises OSError."""
    if sys.platform == "darwin":  # fsync stops at the cache of the drive: see fsync(2) there
        with contextlib.suppress(OSError):  # a network drive has no such call
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk. Raises OSError. Windows can't open folders; NTFS logs their changes."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def list_folder(folder: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """The names in a folder in order, each with its status, of the target for a link; None for a broken link.

    Relative to an open folder where the system can: 60,000 take 0.19 s of one core's time, with whole paths 0.26 s.
    Raises OSError.
    """
    if sys.platform == "win32":
        for name in sorted(os.listdir(folder)):
            yield name, status(os.path.join(folder, name))
    else:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            for name in sorted(os.listdir(descriptor)):
                yield name, status(name, descriptor)
        finally:
            os.close(descriptor)


def status(name: str, folder: int | None = None) -> os.stat_result | None:
    """The status of a file, or None if it is missing. `name` is relative to the folder with the descriptor `folder`."""
    try:
        return os.stat(name, dir_fd=folder)
    except (OSError, ValueError):  # ValueError: a NUL in a name
        return None


def _read(path: str) -> str:
    """The text of a file in which Linux tells about itself, stripped; empty on other systems."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""
