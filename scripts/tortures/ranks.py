"""Two processes train as one, and either is killed at any moment: the other ends too, and what is saved goes on to the
same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nnx import checkpoint
from tortures._child import check, folder

LIMIT = 30  # seconds in which all processes have to be gone
SETTINGS = (
    "train.epochs=12",
    "train.save_every=10",
    "train.ema=0.9",
    "model={name: mlp, hidden: [32], norm: batch}",
    "threads=1",
)
TRAIN = ("train", "digits_mlp", *(word for setting in SETTINGS for word in ("--set", setting)))
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torture(share: float, seed: int) -> dict[str, Any]:
    """20 moments, from when the processes are there until a little after they would have ended."""
    rng = random.Random(seed)
    slowest, unsaved, late, times = 0.0, 0, 0, max(round(20 * share), 2)
    with folder() as base:
        begun = time.perf_counter()
        expected = _finished(_started("nnx", *TRAIN, "--nproc", "2", "--out", base / "whole"))
        whole = time.perf_counter() - begun
        for number in range(times):
            out = base / str(number)
            process = _started("nnx", *TRAIN, "--nproc", "2", "--out", out)
            there = _ranks(process)
            time.sleep(rng.uniform(0, whole * 0.7))  # the rest of it is before there are ranks
            seconds = _killed(process, there, rng.choice(there))
            slowest = max(slowest, seconds or 0)
            if seconds is None:
                late += 1
            elif (out / "last.pt").exists():
                checkpoint.read(out / "last.pt")
                check(
                    _finished(_started("nnx", "train", "--nproc", "2", "--resume", out)) == expected,
                    f"moment {number}: another network",
                )
            else:
                unsaved += 1
                check(
                    _finished(_started("nnx", *TRAIN, "--nproc", "2", "--out", out, "--force")) == expected,
                    f"moment {number}: not begun anew",
                )
        out = base / "restarted"
        process = _started(*TORCHRUN, "--max-restarts", "1", "-m", "nnx", *TRAIN, "--out", out)
        there = _ranks(process)
        while not (out / "last.pt").exists():
            time.sleep(0.01)
        os.kill(rng.choice(there), signal.SIGKILL)
        check(_finished(process) == expected, "torchrun's restart came to another network")
    return {
        "moments": times,
        "before the first save": unsaved,
        "after the end": late,
        "slowest end, s": round(slowest, 1),
        "restarts": 1,
    }


def _started(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *map(str, words), "--json", "-q"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _ranks(process: "subprocess.Popen[str]") -> list[int]:
    """The process ids of both ranks, as soon as they are there."""
    found: list[str] = []
    while len(found) < 2:
        if process.poll() is not None:
            raise AssertionError(f"ended before it began: {process.communicate()[1]}")
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        time.sleep(0.01)
    return [int(pid) for pid in found]


def _killed(process: "subprocess.Popen[str]", there: list[int], rank: int) -> float | None:
    """Kill one of the ranks. The seconds until all processes were gone; None where they had ended before."""
    begun = time.perf_counter()
    try:
        os.kill(rank, signal.SIGKILL)
    except ProcessLookupError:
        process.communicate(timeout=LIMIT)
        return None
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for pid in (*there, process.pid):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"processes were left {LIMIT} s after one was killed") from None
    check(not any(Path(f"/proc/{pid}").exists() for pid in there), "a rank outlived the others")
    check("frame #" not in said and "Traceback" not in said, f"a stack was shown: {said}")
    check(
        (process.returncode == 3 and "SIGKILL" in said) or process.returncode == 0,
        f"exit code {process.returncode}: {said}",
    )
    return time.perf_counter() - begun if process.returncode else None


def _finished(process: "subprocess.Popen[str]") -> tuple[float, bytes]:
    """Accuracy on the test set, and the checkpoint, of a run that is waited for."""
    out, said = process.communicate(timeout=300)
    check(process.returncode == 0, f"exit code {process.returncode}: {said}")
    summary = json.loads(out)
    return summary["test_accuracy"], Path(summary["checkpoint"]).read_bytes()
