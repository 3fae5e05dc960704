"""What a run works with, all of it found and checked before anything is written."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nnx import checkpoint, datasets, losses, models
from nnx.checkpoint import Checkpoint
from nnx.config import Config
from nnx.datasets import Dataset, DatasetConfig, Split
from nnx.errors import CheckpointError, DeviceError
from nnx.events import Choice
from nnx.inference.classifier import Classifier, network
from nnx.loader.batches import Resident, cuts
from nnx.losses import Criterion
from nnx.preprocessing.spec import Spec
from nnx.run import folder as runs
from nnx.system import device as runtime
from nnx.system import distributed
from nnx.system.device import Runtime
from nnx.training import step as fuse
from nnx.training.loop import backpropagation, train_step
from nnx.training.state import State, StepFunction

# Where these are paths, the data may have moved: it's the samples that must be equal
MAY_MOVE = ("dataset.path", "dataset.labels", "dataset.test", "dataset.test_labels")
# What may be other than a resumed run began with
MAY_DIFFER = ("train.epochs", "train.save_every", "train.report", "train.film", "device", "threads", "dataset.root")


@dataclass(frozen=True)
class Job:
    """A run's parts. `saved` is what it goes on from, where it does, read from `source`."""

    config: Config
    runtime: Runtime
    dataset: Dataset
    criterion: Criterion
    state: State
    saved: Checkpoint | None
    source: Path

    def feed(self, split: Split) -> Resident:
        return Resident(split, self.dataset.spec, self.runtime.device)

    def step(self) -> StepFunction:
        """What makes a step, as the choice says: as is, or wrapped in what makes it faster (see nnx.training.step)."""
        how = next(choice.value for choice in self.runtime.choices if choice.what == "step")
        if how == "matrices":
            return train_step(fuse.matrices(fuse.with_gradient(self.config.loss, self.criterion), self.state.model))
        if distributed.here().world > 1:
            shared = backpropagation(self.criterion, self.runtime, distributed.sharing(self.state.model))
            return train_step(distributed.summing(shared, self.state.model))
        forward = {"fuse": fuse.compiled} if "compiled" in how else {}
        step = train_step(backpropagation(self.criterion, self.runtime, **forward))
        return fuse.cuda_graph(step) if "CUDA graph" in how else step

    @cached_property
    def data(self) -> str:
        """SHA-256 of the samples to train on and to validate with. Asked for when the run is first saved: 0.03 s for
        MNIST."""
        parts = (datasets.fingerprint(split) for split in (self.dataset.train, self.dataset.validation))
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the bits depend on besides config and data: when the run began, and now."""
        now = runtime.fingerprint(self.runtime) | {"train.epochs": self.config.train.epochs}
        saved = self.saved.environment if self.saved else None
        return {"began": saved["began"] if saved else now, "saved": now}

    @property
    def changed(self) -> str:
        """How the environment differs from that of the state which the run goes on from: "torch: 2.14.1 → 2.15.0", or
        nothing."""
        before = self.saved.environment["saved"] if self.saved and self.saved.environment else self.environment["saved"]
        return differences(before, self.environment["saved"], but=("train.epochs",))

    def snapshot(self) -> Checkpoint:
        """All that is needed to use the network, and to go on from here to the same bits."""
        state = self.state
        return Checkpoint(
            self.config,
            self.dataset.spec,
            state.evaluated.state_dict(),
            state.best or {},
            state.counters(),
            state.tensors(),
            self.environment,
            self.data,
        )


def prepare(
    config: Config, saved: Checkpoint | None = None, *, source: Path = Path(), data_dir: str | None = None
) -> Job:
    """The job of `config` before its first step, or where `saved`, read from `source`, stands. Nothing is written.

    Raises ConfigError, DataError, DeviceError, MachineError, and CheckpointError where `saved` is of other settings or
    other data.
    """
    if saved:
        _check_settings(saved, config, source)
    chosen = runtime.choose(config.device, config.precision, config.model.name)
    if config.deterministic:
        chosen = chosen.having(runtime.be_deterministic(chosen.device))
    with config.locate():
        dataset = datasets.load(cast(DatasetConfig, config.dataset), seed=config.seed, data_dir=data_dir)
        if chosen.device.type == "cpu":
            runtime.keep_memory()  # not before: the whole training data, now cut into parts, is given back
        torch.manual_seed(config.seed)
        model = models.build(config.model, dataset.spec, losses.outputs(config.loss, len(dataset.spec.classes)))
        criterion = build_criterion(config, dataset, chosen)
    chosen = workable(chosen, config, model, dataset.spec)
    work = models.multiply_adds(model, dataset.spec) * min(config.train.batch_size, len(dataset.train))
    chosen = chosen.having(runtime.set_threads(config.threads, work), fuse.choose(config, model, chosen))
    state = State.new(config, model, chosen, len(cuts(len(dataset.train), config.train)))
    job = Job(config, chosen, dataset, criterion, state, saved, source)
    if saved:
        _restore(job, saved)
    return job


def workable(chosen: Runtime, config: Config, model: nn.Module, spec: Spec) -> Runtime:
    """`chosen`, or float32 where torch has no kernels for this network in the precision: for an LSTM in bfloat16, say,
    on some CPUs.

    Raises DeviceError where that precision was asked for by name.
    """
    if chosen.dtype == torch.float32:
        return chosen
    try:
        with chosen.autocast():
            models.multiply_adds(model.to(chosen.device), spec)
        return chosen
    except RuntimeError as error:
        if runtime.is_out_of_memory(error):
            raise
        why = f"torch can't compute this {config.model.name} in {chosen.precision} on this {chosen.device.type}"
        if config.precision != "auto":
            raise DeviceError(f"{why}; use precision: float32") from None
        return runtime.choose(config.device, "float32", config.model.name).but(Choice("precision", "float32", why))


def ready(path: Path, device: str | None = None) -> tuple[Classifier, Runtime]:
    """The classifier in a checkpoint, or in that of the run in a folder, on a device by name or the best that there is,
    and what to compute with: in the precision that it was trained in and is evaluated in, or float32 where this machine
    does not have that.

    Raises CheckpointError, DeviceError.
    """
    kept = checkpoint.read(runs.checkpoint_in(path))
    model, config = network(kept), kept.config.model_copy(update={"device": device or "auto"})
    try:
        chosen = workable(runtime.choose(config.device, config.precision, config.model.name), config, model, kept.spec)
    except DeviceError:
        chosen = runtime.choose(config.device, "float32", config.model.name)
    return Classifier(model, kept.spec, chosen.device), chosen


def build_criterion(config: Config, dataset: Dataset, chosen: Runtime) -> Criterion:
    """The config's loss, with its class weights from the training labels. Raises ConfigError."""
    labels = torch.from_numpy(dataset.train.labels)
    counts = torch.bincount(labels, minlength=len(dataset.spec.classes)).tolist()
    return cast(losses.Loss, config.loss).build(counts, chosen.device)


def differences(old: dict[str, Any], new: dict[str, Any], *, but: tuple[str, ...] = ()) -> str:
    """What differs between two sets of settings, "key: old → new; ...", keys in `but` left aside."""
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in but]
    return "; ".join(f"{key}: {old.get(key)} → {new.get(key)}" for key in keys)


def _check_settings(saved: Checkpoint, config: Config, source: Path) -> None:
    if saved.training is None:
        raise CheckpointError(f"{source}: holds a network but no training state; resume from a last.pt")
    old, new = _flat(saved.config.to_dict()), _flat(config.to_dict())
    moved = [key for key in MAY_MOVE if isinstance(old.get(key), str) and isinstance(new.get(key), str)]
    if what := differences(old, new, but=(*MAY_DIFFER, *moved)):
        raise CheckpointError(
            f"{source}: was trained with other settings, which --resume can't change ({what}). Start anew in another --out"
        )
    begun = (saved.counters or {})["epoch"] + bool((saved.counters or {})["batch"])
    if config.train.epochs < begun:
        raise CheckpointError(
            f"{source}: is in its epoch {begun} already, so train.epochs can't be {config.train.epochs}; ask for more"
        )


def _restore(job: Job, saved: Checkpoint) -> None:
    if saved.data not in (None, job.data):
        where = datasets.place(cast(DatasetConfig, job.config.dataset), job.dataset.folder)
        raise CheckpointError(
            f"{job.source}: was trained on other data than {where} now holds; bring back the old, or start anew"
        )
    try:
        job.state.restore(saved.counters or {}, saved.training or {})
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{job.source}: its state does not fit its config") from None
    job.state.recording = job.environment["began"]["train.epochs"] == job.config.train.epochs


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return flat
