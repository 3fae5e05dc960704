"""Standard streams that never end a command.

A closed stream, or one whose reader has gone, loses output. A character that the encoding of a stream can't show is
replaced.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from nnx.system.platform import BROKEN_PIPE

LOST = 141  # exit code of a command whose result could not be printed: 128 + SIGPIPE, as in a shell
_GONE = (*BROKEN_PIPE, errno.EBADF, errno.EIO)  # no reader, not open for writing, terminal closed

# what stands for marks of nnx where the encoding has none of them; anything else becomes a question mark
_SIMILAR = {
    "×": "x",
    "→": ">",
    "━": "=",
    "─": "-",
    "│": "|",
    "…": ".",
    "√": "v",
    "²": "2",
    "±": "~",
    "≥": ">",
    "·": ".",
}
_REPLACE = "nnx.replace"  # name of the handler of encoding errors
_DEFAULTS = ("strict", "surrogateescape", "backslashreplace")  # Python's own; PYTHONIOENCODING can set another


class _Output(io.TextIOWrapper):
    """A text stream whose writes never raise an OSError. Keeps the first error, and drops what can't be written.

    The file below it is C's: a signal handler that raises in a Python `write`, after the bytes are out and before it
    returns, would leave them in the buffer, and they would be printed twice.
    """

    error: OSError | None = None

    def write(self, text: str, /) -> int:
        if not self.error:
            try:
                return super().write(text)
            except OSError as error:
                self._drop(error)
        return len(text)

    def flush(self) -> None:
        if not self.error:
            try:
                super().flush()
            except OSError as error:
                self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Keep `error`. What is still buffered goes to the null device, or each later flush would fail again."""
        self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def install() -> Callable[[], OSError | None]:
    """Replace stdout and stderr by streams that never raise an OSError, and open what the parent process closed.

    Returns a function that gives the error with which stdout failed, or None if all of it was printed.
    """
    _open_closed()
    codecs.register_error(_REPLACE, _replace)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process exits
    out = sys.stdout = _open_output(1, sys.stdout)
    sys.stderr = sys.__stderr__ = _open_output(2, sys.stderr, line_buffering=True)  # type: ignore[misc]

    def find_error() -> OSError | None:
        sys.stdout.flush()
        return out.error

    return find_error


def is_lost(error: OSError) -> bool:
    """Whether the stream was closed or its reader has gone. Otherwise the machine failed: a full disk."""
    return error.errno in _GONE


def _open_closed() -> None:
    """Open each closed standard descriptor: otherwise the next file opened would get its number, and the output.

    stdin and stderr become the null device. stdout becomes a pipe without a reader, so that child processes notice.
    """
    for number, mode in ((0, os.O_RDONLY), (2, os.O_WRONLY)):
        if not _is_open(number):
            _move(os.open(os.devnull, mode), number)
    if not _is_open(1):
        reader, writer = os.pipe()
        _move(writer, 1)
        if reader != 1:
            os.close(reader)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _move(descriptor: int, number: int) -> None:
    """Give an open descriptor this number, and let child processes inherit it."""
    if descriptor == number:
        os.set_inheritable(number, True)
        return
    os.dup2(descriptor, number)
    os.close(descriptor)


def _open_output(number: int, stream: TextIO | None, *, line_buffering: bool = False) -> _Output:
    """A stream on descriptor `number` with the settings of the stream that it replaces, if that was open."""
    raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 - on Windows, a console takes UTF-8 only from this
    chosen = stream.errors if stream else None
    return _Output(
        io.BufferedWriter(raw),
        encoding=_usable(stream.encoding) if stream else None,
        errors=chosen if chosen and chosen not in _DEFAULTS else _REPLACE,
        line_buffering=line_buffering or raw.isatty(),
        write_through=getattr(stream, "write_through", False),
    )


def _usable(encoding: str) -> str:
    """`encoding`, or UTF-8 for a codec that can't replace characters (PYTHONIOENCODING=idna)."""
    try:
        "→".encode(encoding, _REPLACE)
    except (LookupError, ValueError):
        return "utf-8"
    return encoding


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Replace each character that can't be encoded by one that can. See codecs.register_error."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIMILAR.get(c, "?") for c in error.object[error.start : error.end]), error.end
