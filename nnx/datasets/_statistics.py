"""Statistics of a dataset: mean and deviation, class balance, stratified samples, fingerprint and duplicates."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnx.datasets._mapped import is_mapped
from nnx.datasets._progress import count_progress
from nnx.errors import printable
from nnx.events import Choice

if TYPE_CHECKING:
    from nnx.datasets import Split
    from nnx.datasets._mapped import Mapped

Sample: TypeAlias = "tuple[Split, int]"
"""A split and the place of a sample in it."""

IMBALANCED = 3  # ratio of the largest class to the smallest from which a note says so
# bytes of samples in files: more are not read to find duplicates, and measuring more shows its progress
MAX_READ = 2 * 10**9
# bytes hashed at a time, which then stay in the processor's cache: 8 ms for 60,000 MNIST images; with 2^23 it is 27
HASHED = 2**20
NAMED = 3  # pairs of equal samples that a message names
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


def describe_similar_classes(classes: Sequence[str]) -> tuple[Choice, ...]:
    """A warning of classes whose names differ only in capitals, spaces, underscores or the way to write a number:
    probably one class. The letters a and A are two."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        key = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
        with suppress(ValueError):
            key = str(float(key))
        groups.setdefault(key, []).append(name)
    similar = [names for names in groups.values() if len(names) > 1 and any(len(name) > 1 for name in names)]
    if not similar:
        return ()
    listed = "; ".join(" and ".join(map(repr, names)) for names in similar[:NAMED]) + "; ..." * (len(similar) > NAMED)
    reason = "their names differ only in how they are written; if they are one class, give it one name"
    return (Choice("warning", f"classes {listed}", reason),)


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


@dataclass(frozen=True)
class Duplicates:
    """How many samples equal another one byte for byte, how many of them with another label, and some by name."""

    count: int
    conflicts: int
    examples: tuple[str, ...]


def find_duplicates(
    known: "Sequence[Split]", test: "Split", classes: tuple[str, ...] | None = None
) -> Duplicates | None:
    """The samples in `test` whose inputs equal, byte for byte, those of a training or validation sample.

    The labels in `test` are read only if the names of the `classes` are given: otherwise there are no conflicts. None
    if the samples are in files and have more than MAX_READ bytes, which takes too long to read. A 64-bit hash of each
    sample finds candidates, then their bytes are compared: 15 ms for MNIST's 60,000 and 10,000 images (one core of an
    AMD EPYC with AVX-512).
    """
    splits = [*known, test]
    if any(is_mapped(split.inputs) for split in splits) and sum(split.inputs.nbytes for split in splits) > MAX_READ:
        return None
    known_hashes = [_hashes(split.inputs) for split in known]
    rows = max(1, COMPARED * len(test) // test.inputs.nbytes)
    count = 0
    equal: list[tuple[Sample, Sample]] = []
    conflicting: list[tuple[Sample, Sample]] = []
    for start in range(0, len(test), rows):
        samples = test.inputs[start : start + rows]
        hashes = _hashes(samples)
        matches = [np.isin(others, hashes).nonzero()[0] for others in known_hashes]
        candidates: dict[bytes, dict[int, Sample]] = {}  # the first of each label
        for split, indices in zip(known, matches, strict=True):
            for index in indices.tolist():
                twins = candidates.setdefault(split.inputs[index].tobytes(), {})
                twins.setdefault(int(split.labels[index]), (split, index))
        shared = np.concatenate([others[indices] for others, indices in zip(known_hashes, matches, strict=True)])
        for index in np.isin(hashes, shared).nonzero()[0].tolist():
            twins = candidates.get(samples[index].tobytes(), {})
            if not twins:
                continue
            count += 1
            label = int(test.labels[start + index]) if classes else next(iter(twins))
            others = [twin for other, twin in twins.items() if other != label] if classes else []
            pairs = conflicting if others else equal
            pairs.append(((test, start + index), others[0] if others else twins[label]))
    return Duplicates(count, len(conflicting), _name_pairs([*conflicting, *equal], classes))


def find_repeats(splits: "Sequence[Split]", classes: tuple[str, ...]) -> Duplicates | None:
    """The samples in `splits` whose inputs equal those of an earlier one, byte for byte, and how many of all equal
    samples have different labels. None if the samples have more than MAX_READ bytes. 15 ms for MNIST."""
    if sum(split.inputs.nbytes for split in splits) > MAX_READ:
        return None
    hashes = np.concatenate([_hashes(split.inputs) for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    candidates = order[np.append(same, False) | np.insert(same, 0, False)]
    if not len(candidates):
        return Duplicates(0, 0, ())
    first = np.flatnonzero(_differs_from_previous(splits, candidates))  # of each group of equal samples
    sizes = np.diff(np.append(first, len(candidates)))
    of_group = labels[candidates]
    conflicting = np.minimum.reduceat(of_group, first) != np.maximum.reduceat(of_group, first)
    groups = [*np.flatnonzero(conflicting), *np.flatnonzero(~conflicting & (sizes > 1))]
    pairs = []
    for group in groups[:NAMED]:
        members = candidates[first[group] : first[group] + sizes[group]]
        differs = labels[members] != labels[members[0]]
        pairs.append((_locate(splits, members[0]), _locate(splits, members[differs.argmax() or 1])))
    count = len(candidates) - len(first)
    return Duplicates(count, int(sizes[conflicting].sum()), _name_pairs(pairs, classes))


def _differs_from_previous(splits: "Sequence[Split]", indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the bytes of each sample at `indices`, counted through all splits, differ from those of the one before
    it; true for the first."""
    shape = splits[0].inputs.shape[1:]
    dtype = splits[0].inputs.dtype
    starts = np.cumsum([0, *map(len, splits)])
    differs = np.ones(len(indices), bool)
    rows = max(2, COMPARED // 16 // (math.prod(shape) * dtype.itemsize))  # few: data in a file may exceed the memory
    for start in range(0, len(indices) - 1, rows - 1):
        block = indices[start : start + rows]
        samples = np.empty((len(block), *shape), dtype)
        for split, begin, end in zip(splits, starts[:-1], starts[1:], strict=True):
            inside = (begin <= block) & (block < end)
            samples[inside] = split.inputs[block[inside] - begin]
        raw = samples.reshape(len(block), -1).view(np.uint8)
        differs[start + 1 : start + len(block)] = (raw[1:] != raw[:-1]).any(1)
    return differs


def _locate(splits: "Sequence[Split]", index: int) -> "Sample":
    """The split and the place in it of the sample at `index`, counted through all splits."""
    for split in splits:
        if index < len(split):
            break
        index -= len(split)
    return split, int(index)


def _name_pairs(pairs: "Sequence[tuple[Sample, Sample]]", classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The first NAMED pairs of equal samples, with their classes: "a/1.png (cat) and b/2.png (dog)"."""
    texts = []
    for pair in pairs[:NAMED]:
        names = [printable(split.names[index] if split.names else f"sample {index}") for split, index in pair]
        labels = [printable(classes[split.labels[index]]) for split, index in pair] if classes else ["", ""]
        if labels[0] == labels[1]:
            texts.append(" and ".join(names) + (f" ({labels[0]})" if classes else ""))
        else:
            texts.append(" and ".join(f"{name} ({label})" for name, label in zip(names, labels, strict=True)))
    return tuple(texts)


def describe_repeats(splits: "Sequence[Split]", classes: tuple[str, ...], *, packaged: bool) -> tuple[Choice, ...]:
    """A warning of equal samples with different labels, and a note of equal samples unless they are `packaged`, for
    training and validation samples."""
    repeats = find_repeats(splits, classes)
    if repeats is None or not repeats.count:
        return ()
    samples = sum(map(len, splits))
    examples = ", ".join(repeats.examples) + ", ..." * (repeats.count > len(repeats.examples))
    if repeats.conflicts:
        cure = "correct the labels, or accept that the network can't tell them apart"
        reason = f"training samples are equal but have different labels: {examples}; {cure}"
        return (Choice("warning", f"{repeats.conflicts:,} of {samples:,} labels", reason),)
    reason = f"training samples equal an earlier one: {examples}"
    return () if packaged else (Choice("duplicates", f"{repeats.count:,} of {samples:,}", reason),)


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
        # A product passes no difference on to lower bits, so high bits are mixed into low ones first. Not by 32 bits:
        # two equal float32 values would cancel out; of 1,024 rows of small numbers 32 had the hash of another row.
        numbers = numbers ^ (numbers >> np.uint64(29))
        hashes[start : start + rows] = numbers @ factors
    return hashes


def _chunks(array: "NDArray[Any] | Mapped", rows: int) -> Iterator[slice]:
    """Slices of `rows` rows each, at least one: a sample may be large, and the array larger than memory."""
    rows = max(1, rows)
    return (slice(start, start + rows) for start in range(0, len(array), rows))
