"""What is counted and measured over a dataset: mean and deviation, the balance of its classes, a fair part of it, its
fingerprint, and which of its test samples it has been trained on."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets._mapped import is_mapped
from nnx.datasets._progress import counted
from nnx.events import Choice

if TYPE_CHECKING:
    from nnx.datasets import Split
    from nnx.datasets._mapped import Mapped

UNEVEN = 3  # times as many samples of one class as of another: from there on it is said
# bytes of samples in files: more are not read to look for duplicates, and while more are measured it is shown how far
# that is
READ = 2 * 10**9
HASHED = (
    2**20
)  # bytes at a time, which then stay in the processor's cache: 8 ms for 60,000 MNIST images; with 2^23 it is 27
COMPARED = 2**26  # bytes of test samples at a time, of which as many again may be held for comparison


def stratified(labels: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, of `count` random samples in which every class has its share; one of each class stays behind.

    Shares are rounded by largest remainder. Equal arguments give equal indices. Numpy rather than scikit-learn's
    `train_test_split`, because importing `sklearn.model_selection` costs 3 s.
    """
    sizes = np.bincount(labels)
    room = np.maximum(sizes - 1, 0)
    assert 0 <= count <= room.sum()
    share, remainder = np.divmod(sizes * count, len(labels))
    share = np.minimum(share, room)
    while left := count - share.sum():  # a second round only where a class had no room for what it was due
        neediest = np.argsort(-remainder, kind="stable")
        share[neediest[share[neediest] < room[neediest]][:left]] += 1
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_class[place_in_class < np.repeat(share, sizes)])


def mean_std(
    inputs: "NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64] | Mapped",
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, C, H, W) images, in [0, 1], or per feature of (N, F) rows.

    Of a constant channel or feature the deviation is 1, so that dividing by it is harmless. In chunks that stay in the
    processor's cache: 54,000 MNIST images take 0.1 s and no memory to speak of.
    """
    if inputs.dtype == np.uint8:
        return _mean_std_of_images(inputs)
    first = inputs[0]

    def summed(measure: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.float64]:
        total = np.zeros(inputs.shape[1])
        for part in _chunks(inputs, min(4096, 2**22 // inputs.shape[1])):
            total += measure(inputs[part])
        return total

    mean = summed(lambda chunk: chunk.sum(0, dtype=np.float64)) / len(inputs)
    variance = summed(lambda chunk: np.square(chunk - mean).sum(0)) / len(inputs)  # float64, as mean is
    varies = summed(lambda chunk: (chunk != first).any(0)) > 0  # where rounding leaves a constant feature some variance
    return tuple(mean.tolist()), tuple(np.where(varies, np.sqrt(variance), 1).tolist())


def _mean_std_of_images(images: "NDArray[Any] | Mapped") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact, from how often each of the 256 values is there; a part at a time, as a memory-mapped array may be larger
    than memory."""
    import torch  # its histogram is three times as fast as numpy's

    C, means, stds = images.shape[1], [], []
    counts = torch.zeros(C, 256, dtype=torch.int64)
    slow = is_mapped(images) and images.nbytes > READ
    with counted("measuring", len(images), "samples") if slow else nullcontext(lambda done: None) as progress:
        for part in _chunks(images, 2**19 // math.prod(images.shape[1:])):
            values = torch.from_numpy(np.ascontiguousarray(images[part]))
            for channel in range(C):
                counts[channel] += torch.bincount(values[:, channel].flatten(), minlength=256)
            progress(len(values))
    for often in counts.tolist():
        count = sum(often)
        total, squares = (sum(value**power * times for value, times in enumerate(often)) for power in (1, 2))
        means.append(total / count / 255)
        stds.append((count * squares - total**2) ** 0.5 / count / 255 or 1.0)
    return tuple(means), tuple(stds)


def balanced(labels: NDArray[np.int64], classes: tuple[str, ...], *, oversample: bool) -> tuple[Choice, ...]:
    """What there is to say of how many samples each class has: nothing, where they have about equally many."""
    counts = np.bincount(labels, minlength=len(classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] < UNEVEN * counts[least]:
        return ()
    found = f"{counts[least]:,} ({classes[least]}) to {counts[most]:,} ({classes[most]}) samples"
    cure = "uneven: loss.class_weights: balanced, or dataset.balance: oversample, lets them count alike"
    return (
        Choice(
            "classes", found, "rare ones are repeated until all have as many (dataset.balance)" if oversample else cure
        ),
    )


def repeated(labels: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Indices of samples, ascending: each at least once, and of every class that has some as many as of the largest."""
    counts = np.bincount(labels)
    rng = np.random.default_rng(seed)
    index = []
    for k in counts.nonzero()[0]:
        own = (labels == k).nonzero()[0]
        times, rest = divmod(int(counts.max()), len(own))
        index += [np.repeat(own, times), rng.permutation(own)[:rest]]
    return np.sort(np.concatenate(index))


def fingerprint(split: "Split") -> str:
    """SHA-256, in hex, of the samples and their labels in their order: equal where the data is equal. 0.03 s for
    MNIST."""
    digest = hashlib.sha256()
    for array in (split.inputs, split.labels):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for part in _chunks(array, 2**22 // array[:1].nbytes):
            digest.update(np.ascontiguousarray(array[part]).data.cast("B"))
    return digest.hexdigest()


def duplicates(known: "Sequence[Split]", test: "Split") -> int | None:
    """How many samples of `test` have inputs that a sample in `known`, the data to train and to validate with, has too,
    byte for byte.

    None where the samples lie in files and are more than READ bytes, which are not read for this. A 64-bit hash of each
    sample finds the candidates, their bytes decide: 15 ms for MNIST's 60,000 and 10,000 images (one core of an AMD EPYC
    with AVX-512).
    """
    splits = [*known, test]
    if any(is_mapped(split.inputs) for split in splits) and sum(split.inputs.nbytes for split in splits) > READ:
        return None
    hashes = [_hashes(split.inputs) for split in known]
    rows = max(1, COMPARED * len(test) // test.inputs.nbytes)
    found = 0
    for start in range(0, len(test), rows):
        some = test.inputs[start : start + rows]
        own = _hashes(some)
        alike = [np.isin(theirs, own).nonzero()[0] for theirs in hashes]
        seen = {split.inputs[place].tobytes() for split, places in zip(known, alike, strict=True) for place in places}
        shared = np.concatenate([theirs[places] for theirs, places in zip(hashes, alike, strict=True)])
        found += sum(some[place].tobytes() in seen for place in np.isin(own, shared).nonzero()[0])
    return found


def _hashes(inputs: "NDArray[Any] | Mapped") -> NDArray[np.uint64]:
    """(N,) hashes of (N, ...) inputs: of each, its 64-bit words times random odd numbers, summed modulo 2^64 (Carter
    and Wegman 1979)."""
    size = inputs[:1].nbytes
    words = -(-size // 8)
    factors = np.random.default_rng(0).integers(2**63, size=words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(inputs), np.uint64)
    rows = max(1, HASHED // size)
    for start in range(0, len(inputs), rows):
        part = np.ascontiguousarray(inputs[start : start + rows])
        raw = part.reshape(len(part), -1).view(np.uint8)
        if size % 8:
            raw = np.pad(raw, ((0, 0), (0, words * 8 - size)))
        numbers = raw.view(np.uint64)
        numbers = numbers ^ (
            numbers >> np.uint64(32)
        )  # a product hands on no difference to lower bits, so the high half is laid over them
        hashes[start : start + rows] = numbers @ factors
    return hashes


def _chunks(array: "NDArray[Any] | Mapped", rows: int) -> Iterator[slice]:
    """So many rows at a time, but one at least: samples may be large, and more of them than the memory holds."""
    rows = max(1, rows)
    return (slice(start, start + rows) for start in range(0, len(array), rows))
