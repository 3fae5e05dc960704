"""Fair measurements: contestants take turns, and a matrix product between them shows whether the machine was quiet."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

TOLERANCE = 0.1  # if a probe is slower than the best one by more than this, something else was running
SETTLE = 0.2  # seconds before a probe, for what a contestant leaves running: prefetching workers, spinning threads
PATIENCE = 300.0  # seconds that a contestant has to answer


class Failed(Exception):
    """A contestant or a command failed. The message says which, and why."""


@dataclass(frozen=True)
class Result:
    """The values of one contestant: those measured while the machine was quiet or, if it never was, the half with the
    best probes."""

    values: list[float]
    discarded: int = 0
    quiet: bool = True

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def row(self, name: str, **more: Any) -> dict[str, Any]:
        """The result as a row of the tables and of the JSON document."""
        measured = {
            "spread": [min(self.values), max(self.values)],
            "n": len(self.values),
            "discarded": self.discarded,
            "quiet": self.quiet,
        }
        return {"name": name, "value": self.median, **more, **measured}


class Probe:
    """A fixed matrix product. A call returns its rate in GFLOP/s; `best` is the highest so far, taken as the machine's
    peak."""

    TIMES = 8

    def __init__(self, device: str = "cpu") -> None:
        self.best = 0.0
        self._device, self._size = device, 1024 if device == "cpu" else 8192

    @cached_property
    def _matrices(self) -> list[Any]:
        import torch

        return [torch.randn(self._size, self._size, device=self._device) for _ in range(3)]

    def __call__(self) -> float:
        """The rate in GFLOP/s. Takes about a tenth of a second."""
        import torch

        left, right, out = self._matrices
        begun = time.perf_counter()
        for _ in range(self.TIMES):
            torch.mm(left, right, out=out)
        out[0, 0].item()  # waits for a GPU
        rate = self.TIMES * 2 * self._size**3 / (time.perf_counter() - begun) / 1e9
        self.best = max(self.best, rate)
        return rate


def race(runners: Mapping[str, Callable[[], float]], probe: Probe, *, rounds: int) -> dict[str, Result]:
    """Call the runners in turn, A B C A B C ..., until each has `rounds` quiet values, or has had twice as many turns.

    A value counts if the probes right before and after it were within TOLERANCE of the best probe of all.
    """
    # for each value: the slower one of the probes around it, and the value
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    probe()  # the first one is slow
    after = probe()
    for _ in range(2 * rounds):
        for name, run in runners.items():
            if len(_quiet(taken[name], probe.best)) < rounds:
                before, value = after, run()
                time.sleep(SETTLE)
                after = probe()
                taken[name].append((min(before, after), value))
    return {name: _result(pairs, probe.best) for name, pairs in taken.items()}


def _quiet(taken: Sequence[tuple[float, float]], best: float) -> list[float]:
    return [value for slower_probe, value in taken if slower_probe >= (1 - TOLERANCE) * best]


def _result(taken: Sequence[tuple[float, float]], best: float) -> Result:
    quiet = _quiet(taken, best)
    kept = quiet or [value for _, value in sorted(taken, reverse=True)[: (len(taken) + 1) // 2]]
    return Result(kept, len(taken) - len(kept), bool(quiet))


@dataclass(frozen=True)
class Contestant:
    """How to start a contestant. See contestant.py for the protocol."""

    command: Sequence[str]
    environment: Mapping[str, str]


class Child:
    """A running contestant. It is idle unless it is asked to train."""

    def __init__(self, contestant: Contestant) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `__exit__`
        environment = {**os.environ, **contestant.environment}
        self._process = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ready(self) -> dict[str, Any]:
        """Wait until it has warmed up. Returns the facts that it reports about itself. Raises Failed."""
        facts: dict[str, Any] = self._answer()["ready"]
        return facts

    def train(self, samples: int) -> float:
        """Let it train on that many samples. Returns samples per second. Raises Failed."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended, so there is no answer either; stderr says why
            self._process.stdin.write(f"{samples}\n")
            self._process.stdin.flush()
        answer = self._answer()
        rate: float = answer["samples"] / answer["seconds"]
        return rate

    def _answer(self) -> dict[str, Any]:
        """The next line of the protocol. Some tools print other lines to stdout."""
        assert self._process.stdout
        alarm = threading.Timer(PATIENCE, self._process.kill)
        alarm.start()
        try:
            for line in self._process.stdout:
                if line.startswith('{"'):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        finally:
            alarm.cancel()
        self._errors.seek(0)
        raise Failed(
            (self._errors.read().strip().splitlines() or ["it ended or did not answer, without a message"])[-1]
        )


@dataclass(frozen=True)
class Ended:
    """A finished command: its output, its seconds, the seconds from its last output to its end, peak memory in MB."""

    output: str
    seconds: float
    leaving: float
    megabytes: float


def run(command: Sequence[str], **environment: str) -> Ended:
    """Run `command` to its end. The environment variable BEGUN is its start time. Raises Failed."""
    begun = last = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        full = {**os.environ, "BEGUN": str(time.time()), **environment}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=full)
        assert process.stdout
        output = b""
        while data := os.read(process.stdout.fileno(), 2**16):
            output, last = output + data, time.perf_counter()
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.perf_counter()
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            errors.seek(0)
            raise Failed(f"{' '.join(command)}: {(errors.read().strip().splitlines() or ['no message'])[-1]}")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS reports bytes, other systems kB
    return Ended(output.decode(), ended - begun, ended - last, usage.ru_maxrss / unit)
