"""nnx doctor [IMAGE]"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nnx.cli._options import Device, Json, print_json
from nnx.cli._start import import_torch
from nnx.errors import DataError, InputError, MachineError, printable
from nnx.system import signals


def doctor(
    image: Annotated[
        str | None,
        typer.Argument(help="An image that is taken for another; else the machine is looked at.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The network to ask.", show_default="the newest runs/*/checkpoint.pt"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the same as a picture, FILE.png.", show_default=False)
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Look at this machine and installation; or, with IMAGE, at what is done to it before the network sees it, and how
    its answer moves.

    For instance: nnx doctor seven.jpg --checkpoint runs/mnist/checkpoint.pt
    """
    if image is None:
        if strange := [
            name for name, value in (("--checkpoint", checkpoint), ("--out", out), ("--device", device)) if value
        ]:
            raise InputError(f"{strange[0]}: is about an image; name one: nnx doctor seven.png")
        _machine(json)
    else:
        _image(image, checkpoint, out, device, json)


def _machine(json: bool) -> None:
    try:
        import_torch()
    except Exception as error:  # whatever is wrong with it is what is looked for
        print(f"warning: torch can't be imported: {error}", file=sys.stderr)  # noqa: T201 (to stderr)
    from dataclasses import asdict

    from nnx.doctor.machine import checks, lines, usable
    from nnx.terminal import console

    found = checks()
    if json:
        print_json({"usable": usable(found), "checks": [asdict(check) for check in found]})
    else:
        console.print_lines(lines(found, ascii_only=not "✓".encode(sys.stdout.encoding or "ascii", "ignore")))
    if not usable(found):
        wrong = ", ".join(check.name for check in found if check.state == "error")
        raise MachineError(f"nnx can't be used here: {wrong}. What to do stands beside it")


def _image(image: str, checkpoint: Path | None, out: Path | None, device: str | None, json: bool) -> None:
    import_torch()
    from nnx import checkpoint as checkpoints
    from nnx.doctor import image as image_check
    from nnx.inference import inputs
    from nnx.inference.classifier import load_with_runtime
    from nnx.terminal import console

    with signals.catch_signals(), signals.exit_on_signal("stopped before all was looked at"):
        path = checkpoints.locate(checkpoint) if checkpoint else image_check.newest_checkpoint()
        classifier, chosen = load_with_runtime(path, device)
        spec = classifier.spec
        if not spec.is_image:
            raise DataError(f"{path}: was trained on rows of numbers, not on images; name another --checkpoint")
        pixels = inputs.decode_image(image, spec)
        stages = image_check.prediction_by_stage(pixels, classifier, chosen)
        if out:
            image_check.picture(out, stages, spec)
    if json:
        last: dict[str, Any] = {"input": image, "checkpoint": str(path), **stages[-1].top[0], "top": stages[-1].top}
        print_json({**last, "stages": [{"step": stage.text, **stage.top[0], "top": stage.top} for stage in stages]})
        return
    if checkpoint is None:
        console.print_notes([f"checkpoint {printable(str(path))}, the newest in runs/"])
    console.print_lines(image_check.drawn(stages, spec))
    console.print_table(image_check.table(stages))
    if out:
        console.print_notes([f"written to {out}"])
