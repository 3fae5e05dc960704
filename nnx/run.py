"""The straight line: config -> dataset -> model -> state -> train -> checkpoint -> evaluate -> summary."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nnx import checkpoint, datasets, fuse, losses, models, runs, runtime
from nnx import config as configs
from nnx.checkpoint import Checkpoint
from nnx.config import Config
from nnx.datasets import Dataset, DatasetConfig, Split
from nnx.errors import CheckpointError, DeviceError, InputError, Stopped
from nnx.evaluation import Predictions, evaluate, metrics
from nnx.events import Choice, Epoch, Event, Finished, Started
from nnx.feed.resident import EVALUATION_BATCH, Resident, cuts
from nnx.losses import Criterion
from nnx.predict import network
from nnx.runtime import Runtime
from nnx.spec import Spec
from nnx.state import State, StepFunction
from nnx.training import EpochEnd, backpropagation, check_finite, train, train_step


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its checkpoint, and the final figures."""

    folder: Path
    checkpoint: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a run works with, all of it checked; nothing is written yet."""

    config: Config
    runtime: Runtime
    dataset: Dataset
    criterion: Criterion
    state: State
    folder: Path

    def feed(self, split: Split) -> Resident:
        return Resident(split, self.dataset.spec, self.runtime.device)


def run(
    config: Config,
    *,
    out: Path | None = None,
    force: bool = False,
    resume: bool = False,
    data_dir: str | None = None,
    signal: Callable[[], int] = lambda: 0,
) -> Iterator[Event]:
    """Train `config` from start to end, yielding what happens. Once `signal()` is not 0, the state is saved and Stopped raised.

    Raises InputError for wrong input before anything is written, MachineError, and DivergedError.
    """
    begun = time.perf_counter()
    job = _prepare(config, out, force=force, resume=resume, data_dir=data_dir)
    state, folder = job.state, job.folder
    batches, validation = job.feed(job.dataset.train), job.feed(job.dataset.validation)
    if not resume:
        runs.create(folder)
        runs.write_text(folder / "config.yaml", config.to_yaml())
    times = runs.read_metrics(folder, state.epoch)
    runs.write_metrics(folder, times)
    yield _started(job, batches)

    step = _step(job)
    log_every = max(1, min(50, state.steps_per_epoch // 10))
    for event in () if _over(state) else train(state, batches, step, log_every=log_every, stopping=lambda: bool(signal())):
        if isinstance(event, EpochEnd):
            measured = evaluate(state.evaluated, validation, job.criterion, job.runtime)
            check_finite(measured.loss, "validation", state)
            epoch = _record(state, event, measured)
            times.append({key: value for key, value in asdict(epoch).items() if key not in ("is_best", "stopping")})
            runs.append_metrics(folder, times[-1])
            if epoch.is_best:
                checkpoint.write(folder / "checkpoint.pt", replace(_snapshot(job), counters=None, training=None))
            checkpoint.write(folder / "last.pt", _snapshot(job))
            yield epoch
        else:
            yield event
        if number := signal():
            checkpoint.write(folder / "last.pt", _snapshot(job))
            go_on = f"nnx train {folder / 'config.yaml'} --out {folder} --resume"
            raise Stopped(f"stopped at step {state.step}, and saved. Go on with: {go_on}", signal=number)
        if _over(state):
            break

    kept = checkpoint.read(folder / "checkpoint.pt")
    predictions = _predict(kept, job.feed(job.dataset.test()), job.runtime, job.criterion)
    summary = _summary(job, kept, predictions, times, time.perf_counter() - begun)
    runs.write_json(folder / "summary.json", summary)
    yield Finished(summary)


def evaluate_checkpoint(
    path: Path,
    *,
    split: str = "test",
    device: str | None = None,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
) -> tuple[dict[str, Any], Sequence[Choice]]:
    """The figures of the checkpoint in `path` on a split of its dataset, or of the dataset that `overrides` make of it.

    Raises CheckpointError, ConfigError, DataError, DeviceError.
    """
    kept = checkpoint.read(path)
    if strange := [text for text in overrides if not text.startswith("dataset.")]:
        raise InputError(f"--set {strange[0]}: only dataset.… can be set here; the rest is the checkpoint's")
    config = configs.from_dict(kept.config.to_dict(), str(path), overrides, {"device": device} if device else None)
    chosen = runtime.choose(config.device, config.precision, config.model.name)
    with config.locate():
        dataset = datasets.load(cast(DatasetConfig, config.dataset), seed=config.seed, data_dir=data_dir)
    if (dataset.spec.shape, dataset.spec.classes) != (kept.spec.shape, kept.spec.classes):
        raise CheckpointError(
            f"{path}: was trained on {_facts(kept.spec.shape, kept.spec.classes)}, "
            f"the dataset has {_facts(dataset.spec.shape, dataset.spec.classes)}"
        )
    model = network(kept)
    chosen = _workable(chosen, config, model, kept.spec)
    threads = runtime.set_threads(config.threads, models.multiply_adds(model, kept.spec) * EVALUATION_BATCH)
    feed = Resident(dataset.split(split), kept.spec, chosen.device)
    criterion = _criterion(config, dataset, chosen)
    return metrics(_predict(kept, feed, chosen, criterion), kept.spec.classes, split), (*chosen.choices, threads)


# ---------------------------------------------------------------- before the first step


def _prepare(config: Config, out: Path | None, *, force: bool, resume: bool, data_dir: str | None) -> Job:
    """Everything that can be wrong with the input is found here; nothing is written."""
    chosen = runtime.choose(config.device, config.precision, config.model.name)
    if resume and out is None:
        raise InputError("--resume goes on with the run in --out; name that folder")
    folder = out if resume and out else runs.choose(out, config.recipe, force=force)
    saved = _resumable(folder / "last.pt", config) if resume else None
    with config.locate():
        dataset = datasets.load(cast(DatasetConfig, config.dataset), seed=config.seed, data_dir=data_dir)
        if chosen.device.type == "cpu":
            runtime.keep_memory()  # not before: the whole training data, now cut into parts, is given back
        torch.manual_seed(config.seed)
        model = models.build(config.model, dataset.spec, losses.outputs(config.loss, len(dataset.spec.classes)))
        criterion = _criterion(config, dataset, chosen)
    chosen = _workable(chosen, config, model, dataset.spec)
    work = models.multiply_adds(model, dataset.spec) * min(config.train.batch_size, len(dataset.train))
    chosen = chosen.having(runtime.set_threads(config.threads, work), fuse.choose(config, model, chosen))
    state = State.new(config, model, chosen, len(cuts(len(dataset.train), config.train)))
    if saved:
        try:
            state.restore(saved.counters or {}, saved.training or {})
        except (KeyError, RuntimeError, ValueError, TypeError):
            raise CheckpointError(f"{folder / 'last.pt'}: its state does not fit the config") from None
    return Job(config, chosen, dataset, criterion, state, folder)


def _workable(chosen: Runtime, config: Config, model: nn.Module, spec: Spec) -> Runtime:
    """`chosen`, or float32 where torch has no kernels for this network in the precision: for an LSTM in bfloat16, say, on some CPUs.

    Raises DeviceError where that precision was asked for by name.
    """
    if chosen.dtype == torch.float32:
        return chosen
    try:
        with chosen.autocast():
            models.multiply_adds(model.to(chosen.device), spec)
        return chosen
    except RuntimeError:
        why = f"torch can't compute this {config.model.name} in {chosen.precision} on this {chosen.device.type}"
        if config.precision != "auto":
            raise DeviceError(f"{why}; use precision: float32") from None
        return runtime.choose(config.device, "float32", config.model.name).but(Choice("precision", "float32", why))


def _step(job: Job) -> StepFunction:
    """What makes a step, as the choice says: as is, or wrapped in what makes it faster (see nnx.fuse)."""
    how = next(choice.value for choice in job.runtime.choices if choice.what == "step")
    if how == "matrices":
        return train_step(fuse.matrices(fuse.with_gradient(job.config.loss, job.criterion), job.state.model))
    forward = {"fuse": fuse.compiled} if "compiled" in how else {}
    step = train_step(backpropagation(job.criterion, job.runtime, **forward))
    return fuse.cuda_graph(step) if "CUDA graph" in how else step


def _criterion(config: Config, dataset: Dataset, chosen: Runtime) -> Criterion:
    labels = torch.from_numpy(dataset.train.labels)
    counts = torch.bincount(labels, minlength=len(dataset.spec.classes)).tolist()
    return cast(losses.Loss, config.loss).build(counts, chosen.device)


def _resumable(path: Path, config: Config) -> Checkpoint:
    """The checkpoint to go on from. Raises CheckpointError where it was trained with other settings; epochs, device and threads may
    differ."""
    saved = checkpoint.read(path)
    if saved.training is None:
        raise CheckpointError(f"{path}: holds a network but no training state; resume from a last.pt")
    old, new = (_flat(c.to_dict()) for c in (saved.config, config))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in ("train.epochs", "device", "threads")]
    if changed:
        what = "; ".join(f"{key}: {old.get(key)} → {new.get(key)}" for key in changed)
        raise CheckpointError(f"{path}: was trained with other settings, which --resume can't change ({what}). Start anew in another --out")
    return saved


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return flat


def _started(job: Job, batches: Resident) -> Started:
    state, data = job.state, job.dataset
    megabytes = (data.train.inputs.nbytes + data.validation.inputs.nbytes) / 1e6
    size = f"all {megabytes:,.1f} MB of it, as {data.train.inputs.dtype},"
    device = batches.inputs.device
    where = "memory" if device.type == "cpu" else f"memory of {device}"
    path = Choice(
        "data path",
        f"{job.config.dataset.name} in {where}",
        f"{size} {'fits' if device == state.loss.device else 'is too much for the device'}",
    )
    return Started(
        run=job.folder,
        choices=(*job.runtime.choices, path),
        samples={"train": len(data.train), "validation": len(data.validation)},
        layers=models.layers(state.model, data.spec),
        parameters=models.count(state.model),
        epochs=job.config.train.epochs,
        steps_per_epoch=state.steps_per_epoch,
        epoch=state.epoch,
        step=state.step,
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
    over = _over(state) if state.epoch < state.config.train.epochs else None
    return Epoch(
        **record,
        seconds=end.seconds,
        samples_per_second=end.samples / end.seconds,
        is_best=_best(state.history) is record,
        stopping=over,
    )


def _best(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of the epochs with the highest validation accuracy and, among those, the lowest loss."""
    return min(history, key=lambda record: (-record["val_accuracy"], record["val_loss"]))


def _over(state: State) -> str | None:
    """Why training ends before its last epoch, if it does."""
    patience = state.config.train.patience
    if patience is None or not state.history or (since := state.epoch - _best(state.history)["epoch"]) < patience:
        return None
    return f"no better validation accuracy for {since} epochs"


def _snapshot(job: Job) -> Checkpoint:
    state = job.state
    kept = _best(state.history) if state.history else {}
    return Checkpoint(job.config, job.dataset.spec, state.evaluated.state_dict(), kept, state.counters(), state.tensors())


# ---------------------------------------------------------------- at the end


def _predict(kept: Checkpoint, feed: Resident, chosen: Runtime, criterion: Criterion) -> Predictions:
    return evaluate(chosen.place(network(kept)), feed, criterion, chosen)


def _summary(job: Job, kept: Checkpoint, test: Predictions, times: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    trained = sum(record["seconds"] for record in times)
    return {
        "run": str(job.folder),
        "checkpoint": str(job.folder / "checkpoint.pt"),
        "epochs": job.state.epoch,
        "best_epoch": kept.record["epoch"],
        "val_accuracy": kept.record["val_accuracy"],
        "val_loss": kept.record["val_loss"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_samples": len(test.labels),
        "parameters": models.count(job.state.model),
        "train_seconds": trained,
        "seconds": seconds,
        "samples_per_second": sum(r["samples_per_second"] * r["seconds"] for r in times) / max(trained, 1e-9),
        "device": str(job.runtime.device),
        "precision": job.runtime.precision,
        "environment": runtime.environment(),
    }


def _facts(shape: tuple[int, ...], classes: tuple[str, ...]) -> str:
    return f"{'x'.join(map(str, shape))} inputs and {len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
