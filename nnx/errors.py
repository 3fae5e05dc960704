"""All errors of nnx, as one tree. The class sets the exit code; the message says where, what, and what to do.

NnxError                 1  a bug in nnx, unless a class below applies
├── InputError           2  wrong user input; raised before anything is written
│   ├── ConfigError      2  a config file, `--set` or a flag: all problems at once, each with its place
│   ├── DataError        2  a dataset or one of its files
│   ├── CheckpointError  2  a checkpoint file
│   └── DeviceError      2  a device or precision that this machine does not have
├── MachineError         3  disk, permission, network, port, memory
├── DivergedError        4  the loss or the weights became infinite or NaN
├── CheckFailed          5  a requested check failed (`--fail-under`, `nnx verify`)
└── Stopped        128 + n  signal n ended the command; a run has saved its state
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINES = 10  # of an error message: more would scroll past
EXCERPT = 104  # columns of an excerpt, at most


class NnxError(Exception):
    """Base of all errors that nnx raises on purpose."""

    exit_code = 1
    has_lines = False  # whether the message has several lines, each printable; else a newline in it is part of a name


class InputError(NnxError):
    """Wrong user input. Raised before anything is written."""

    exit_code = 2


class DataError(InputError):
    """A dataset, or one of its files, is missing or broken."""


class CheckpointError(InputError):
    """A checkpoint is missing or damaged, or does not fit the config or the data."""


class DeviceError(InputError):
    """This machine does not have the requested device or precision."""


class MachineError(NnxError):
    """A problem of the machine: disk, permission, network, port, memory."""

    exit_code = 3


class DivergedError(NnxError):
    """The loss or the weights became infinite or NaN."""

    exit_code = 4


class CheckFailed(NnxError):
    """A check that the user requested failed."""

    exit_code = 5


class Stopped(NnxError):
    """A signal ended the command. A training run has saved its state."""

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


EXPORTED = {  # ending -> what the file is, and what takes it
    ".onnx": "an exported ONNX file, which only nnx eval, nnx predict and nnx doctor take",
    ".pt2": "an exported program for torch.export.load, which no nnx command takes",
    ".safetensors": "a file of exported weights, which no nnx command takes",
    ".html": "a page for a browser: open it there; no nnx command takes it",
}


def exported_kind(path: "Path") -> str:
    """What a file is that is no checkpoint and no config, by its ending, and what to do; "" if that says nothing."""
    kind = EXPORTED.get(path.suffix.lower())
    return f"is {kind}. Name the checkpoint, or the run folder, that it is from" if kind else ""


@dataclass(frozen=True)
class Problem:
    """One mistake in a config: its key, what is wrong, and its place."""

    key: str
    message: str
    place: str = ""  # "configs/a.yaml:7:9" or "--set model.hidden=x"
    line: str = ""  # the offending line of the file
    column: int = 0  # of the caret, from 1

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.place, self.key, self.message) if part))

    def excerpt(self, width: int = EXCERPT) -> list[str]:
        """The offending line and a caret below its column, cut to `width` columns; empty if it is unknown or blank."""
        if not self.line.strip():
            return []
        room = max(min(width, EXCERPT) - 4, 1)
        start = max(0, min(self.column - room * 6 // 10, len(self.line) - room))  # cut a long line around the column
        # one character for each, so that the caret stays below its column
        text = "".join(c if c.isprintable() else " " for c in self.line[start : start + room].rstrip())
        return [f"    {text}", f"    {' ' * (self.column - 1 - start)}^"]


def printable(text: str) -> str:
    """Escape control characters, which could move the cursor, change colours or forge a line, as in Python: \\x1b, \\n.

    A byte of a file name that is not UTF-8 becomes \\xff. A tab becomes a space.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    if character == "\t":
        return " "
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's form of an undecodable byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class ConfigError(InputError):
    """One or more mistakes in a config, in the order of the file."""

    has_lines = True

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__(self.render())

    @classmethod
    def at(cls, key: str, message: str) -> "ConfigError":
        """A single problem with its key; `Config.locate` adds the place."""
        return cls(Problem(key, message))

    def render(self, width: int | None = None) -> str:
        """The message, with excerpts that fit `width` columns."""
        # the command line adds "error: " to the first line
        heads = [f"error: {problem}" if index else str(problem) for index, problem in enumerate(self.problems)]
        if len(heads) > MAX_LINES:
            return "\n".join([*heads[: MAX_LINES - 1], f"... and {len(heads) - MAX_LINES + 1} more"])
        lines: list[str] = []
        for index, problem in enumerate(self.problems):
            excerpt = problem.excerpt(width or EXCERPT)
            remaining = len(heads) - index - 1  # each later problem needs a line
            fits = len(lines) + 1 + len(excerpt) + remaining <= MAX_LINES
            lines += [heads[index], *(excerpt if fits else [])]
        return "\n".join(lines)
