"""A full disk, at 20 levels: exit code 3, earlier saves untouched, nothing left behind, and the run resumes later."""

import contextlib
import ctypes
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tortures._child import Ended, check, command, ended, folder

TRAIN = ("train", "digits_mlp", "-q", "--set", "train.batch_size=64", "--out", "run")
MORE = ("train", "--resume", "run", "-q", "--set", "train.epochs=3")
FILES = ("checkpoint.pt", "last.pt", "previous.pt", "config.yaml", "metrics.jsonl", "summary.json", "report.html")
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
DISK = 4 * 2**20  # bytes of the small disk


def torture(share: float, seed: int) -> dict[str, Any]:
    """Use a small disk if the system lets us mount one, else a limit on file sizes."""
    levels = max(round(20 * share), 2)
    with folder() as base, contextlib.chdir(base):
        mounted = ended(_on_small_disk(base, lambda: 0)).code == 0
        for level in range(levels):
            part = partial(_levels_on_disk if mounted else _levels_by_limit, level / levels)
            test = ended(_on_small_disk(base, part) if mounted else part)
            check(test.code == 0, f"level {level} of {levels}: {test.err.strip().splitlines()[-1:]}")
    return {
        "levels, each refused with 3 and resumed later": levels,
        "by": "a full disk" if mounted else "a limit on file sizes",
    }


def _on_small_disk(base: Path, function: Callable[[], int]) -> Callable[[], int]:
    def call() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if os.geteuid() else 0)):
            return 77
        libc.mount(None, b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE: only this process sees the mount
        if libc.mount(b"tmpfs", str(base).encode(), b"tmpfs", 0, f"size={DISK}".encode()):
            return 77
        os.chdir(base)
        return function()

    return call


def _levels_on_disk(level: float) -> int:
    saved = _first_run()
    needed = len(saved["last.pt"])
    free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
    filler = Path("filler")
    filler.write_bytes(bytes(int(free - 0.95 * level * needed) // 4096 * 4096))
    _refused(ended(command(*MORE)), saved, "No space left on device")
    filler.unlink()
    return _finished()


def _levels_by_limit(level: float) -> int:
    saved = _first_run()
    limit = int(0.95 * level * len(saved["last.pt"]))

    def limited() -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # stderr is a file, so it would be limited too
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return command(*MORE)()

    _refused(ended(limited), saved, "")
    return _finished()


def _first_run() -> dict[str, bytes]:
    check(ended(command(*TRAIN, "--force", "--set", "train.epochs=2")).code == 0, "the first run failed")
    return {name: Path("run", name).read_bytes() for name in FILES}


def _refused(done: Ended, saved: dict[str, bytes], why: str) -> None:
    check(done.code == 3, f"exit code {done.code}, not 3: {done.err}")
    check(why in done.err and "Traceback" not in done.err, f"unexpected message: {done.err!r}")
    for name in ("checkpoint.pt", "last.pt"):
        check(Path("run", name).read_bytes() == saved[name], f"{name} was changed")
    left = {path.name for path in Path("run").iterdir()} - {*FILES, "film.npz"}  # the film is saved before the state
    check(not left, f"left behind: {left}")


def _finished() -> int:
    check(ended(command(*MORE)).code == 0, "the run did not resume when there was room")
    check(ended(command(*TRAIN[:-1], "whole", "--force", "--set", "train.epochs=2")).code == 0, "the comparison failed")
    check(ended(command(*(word if word != "run" else "whole" for word in MORE))).code == 0, "the comparison failed")
    for name in ("checkpoint.pt", "last.pt"):
        check(
            Path("run", name).read_bytes() == Path("whole", name).read_bytes(),
            f"{name} differs from that of an uninterrupted run",
        )
    return 0
