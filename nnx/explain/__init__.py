"""What a network has learned, and why it decided: one explainer a file, pictures and figures.

The file's name is the explainer's. Its first line says what it shows, and it has two functions:

    applies(kept) -> None where it can explain this checkpoint, else why not, in words
    explain(subject) -> Explanation

    for name, found in explain(subject):  # in the order of their names
        found  # an Explanation, or why there is none
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import losses, models
from nnx.checkpoint import Checkpoint, build_network
from nnx.config.registry import suggest
from nnx.datasets import Split
from nnx.errors import InputError
from nnx.explain import _draw
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.system.device import mix_seed


@dataclass
class Subject:
    """What is explained: a network, and N samples that it is asked about, as the dataset holds them: raw.

    `network` is in evaluation mode, on the device that `prepare` puts its inputs on. `data` gives a split by its name
    (train, validation, test); it is called when a split is first asked for, and what it gave is kept.
    """

    kept: Checkpoint
    network: nn.Module
    prepare: Normalise
    images: NDArray[np.uint8] | NDArray[np.float32]  # (N, C, H, W), or (N, F) rows of a table
    labels: NDArray[np.int64] | None  # (N,), where they are known
    names: list[str]  # what each sample is called
    data: Callable[[str], Split] = field(repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        self.data = cache(self.data)

    @property
    def spec(self) -> Spec:
        return self.kept.spec

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def features(self) -> list[str]:
        """What each number of a table's row is called."""
        return (
            list(self.spec.columns.feature_names)
            if self.spec.columns
            else [f"feature {n}" for n in range(self.spec.size)]
        )

    @property
    def device(self) -> torch.device:
        return self.prepare.factor.device

    @cached_property
    def control(self) -> nn.Module:
        """The same architecture with freshly drawn weights, which has learned nothing. Equal seeds draw equal weights.

        Not those that the training began with: much of them is still there in the trained network, and would make the
        two alike.
        """
        config = self.kept.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, 1))
            fresh = models.build(config.model, self.spec, losses.outputs(config.loss, len(self.classes)))
        return fresh.to(self.device).eval()

    def inputs(self, images: NDArray[Any] | None = None) -> Tensor:
        """Raw samples, by default the subject's own -> what the network takes: normalised, float32, on its device."""
        return self.prepare(
            torch.from_numpy(np.ascontiguousarray(self.images if images is None else images)).to(self.device)
        )

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(N, K): what the network says of its samples."""
        with torch.no_grad():
            said: NDArray[np.float32] = losses.probabilities(self.network(self.inputs())).cpu().numpy()
        return said

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable class of each sample."""
        most: NDArray[np.int64] = self.probabilities.argmax(1)
        return most


@dataclass(frozen=True)
class Picture:
    """A PNG; its `name` becomes the file's, without the suffix; the caption says what is seen where."""

    name: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Explanation:
    """Pictures, one sentence that says how to read them, and the figures behind them as plain JSON values."""

    reading: str
    pictures: tuple[Picture, ...]
    figures: dict[str, Any]


def new(
    kept: Checkpoint,
    data: Callable[[str], Split],
    images: NDArray[Any],
    names: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    *,
    device: str | torch.device = "cpu",
) -> Subject:
    """The network of a checkpoint, on the device, and what it is asked about. Raises CheckpointError where its weights
    don't fit."""
    where = torch.device(device)
    return Subject(
        kept,
        build_network(kept).to(where).eval(),
        Normalise(kept.spec, where),
        images,
        labels,
        list(names),
        data,
        seed=kept.config.seed,
    )


def one_per_class(split: Split, classes: int, most: int = 10) -> NDArray[np.int64]:
    """The places of the first sample of each class, of `most` classes: what is explained where nothing else is
    asked."""
    found, first = np.unique(split.labels, return_index=True)
    return first[found < classes][:most].astype(np.int64)


# ---------------------------------------------------------------- the explainers


def names() -> list[str]:
    """Every explainer, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def module(name: str) -> ModuleType:
    """The module of an explainer. Raises InputError, with a suggestion, where there is none."""
    if name not in (known := names()):
        raise InputError(f"unknown explainer {name!r}{suggest(name, known)}")
    return importlib.import_module(f"{__name__}.{name}")


def choose(kept: Checkpoint, only: Sequence[str] | None = None) -> dict[str, str | None]:
    """The explainers to run, each with why it does not apply to this checkpoint, or None where it does.

    Raises InputError where one that `only` asks for is unknown, or does not apply.
    """
    chosen = {name: module(name).applies(kept) for name in (sorted(set(only)) if only else names())}
    for name, why in chosen.items():
        if only and why:
            raise InputError(f"{name}: {why}; leave --only {name} away")
    return chosen


def explain(subject: Subject, only: Sequence[str] | None = None) -> Iterator[tuple[str, Explanation | str]]:
    """Run each explainer, or `only` some; each name with what it found, or why there is nothing.

    An explainer that can't have what it needs, a dataset that is not there, say, is passed over with the reason; one
    that was asked for by name raises that InputError.
    """
    for name, why in choose(subject.kept, only).items():
        if why:
            yield name, why
            continue
        try:
            with _draw.style():
                found = module(name).explain(subject)
        except InputError as error:
            if only:
                raise
            found = str(error).removeprefix(f"{name}: ")  # it stands beside it
        yield name, found
