"""nnx check CONFIG...: validate configs."""

import sys
from typing import Annotated

import typer

from nnx.cli._options import Set
from nnx.cli._start import check_memory_limits
from nnx.errors import printable
from nnx.formatting import print_wrapped


def check(
    configs: Annotated[list[str], typer.Argument(help="Config files or recipe names.", show_default=False)],
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
) -> None:
    """Validate configs without training.

    Prints every problem with its place. Reads no data.
    """
    check_memory_limits()
    from nnx import config
    from nnx.errors import ConfigError

    problems = []
    for name in configs:
        try:
            config.load(name, overrides)
            print_wrapped(f"{printable(name)}: ok", sys.stdout)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
