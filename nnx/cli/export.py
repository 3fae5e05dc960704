"""nnx export CHECKPOINT --format FORMAT: a trained network as a file for other programs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnx import export as formats
from nnx.cli._options import CheckpointPath, DataDir, Json, Quiet, Set, check_out, print_json
from nnx.cli._start import import_torch
from nnx.formatting import print_wrapped, size
from nnx.system import signals

if TYPE_CHECKING:
    from nnx.run.export import Exported


class Quantization(StrEnum):
    """Types of the numbers in a quantized file."""

    int8 = "int8"


def export(
    checkpoint: CheckpointPath,
    format: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help=f"Format: {', '.join(formats.names())}.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", callback=check_out, help="File to write.", show_default="next to the checkpoint"
        ),
    ] = None,
    quantize: Annotated[
        Quantization | None,
        typer.Option("--quantize", help="Round to 8 bits, for onnx: smaller, and measured beside float32."),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a trained network to a file for other programs.

    The exported network takes raw pixels or raw table rows and returns
    probabilities: preprocessing is inside. Before the file is written, it
    predicts test samples in a fresh process. If a probability differs from
    PyTorch's, nothing is written (exit code 5).

    Example: nnx export runs/digits --format onnx
    """
    formats.exporter(format)
    import_torch()
    from nnx import datasets
    from nnx.run.export import export_checkpoint
    from nnx.terminal import console
    from nnx.terminal import export as export_view

    with (
        signals.catch_signals(),
        datasets.silent(quiet),
        signals.exit_on_signal("stopped before the export was checked; nothing was written"),
    ):
        exported = export_checkpoint(
            checkpoint, format, out=out, overrides=overrides, data_dir=data_dir, quantize=quantize is not None
        )
    if not quiet:
        console.print_choices(exported.choices)
        if warning := _growth(exported):
            print_wrapped(f"warning: {warning}", sys.stderr)
    if json:
        print_json(_document(exported, format))
    else:
        export_view.print_tables(exported)


def _growth(exported: "Exported") -> str:
    """What to do if the rounded file is not smaller than the float one; "" otherwise."""
    if not exported.quantized:
        return ""
    whole, rounded = (exported.quantized[precision].bytes for precision in ("float32", "int8"))
    if rounded < whole:
        return ""
    reason = "the network is so small that its scales take more room than its weights save"
    return f"int8 takes {size(rounded)}, float32 {size(whole)}: {reason}; leave --quantize out"


def _document(exported: "Exported", format: str) -> dict[str, Any]:
    """The result as plain values."""
    (file, *_), accuracy = exported.files, exported.facts["accuracy"]
    checks = [
        {"samples": row.samples, "largest_difference": row.difference, "different_labels": row.labels}
        for row in exported.rows
    ]
    quantized = {
        precision: {
            "bytes": measured.bytes,
            "milliseconds": 1000 * measured.seconds,
            "accuracy": measured.predictions.accuracy,
        }
        for precision, measured in exported.quantized.items()
    }
    return {
        "file": str(file),
        "format": format,
        "files": [{"file": str(file), "bytes": count} for file, count in exported.files.items()],
        "checks": checks,
        "tolerance": exported.tolerance,
        **({"quantized": quantized} if quantized else {}),
        **{key: exported.facts[key] for key in ("input", "classes", "precision", "checkpoint_sha256")},
        **accuracy,
    }
