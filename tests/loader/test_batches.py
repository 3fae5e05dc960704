"""Batches: each sample once per epoch; order and augmentation are functions of (seed, epoch, batch); normalisation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnx.config import Augment, Train
from nnx.datasets import Mapped, Split
from nnx.loader.batches import BatchLoader, batch_bounds, describe_data_path
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec

CPU = torch.device("cpu")
SPEC = Spec((2, 4, 4), ("a", "b", "c"), (0.3, 0.6), (0.2, 0.5))
VARIED = {"augment": Augment(shift=1, rotate=20, erase=0.5)}


def numbered(N):
    """Image n is n % 256 in its first channel and n // 256 in its second, so that a batch shows its samples."""
    n = np.arange(N)
    channels = np.stack([n % 256, n // 256], 1).astype(np.uint8)
    return Split(np.broadcast_to(channels[:, :, None, None], (N, 2, 4, 4)).copy(), n % 3)


def feed(N=100):
    return BatchLoader(numbered(N), SPEC, CPU)


def samples(images):
    """The numbers of the samples in a batch, from their pixels."""
    raw = (images[:, :, 0, 0] * torch.tensor(SPEC.std) + torch.tensor(SPEC.mean)) * 255
    low, high = raw.round().long().unbind(1)
    return (low + 256 * high).tolist()


def epoch(N, number=0, seed=0, start=0, **train):
    return [samples(images) for images, _ in feed(N).epoch(number, Train(**train), seed, start)]


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(a, b) for pair in zip(one, two, strict=True) for a, b in zip(*pair, strict=True)
    )


# ---------------------------------------------------------------- which samples


@given(st.integers(1, 600), st.integers(1, 70), st.integers(1, 4))
def test_an_epoch_contains_each_sample_once(N, batch_size, accumulate):
    batches = epoch(N, batch_size=batch_size, accumulate=accumulate)
    held = list(itertools.chain(*batches))
    assert len(set(held)) == len(held)
    lone = N > 1 and batch_size > 1 and N % batch_size == 1
    assert len(held) == N - lone, "all but a single last one, which batch normalisation could not process"
    assert set(held) <= set(range(N))
    assert all(len(batch) == batch_size * accumulate for batch in batches[:-1])
    assert (
        not any(len(part) == 1 for batch in batches for part in torch.tensor(batch).split(batch_size))
        or batch_size == 1
        or N == 1
    )
    assert len(batches) == len(batch_bounds(N, Train(batch_size=batch_size, accumulate=accumulate)))


def test_labels_belong_to_their_images():
    for images, labels in feed().epoch(0, Train(batch_size=16), 0):
        assert labels.tolist() == [n % 3 for n in samples(images)]
        assert labels.dtype == torch.int64
        assert images.dtype == torch.float32


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, number): epoch(100, number, seed, batch_size=16) for seed in range(3) for number in range(3)}
    assert orders == {(seed, number): epoch(100, number, seed, batch_size=16) for seed, number in reversed(orders)}
    assert len({str(order) for order in orders.values()}) == 9, "and of each of them"
    assert list(itertools.chain(*orders[0, 0])) != list(range(100)), "it is shuffled"
    flat = [list(itertools.chain(*epoch(100, 1, 1, batch_size=size))) for size in (10, 20, 100)]
    assert flat[0] == flat[1] == flat[2], "and not of the batch size"


def test_drawing_leaves_torchs_global_generator_unchanged():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(feed().epoch(0, Train(batch_size=16, mixup=0.4, **VARIED), 0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert equal(
        list(feed().epoch(0, Train(batch_size=16, **VARIED), 0)),
        list(feed().epoch(0, Train(batch_size=16, **VARIED), 0)),
    )


def test_every_position_is_as_likely_as_any_other():
    """Over 600 epochs of 10 samples, the first sample of the epoch is each about 60 times (chi-square, 9 degrees of
    freedom)."""
    first = np.bincount([epoch(10, number, batch_size=10)[0][0] for number in range(600)], minlength=10)
    assert ((first - 60) ** 2 / 60).sum() < 27.9  # p = 0.001


@pytest.mark.parametrize("train", [{}, {"mixup": 0.4}, VARIED, {"mixup": 0.4, "accumulate": 2, **VARIED}], ids=str)
@pytest.mark.parametrize("start", [0, 1, 3, 99])
def test_starting_later_skips_the_earlier_batches(train, start):
    settings = Train(batch_size=16, **train)
    whole = list(feed().epoch(2, settings, 5))
    assert equal(list(feed().epoch(2, settings, 5, start)), whole[start:])


def test_in_order_yields_each_sample_once_unchanged(monkeypatch):
    from nnx.loader import batches

    monkeypatch.setattr(batches, "EVALUATION_BATCH", 33)
    batches = list(feed().in_order())
    assert [len(labels) for _, labels in batches] == [33, 33, 33, 1]
    assert list(itertools.chain(*(samples(images) for images, _ in batches))) == list(range(100))
    assert torch.cat([labels for _, labels in batches]).tolist() == [n % 3 for n in range(100)]


# ---------------------------------------------------------------- samples that stay in their file


def left_in_file(split, folder):
    """The same samples, in another order in a file that has others beside them."""
    order = np.random.default_rng(0).permutation(2 * len(split))
    whole = np.empty((2 * len(split), *split.inputs.shape[1:]), split.inputs.dtype)
    whole[order[: len(split)]] = split.inputs
    whole[order[len(split) :]] = split.inputs[::-1]
    np.save(folder / "whole.npy", whole)
    return Split(Mapped(np.load(folder / "whole.npy", mmap_mode="r"), order[: len(split)]), split.labels)


@pytest.mark.parametrize("train", [{}, {"mixup": 0.4}, VARIED, {"mixup": 0.4, "accumulate": 2, **VARIED}], ids=str)
@pytest.mark.parametrize("start", [0, 3])
def test_a_memory_map_gives_the_same_batches_as_memory(train, start, tmp_path):
    held, left = feed(), BatchLoader(left_in_file(numbered(100), tmp_path), SPEC, CPU)
    settings = Train(batch_size=16, **train)
    for number in range(2):
        batches = [list(batches.epoch(number, settings, 5, start)) for batches in (held, left)]
        assert len(batches[0]) == len(batch_bounds(100, settings)) - start
        assert equal(*batches)
        assert all(images.is_contiguous() and images.dtype == torch.float32 for images, _ in batches[1])


def test_a_memory_map_of_rows_gives_the_same_batches(tmp_path):
    rows = Split(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32), np.arange(50) % 2)
    spec = Spec((3,), ("a", "b"), (1.0, -200.0, 0.0), (2.0, 50.0, 1.0))
    held, left = BatchLoader(rows, spec, CPU), BatchLoader(left_in_file(rows, tmp_path), spec, CPU)
    assert equal(list(held.epoch(0, Train(batch_size=8), 0)), list(left.epoch(0, Train(batch_size=8), 0)))
    assert equal(list(held.in_order()), list(left.in_order()))


@pytest.mark.parametrize("part", [slice(None), slice(10, 60), slice(99, None), slice(40, 40), slice(0, 1000)], ids=str)
def test_evaluation_reads_the_same_from_a_file(part, tmp_path, monkeypatch):
    from nnx.loader import batches

    monkeypatch.setattr(batches, "EVALUATION_BATCH", 33)
    held, left = feed(), BatchLoader(left_in_file(numbered(100), tmp_path), SPEC, CPU)
    assert len(left) == 100
    assert equal(list(held.in_order(part)), list(left.in_order(part)))
    assert sum(len(labels) for _, labels in left.in_order(part)) == len(range(100)[part])


def test_the_data_path_is_described(tmp_path):
    held, left = numbered(100), left_in_file(numbered(100), tmp_path)
    choice = describe_data_path("mine", held, BatchLoader(held, SPEC, CPU))
    assert (choice.what, choice.value, choice.reason) == (
        "data path",
        "mine in memory",
        "3.2 kB of uint8 fit in memory",
    )
    choice = describe_data_path("mine", left, BatchLoader(left, SPEC, CPU))
    assert choice.value == "mine in its file, memory-mapped"
    assert choice.reason == "3.2 kB of uint8 exceed half of the free memory"


# ---------------------------------------------------------------- normalisation, augmentation, mixup


def test_normalised_as_in_numpy():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 2, 4, 4), dtype=np.uint8)
    expected = (images / 255 - np.reshape(SPEC.mean, (2, 1, 1))) / np.reshape(SPEC.std, (2, 1, 1))
    np.testing.assert_allclose(Normalise(SPEC, CPU)(torch.from_numpy(images)), expected, atol=1e-5)
    [(batch, _)] = BatchLoader(Split(images, np.zeros(20, np.int64)), SPEC, CPU).in_order()
    np.testing.assert_allclose(batch, expected, atol=1e-5)


def test_rows_are_normalised_by_feature():
    spec = Spec((3,), ("a", "b"), (1.0, -200.0, 0.0), (2.0, 50.0, 1.0))
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32) * 100
    expected = (rows - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(Normalise(spec, CPU)(torch.from_numpy(rows)), expected, rtol=1e-5, atol=1e-5)
    [(batch, _)] = BatchLoader(Split(rows, np.arange(9) % 2), spec, CPU).epoch(0, Train(batch_size=9), 0)
    assert batch.shape == (9, 3)
    assert sorted(batch[:, 0].tolist()) == pytest.approx(sorted(expected[:, 0]), abs=1e-4)


def test_augmentation_is_a_function_of_seed_epoch_and_batch():
    settings = Train(batch_size=16, **VARIED)
    plain = Train(batch_size=16)
    one, two = (list(feed().epoch(1, settings, 7)) for _ in range(2))
    assert equal(one, two)
    assert not equal(one, list(feed().epoch(1, plain, 7))), "the control: they are changed"
    assert all(torch.equal(a[1], b[1]) for a, b in zip(one, feed().epoch(1, plain, 7), strict=True)), (
        "in the same order"
    )

    alike = BatchLoader(
        Split(np.random.default_rng(0).integers(0, 256, (1, 2, 4, 4), np.uint8).repeat(40, 0), np.zeros(40, np.int64)),
        SPEC,
        CPU,
    )
    augmented = [
        images
        for seed, number in [(0, 0), (0, 1), (1, 0)]
        for images, _ in alike.epoch(number, Train(batch_size=20, **VARIED), seed)
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(augmented, 2)), (
        "each batch of each epoch of each seed has its own"
    )
    assert len({image.numpy().tobytes() for image in augmented[0]}) > 10, "and each image"


def test_mixup_blends_images_and_targets_by_the_same_shares():
    """Here every sample has its own class, so that the targets show which samples were blended, and by what weights."""
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 4, 4), np.uint8)
    spec = Spec((2, 4, 4), tuple(map(str, range(40))), SPEC.mean, SPEC.std)
    alone = BatchLoader(Split(images, np.arange(40)), spec, CPU)
    [(whole, _)] = alone.in_order()
    blended, shares = list(alone.epoch(0, Train(batch_size=20, mixup=1.0), 0)), []
    for (mixed, targets), (_, labels) in zip(blended, alone.epoch(0, Train(batch_size=20), 0), strict=True):
        assert targets.shape == (20, 40)
        torch.testing.assert_close(targets.sum(1), torch.ones(20))
        torch.testing.assert_close(mixed, (targets @ whole.flatten(1)).view_as(mixed), rtol=1e-4, atol=1e-4)
        own = targets[torch.arange(20), labels]
        two = own < 0.9999
        assert (targets[two] > 0).sum(1).eq(2).all(), "with one other"
        assert own[two].std() < 1e-6, "one share a batch"
        assert set(targets.nonzero()[:, 1].tolist()) == set(labels.tolist()), "of the same batch"
        shares.append(own[two][0].item())
    assert len(shares) == 2
    assert shares[0] != shares[1], "drawn independently for every batch"
