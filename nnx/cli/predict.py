"""nnx predict CHECKPOINT PATH...: classify images, arrays and table rows."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from nnx.cli._options import ClassifierPath, Device, Json, Quiet, check_order, print_json
from nnx.cli._start import import_torch
from nnx.errors import InputError
from nnx.system import signals


class Prepare(StrEnum):
    """Preparation of images before the network sees them."""

    auto = "auto"
    none = "none"


def predict(
    checkpoint: ClassifierPath,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, folders of images, .npy or .npz arrays, tables, or - for standard input.",
            show_default=False,
        ),
    ],
    top: Annotated[
        int, typer.Option("--top", min=1, metavar="K", help="Number of classes per input, most probable first.")
    ] = 3,
    prepare: Annotated[
        Prepare,
        typer.Option(
            "--prepare",
            help="auto makes each image look like the training images and prints how; none changes nothing.",
        ),
    ] = Prepare.auto,
    device: Device = None,
    json: Json = False,
    csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV, one line per input: input, label, probability, label_2 and so on. A text that starts with "
            "=, +, - or @ gets a leading apostrophe, as a spreadsheet would run it as a formula.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Classify images, or the rows of a table or an array.

    Reads PNG, JPEG, GIF, BMP, WebP, TIFF, AVIF and PPM images.

    Example: nnx predict runs/digits/checkpoint.pt seven.png photographs/
    """
    if json and csv:
        raise InputError("--json and --csv: use only one of them")
    check_order(checkpoint, paths, "predict")
    for flag, ending in (("--json", ".json"), ("--csv", ".csv")):
        for name in paths if flag in sys.argv else ():
            if name.endswith(ending) and not os.path.exists(name) and name in sys.argv[sys.argv.index(flag) + 1 :][:1]:
                raise InputError(f"{name}: no such file; {flag} prints the result, and the shell writes it: > {name}")
    import_torch()
    from nnx.inference.classifier import load_with_runtime, predict_batches
    from nnx.inference.inputs import InputSet
    from nnx.system import device as devices
    from nnx.terminal import console
    from nnx.terminal import predictions as prediction_view

    with signals.catch_signals(), signals.exit_on_signal("stopped before all predictions were made"):
        classifier, runtime = load_with_runtime(checkpoint, device)
        inputs = InputSet(paths, classifier.spec, auto=prepare is Prepare.auto)
        with (
            devices.explain_out_of_memory("Predict fewer inputs at a time"),
            console.progress_bar("predicting", quiet=quiet) as progress,
        ):
            predictions = list(predict_batches(classifier, inputs.batches(progress), runtime, top=top))
    if not quiet:
        console.print_choices(choice for choice in runtime.choices if choice.what == "device")
        console.print_notes([*inputs.notes, *prediction_view.preparation_notes(predictions)])
    if json:
        print_json({"predictions": predictions})
    elif csv:
        sys.stdout.write(prediction_view.as_csv(predictions))
    else:
        console.print_table(prediction_view.as_table(predictions))
