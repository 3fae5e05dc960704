"""Samples that stay in their file: what an array gives, the same network to the bit, and no memory to speak of."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import tree

from nnx import config as configs
from nnx import datasets
from nnx.config import Train
from nnx.datasets import Mapped, _mapped, arrays
from nnx.errors import Stopped
from nnx.events import Epoch, Finished, Started, Step
from nnx.loader.batches import BatchLoader
from nnx.run.pipeline import run

WHOLE = np.random.default_rng(0).integers(0, 256, (20, 2, 3, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def large(monkeypatch):
    """No data fits into memory."""
    monkeypatch.setattr(datasets, "fits", lambda size: False)


# ---------------------------------------------------------------- as an array

rows = st.lists(st.integers(0, 19), min_size=1, max_size=30).map(np.array)
ends = st.none() | st.integers(-35, 35)
slices = st.builds(slice, ends, ends, st.none() | st.integers(-5, 5).filter(bool))


@given(rows, st.data())
def test_it_is_what_an_array_of_these_rows_is(rows, data):
    mapped, plain = Mapped(WHOLE, rows), WHOLE[rows]
    assert (mapped.shape, mapped.dtype, mapped.ndim, mapped.nbytes, len(mapped)) == (
        plain.shape,
        plain.dtype,
        4,
        plain.nbytes,
        len(plain),
    )
    np.testing.assert_array_equal(np.asarray(mapped), plain)
    assert np.asarray(mapped, np.float32).dtype == np.float32
    n = len(rows)
    places = st.integers(-n, n - 1)
    index = data.draw(places | slices | st.lists(places, min_size=1).map(np.array) | st.just(np.arange(n) % 2 == 0))
    np.testing.assert_array_equal(mapped[index], plain[index])
    assert mapped[index].flags.c_contiguous
    np.testing.assert_array_equal(mapped[index, 1], plain[index, 1])
    again = np.array(data.draw(st.lists(places, min_size=1, max_size=9)))
    taken = mapped.take(again)
    assert isinstance(taken, Mapped)
    assert taken.whole is WHOLE, "nothing is read"
    np.testing.assert_array_equal(np.asarray(taken), plain.take(again, axis=0))


def test_what_lies_in_a_file(tmp_path):
    np.save(tmp_path / "a.npy", WHOLE)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for view in (
        mapped,
        mapped[3:],
        mapped[:, None],
        mapped.transpose(0, 3, 1, 2),
        np.asarray(mapped),
        Mapped(mapped, np.arange(3)),
    ):
        assert _mapped.is_mapped(view)
    for copy in (WHOLE, WHOLE[3:], np.array(mapped), mapped + 0, mapped[[1, 2]] + 0):
        assert not _mapped.is_mapped(copy)


# ---------------------------------------------------------------- a dataset


def npy(folder, inputs, labels):
    folder.mkdir(exist_ok=True)
    np.save(folder / "x_train.npy", inputs)
    np.save(folder / "y_train.npy", labels)
    return folder


def images(tmp_path):
    return f"{{name: folder, path: {tree(tmp_path / 'p', dict.fromkeys('abc', 40), colour=True)}, test: 20}}"


def table(tmp_path):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(120, 5)).astype(np.float32)
    return f"{{name: arrays, path: {npy(tmp_path / 'rows', rows, np.arange(120) % 3)}}}"


def channels_last(tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    return f"{{name: arrays, path: {npy(tmp_path / 'last', pixels, np.arange(120) % 3)}}}"


SOURCES = {"images": images, "rows": table, "channels last": channels_last}


def config(dataset, model="{name: mlp, hidden: [16]}", *more):
    text = f"dataset: {dataset}\nmodel: {model}\ntrain: {{epochs: 2, batch_size: 16, ema: 0.9}}\nthreads: 1\n"
    return configs.parse("\n".join([text, *more]), "own.yaml")


@pytest.mark.parametrize("kind", SOURCES)
def test_splits_hold_the_same_samples_and_are_prepared_alike(kind, tmp_path, monkeypatch):
    settings = config(SOURCES[kind](tmp_path)).dataset
    held = datasets.load(settings, seed=0)
    splits = {name: held.split(name) for name in ("train", "validation", "test")}
    monkeypatch.setattr(datasets, "fits", lambda size: False)
    left = datasets.load(settings, seed=0)
    assert left.spec == held.spec
    for name, one in splits.items():
        two = left.split(name)
        assert isinstance(one.inputs, np.ndarray)
        assert isinstance(two.inputs, Mapped)
        assert _mapped.is_mapped(two.inputs.whole)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.labels, two.labels)
        assert datasets.fingerprint(one) == datasets.fingerprint(two)
        assert datasets.mean_std(one.inputs) == datasets.mean_std(two.inputs)


def trained(settings, out, **options):
    events = list(run(settings, out=out, **options))
    path = next(choice for choice in events[0].choices if choice.what == "data path")
    assert isinstance(events[0], Started)
    epochs = [(e.train_loss, e.val_loss, e.val_accuracy) for e in events if isinstance(e, Epoch)]
    [summary] = [event.summary for event in events if isinstance(event, Finished)]
    return path, epochs, {key: summary[key] for key in ("test_loss", "test_accuracy", "val_loss")}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("images", "{name: mlp, hidden: [16]}"),
        ("images", "cnn"),
        ("rows", "{name: mlp, hidden: [16]}"),
        ("channels last", "cnn"),
    ],
)
def test_a_run_gives_the_same_bits(kind, model, tmp_path, monkeypatch):
    settings = config(SOURCES[kind](tmp_path), model)
    if kind == "images":
        settings = configs.from_dict(
            settings.to_dict(), "own.yaml", ["train.augment.rotate=10", "dataset.balance=oversample"]
        )
    path, *held = trained(settings, tmp_path / "held")
    assert path.value == f"{settings.dataset.name} in memory"
    assert path.reason.endswith(" fit in memory")
    monkeypatch.setattr(datasets, "fits", lambda size: False)
    path, *left = trained(settings, tmp_path / "left")
    assert path.value == f"{settings.dataset.name} in its file, memory-mapped"
    assert path.reason.endswith("exceed half of the free memory")
    assert held == left
    for name in ("checkpoint.pt", "last.pt"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "left" / name).read_bytes()


def stopped(settings, out, *, step):
    signal = [0]
    for event in run(settings, out=out, signal=lambda: signal[0]):
        signal[0] = 15 if isinstance(event, Step) and event.step == step else 0


@pytest.mark.parametrize("first", [True, False], ids=["mapped first", "memory first"])
def test_a_run_goes_on_whichever_way_its_data_was_read(first, tmp_path, monkeypatch):
    settings = config(images(tmp_path))
    trained(settings, tmp_path / "whole")
    monkeypatch.setattr(datasets, "fits", lambda size: not first)
    with pytest.raises(Stopped):
        stopped(settings, tmp_path / "run", step=3)
    monkeypatch.setattr(datasets, "fits", lambda size: first)
    trained(settings, None, resume=tmp_path / "run")
    for name in ("checkpoint.pt", "last.pt"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_larger_than_memory_takes_none(tmp_path, large):
    """A sparse file of 256 MB: its statistics are measured, its batches read, and a few MB are taken."""
    folder = npy(tmp_path / "big", np.zeros((1, 64, 64), np.uint8), np.arange(65536) % 2)
    head = np.lib.format.header_data_from_array_1_0(np.zeros((1, 64, 64), np.uint8)) | {"shape": (65536, 64, 64)}
    with (folder / "x_train.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        file.truncate(file.tell() + 65536 * 64 * 64)
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    datasets.load(config(images(tmp_path)).dataset, seed=0)  # what is imported is not counted
    tracemalloc.start()
    data = datasets.load(arrays.Config(path=str(folder), test=1000), seed=0)
    batches = BatchLoader(data.train, data.spec, torch.device("cpu"))
    next(batches.epoch(0, Train(batch_size=64), 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * 2**20, f"{peak / 2**20:.0f} MB of 256"
    count = sum(len(split) for split in (data.train, data.validation, data.test()))
    assert count == 65536


def test_the_summary_is_plain(tmp_path, large):
    """What a run writes holds nothing of the map."""
    trained(config(images(tmp_path)), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["test_samples"] == 20
    assert Path(tmp_path / "run/config.yaml").read_text().count("path:") == 1
