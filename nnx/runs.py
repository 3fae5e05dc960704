"""The run folder: what a run leaves behind, and where.

config.yaml     resolved, re-runnable        checkpoint.pt   the best epoch by validation
metrics.jsonl   a line an epoch              last.pt         what --resume takes
summary.json    final figures, durations, environment
"""

import json
import time
from pathlib import Path
from typing import Any

from nnx.errors import InputError, MachineError

FILES = ("config.yaml", "metrics.jsonl", "checkpoint.pt", "last.pt", "summary.json")


def choose(out: Path | None, recipe: str, *, force: bool) -> Path:
    """The folder for a new run, not made yet: `out`, or runs/<recipe>-<timestamp>.

    Raises InputError where `out` is a file, or holds a run already and `force` is not given.
    """
    if out is None:
        return _unused(Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    near = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not near.is_dir():
        raise InputError(f"{out}: {'is' if near == out else f'{near} is'} a file, not a folder; give --out another name")
    if held := [name for name in FILES if (out / name).exists()]:
        if not force:
            raise InputError(
                f"{out}: holds a run already ({held[0]}). Go on with it by --resume, replace it by --force, or name another --out"
            )
    elif out.is_dir() and any(out.iterdir()) and not force:
        raise InputError(f"{out}: is not empty and not a run. Name another --out, or add the run's files to it by --force")
    return out


def create(folder: Path) -> None:
    """Make the folder, empty of an earlier run's files. Raises MachineError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"{folder}: can't be written ({error.strerror})") from None


def write_text(path: Path, text: str) -> None:
    """Write a small file. Raises MachineError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{path}: can't be written ({error.strerror})") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, making the folder where it is missing. Raises MachineError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{path.parent}: can't be made ({error.strerror})") from None
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Add an epoch to metrics.jsonl. Raises MachineError."""
    path = folder / "metrics.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise MachineError(f"{path}: can't be written ({error.strerror})") from None


def read_metrics(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """The first `epochs` records of metrics.jsonl: all that a state of so many epochs knows of."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[:epochs]]


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl by `records`. Raises MachineError."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _unused(path: Path) -> Path:
    """`path`, or with -2, -3, ... behind it where another run began in the same second."""
    tries = [path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000))]
    return next(candidate for candidate in tries if not candidate.exists())
