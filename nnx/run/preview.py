"""Preview a config without training it: its data, its network, the automatic choices, and the time of a run.

preview = preview_config(config)
preview.data.samples, preview.flops, preview.forecast
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nnx import datasets, losses, models
from nnx.config import Config
from nnx.datasets import Dataset, DatasetConfig, Split, mean_std
from nnx.events import Choice, LayerSummary
from nnx.loader.batches import describe_data_path
from nnx.preprocessing.spec import Spec
from nnx.run import dry_run
from nnx.run.dry_run import Throughput
from nnx.system import device as devices
from nnx.training.setup import TrainingSetup, prepare

EXAMPLES = 10  # classes with a sample shown


@dataclass(frozen=True)
class Example:
    """A training sample: its class and its inputs, (C, H, W) uint8 or (F,) floats before normalisation."""

    label: str
    inputs: NDArray[Any]


@dataclass(frozen=True)
class Data:
    """Facts about a dataset. `path` is its location, None where a library contains it. By split: the number of
    `samples`, the `size` in bytes. By class: the `counts` of training and of validation samples.

    `mean` and `std` normalise the inputs: one for each channel, in units of [0, 1], or one for each feature, in its own
    unit; `features` are their names. `duplicates` is the number of test samples that the training data also contains,
    None where they were not counted; `duplicate_examples` names some. A split without samples has 0 of all.
    """

    name: str
    path: str | None
    samples: dict[str, int]
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    shape: tuple[int, ...]
    dtype: str
    size: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: tuple[str, ...]
    duplicates: int | None
    duplicate_examples: tuple[str, ...]
    notes: tuple[Choice, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Forecast:
    """Estimates for a run: seconds, and bytes of memory at its peak. Measured over `steps` steps on this machine, under
    its load at that moment."""

    steps: int
    start: float  # to the first step
    training: float  # of an epoch
    validation: float  # of an epoch
    end: float  # to read the test set and to predict it
    epochs: int
    memory: int
    device_memory: int | None

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, without the time of saving to disk."""
        return self.start + self.epochs * (self.training + self.validation) + self.end


@dataclass(frozen=True)
class Preview:
    """The whole preview. `flops` are those of a forward pass of one sample."""

    config: Config
    data: Data
    layers: tuple[LayerSummary, ...]
    parameters: int
    flops: int
    choices: tuple[Choice, ...]
    forecast: Forecast | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        data, counts = asdict(replace(self.data, examples=())), self.data.counts
        del data["examples"], data["counts"]
        data["classes"] = [
            {"label": label, **{split: counts[split][k] for split in counts}}
            for k, label in enumerate(self.data.classes)
        ]
        return {
            "config": self.config.to_dict(),
            "dataset": data,
            "model": {
                "layers": [asdict(layer) for layer in self.layers],
                "parameters": self.parameters,
                "flops": self.flops,
            },
            "choices": [asdict(choice) for choice in self.choices],
            "forecast": self.forecast and asdict(self.forecast) | {"seconds": self.forecast.seconds},
            "warnings": list(self.warnings),
        }


def preview_config(
    config: Config,
    *,
    data_dir: str | None = None,
    seconds: float = 2.0,
    begun: float | None = None,
    trying: Callable[[], None] = lambda: None,
) -> Preview:
    """The preview of `config`. Only data that must be downloaded or decoded first is written.

    `seconds` is the length of the trial; 0 for none. `begun` is when the process began, by time.perf_counter().
    `trying` is called when the trial begins. Raises what training raises at its start: ConfigError, DataError,
    DeviceError, MachineError.
    """
    begun = time.perf_counter() if begun is None else begun
    with devices.explain_out_of_memory("Make train.batch_size, or the model, smaller"):
        setup = prepare(config, data_dir=data_dir, measure_speed=seconds > 0)
        batches = setup.loader(setup.dataset.train)
        path = describe_data_path(config.dataset.name, setup.dataset.train, batches)
        layers = models.layer_table(setup.state.model, setup.dataset.spec)
        parameters = models.count_parameters(setup.state.model)
        start = time.perf_counter() - begun
        if seconds:
            trying()
        throughput = dry_run.measure_throughput(setup, batches, seconds=seconds) if seconds else None
        before = time.perf_counter()
        data = facts(setup.dataset, cast(DatasetConfig, config.dataset))
        reading = time.perf_counter() - before
        flops = models.flops(
            config.model, setup.dataset.spec, losses.outputs(config.loss, len(setup.dataset.spec.classes))
        )
    return Preview(
        config,
        data,
        tuple(replace(layer, flops=flops.get(layer.name, 0)) for layer in layers),
        parameters,
        flops[""],
        (*setup.runtime.choices, path, *setup.unmeasured),
        _forecast(setup, throughput, start, reading, data.samples["test"]) if throughput else None,
        (f"in the trial, {throughput.trouble}",) if throughput and throughput.trouble else (),
    )


def facts(dataset: Dataset, config: DatasetConfig) -> Data:
    """Facts about the dataset of `config`. Of its test set: only its size, and how many of its samples are
    duplicates."""
    spec = dataset.spec
    test = dataset.test() if dataset.test else None
    labels = dataset.train.labels
    none = Split(dataset.train.inputs[:0], labels[:0])
    splits = {"train": dataset.train, "validation": dataset.validation or none}
    everything = {**splits, "test": test or none}
    duplicates = datasets.find_duplicates(dataset.seen, test) if test else None
    first = [int((labels == k).argmax()) for k in np.unique(labels)[:EXAMPLES]]
    offsets, scales = spec.columns.units if spec.columns else (0, 1)
    mean, std = mean_std(dataset.train.inputs) if spec.columns else (spec.mean, spec.std)
    return Data(
        name=config.name,
        path=getattr(config, "path", None) or (None if config.packaged else str(dataset.folder)),
        samples={split: len(samples) for split, samples in everything.items()},
        classes=spec.classes,
        counts={
            split: tuple(np.bincount(part.labels, minlength=len(spec.classes)).tolist())
            for split, part in splits.items()
        },
        shape=spec.shape,
        dtype=str(dataset.train.inputs.dtype),
        size={split: samples.inputs.nbytes for split, samples in everything.items()},
        mean=tuple(np.array(mean) * scales + offsets),
        std=tuple(np.array(std) * scales),
        features=() if spec.is_image else _names(spec),
        duplicates=duplicates.count if duplicates else None,
        duplicate_examples=duplicates.examples if duplicates else (),
        notes=dataset.notes,
        examples=tuple(
            Example(spec.classes[labels[place]], np.asarray(dataset.train.inputs[place]) * scales + offsets)
            for place in first
        ),
    )


def _names(spec: Spec) -> tuple[str, ...]:
    """Names of a row's features: those of a table's columns, else numbers."""
    return spec.columns.feature_names if spec.columns else tuple(map(str, range(spec.size)))


def _forecast(setup: TrainingSetup, throughput: Throughput, start: float, reading: float, test: int) -> Forecast:
    return Forecast(
        steps=throughput.steps,
        start=start + throughput.once,
        training=throughput.a_step * setup.state.steps_per_epoch,
        validation=throughput.a_sample * len(setup.dataset.validation or ()),
        end=reading + throughput.a_sample * test,
        epochs=setup.config.train.epochs,
        memory=throughput.memory,
        device_memory=throughput.device_memory,
    )
