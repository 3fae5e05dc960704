"""Work on all cores, in processes of its own: results in order, a few ahead of who takes them, and nobody left
behind."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, TypeVar

from nnx.errors import MachineError
from nnx.system import signals

Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], processes: int
) -> Iterator[Result]:
    """`function(*each)` of all arguments, in order, by so many processes; they are a few ahead of who takes the
    results, and no more.

    Raises what `function` raises, and MachineError where a process is killed.
    """
    spawn = multiprocessing.get_context("spawn")  # not fork: torch's threads run already
    others = set(multiprocessing.active_children())
    ahead: deque[Future[Result]] = deque()
    with ExitStack() as stack:
        with _starting():  # a signal that came inside is heard at its end: by then the pool is in the stack's hands
            pool = stack.enter_context(ProcessPoolExecutor(processes, spawn, initializer=_begin))
        try:
            for each in arguments:
                with _starting():
                    ahead.append(pool.submit(function, *each))
                if len(ahead) > 2 * processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BaseException as error:  # a signal, too: nothing of it is wanted any more
            for process in {*multiprocessing.active_children()} - others:
                process.terminate()
            pool.shutdown(
                cancel_futures=True
            )  # and wait: else what it holds of the system is not given back, and Python warns of it
            if isinstance(error, BrokenExecutor | OSError):
                raise MachineError(
                    "a process that helps was killed, or can't be started; free memory, and run again"
                ) from None
            raise


@contextmanager
def _starting() -> Iterator[None]:
    """Processes that are started inside don't hear what a terminal sends, which their parent answers, and run no script
    of the user's."""
    main, mask = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    sys.modules["__main__"] = ModuleType(
        "__main__"
    )  # multiprocessing would run it for what it defines, and much else with it
    with signals.defer_signals():  # the mask is this thread's: by another one of torch's the signal may still come
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin() -> None:
    """A process that helps does not outlive its parent."""
    if parent := multiprocessing.parent_process():

        def follow() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
