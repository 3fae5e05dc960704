"""Fair measurements: contestants take turns, and ratios are of neighbours in time.

The speed of a shared machine varies within minutes, so a round, in which each contestant has one turn, compares like
with like. A matrix product between the turns shows in which rounds the speed changed.
"""

import json
import math
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

TOLERANCE = 0.1  # if the probes of a round differ by more than this, the machine's speed changed in it
DISCARDED = 1 / 5  # of the rounds, at most
SETTLE = 0.2  # seconds before a probe, for what a contestant leaves running: prefetching workers, spinning threads
PATIENCE = 300.0  # seconds that a contestant has to answer


class Failed(Exception):
    """A contestant or a command failed. The message says which, and why."""


@dataclass(frozen=True)
class Result:
    """The values of one contestant, one for each round that counts. `steady`: no such round had a change of speed."""

    values: list[float]
    discarded: int = 0
    steady: bool = True

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: "Result") -> float:
        """The median of the ratios to the other's value in the same round."""
        return statistics.median(own / its for own, its in zip(self.values, other.values, strict=True))

    def row(self, name: str, **more: Any) -> dict[str, Any]:
        """The result as a row of the tables and of the JSON document."""
        measured = {
            "spread": [min(self.values), max(self.values)],
            "n": len(self.values),
            "discarded": self.discarded,
            "steady": self.steady,
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


@dataclass(frozen=True)
class Round:
    """One turn of each contestant, and the probes before, between and after the turns."""

    values: dict[str, float]
    probes: list[float]

    @property
    def change(self) -> float:
        """How much faster the fastest probe was than the slowest: 0.1 is 10 %."""
        return max(self.probes) / min(self.probes) - 1


def race(runners: Mapping[str, Callable[[], float]], probe: Probe, *, rounds: int) -> dict[str, Result]:
    """Call the runners in turn, A B C A B C ..., for `rounds` rounds and a fifth more.

    Of the rounds in which the probes differ by more than TOLERANCE, those with the largest difference are discarded,
    down to `rounds`.
    """
    probe()  # the first one is slow
    after = probe()
    taken = []
    for _ in range(math.ceil(rounds / (1 - DISCARDED)) if rounds > 1 else 1):
        turn = Round({}, [after])
        for name, run in runners.items():
            turn.values[name] = run()
            time.sleep(SETTLE)
            after = probe()
            turn.probes.append(after)
        taken.append(turn)
    kept = _steady(taken)
    steady = all(turn.change <= TOLERANCE for turn in kept)
    return {name: Result([turn.values[name] for turn in kept], len(taken) - len(kept), steady) for name in runners}


def _steady(taken: Sequence[Round]) -> list[Round]:
    """The rounds that count, in their order."""
    changing = sorted((turn for turn in taken if turn.change > TOLERANCE), key=lambda turn: turn.change)
    most = int(len(taken) * DISCARDED)
    dropped = changing[-most:] if most else []
    return [turn for turn in taken if turn not in dropped]


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
