"""What the explainers are tried on: a small network of every architecture, trained for an epoch on the digits, and one
on a table."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from nnx import checkpoint, config, datasets, explain, losses, models
from nnx.checkpoint import Checkpoint
from nnx.config import registry
from nnx.datasets import DatasetConfig, Split
from nnx.explain import Subject
from nnx.preprocessing.spec import Spec
from nnx.run.pipeline import run

SMALL = {
    "mlp": "{name: mlp, hidden: [24, 16]}",
    "cnn": "{name: cnn, channels: [6, 8], hidden: [16]}",
    "rnn": "{name: rnn, hidden: 16}",
    "transformer": "{name: transformer, patch: 2, width: 16, depth: 2, heads: 2}",
}
TABLE = [name for name in registry.names("model") if name != "cnn"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The name of an architecture -> the checkpoint of a network of it that was trained for an epoch on the digits."""

    @cache
    def path(model: str) -> Path:
        settings = ["train.epochs=1", f"model={SMALL.get(model, model)}", "dataset={name: digits, validation: 0.2}"]
        settings += ["precision=float32", "layout=channels_first", "threads=1"]  # the same network on all CPUs
        folder = tmp_path_factory.mktemp(model) / "run"
        for _ in run(config.load("digits_mlp", settings, {"device": "cpu"}), out=folder):
            pass
        return folder / "checkpoint.pt"

    return path


@pytest.fixture(scope="session")
def subject(trained: Callable[[str], Path]) -> Callable[..., Subject]:
    """subject("mlp") is that network, with a test digit of each of two classes to explain."""

    @cache
    def digits() -> datasets.Dataset:
        made = config.load("digits_mlp", ["dataset={name: digits, validation: 0.2}"])
        return datasets.load(cast(DatasetConfig, made.dataset), seed=made.seed)

    @cache
    def of(model: str) -> Subject:
        test = digits().test()
        which = explain.one_per_class(test, 10, limit=2)
        saved = checkpoint.read(trained(model))
        return explain.build_subject(
            saved, digits().split, test.inputs[which], [f"test {n}" for n in which], test.labels[which]
        )

    # a new one for each test: a subject keeps what explainers measured, perhaps under a test's patches
    return lambda model: replace(of(model))


@pytest.fixture(scope="session")
def table_subject() -> Callable[[str], Subject]:
    """table_subject("mlp") is an untrained network for rows of five features and three classes."""

    def of(model: str) -> Subject:
        rng = np.random.default_rng(0)
        rows = Split(rng.normal(2, 3, (200, 5)).astype(np.float32), rng.integers(0, 3, 200))
        return untrained("{name: transformer, width: 8, depth: 1, heads: 2}" if model == "transformer" else model, rows)

    return of


@pytest.fixture(scope="session")
def colour_subject() -> Callable[[str], Subject]:
    """colour_subject("mlp") is an untrained network for images of 8x8 pixels in colour and three classes."""

    def of(model: str) -> Subject:
        rng = np.random.default_rng(0)
        return untrained(
            SMALL[model], Split(rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 60))
        )

    return of


def untrained(model: str, samples: Split) -> Subject:
    """A network for such samples, of three classes, with the first two to explain."""
    made = config.load("digits_mlp", [f"model={model}"])
    spec = Spec(samples.inputs.shape[1:], ("red", "green", "blue"), *datasets.mean_std(samples.inputs))
    torch.manual_seed(0)
    network = models.build(made.model, spec, losses.outputs(made.loss, 3))
    saved = Checkpoint(made, spec, network.state_dict(), {})
    return explain.build_subject(
        saved, lambda _: samples, samples.inputs[:2], ["sample 0", "sample 1"], samples.labels[:2]
    )
