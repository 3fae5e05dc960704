"""Toy problems: those of scikit-learn, and spirals as their formula says."""

import math
from pathlib import Path

import numpy as np
import pytest

from nnx import datasets
from nnx.datasets import toy
from nnx.errors import ConfigError


def points(**settings):
    """All points of a toy problem, sorted, with their classes."""
    source = toy.load(toy.Config(**settings), Path("unused"))
    parts = (source.train, source.test())
    rows = np.concatenate([np.column_stack([part.inputs, part.labels]) for part in parts])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("kind", ["moons", "circles", "blobs"])
def test_points_are_those_of_scikit_learn(kind):
    from sklearn import datasets as theirs

    corners = [
        (1, 0),
        (math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)),
        (math.cos(4 * math.pi / 3), math.sin(4 * math.pi / 3)),
    ]
    made = {
        "moons": lambda: theirs.make_moons(300, noise=0.2, random_state=7),
        "circles": lambda: theirs.make_circles(300, noise=0.2, factor=0.5, random_state=7),
        "blobs": lambda: theirs.make_blobs(300, centers=np.array(corners), cluster_std=0.2, random_state=7),
    }
    expected = np.column_stack(made[kind]())
    found = points(kind=kind, samples=300, noise=0.2, seed=7)
    np.testing.assert_allclose(found, expected[np.lexsort(expected.T)], atol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_spirals_without_noise_are_their_formula(K):
    found = points(kind="spirals", samples=101 * K, classes=K, noise=0)
    assert len(found) == 101 * K
    for x, y, k in found:
        r = math.hypot(x, y)
        angle = 2 * math.pi * k / K + 4 * r
        assert (x, y) == pytest.approx((r * math.sin(angle), r * math.cos(angle)), abs=1e-9)
        assert 0 < r <= 1 + 1e-9


def test_noise_of_spirals_is_of_the_angle():
    drawn, labels = toy.spirals(30_000, 3, 0.3, np.random.default_rng(0))
    r = np.hypot(*drawn.T)
    off = np.arctan2(drawn[:, 0], drawn[:, 1]) - 2 * np.pi * labels / 3 - 4 * r
    off = (off + np.pi) % (2 * np.pi) - np.pi
    assert (off.mean(), off.std()) == (pytest.approx(0, abs=0.01), pytest.approx(0.3, abs=0.01))


@pytest.mark.parametrize("kind", ["moons", "circles", "spirals", "blobs"])
def test_a_toy_problem_is_a_table_of_x_and_y(kind):
    first, second = (datasets.load(toy.Config(kind=kind), seed=seed) for seed in (0, 1))
    assert first.spec.columns.feature_names == ("x", "y")
    assert [len(first.split(name)) for name in ("train", "validation", "test")] == [720, 80, 200]
    K = len(first.spec.classes)
    assert np.bincount(first.test().labels).tolist() == pytest.approx([200 / K] * K, abs=1)
    assert datasets.fingerprint(first.train) != datasets.fingerprint(second.train)
    raw = [toy.load(toy.Config(kind=kind, seed=seed), Path()) for seed in (0, 0, 1)]
    prints = [datasets.fingerprint(each.test()) for each in raw]
    assert prints[0] == prints[1] != prints[2]


def test_classes_that_can_not_be_are_refused():
    with pytest.raises(ConfigError, match=r"dataset\.classes: 3 does not apply to moons, which always has 2"):
        toy.load(toy.Config(kind="moons", classes=3), Path())
    with pytest.raises(ConfigError, match=r"dataset\.samples: 20 is too few for 10 classes; give at least 50"):
        toy.load(toy.Config(kind="blobs", classes=10, samples=20), Path())
    assert len(points(kind="moons", classes=2, samples=10)) == 10
