"""Users' own data on the command line: one line trains on it, evaluates and caches it; bad data is one error, and
nothing is written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import claiming, listed, pixels, save, tree

from nnx.datasets import _cache, _decode

COUNTS = {"cat": 20, "dog": 20, "owl": 20}
QUICK = ("--set", "train={epochs: 1, batch_size: 16}", "--set", "model={name: mlp, hidden: [8]}", "--set", "threads=1")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))
    return tmp_path / ".cache"


@pytest.fixture
def train(nnx, tmp_path):
    """`train("name: folder, path: pics")`: nnx train of a config with this dataset."""

    def command(dataset, *more):
        (tmp_path / "own.yaml").write_text(f"seed: 1\ndataset: {{{dataset}}}\nmodel: mlp\n")
        return nnx("train", "own.yaml", *QUICK, "--out", "r", *more)

    return command


def npz(path="a.npz", **content):
    np.savez(path, **content)


GRAY = np.random.default_rng(0).integers(0, 256, (60, 6, 5), dtype=np.uint8)
LABELS = np.arange(60) % 3


# ---------------------------------------------------------------- it works


@pytest.mark.parametrize("source", ["folder", "list", "npz", "npy", "idx"])
def test_each_source_trains_by_one_line_and_evaluates_to_the_same(source, nnx, train, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
    from tiny_idx import idx

    tree(Path("pics"), COUNTS)
    listed(
        Path("list.csv"),
        [("file", "label"), *((str(path), path.parent.name) for path in sorted(Path("pics").glob("*/*")))],
    )
    npz(images=GRAY, labels=LABELS)
    np.save("x.npy", GRAY)
    np.save("y.npy", LABELS)
    Path("my-images-idx3-ubyte").write_bytes(idx(GRAY))
    Path("my-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    lines = {
        "folder": "name: folder, path: pics",
        "list": "name: folder, path: list.csv",
        "npz": "name: arrays, path: a.npz",
        "npy": "name: arrays, path: x.npy, labels: y.npy",
        "idx": "name: idx, path: my-images-idx3-ubyte",
    }
    done = train(lines[source], "--json")
    assert done.code == 0, done.err
    assert "test data" in done.err, "the note says how many were set aside, and how"
    summary = json.loads(done.out)
    assert summary["test_samples"] == 12
    metrics = nnx("eval", "r/checkpoint.pt", "--json")
    assert metrics.code == 0, metrics.err
    assert json.loads(metrics.out)["loss"] == summary["test_loss"]
    labels = [row["label"] for row in json.loads(metrics.out)["per_class"]]
    assert labels == (["cat", "dog", "owl"] if source in ("folder", "list") else ["0", "1", "2"])
    assert nnx("train", "r/config.yaml", "--out", "again", "-q").code == 0
    assert (tmp_path / "r/checkpoint.pt").read_bytes() == (tmp_path / "again/checkpoint.pt").read_bytes()


def test_pictures_of_the_same_data_as_an_array_train_to_the_same_bits(train, tmp_path):
    """Names that count, over all classes: the order of the array."""
    for part, first in (("train", 0), ("test", 1000)):
        for n, label in enumerate(LABELS):
            save(Path("pics") / part / str(label) / f"{n:05}.png", pixels(first + n))
    held = {part: np.stack([pixels(first + n) for n in range(60)]) for part, first in (("train", 0), ("test", 1000))}
    npz(x_train=held["train"], y_train=LABELS, x_test=held["test"], y_test=LABELS)
    import torch

    weights = []
    for line in ("name: folder, path: pics", "name: arrays, path: a.npz"):
        assert train(line, "-q", "--force").code == 0
        weights.append(torch.load("r/checkpoint.pt", weights_only=True)["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_automatic_choices_are_printed(train):
    tree(Path("pics"), {"cat": 40, "dog": 10, "owl": 20})
    Path("pics/cat/bad.png").write_bytes(b"bad")
    err = " ".join(train("name: folder, path: pics, skip_bad: true").err.split())
    for words in (
        "test data 14 of 70 samples set aside, stratified by class, the same for every seed (dataset.test)",
        "cache decoded stored for later runs; nnx list cache shows all entries",
        "left out 1 files they can't be used (dataset.skip_bad): pics/cat/bad.png: is not an image that can be read",
        "samples imbalanced; loss.class_weights: balanced or dataset.balance: oversample gives all equal weight",
        "data path folder in memory",
        "of uint8 fit in memory",
    ):
        assert words in err
    again = train("name: folder, path: pics, skip_bad: true, balance: oversample", "--force")
    err = " ".join(again.err.split())
    assert "cache used" in err
    assert "samples are repeated until all classes have equal numbers (dataset.balance)" in err
    assert "samples 87 train, 6 validation" in err


def test_names_of_files_do_not_colour_the_terminal(train):
    tree(Path("pics"), COUNTS)
    save(Path("pics/cat") / "\x1b[31m\nred.png", pixels(0))
    (Path("pics/cat") / "\x1b[31m\nred.png").write_bytes(b"bad")
    refused = train("name: folder, path: pics")
    assert refused.code == 2
    skipped = train("name: folder, path: pics, skip_bad: true")
    assert skipped.code == 0
    for result in (refused, skipped):
        assert "\x1b" not in result.err
        assert "red.png" in result.err


def test_quiet_is_quiet(train, monkeypatch):
    monkeypatch.setattr(_decode, "WORTH_PROCESSES", 10)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    tree(Path("pics"), COUNTS)
    assert "decoding 60 images\n" in train("name: folder, path: pics").err
    tree(Path("more"), COUNTS)
    assert train("name: folder, path: more", "-q", "--force").err == ""


# ---------------------------------------------------------------- bad data


def folder_with(change):
    def make():
        tree(Path("pics"), COUNTS)
        change(Path("pics"))
        return "name: folder, path: pics"

    return make


def array_with(**content):
    def make():
        npz(**{"images": GRAY, "labels": LABELS, **content})
        return "name: arrays, path: a.npz"

    return make


def list_with(*rows):
    def make():
        tree(Path("pics"), COUNTS)
        listed(
            Path("list.csv"),
            [("file", "label"), *((f"pics/cat/{n:03}.png", "ab"[n % 2]) for n in range(0, 60, 3)), *rows],
        )
        return "name: folder, path: list.csv"

    return make


def cleared(path):
    for file in path.iterdir():
        file.unlink()


def odd(value, row=7):
    return np.where(np.arange(60) == row, value, LABELS)


def npy_with(values):
    def make():
        np.save("x.npy", values)
        np.save("y.npy", LABELS)
        return "name: arrays, path: x.npy, labels: y.npy"

    return make


ROWS = np.where(np.arange(60)[:, None] == 33, np.nan, np.ones((60, 4))).astype(np.float32)
BAD = {
    "empty class": (
        folder_with(lambda p: cleared(p / "owl")),
        ["pics/owl: contains no images", "add some for the class 'owl', or remove"],
    ),
    "one class": (
        lambda: tree(Path("pics"), {"cat": 9}) and "name: folder, path: pics",
        ["pics: all samples have the class 'cat'"],
    ),
    "unreadable image": (
        folder_with(lambda p: (p / "cat/000.png").write_bytes(b"x")),
        [
            "pics/cat/000.png: is not an image",
            "save it as PNG",
            "1 of 60 images can't be used; set dataset.skip_bad: true to leave them out",
        ],
    ),
    "cut image": (
        folder_with(lambda p: os.truncate(p / "cat/000.png", 60)),
        ["pics/cat/000.png: is damaged or cut short; get the file"],
    ),
    "10^9 pixels": (
        folder_with(lambda p: (p / "cat/000.png").write_bytes(claiming(31623, 31623))),
        ["pics/cat/000.png: has more than 89 megapixels; save a smaller image"],
    ),
    "another size": (
        folder_with(lambda p: save(p / "owl/002.png", pixels(0, size=(9, 9)))),
        ["owl/002.png: is 9 wide", "dataset.size: 6"],
    ),
    "unknown class in test": (
        lambda: [tree(Path("pics/train"), COUNTS), tree(Path("pics/test"), {"cow": 1})] and "name: folder, path: pics",
        ["pics/test/cow/000.png: has the class 'cow', which has no training images"],
    ),
    "no samples": (
        lambda: Path("pics").mkdir() or "name: folder, path: pics",
        ["pics: contains no folders; put the images of each class"],
    ),
    "no such folder": (
        lambda: "name: folder, path: pics",
        ["own.yaml:2:31: dataset.path: there is no pics in ", "give the file or folder"],
    ),
    "missing file of a list": (list_with(("pics/no.png", "a")), ["pics/no.png: no such file; check the name"]),
    "ragged row of a list": (
        list_with(("pics/cat/000.png", "a", "b")),
        ["list.csv:22: has no file, no label or too many values; correct"],
    ),
    "row without a label": (list_with(("pics/cat/000.png", "")), ["list.csv:22: has no file, no label"]),
    "wrong header": (
        lambda: listed(Path("l.csv"), [("a", "b")]) and "name: folder, path: l.csv",
        ["l.csv:1: has the columns a, b; it needs"],
    ),
    "NaN as a label": (
        array_with(labels=odd(np.nan)),
        ["a.npz: labels.npy: row 7 has the label nan, which is not a whole number; correct it"],
    ),
    "a word among numbers": (
        array_with(labels=odd("x").astype(str)),
        ["row 7 has the label 'x', but the other labels are numbers; correct it, or"],
    ),
    "no label": (
        array_with(labels=np.where(LABELS == 1, "", "a")),
        ["labels.npy: row 1 has no label; fill it in, or drop the row"],
    ),
    "one-hot labels": (
        array_with(labels=np.eye(3)[LABELS]),
        ["labels of shape 60 x 3", "give one whole number or name per sample"],
    ),
    "too few labels": (array_with(labels=LABELS[:59]), ["a.npz: train inputs have shape 60 x 6 x 5, but labels 59"]),
    "one class in an array": (array_with(labels=LABELS * 0), ["a.npz: all samples have the class '0'"]),
    "no samples in an array": (
        array_with(images=GRAY[:0], labels=LABELS[:0]),
        ["a.npz: images.npy: contains no samples"],
    ),
    "NaN in a row": (npy_with(ROWS), ["x.npy: row 33 contains an infinite number or NaN; correct it, or drop the row"]),
    "gray levels beyond": (
        array_with(images=GRAY * 2.0 - 100),
        ["contains pixel values from -100 to 410; give uint8 from 0 to 255, or"],
    ),
    "objects": (
        npy_with(np.array([[None] * 4] * 60)),
        ["x.npy: contains Python objects, which nnx never loads; save plain numbers"],
    ),
    "unknown label in test": (
        lambda: npz(x_train=GRAY, y_train=LABELS, x_test=GRAY, y_test=odd(9)) or "name: arrays, path: a.npz",
        [
            "a.npz: y_test.npy: row 7 has the label '9', which is not one of the classes (0, 1, 2); "
            "correct it, or drop the row"
        ],
    ),
    "no labels named": (
        lambda: np.save("x.npy", GRAY) or "name: arrays, path: x.npy",
        ["own.yaml:2:", "dataset.labels: is missing: x.npy"],
    ),
    "not an archive": (
        lambda: Path("a.npz").write_text("x") and "name: arrays, path: a.npz",
        ["a.npz: is not a .npz file, a .npy file or a folder of .npy"],
    ),
    "not IDX": (
        lambda: [Path(name).write_text("x") for name in ("images", "labels")] and "name: idx, path: images",
        ["images: not an IDX file of 3-dimensional uint8", "get the file again"],
    ),
    "too large a test part": (array_with(), []),
    "a wrong size": (folder_with(lambda p: None), []),
    "a wrong mean": (array_with(), []),
}
MORE = {
    "too large a test part": (
        ", test: 58",
        ["own.yaml:2:", "dataset.test: can't set aside 58 of the 60 samples in a.npz; give a count from 1 to 57"],
    ),
    "a wrong size": (
        ", size: 0",
        ["own.yaml:2:", "dataset.size: expected a number of pixels (28), or height and width ([28, 32])"],
    ),
    "a wrong mean": (
        ", mean: [1.0, 2.0]",
        ["own.yaml:2:", "dataset.mean: has 2 values, but the data has 1 channels; give one per channel"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_2_named_and_nothing_is_written(case, train, tmp_path, cache):
    make, message = BAD[case]
    line = make()
    more, words = MORE.get(case, ("", []))
    (tmp_path / "own.yaml").touch()
    before = sorted(os.listdir(tmp_path))
    refused = train(line + more, "--json")
    assert (refused.code, refused.out) == (2, ""), refused.err
    assert refused.err.startswith("error: ")
    assert "Traceback" not in refused.err
    assert len(refused.err.splitlines()) <= 10
    flat = " ".join(refused.err.split())
    for text in (*message, *words):
        assert text in flat
    assert ";" in refused.err or "expected " in refused.err, "a cure is there"
    assert sorted(set(os.listdir(tmp_path)) - {".cache"}) == before
    assert not [path for path in cache.glob("*") if path.name.startswith(".")], "no half entry"


def test_every_bad_file_in_one_go_as_many_as_can_be_read(train):
    tree(Path("pics"), COUNTS)
    for path in Path("pics/cat").iterdir():
        path.write_bytes(b"x")
    lines = train("name: folder, path: pics").err.splitlines()
    assert len(lines) == 10
    assert all(line.startswith("error: ") for line in lines)
    assert lines[-2] == "error: ... and 12 more"


def test_a_path_that_is_not_unicode(nnx, tmp_path):
    name = os.fsdecode(b"pics\xff")
    tree(Path(name), COUNTS)
    done = nnx("train", "digits_mlp", *QUICK, "--set", f"dataset={{name: folder, path: {name}}}", "--out", "r")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert not (tmp_path / "r").exists()


def test_a_full_disk_is_3(train, cache, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    tree(Path("pics"), COUNTS)
    monkeypatch.setattr(_cache.Writer, "add", full)
    refused = train("name: folder, path: pics")
    assert refused.code == 3
    assert refused.err == (
        f"error: {cache}: can't be written (No space left on device); free some space, or set NNX_CACHE_DIR to "
        "another folder\n"
    )
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- other data for a network


def test_eval_of_other_data_maps_classes_by_their_names(nnx, train):
    tree(Path("pics"), COUNTS)
    assert train("name: folder, path: pics", "-q").code == 0
    tree(Path("owls"), {"owl": 10, "dog": 10}, first=300)
    found = nnx("eval", "r/checkpoint.pt", "--set", "dataset.test=owls", "--json")
    assert found.code == 0, found.err
    metrics = json.loads(found.out)
    assert {row["label"]: row["support"] for row in metrics["per_class"]} == {"cat": 0, "dog": 10, "owl": 10}
    path = nnx("eval", "r/checkpoint.pt", "--set", "dataset.path=owls", "--set", "dataset.test=owls", "--json")
    assert path.code == 0, path.err
    other = json.loads(path.out)
    assert (other["loss"], other["confusion_matrix"]) == (metrics["loss"], metrics["confusion_matrix"]), (
        "nothing is measured anew"
    )
    assert "cache" in found.err


@pytest.mark.parametrize("key", ["path", "test"])
def test_eval_refuses_a_class_that_the_network_does_not_know(key, nnx, train, tmp_path):
    tree(Path("pics"), COUNTS)
    assert train("name: folder, path: pics", "-q").code == 0
    tree(Path("cows"), {"owl": 10, "cow": 10})
    refused = nnx("eval", "r/checkpoint.pt", "--set", f"dataset.{key}=cows", "--out", "e")
    assert (refused.code, refused.out) == (2, "")
    assert "'cow', which" in refused.err
    if key == "path":
        assert (
            refused.err
            == "error: cows: has the class 'cow', which is not one of the network's 3 classes: cat, dog, owl\n"
        )
    assert not (tmp_path / "e").exists()


def test_eval_refuses_images_of_another_size(nnx, train):
    tree(Path("pics"), COUNTS)
    assert train("name: folder, path: pics", "-q").code == 0
    tree(Path("large"), COUNTS, size=(9, 9))
    refused = nnx("eval", "r/checkpoint.pt", "--set", "dataset.path=large")
    assert refused.code == 2
    assert refused.err == "error: r/checkpoint.pt: was trained on inputs of 1x6x5, the dataset has 1x9x9\n"


# ---------------------------------------------------------------- going on


def test_resume_refuses_changed_data_and_takes_moved_data(nnx, train):
    tree(Path("pics"), COUNTS)
    assert train("name: folder, path: pics", "-q").code == 0
    more = ("--resume", "r", "--set", "train.epochs=2", "-q", "--json")
    save(Path("pics/cat/000.png"), pixels(999))
    changed = nnx("train", *more)
    assert (changed.code, changed.out) == (2, "")
    assert "was trained on other data than " in changed.err
    assert "restore it, or start a new run" in changed.err
    save(Path("pics/cat/000.png"), pixels(0))
    Path("pics").rename("moved")
    gone = nnx("train", *more)
    assert gone.code == 2
    assert "there is no pics" in gone.err
    moved = nnx("train", *more, "--set", "dataset.path=moved")
    assert moved.code == 0, moved.err
    assert json.loads(moved.out)["epochs"] == 2


def test_resume_takes_moved_arrays_and_refuses_another_test_part(nnx, train):
    np.save("x.npy", GRAY)
    np.save("y.npy", LABELS)
    line = "name: arrays, path: x.npy, labels: y.npy, test: x.npy, test_labels: y.npy"
    assert train(line, "-q").code == 0
    Path("to").mkdir()
    for name in ("x.npy", "y.npy"):
        Path(name).rename(Path("to") / name)
    keys = {"path": "x", "labels": "y", "test": "x", "test_labels": "y"}
    moved = [word for key, name in keys.items() for word in ("--set", f"dataset.{key}=to/{name}.npy")]
    assert nnx("train", "--resume", "r", "--set", "train.epochs=2", "-q", *moved).code == 0
    for setting in ("dataset.test=0.3", "dataset.classes=[a, b, c]", "dataset.balance=oversample"):
        refused = nnx("train", "--resume", "r", "--set", "train.epochs=3", "-q", *moved, "--set", setting)
        assert refused.code == 2
        assert f"{setting.partition('=')[0]}: " in refused.err


def test_a_run_that_was_stopped_while_decoding_leaves_nothing(tmp_path, environment, cache):
    """3,000 links to one picture, by two processes, in a process group as a terminal has it."""
    large = save(tmp_path / "large.png", pixels(0, size=(400, 400)))
    for n in range(3000):
        path = tmp_path / "pics" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(large)
    (tmp_path / "own.yaml").write_text("dataset: {name: folder, path: pics, size: 28}\nmodel: mlp\n")
    command = [sys.executable, "-m", "nnx", "train", "own.yaml", "--out", "r"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(cache.glob(".*.tmp/*.bin")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["decoding 3,000 images", "stopped before the first step; nothing was changed"]
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- nnx list cache


def test_list_cache(nnx, train, cache):
    assert nnx("list", "cache").out == f"0 entries, 0 B, in {cache}\n"
    tree(Path("pics"), COUNTS)
    assert train("name: folder, path: pics", "-q").code == 0
    npz(images=np.zeros((60, 200, 200), np.uint16), labels=LABELS)
    assert train("name: arrays, path: a.npz", "-q", "--force").code == 0
    lines = nnx("list", "cache").out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[0] == os.path.abspath("a.npz")
    assert "2.4 MB, last used " in lines[0]
    assert lines[1].split()[0] == os.path.abspath("pics")
    assert lines[2] == f"2 entries, 2.4 MB, in {cache}"
    found = json.loads(nnx("list", "cache", "--json").out)
    assert found["folder"] == str(cache)
    assert [Path(entry["path"]).parent for entry in found["entries"]] == [cache] * 2
    assert sum(entry["bytes"] for entry in found["entries"]) == found["bytes"]
    assert found["entries"][0]["source"] == os.path.abspath("a.npz")
    cleared = json.loads(nnx("list", "cache", "--clear", "--json").out)
    assert [entry["source"] for entry in cleared["removed"]] == [os.path.abspath("a.npz"), os.path.abspath("pics")]
    assert list(cache.iterdir()) == []
    assert nnx("list", "cache", "--clear").out == f"0 entries, 0 B, removed from {cache}\n"


def test_clear_applies_to_the_cache_only(nnx):
    for words in (("list", "--clear"), ("list", "models", "--clear")):
        refused = nnx(*words)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err == "error: --clear: applies to the cache only; use nnx list cache --clear\n"


def test_an_entry_that_can_not_be_removed_is_3(nnx, train, monkeypatch):
    import shutil

    tree(Path("pics"), COUNTS)
    assert train("name: folder, path: pics", "-q").code == 0

    def closed(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", closed)
    refused = nnx("list", "cache", "--clear")
    assert refused.code == 3
    assert "can't be removed (Permission denied)" in refused.err
