"""Format figures for people, the same way on the terminal and in the report: losses, percentages, sizes, intervals.

Also breaks text between words at the width of a terminal.
"""

import math
import os
import re
import sys
from collections.abc import Callable
from typing import TextIO


def wilson(accuracy: float, samples: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927). Unlike the normal one, it holds near 0 and 1, too."""
    centre = accuracy + z**2 / (2 * samples)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / samples + z**2 / (4 * samples**2))
    return (centre - spread) / (1 + z**2 / samples), (centre + spread) / (1 + z**2 / samples)


def percent(fraction: float) -> str:
    """Two decimals, the resolution of 10,000 test samples: 0.9794 as "97.94 %"."""
    return f"{fraction:.2%}".replace("%", " %")


def loss(value: float) -> str:
    """Four significant digits: 0.12345 as "0.1235"."""
    return f"{value:#.4g}".rstrip(".")


def seconds(duration: float) -> str:
    """A duration in seconds, with tenths below 100 s: "12.3 s"."""
    return f"{duration:.1f} s" if duration < 100 else f"{duration:,.0f} s"


def size(count: float) -> str:
    """A number of bytes with three digits, in a suitable unit: 43,120,000 as "43.1 MB"."""
    for unit, power in (("B", 0), ("kB", 3), ("MB", 6)):
        if count < 10 ** (power + 3):
            return f"{count / 10**power:.3g} {unit}"
    return f"{count / 10**9:,.1f} GB"


def interval(accuracy: float, samples: int) -> str:
    """The interval of `wilson` as text: "95 % interval 97.64 to 98.20 %"."""
    low, high = wilson(accuracy, samples)
    return f"95 % interval {100 * low:.2f} to {percent(high)}"


# ---------------------------------------------------------------- words and lines


def terminal_width(stream: TextIO) -> int | None:
    """The columns of the terminal that `stream` prints on, or of COLUMNS; None if it prints elsewhere."""
    try:
        if not stream.isatty():
            return None
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() else os.get_terminal_size(stream.fileno()).columns
        return width or None  # 0: unknown
    except (OSError, ValueError):  # closed, or no file
        return None


def line_breaks(line: str, width: int) -> list[int]:
    """Where to break a line into pieces of at most `width` columns: the offsets of the words that begin a piece.

    A word longer than that stays whole. The terminal breaks it where it must, and it can still be copied.
    """
    columns: Callable[[str], int] = len
    if not line.isascii():
        from rich.cells import cell_len as columns
    breaks: list[int] = []
    start = 0
    for word in re.finditer(r"\S+", line):
        if line[start : word.start()].strip() and columns(line[start : word.end()]) > width:
            start = word.start()
            breaks.append(start)
    return breaks


def wrap(text: str, width: int) -> list[str]:
    """The lines of `text`, each longer than `width` columns broken between words."""
    lines = []
    for line in text.split("\n"):
        breaks = line_breaks(line, width)
        pieces = zip([0, *breaks], [*breaks, len(line)], strict=True)
        lines += [line[start:end].rstrip() if end < len(line) else line[start:end] for start, end in pieces]
    return lines


def print_wrapped(text: str, stream: TextIO | None = None) -> None:
    """Print `text` on `stream`, by default stderr: on a terminal broken between words at its width."""
    stream = stream or sys.stderr
    width = terminal_width(stream)
    lines = wrap(text, width) if width else [text]
    stream.write("".join(f"{line}\n" for line in lines))
