"""Handle Ctrl-C, SIGTERM and SIGHUP (on Windows: SIGBREAK).

The first signal stops the work once it is saved, the second stops it immediately.

with catch_signals() as signal:                   # around a command
    with exit_on_signal("nothing was written"):   # nothing to save: a signal ends the work immediately
        ...
    if number := signal():                        # elsewhere the work polls, and saves before it ends
        ...
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nnx.errors import Stopped
from nnx.system.platform import STOPPING

_number = 0  # the signal received, 0 if none was
_message: str | None = None  # inside exit_on_signal: the message of Stopped
_deferred = False  # inside defer_signals


@contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Inside, the first signal is only recorded. Yields a function that returns its number, 0 if there was none.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored, except Ctrl-C and SIGTERM.
    """
    global _number

    def record(number: int, frame: FrameType | None) -> None:
        global _number
        _number = number
        for handled, handler in previous.items():
            # a second Ctrl-C cleans up, unlike the one of nnx.__main__
            cleans_up = handled == signal.SIGINT and callable(handler)
            signal.signal(handled, signal.default_int_handler if cleans_up else handler)
        if _message is not None:
            if not _deferred:
                raise Stopped(_message, signal=number)
            return
        sys.stderr.write("\nstopping after this step; signal again to exit immediately\n")

    previous = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING[2:]:
        if previous[number] is signal.SIG_IGN:
            del previous[number]
    _number = 0
    for number in previous:
        signal.signal(number, record)
    try:
        yield lambda: _number
    finally:
        _number = 0
        for handled, handler in previous.items():
            signal.signal(handled, handler)


@contextmanager
def exit_on_signal(message: str) -> Iterator[None]:
    """Inside, a signal raises Stopped with `message` immediately. A signal recorded earlier raises it on entry.

    The block raises Stopped even if the code inside catches or replaces that exception.
    """
    global _message
    previous, _message = _message, message
    try:
        if _number:
            raise Stopped(message, signal=_number)
        yield
        if _number:
            raise Stopped(message, signal=_number)
    except Exception:
        if _number:
            raise Stopped(message, signal=_number) from None
        raise
    finally:
        _message = previous


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside `exit_on_signal`, delay Stopped to the end of this block, for work that must not be interrupted."""
    global _deferred
    previous, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = previous
    if _number and not _deferred and _message is not None:
        raise Stopped(_message, signal=_number)
