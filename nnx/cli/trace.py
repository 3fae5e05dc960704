"""nnx trace CONFIG|CHECKPOINT"""

from typing import Annotated

import typer

from nnx.cli._options import DataDir, Json, Set, print_json
from nnx.cli._start import import_torch
from nnx.cli.eval import SplitName
from nnx.errors import CheckFailed
from nnx.system import signals


def trace(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|CHECKPOINT",
            help="A config file, a recipe by name, a checkpoint.pt, or a run's folder.",
            show_default=False,
        ),
    ],
    index: Annotated[
        int, typer.Option("--index", min=0, metavar="N", help="Which sample of the split, counted from 0.")
    ] = 0,
    neuron: Annotated[
        str | None,
        typer.Option(
            "--neuron",
            metavar="LAYER:UNIT[@PLACE]",
            help="Which one to tell in full: 2:5 is unit 5 of layer 2, 1:5@3,4 that at row 3, column 4 of its map.",
            show_default="that of layer 1 on which the loss depends most",
        ),
    ] = None,
    split: Annotated[
        SplitName, typer.Option("--split", help="Which part of the dataset it is from.")
    ] = SplitName.train,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show one training step of one sample in real numbers: weighted sums, activations, loss, gradients, update.

    Every number is computed in float64 and checked on the spot, the gradients against finite differences; 5 where a
    check fails. For instance: nnx trace digits_mlp --index 3 --neuron 2:5
    """
    import_torch()
    from nnx.system import device as devices
    from nnx.trace import trace as traced

    with (
        signals.catch_signals(),
        signals.exit_on_signal("stopped before the step was made; nothing was written"),
        devices.explain_out_of_memory("Trace a smaller model"),
    ):
        found = traced(source, index=index, split=split.value, neuron=neuron, overrides=overrides, data_dir=data_dir)
    if json:
        print_json(found.to_dict())
    else:
        from nnx.terminal import trace as trace_view

        trace_view.tell(found)
    if wrong := [check for check in found.checks if not check.passed]:
        said = "; ".join(f"{check.name}: {check.error:.1e} apart, {check.tolerance:.0e} at most" for check in wrong)
        raise CheckFailed(
            f"{source}: {len(wrong)} of {len(found.checks)} checks failed ({said}). The forward or the backward pass is wrong"
        )
