"""Statistics of a dataset: mean and deviation, class balance, stratified samples, fingerprint and duplicates."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets._mapped import is_mapped
from nnx.datasets._progress import count_progress
from nnx.events import Choice

if TYPE_CHECKING:
    from nnx.datasets import Split
    from nnx.datasets._mapped import Mapped

IMBALANCED = 3  # ratio of the largest class to the smallest from which a note says so
# bytes of samples in files: more are not read to find duplicates, and measuring more shows its progress
MAX_READ = 2 * 10**9
# bytes hashed at a time, which then stay in the processor's cache: 8 ms for 60,000 MNIST images; with 2^23 it is 27
HASHED = 2**20
COMPARED = 2**26  # bytes of test samples at a time; the samples compared with them may take as many again


def stratified_sample(labels: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, of `count` random samples, stratified by class; leaves at least one sample of each class.

    Shares are rounded by largest remainder. Equal arguments give equal indices. NumPy instead of scikit-learn's
    `train_test_split`, because importing `sklearn.model_selection` takes 3 s.
    """
    sizes = np.bincount(labels)
    room = np.maximum(sizes - 1, 0)
    assert 0 <= count <= room.sum()
    share, remainder = np.divmod(sizes * count, len(labels))
    share = np.minimum(share, room)
    while left := count - share.sum():  # a second round only if a class is too small for its share
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

    The deviation of a constant channel or feature is 1, so that dividing by it is harmless. Chunks stay in the
    processor's cache: 54,000 MNIST images take 0.1 s and hardly any memory.
    """
    if inputs.dtype == np.uint8:
        return _mean_std_of_images(inputs)
    first = inputs[0]

    def sum_over_chunks(measure: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.float64]:
        total = np.zeros(inputs.shape[1])
        for chunk in _chunks(inputs, min(4096, 2**22 // inputs.shape[1])):
            total += measure(inputs[chunk])
        return total

    mean = sum_over_chunks(lambda chunk: chunk.sum(0, dtype=np.float64)) / len(inputs)
    variance = sum_over_chunks(lambda chunk: np.square(chunk - mean).sum(0)) / len(inputs)  # float64, as mean is
    varies = (
        sum_over_chunks(lambda chunk: (chunk != first).any(0)) > 0
    )  # rounding may give a constant feature some variance
    return tuple(mean.tolist()), tuple(np.where(varies, np.sqrt(variance), 1).tolist())


def _mean_std_of_images(images: "NDArray[Any] | Mapped") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact, from counts of each of the 256 values; in chunks, because a memory-mapped array may exceed the memory."""
    import torch  # its histogram is three times as fast as numpy's

    C = images.shape[1]
    means = []
    stds = []
    counts = torch.zeros(C, 256, dtype=torch.int64)
    slow = is_mapped(images) and images.nbytes > MAX_READ
    with count_progress("measuring", len(images), "samples") if slow else nullcontext(lambda done: None) as progress:
        for chunk in _chunks(images, 2**19 // math.prod(images.shape[1:])):
            values = torch.from_numpy(np.ascontiguousarray(images[chunk]))
            for channel in range(C):
                counts[channel] += torch.bincount(values[:, channel].flatten(), minlength=256)
            progress(len(values))
    for histogram in counts.tolist():
        count = sum(histogram)
        total = sum(value * times for value, times in enumerate(histogram))
        squares = sum(value**2 * times for value, times in enumerate(histogram))
        means.append(total / count / 255)
        stds.append((count * squares - total**2) ** 0.5 / count / 255 or 1.0)
    return tuple(means), tuple(stds)


def describe_balance(labels: NDArray[np.int64], classes: tuple[str, ...], *, oversample: bool) -> tuple[Choice, ...]:
    """A note if the largest class has IMBALANCED times as many samples as the smallest."""
    counts = np.bincount(labels, minlength=len(classes))
    most = int(counts.argmax())
    least = int(counts.argmin())
    if counts[most] < IMBALANCED * counts[least]:
        return ()
    sizes = f"{counts[least]:,} ({classes[least]}) to {counts[most]:,} ({classes[most]}) samples"
    if oversample:
        reason = "samples are repeated until all classes have equal numbers (dataset.balance)"
    else:
        reason = "imbalanced; loss.class_weights: balanced or dataset.balance: oversample gives all equal weight"
    return (Choice("classes", sizes, reason),)


def oversampled_indices(labels: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Indices of samples, ascending: each at least once, and as many of each class present as of the largest."""
    counts = np.bincount(labels)
    rng = np.random.default_rng(seed)
    indices = []
    for k in counts.nonzero()[0]:
        of_class = (labels == k).nonzero()[0]
        times, rest = divmod(int(counts.max()), len(of_class))
        indices += [np.repeat(of_class, times), rng.permutation(of_class)[:rest]]
    return np.sort(np.concatenate(indices))


def fingerprint(split: "Split") -> str:
    """SHA-256, in hex, of the samples and labels in their order: equal for equal data. 0.03 s for MNIST."""
    digest = hashlib.sha256()
    for array in (split.inputs, split.labels):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for chunk in _chunks(array, 2**22 // array[:1].nbytes):
            digest.update(np.ascontiguousarray(array[chunk]).data.cast("B"))
    return digest.hexdigest()


def count_duplicates(known: "Sequence[Split]", test: "Split") -> int | None:
    """The number of samples in `test` whose inputs equal, byte for byte, those of a training or validation sample.

    None if the samples are in files and have more than MAX_READ bytes, which takes too long to read. A 64-bit hash of
    each sample finds candidates, then their bytes are compared: 15 ms for MNIST's 60,000 and 10,000 images (one core of
    an AMD EPYC with AVX-512).
    """
    splits = [*known, test]
    if any(is_mapped(split.inputs) for split in splits) and sum(split.inputs.nbytes for split in splits) > MAX_READ:
        return None
    known_hashes = [_hashes(split.inputs) for split in known]
    rows = max(1, COMPARED * len(test) // test.inputs.nbytes)
    duplicates = 0
    for start in range(0, len(test), rows):
        samples = test.inputs[start : start + rows]
        hashes = _hashes(samples)
        matches = [np.isin(others, hashes).nonzero()[0] for others in known_hashes]
        candidates = {
            split.inputs[index].tobytes() for split, indices in zip(known, matches, strict=True) for index in indices
        }
        shared = np.concatenate([others[indices] for others, indices in zip(known_hashes, matches, strict=True)])
        duplicates += sum(samples[index].tobytes() in candidates for index in np.isin(hashes, shared).nonzero()[0])
    return duplicates


def _hashes(inputs: "NDArray[Any] | Mapped") -> NDArray[np.uint64]:
    """(N,) hashes of (N, ...) inputs: the 64-bit words of each times random odd numbers, summed modulo 2^64.

    Carter and Wegman 1979, "Universal classes of hash functions".
    """
    size = inputs[:1].nbytes
    words = -(-size // 8)
    factors = np.random.default_rng(0).integers(2**63, size=words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(inputs), np.uint64)
    rows = max(1, HASHED // size)
    for start in range(0, len(inputs), rows):
        chunk = np.ascontiguousarray(inputs[start : start + rows])
        raw = chunk.reshape(len(chunk), -1).view(np.uint8)
        if size % 8:
            raw = np.pad(raw, ((0, 0), (0, words * 8 - size)))
        numbers = raw.view(np.uint64)
        # A product passes no difference on to lower bits, so the high half is mixed into the low half first
        numbers = numbers ^ (numbers >> np.uint64(32))
        hashes[start : start + rows] = numbers @ factors
    return hashes


def _chunks(array: "NDArray[Any] | Mapped", rows: int) -> Iterator[slice]:
    """Slices of `rows` rows each, at least one: a sample may be large, and the array larger than memory."""
    rows = max(1, rows)
    return (slice(start, start + rows) for start in range(0, len(array), rows))
