"""nnx doctor [IMAGE]: check this machine, or how an image is prepared."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nnx.cli._options import Device, Json, check_out, is_run, print_json
from nnx.cli._start import import_torch
from nnx.errors import DataError, InputError, MachineError, printable
from nnx.formatting import print_wrapped, terminal_width
from nnx.system import signals


def doctor(
    image: Annotated[
        str | None,
        typer.Argument(help="Image whose prediction is wrong. Without it, check the machine.", show_default=False),
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(help="Run folder or checkpoint, as with --checkpoint. Also before IMAGE.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="RUN",
            help="Checkpoint to predict with.",
            show_default="the newest runs/*/checkpoint.pt",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            callback=check_out,
            help="Image file to write the steps to (FILE.png).",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Check this machine, or how an image is prepared.

    Without IMAGE: check the installation and the machine, and name a cure for
    each problem.

    With IMAGE: show each step of its preparation and the prediction after it.

    Example: nnx doctor seven.jpg --checkpoint runs/mnist/checkpoint.pt
    """
    if image is None:
        options = {"--checkpoint": checkpoint, "--out": out, "--device": device}
        if misplaced := [name for name, value in options.items() if value]:
            raise InputError(f"{misplaced[0]}: needs an image; name one: nnx doctor seven.png")
        _check_machine(json)
    else:
        if run is not None:
            if checkpoint:
                raise InputError(f"{run}: the checkpoint is named twice; remove it, or --checkpoint")
            if is_run(image):
                image, run = run, image
            checkpoint = Path(run)
        _check_image(image, checkpoint, out, device, json)


def _check_machine(json: bool) -> None:
    """Print the result of each check. Raises MachineError if one of them is an error."""
    try:
        import_torch()
    except Exception as error:  # the checks report its cause
        print_wrapped(f"warning: torch can't be imported: {printable(str(error))}")
    from dataclasses import asdict

    from nnx.doctor.machine import format_checks, is_usable, run_checks
    from nnx.terminal import console

    checks = run_checks()
    if json:
        print_json({"usable": is_usable(checks), "checks": [asdict(check) for check in checks]})
    else:
        ascii_only = not "✓".encode(sys.stdout.encoding or "ascii", "ignore")
        console.print_lines(format_checks(checks, ascii_only=ascii_only, width=terminal_width(sys.stdout)))
    if not is_usable(checks):
        failed = ", ".join(check.name for check in checks if check.state == "error")
        raise MachineError(f"nnx can't run on this machine: {failed}. Follow the advice given with each failed check")


def _check_image(image: str, checkpoint: Path | None, out: Path | None, device: str | None, json: bool) -> None:
    """Print each step of the image's preparation with its prediction, and write them as a picture to `out`."""
    import_torch()
    from nnx import checkpoint as checkpoints
    from nnx.doctor import image as image_check
    from nnx.inference import inputs
    from nnx.inference.classifier import load_with_runtime
    from nnx.terminal import console

    with signals.catch_signals(), signals.exit_on_signal("stopped before the image was checked"):
        path = checkpoints.locate(checkpoint) if checkpoint else image_check.newest_checkpoint()
        classifier, runtime = load_with_runtime(path, device)
        spec = classifier.spec
        if not spec.is_image:
            raise DataError(f"{path}: was trained on rows of numbers, not on images; name another --checkpoint")
        pixels = inputs.decode_image(image, spec)
        stages = image_check.prediction_by_stage(pixels, classifier, runtime)
        if out:
            image_check.write_picture(out, stages, spec)
    if json:
        top = stages[-1].top
        prediction: dict[str, Any] = {"input": image, "checkpoint": str(path), **top[0], "top": top}
        steps = [{"step": stage.text, **stage.top[0], "top": stage.top} for stage in stages]
        print_json({**prediction, "stages": steps})
        return
    if checkpoint is None:
        console.print_notes([f"checkpoint {printable(str(path))}, the newest in runs/"])
    console.print_lines(image_check.draw_stages(stages, spec))
    console.print_table(image_check.stage_table(stages))
    if out:
        console.print_notes([f"wrote {out}"])
