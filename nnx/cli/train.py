"""nnx train CONFIG"""

from typing import Annotated

import typer

from nnx import signals
from nnx.cli._options import ConfigFile, DataDir, Device, Json, Out, Quiet, Set, print_json
from nnx.cli._start import import_torch


def train(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides every random choice.", show_default=False)] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last.pt in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that --out holds.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network. The best epoch by validation becomes checkpoint.pt; the test set is read once, at the end.

    For instance: nnx train digits_mlp --set train.epochs=5
    """
    import_torch()
    from nnx import config as configs
    from nnx import console
    from nnx.run import run

    flags = {key: str(value) for key, value in {"device": device, "seed": seed}.items() if value is not None}
    resolved = configs.load(config, overrides, flags)
    with signals.noted() as signal:
        summary = console.follow(run(resolved, out=out, force=force, resume=resume, data_dir=data_dir, signal=signal), quiet=quiet)
    if json:
        print_json(summary)
    else:
        console.print_result(summary)
