"""The shipped recipes and the README: what is promised in them runs."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnx import config
from nnx import models as models_package
from nnx.config import registry
from nnx.events import Finished
from nnx.run.pipeline import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    """300 training and 50 test images of noise, 28x28, in MNIST's format."""
    folder.mkdir(parents=True)
    for half, count in (("train", 300), ("t10k", 50)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())


def test_the_reference_in_the_readme_is_made_from_the_schema(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "scripts/reference", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_of_the_tour_runs(tmp_path, monkeypatch):
    """As typed, in order, in one folder; with one epoch where the command does not name a number of epochs itself."""
    from nnx.cli import run_command

    monkeypatch.chdir(tmp_path)
    commands = [
        line
        for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("nnx ")
    ]
    assert len(commands) >= 10
    monkeypatch.setenv("NNX_OFFLINE", "1")
    for command in commands:
        if "mnist" in command:
            continue  # its data may not be here; test_mnist trains it
        words = command.partition("#")[0].split()
        if words[1] == "train":
            words += ["--set", "train.epochs=2" if "--resume" in words else "train.epochs=1"]
        monkeypatch.setattr(sys, "argv", words)
        assert run_command() == (2 if "exit code 2" in command else 0), command


def test_the_worked_example_of_an_architecture_trains(tmp_path, monkeypatch):
    """The README's maxout.py, put where it says, is found by name and learns."""
    code = re.search(r"```python\n(\"\"\"Maxout.*?)```", README, re.DOTALL)
    assert code
    (tmp_path / "maxout.py").write_text(code[1])
    monkeypatch.setattr(models_package, "__path__", [*models_package.__path__, str(tmp_path)])
    assert "maxout" in registry.names("model")
    *_, finished = run(config.load("digits_mlp", ["model=maxout", "train.epochs=5"]), out=tmp_path / "r")
    sys.modules.pop("nnx.models.maxout")
    assert finished.summary["test_accuracy"] > 0.9


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(import nnx\n.*?)```", README, re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    accuracy, checkpoint = capsys.readouterr().out.splitlines()[0].split()
    assert float(accuracy) > 0.9
    assert Path(checkpoint).is_file()


def test_the_wheel_carries_recipes_and_types(tmp_path):
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
def test_mnist_itself_trains(tmp_path):
    """One epoch of the article's network on the real digits."""
    if not (
        Path(os.environ.get("NNX_DATA_DIR", "")) / "MNIST/raw/train-images-idx3-ubyte"
    ).is_file() or not os.environ.get("NNX_DATA_DIR"):
        pytest.skip("NNX_DATA_DIR does not hold MNIST/raw")
    *_, finished = run(config.load("mnist_mlp", ["train.epochs=1"]), out=tmp_path / "r")
    assert finished.summary["test_samples"] == 10_000
    assert finished.summary["test_accuracy"] > 0.95
