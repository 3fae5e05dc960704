"""nnx verify RUN"""

from pathlib import Path
from typing import Annotated

import typer

from nnx.cli._options import DataDir, Device, Json, print_json
from nnx.cli._start import import_torch
from nnx.errors import CheckFailed
from nnx.system import signals


def verify(
    run: Annotated[Path, typer.Argument(help="A run folder, or a state in it (last.pt).", show_default=False)],
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, help="How many of the first steps to train again.", show_default="all recorded: 100"
        ),
    ] = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Train the first steps of a run again and compare their losses: bitwise equal, or the first step that differs
    (exit code 5)."""
    import_torch()
    from dataclasses import asdict

    from nnx.run.verify import verify as verified

    with signals.catch_signals() as signal:
        found = verified(run, steps=steps, device=device, data_dir=data_dir, signal=signal)
    changed = f"changed since then: {found.changed}" if found.changed else "config, data and environment are the same"
    if json:
        print_json(asdict(found) | {"run": str(found.run), "bitwise_equal": found.difference is None})
    elif found.difference is None:
        print(f"{run}: bitwise equal: the losses of the first {found.steps} steps; {changed}")  # noqa: T201
    if it := found.difference:
        apart = abs(it.now - it.recorded) / max(abs(it.recorded), 1e-30)
        what = f"step {it.step} is the first that differs: loss {it.recorded:.9g} recorded, {it.now:.9g} now, {apart:.1g} of it apart"
        raise CheckFailed(f"{run}: {what}; {changed}")
