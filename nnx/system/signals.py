"""Ctrl-C, SIGTERM and SIGHUP: the first is noted, and the work ends where it can be taken up again; the second leaves
at once.

with noted() as signal:                     # around a command
    with at_once("nothing was written"):    # where there is nothing to save, it ends right there
        ...
    if number := signal():                  # elsewhere the work asks, and saves before it ends
        ...
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nnx.errors import Stopped

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_number = 0  # the signal that came, 0 while none has
_message: str | None = None  # what to end with right away, None where the work asks by itself
_held = False


@contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Inside, the first signal is only noted. Gives a function that says which came: 0 while none has.

    A SIGHUP that is ignored stays so: that is what nohup is for.
    """
    global _number

    def note(number: int, frame: FrameType | None) -> None:
        global _number
        _number = number
        for each, handler in before.items():
            signal.signal(each, handler)
        if _message is not None:
            if not _held:
                raise Stopped(_message, signal=number)
            return
        sys.stderr.write("\nstopping after this step; once more to leave at once\n")

    before = {number: signal.getsignal(number) for number in ASKED}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    _number = 0
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: _number
    finally:
        _number = 0
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def exit_on_signal(message: str) -> Iterator[None]:
    """Inside, a signal raises Stopped with `message` wherever the work is. So does one that was noted before, at the
    beginning.

    Whatever the code inside makes of that exception, it is Stopped that comes out.
    """
    global _message
    before, _message = _message, message
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
        _message = before


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside `at_once`, a signal that comes in here raises at its end: for what has to be whole before it can be
    ended."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before
    if _number and not _held and _message is not None:
        raise Stopped(_message, signal=_number)
