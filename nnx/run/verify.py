"""The first steps of a run once more: the same losses to the bit, or the first step that differs."""

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
    """The first step, from 1, whose loss is another one than was recorded."""

    step: int
    recorded: float
    now: float


@dataclass(frozen=True)
class Verification:
    """What came of training `steps` steps again. `changed` is what differs in the environment or the data: "torch:
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
    """Train the first `steps` steps of the run in this folder again (all that were recorded: 100 at most), and compare
    their losses.

    Nothing is written. Raises CheckpointError where the folder holds no state with losses, and what training raises.
    """
    saved, source, _ = last_saved(run)
    if saved.training is None or saved.environment is None or not len(saved.training["losses"]):
        raise CheckpointError(f"{source}: holds no losses of its first steps to compare with")
    began: dict[str, Any] = saved.environment["began"]
    recorded = saved.training["losses"][:steps]
    epochs = (
        f"train.epochs={began['train.epochs']}"  # a schedule counts on them; a resume may have asked for more since
    )
    config = configs.from_dict(saved.config.to_dict(), str(source), [epochs], {"device": device} if device else None)
    setup = prepare(config, data_dir=data_dir)
    state, history = setup.state, (saved.counters or {})["history"]

    def enough() -> bool:
        return state.step >= len(recorded) or bool(signal())

    with devices.explain_out_of_memory("Close what else runs, or name another --device"):
        for event in train(
            state, setup.loader(setup.dataset.train), setup.make_step(), log_every=len(recorded), pausing=enough
        ):
            if isinstance(event, EpochEnd):
                state.history.append(history[state.epoch - 1])  # what a schedule may have looked at
            if number := signal():
                raise Stopped(
                    f"stopped at step {state.step} of {len(recorded)}: equal or not was not found out", signal=number
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
