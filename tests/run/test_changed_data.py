"""Data that changed since training is not evaluated without a word."""

from pathlib import Path

import numpy as np
import pytest

from nnx import checkpoint, config
from nnx.run.evaluate import evaluate_checkpoint
from nnx.run.pipeline import run

CONFIG = """
dataset: {name: arrays, path: data.npz, validation: 40}
model: {name: mlp, hidden: [4]}
train: {epochs: 1, report: false}
"""


def write(changed: str = "") -> None:
    rng = np.random.default_rng(0)
    parts = {part: rng.integers(0, 256, (n, 6, 6), dtype=np.uint8) for part, n in (("train", 200), ("test", 80))}
    if changed:
        parts[changed][3, 2, 2] ^= 1
    labels = {part: np.arange(len(images)) % 4 for part, images in parts.items()}
    np.savez("data.npz", **{f"x_{k}": v for k, v in parts.items()}, **{f"y_{k}": v for k, v in labels.items()})


def warnings(split: str, *overrides: str) -> list[str]:
    content = evaluate_checkpoint(Path("r"), split=split, overrides=overrides)
    return [choice.reason for choice in content.choices if choice.what == "warning"]


@pytest.fixture(autouse=True)
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write()
    list(run(config.parse(CONFIG, "own.yaml"), out=Path("r")))


def test_unchanged_data_is_the_control():
    assert checkpoint.read(Path("r/checkpoint.pt")).data == checkpoint.read(Path("r/last.pt")).data
    assert [warnings(split) for split in ("train", "validation", "test")] == [[], [], []]


def test_changed_training_data_is_a_warning():
    write("train")
    for split in ("validation", "test"):
        [warning] = warnings(split)
        assert warning == "training or validation samples differ from those that the network was trained on"
    assert warnings("test", "dataset.validation=41") == [], "other data on purpose"


def test_changed_test_data_is_a_warning():
    write("test")
    assert warnings("validation") == []
    assert warnings("test") == ["test samples differ from those of the run's own test"]


def test_without_a_summary_nothing_is_known_of_the_test_set():
    write("test")
    for text in ("", "[1]", "{"):
        Path("r/summary.json").write_text(text)
        assert warnings("test") == []
