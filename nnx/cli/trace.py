"""nnx trace CONFIG|CHECKPOINT"""

from pathlib import Path
from typing import Annotated

import typer

from nnx.cli._options import DataDir, Json, Set, check_checkpoint, print_json
from nnx.cli._start import import_torch
from nnx.cli.eval import SplitName
from nnx.errors import CheckFailed
from nnx.system import signals


def trace(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|CHECKPOINT",
            help="A config file, a recipe name, a checkpoint.pt or a run folder.",
            show_default=False,
        ),
    ],
    index: Annotated[
        int, typer.Option("--index", min=0, metavar="N", help="Index of the sample in its split, from 0.")
    ] = 0,
    neuron: Annotated[
        str | None,
        typer.Option(
            "--neuron",
            metavar="NEURON",
            help="Neuron to show in full: 2:5 is unit 5 of layer 2; 1:5@3,4 is unit 5 at row 3, column 4 of its map.",
            show_default="the unit of layer 1 with the largest gradient",
        ),
    ] = None,
    split: Annotated[
        SplitName, typer.Option("--split", metavar="SPLIT", help="Split of the dataset: train, validation or test.")
    ] = SplitName.train,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show one training step of one sample in real numbers.

    Prints the weighted sums, activations, loss, gradients and update, computed
    in float64. Checks every number, the gradients against finite differences,
    and exits with code 5 if a check fails.

    Example: nnx trace digits_mlp --index 3 --neuron 2:5
    """
    if Path(f"{source}.pt").exists():
        check_checkpoint(Path(source))
    import_torch()
    from nnx.system import device as devices
    from nnx.trace import trace as run_trace

    with (
        signals.catch_signals(),
        signals.exit_on_signal("stopped before the step; nothing was written"),
        devices.explain_out_of_memory("Trace a smaller model"),
    ):
        result = run_trace(
            source, index=index, split=split.value, neuron=neuron, overrides=overrides, data_dir=data_dir
        )
    if json:
        print_json(result.to_dict())
    else:
        from nnx.terminal import trace as trace_view

        trace_view.print_trace(result)
    if failed := [check for check in result.checks if not check.passed]:
        errors = "; ".join(
            f"{check.name}: error {check.error:.1e}, tolerance {check.tolerance:.0e}" for check in failed
        )
        raise CheckFailed(
            f"{source}: {len(failed)} of {len(result.checks)} checks failed ({errors}). "
            f"The forward or the backward pass is wrong"
        )
