"""nnx predict CHECKPOINT PATH..."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from nnx.cli._options import CheckpointPath, Device, Json, Quiet, print_json
from nnx.cli._start import import_torch
from nnx.errors import InputError
from nnx.system import signals


class Prepare(StrEnum):
    """What is done to images before the network is asked."""

    auto = "auto"
    none = "none"


def predict(
    checkpoint: CheckpointPath,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Image files, folders of them, .npy or .npz arrays, tables, or - for standard input.",
            show_default=False,
        ),
    ],
    top: Annotated[
        int, typer.Option("--top", min=1, metavar="K", help="How many classes to name for each, most probable first.")
    ] = 3,
    prepare: Annotated[
        Prepare,
        typer.Option(
            "--prepare",
            help="auto makes an image look like those of the training, and says how; none takes it as it is.",
        ),
    ] = Prepare.auto,
    device: Device = None,
    json: Json = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print a line of CSV for each: input,label,probability,label_2,...")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Say what is on images (PNG, JPEG, BMP, WebP, TIFF), or of which class the rows of a table or an array are.

    For instance: nnx predict runs/digits/checkpoint.pt seven.png photographs/
    """
    if json and csv:
        raise InputError("--json and --csv: give one of them")
    import_torch()
    from nnx.inference.classifier import load_with_runtime, predict_batches
    from nnx.inference.inputs import InputSet
    from nnx.system import device as devices
    from nnx.terminal import console
    from nnx.terminal import predictions as prediction_view

    with signals.catch_signals(), signals.exit_on_signal("stopped before all was said"):
        classifier, chosen = load_with_runtime(checkpoint, device)
        asked = InputSet(paths, classifier.spec, auto=prepare is Prepare.auto)
        with devices.explain_out_of_memory("Name fewer at a time"), console.counting("asking", quiet=quiet) as progress:
            predictions = list(predict_batches(classifier, asked.batches(progress), chosen, top=top))
    if not quiet:
        console.print_choices(choice for choice in chosen.choices if choice.what == "device")
        console.print_notes([*asked.notes, *prediction_view.preparation(predictions)])
    if json:
        print_json({"predictions": predictions})
    elif csv:
        sys.stdout.write(prediction_view.as_csv(predictions))
    else:
        console.print_table(prediction_view.as_table(predictions))
