"""nnx eval CHECKPOINT: metrics on a split of the dataset."""

from enum import StrEnum
from typing import Annotated

import typer

from nnx.cli._options import ClassifierPath, DataDir, Device, Json, Out, Quiet, Set, print_json
from nnx.cli._start import import_torch
from nnx.errors import CheckFailed
from nnx.system import signals


class SplitName(StrEnum):
    """The splits of a dataset."""

    test = "test"
    validation = "validation"
    train = "train"


def evaluate(
    checkpoint: ClassifierPath,
    split: Annotated[
        SplitName, typer.Option("--split", metavar="SPLIT", help="Split to evaluate on: train, validation or test.")
    ] = SplitName.test,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    out: Out = None,
    fail_under: Annotated[
        float | None,
        typer.Option("--fail-under", metavar="X", min=0, max=1, help="Exit with code 5 if the accuracy is lower."),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint on a split of its dataset.

    Prints accuracy, loss, calibration error, the confusion matrix, and
    precision, recall and F1 of each class. With --out, also writes eval.json
    and report.html.

    Other data: nnx eval checkpoint.pt --set dataset.root=elsewhere
    """
    import_torch()
    from nnx import datasets, report
    from nnx.run import folder as run_folder
    from nnx.run.evaluate import evaluate_checkpoint
    from nnx.terminal import console

    if out:
        run_folder.check_folder(out)
    with (
        signals.catch_signals(),
        datasets.silent(quiet),
        signals.exit_on_signal("stopped before the evaluation finished; nothing was written"),
    ):
        measured = evaluate_checkpoint(
            checkpoint, split=split.value, device=device, overrides=overrides, data_dir=data_dir
        )
    metrics = measured.metrics
    if not quiet:
        console.print_choices(measured.choices)
    if (duplicates := measured.duplicates) and duplicates.count:
        warning = console.duplicates_warning(
            duplicates.count, metrics["samples"], duplicates.conflicts, duplicates.examples
        )
        console.print_notes([f"warning: {warning}"])
    if out:
        run_folder.write_json(out / "eval.json", metrics)
        report.write(out / "report.html", measured)
    if json:
        print_json(metrics)
    else:
        console.print_metrics(metrics)
    if fail_under is not None and metrics["accuracy"] < fail_under:
        raise CheckFailed(f"accuracy {metrics['accuracy']:.4f} is under --fail-under {fail_under:g}")
