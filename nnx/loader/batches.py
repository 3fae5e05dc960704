"""Draw batches from a split, uint8 or float32, by one index_select each.

The split stays in the device's memory if it fits there, else in the computer's memory or in a memory-mapped file.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnx import formatting
from nnx.config import Train
from nnx.datasets import Mapped, Split
from nnx.datasets._mapped import check_mapped_files
from nnx.events import Choice
from nnx.loader.augment import augment, mixup
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.system import accelerator
from nnx.system.device import mix_seed

EVALUATION_BATCH = 2000
Gather = Callable[[Tensor, Tensor], Tensor]  # (N, *shape) inputs and (B,) indices -> (B, *shape) on the device


def batch_bounds(samples: int, train: Train) -> list[tuple[int, int]]:
    """The start and end of each step's samples, in the order of an epoch of `samples` samples.

    The last step is smaller if the numbers don't divide evenly. Every sample is used, except the last one if it would
    be alone in its batch: batch normalisation needs two.
    """
    size = train.batch_size * train.accumulate
    if samples > 1 and train.batch_size > 1 and samples % train.batch_size == 1:
        samples -= 1
    return [(start, min(start + size, samples)) for start in range(0, samples, size)]


class BatchLoader:
    """Batches of a split. `epoch` yields shuffled training batches; `in_order` each sample once, unchanged.

    `normalise` replaces the spec's own, for a network that normalises its inputs itself.
    """

    def __init__(
        self, split: Split, spec: Spec, device: torch.device, normalise: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.inputs, self.rows = _tensor(split.inputs)
        self.gather: Gather = lambda inputs, index: inputs.index_select(0, index).to(device)
        if self.rows is None and fits_on_device(split.inputs.nbytes, device):
            self.inputs = self.inputs.to(device)
        elif accelerator.is_cuda(device):
            self.gather = pinned_gather(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.classes = len(spec.classes)
        self.normalise = normalise or Normalise(spec, device)

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, epoch: int, train: Train, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch` from `start` on: inputs (B, *shape) float32, targets (B,), or (B, K) with mixup.

        The order is a function of (seed, epoch), drawn on the CPU so that it is the same for every device. Augmentation
        is a function of (seed, epoch, batch). Therefore any batch can be computed without the earlier ones.
        """
        check_mapped_files(wait=False)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(mix_seed(seed, epoch)))
        indices = self._input_indices(order)
        labels = self.labels.index_select(0, order.to(self.labels.device))
        is_random = train.augment.is_on or train.mixup > 0
        generator = torch.Generator(self.labels.device) if is_random else None
        for batch, (begin, end) in enumerate(batch_bounds(len(self), train)[start:], start):
            inputs = self.gather(self.inputs, indices[begin:end])
            targets = labels[begin:end]
            if generator is not None:
                generator.manual_seed(mix_seed(seed, epoch, batch))
                if train.augment.is_on:
                    inputs = augment(inputs.float(), train.augment, generator)
            inputs = self.normalise(inputs)
            if generator is not None and train.mixup > 0:
                inputs, targets = mixup(inputs, F.one_hot(targets, self.classes).float(), train.mixup, generator)
            yield inputs, targets

    def in_order(self, part: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples of `part`, each once and in order, in large batches without augmentation or mixup."""
        check_mapped_files()
        begin, end, _ = part.indices(len(self))
        for start in range(begin, max(end, begin + 1), EVALUATION_BATCH):
            batch = slice(start, min(start + EVALUATION_BATCH, end))
            inputs = self.inputs[batch] if self.rows is None else self.inputs.index_select(0, self.rows[batch])
            yield self.normalise(inputs.to(self.labels.device)), self.labels[batch]

    def _input_indices(self, samples: Tensor) -> Tensor:
        """The indices of these samples in `inputs`."""
        return samples.to(self.inputs.device) if self.rows is None else self.rows[samples]


def _tensor(inputs: Any) -> tuple[Tensor, Tensor | None]:
    """(tensor of an array's memory, None) or, for samples in a file, (tensor of the file, their rows). The tensor must
    not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        if isinstance(inputs, Mapped):
            return torch.from_numpy(inputs.whole), torch.from_numpy(inputs.rows)
        return torch.from_numpy(inputs), None


def fits_on_device(size: int, device: torch.device) -> bool:
    """Whether `size` bytes take less than half of the device's free memory: the network needs the rest. True where the
    device shares the computer's memory, in which they are already."""
    free = accelerator.free_memory(device)
    return free is None or size < free / 2


def pinned_gather(device: torch.device) -> Gather:
    """A gather from the computer's memory to a CUDA device through two alternating pinned buffers: the next batch is
    gathered while the device copies and processes the current one. Run on a simulated device only: no GPU
    was available."""
    buffers: list[Tensor] = []
    copied: list[Any] = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]

    def gather(inputs: Tensor, index: Tensor) -> Tensor:
        if not buffers or len(buffers[0]) < len(index):
            buffers[:] = [
                torch.empty(len(index), *inputs.shape[1:], dtype=inputs.dtype, pin_memory=True) for _ in copied
            ]
        buffers.reverse()
        copied.reverse()
        copied[0].synchronize()  # the previous batch of this buffer has reached the device
        batch = torch.index_select(inputs, 0, index, out=buffers[0][: len(index)])
        on_device = batch.to(device, non_blocking=True)
        copied[0].record()
        return on_device

    return gather


def describe_data_path(name: str, train: Split, batches: BatchLoader) -> Choice:
    """Where dataset `name` is stored during training, and why."""
    size = f"{formatting.size(train.inputs.nbytes)} of {train.inputs.dtype}"
    device = batches.inputs.device
    if batches.rows is not None:
        return Choice("data path", f"{name} in its file, memory-mapped", f"{size} exceed half of the free memory")
    if device == batches.labels.device:
        memory = "memory" if device.type == "cpu" else f"memory of {device}"
        return Choice("data path", f"{name} in {memory}", f"{size} fit in {memory}")
    return Choice("data path", f"{name} in memory", f"{size} exceed half of the free memory of {batches.labels.device}")
