"""The run folder: its files, its lock, and its metrics.

config.yaml     resolved, re-runnable        checkpoint.pt   the best epoch by validation, else the last
metrics.jsonl   a line an epoch              last.pt         the state, for --resume
summary.json    final figures                previous.pt     the state saved before it
report.html     the run as one page          film.npz        how it learned, step by step (train.film)

While a run writes there, `.lock` contains its process id and is locked.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnx.errors import InputError, MachineError
from nnx.system import files, locks

FILES = (
    "config.yaml",
    "metrics.jsonl",
    "checkpoint.pt",
    "last.pt",
    "previous.pt",
    "summary.json",
    "report.html",
    "film.npz",
)
METRICS = ("epoch", "step", "train_loss", "val_loss", "val_accuracy", "lr", "seconds", "samples_per_second")


def choose_folder(out: Path | None, recipe: str, *, force: bool) -> Path:
    """The folder for a new run, not made yet: `out`, or runs/<recipe>-<timestamp>; `create_folder` may add a number.

    Raises InputError where `out` is a file, or contains a run already and `force` is not given.
    """
    if out is None:
        return Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(out)
    if not force:
        _check_empty(out)
    return out


def check_folder(out: Path) -> None:
    """Raises InputError where `out` can't be a folder: it is a file, or lies below one."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        subject = "" if nearest == out else f"{nearest} "
        raise InputError(f"{out}: {subject}is a file, not a folder; give --out another name")


@contextmanager
def create_folder(folder: Path, *, force: bool, exactly: bool) -> Iterator[Path]:
    """Make the folder, remove an earlier run's files, and lock it (see `lock_folder`). Unless it must be `exactly` this
    one, a folder that another run made in the same second gets -2, -3, ... appended to its name.

    Raises MachineError, and InputError where another process made a run there in the meantime.
    """
    folder = _make_folder(folder, exactly)
    with lock_folder(folder):
        if not force:
            _check_empty(folder)
        try:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(f"{folder}: can't be written ({error.strerror})") from None
        yield folder


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Inside, no other process may write to the folder. Half-written files of dead processes are removed.

    The kernel releases the lock however this process ends. Raises MachineError, naming the process that has it.
    """
    lock = _lock(folder)
    try:
        files.remove_stale_files(folder)
        yield
    finally:
        locks.release(folder / ".lock", lock)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, making the folder where it is missing. Raises MachineError."""
    files.write(path, json.dumps(value, indent=2) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json, or an empty dict where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        files.check_regular(folder / "summary.json")
        value = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Add an epoch to metrics.jsonl. Raises MachineError."""
    path = folder / "metrics.jsonl"
    try:
        descriptor = locks.open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(descriptor, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise MachineError(f"{path}: can't be written ({error.strerror})") from None


def read_metrics(folder: Path, history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl for the epochs of a state's `history`. A line that a crash lost or cut is restored
    from the history, without its times. Without validation samples, its val_loss and val_accuracy are None."""
    lines = _read_lines(folder)
    timeless = {"seconds": None, "samples_per_second": None}
    unmeasured = {"val_loss": None, "val_accuracy": None}
    written = (lines.get(record["epoch"], {}) for record in history)
    return [
        line if line.items() >= record.items() else ({} if "val_loss" in record else unmeasured) | record | timeless
        for line, record in zip(written, history, strict=True)
    ]


def matching_metrics(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl, if they belong to a checkpoint's run: one of them must be its epoch's
    `record`."""
    unmeasured = {"val_loss", "val_accuracy"} - record.keys()  # a run without validation samples
    lines = [
        line
        for line in _read_lines(folder).values()
        if all(line.get(key) is None if key in unmeasured else _is_number(line.get(key)) for key in METRICS)
    ]
    is_same_run = any(record.items() <= line.items() for line in lines) if record else False
    return sorted(lines, key=lambda line: line["epoch"]) if is_same_run else []


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl by `records`. Raises MachineError."""
    files.write(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _read_lines(folder: Path) -> dict[int, dict[str, Any]]:
    """The valid lines of metrics.jsonl, by epoch."""
    lines: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        files.check_regular(folder / "metrics.jsonl")
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(line)
                lines[record["epoch"]] = {**record, "seconds": float(record["seconds"])}
    return lines


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_empty(out: Path) -> None:
    if existing := [name for name in FILES if (out / name).exists()]:
        cure = "Resume it with --resume, replace it with --force, or name another --out"
        raise InputError(f"{out}: already contains a run ({existing[0]}). {cure}")
    if out.is_dir() and any(not path.name.endswith((".lock", ".tmp")) for path in out.iterdir()):
        raise InputError(
            f"{out}: is not empty and not a run. Name another --out, or add the run's files to it with --force"
        )


def _lock(folder: Path) -> locks.LockFile:
    """`.lock` in the folder, locked, with our process id in it. Raises MachineError, InputError."""
    path = folder / ".lock"
    try:
        lock = locks.acquire(path, required=False)
        if lock is None:
            raise MachineError(
                f"{folder}: is in use by process {locks.read_owner(path)}; wait for it, or name another --out"
            )
        with contextlib.suppress(OSError):  # where more depends on it, a full disk is found
            locks.write_owner(lock)
        return lock
    except OSError as error:
        raise MachineError(f"{folder}: can't be written ({error.strerror})") from None


def _make_folder(folder: Path, exactly: bool) -> Path:
    numbers = itertools.count(2)
    wanted = folder
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=exactly)
            return folder
        except OSError as error:
            if exactly or not isinstance(error, FileExistsError):
                raise MachineError(f"{folder}: can't be made ({error.strerror})") from None
            folder = wanted.with_name(f"{wanted.name}-{next(numbers)}")
