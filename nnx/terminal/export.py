"""Prints the result of nnx export: a table of the check, then the files."""

import sys

import numpy as np
from rich.text import Text

from nnx.errors import printable
from nnx.export._quantize import Measured
from nnx.formatting import interval, percent, size, terminal_width
from nnx.run.export import Exported
from nnx.terminal import console


def print_tables(exported: Exported) -> None:
    """Print a row per batch of the check, then the files, their input and the accuracy."""
    table = console.plain_table([], ["batch", "largest difference", "labels"])
    for row in exported.rows:
        labels = "equal" if not row.labels else f"{row.labels:,} differ"
        table.add_row(f"{row.samples:,}", f"{row.difference:.1e}", labels)
    console.print_table(table)
    if exported.quantized:
        _print_quantized(exported.quantized)
    network_input, accuracy = exported.facts["input"], exported.facts["accuracy"]
    shape = " x ".join(map(str, network_input["shape"]))
    samples = f"{accuracy['samples']:,} {accuracy['split']} samples"
    rows = [
        *(("file", printable(str(file)), size(count)) for file, count in exported.files.items()),
        ("input", f"{shape} {network_input['type']}", network_input["values"]),
        (
            "accuracy",
            percent(accuracy["accuracy"]),
            f"{interval(accuracy['accuracy'], accuracy['samples'])} on {samples}",
        ),
    ]
    console.print_lines([console.align(rows, terminal_width(sys.stdout))])


def _print_quantized(measured: dict[str, Measured]) -> None:
    """The float file beside the 8-bit one, and how far their probabilities are apart."""
    table = console.plain_table([], ["precision", "size", "one sample", "accuracy"])
    for precision, each in measured.items():
        milliseconds = f"{1000 * each.seconds:.3f} ms"
        table.add_row(precision, size(each.bytes), milliseconds, percent(each.predictions.accuracy))
    console.print_table(table)
    whole, rounded = (measured[name].predictions for name in ("float32", "int8"))
    difference = float(np.abs(whole.probabilities - rounded.probabilities).max())
    labels = int((whole.predicted != rounded.predicted).sum())
    line = f"int8 and float32: largest difference {difference:.1e}, {labels:,} of {len(whole.labels):,} labels differ"
    console.print_lines([Text(line)])
