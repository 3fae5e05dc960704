"""The straight line: config -> dataset -> model -> state -> train -> checkpoint -> evaluate -> summary -> report."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnx import models, report
from nnx.config import Config
from nnx.errors import DivergedError, Stopped
from nnx.events import Epoch, Event, Finished, Started
from nnx.explain import _titles
from nnx.inference.metrics import Predictions, evaluate
from nnx.loader.batches import describe_data_path
from nnx.run import folder as run_folder
from nnx.run.evaluate import evaluate_best
from nnx.run.resume import folder_of, last_saved, network_is_stale, resume_command
from nnx.run.saver import RunSaver
from nnx.system import device as devices
from nnx.system import distributed, files, signals
from nnx.training.health import HealthMonitor, probe_size
from nnx.training.loop import EpochEnd, check_finite, train
from nnx.training.setup import TrainingSetup, prepare
from nnx.training.state import State


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its checkpoint, and the final figures."""

    folder: Path
    checkpoint: Path
    summary: dict[str, Any]


def run(
    config: Config,
    *,
    out: Path | None = None,
    force: bool = False,
    resume: Path | None = None,
    data_dir: str | None = None,
    watch: bool = False,
    signal: Callable[[], int] = lambda: 0,
) -> Iterator[Event]:
    """Train `config` from start to end, yielding what happens. Once `signal()` is not 0, the state is saved and Stopped
    raised. With `watch`, a Health follows Started and each Epoch.

    `resume` is the folder of a run to continue, or a state in it: last.pt, previous.pt. With several ranks, all call
    this; rank 0 writes. Restarted by torchrun, they continue from what was saved.

    Raises InputError for wrong input before anything is written, MachineError, and DivergedError.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(devices.explain_out_of_memory(_memory_cure(config)))
        saver, warnings = _open(config, out, force=force, resume=resume, data_dir=data_dir, stack=stack)
        yield (started := _started(saver, warnings))
        again = resume_command(saver.folder, data_dir)
        yield from _train(saver, watch=watch, signal=distributed.any_rank_signalled(signal), again=again)
        saver.save_frame(last=True)
        with signals.exit_on_signal(f"stopped before the test set was read; training is finished and saved. {again}"):
            tested = evaluate_best(saver, started.choices, begun)
        distributed.on_rank_zero(lambda: run_folder.write_json(saver.folder / "summary.json", tested.run))
        if config.train.report:
            with signals.exit_on_signal("stopped: report.html was not written; everything else is finished and saved"):
                distributed.on_rank_zero(lambda: report.write(saver.folder / "report.html", tested))
        yield Finished(tested.run)


# ---------------------------------------------------------------- before the first step

_CHANGED = "the environment changed since this state was saved, so the last bits may differ from an uninterrupted run's"


def _open(
    config: Config, out: Path | None, *, force: bool, resume: Path | None, data_dir: str | None, stack: ExitStack
) -> tuple[RunSaver, list[str]]:
    """A new run or a resumed one, checked first and then locked by `stack`: what writes into its folder, and warnings.

    Raises InputError before anything is written, MachineError.
    """
    writes = distributed.current().rank == 0
    if before := distributed.stored_before_restart():
        out, force = Path(before), True
        resume = out if any((out / name).exists() for name in ("last.pt", "previous.pt")) else None
    warnings: list[str] = []
    with signals.exit_on_signal("stopped before the first step; nothing was changed"):
        if resume:
            folder = folder_of(resume)
            stack.enter_context(run_folder.lock_folder(folder) if writes else nullcontext())
            saved, source, warnings = last_saved(resume)
            setup = prepare(config, saved, source=source, data_dir=data_dir)
            warnings += [f"{_CHANGED} ({setup.changed})"] if setup.changed else []
        else:
            folder = run_folder.choose_folder(out, config.recipe, force=force)
            setup = prepare(config, data_dir=data_dir, measure_speed=True)
            config = setup.config
        stale = network_is_stale(setup, folder) if resume else False
        distributed.connect(setup.runtime.device)
    if writes and not resume:
        folder = stack.enter_context(run_folder.create_folder(folder, force=force, exactly=out is not None))
    folder = Path(distributed.on_rank_zero(lambda: str(folder)))
    distributed.store_for_restart(str(folder))
    distributed.on_rank_zero(lambda: files.write(folder / "config.yaml", _titles.named_yaml(config)))
    saver = RunSaver(setup, folder)
    warnings += saver.resume_film() if resume else []
    saver.save_frame()
    if stale:
        saver.save_network()
    return saver, warnings


def _memory_cure(config: Config) -> str:
    size = config.train.batch_size
    if size == 1:
        return "Make the model smaller"
    return (
        f"Halve train.batch_size (now {size}) and double train.accumulate, which makes the same steps, "
        "or make the model smaller"
    )


def _started(saver: RunSaver, warnings: Sequence[str]) -> Started:
    setup, state, data = saver.setup, saver.setup.state, saver.setup.dataset
    data_path = describe_data_path(setup.config.dataset.name, data.train, setup.loader(data.train))
    notes = [note for note in (setup.loss_note, setup.schedule_note, setup.film_choice) if note]
    return Started(
        run=saver.folder,
        choices=(*setup.runtime.choices, *data.notes, data_path, *notes, *setup.unmeasured),
        samples={"train": len(data.train), "validation": len(data.validation or ())},
        layers=models.layer_table(state.model, data.spec),
        parameters=models.count_parameters(state.model),
        epochs=setup.config.train.epochs,
        steps_per_epoch=state.steps_per_epoch,
        epoch=state.epoch,
        step=state.step,
        warnings=tuple(warnings),
        history=tuple(state.history),
        best=state.best,
    )


# ---------------------------------------------------------------- training


def _train(saver: RunSaver, *, watch: bool, signal: Callable[[], int], again: str) -> Iterator[Event]:
    """Train to the last epoch, saving and, with validation samples, validating on the way. `again` is the command that
    resumes the run.

    Raises Stopped once `signal()` is not 0, with the state saved; DivergedError, MachineError.
    """
    setup, state = saver.setup, saver.setup.state
    batches = setup.loader(setup.dataset.train)
    validation = setup.loader(setup.dataset.validation) if setup.dataset.validation else None
    step, monitor = setup.make_step(), _monitor(setup) if watch else None
    if monitor:
        step = monitor.wrap(step)
        yield monitor.check()
    log_every = max(1, min(50, state.steps_per_epoch // 10))
    events = train(state, batches, step, log_every=log_every, pausing=lambda: saver.due or bool(signal()))
    try:
        for event in () if state.stop_reason else events:
            if isinstance(event, EpochEnd):
                measured = None
                if validation:
                    measured = evaluate(state.evaluated, validation, setup.evaluation_criterion, setup.runtime)
                    check_finite(measured.loss, "validation loss", state)
                epoch = _record(state, event, measured)
                saver.save_epoch(epoch)
                yield epoch
                if monitor:
                    yield monitor.check()
            else:
                saver.save_due()
                yield event
            if number := signal():
                saver.save_state()
                raise Stopped(f"stopped at step {state.step}, and saved. {again}", signal=number)
            if state.stop_reason:
                break
    except DivergedError as error:
        raise DivergedError(f"{error}. {saver.last_saved}") from None


def _record(state: State, end: EpochEnd, validation: Predictions | None) -> Epoch:
    """Add a finished epoch to the state's history, and return it as an event."""
    measured = {
        "val_loss": validation.loss if validation else None,
        "val_accuracy": validation.accuracy if validation else None,
    }
    figures: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "train_loss": end.train_loss,
        **measured,
        "lr": end.lr,
    }
    record = {name: value for name, value in figures.items() if value is not None}
    state.history.append(record)
    return Epoch(
        **figures,
        seconds=end.seconds,
        samples_per_second=end.samples / end.seconds,
        is_best=state.best is record,
        stopping=state.stop_reason if state.epoch < state.config.train.epochs else None,
    )


def _monitor(setup: TrainingSetup) -> HealthMonitor:
    """The health of the setup's network, on some of its training samples."""
    train = setup.dataset.train
    return HealthMonitor(setup.state, setup.loader(train.take(probe_size(len(train)))), setup.criterion)
