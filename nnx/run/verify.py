"""Train the first steps of a run again: the same losses to the bit, or the first step that differs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnx import config as configs
from nnx.errors import CheckpointError, Stopped
from nnx.run.resume import last_saved
from nnx.system import device as devices
from nnx.training.loop import EpochEnd, train
from nnx.training.setup import describe_differences, prepare


@dataclass(frozen=True)
class Difference:
    """The first step, counted from 1, whose loss differs from the recorded one."""

    step: int
    recorded: float
    now: float


@dataclass(frozen=True)
class Verification:
    """The result of training `steps` steps again. `changed` is what differs in the environment or the data: "torch:
    2.14.1 → 2.15.0"."""

    run: Path
    steps: int
    difference: Difference | None
    changed: str


def verify(
    run: Path,
    *,
    steps: int | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    signal: Callable[[], int] = lambda: 0,
) -> Verification:
    """Train the first `steps` steps of the run in this folder again (default: all that were recorded, at most 100) and
    compare their losses.

    Nothing is written. Raises CheckpointError where the folder has no state with losses, and what training raises.
    """
    saved, source, _ = last_saved(run)
    if saved.training is None or saved.environment is None or not len(saved.training["losses"]):
        raise CheckpointError(f"{source}: has no recorded losses to compare with")
    began: dict[str, Any] = saved.environment["began"]
    recorded = saved.training["losses"][:steps]
    epochs = f"train.epochs={began['train.epochs']}"  # schedules depend on them, and a resume may have changed them
    config = configs.from_dict(saved.config.to_dict(), str(source), [epochs], {"device": device} if device else None)
    setup = prepare(config, data_dir=data_dir)
    state = setup.state
    history = (saved.counters or {})["history"]

    def enough() -> bool:
        return state.step >= len(recorded) or bool(signal())

    with devices.explain_out_of_memory("Close other programs, or name another --device"):
        for event in train(
            state, setup.loader(setup.dataset.train), setup.make_step(), log_every=len(recorded), pausing=enough
        ):
            if isinstance(event, EpochEnd):
                state.history.append(history[state.epoch - 1])  # a schedule may depend on it
            if number := signal():
                raise Stopped(
                    f"stopped at step {state.step} of {len(recorded)}: verification incomplete", signal=number
                )
            if state.step >= len(recorded):
                break
    now = state.losses[: len(recorded)].cpu()
    unequal = (now != recorded).nonzero().flatten().tolist()
    difference = Difference(unequal[0] + 1, float(recorded[unequal[0]]), float(now[unequal[0]])) if unequal else None
    data = {"data": saved.data}, {"data": setup.data_hash}
    return Verification(
        run, len(recorded), difference, describe_differences(began | data[0], setup.environment["began"] | data[1])
    )
