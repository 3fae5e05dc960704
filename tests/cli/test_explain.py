"""nnx explain: its files and output, and that wrong input is found before anything is written."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from nnx import config, datasets
from nnx import explain as explainers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint of a short run."""
    import sys

    from nnx.cli import run_command

    folder = tmp_path_factory.mktemp("explain")
    sys.argv = ["nnx", "train", "digits_mlp", "--set", "train.epochs=1", "--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    return folder / "run/checkpoint.pt"


def digits():
    made = config.load("digits_mlp")
    return datasets.load(made.dataset, seed=made.seed).test()


def test_pictures_and_a_page_next_to_the_checkpoint_and_a_row_per_explainer(nnx, checkpoint):
    result = nnx("explain", checkpoint, "--only", "filters", "--only", "activations", "--index", 3)
    assert result.code == 0, result.err
    folder = checkpoint.parent / "explain"
    assert sorted(path.name for path in folder.iterdir()) == ["activations-1.png", "filters.png", "index.html"]
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "test 3" in page
    header, *rows, _, where = result.out.splitlines()
    assert header.split() == ["explainer", "pictures", "how", "to", "read", "them"]
    assert [row.split()[:2] for row in rows] == [["activations", "1"], ["filters", "1"]]
    assert all(row.rstrip().endswith(".") for row in rows)
    assert where == str(folder / "index.html")
    assert "filters" in result.err
    assert "device" in result.err


def test_json_is_all_of_stdout_and_quiet_is_quiet(nnx, checkpoint, tmp_path):
    result = nnx("explain", checkpoint, "--only", "filters", "--out", "a/b", "--json", "-q")
    assert result.code == 0
    assert result.err == ""
    output = json.loads(result.out)
    assert output["folder"] == "a/b"
    assert len(output["samples"]) == 10, "one per class"
    assert set(output["explainers"]) == {"filters"}
    assert set(output["explainers"]["filters"]) == {"reading", "pictures", "figures"}
    for picture in output["explainers"]["filters"]["pictures"]:
        assert (tmp_path / "a/b" / picture["file"]).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a/b" / output["page"]).exists()
    assert output["left_out"] == {}


def test_an_explainer_that_does_not_apply_is_left_out_with_the_reason(nnx, checkpoint, monkeypatch):
    monkeypatch.setattr(explainers, "names", lambda: ["attention", "filters"])
    result = nnx("explain", checkpoint, "--out", "a", "--json")
    assert result.code == 0
    output = json.loads(result.out)
    assert set(output["explainers"]) == {"filters"}
    assert output["left_out"] == {"attention": "the mlp has no attention; use a transformer"}
    assert "attention" in result.err


def test_a_file_is_explained_as_the_sample_that_it_shows(nnx, checkpoint, tmp_path):
    for n in (0, 5):
        Image.fromarray(digits().inputs[n][0]).save(tmp_path / f"{n}.png")
    of_files = json.loads(
        nnx("explain", checkpoint, "0.png", "5.png", "--only", "saliency", "--out", "a", "--json").out
    )
    of_samples = json.loads(
        nnx("explain", checkpoint, "--index", 0, "--index", 5, "--only", "saliency", "--out", "b", "--json").out
    )
    assert of_files["samples"] == ["0.png", "5.png"]
    assert of_samples["samples"] == ["test 0", "test 5"]
    one, other = (output["explainers"]["saliency"]["figures"] for output in (of_files, of_samples))
    assert one.pop("samples") != other.pop("samples")
    assert one.pop("labels") is None, "a file has no label"
    assert len(other.pop("labels")) == 2
    assert one == other


def test_files_need_no_dataset(nnx, checkpoint, tmp_path, monkeypatch):
    Image.fromarray(digits().inputs[0][0]).save(tmp_path / "0.png")
    monkeypatch.setattr(datasets, "load", lambda *args, **settings: pytest.fail("loaded"))
    assert nnx("explain", checkpoint, "0.png", "--only", "activations", "--only", "filters", "--out", "a").code == 0


def test_a_folder_is_explained_file_by_file_and_the_preparation_is_printed(nnx, checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    for n in (0, 5):
        Image.fromarray(255 - digits().inputs[n][0]).resize((80, 80)).save(tmp_path / f"mine/{n}.png")
    result = nnx("explain", checkpoint, "mine", "--only", "activations", "--out", "a", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["samples"] == ["mine/0.png", "mine/5.png"]
    assert "mine/0.png prepared: inverted" in result.err
    assert "mine/5.png prepared: inverted" in result.err


def test_samples_of_another_split(nnx, checkpoint):
    result = nnx(
        "explain", checkpoint, "--split", "validation", "--index", 1, "--only", "filters", "--out", "a", "--json"
    )
    assert json.loads(result.out)["samples"] == ["validation 1"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--only", "filtres"), "unknown explainer 'filtres', did you mean 'filters'?"),
        (("--only", "attention"), "attention: the mlp has no attention"),
        (("--index", "360"), "--index 360: the test split has 360 samples; give 0 to 359"),
        (("--index", "-1"), "--index"),
        (("--split", "tset"), "--split"),
        (("seven.png", "--index", "1"), "not both"),
        (("missing.png",), "missing.png: no such file"),
        (("text.png",), "text.png: is not an image"),
        (("--set", "model.hidden=[3]"), "only dataset"),
        (("--set", "dataset.name=mnits"), "did you mean 'mnist'"),
        (("--device", "cuda:77"), "this machine has: cpu"),
        (("--out", "text.png"), "a file, not a folder"),
        (("--out", "text.png/deeper"), "a file, not a folder"),
    ],
)
def test_wrong_input_is_2_and_nothing_is_written(nnx, checkpoint, tmp_path, words, what):
    Image.new("L", (28, 28)).save(tmp_path / "seven.png")
    (tmp_path / "text.png").write_text("not an image")
    out = () if "--out" in words else ("--out", "a")
    result = nnx("explain", checkpoint, *words, *out)
    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.splitlines()[-1].startswith("error: ")
    assert what in result.err
    assert "Traceback" not in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seven.png", "text.png"]


@pytest.mark.parametrize("name", ["missing.pt", "text.pt"])
def test_no_checkpoint_is_2(nnx, tmp_path, name):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    result = nnx("explain", name)
    assert result.code == 2
    assert name in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]


def test_a_signal_ends_it_with_nothing_written(nnx, checkpoint, tmp_path, monkeypatch):
    filters = explainers.module("filters")
    explain = filters.explain

    def interrupted(subject):
        os.kill(os.getpid(), signal.SIGINT)
        return explain(subject)

    monkeypatch.setattr(filters, "explain", interrupted)
    result = nnx("explain", checkpoint, "--only", "filters", "--out", "a")
    assert result.code == 130
    assert "nothing was written" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_second_time_gives_the_same_bytes(nnx, checkpoint, tmp_path):
    for out in ("a", "b"):
        assert nnx("explain", checkpoint, "--only", "saliency", "--index", 0, "--out", out).code == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert np.asarray(Image.open(tmp_path / "a/saliency.png").convert("RGBA"))[..., 3].min() == 0, (
        "transparent: for light and dark pages"
    )
