"""What can go wrong, as one tree. The class decides the exit code; the message says where, what, and what to do.

NnxError                 1  our own bug, if nothing below fits
├── InputError           2  the user's input is wrong; raised before anything is written
│   ├── ConfigError      2  a config file, `--set` or a flag: every problem at once, each with its place
│   ├── DataError        2  a dataset or one of its files
│   ├── CheckpointError  2  a checkpoint file
│   └── DeviceError      2  a device or precision that this machine does not have
├── MachineError         3  disk, permission, network, port, memory
├── DivergedError        4  loss or weights became infinite or NaN
├── CheckFailed          5  a check that the user asked for did not hold (`--fail-under`)
└── Stopped        128 + n  signal n arrived; the state is saved
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_LINES = 10  # an error is read, not scrolled through


class NnxError(Exception):
    """Base of all errors that nnx raises on purpose."""

    exit_code = 1


class InputError(NnxError):
    """The user's input is wrong. Raised before anything is written."""

    exit_code = 2


class DataError(InputError):
    """A dataset, or one of its files, is missing or broken."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or does not fit."""


class DeviceError(InputError):
    """The device or precision asked for is not there."""


class MachineError(NnxError):
    """The machine, not the input, is at fault: disk, permission, network, port, memory."""

    exit_code = 3


class DivergedError(NnxError):
    """Training left the finite numbers."""

    exit_code = 4


class CheckFailed(NnxError):
    """A check that the user asked for did not hold."""

    exit_code = 5


class Stopped(NnxError):
    """A signal ended the run; what was reached is saved."""

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


@dataclass(frozen=True)
class Problem:
    """One mistake in a config: the key it concerns, what is wrong, and where that stands."""

    key: str
    message: str
    place: str = ""  # "configs/a.yaml:7:9" or "--set model.hidden=x"
    line: str = ""  # the offending line of the file
    column: int = 0  # 1-based, under which the caret goes

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.place, self.key, self.message) if part))

    def excerpt(self) -> list[str]:
        """The offending line and a caret under its column, or nothing where there is no line to show."""
        if not self.line.strip():
            return []
        start = max(0, self.column - 60)  # a very long line is shown around the column
        shown = printable(self.line[start : start + 100].rstrip())
        return [f"    {shown}", f"    {' ' * (self.column - 1 - start)}^"]


def printable(text: str) -> str:
    """Tabs as a space, and no character that would move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


class ConfigError(InputError):
    """One or more mistakes in a config, in the order of the file."""

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__(self._render())

    @classmethod
    def at(cls, key: str, message: str) -> "ConfigError":
        """A single problem that only knows its key; `Config.locate` adds the place."""
        return cls(Problem(key, message))

    def _render(self) -> str:
        heads = [
            f"error: {problem}" if index else str(problem) for index, problem in enumerate(self.problems)
        ]  # the first one's is the caller's
        if len(heads) > MAX_LINES:
            return "\n".join([*heads[: MAX_LINES - 1], f"... and {len(heads) - MAX_LINES + 1} more"])
        lines: list[str] = []
        for index, problem in enumerate(self.problems):
            excerpt = problem.excerpt()
            left = len(heads) - index - 1  # every later problem keeps at least its one line
            fits = len(lines) + 1 + len(excerpt) + left <= MAX_LINES
            lines += [heads[index], *(excerpt if fits else [])]
        return "\n".join(lines)
