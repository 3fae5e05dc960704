"""Child processes for the torture parts. They are forked, so that torch is imported only once (1.5 s)."""

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnx.cli import run_command
from nnx.cli._start import import_torch

STEP = 0.5  # seconds

import_torch()
import torch  # noqa: E402

torch.set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it; its output and its seconds."""

    code: int
    out: str
    err: str
    seconds: float


def command(*words: object) -> Callable[[], int]:
    """The command `nnx` with these arguments, as a function for `ended`."""

    def call() -> int:
        sys.argv = ["nnx", *map(str, words)]
        return run_command()

    return call


def ended(function: Callable[[], Any], *, kill_after: float | None = None, limit: float = 120) -> Ended:
    """Call `function` in a child process and wait for it. After `kill_after` seconds the child gets SIGKILL."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        faulthandler.cancel_dump_traceback_later()  # its thread does not survive a fork, which would wait for it
        pid = os.fork()
        if not pid:
            faulthandler.dump_traceback_later(limit * 0.9, file=err.fileno())
            _run_child(function, out.fileno(), err.fileno())
        status = _wait(pid, limit if kill_after is None else kill_after)
        if status is None and kill_after is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            err.seek(0)
            where = err.read().decode(errors="replace")
            raise AssertionError(f"a process did not end within {limit:.0f} s: {where[-3000:]}")
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        seconds = time.perf_counter() - begun
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], seconds)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """An empty temporary folder."""
    with tempfile.TemporaryDirectory(prefix="nnx-torture-") as path:
        yield Path(path)


def check(condition: bool, message: str) -> None:
    """An assertion that `python -O` does not remove."""
    if not condition:
        raise AssertionError(message)


def _run_child(function: Callable[[], Any], out: int, err: int) -> None:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (open(handle, "w", closefd=False) for handle in (1, 2))  # noqa: SIM115 - open until the process ends
        code = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    """The child's status, or None if it still runs after that time.

    A pause of this process counts as STEP at most: while the machine stood still, so did the child.
    """
    waited, last = 0.0, time.perf_counter()
    while waited < seconds:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
        now = time.perf_counter()
        waited, last = waited + min(now - last, STEP), now
    return None
