"""The shipped recipes train, and the wheel contains them."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnx import config
from nnx.events import Finished
from nnx.run.pipeline import run

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", config.recipes())
def test_every_recipe_has_a_header_and_trains_a_step(name, tmp_path):
    text = config.recipes()[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"# nnx train {name}" in text
    data = []
    if "mnist" in name:
        write_tiny_mnist(tmp_path / "MNIST" / "raw")
        data = [f"dataset={{name: mnist, root: '{tmp_path}', validation: 50}}"]
    chosen = config.load(name, [*data, "train.epochs=1"])
    assert any(isinstance(event, Finished) for event in run(chosen, out=tmp_path / "r"))


@pytest.mark.parametrize(
    ("name", "least"), [("iris_mlp", 0.9), ("wine_mlp", 0.9), ("breast_cancer_mlp", 0.93), ("spirals_mlp", 0.97)]
)
def test_the_small_recipes_learn(name, least, tmp_path):
    *_, finished = run(config.load(name), out=tmp_path / "r")
    assert finished.summary["test_accuracy"] > least


def test_spirals_need_hidden_layers(tmp_path):
    *_, finished = run(config.load("spirals_mlp", ["model.hidden=[]"]), out=tmp_path / "r")
    assert finished.summary["test_accuracy"] < 0.65


def write_tiny_mnist(folder):
    """Write 300 training and 50 test images of noise, 28x28, in MNIST's format."""
    folder.mkdir(parents=True)
    for half, count in (("train", 300), ("t10k", 50)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())


def test_the_wheel_contains_recipes_and_types(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"nnx/configs/{name}.yaml" for name in config.recipes()} <= names
    assert "nnx/py.typed" in names
    elsewhere = tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(elsewhere)
    command = [sys.executable, "-m", "nnx", "train", "digits_mlp", "--set", "train.epochs=1", "--json", "-q"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"].startswith("runs/digits_mlp-")


@pytest.mark.mnist
def test_the_real_mnist_trains(tmp_path):
    """One epoch of mnist_mlp on the real digits."""
    folder = os.environ.get("NNX_DATA_DIR")
    if not folder or not (Path(folder) / "MNIST/raw/train-images-idx3-ubyte").is_file():
        pytest.skip("NNX_DATA_DIR does not contain MNIST/raw")
    *_, finished = run(config.load("mnist_mlp", ["train.epochs=1"]), out=tmp_path / "r")
    assert finished.summary["test_samples"] == 10_000
    assert finished.summary["test_accuracy"] > 0.95
