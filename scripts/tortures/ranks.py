"""SIGKILL of one of two processes that train as one: the other ends too, and the run resumes to the same bytes."""

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

LIMIT = 30  # seconds in which all processes must end
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
    """20 random moments, from the start of both processes until shortly after their end."""
    rng = random.Random(seed)
    slowest, unsaved, late, times = 0.0, 0, 0, max(round(20 * share), 2)
    with folder() as base:
        begun = time.perf_counter()
        expected = _finished(_started("nnx", *TRAIN, "--nproc", "2", "--out", base / "whole"))
        whole = time.perf_counter() - begun
        for number in range(times):
            out = base / str(number)
            process = _started("nnx", *TRAIN, "--nproc", "2", "--out", out)
            pids = _ranks(process)
            time.sleep(rng.uniform(0, whole * 0.7))  # the other 30 % pass before the ranks start
            seconds = _killed(process, pids, rng.choice(pids))
            slowest = max(slowest, seconds or 0)
            if seconds is None:
                late += 1
            elif (out / "last.pt").exists():
                checkpoint.read(out / "last.pt")
                check(
                    _finished(_started("nnx", "train", "--nproc", "2", "--resume", out)) == expected,
                    f"moment {number}: the resumed network differs",
                )
            else:
                unsaved += 1
                check(
                    _finished(_started("nnx", *TRAIN, "--nproc", "2", "--out", out, "--force")) == expected,
                    f"moment {number}: the run that started again differs",
                )
        out = base / "restarted"
        process = _started(*TORCHRUN, "--max-restarts", "1", "-m", "nnx", *TRAIN, "--out", out)
        pids = _ranks(process)
        while not (out / "last.pt").exists():
            time.sleep(0.01)
        os.kill(rng.choice(pids), signal.SIGKILL)
        check(_finished(process) == expected, "the network differs after torchrun's restart")
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
    """The process IDs of both ranks, once both have started."""
    children: list[str] = []
    while len(children) < 2:
        if process.poll() is not None:
            raise AssertionError(f"ended before the ranks started: {process.communicate()[1]}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        time.sleep(0.01)
    return [int(pid) for pid in children]


def _killed(process: "subprocess.Popen[str]", pids: list[int], rank: int) -> float | None:
    """Kill one of the ranks. Returns the seconds until all processes had ended, or None if they had ended before."""
    begun = time.perf_counter()
    try:
        os.kill(rank, signal.SIGKILL)
    except ProcessLookupError:
        process.communicate(timeout=LIMIT)
        return None
    try:
        _, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for pid in (*pids, process.pid):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"processes still ran {LIMIT} s after one was killed") from None
    check(not any(Path(f"/proc/{pid}").exists() for pid in pids), "a rank still runs")
    check("frame #" not in errors and "Traceback" not in errors, f"a stack trace was printed: {errors}")
    check(
        (process.returncode == 3 and "SIGKILL" in errors) or process.returncode == 0,
        f"exit code {process.returncode}: {errors}",
    )
    return time.perf_counter() - begun if process.returncode else None


def _finished(process: "subprocess.Popen[str]") -> tuple[float, bytes]:
    """Wait for a run. Returns its test accuracy and its checkpoint."""
    out, errors = process.communicate(timeout=300)
    check(process.returncode == 0, f"exit code {process.returncode}: {errors}")
    summary = json.loads(out)
    return summary["test_accuracy"], Path(summary["checkpoint"]).read_bytes()
