"""nnx train CONFIG: train a network."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nnx.cli._options import DataDir, Device, Json, Out, Quiet, Set, check_utf8, print_json
from nnx.cli._start import import_torch, keep_freed_memory
from nnx.errors import InputError
from nnx.system import signals

if TYPE_CHECKING:
    from nnx.events import Event

OUT_RUN = ""  # value of --resume without a run: the run in --out


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A config file or a recipe name (nnx list recipes). Not needed with --resume.", show_default=False
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of all random numbers.", show_default=False)
    ] = None,
    out: Out = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[RUN]",
            help="Resume a run: its folder, or a state in it (last.pt). Without RUN: the run in --out.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Print the network's health after each epoch: dead ReLUs, update size, gradients, warnings.",
        ),
    ] = False,
    nproc: Annotated[int, typer.Option("--nproc", metavar="N", min=1, help="Number of local processes.")] = 1,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", metavar="N", min=0, help="Restarts allowed after a crash (with --nproc).")
    ] = 0,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int | None:
    """Train a network.

    The epoch with the best validation accuracy becomes checkpoint.pt. The test
    set is read once, at the end.

    Example: nnx train digits_mlp --set train.epochs=5

    Several machines:
    torchrun --nnodes 2 --nproc-per-node 4 ... -m nnx train digits_mlp
    """
    import_torch()
    from nnx import config as configs
    from nnx import datasets
    from nnx.cli._launch import is_launched, launch
    from nnx.run.pipeline import run
    from nnx.run.resume import resumed_config
    from nnx.system import distributed
    from nnx.terminal import console
    from nnx.terminal.train import follow

    check_utf8(Path(config) if config and out is None and not resume else None, "CONFIG")  # a run folder has its name
    check_utf8(Path(resume) if resume else None, "--resume")
    with distributed.join(), signals.catch_signals() as signal, datasets.silent(quiet):
        if config is None and resume and _is_config(resume, configs.recipes()):
            config = resume  # `--resume CONFIG --out RUN`: the argument after --resume is the config
            resume = OUT_RUN
        if config and resume == OUT_RUN and out is None and os.path.isfile(os.path.join(config, "last.pt")):
            config, resume = None, config  # `RUN --resume`
        flags = {key: str(value) for key, value in {"device": device, "seed": seed}.items() if value is not None}
        state = _resumed_run(resume, out)
        if config is None and state is None:
            raise InputError("name a config file or a recipe (nnx list recipes), or a run to resume (--resume RUN)")
        resolved = (
            configs.load(config, overrides, flags) if config else resumed_config(cast(Path, state), overrides, flags)
        )
        if nproc > 1 and not is_launched():
            with signals.exit_on_signal("stopped before the first step; nothing was changed"):
                return launch(nproc, max_restarts)
        events = run(resolved, out=out, force=force, resume=state, data_dir=data_dir, watch=watch, signal=signal)
        summary = follow(_keep_memory_on_cpu(events), quiet=quiet)
    if json:
        print_json(summary)
        if not quiet:
            console.print_notes([f"health: {console.describe_health(summary['health'])}"])
    else:
        console.print_result(summary)
    return None


def _keep_memory_on_cpu(events: "Iterator[Event]") -> "Iterator[Event]":
    """Pass on the events of a run. On a CPU, keep freed memory from Started on: not earlier, so that the loaded
    training data, split by then, is returned to the system."""
    from nnx.events import Started

    for event in events:
        if isinstance(event, Started) and any((c.what, c.value) == ("device", "cpu") for c in event.choices):
            keep_freed_memory()
        yield event


def _is_config(name: str, recipes: Collection[str]) -> bool:
    """Whether `name` is a config file or a recipe, not a run."""
    return name.endswith((".yaml", ".yml")) or (name in recipes and not Path(name).exists())


def _resumed_run(resume: str | None, out: Path | None) -> Path | None:
    """The run to resume: its folder, or a state in it; None for a new run. Raises InputError."""
    if resume is None:
        return None
    if resume != OUT_RUN:
        run = Path(resume)
        if out and out.absolute() not in (run.absolute(), run.absolute().parent):
            raise InputError(f"--resume {run}: a run is resumed in its own folder; remove --out")
        return run
    if out is None:
        raise InputError("--resume: names no run; add the run (--resume RUN) or its folder (--out RUN)")
    return out
