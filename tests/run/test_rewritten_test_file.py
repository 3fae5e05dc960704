"""A test file rewritten during a run is named in a warning: on stderr, in summary.json and in the report."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from nnx import config
from nnx.datasets import _changes
from nnx.events import Epoch, Finished
from nnx.run.pipeline import run
from nnx.terminal.train import show

TAIL = "\nmodel: {name: mlp, hidden: [4]}\ntrain: {epochs: 1}\n"
RNG = np.random.default_rng(0)
REASON = "changed during the run: the test figures are of other data than at its start"


def idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(header + array.astype(np.uint8).tobytes())


def samples(count):
    return RNG.integers(0, 256, (count, 8, 8), dtype=np.uint8), np.arange(count) % 10


def as_mnist():
    for part, count in (("train", 100), ("t10k", 40)):
        images, labels = samples(count)
        idx(f"data/FashionMNIST/raw/{part}-images-idx3-ubyte", images)
        idx(f"data/FashionMNIST/raw/{part}-labels-idx1-ubyte", labels)
    return "{name: fashion_mnist, root: data}", "data/FashionMNIST/raw/t10k-images-idx3-ubyte"


def as_idx():
    images, labels = samples(140)
    idx("images-idx3-ubyte", images)
    idx("labels-idx1-ubyte", labels)
    return "{name: idx, path: images-idx3-ubyte}", "images-idx3-ubyte"


def as_arrays():
    images, labels = samples(140)
    np.save("x.npy", images)
    np.save("y.npy", labels)
    return "{name: arrays, path: x.npy, labels: y.npy}", "x.npy"


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(range(64)))


def replace(path):
    Path("new").write_bytes(Path(path).read_bytes()[:-64] + bytes(range(64)))
    os.replace("new", path)


def finish(dataset, between):
    """The summary of a run during which `between` is called."""
    events = run(config.parse(f"dataset: {dataset}{TAIL}", "own.yaml"), out=Path("r"))
    for event in show(events, quiet=True):
        if isinstance(event, Epoch):
            between()
        if isinstance(event, Finished):
            return event.summary
    return None


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("write", [as_mnist, as_idx, as_arrays])
def test_it_is_named(write, large, monkeypatch, capsys):
    if large:  # compared by size and time stamps
        monkeypatch.setattr(_changes, "HASHED", 10)
    dataset, path = write()
    assert finish(dataset, lambda: overwrite(path))["warnings"] == [f"{path}: {REASON}"]
    assert f"warning: {path}: {REASON}" in " ".join(capsys.readouterr().err.split())
    report = Path("r/report.html").read_text()
    assert f"<dt>warning</dt><dd>{path} <small>{REASON}" in report


@pytest.mark.parametrize("write", [as_mnist, as_idx, as_arrays])
def test_the_same_content_is_no_change(write):
    dataset, path = write()
    assert finish(dataset, lambda: Path(path).touch())["warnings"] == []


def test_a_replaced_file_is_a_change_only_if_it_is_read_later():
    dataset, path = as_mnist()
    assert finish(dataset, lambda: replace(path))["warnings"] == [f"{path}: {REASON}"]


def test_a_memory_map_keeps_the_content_of_a_replaced_or_removed_file():
    dataset, path = as_arrays()
    assert finish(dataset, lambda: replace(path))["warnings"] == []


def test_a_file_of_another_dataset_is_not_named():
    as_arrays()
    dataset, _ = as_idx()
    finish("{name: arrays, path: x.npy, labels: y.npy}", lambda: None)
    os.rename("r", "r1")
    assert finish(dataset, lambda: overwrite("x.npy"))["warnings"] == []
