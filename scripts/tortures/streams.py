"""Closed, full and abandoned standard streams, in four encodings: documented exit codes, and no training is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnx import checkpoint
from tortures._child import check, folder

LIMIT = 120  # seconds
NNX = (sys.executable, "-P", "-m", "nnx")
SETTINGS = ("--set", "train.epochs=2", "--set", "model.hidden=[8]", "--set", "train.report=false")
CLASSES = ("日本", "é", "☃")  # none is in ASCII, one in Latin-1 and cp1252
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "own.yaml", *SETTINGS, "--out", "new"),
    "train -q": ("train", "own.yaml", *SETTINGS, "--out", "new", "-q"),
    "train --json": ("train", "own.yaml", *SETTINGS, "--out", "new", "--json"),
    "train --watch": ("train", "own.yaml", *SETTINGS, "--out", "new", "--watch"),
    "train, two processes": ("train", "own.yaml", *SETTINGS, "--out", "new", "--nproc", "2"),
    "train --resume": ("train", "--resume", "run", "--set", "train.epochs=3"),
    "eval": ("eval", "run"),
    "eval --json": ("eval", "run", "--json"),
    "predict": ("predict", "run", "größe.csv"),
    "predict --csv": ("predict", "run", "größe.csv", "--csv"),
    "predict -": ("predict", "run", "-"),
    "explain": ("explain", "run", "--only", "filters"),
    "trace": ("trace", "run"),
    "verify": ("verify", "run", "--steps", "2"),
    "init": ("init", "digits_mlp", "--out", "made"),
    "list": ("list",),
    "list cache": ("list", "cache"),
    "show": ("show", "own.yaml", "--no-trial"),
    "check": ("check", "own.yaml"),
    "schema": ("schema",),
    "doctor": ("doctor",),
    "--help": ("--help",),
    "train --help": ("train", "--help"),
    "no such config": ("train", "größe.yaml"),
    "no such option": ("train", "own.yaml", "--größe"),
}
ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8")
STREAMS = (  # what becomes of stdin, stdout and stderr, as a shell writes it; {bytes} is drawn
    "<&-",
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    "> /dev/full",
    "2> /dev/full",
    "> /dev/full 2>&1",
    "| head -c {bytes}",
    "2>&1 | head -c {bytes}",
    "2> >(head -c {bytes} >&3) >&3",
    "| true",
    ">&3",
)


def torture(share: float, seed: int) -> dict[str, Any]:
    """Each command with each state of its streams, in a random encoding. Readers leave after a few bytes."""
    rng = random.Random(seed)
    cases = [(name, streams) for name in COMMANDS for streams in STREAMS]
    codes: dict[int, int] = {}
    with folder() as base:
        _prepare(base)
        _control(base)
        count = len(cases) if share == 1 else max(round(len(cases) * share / 3), 4)  # each starts Python and torch
        chosen = rng.sample(cases, count)
        for name, streams in chosen:
            streams = streams.format(bytes=rng.choice([0, 1, 10, 100, rng.randrange(10_000)]))
            encoding = rng.choice(ENCODINGS)
            code = _tested(base, name, streams, encoding)
            codes[code] = codes.get(code, 0) + 1
    return {"runs": len(chosen)} | {f"exit code {code}": count for code, count in sorted(codes.items())}


def _tested(base: Path, name: str, streams: str, encoding: str) -> int:
    """Run the command and check its exit code, what it printed and what it trained. Returns the exit code."""
    for path in ("new", "run", "made"):
        shutil.rmtree(base / path, ignore_errors=True)
    shutil.copytree(base / "template", base / "run")
    where = f"{name} {streams} ({encoding})"
    code, text = _run(base, (*NNX, *COMMANDS[name]), streams, encoding)
    _check_output(where, text)
    check(code in _expected(name, streams), f"{where}: exit code {code}: {text[-300:]}")
    if name.startswith("train") and "--help" not in name:
        out = base / ("run" if "--resume" in name else "new")
        check((out / "summary.json").is_file(), f"{where}: the training did not reach its end: {text[-300:]}")
        epochs = checkpoint.read(out / "last.pt").record["epoch"] if (out / "last.pt").is_file() else 0
        check(epochs == (3 if "--resume" in name else 2), f"{where}: {epochs} epochs")
        check(bool(json.loads((out / "summary.json").read_text())), f"{where}: no summary")
    return code


def _run(base: Path, words: tuple[str, ...], streams: str, encoding: str) -> tuple[int, str]:
    """Run a command with these streams. Returns its exit code and what was printed where it can be read."""
    opened = "exec 3> printed" if ">&3" in streams else "exec > printed 2>&1"
    process = subprocess.Popen(
        ["bash", "-c", f'{opened}; "$@" {streams}; exit ${{PIPESTATUS[0]}}', "bash", *words],
        cwd=base,
        env={**os.environ, "PYTHONIOENCODING": encoding, "NNX_CACHE_DIR": str(base / "cache")},
        stdin=(base / "größe.csv").open("rb"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        rest, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"{words[4:]} {streams}: did not end within {LIMIT} s") from None
    return process.returncode, ((base / "printed").read_bytes() + rest).decode("utf-8", "replace")


def _check_output(where: str, text: str) -> None:
    for word in ("Traceback", "a bug in nnx", "Exception ignored", "BrokenPipeError", "UnicodeEncodeError"):
        check(word not in text, f"{where}: {text[-500:]}")


def _control(base: Path) -> None:
    """Python itself fails the same checks."""
    careless = (sys.executable, "-c", "print('日本' * 100_000)")
    for streams, encoding in (("| true", "utf-8"), ("> /dev/full", "utf-8"), ("| cat", "ascii")):
        code, text = _run(base, careless, streams, encoding)
        try:
            _check_output("the control", text)
        except AssertionError:
            continue
        raise AssertionError(f"the control: python survived {streams} ({encoding}) with {code}")


def _expected(name: str, streams: str) -> tuple[int, ...]:
    """The documented exit codes. How much of a result a reader takes before it leaves depends on the buffers."""
    if name.startswith("no such"):
        return (2,)
    success = 2 if name == "predict -" and "<&-" in streams else 0  # nothing to read is a wrong input
    if success:
        return (success,)
    if ">&-" in streams.replace("2>&-", ""):
        return (141,)
    if streams.startswith("> /dev/full"):
        return (3,)
    return (0, 141) if "|" in streams else (0,)


def _prepare(base: Path) -> None:
    """A table whose names and classes few encodings have, and a run."""
    generator = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{CLASSES[n % 3]}\n" for n, (a, b) in enumerate(generator.random((120, 2)))]
    (base / "größe.csv").write_text("größe,π,class\n" + "".join(rows), encoding="utf-8")
    config = "dataset: {name: table, path: größe.csv, target: class}\nmodel: mlp\n"
    (base / "own.yaml").write_text(config, encoding="utf-8")
    done = subprocess.run(
        [*NNX, "train", "own.yaml", *SETTINGS, "--out", "template", "-q"], cwd=base, capture_output=True, text=True
    )
    check(done.returncode == 0, f"the run to start from failed: {done.stderr}")
