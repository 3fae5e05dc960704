"""What a network has learned and why it decides as it does: one explainer per file, each with pictures and numbers.

The file name is the explainer's name. The first line of the file says what it shows. It has two functions:

    applies(checkpoint) -> None if it can explain this checkpoint, else the reason why not. May raise MachineError.
    explain(subject) -> Explanation

    for name, result in explain(subject):  # in alphabetical order
        result  # an Explanation, or the reason why there is none
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import losses, models
from nnx.checkpoint import Checkpoint, build_network
from nnx.config.registry import suggest
from nnx.datasets import Split
from nnx.errors import InputError, MachineError
from nnx.explain import _draw
from nnx.models import _layer_outputs
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.system.device import mix_seed

Measurement = TypeVar("Measurement")


@dataclass
class Subject:
    """What is explained: a network, and its predictions for N raw samples, as the dataset contains them.

    `network` is in evaluation mode, on the device to which `prepare` moves its inputs. `data` returns a split by its
    name (train, validation, test); each split is loaded on its first use, and then cached. `split_names` returns the
    names of the splits that have samples, as Dataset does.
    """

    checkpoint: Checkpoint
    network: nn.Module
    prepare: Normalise
    images: NDArray[np.uint8] | NDArray[np.float32]  # (N, C, H, W), or (N, F) rows of a table
    labels: NDArray[np.int64] | None  # (N,), if known
    names: list[str]  # of the samples
    data: Callable[[str], Split] = field(repr=False)
    seed: int = 0
    split_names: Callable[[], tuple[str, ...]] = field(default=lambda: ("test", "validation", "train"), repr=False)
    _measured: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        self.data = cache(self.data)

    def measured(self, measure: "Callable[[Subject], Measurement]") -> Measurement:
        """The result of measure(subject), which several explainers use: measured on the first call, then cached."""
        if measure not in self._measured:
            self._measured[measure] = measure(self)
        return cast(Measurement, self._measured[measure])

    @property
    def held_out_name(self) -> str:
        """The split to measure on: test, or, if the dataset has none, validation or train."""
        return self.split_names()[0]

    @property
    def held_out(self) -> Split:
        """The samples to measure on."""
        return self.data(self.held_out_name)

    @property
    def held_out_word(self) -> str:
        """What texts call the samples to measure on: "test", "validation" or "training" samples."""
        return {"train": "training"}.get(self.held_out_name, self.held_out_name)

    @property
    def spec(self) -> Spec:
        return self.checkpoint.spec

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def features(self) -> list[str]:
        """The name of each column of a table."""
        if self.spec.columns:
            return list(self.spec.columns.feature_names)
        return [f"feature {n}" for n in range(self.spec.size)]

    @cached_property
    def layer_titles(self) -> dict[str, str]:
        """{name: title} of the input, the layers and the logits: "Layer 1: conv 3×3, 16 filters (stages.0)"."""
        return _layer_outputs.layer_titles(self.network, self.inputs(self.images[:1]))

    def short_title(self, layer: str) -> str:
        """The beginning of a layer's title, where there is little room: "Layer 1: conv 3×3"."""
        return _layer_outputs.short_title(self.layer_titles[layer])

    @property
    def device(self) -> torch.device:
        return self.prepare.factor.device

    @cached_property
    def untrained(self) -> nn.Module:
        """The control: the same architecture with new random weights. Equal seeds give equal weights.

        These are not the initial weights of the training: the trained network still contains much of those, which would
        make the two alike.
        """
        return self._random_network(mix_seed(self.seed, 1))

    @cached_property
    def initial(self) -> nn.Module:
        """The network before its first training step."""
        return self._random_network(self.seed)

    def _random_network(self, seed: int) -> nn.Module:
        config = self.checkpoint.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = models.build(config.model, self.spec, losses.outputs(config.loss, len(self.classes)))
        return network.to(self.device).eval()

    def inputs(self, images: NDArray[Any] | None = None) -> Tensor:
        """Raw samples, by default the subject's own -> inputs of the network: normalised, float32, on its device."""
        raw = self.images if images is None else images
        return self.prepare(torch.from_numpy(np.ascontiguousarray(raw)).to(self.device))

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(N, K) the predicted probabilities of the samples."""
        with torch.no_grad():
            probabilities: NDArray[np.float32] = losses.probabilities(self.network(self.inputs())).cpu().numpy()
        return probabilities

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable class of each sample."""
        classes: NDArray[np.int64] = self.probabilities.argmax(1)
        return classes


@dataclass(frozen=True)
class Picture:
    """A PNG. `name` is its file name without the suffix; `caption` says what the picture shows."""

    name: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Explanation:
    """Pictures, a text that says how to read them, and the numbers behind them as plain JSON values."""

    reading: str
    pictures: tuple[Picture, ...]
    figures: dict[str, Any]


def build_subject(
    checkpoint: Checkpoint,
    data: Callable[[str], Split],
    images: NDArray[Any],
    names: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    *,
    split_names: Callable[[], tuple[str, ...]] | None = None,
    device: str | torch.device = "cpu",
) -> Subject:
    """The network of a checkpoint on the device, with the samples to explain. By default the data has all splits.
    Raises CheckpointError if the weights do not fit."""
    device = torch.device(device)
    network = build_network(checkpoint).to(device).eval()
    prepare = Normalise(checkpoint.spec, device)
    subject = Subject(checkpoint, network, prepare, images, labels, list(names), data, seed=checkpoint.config.seed)
    subject.split_names = split_names or subject.split_names
    return subject


def one_per_class(split: Split, classes: int, limit: int = 10) -> NDArray[np.int64]:
    """The indices of the first sample of each class, for at most `limit` classes: the samples to explain by default."""
    labels, first = np.unique(split.labels, return_index=True)
    return first[labels < classes][:limit].astype(np.int64)


# ---------------------------------------------------------------- the explainers


def names() -> list[str]:
    """The names of all explainers, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def module(name: str) -> ModuleType:
    """The module of an explainer. Raises InputError with a suggestion if there is none of that name."""
    if name not in (known := names()):
        raise InputError(f"unknown explainer {name!r}{suggest(name, known)}")
    return importlib.import_module(f"{__name__}.{name}")


def choose(checkpoint: Checkpoint, only: Sequence[str] | None = None) -> dict[str, str | None]:
    """The explainers to run, all or `only` some; the value is None, or the reason why one does not apply to this
    checkpoint.

    Raises InputError if one in `only` is unknown or does not apply; MachineError if it needs a package.
    """
    chosen: dict[str, str | None] = {}
    for name in sorted(set(only)) if only else names():
        try:
            chosen[name] = module(name).applies(checkpoint)
        except MachineError as error:
            if only:
                raise
            chosen[name] = str(error).removeprefix(f"{name}: ")  # the caller prints the name beside it
        if only and chosen[name]:
            raise InputError(f"{name}: {chosen[name]}; remove --only {name}")
    return chosen


def explain(subject: Subject, only: Sequence[str] | None = None) -> Iterator[tuple[str, Explanation | str]]:
    """Run all explainers, or `only` some. Yields each name with its explanation, or with the reason why there is none.

    An InputError of an explainer, such as a missing dataset, becomes the reason; for one in `only` it is raised.
    """
    for name, reason in choose(subject.checkpoint, only).items():
        if reason:
            yield name, reason
            continue
        try:
            with _draw.style():
                result = module(name).explain(subject)
        except InputError as error:
            if only:
                raise
            result = str(error).removeprefix(f"{name}: ")  # the caller prints the name beside it
        yield name, result
