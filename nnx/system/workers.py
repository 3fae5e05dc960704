"""Map a function over arguments in worker processes. Results come in order, and no process outlives its parent."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, TypeVar

from nnx.errors import MachineError
from nnx.system import platform, signals

Result = TypeVar("Result")


def map_in_processes(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], processes: int
) -> Iterator[Result]:
    """Yield `function(*args)` for all `arguments`, in order, computed by this many `processes`.

    At most 2 * processes + 1 results are computed ahead of the caller. Raises what `function` raises, and MachineError
    if a process is killed.
    """
    spawn = multiprocessing.get_context("spawn")  # not fork: torch's threads are running
    others = set(multiprocessing.active_children())
    pending: deque[Future[Result]] = deque()
    with ExitStack() as stack:
        with _start_processes():  # a signal inside is raised at its end, when the stack owns the pool
            processes = min(processes, platform.MAX_PROCESSES)
            pool = stack.enter_context(ProcessPoolExecutor(processes, spawn, initializer=_start_worker))
        try:
            for args in arguments:
                with _start_processes():
                    pending.append(pool.submit(function, *args))
                if len(pending) > 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException as error:  # including signals: the remaining results are not needed
            for process in {*multiprocessing.active_children()} - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)  # waits, or its system resources would leak and Python would warn
            if isinstance(error, BrokenExecutor | OSError):
                cause = "a worker process was killed or can't be started"
                raise MachineError(f"{cause}; free memory, and run again") from None
            raise


@contextmanager
def _start_processes() -> Iterator[None]:
    """Processes started inside ignore the signals of a terminal, which their parent handles, do not run the user's
    script, and import no module from the current folder: `socket.py` or `struct.py` there would run in each of them."""
    main = sys.modules["__main__"]
    safe_path = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    path = sys.path[:]
    sys.path[:] = [folder for folder in path if folder]  # multiprocessing passes it on
    sys.modules["__main__"] = ModuleType("__main__")  # multiprocessing would run the real one to get its definitions
    # the mask is per thread: one of torch's threads may still receive the signal
    with signals.defer_signals(), platform.blocked_terminal_signals():
        try:
            yield
        finally:
            sys.path[:] = path
            if safe_path is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = safe_path
            sys.modules["__main__"] = main


def _start_worker() -> None:
    """Make this worker process exit when its parent does, and leave the signals of a terminal to that."""
    platform.ignore_terminal_signals()
    if parent := multiprocessing.parent_process():

        def exit_after_parent() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=exit_after_parent, daemon=True).start()
