"""nnx verify RUN: is the training reproducible to the bit?"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nnx.cli._options import DataDir, Device, Json, print_json
from nnx.cli._start import import_torch
from nnx.errors import CheckFailed, printable
from nnx.formatting import print_wrapped
from nnx.system import signals


def verify(
    run: Annotated[Path, typer.Argument(help="A run folder, or a state in it (last.pt).", show_default=False)],
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", min=1, help="Number of steps to train again.", show_default="all recorded: 100"
        ),
    ] = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Train a run's first steps again and compare the losses.

    Prints that they are bitwise equal, or the first step that differs (exit
    code 5).
    """
    import_torch()
    from dataclasses import asdict

    from nnx.run.verify import verify as verify_run

    with signals.catch_signals() as signal:
        result = verify_run(run, steps=steps, device=device, data_dir=data_dir, signal=signal)
    changes = f"changed since then: {result.changed}" if result.changed else "config, data and environment are the same"
    if json:
        print_json(asdict(result) | {"run": str(result.run), "bitwise_equal": result.difference is None})
    elif result.difference is None:
        verdict = f"the losses of the first {result.steps} steps are bitwise equal"
        print_wrapped(f"{printable(str(run))}: {verdict}; {changes}", sys.stdout)
    if difference := result.difference:
        relative = abs(difference.now - difference.recorded) / max(abs(difference.recorded), 1e-30)
        raise CheckFailed(
            f"{run}: the losses first differ at step {difference.step}: {difference.recorded:.9g} recorded, "
            f"{difference.now:.9g} now (relative difference {relative:.1g}); {changes}"
        )
