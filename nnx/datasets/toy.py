"""Toy problems in two dimensions, x and y, easy to plot: two moons, nested circles, spirals, blobs. No download."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx.datasets import DatasetConfig, Source, Split
from nnx.datasets._user_data import split_off_test
from nnx.errors import ConfigError
from nnx.preprocessing.columns import Columns, NumberColumn

TEST = 0.2  # of the samples
TURN = 4.0  # radians by which a spiral turns, from the centre to its end
FIXED_CLASSES = {"moons": 2, "circles": 2}


class Config(DatasetConfig):
    """Points in the plane, in classes that are easy to plot."""

    packaged: ClassVar[bool] = True
    name: Literal["toy"] = "toy"
    kind: Literal["moons", "circles", "spirals", "blobs"] = Field("moons", description="shape of the classes")
    samples: int = Field(1000, ge=10, le=1_000_000, description="number of points; a fifth of them are test data")
    noise: float = Field(
        0.1,
        ge=0,
        le=10,
        description="standard deviation of the noise in x and y; for spirals in the angle, in radians",
    )
    classes: int | None = Field(
        None, ge=2, le=10, description="for spirals and blobs, by default 3; moons and circles have 2"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the noise, independent of the run's seed")


def load(config: Config, folder: Path) -> Source:
    """The points, roughly within a distance of 1 from the origin. `folder` is not used.

    Raises ConfigError for a number of classes that the kind can't have, and for too few samples.
    """
    fixed = FIXED_CLASSES.get(config.kind)
    if fixed and config.classes not in (None, fixed):
        problem = f"{config.classes} does not apply to {config.kind}, which always has {fixed}"
        raise ConfigError.at("dataset.classes", f"{problem}; remove it")
    K = fixed or config.classes or 3
    if config.samples < 5 * K:
        raise ConfigError.at("dataset.samples", f"{config.samples} is too few for {K} classes; give at least {5 * K}")
    points, labels = _points(config, K)
    return split_off_test(
        Split(points, labels),
        TEST,
        tuple(map(str, range(K))),
        config.kind,
        columns=Columns((NumberColumn("x"), NumberColumn("y"))),
    )


def _points(config: Config, K: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 2) points and their (N,) classes."""
    if config.kind == "spirals":
        return spirals(config.samples, K, config.noise, np.random.default_rng(config.seed))
    from sklearn.datasets import make_blobs, make_circles, make_moons  # 0.9 s, nearly all of it the import

    if config.kind == "blobs":
        angles = 2 * np.pi * np.arange(K) / K
        centers = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points, labels = make_blobs(config.samples, centers=centers, cluster_std=config.noise, random_state=config.seed)
    elif config.kind == "circles":
        points, labels = make_circles(config.samples, noise=config.noise, factor=0.5, random_state=config.seed)
    else:
        points, labels = make_moons(config.samples, noise=config.noise, random_state=config.seed)
    return points, labels.astype(np.int64)


def spirals(
    samples: int, K: int, noise: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 2) points on K arms that spiral from the origin to a distance of 1, and their (N,) classes.

    r (sin t, cos t), where r goes from 0 to 1 while t goes through TURN radians, plus noise: as in Karpathy's CS231n,
    "Generating some data" (cs231n.github.io/neural-networks-case-study), with two differences. The arms start at equal
    angles; there each arm starts 4 radians further on, where the previous one ends. And r is never 0, because the
    origin would be a point of all classes.
    """
    labels = np.sort(np.arange(samples) % K)
    sizes = np.bincount(labels)
    r = np.concatenate([np.arange(1, size + 1) / size for size in sizes])
    t = 2 * np.pi * labels / K + TURN * r + rng.normal(0, noise, samples)
    return np.stack([r * np.sin(t), r * np.cos(t)], axis=1), labels
