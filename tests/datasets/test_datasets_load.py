"""Loading: where the data is sought, how validation is cut, the statistics, the fingerprint."""

import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnx import datasets
from nnx.config import registry
from nnx.datasets import Split, digits, mnist
from nnx.errors import ConfigError, DataError

MNIST_CLASS_SIZES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize("name", registry.names("dataset"))
def test_every_module_is_a_part_of_its_own_name(name):
    module = registry.module("dataset", name)
    assert issubclass(module.Config, datasets.DatasetConfig)
    assert module.Config.model_fields["name"].default == name
    assert callable(module.load)
    assert module.__doc__
    assert module.load.__doc__


@pytest.mark.parametrize("name", registry.names("dataset"))
def test_what_is_packaged_needs_no_folder_and_what_is_not_does(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NNX_OFFLINE", "1")
    own = {"path": str(tmp_path / "no")} | ({"target": "y"} if name == "table" else {})
    config = registry.find("dataset", name)
    config = config(**{key: value for key, value in own.items() if key in config.model_fields})
    if config.packaged:
        dataset = datasets.load(config, seed=0, data_dir=str(tmp_path / "none"))
        assert len(dataset.test())
    else:
        with pytest.raises((DataError, ConfigError), match=str(tmp_path)):
            datasets.load(config, seed=0, data_dir=str(tmp_path / "none"))
    assert not any(tmp_path.iterdir())


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected = load_digits()
    source = digits.load(digits.Config(), Path("unused"))
    test = source.test()
    assert (len(source.train), len(test)) == (1437, 360)
    images = np.concatenate([source.train.inputs, test.inputs])
    labels = np.concatenate([source.train.labels, test.labels])
    assert images.shape == (1797, 1, 8, 8)
    found = sorted((label, image.tobytes()) for label, image in zip(labels, images, strict=True))
    scaled = np.round(expected.images * 255 / 16 + 1e-9).astype(np.uint8)
    assert found == sorted((label, image.tobytes()) for label, image in zip(expected.target, scaled, strict=True))
    assert (images.min(), images.max()) == (0, 255)


def test_digits_load():
    one, two, other = (datasets.load(digits.Config(validation=100), seed=seed) for seed in (1, 1, 2))
    assert (len(one.train), len(one.validation), len(one.test())) == (1337, 100, 360)
    assert one.spec.shape == (1, 8, 8)
    assert one.spec.classes == tuple("0123456789")
    for split in ("train", "validation", "test"):
        inputs = one.split(split).inputs
        assert inputs.flags.c_contiguous
        assert inputs.dtype == np.uint8
        assert one.split(split).labels.dtype == np.int64
        assert np.bincount(one.split(split).labels).min() >= len(one.split(split)) // 10 - 4
    assert datasets.fingerprint(one.train) == datasets.fingerprint(two.train)
    assert datasets.fingerprint(one.validation) == datasets.fingerprint(two.validation)
    assert datasets.fingerprint(one.train) != datasets.fingerprint(other.train)
    assert datasets.fingerprint(one.test()) == datasets.fingerprint(other.test())


def test_normalised_training_data_has_mean_0_and_deviation_1():
    dataset = datasets.load(digits.Config(), seed=0)
    normalised = (dataset.train.inputs / 255 - dataset.spec.mean[0]) / dataset.spec.std[0]
    np.testing.assert_allclose([normalised.mean(), normalised.std()], [0, 1], atol=1e-12)


@pytest.mark.mnist
def test_real_mnist(real_mnist):
    dataset = datasets.load(mnist.Config(validation=5000), seed=0, data_dir=real_mnist)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test())) == (55000, 5000, 10000)
    sizes = np.bincount(dataset.train.labels) + np.bincount(dataset.validation.labels)
    assert sizes.tolist() == MNIST_CLASS_SIZES
    np.testing.assert_allclose(np.bincount(dataset.validation.labels), np.array(MNIST_CLASS_SIZES) / 12, atol=1)
    assert dataset.spec.mean == pytest.approx([0.1307], abs=5e-4)
    assert dataset.spec.std == pytest.approx([0.3081], abs=5e-4)


# ---------------------------------------------------------------- the folder


def test_folder_precedence(monkeypatch, tmp_path):
    monkeypatch.delenv("NNX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/x")
    assert datasets.find_folder(mnist.Config()).parts[-2:] == ("nnx", "data")
    monkeypatch.setenv("NNX_DATA_DIR", "~/env")
    assert datasets.find_folder(mnist.Config()) == Path("/home/x/env")
    assert datasets.find_folder(mnist.Config(), "~/flag") == Path("/home/x/flag")
    assert datasets.find_folder(mnist.Config(root="~/root"), "~/flag") == Path("/home/x/root")


# ---------------------------------------------------------------- the validation part


@st.composite
def labels_and_count(draw):
    labels = np.array(draw(st.lists(st.integers(0, 6), min_size=2, max_size=200)))
    room = len(labels) - len(np.unique(labels))
    return labels, draw(st.integers(min(1, room), room))


@given(labels_and_count(), st.integers(0, 2**32 - 1))
def test_stratified(given_labels, seed):
    labels, count = given_labels
    aside = datasets.stratified_sample(labels, count, seed=seed)
    assert len(aside) == count
    assert (np.diff(aside) > 0).all()  # ascending and distinct
    assert (np.delete(labels, aside).tolist() == []) == (len(labels) == count)
    assert set(np.delete(labels, aside)) == set(labels)
    assert (datasets.stratified_sample(labels, count, seed=seed) == aside).all()
    sizes, taken = np.bincount(labels), np.bincount(labels[aside], minlength=labels.max() + 1)
    shares = [Fraction(int(size) * count, len(labels)) for size in sizes]
    if all(share <= max(size - 1, 0) for share, size in zip(shares, sizes, strict=True)):
        assert all(abs(int(got) - share) < 1 for got, share in zip(taken, shares, strict=True))


def test_stratified_by_largest_remainder():
    labels = np.repeat([0, 1, 2], [50, 33, 17])
    taken = np.bincount(labels[datasets.stratified_sample(labels, 10, seed=0)])
    assert taken.tolist() == [5, 3, 2]  # of 5.0, 3.3 and 1.7


def test_stratified_draws_every_sample_alike():
    labels = np.repeat([0, 1], [20, 10])
    drawn = np.bincount(
        np.concatenate([datasets.stratified_sample(labels, 6, seed=seed) for seed in range(2000)]), minlength=30
    )
    np.testing.assert_allclose(drawn, 400, atol=6 * (400 * 0.8) ** 0.5)  # 2,000 draws at 4/20 and 2/10


def test_validation_as_fraction(tiny_mnist):
    dataset = datasets.load(mnist.Config(validation=0.25), seed=0, data_dir=str(tiny_mnist))
    assert (len(dataset.train), len(dataset.validation)) == (30, 10)
    assert np.bincount(dataset.validation.labels).tolist() == [1] * 10


@pytest.mark.parametrize("validation", [31, 40, 0.99, 0.001])
def test_validation_that_does_not_fit(tiny_mnist, validation):
    with pytest.raises(ConfigError) as caught:
        datasets.load(mnist.Config(validation=validation), seed=0, data_dir=str(tiny_mnist))
    assert caught.value.problems[0].key == "dataset.validation"
    assert f"{validation} " in str(caught.value)
    assert "40 samples" in str(caught.value)
    assert "give a count from 1 to 30" in str(caught.value)


def test_the_most_that_validation_can_be(tiny_mnist):
    dataset = datasets.load(mnist.Config(validation=30), seed=0, data_dir=str(tiny_mnist))
    assert np.bincount(dataset.train.labels).tolist() == [1] * 10


# ---------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "3 inputs but 2 labels"),
        ([0, 1, 2], "labels from 0 to 2, outside 0 to 1"),
        ([0, -1, 1], "from -1 to 1"),
    ],
)
def test_checked(labels, words):
    with pytest.raises(DataError, match=words) as caught:
        datasets.check_split(Split(np.zeros((3, 1, 2, 2), np.uint8), np.array(labels)), 2, "the/file")
    assert str(caught.value).startswith("the/file: ")
    assert "delete them and run again" in str(caught.value)


def test_checked_shape_and_emptiness():
    split = Split(np.zeros((3, 1, 2, 2), np.uint8), np.zeros(3, np.int64))
    assert datasets.check_split(split, 1, "x", shape=(1, 2, 2)) is split
    with pytest.raises(DataError, match=r"x: has inputs of shape \(1, 2, 2\)"):
        datasets.check_split(split, 1, "x", shape=(1, 3, 3))
    with pytest.raises(DataError, match="x: contains no samples"):
        datasets.check_split(split.take(np.array([], np.int64)), 1, "x")


# ---------------------------------------------------------------- statistics and fingerprint


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (37, 3, 5, 7), (300, 1, 28, 28)])
def test_mean_std_of_images(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = datasets.mean_std(images)
    expected = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, expected.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, expected.std((0, 2, 3)) if images.size > 1 else [1], rtol=1e-12)
    assert all(type(value) is float for value in mean + std)


def test_mean_std_of_rows():
    rows = np.random.default_rng(0).normal([0, 1e4, -3], [1, 1e-2, 50], (10_000, 3)).astype(np.float32)
    rows = np.concatenate([rows, np.full((10_000, 1), 0.1, np.float32)], axis=1)
    mean, std = datasets.mean_std(rows)
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(std[:3], rows.std(0, dtype=np.float64)[:3], rtol=1e-9)
    assert std[3] == 1


def test_constant_images_have_deviation_1():
    assert datasets.mean_std(np.full((100, 1, 9, 9), 255, np.uint8)) == ((1.0,), (1.0,))


def test_mean_std_takes_no_memory_to_speak_of():
    images = np.zeros((10_000, 3, 32, 32), np.uint8)  # 30 MB
    tracemalloc.start()
    datasets.mean_std(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_fingerprint_is_of_content():
    images = np.arange(24, dtype=np.uint8).reshape(3, 1, 2, 4)
    labels = np.array([0, 1, 2])
    base = datasets.fingerprint(Split(images, labels))
    assert base == datasets.fingerprint(Split(np.asfortranarray(images), labels.copy()))
    changed = images.copy()
    changed[2, 0, 1, 3] ^= 1
    others = [
        Split(changed, labels),
        Split(images, labels[::-1]),
        Split(images.reshape(3, 1, 4, 2), labels),
        Split(images[:2], labels[:2]),
        Split(images, labels).take(np.array([1, 0, 2])),
    ]
    assert len({base, *map(datasets.fingerprint, others)}) == 6
