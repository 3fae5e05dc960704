"""SIGKILL at random moments and at every file-system call of three saves: each run resumes to the same bytes."""

import mmap
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnx.system import files
from tortures._child import Ended, check, command, ended, folder

SETTINGS = (
    "train.epochs=3",
    "train.save_every=4",
    "train.ema=0.9",
    "train.batch_size=64",
    "train.film=true",
    "train.report=false",  # it would take half of each run
    "model={name: mlp, hidden: [32], dropout: 0.2}",
)
TRAIN = ("train", "digits_mlp", *(word for setting in SETTINGS for word in ("--set", setting)), "-q")
FILES = ("checkpoint.pt", "last.pt", "film.npz")


def torture(share: float, seed: int) -> dict[str, Any]:
    """200 random kills, at least 50 of them inside a save; then one before each file-system call, and in the middle of
    each write."""
    rng = random.Random(seed)
    with folder() as base:
        whole = ended(command(*TRAIN, "--out", base / "whole"))
        check(whole.code == 0, f"the uninterrupted run failed: {whole.err}")
        expected = {name: (base / "whole" / name).read_bytes() for name in FILES}
        figures = _random_kills(
            base, max(round(200 * share), 5), max(round(50 * share), 2), whole.seconds, expected, rng
        )
        return figures | _kills_at_calls(base, expected, sample=share, rng=rng)


def _random_kills(
    base: Path, kills: int, inside: int, seconds: float, expected: dict[str, bytes], rng: random.Random
) -> dict[str, Any]:
    """Kill and resume runs until they finish."""
    saving = mmap.mmap(-1, 1)  # shared with the children: 1 during a save
    done = within = runs = resumes = 0

    def noted(function: Callable[[], int]) -> Callable[[], int]:
        replace = files.replace

        def note(*arguments: Any, **options: Any) -> None:
            saving[0] = 1
            try:
                replace(*arguments, **options)
            finally:
                saving[0] = 0

        def call() -> int:
            files.replace = note
            return function()

        return call

    while done < kills or within < inside:
        out, runs = base / f"run{runs}", runs + 1
        words: tuple[object, ...] = (*TRAIN, "--out", out)
        while True:
            saving[0] = 0
            killed = ended(
                noted(command(*words)), kill_after=rng.uniform(0, seconds) if done < kills or within < inside else None
            )
            if killed.code != -signal.SIGKILL:
                check(killed.code == 0, f"a resumed run failed: {killed.err}")
                break
            done, within = done + 1, within + saving[0]
            words, resumes = _next(out), resumes + (out / "last.pt").exists()
        _compare(out, expected)
    return {"kills": done, "inside a save": within, "runs": runs, "resumes": resumes}


def _next(out: Path) -> tuple[object, ...]:
    """The command that continues after a kill."""
    return ("train", "--resume", out, "-q") if (out / "last.pt").exists() else (*TRAIN, "--out", out, "--force")


def _compare(out: Path, expected: dict[str, bytes]) -> None:
    for name, data in expected.items():
        check((out / name).read_bytes() == data, f"{name} differs from that of the uninterrupted run")
    left = [path.name for path in out.iterdir() if path.name.startswith(".")]
    check(not left, f"left behind: {left}")


# ---------------------------------------------------------------- at every call

WINDOW = range(4, 7)  # saves: before the end of an epoch, at its end (with checkpoint.pt and metrics.jsonl), after it
CALLS = ("open", "link", "replace", "fsync", "close", "unlink", "truncate")


def _kills_at_calls(base: Path, expected: dict[str, bytes], *, sample: float, rng: random.Random) -> dict[str, Any]:
    """Kill each run once, then resume it."""
    names = mmap.mmap(-1, 4)
    out = base / "counted"
    counted = ended(_killed_at(command(*TRAIN, "--out", out), -1, names))
    check(counted.code == 0, f"the run that counts the calls failed: {counted.err}")
    total = int.from_bytes(names[:4], "little")
    check(total > 20, f"only {total} calls in three saves")
    chosen = sorted(rng.sample(range(total), max(round(total * sample), 4)))
    for n in chosen:
        out = base / f"call{n}"
        killed = ended(_killed_at(command(*TRAIN, "--out", out), n, names))
        check(killed.code == -signal.SIGKILL, f"call {n} of {total} was not killed: {killed.code} {killed.err}")
        _resumed(out)
        _compare(out, expected)
    return {"file-system calls of three saves": total, "killed at": len(chosen)}


def _resumed(out: Path) -> Ended:
    done = ended(command(*_next(out)))
    check(done.code == 0, f"a resume failed: {done.err}")
    return done


def _killed_at(function: Callable[[], int], wanted: int, counter: mmap.mmap) -> Callable[[], int]:
    """`function`, killed before file-system call number `wanted` of three saves. A write counts twice: before it, and
    half done."""

    def call() -> int:
        count = saves = 0

        def moment(then: Callable[[], Any] = lambda: None) -> None:
            nonlocal count
            if saves in WINDOW:
                if count == wanted:
                    then()
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                counter[:4] = count.to_bytes(4, "little")

        def before(real: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                moment()
                return real(*arguments, **options)

            return wrapped

        class Opened:
            """A file whose writes count as calls, too."""

            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> "Opened":
                return self

            def __exit__(self, *_: object) -> None:
                moment()
                self.file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def write(self, data: Any) -> None:
                moment()
                moment(lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
                self.file.write(data)
                self.file.flush()

        replace, opened = files.replace, open

        def saved(path: Path, data: bytes, **options: Any) -> None:
            nonlocal saves
            saves += path.name == "last.pt"
            replace(path, data, **options)

        files.replace = saved
        files.open = lambda *arguments: Opened(before(opened)(*arguments))  # type: ignore[attr-defined]
        path_open = before(Path.open)
        Path.open = lambda *arguments, **options: Opened(path_open(*arguments, **options))  # type: ignore[method-assign]
        for name in CALLS:
            setattr(os, name, before(getattr(os, name)))
        return function()

    return call
