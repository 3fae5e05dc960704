"""nnx as on Windows or macOS, but on Linux: put this folder on PYTHONPATH; child processes are simulated too.

NNX_SIMULATED_PLATFORM is win32 or darwin. Modules of nnx see modules such as `sys`, `os` and `signal` as there:
`sys.platform` says so, what the system lacks is missing, and what it refuses fails. Other libraries see the real
system, without which they could not run here.

For all code of a simulated Windows, files that this process has open can be neither removed nor replaced, and new
processes are spawned.

What was forgotten here is not found: this is no proof that nnx runs there.
"""

import builtins
import ctypes
import importlib.abc
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from enum import IntEnum
from types import ModuleType
from typing import Any

PLATFORM = os.environ.get("NNX_SIMULATED_PLATFORM", "")
WINDOWS = PLATFORM == "win32"

MISSING_MODULES = {"pwd", "grp", "termios", "tty", "pty", "fcntl", "resource", "syslog", "readline", "posix"}
# https://docs.python.org/3/library/os.html: "Availability: Unix"
MISSING_OS = (
    *("sched_getaffinity", "sched_setaffinity", "sysconf", "sysconf_names", "confstr", "getloadavg", "nice", "uname"),
    *("fork", "forkpty", "wait", "wait3", "wait4", "WNOHANG", "register_at_fork", "killpg", "setsid", "getpgid"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "chown", "lchown", "fchown", "fchdir", "chroot"),
    *("statvfs", "fstatvfs", "mkfifo", "mknod", "openpty", "ttyname", "ctermid", "tcgetpgrp", "pread", "pwrite"),
    *("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_SYNC", "O_DSYNC", "O_PATH", "fdatasync", "sync"),
    *("lockf", "sendfile", "copy_file_range", "memfd_create", "posix_fadvise", "getrandom", "preadv", "pidfd_open"),
)
MISSING_ON_MAC = (
    *("sched_getaffinity", "sched_setaffinity", "copy_file_range", "memfd_create", "posix_fadvise", "pidfd_open"),
    *("O_PATH", "fdatasync", "getrandom"),
)
SIGNALS = ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV")  # of Windows, with SIGBREAK
MISSING_SIGNALS = ("pthread_sigmask", "pthread_kill", "alarm", "setitimer", "sigwait", "siginterrupt", "SIG_BLOCK")


class Facade(ModuleType):
    """A module in which some names are missing and some have other values. Others are those of the `real` one."""

    def __init__(self, real: ModuleType, *, missing: Any = (), **values: Any) -> None:
        super().__init__(real.__name__, real.__doc__)
        own = object.__getattribute__(self, "__dict__")
        own.update(_real=real, _missing=frozenset(missing), _values=values)

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name in own["_missing"]:
            raise AttributeError(f"module {own['_real'].__name__!r} has no attribute {name!r} on {PLATFORM}")
        return own["_values"][name] if name in own["_values"] else getattr(own["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = object.__getattribute__(self, "__dict__")
        if name in own["_values"]:
            own["_values"][name] = value
        else:
            setattr(own["_real"], name, value)


def _check_system_file(path: Any) -> None:
    if not isinstance(path, int) and os.fspath(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", path)


def _open_file(file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
    """`open`, with the encoding and the line ends of Windows."""
    _check_system_file(file)
    if WINDOWS and "b" not in mode:
        if settings.get("encoding") is None and len(args) < 2:
            settings["encoding"] = "cp1252"
        if "r" not in mode and settings.get("newline") is None:
            settings["newline"] = "\r\n"
    return open(file, mode, *args, **settings)


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: Any = None) -> int:
    _check_system_file(path)
    assert not WINDOWS or dir_fd is None
    if WINDOWS and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return os.open(path, flags & ~BINARY, mode, dir_fd=dir_fd)


def _stat(path: Any, *, dir_fd: Any = None, follow_symlinks: bool = True) -> os.stat_result:
    if WINDOWS and dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)


def _listdir(path: Any = ".") -> list[str]:
    _check_system_file(path)
    if WINDOWS and isinstance(path, int):
        raise TypeError("listdir: path should be string, bytes, os.PathLike or None, not int")
    return os.listdir(path)


def _kill(pid: int, number: int) -> None:
    raise AssertionError(f"os.kill({pid}, {number}) would end that process on Windows")


def _exists(path: Any) -> bool:
    return not (isinstance(path, str) and path.startswith(("/proc", "/sys"))) and os.path.exists(path)


class _Library(ctypes.CDLL):
    def __init__(self, name: Any, *args: Any, **settings: Any) -> None:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *args, **settings)


BINARY, NO_INHERIT = 1 << 28, 1 << 29


def _facades() -> dict[str, ModuleType]:
    path = Facade(os.path, exists=_exists)
    if not WINDOWS:
        import fcntl
        import resource

        def control(file: Any, command: Any, argument: Any = 0) -> Any:
            return os.fsync(file) if command == "full sync" else fcntl.fcntl(file, command, argument)

        return {
            "sys": Facade(sys, platform="darwin"),
            "os": Facade(os, missing=MISSING_ON_MAC, open=_open, listdir=_listdir, path=path),
            "ctypes": ctypes,
            "fcntl": Facade(fcntl, fcntl=control, F_FULLFSYNC="full sync"),
            "resource": resource,
        }
    signals: Any = {name: getattr(signal, name) for name in SIGNALS} | {"SIGBREAK": signal.SIGUSR2}
    missing = {name for name in vars(signal) if name.startswith("SIG") and "_" not in name and name not in signals}
    members = IntEnum("Signals", {name: int(number) for name, number in signals.items()})
    signals |= {"Signals": members} | {name: members[name] for name in signals}
    return {
        "sys": Facade(sys, platform="win32"),
        "os": Facade(
            os,
            missing=MISSING_OS,
            name="nt",
            linesep="\r\n",
            O_BINARY=BINARY,
            O_NOINHERIT=NO_INHERIT,
            open=lambda path, flags, mode=0o777, *, dir_fd=None: _open(path, flags & ~NO_INHERIT, mode, dir_fd=dir_fd),
            stat=_stat,
            listdir=_listdir,
            kill=_kill,
            path=path,
            supports_dir_fd=frozenset(),
            supports_fd=frozenset(),
        ),
        "signal": Facade(signal, missing={*missing, *MISSING_SIGNALS}, **signals),
        "ctypes": Facade(ctypes, CDLL=_Library),
        "socket": Facade(socket, missing=("SO_REUSEPORT", "AF_UNIX"), SO_EXCLUSIVEADDRUSE=socket.SO_KEEPALIVE),
    }


class Finder(importlib.abc.MetaPathFinder):
    """Gives modules of nnx their own builtins: an `import` and an `open` as on the simulated system."""

    def __init__(self) -> None:
        facades = _facades()

        def import_module(
            name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
        ) -> Any:
            if WINDOWS and not level and name in MISSING_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name == "os.path" and fromlist:
                return facades["os"].path
            module = builtins.__import__(name, globals, locals, fromlist, level)
            return facades.get(module.__name__, module) if not level else module

        self.builtins = {**vars(builtins), "__import__": import_module, "open": _open_file}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "nnx":
            return None
        spec = next(
            found
            for finder in sys.meta_path
            if finder is not self and (found := finder.find_spec(name, path, target)) is not None
        )
        if spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            module.__dict__["__builtins__"] = self.builtins
            execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _refuse_open_files() -> None:
    """Windows removes and replaces no file that is open; here: that this process has open or memory-mapped."""

    def refusing(function: Any, sources: int) -> Any:
        def checked(*args: Any, **settings: Any) -> Any:
            for path in () if settings else args[:sources]:
                if name := _is_open(path):
                    raise PermissionError(13, "The process cannot access the file because it is being used", name)
            return function(*args, **settings)

        return checked

    for name, sources in (("unlink", 1), ("remove", 1), ("replace", 2), ("rename", 2)):
        setattr(os, name, refusing(getattr(os, name), sources))


def _is_open(path: Any) -> str:
    name = os.path.realpath(os.fspath(path))
    opened = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            opened.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        mapped = any(line.rstrip("\n").endswith(f" {name}") for line in maps)
    return name if name in opened or mapped else ""


if PLATFORM:
    try:
        sys.meta_path.insert(0, Finder())
        if WINDOWS:
            _refuse_open_files()
            multiprocessing.set_start_method("spawn")
    except BaseException:  # Python would go on without the simulation
        traceback.print_exc()
        os._exit(99)
