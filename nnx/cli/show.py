"""nnx show CONFIG"""

import sys
import time
from typing import Annotated

import typer

from nnx.cli._options import DataDir, Device, Json, Quiet, Set, print_json
from nnx.cli._start import import_torch
from nnx.system import signals

SECONDS = 2


def show(
    config: Annotated[
        str, typer.Argument(help="A config file, or a recipe by name (nnx list recipes).", show_default=False)
    ],
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    no_trial: Annotated[bool, typer.Option("--no-trial", help="Train nothing, and forecast nothing.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a config stands for: every setting, the data, the network, what would be chosen, and how long a run
    would take.

    A throw-away copy is trained for 2 s to forecast that. Nothing is written but data that has to be fetched or decoded
    first.
    """
    begun = time.perf_counter()
    with signals.catch_signals(), signals.exit_on_signal("stopped; nothing was written"):
        import_torch()
        from nnx import config as configs
        from nnx import datasets
        from nnx.run.preview import preview_config as find
        from nnx.terminal.preview import print_shown

        def say() -> None:
            if not quiet:
                print(f"training a throw-away copy for {SECONDS} s ...", file=sys.stderr)  # noqa: T201

        resolved = configs.load(config, overrides, {"device": device} if device else None)
        with datasets.silent(quiet):
            shown = find(resolved, data_dir=data_dir, seconds=0 if no_trial else SECONDS, begun=begun, trying=say)
    for warning in shown.warnings:
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
    if json:
        print_json(shown.to_dict())
    else:
        print_shown(shown)
