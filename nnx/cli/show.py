"""nnx show CONFIG: preview a config."""

import time
from typing import Annotated

import typer

from nnx.cli._options import DataDir, Device, Json, Quiet, Set, print_json
from nnx.cli._start import import_torch
from nnx.errors import printable
from nnx.formatting import print_wrapped
from nnx.system import signals

SECONDS = 2


def show(
    config: Annotated[
        str, typer.Argument(help="A config file or a recipe name (nnx list recipes).", show_default=False)
    ],
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    no_trial: Annotated[bool, typer.Option("--no-trial", help="Train nothing and estimate no run time.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Preview a config and estimate its run time.

    Prints every setting, the data, the layers and the automatic choices.
    Trains a temporary copy for 2 s to estimate the run time. Writes nothing but
    data that must be downloaded or decoded.
    """
    begun = time.perf_counter()
    with signals.catch_signals(), signals.exit_on_signal("stopped; nothing was written"):
        import_torch()
        from nnx import config as configs
        from nnx import datasets
        from nnx.run.preview import preview_config
        from nnx.terminal.preview import print_preview

        def announce_trial() -> None:
            if not quiet:
                print_wrapped(f"training a temporary copy for {SECONDS} s ...")

        resolved = configs.load(config, overrides, {"device": device} if device else None)
        seconds = 0 if no_trial else SECONDS
        with datasets.silent(quiet):
            preview = preview_config(resolved, data_dir=data_dir, seconds=seconds, begun=begun, trying=announce_trial)
    for warning in preview.warnings:
        print_wrapped(f"warning: {printable(warning)}")
    if json:
        print_json(preview.to_dict())
    else:
        print_preview(preview)
