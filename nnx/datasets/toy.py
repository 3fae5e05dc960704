"""Toy problems in two dimensions, x and y, that can be drawn: two moons, circles in each other, spirals, blobs. No
download."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nnx.datasets import DatasetConfig, Source, Split, _user_data
from nnx.errors import ConfigError
from nnx.preprocessing.columns import Columns, NumberColumn

TEST = 0.2  # of the samples
TURN = 4.0  # radians that a spiral turns by, from the middle to its end
FIXED = {"moons": 2, "circles": 2}  # classes of the kinds that can't have others


class Config(DatasetConfig):
    """Points in the plane, of classes that can be seen."""

    packaged: ClassVar[bool] = True
    name: Literal["toy"] = "toy"
    kind: Literal["moons", "circles", "spirals", "blobs"] = Field("moons", description="how the classes lie")
    samples: int = Field(1000, ge=10, le=1_000_000, description="points in all, a fifth of which are the test part")
    noise: float = Field(
        0.1,
        ge=0,
        le=10,
        description="standard deviation of what is added to x and y; of spirals to the angle, in radians",
    )
    classes: int | None = Field(None, ge=2, le=10, description="of spirals and blobs, else 3; moons and circles have 2")
    seed: int = Field(0, ge=0, lt=2**32, description="decides the noise, whatever the run's seed is")


def load(config: Config, folder: Path) -> Source:
    """The points, about as far from the origin as 1. `folder` is not looked at. Raises ConfigError for too many
    classes."""
    fixed = FIXED.get(config.kind)
    if fixed and config.classes not in (None, fixed):
        raise ConfigError.at(
            "dataset.classes", f"{config.classes} is not for {config.kind}, of which there are {fixed}; leave it away"
        )
    K = fixed or config.classes or 3
    if config.samples < 5 * K:
        raise ConfigError.at("dataset.samples", f"{config.samples} is too few for {K} classes; give {5 * K} at least")
    points, labels = _points(config, K)
    return _user_data.cut(
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
    """(N, 2) points on K arms that wind out of the origin to a distance of 1, and their (N,) classes.

    r (sin t, cos t), where r goes from 0 to 1 and t, with it, through TURN radians, with noise: as in Karpathy's
    CS231n, "Generating some data" (cs231n.github.io/neural-networks-case-study), but that the arms begin at equal
    angles: there each begins, 4 radians further, where the one before it ends. And r is never 0: the origin would be a
    point of all classes.
    """
    labels = np.sort(np.arange(samples) % K)
    sizes = np.bincount(labels)
    r = np.concatenate([np.arange(1, size + 1) / size for size in sizes])
    t = 2 * np.pi * labels / K + TURN * r + rng.normal(0, noise, samples)
    return np.stack([r * np.sin(t), r * np.cos(t)], axis=1), labels
