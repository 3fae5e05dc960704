"""Duplicates on the command line: train, eval and show name the files, and say which labels they have."""

import json
from pathlib import Path

import pytest
from pictures import pixels, save

CONFIG = "dataset: {name: folder, path: train, test: test}\nmodel: {name: mlp, hidden: [4]}\ntrain: {epochs: 1}\n"


@pytest.fixture(autouse=True)
def pictures(nnx, tmp_path, monkeypatch):
    """Ten images in train/a, ten in train/b, one of which is in both; all of train/a, and two of it as b, in test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))
    for n in range(20):
        save(Path("train", "ab"[n % 2], f"{n:02}.png"), pixels(n))
    save(Path("train/b/50.png"), pixels(0))
    for n in range(0, 20, 2):
        save(Path("test/a", f"{n:02}.png"), pixels(n))
    save(Path("test/b/02.png"), pixels(2))
    save(Path("test/b/99.png"), pixels(99))
    Path("c.yaml").write_text(CONFIG)


def test_duplicates_are_named(nnx):
    trained = nnx("train", "c.yaml", "--out", "r")
    assert trained.code == 0, trained.err
    assert "2 of 21 labels" in trained.err
    assert "train/a/00.png (a)" in trained.err
    assert "train/b/50.png (b)" in trained.err
    warning = trained.err.splitlines()[-1]
    assert warning.startswith(
        "warning: 11 of 12 test samples are also in the training data and may be memorised: test "
    )
    assert "2 of them have another label there; " in warning
    assert "test/b/02.png (b) and train/a/02.png (a)" in warning
    assert warning.endswith(", ...")
    summary = json.loads(Path("r/summary.json").read_text())
    assert (summary["test_duplicates"], summary["test_duplicate_conflicts"]) == (11, 2)
    assert len(summary["test_duplicate_examples"]) == 3
    evaluated = nnx("eval", "r")
    assert warning in evaluated.err.splitlines()
    assert "2 of 21 labels" not in evaluated.err, "of training, where it was printed"
    assert "test/b/02.png (b) and train/a/02.png (a)" in Path("r/report.html").read_text()
    shown = nnx("show", "c.yaml")
    assert "11 of 12 test samples are also in the training data" in shown.out
    assert "2 of 21 labels" in shown.out
    assert "test/a/02.png and train/a/02.png" in shown.out
    assert "test/b/02.png (b)" not in shown.out, "show does not look at test labels"
