"""How torch's threads wait for each other: spinning while cores are free, sleeping while other processes need them.

After each parallel operation, GNU OpenMP's threads spin for some ms before they sleep. On a free core that is the
fastest: the next operation finds them awake. Beside another busy process, a spinning thread holds the core that the
working thread needs. How long they spin is fixed when the library is loaded, with one exception: while a process has
more OpenMP threads than CPUs, they spin for about 1 us only (GOMP_SPINCOUNT in the manual of libgomp). So a second
thread of Python with OpenMP threads of its own, which does nothing, shortens the waiting of all.

oneDNN's convolutions wait in loops of their own, which never sleep: beside another process, each such wait lasts until
the scheduler's next tick, up to 4 ms. A thread on each CPU that wakes every ms makes the scheduler look earlier.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import torch

INTERVAL = 0.1  # seconds between two looks
# Seconds that threads waited for a core, per second, from which on they sleep. On two cores: at most 0.24 in any
# interval without another process, at least 0.9 spinning and 0.35 sleeping beside one (MLP and CNN, 40 intervals each)
CONTENDED = 0.25
BUSY = 2  # intervals with contention before they sleep: one alone is often a moment of another process
CALM = 5  # intervals without contention before they spin again
TICK = 0.001  # seconds. mnist_cnn_fast beside a busy process: 1.6 to 1.7 times as fast; an MLP: 5 % slower
TICKING = 16  # CPUs at most: each tick needs the lock of Python's interpreter
_PARALLEL = 1 << 20  # elements of an operation that torch divides among all threads


class Sharing:
    """While on, this process spins briefly and gives its cores up often. The threads for that compute nothing."""

    def __init__(self) -> None:
        self._end: threading.Event | None = None
        self.ticking: list[threading.Thread] = []

    def switch(self, on: bool) -> None:
        """Start or end the extra threads."""
        if on and self._end is None:
            self._end = threading.Event()
            _start(_hold_threads, self._end)
            self.ticking = [_start(_tick, self._end, cpu) for cpu in _cpus()]
        elif not on and self._end is not None:
            self._end.set()
            self._end = None


def adapt_waiting() -> None:
    """Watch, until the process ends, whether this process's threads wait for a core, and let them sleep or spin.

    Does nothing where Linux's schedstat can't be read.
    """
    if seconds_without_core() is not None:
        _start(_watch)


def seconds_without_core(without: Sequence[threading.Thread] = ()) -> float | None:
    """The seconds for which this process's threads were ready to run, but another thread had their core, in total. None
    where the system does not tell. Leaves out the threads of `without`."""
    left_out = {str(thread.native_id) for thread in without}
    try:
        return sum(_seconds_of_thread(thread) for thread in os.listdir("/proc/self/task") if thread not in left_out)
    except OSError:
        return None


def _seconds_of_thread(thread: str) -> float:
    """See "schedstat" in https://docs.kernel.org/scheduler/sched-stats.html."""
    with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e9


def _watch() -> None:
    sharing = Sharing()
    busy = calm = 0
    before, begun = seconds_without_core() or 0.0, time.perf_counter()
    while True:
        time.sleep(INTERVAL)
        now = seconds_without_core(sharing.ticking)
        if now is None:  # a thread ended while it was read
            continue
        ended = time.perf_counter()
        contended = now - before > CONTENDED * (ended - begun)
        before, begun = now, ended
        busy, calm = (busy + 1, 0) if contended else (0, calm + 1)
        if busy >= BUSY or calm >= CALM:
            sharing.switch(contended)


def _hold_threads(end: threading.Event) -> None:
    """Have OpenMP threads of this thread's own until `end` is set."""
    torch.ones(_PARALLEL).add_(1)
    end.wait()


def _cpus() -> list[int]:
    """The CPUs to tick on. None where there are many: then few steps wait for one core."""
    if sys.platform != "linux":
        return []
    cpus = sorted(os.sched_getaffinity(0))
    return cpus if len(cpus) <= TICKING else []


def _tick(end: threading.Event, cpu: int) -> None:
    """Wake on one CPU every TICK until `end` is set."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {cpu})  # of this thread
    while not end.is_set():
        time.sleep(TICK)


def _start(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True, name="nnx waiting")
    thread.start()
    return thread
