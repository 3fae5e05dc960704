"""How torch's threads wait for each other: spinning while cores are free, sleeping while other processes need them.

After each parallel operation, GNU OpenMP's threads spin for some ms before they sleep. On a free core that is the
fastest: the next operation finds them awake. Beside another busy process, a spinning thread holds the core that the
working thread needs. How long they spin is fixed when the library is loaded, with one exception: while a process has
more OpenMP threads than CPUs, they spin for about 1 us only (GOMP_SPINCOUNT in the manual of libgomp). So a second
thread of Python with OpenMP threads of its own, which does nothing, shortens the waiting of all.
"""

import os
import threading
import time

import torch

INTERVAL = 0.1  # seconds between two looks
# Seconds that threads waited for a core, per second, from which on they sleep. On two cores: at most 0.24 in any
# interval without another process, at least 0.9 spinning and 0.35 sleeping beside one (MLP and CNN, 40 intervals each)
CONTENDED = 0.25
CALM = 5  # intervals without contention before they spin again
_PARALLEL = 1 << 20  # elements of an operation that torch divides among all threads


class ShortSpins:
    """While on, this process has more OpenMP threads than CPUs. The extra threads compute nothing."""

    def __init__(self) -> None:
        self._end: threading.Event | None = None

    def __bool__(self) -> bool:
        return self._end is not None

    def switch(self, on: bool) -> None:
        """Start or end the extra threads."""
        if on and self._end is None:
            self._end = threading.Event()
            threading.Thread(target=_hold_threads, args=(self._end,), daemon=True, name="nnx short spins").start()
        elif not on and self._end is not None:
            self._end.set()
            self._end = None


def adapt_waiting() -> None:
    """Watch, until the process ends, whether this process's threads wait for a core, and let them sleep or spin.

    Does nothing where Linux's schedstat can't be read.
    """
    if seconds_without_core() is not None:
        threading.Thread(target=_watch, daemon=True, name="nnx waiting").start()


def seconds_without_core() -> float | None:
    """The seconds for which this process's threads were ready to run, but another thread had their core, in total. None
    where the system does not tell."""
    try:
        threads = os.listdir("/proc/self/task")
        return sum(map(_seconds_of_thread, threads))
    except OSError:
        return None


def _seconds_of_thread(thread: str) -> float:
    """See "schedstat" in https://docs.kernel.org/scheduler/sched-stats.html."""
    with open(f"/proc/self/task/{thread}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9


def _watch() -> None:
    short = ShortSpins()
    calm = 0
    before = seconds_without_core() or 0.0
    while True:
        begun = time.perf_counter()
        time.sleep(INTERVAL)
        now = seconds_without_core()
        if now is None:  # a thread ended while it was read
            continue
        contended = now - before > CONTENDED * (time.perf_counter() - begun)
        before = now
        calm = 0 if contended else calm + 1
        if contended or calm >= CALM:
            short.switch(contended)


def _hold_threads(end: threading.Event) -> None:
    """Have OpenMP threads of this thread's own until `end` is set."""
    torch.ones(_PARALLEL).add_(1)
    end.wait()
