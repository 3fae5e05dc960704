"""Measure, on this machine, what changes the time of a step but not its mathematics: layout, threads, kind of step.

Each choice has a key of the config, so that a candidate is a config. The candidates make real steps on real batches, in
turns; the default is replaced by one that is WIN times as fast. The measurements are kept in the data cache, so that
equal runs choose equally, and the choice in the run's config, so that a resumed run computes the same bits.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnx.config import Config
from nnx.datasets import _cache
from nnx.events import Choice
from nnx.system.waiting import seconds_without_core

SECONDS = 2.0  # for all trials of a run
WORTH = 10.0  # a run is tuned if its forecast is this many times SECONDS
SMALL = 1e11  # floating-point operations of a run that is too short on any machine to be worth a forecast
WIN = 1.1  # times as fast as the default
WARM_UP = 2  # steps of each candidate before the first measurement
BUSY = 0.1  # seconds without a core, per second, from which on the machine is too busy to compare numbers of threads
FACTS = {"speeds": dict, "chosen": dict}
_SOURCE = "speed of "  # begins the name of an entry in the cache

Trial = Callable[[], int]
"""Makes one step and returns its number of samples."""


@dataclass(frozen=True)
class Question:
    """One choice: its name in the output, its key in the config, and the values to compare, the default first.

    `names` are the values as they are printed.
    """

    what: str
    key: str
    values: Sequence[Any]
    names: Sequence[str]


@dataclass(frozen=True)
class Workload:
    """What the speed of a step depends on: a name to print, and all facts of machine, versions, network and batch."""

    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Tuned:
    """The config with the choices filled in, and the reason for each of them."""

    config: Config
    choices: Sequence[Choice] = field(default_factory=tuple)

    def reason(self, choice: Choice) -> Choice:
        """`choice`, with the measurement as its reason if there is one."""
        return next((tuned for tuned in self.choices if tuned.what == choice.what), choice)


def tune(
    config: Config,
    questions: Sequence[Question],
    workload: Workload,
    samples: int,
    build: Callable[[Config], Trial],
) -> Tuned:
    """`config` with the fastest value for each of the questions, measured now or, for the same `workload`, earlier.

    `samples` counts those of the whole run. `build` makes the trial of a config; trials may set the number of threads.
    Where the run is too short to gain from it, the config is returned unchanged.
    """
    if not questions or _seconds_of_run(build(config), samples) < WORTH * SECONDS:
        return Tuned(config)
    options = dict(workload.facts) | {q.key: list(q.values) for q in questions}
    key = _cache.CacheKey(f"{_SOURCE}{workload.name}", options, "")
    measured = False

    def measure(writer: _cache.Writer) -> dict[str, Any]:
        nonlocal measured
        measured = True
        return _answer(config, questions, build)

    cached = _cache.load_or_decode("tuning", key, measure, {}, FACTS)
    origin = "measured now" if measured else "measured earlier: nnx list cache"
    chosen = {q.key: cached.facts["chosen"].get(q.key) for q in questions}
    if any(chosen[q.key] not in q.values for q in questions):  # an entry that somebody changed
        return Tuned(config)
    choices = [
        Choice(q.what, q.names[q.values.index(chosen[q.key])], f"{cached.facts['speeds'].get(q.key)}; {origin}")
        for q in questions
    ]
    return Tuned(config.model_copy(update=chosen), choices)


def measurements() -> list[tuple[str, list[str]]]:
    """What is in the cache: the names of the workloads, and their speeds as they are printed."""
    listed = []
    for entry in _cache.entries():
        if entry.source.startswith(_SOURCE):
            speeds = (_cache.read_facts(entry) or {}).get("speeds", {})
            listed.append((entry.source.removeprefix(_SOURCE), [f"{key}: {speeds[key]}" for key in speeds]))
    return listed


def _seconds_of_run(trial: Trial, samples: int) -> float:
    """A forecast of the run's training time, from a few steps."""
    for _ in range(WARM_UP):
        trial()
    return samples * min(_time(trial) for _ in range(3))


def _answer(config: Config, questions: Sequence[Question], build: Callable[[Config], Trial]) -> dict[str, Any]:
    """Answer the questions one after the other, each with the answers so far: the values chosen, and the speeds as they
    are printed."""
    chosen: dict[str, Any] = {}
    speeds: dict[str, str] = {}
    for question in questions:
        candidates = [config.model_copy(update=chosen | {question.key: value}) for value in question.values]
        before, begun = seconds_without_core() or 0.0, time.perf_counter()
        times = race([build(candidate) for candidate in candidates], SECONDS / len(questions))
        waited = ((seconds_without_core() or 0.0) - before) / (time.perf_counter() - begun)
        best = min(range(len(times)), key=times.__getitem__)
        busy = question.key == "threads" and waited > BUSY
        if times[best] * WIN > times[0] or busy:
            best = 0
        chosen[question.key] = question.values[best]
        listed = (f"{name}: {1 / seconds:,.0f}" for name, seconds in zip(question.names, times, strict=True))
        speeds[question.key] = f"samples/s by {', '.join(listed)}{'; other processes used the cores' * busy}"
    return {"speeds": speeds, "chosen": chosen}


def race(trials: Sequence[Trial], seconds: float) -> list[float]:
    """The seconds per sample of each trial: its best step, in turns, A B C A B C ..., for `seconds` in all."""
    until = time.perf_counter() + seconds
    for trial in trials:
        for _ in range(WARM_UP):
            trial()
    best = [_time(trial) for trial in trials]
    while time.perf_counter() < until:
        best = [min(before, _time(trial)) for before, trial in zip(best, trials, strict=True)]
    return best


def _time(trial: Trial) -> float:
    """Seconds per sample of one step."""
    begun = time.perf_counter()
    samples = trial()
    return (time.perf_counter() - begun) / samples
