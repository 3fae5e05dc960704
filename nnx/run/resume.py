"""From a saved run to where it continues."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnx import checkpoint
from nnx import config as configs
from nnx.checkpoint import Checkpoint
from nnx.config import Config
from nnx.errors import CheckpointError
from nnx.system import distributed, platform
from nnx.training.setup import TrainingSetup


def resumed_config(resume: Path, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """The config of the run that `resume` names, with overrides and flags laid over it. Raises CheckpointError,
    ConfigError."""
    saved, source, _ = last_saved(resume)
    return configs.from_dict(saved.config.to_dict(), str(source), overrides, flags)


def folder_of(resume: Path) -> Path:
    """The folder of the run that `resume` names: `resume` itself, or the folder of that state. Raises
    CheckpointError."""
    if not resume.exists():
        raise CheckpointError(f"{resume}: no such run; name its folder, or a state in it (last.pt)")
    return resume if resume.is_dir() else resume.parent


def last_saved(resume: Path) -> tuple[Checkpoint, Path, list[str]]:
    """The state that a run resumes from, the file that it was read from, and warnings. `resume` is the run's folder, or
    a state in it.

    In a folder it is last.pt, or, where that can't be read, previous.pt: with a warning. Raises CheckpointError.
    """
    if (folder := folder_of(resume)) != resume:
        return checkpoint.read(resume), resume, []
    last, previous = folder / "last.pt", folder / "previous.pt"
    try:
        return checkpoint.read(last), last, []
    except CheckpointError as error:
        if not last.exists() and not previous.exists():
            raise CheckpointError(f"{folder}: has no last.pt to resume from; name the folder of a run") from None
        try:
            saved = checkpoint.read(previous)
        except CheckpointError:
            raise error from None
        step = (saved.counters or {}).get("step")
        return saved, previous, [f"{error}. Resuming from the state before it, {previous}, of step {step}"]


def resume_command(folder: Path, data_dir: str | None) -> str:
    """The command that continues the run in `folder`, as a sentence."""
    _, world, _, local_world = distributed.current()
    command = "nnx train" if world == local_world else "torchrun … -m nnx train"
    command += f" --nproc {world}" if world == local_world > 1 else ""
    command += f" --resume {platform.quote(str(folder))}"
    return f"Resume with: {command}{f' --data-dir {platform.quote(data_dir)}' if data_dir else ''}"


def network_is_stale(setup: TrainingSetup, folder: Path) -> bool:
    """Whether checkpoint.pt must be written again, since the run ended between the two files of its best epoch.

    Raises CheckpointError where the network of the best epoch is lost.
    """
    best, path = setup.state.best, folder / "checkpoint.pt"
    if best is None:
        return False
    try:
        record = checkpoint.read(path).record
        why = f"{path}: belongs to another run than {setup.source}"
    except CheckpointError as error:
        record, why = {}, str(error)
    # of a later save: the same training brings the same network about
    if record == best or record.get("epoch", 0) > setup.state.epoch:
        return False
    if best["epoch"] == setup.state.epoch and not setup.state.batch:
        return True
    raise CheckpointError(
        f"{why}. The network of the best epoch, {best['epoch']}, is lost; start a new run in another --out"
    )
