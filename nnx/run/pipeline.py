"""The straight line: config -> dataset -> model -> state -> train -> checkpoint -> evaluate -> summary -> report."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from nnx import checkpoint, datasets, models, report
from nnx import config as configs
from nnx.checkpoint import Checkpoint, without_training
from nnx.config import Config
from nnx.datasets import Dataset, DatasetConfig
from nnx.errors import CheckpointError, DivergedError, InputError, Stopped
from nnx.events import Choice, Epoch, Event, Finished, Started
from nnx.inference.classifier import network
from nnx.inference.metrics import Predictions, evaluate
from nnx.loader.batches import EVALUATION_BATCH, Resident, data_path
from nnx.losses import Criterion
from nnx.run import folder as runs
from nnx.system import device as runtime
from nnx.system import distributed, files, signals
from nnx.system.device import Runtime
from nnx.training import film
from nnx.training.health import Watch, probe
from nnx.training.loop import EpochEnd, check_finite, train
from nnx.training.setup import Job, build_criterion, prepare, workable
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

    `resume` is the folder of a run to go on with, or a state in it: last.pt, previous.pt. Of several ranks, all go
    through this; rank 0 writes. Restarted by torchrun, they go on from what was saved.

    Raises InputError for wrong input before anything is written, MachineError, and DivergedError.
    """
    begun = time.perf_counter()
    writes = distributed.here().rank == 0
    if before := distributed.remembered():
        out, force = Path(before), True
        resume = out if any((out / name).exists() for name in ("last.pt", "previous.pt")) else None
    with ExitStack() as stack:
        stack.enter_context(runtime.enough_memory(_cure(config)))
        with signals.at_once("stopped before the first step; nothing was changed"):
            if resume:
                folder = run_folder(resume)
                stack.enter_context(runs.held(folder) if writes else nullcontext())
                saved, source, warnings = last_saved(resume)
                job = prepare(config, saved, source=source, data_dir=data_dir)
                warnings += [f"{_CHANGED} ({job.changed})"] if job.changed else []
            else:
                folder, warnings = runs.choose(out, config.recipe, force=force), []
                job = prepare(config, data_dir=data_dir)
            state, batches, validation = job.state, job.feed(job.dataset.train), job.feed(job.dataset.validation)
            stale = _stale(job, folder) if resume else False
            distributed.connect(job.runtime.device)
        if writes and not resume:
            folder = stack.enter_context(runs.created(folder, force=force, exactly=out is not None))
        folder = Path(distributed.first(lambda: str(folder)))
        distributed.remember(str(folder))
        distributed.first(lambda: files.write(folder / "config.yaml", config.to_yaml()))
        keeper = _Keeper(job, folder)
        warnings += keeper.resume_film() if resume else []
        keeper.keep_frame()
        if stale:
            keeper.keep_network()
        yield (started := _started(job, folder, batches, warnings))
        step, watching = job.step(), _watched(job) if watch else None
        if watching:
            step = watching.over(step)
            yield watching.look()

        go_on, signal = _go_on(folder, data_dir), distributed.agreed(signal)
        log_every = max(1, min(50, state.steps_per_epoch // 10))
        events = train(state, batches, step, log_every=log_every, pausing=lambda: keeper.due or bool(signal()))
        try:
            for event in () if state.over else events:
                if isinstance(event, EpochEnd):
                    measured = evaluate(state.evaluated, validation, job.criterion, job.runtime)
                    check_finite(measured.loss, "validation loss", state)
                    epoch = _record(state, event, measured)
                    keeper.keep_epoch(epoch)
                    yield epoch
                    if watching:
                        yield watching.look()
                else:
                    keeper.keep_due()
                    yield event
                if number := signal():
                    keeper.keep_state()
                    raise Stopped(f"stopped at step {state.step}, and saved. {go_on}", signal=number)
                if state.over:
                    break
        except DivergedError as error:
            raise DivergedError(f"{error}. {keeper.kept}") from None
        keeper.keep_frame(last=True)
        with signals.at_once(f"stopped before the test set was read; the training is done and saved. {go_on}"):
            tested = _tested(job, folder, started.choices, keeper.metrics, begun)
        distributed.first(lambda: runs.write_json(folder / "summary.json", tested.run))
        if config.train.report:
            with signals.at_once("stopped: report.html was not written; all else is done and saved"):
                distributed.first(lambda: report.write(folder / "report.html", tested))
        yield Finished(tested.run)


class _Keeper:
    """Writes a run's metrics, its state, its best network and its film into its folder; of several ranks, rank 0
    does."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.metrics = runs.read_metrics(folder, job.state.history)
        distributed.first(lambda: runs.write_metrics(folder, self.metrics))
        self.film = (
            film.Recorder(job.state, job.dataset.spec, job.dataset.validation) if job.config.train.film else None
        )
        self.step = job.state.step if job.saved else -1  # of the state that is there
        self._place = self._here if job.saved else None

    @property
    def due(self) -> bool:
        """Whether the state or a frame of the film is to be kept at this step."""
        return self._state_due or bool(self.film and self.film.due)

    @property
    def _state_due(self) -> bool:
        """Whether `train.save_every` asks for the state of this step, and it is not there yet."""
        every = self.job.config.train.save_every
        return isinstance(every, int) and self.job.state.step % every == 0 and self._here != self._place

    @property
    def kept(self) -> str:
        """What there is to go on from, in words."""
        return (
            "Nothing was saved yet"
            if self.step < 0
            else f"The state of step {self.step}, still finite, is in {self.folder / 'last.pt'}"
        )

    def keep_due(self) -> None:
        """What `due` asked for. Raises as `keep_state`."""
        self.keep_frame()
        if self._state_due:
            self.keep_state()

    def keep_epoch(self, epoch: Epoch) -> None:
        """All there is of an epoch that is over. Raises as `keep_state`."""
        self.keep_state()
        if epoch.is_best:
            self.keep_network()
        self.metrics.append({key: value for key, value in asdict(epoch).items() if key not in ("is_best", "stopping")})
        distributed.first(lambda: runs.append_metrics(self.folder, self.metrics[-1]))

    def resume_film(self) -> list[str]:
        """Go on with the film that is there, if one is wanted; where it can't be read, from here on, with a warning."""
        try:
            if self.film:
                self.film.resume(self.folder)
            return []
        except CheckpointError as error:
            return [f"{error}. The film begins anew at step {self.job.state.step}"]

    def keep_frame(self, *, last: bool = False) -> None:
        """A frame of the film, where one is due, or as the run's last. It is written together with the state, the last
        at once.

        Raises MachineError.
        """
        if self.film and (last or self.film.due):
            self.film.record()
        if self.film and last:
            self.film.write(self.folder)

    def keep_state(self) -> None:
        """Unless it is there already. Before the network: that can be had from the state (see `_stale`), not the other
        way round.

        Raises DivergedError where the state is not finite, MachineError.
        """
        if self._here != self._place:
            self.job.state.check_finite()
            if self.film:
                self.film.write(
                    self.folder
                )  # first: a frame too many is dropped by a resume, one too few would never come again
            self._write("last.pt", self.job.snapshot, keep=self.folder / "previous.pt")
            self.step, self._place = self.job.state.step, self._here

    def keep_network(self) -> None:
        """Raises MachineError."""
        self._write("checkpoint.pt", lambda: without_training(self.job.snapshot()))

    @property
    def _here(self) -> tuple[int, int]:
        """An epoch's last step and its end, after validation, are two places."""
        return self.job.state.epoch, self.job.state.batch

    def _write(self, name: str, content: Callable[[], Checkpoint], **options: Any) -> None:
        distributed.first(lambda: checkpoint.write(self.folder / name, content(), **options))


def resumed_config(resume: Path, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """The config of the run that `resume` names, with overrides and flags laid over it. Raises CheckpointError,
    ConfigError."""
    saved, source, _ = last_saved(resume)
    return configs.from_dict(saved.config.to_dict(), str(source), overrides, flags)


def run_folder(resume: Path) -> Path:
    """The folder of the run that `resume` names: itself, or where the state lies that it is. Raises CheckpointError."""
    if not resume.exists():
        raise CheckpointError(f"{resume}: no such run; name its folder, or a state in it (last.pt)")
    return resume if resume.is_dir() else resume.parent


def last_saved(resume: Path) -> tuple[Checkpoint, Path, list[str]]:
    """What a run goes on from, where that was read, and warnings. `resume` is its folder, or a state in it.

    Of a folder it is last.pt, or, where that can't be read, the state before it: with a warning. Raises
    CheckpointError.
    """
    if (folder := run_folder(resume)) != resume:
        return checkpoint.read(resume), resume, []
    last, previous = folder / "last.pt", folder / "previous.pt"
    try:
        return checkpoint.read(last), last, []
    except CheckpointError as error:
        try:
            saved = checkpoint.read(previous)
        except CheckpointError:
            raise error from None
        step = (saved.counters or {}).get("step")
        return saved, previous, [f"{error}. Going on from the state before it, {previous}, of step {step}"]


def evaluate_checkpoint(
    path: Path,
    *,
    split: str = "test",
    device: str | None = None,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
) -> report.Content:
    """Measure the checkpoint that `path` is, or that of the run in that folder, on a split of its dataset, or of the
    dataset that `overrides` make of it: `figures` of what comes back, or a report of it.

    Raises CheckpointError, ConfigError, DataError, DeviceError, MachineError.
    """
    path = runs.checkpoint_in(path)
    kept = checkpoint.read(path)
    config = settings_of(kept, path, overrides, device)
    chosen = runtime.choose(config.device, config.precision, config.model.name)
    dataset = dataset_of(kept, config, path, data_dir)
    model = network(kept)
    chosen = workable(chosen, config, model, kept.spec)
    threads = runtime.set_threads(config.threads, models.multiply_adds(model, kept.spec) * EVALUATION_BATCH)
    with runtime.enough_memory(
        "Close what else runs, or use --device cpu where the device's memory is what is missing"
    ):
        samples = dataset.split(split)
        predictions = _predict(
            kept, Resident(samples, kept.spec, chosen.device), chosen, build_criterion(config, dataset, chosen)
        )
    records = runs.records_of(path.parent, kept.record)
    frames = film.of_run(path.parent) if records else None
    again = datasets.duplicates((dataset.train, dataset.validation), samples) if split == "test" else None
    choices = (*chosen.choices, threads, *dataset.notes)
    return report.Content(kept, split, samples, predictions, choices, records, film=frames, duplicates=again)


def settings_of(kept: Checkpoint, path: Path, overrides: Sequence[str] = (), device: str | None = None) -> Config:
    """The config of the checkpoint from `path`, pointed at another dataset or device. Raises InputError where
    `overrides` set anything else, and ConfigError."""
    if strange := [text for text in overrides if not text.startswith("dataset.")]:
        raise InputError(f"--set {strange[0]}: only dataset.… can be set here; the rest is the checkpoint's")
    return configs.from_dict(kept.config.to_dict(), str(path), overrides, {"device": device} if device else None)


def dataset_of(kept: Checkpoint, config: Config, path: Path, data_dir: str | None = None) -> Dataset:
    """The dataset of `config`, for the network from `path`. Raises CheckpointError where its inputs or classes are
    others than those that the network was trained on, ConfigError, DataError, MachineError."""
    with config.locate():
        dataset = datasets.load(
            cast(DatasetConfig, config.dataset), seed=config.seed, data_dir=data_dir, like=kept.spec
        )
    if dataset.train.inputs.shape[1:] != kept.spec.shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (dataset.train.inputs.shape[1:], kept.spec.shape))
        raise CheckpointError(f"{path}: was trained on inputs of {wanted}, the dataset has {found}")
    return dataset


# ---------------------------------------------------------------- before the first step

_CHANGED = "the environment is not what it was when this state was saved, so the last bits may differ from an uninterrupted run's"


def _cure(config: Config) -> str:
    size = config.train.batch_size
    halved = (
        f"Halve train.batch_size (now {size}) and double train.accumulate, which makes the same steps"
        if size > 1
        else ""
    )
    return f"{halved}, or make the model smaller" if halved else "Make the model smaller"


def _go_on(folder: Path, data_dir: str | None) -> str:
    _, world, _, local_world = distributed.here()
    command = "nnx train" if world == local_world else "torchrun … -m nnx train"
    command += f" --nproc {world}" if world == local_world > 1 else ""
    return f"Go on with: {command} --resume {shlex.quote(str(folder))}{f' --data-dir {shlex.quote(data_dir)}' if data_dir else ''}"


def _stale(job: Job, folder: Path) -> bool:
    """Whether checkpoint.pt has to be written anew, as the run ended between the two files of its best epoch.

    Raises CheckpointError where the network of the best epoch is lost.
    """
    best, path = job.state.best, folder / "checkpoint.pt"
    if best is None:
        return False
    try:
        record = checkpoint.read(path).record
        why = f"{path}: is of another run than {job.source}"
    except CheckpointError as error:
        record, why = {}, str(error)
    if (
        record == best or record.get("epoch", 0) > job.state.epoch
    ):  # of a later save: the same training brings the same network about
        return False
    if best["epoch"] == job.state.epoch and not job.state.batch:
        return True
    raise CheckpointError(
        f"{why}. The network of the best epoch, {best['epoch']}, is lost; start anew in another --out"
    )


def _started(job: Job, folder: Path, batches: Resident, warnings: Sequence[str]) -> Started:
    state, data = job.state, job.dataset
    return Started(
        run=folder,
        choices=(*job.runtime.choices, *data.notes, data_path(job.config.dataset.name, data.train, batches)),
        samples={"train": len(data.train), "validation": len(data.validation)},
        layers=models.layers(state.model, data.spec),
        parameters=models.count(state.model),
        epochs=job.config.train.epochs,
        steps_per_epoch=state.steps_per_epoch,
        epoch=state.epoch,
        step=state.step,
        warnings=tuple(warnings),
    )


# ---------------------------------------------------------------- while it runs


def _record(state: State, end: EpochEnd, validation: Predictions) -> Epoch:
    """Write an epoch into the state's history, and say what it was."""
    record: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "train_loss": end.train_loss,
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
        "lr": end.lr,
    }
    state.history.append(record)
    over = state.over if state.epoch < state.config.train.epochs else None
    return Epoch(
        **record,
        seconds=end.seconds,
        samples_per_second=end.samples / end.seconds,
        is_best=state.best is record,
        stopping=over,
    )


def _watched(job: Job) -> Watch:
    """Looks after the job's network, on some of its training samples."""
    train = job.dataset.train
    return Watch(job.state, job.feed(train.take(probe(len(train)))), job.criterion)


# ---------------------------------------------------------------- at the end


def _tested(
    job: Job, folder: Path, choices: Sequence[Choice], metrics: list[dict[str, Any]], begun: float
) -> report.Content:
    """The best network on the test set, which is read here and nowhere else; with the run's summary, and all that its
    report shows."""
    best, test = _best_kept(job.state, folder), job.dataset.test()
    again = datasets.duplicates((job.dataset.train, job.dataset.validation), test)
    predictions = _predict(best, job.feed(test), job.runtime, job.criterion)
    summary = _summary(job, folder, best, predictions, metrics, time.perf_counter() - begun, again)
    return report.Content(best, "test", test, predictions, choices, metrics, summary, film.of_run(folder), again)


def _best_kept(state: State, folder: Path) -> Checkpoint:
    """The checkpoint of the best epoch. Raises CheckpointError where that is not the one in the folder."""
    kept = checkpoint.read(folder / "checkpoint.pt")
    if kept.record != state.best:
        raise CheckpointError(
            f"{folder / 'checkpoint.pt'}: is not of this run's best epoch; something else has written there"
        )
    return kept


def _predict(kept: Checkpoint, feed: Resident, chosen: Runtime, criterion: Criterion) -> Predictions:
    return evaluate(chosen.place(network(kept)), feed, criterion, chosen)


def _summary(
    job: Job,
    folder: Path,
    kept: Checkpoint,
    test: Predictions,
    metrics: list[dict[str, Any]],
    seconds: float,
    again: int | None,
) -> dict[str, Any]:
    known = [record for record in metrics if record["seconds"] is not None]
    trained = sum(record["seconds"] for record in known)
    return {
        "run": str(folder),
        "checkpoint": str(folder / "checkpoint.pt"),
        "report": str(folder / "report.html") if job.config.train.report else None,
        "epochs": job.state.epoch,
        "best_epoch": kept.record["epoch"],
        "val_accuracy": kept.record["val_accuracy"],
        "val_loss": kept.record["val_loss"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_samples": len(test.labels),
        "test_duplicates": again,
        "parameters": models.count(job.state.model),
        "train_seconds": trained,
        "seconds": seconds,
        "samples_per_second": sum(r["samples_per_second"] * r["seconds"] for r in known) / max(trained, 1e-9),
        "device": str(job.runtime.device),
        "precision": job.runtime.precision,
        "environment": runtime.environment(),
    }
