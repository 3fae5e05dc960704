"""The help of commands, fit for a narrow terminal."""

import inspect
import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from nnx.cli._start import import_help


class _Help:
    """Breaks the text where the terminal's lines end, not where those of the docstring do. Flags have no type."""

    help: str | None

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:
        import_help()
        self.help = _join_lines(self.help or "")
        super().format_help(ctx, formatter)  # type: ignore[misc]


class Commands(_Help, TyperGroup):
    """`nnx` itself."""


class Command(_Help, TyperCommand):
    """One command."""


def _join_lines(text: str) -> str:
    """Each paragraph on one line; what follows a colon at the end of a line is on the next."""
    return re.sub(r"(?<![:\n])\n(?!\n)", " ", inspect.cleandoc(text))
