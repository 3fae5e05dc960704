"""All that a run trains with, found and checked before anything is written."""

import hashlib
import itertools
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nnx import datasets, losses, models
from nnx.checkpoint import Checkpoint
from nnx.config import Config
from nnx.config.registry import Component
from nnx.datasets import Dataset, DatasetConfig, Split
from nnx.errors import CheckpointError, DeviceError
from nnx.events import Choice
from nnx.loader.batches import BatchLoader, batch_bounds
from nnx.losses import Criterion
from nnx.models import ModelConfig
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices
from nnx.system import distributed
from nnx.system.device import Runtime
from nnx.training import film, tuning
from nnx.training.state import State, StepFunction
from nnx.training.step import StepMethod, choose_step, make_step
from nnx.training.tuning import Tuned

# Paths: the data may have moved, as long as the samples are equal
PATH_KEYS = ("dataset.path", "dataset.labels", "dataset.test", "dataset.test_labels")
# What a resumed run may change
CHANGEABLE_KEYS = (
    "train.epochs",
    "train.save_every",
    "train.report",
    "train.film",
    "device",
    "threads",
    "dataset.root",
)


@dataclass(frozen=True)
class TrainingSetup:
    """The parts of a run. `saved` is the checkpoint that it resumes from, if it does, read from `source`."""

    config: Config
    runtime: Runtime
    dataset: Dataset
    criterion: Criterion  # the loss that training minimises
    evaluation_criterion: (
        Criterion  # the loss that validation and test report: without label smoothing and class weights
    )
    state: State
    step_method: StepMethod
    saved: Checkpoint | None
    source: Path

    def loader(self, split: Split) -> BatchLoader:
        return BatchLoader(split, self.dataset.spec, self.runtime.device)

    def make_step(self) -> StepFunction:
        """The function that makes one step, by the method that was chosen."""
        return make_step(self.step_method, self.config.loss, self.criterion, self.runtime, self.state.model)

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of the training and validation samples. Computed at the run's first save: 0.03 s for MNIST."""
        return hash_training_data(self.dataset)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the bits depend on besides config and data: at the run's start, and now."""
        now = devices.environment_fingerprint(self.runtime) | {"train.epochs": self.config.train.epochs}
        saved = self.saved.environment if self.saved else None
        return {"began": saved["began"] if saved else now, "saved": now}

    @property
    def loss_note(self) -> Choice | None:
        """How training and validation loss differ, where they do."""
        trained = []
        if losses.evaluated_loss(self.config.loss) != self.config.loss:
            trained.append("training loss includes label smoothing and class weights, validation and test loss do not")
        if self.config.train.ema:
            trained.append("training loss is of the raw weights, validation and test loss of their moving average")
        return Choice("loss", self.config.loss.name, "; ".join(trained)) if trained else None

    @property
    def schedule_note(self) -> Choice | None:
        """The jump of the learning rate where a resumed run has another number of epochs, on which its schedule
        depends."""
        state, step = self.state, self.state.step - 1
        if not self.saved or step < 0:
            return None
        epochs = self.saved.config.train.epochs
        before = state.lr_at(step, epochs)
        jump = f"{before:.1e} → {state.lr:.1e}"
        if before == state.lr_at(step, self.config.train.epochs) or len(set(jump.split(" → "))) == 1:
            return None
        reason = f"the {self.config.schedule.name} schedule now spans {self.config.train.epochs} epochs, not {epochs}"
        return Choice("learning rate", jump, reason)

    @cached_property
    def film_choice(self) -> Choice:
        """Whether the run is filmed, `on` or `off`, and why."""
        asked = self.config.train.film
        if asked != "auto":
            return Choice("film", "on" if asked else "off", "as requested")
        if not self.config.train.report:
            return Choice("film", "off", "the report that shows it is off too")
        if self.saved and not (self.source.parent / film.NAME).exists():
            return Choice("film", "off", "the run was not filmed from its start")
        if self.dataset.validation is None or not len(self.dataset.validation):
            return Choice("film", "off", "it shows validation samples, and there are none")
        if self.dataset.spec.shape == (2,):
            return Choice("film", "on", "of two features it takes less than a second")
        if self.config.dataset.name == "digits":
            return Choice("film", "on", "of digits it takes less than a second")
        return Choice(
            "film", "off", "automatic for digits and data of two features; train.film: true records any training"
        )

    @property
    def unmeasured(self) -> tuple[Choice, ...]:
        """What the run does not measure because the dataset has no samples for it, and what follows."""
        notes = []
        if self.dataset.validation is None:
            reason = "no validation samples (dataset.validation: 0): the last epoch is kept; early stopping is off"
            notes.append(Choice("validation", "not measured", reason))
        if self.dataset.test is None:
            reason = "no test samples (dataset.test: 0): how the network does on new samples is unknown"
            if self.dataset.validation:
                reason = (
                    "no test samples (dataset.test: 0): validation accuracy, which chose the epoch, may be too high"
                )
            notes.append(Choice("test", "not measured", reason))
        return tuple(notes)

    @property
    def changed(self) -> str:
        """How the environment differs from that of the state which the run resumes: "torch: 2.14.1 → 2.15.0"; empty
        where it does not."""
        now = self.environment["saved"]
        before = self.saved.environment["saved"] if self.saved and self.saved.environment else now
        return describe_differences(before, now, but=("train.epochs",))

    def checkpoint(self) -> Checkpoint:
        """Everything that using the network takes, and that continuing from here to the same bits takes."""
        state = self.state
        return Checkpoint(
            self.config,
            self.dataset.spec,
            state.evaluated.state_dict(),
            state.best or {},
            state.counters(),
            state.tensors(),
            self.environment,
            self.data_hash,
        )


def prepare(
    config: Config,
    saved: Checkpoint | None = None,
    *,
    source: Path = Path(),
    data_dir: str | None = None,
    measure_speed: bool = False,
) -> TrainingSetup:
    """The setup of `config` before its first step, or at the step of `saved`, which was read from `source`.

    With `measure_speed`, a long run's open choices are measured, for which the config of the setup then has values (see
    nnx.training.tuning). Only the data cache is written to.

    Raises ConfigError, DataError, DeviceError, MachineError, and CheckpointError where `saved` has other settings or
    other data.
    """
    if saved:
        _check_settings(saved, config, source)
    with config.locate():
        dataset = datasets.load(cast(DatasetConfig, config.dataset), seed=config.seed, data_dir=data_dir)
    setup = _assemble(config, dataset, saved, source)
    tuned = _tune(setup) if measure_speed and not saved else Tuned(config)
    if tuned.choices:
        setup = _assemble(tuned.config, dataset, saved, source, tuned)
    if saved:
        _restore(setup, saved)
    return setup


def _assemble(
    config: Config, dataset: Dataset, saved: Checkpoint | None, source: Path, tuned: Tuned | None = None
) -> TrainingSetup:
    """The setup of `config` before its first step. Sets torch's seed and number of threads."""
    runtime = runtime_for(config)
    if config.deterministic:
        runtime = runtime.adding(devices.set_deterministic(runtime.device))
    with config.locate():
        torch.manual_seed(config.seed)
        model = models.build(config.model, dataset.spec, losses.outputs(config.loss, len(dataset.spec.classes)))
        criterion = build_criterion(config.loss, dataset, runtime)
        evaluation_criterion = build_criterion(losses.evaluated_loss(config.loss), dataset, runtime)
    runtime = with_supported_precision(runtime, config, model, dataset.spec)
    multiply_adds = models.multiply_adds(model, dataset.spec) * min(config.train.batch_size, len(dataset.train))
    threads = devices.set_threads(config.threads, multiply_adds)
    method, step = choose_step(config, model, runtime)
    runtime = runtime.adding(threads, step)
    if tuned:
        runtime = replace(runtime, choices=tuple(map(tuned.reason, runtime.choices)))
    state = State.new(config, model, runtime, len(batch_bounds(len(dataset.train), config.train)))
    return TrainingSetup(config, runtime, dataset, criterion, evaluation_criterion, state, method, saved, source)


def _tune(setup: TrainingSetup) -> Tuned:
    """The config of a new run on the CPU, with what measurements say about its open choices."""
    config, runtime = setup.config, setup.runtime
    single = distributed.current().world == 1
    operations = 6 * models.multiply_adds(setup.state.model, setup.dataset.spec) * len(setup.dataset.train)
    if not single or runtime.device.type != "cpu" or operations * config.train.epochs < tuning.SMALL:
        return Tuned(config)
    samples = len(setup.dataset.train) * config.train.epochs
    shape = setup.dataset.spec.shape
    facts = {
        **devices.environment_fingerprint(runtime),
        "model": config.model.model_dump(mode="json"),
        "shape": shape,
        "classes": len(setup.dataset.spec.classes),
        "batch": [config.train.batch_size, config.train.accumulate],
        "optimizer": config.optimizer.name,
        "loss": config.loss.name,
    }
    name = f"{config.model.name} for inputs of {' x '.join(map(str, shape))}, batches of {config.train.batch_size}"
    workload = tuning.Workload(name, facts)
    threads = torch.get_num_threads()
    try:
        return tuning.tune(config, _questions(setup), workload, samples, lambda candidate: _trial(candidate, setup))
    finally:
        torch.set_num_threads(threads)


def _questions(setup: TrainingSetup) -> list[tuning.Question]:
    """What is open, and can be measured: the memory layout, the number of threads, and the kind of step."""
    config, runtime = setup.config, setup.runtime
    questions = []
    if config.layout == "auto" and cast(ModelConfig, config.model).channels_last:
        layouts = ("channels_last", "channels_first")
        values = layouts if runtime.channels_last else layouts[::-1]
        questions.append(tuning.Question("layout", "layout", values, [v.replace("_", " ") for v in values]))
    if setup.step_method is StepMethod.MATRICES:
        methods = (StepMethod.MATRICES.value, StepMethod.AUTOGRAD.value)
        questions.append(tuning.Question("step", "compile", ("auto", False), methods))
    if config.threads == "auto" and "OMP_NUM_THREADS" not in os.environ:
        chosen = torch.get_num_threads()
        cores = devices.available_cores()
        threads = [chosen, *sorted({1, max(1, cores // 2), cores} - {chosen})]
        questions.append(tuning.Question("threads", "threads", threads, [str(n) for n in threads]))
    return questions


def _trial(config: Config, setup: TrainingSetup) -> tuning.Trial:
    """Steps of `config` on the batches of `setup`, one for each call, with the number of threads of `config`."""
    trial = _assemble(config, setup.dataset, None, Path())
    step = trial.make_step()
    threads = torch.get_num_threads()
    epochs = (trial.loader(setup.dataset.train).epoch(n, config.train, config.seed) for n in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    trial.state.model.train()

    def make_step() -> int:
        torch.set_num_threads(threads)
        inputs, targets = next(batches)
        trial.state.begin_step()
        trial.state.end_step(step(trial.state, inputs, targets), len(inputs))
        return len(inputs)

    return make_step


def hash_training_data(dataset: Dataset) -> str:
    """SHA-256 of the training and validation samples."""
    parts = (datasets.fingerprint(split) for split in dataset.seen)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def runtime_for(config: Config, *, device: str | None = None, precision: str | None = None) -> Runtime:
    """The runtime for the config's device, precision and architecture, or for another device or precision.

    Raises DeviceError.
    """
    model = type(cast(ModelConfig, config.model))
    return devices.choose_runtime(
        device or config.device,
        precision or config.precision,
        layout=config.layout,
        channels_last=model.channels_last,
        prefers_bfloat16=model.prefers_bfloat16,
    )


def with_supported_precision(
    runtime: Runtime, config: Config, model: nn.Module, spec: Spec, *, device: str | None = None
) -> Runtime:
    """`runtime`, or one in float32 where torch has no kernels for this network in its precision, such as an LSTM in
    bfloat16 on some CPUs.

    Raises DeviceError where that precision was asked for by name.
    """
    if runtime.dtype == torch.float32:
        return runtime
    try:
        with runtime.autocast():
            models.multiply_adds(model.to(runtime.device), spec)
        return runtime
    except RuntimeError as error:
        if devices.is_out_of_memory(error):
            raise
        why = f"torch can't compute this {config.model.name} in {runtime.precision} on this {runtime.device.type}"
        if config.precision != "auto":
            raise DeviceError(f"{why}; use precision: float32") from None
        exact = runtime_for(config, device=device, precision="float32")
        return exact.replacing(Choice("precision", "float32", why))


def build_criterion(loss: Component, dataset: Dataset, runtime: Runtime) -> Criterion:
    """The loss function, with class weights computed from the training labels. Raises ConfigError."""
    labels = torch.from_numpy(dataset.train.labels)
    counts = torch.bincount(labels, minlength=len(dataset.spec.classes)).tolist()
    return cast(losses.Loss, loss).build(counts, runtime.device)


def describe_differences(old: dict[str, Any], new: dict[str, Any], *, but: tuple[str, ...] = ()) -> str:
    """The differences between two sets of settings, except for the keys in `but`: "key: old → new; ..."."""
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in but]
    return "; ".join(f"{key}: {old.get(key)} → {new.get(key)}" for key in keys)


def _check_settings(saved: Checkpoint, config: Config, source: Path) -> None:
    if saved.training is None:
        raise CheckpointError(f"{source}: contains a network but no training state; resume from a last.pt")
    old = _flat(saved.config.to_dict())
    new = _flat(config.to_dict())
    moved = [key for key in PATH_KEYS if isinstance(old.get(key), str) and isinstance(new.get(key), str)]
    if changes := describe_differences(old, new, but=(*CHANGEABLE_KEYS, *moved)):
        settings = f"was trained with other settings, which --resume can't change ({changes})"
        raise CheckpointError(f"{source}: {settings}. Start a new run in another --out")
    begun = (saved.counters or {})["epoch"] + bool((saved.counters or {})["batch"])
    if config.train.epochs < begun:
        raise CheckpointError(
            f"{source}: is already in epoch {begun}, so train.epochs can't be {config.train.epochs}; set more epochs"
        )


def _restore(setup: TrainingSetup, saved: Checkpoint) -> None:
    if saved.data not in (None, setup.data_hash):
        where = datasets.describe_location(cast(DatasetConfig, setup.config.dataset), setup.dataset.folder)
        raise CheckpointError(
            f"{setup.source}: was trained on other data than {where} now contains; restore it, or start a new run"
        )
    try:
        setup.state.restore(saved.counters or {}, saved.training or {})
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{setup.source}: its state does not fit its config") from None
    setup.state.recording = setup.environment["began"]["train.epochs"] == setup.config.train.epochs


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings, by dotted key."""
    flat = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return flat
