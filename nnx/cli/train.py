"""nnx train CONFIG"""

from pathlib import Path
from typing import Annotated, cast

import typer

from nnx import signals
from nnx.cli._options import DataDir, Device, Json, Out, Quiet, Set, print_json
from nnx.cli._start import import_torch
from nnx.errors import InputError

HERE = ""  # --resume alone: the run in --out


def train(
    config: Annotated[
        str | None,
        typer.Argument(help="A config file, or a recipe by name (nnx list recipes). Not needed with --resume.", show_default=False),
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
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network. The best epoch by validation becomes checkpoint.pt; the test set is read once, at the end.

    For instance: nnx train digits_mlp --set train.epochs=5
    """
    import_torch()
    from nnx import config as configs
    from nnx import console
    from nnx.run import resumed_config, run

    if config is None and resume and (resume.endswith((".yaml", ".yml")) or (resume in configs.recipes() and not Path(resume).exists())):
        config, resume = resume, HERE  # `--resume CONFIG --out RUN`: the word behind it is not its own
    flags = {key: str(value) for key, value in {"device": device, "seed": seed}.items() if value is not None}
    state = _state(resume, out)
    if config is None and state is None:
        raise InputError("name a config file or a recipe (nnx list recipes), or a run to go on with (--resume RUN)")
    with signals.noted() as signal:
        resolved = configs.load(config, overrides, flags) if config else resumed_config(cast(Path, state), overrides, flags)
        summary = console.follow(run(resolved, out=out, force=force, resume=state, data_dir=data_dir, signal=signal), quiet=quiet)
    if json:
        print_json(summary)
    else:
        console.print_result(summary)


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
