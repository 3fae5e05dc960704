"""A split that lies in memory as it came, uint8 or float32: the device's, where it fits; or in its file. A batch is one
gather."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnx import formatting
from nnx.config import Train
from nnx.datasets import Mapped, Split
from nnx.events import Choice
from nnx.loader.augment import augment, mixup
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.system.device import mix_seed

EVALUATION_BATCH = 2000
Gather = Callable[[Tensor, Tensor], Tensor]  # (N, *shape) inputs and (B,) places -> (B, *shape) on the device


def batch_bounds(samples: int, train: Train) -> list[tuple[int, int]]:
    """Where each step of an epoch of so many samples begins and ends in the epoch's order.

    The last step is smaller where the samples don't divide evenly. None is left out, but for a lone last one: batch
    normalisation needs two.
    """
    size = train.batch_size * train.accumulate
    if samples > 1 and train.batch_size > 1 and samples % train.batch_size == 1:
        samples -= 1
    return [(start, min(start + size, samples)) for start in range(0, samples, size)]


class BatchLoader:
    """A split in memory. `epoch` gives shuffled training batches, `in_order` each sample once, untouched."""

    def __init__(self, split: Split, spec: Spec, device: torch.device) -> None:
        self.inputs, self.rows = _tensor(split.inputs)
        self.gather: Gather = lambda inputs, index: inputs.index_select(0, index).to(device)
        if self.rows is None and (device.type != "cuda" or fits_on_device(split.inputs.nbytes, device)):
            self.inputs = self.inputs.to(device)
        elif device.type == "cuda":
            self.gather = copy_ahead(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.classes = len(spec.classes)
        self.normalise = Normalise(spec, device)

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, epoch: int, train: Train, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch` from number `start` on: inputs (B, *shape) float32, targets (B,) or, with mixup, (B,
        K).

        The order is a function of (seed, epoch), drawn on the CPU so that every device sees the same one; augmentation
        is one of (seed, epoch, batch). Any batch can be reached without those before it.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(mix_seed(seed, epoch)))
        places, labels = self._places(order), self.labels.index_select(0, order.to(self.labels.device))
        varied = train.augment.is_on or train.mixup > 0
        generator = torch.Generator(self.labels.device) if varied else None
        for batch, (begin, end) in enumerate(batch_bounds(len(self), train)[start:], start):
            inputs, targets = self.gather(self.inputs, places[begin:end]), labels[begin:end]
            if generator is not None:
                generator.manual_seed(mix_seed(seed, epoch, batch))
                if train.augment.is_on:
                    inputs = augment(inputs.float(), train.augment, generator)
            inputs = self.normalise(inputs)
            if generator is not None and train.mixup > 0:
                inputs, targets = mixup(inputs, F.one_hot(targets, self.classes).float(), train.mixup, generator)
            yield inputs, targets

    def in_order(self, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples, or that part of them, once, in order, in large batches, neither augmented nor mixed."""
        begin, end, _ = part.indices(len(self))
        for start in range(begin, max(end, begin + 1), EVALUATION_BATCH):
            some = slice(start, min(start + EVALUATION_BATCH, end))
            found = self.inputs[some] if self.rows is None else self.inputs.index_select(0, self.rows[some])
            yield self.normalise(found.to(self.labels.device)), self.labels[some]

    def _places(self, samples: Tensor) -> Tensor:
        """Where in `inputs` these samples lie."""
        return samples.to(self.inputs.device) if self.rows is None else self.rows[samples]


def _tensor(inputs: Any) -> tuple[Tensor, Tensor | None]:
    """An array as a tensor in the same memory or, of samples in a file, that file and their rows in it. Nothing writes
    to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        if isinstance(inputs, Mapped):
            return torch.from_numpy(inputs.whole), torch.from_numpy(inputs.rows)
        return torch.from_numpy(inputs), None


def fits_on_device(size: int, device: torch.device) -> bool:
    """Whether so many bytes take no more than half of what is free on a CUDA device: the rest is for the network."""
    return size < torch.cuda.mem_get_info(device)[0] / 2


def copy_ahead(device: torch.device) -> Gather:
    """A gather from the computer's memory to a CUDA device, through two pinned buffers in turn: while the device copies
    one batch and works on it, the next is gathered. Not run yet: no GPU was there."""
    buffers: list[Tensor] = []
    copied: list[Any] = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]

    def gather(inputs: Tensor, index: Tensor) -> Tensor:
        if not buffers or len(buffers[0]) < len(index):
            buffers[:] = [
                torch.empty(len(index), *inputs.shape[1:], dtype=inputs.dtype, pin_memory=True) for _ in copied
            ]
        buffers.reverse()
        copied.reverse()
        copied[0].synchronize()  # what lay in this buffer has arrived
        batch = torch.index_select(inputs, 0, index, out=buffers[0][: len(index)])
        there = batch.to(device, non_blocking=True)
        copied[0].record()
        return there

    return gather


def describe_data_path(name: str, train: Split, batches: BatchLoader) -> Choice:
    """Where the dataset of this name lies while it is trained on, and why."""
    size, device = f"{formatting.size(train.inputs.nbytes)}, as {train.inputs.dtype},", batches.inputs.device
    if batches.rows is not None:
        return Choice(
            "data path",
            f"{name} in its file, memory-mapped",
            f"its {size} are more than half of the memory that is free",
        )
    if device == batches.labels.device:
        return Choice(
            "data path", f"{name} in memory{'' if device.type == 'cpu' else f' of {device}'}", f"its {size} fit"
        )
    return Choice(
        "data path",
        f"{name} in memory",
        f"its {size} are more than half of the memory that is free on {batches.labels.device}",
    )
