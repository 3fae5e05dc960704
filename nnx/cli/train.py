"""nnx train CONFIG"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nnx.cli._options import DataDir, Device, Json, Out, Quiet, Set, print_json
from nnx.cli._start import import_torch, keep_freed_memory
from nnx.errors import InputError
from nnx.system import signals

if TYPE_CHECKING:
    from nnx.events import Event

HERE = ""  # --resume alone: the run in --out


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A config file, or a recipe by name (nnx list recipes). Not needed with --resume.", show_default=False
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides every random choice.", show_default=False)] = None,
    out: Out = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[RUN]",
            help="Go on with a run, named by its folder or a state in it (last.pt); alone: the one in --out.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that --out holds.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Say after each epoch how the network fares, and what is wrong with it: dead ReLUs, gradients.",
        ),
    ] = False,
    nproc: Annotated[int, typer.Option("--nproc", min=1, help="Train by so many processes on this machine.")] = 1,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", min=0, help="Of --nproc: go on so often after one of them died.")
    ] = 0,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int | None:
    """Train a network. The best epoch by validation becomes checkpoint.pt; the test set is read once, at the end.

    For instance: nnx train digits_mlp --set train.epochs=5
    Several machines: torchrun --nnodes 2 --nproc-per-node 4 ... -m nnx train digits_mlp
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

    with distributed.join(), signals.catch_signals() as signal, datasets.silent(quiet):
        if config is None and resume and _is_config(resume, configs.recipes()):
            config, resume = resume, HERE  # `--resume CONFIG --out RUN`: the word behind it is not its own
        flags = {key: str(value) for key, value in {"device": device, "seed": seed}.items() if value is not None}
        state = _state(resume, out)
        if config is None and state is None:
            raise InputError("name a config file or a recipe (nnx list recipes), or a run to go on with (--resume RUN)")
        resolved = (
            configs.load(config, overrides, flags) if config else resumed_config(cast(Path, state), overrides, flags)
        )
        if nproc > 1 and not is_launched():
            with signals.exit_on_signal("stopped before the first step; nothing was changed"):
                return launch(nproc, max_restarts)
        events = run(resolved, out=out, force=force, resume=state, data_dir=data_dir, watch=watch, signal=signal)
        summary = follow(_keeping_memory(events), quiet=quiet)
    if json:
        print_json(summary)
    else:
        console.print_result(summary)
    return None


def _keeping_memory(events: "Iterator[Event]") -> "Iterator[Event]":
    """The events of a run. Freed memory is kept from its start on, on a CPU: not before, so that the training data as
    it was loaded, now split, is given back."""
    from nnx.events import Started

    for event in events:
        if isinstance(event, Started) and ("device", "cpu") in {
            (choice.what, choice.value) for choice in event.choices
        }:
            keep_freed_memory()
        yield event


def _is_config(word: str, recipes: Collection[str]) -> bool:
    """Whether it names a config file or a recipe, not a run."""
    return word.endswith((".yaml", ".yml")) or (word in recipes and not Path(word).exists())


def _state(resume: str | None, out: Path | None) -> Path | None:
    """The run to go on with: its folder, or a state in it; None for a new run. Raises InputError."""
    if resume is None:
        return None
    if resume != HERE:
        named = Path(resume)
        if out and out.absolute() not in (named.absolute(), named.absolute().parent):
            raise InputError(f"--resume {named} goes on in that run's own folder; leave --out away")
        return named
    if out is None:
        raise InputError("--resume alone goes on with the run in --out; name that folder, or the run: --resume RUN")
    return out
