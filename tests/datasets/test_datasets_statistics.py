"""The balance of classes and its cures, mean and deviation where they are given, and chunks that no sample is too large
for."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import tree

from nnx import config as configs
from nnx import datasets
from nnx.datasets import Split, _statistics, arrays
from nnx.errors import ConfigError
from nnx.system.device import choose_runtime
from nnx.training.setup import build_criterion


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))


def dataset(tmp_path, counts, inputs=None, **settings):
    """Images or rows, so many of each class, and as many to test on."""
    labels = np.concatenate([np.full(count, k) for k, count in enumerate(counts)])
    if inputs is None:
        inputs = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 4, 4), dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz", x_train=inputs, y_train=labels, x_val=inputs, y_val=labels, x_test=inputs, y_test=labels
    )
    return datasets.load(arrays.Config(path=str(tmp_path / "a.npz"), **settings), seed=3)


# ---------------------------------------------------------------- classes


@given(st.lists(st.integers(0, 5), min_size=1, max_size=120), st.integers(0, 2**32 - 1))
def test_repeated_holds_every_sample_and_each_class_as_often(labels, seed):
    labels = np.array(labels)
    index = datasets.oversampled_indices(labels, seed=seed)
    counts = np.bincount(labels)
    assert set(index.tolist()) == set(range(len(labels))), "every sample at least once"
    assert (np.diff(index) >= 0).all()
    after = np.bincount(labels[index], minlength=len(counts))
    assert set(after[counts > 0].tolist()) == {counts.max()}
    assert after[counts == 0].sum() == 0
    often = Counter(index.tolist())
    for k in counts.nonzero()[0]:
        own = [often[n] for n in np.flatnonzero(labels == k)]
        assert max(own) - min(own) <= 1, "as evenly as can be"
    assert (datasets.oversampled_indices(labels, seed=seed) == index).all()


def test_which_are_repeated_once_more_depends_on_the_seed():
    labels = np.repeat([0, 1], [30, 20])
    assert len({tuple(datasets.oversampled_indices(labels, seed=seed)) for seed in range(5)}) == 5


def test_oversampling_is_of_training_data_alone_and_after_it_was_measured(tmp_path):
    plain, over = (dataset(tmp_path, [40, 10, 5], balance=how) for how in ("none", "oversample"))
    assert np.bincount(over.train.labels).tolist() == [40, 40, 40]
    assert np.bincount(plain.train.labels).tolist() == [40, 10, 5]
    for name in ("validation", "test"):
        assert datasets.fingerprint(over.split(name)) == datasets.fingerprint(plain.split(name))
    assert over.spec == plain.spec, "mean and deviation are of what there is"
    assert {image.tobytes() for image in over.train.inputs} == {image.tobytes() for image in plain.train.inputs}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([10, 10, 10], None),
        ([10, 28, 29], None),
        ([10, 30, 12], "10 (0) to 30 (1) samples"),
        ([3000, 7, 3], "3 (2) to 3,000 (0) samples"),
    ],
)
def test_imbalance_is_said_with_its_cure(counts, message, tmp_path):
    labels = np.repeat(np.arange(3), counts)
    notes = _statistics.describe_balance(labels, ("0", "1", "2"), oversample=False)
    assert [note.value for note in notes] == ([message] if message else [])
    if message:
        assert notes[0].what == "classes"
        assert (
            notes[0].reason
            == "imbalanced; loss.class_weights: balanced or dataset.balance: oversample gives all equal weight"
        )
        [cured] = _statistics.describe_balance(labels, ("0", "1", "2"), oversample=True)
        assert cured.reason == "samples are repeated until all classes have equal numbers (dataset.balance)"


def test_a_class_without_training_samples_is_said():
    """Named in the config, say, or cut away."""
    [note] = _statistics.describe_balance(np.array([0, 0, 1]), ("a", "b", "c"), oversample=False)
    assert note.value == "0 (c) to 2 (a) samples"


def test_balanced_weights_are_of_the_training_labels(tmp_path):
    text = "dataset: {name: digits}\nmodel: mlp\nloss: {name: cross_entropy, class_weights: balanced}\n"
    config = configs.parse(text, "own.yaml")
    counts = [40, 10, 5]
    chosen = choose_runtime("cpu", "float32")
    logits, targets = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    weight = torch.tensor([55 / (3 * count) for count in counts])  # n / (K * n_class), as scikit-learn has it
    expected = (weight[targets] * torch.nn.functional.cross_entropy(logits, targets, reduction="none")).mean()
    found = build_criterion(config.loss, dataset(tmp_path, counts), chosen)(logits, targets)
    torch.testing.assert_close(found, expected)
    even = build_criterion(config.loss, dataset(tmp_path, counts, balance="oversample"), chosen)(logits, targets)
    (
        torch.testing.assert_close(even, torch.nn.functional.cross_entropy(logits, targets)),
        "both together weigh nothing twice",
    )


# ---------------------------------------------------------------- mean and deviation


def test_given_ones_are_taken(tmp_path):
    measured = dataset(tmp_path, [6, 6]).spec
    both = dataset(tmp_path, [6, 6], mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0]).spec
    assert (both.mean, both.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    mean = dataset(tmp_path, [6, 6], mean=[0.1, 0.2, 0.3]).spec
    assert (mean.mean, mean.std) == ((0.1, 0.2, 0.3), measured.std)
    std = dataset(tmp_path, [6, 6], std=[1.0, 2.0, 3.0]).spec
    assert (std.mean, std.std) == (measured.mean, (1.0, 2.0, 3.0))
    zero = dataset(tmp_path, [6, 6], mean=[0.0, 0.0, 0.0]).spec
    assert zero.mean == (0.0, 0.0, 0.0), "nothing to subtract is something given"
    assert both.image_statistics == measured.image_statistics


def test_given_ones_for_rows(tmp_path):
    rows = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    spec = dataset(tmp_path, [6, 6], rows, mean=[5.0, -5.0], std=[2.0, 1e-3]).spec
    assert (spec.mean, spec.std) == ((5.0, -5.0), (2.0, 1e-3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.5]}, "dataset.mean: has 1 values, but the data has 3 channels; give one per channel"),
        ({"std": [0.5] * 4}, "dataset.std: has 4 values, but the data has 3 channels; give one per channel"),
    ],
)
def test_wrong_ones_are_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        dataset(tmp_path, [6, 6], **settings)
    assert str(caught.value).startswith(message)


def test_wrong_ones_for_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has 1 values, but the data has 2 features"):
        dataset(tmp_path, [6, 6], np.ones((12, 2), np.float32), mean=[1.0])


@pytest.mark.parametrize("value", [[], ["a"], [float("nan")], [float("inf")], 0.5, [True]])
def test_what_is_no_list_of_numbers(value):
    assert arrays.Config(path="p", mean=[1]).mean == [1.0], "the control: a whole number is one"
    with pytest.raises(ValueError, match="mean"):
        arrays.Config(path="p", mean=value)


# ---------------------------------------------------------------- large samples


@pytest.mark.parametrize("side", [1, 28, 1500])
def test_statistics_of_samples_of_any_size_are_exact_and_take_no_memory(side):
    images = np.random.default_rng(0).integers(0, 256, (8, 1, side, side), dtype=np.uint8)
    datasets.mean_std(images[:1])
    tracemalloc.start()
    (mean,), (std,) = datasets.mean_std(images)
    datasets.fingerprint(Split(images, np.arange(8)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mean == pytest.approx(images.mean() / 255, rel=1e-12)
    assert std == pytest.approx(images.std() / 255, rel=1e-9)
    assert peak < 6e6, "of 18 MB, where they are large"


def test_a_fingerprint_is_not_of_the_chunks(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 20, 20), dtype=np.uint8)
    whole = datasets.fingerprint(Split(images, np.arange(50)))
    real = _statistics._chunks
    monkeypatch.setattr(_statistics, "_chunks", lambda array, rows: real(array, 7))
    assert datasets.fingerprint(Split(images, np.arange(50))) == whole


# ---------------------------------------------------------------- prepared as a network was


def test_like_a_network_nothing_is_measured_and_classes_go_by_their_names(tmp_path):
    from nnx.datasets import folder

    trained = datasets.load(folder.Config(path=str(tree(tmp_path / "p", {"owl": 9, "cat": 9, "dog": 9}))), seed=0)
    fewer = folder.Config(path=str(tree(tmp_path / "q", {"owl": 9, "dog": 9}, first=400)))
    alone = datasets.load(fewer, seed=0)
    alike = datasets.load(fewer, seed=0, like=trained.spec)
    assert alike.spec is trained.spec
    assert alone.spec.mean != trained.spec.mean
    assert alone.spec.classes == ("dog", "owl")
    for name in ("train", "validation", "test"):
        one, two = alone.split(name), alike.split(name)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        assert [alone.spec.classes[k] for k in one.labels] == [trained.spec.classes[k] for k in two.labels]
    single = folder.Config(path=str(tree(tmp_path / "r", {"owl": 9})))
    assert set(datasets.load(single, seed=0, like=trained.spec).train.labels) == {2}, (
        "one class is enough to ask a network about"
    )


@pytest.mark.parametrize("quiet", [False, True])
def test_measuring_what_is_larger_than_memory_is_said(quiet, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 5), np.uint8)
    mapped = datasets.Mapped(images, np.arange(50))
    with datasets.silent(quiet):
        assert datasets.mean_std(mapped) == datasets.mean_std(images)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(_statistics, "MAX_READ", images.nbytes - 1)
        assert datasets.mean_std(mapped) == datasets.mean_std(images)
    assert capsys.readouterr().err == ("" if quiet else "measuring 50 samples\n")


@pytest.mark.parametrize(
    ("classes", "similar"),
    [
        (("cat", "Cat", "dog"), "'cat' and 'Cat'"),
        (("cat", "cat ", "dog"), "'cat' and 'cat '"),
        (("01", "1", "2"), "'01' and '1'"),
        (("1", "1.0", "2"), "'1' and '1.0'"),
        (("not ok", "not_ok", "ok"), "'not ok' and 'not_ok'"),
        (("\u00e9t", "e\u0301t"), "'\u00e9t' and 'e\u0301t'"),
        (("a", "A", "B"), None),
        (("None", "NA", "nan", "1", "10"), None),
    ],
)
def test_class_names_that_differ_only_in_how_they_are_written_are_warned_of(classes, similar):
    notes = _statistics.describe_similar_classes(classes)
    assert [note.value for note in notes] == ([f"classes {similar}"] if similar else [])
