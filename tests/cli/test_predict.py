"""nnx predict: the figures of eval, image by image, and one clear error for all that is wrong."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nnx import checkpoint, config, datasets, predict
from nnx.config import Config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a short run, and the test images of its dataset as PNG files."""
    import sys

    from nnx.cli import run_command

    folder = tmp_path_factory.mktemp("predict")
    sys.argv = ["nnx", "train", "digits_mlp", "--set", "train.epochs=2", "--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    test = digits().test()
    paths = []
    for n, pixels in enumerate(test.inputs):
        paths.append(folder / f"{n}.png")
        Image.fromarray(pixels[0]).save(paths[-1])
    return folder / "run/checkpoint.pt", paths, test


def digits():
    made: Config = config.load("digits_mlp")
    return datasets.load(made.dataset, seed=made.seed)


def test_it_predicts_what_eval_measures(nnx, trained):
    path, files, test = trained
    result = nnx("predict", path, *files, "--json", "--top", 10)
    assert result.code == 0
    predictions = json.loads(result.out)["predictions"]
    assert [found["input"] for found in predictions] == list(map(str, files))
    measured = json.loads(nnx("eval", path, "--json").out)
    matrix = np.zeros((10, 10), dtype=int)
    for truth, found in zip(test.labels, predictions, strict=True):
        matrix[truth, int(found["label"])] += 1
    assert matrix.tolist() == measured["confusion_matrix"]
    with torch.no_grad():
        expected = predict.load(path)(torch.from_numpy(test.inputs))
    for row, found in zip(expected, predictions, strict=True):
        assert set(found) == {"input", "label", "probability", "top"}
        assert found["top"][0] == {"label": found["label"], "probability": found["probability"]}
        said = {each["label"]: each["probability"] for each in found["top"]}
        assert [said[name] for name in "0123456789"] == pytest.approx(row.tolist(), abs=1e-6)
        assert sorted(said.values(), reverse=True) == list(said.values())
        assert sum(said.values()) == pytest.approx(1, abs=1e-5)


def test_the_table(nnx, trained):
    path, files, _ = trained
    result = nnx("predict", path, *files[:2], "--top", 2)
    assert result.code == 0
    head, first, second = result.out.splitlines()
    assert head.split() == ["input", "label", "probability", "else"]
    found = json.loads(nnx("predict", path, *files[:2], "--json", "--top", 2).out)["predictions"]
    for line, prediction in zip((first, second), found, strict=True):
        assert line.split()[:2] == [prediction["input"], prediction["label"]]
        assert f"{prediction['probability']:.2%}".replace("%", " %") in line
        assert prediction["top"][1]["label"] in line.split()
        assert len(prediction["top"]) == 2
    assert result.err.startswith("device")
    assert nnx("predict", path, files[0], "-q").err == ""
    assert len(json.loads(nnx("predict", path, files[0], "--json", "--top", 99).out)["predictions"][0]["top"]) == 10


def test_colours_become_gray_and_gray_becomes_colours(nnx, trained, tmp_path):
    path, files, test = trained
    pixels = test.inputs[0][0]
    Image.fromarray(np.dstack([pixels] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([np.zeros_like(pixels), 255 - pixels]), "LA").save(tmp_path / "alpha.png")
    result = nnx("predict", path, files[0], "rgb.png", "deep.png", "alpha.png", "--json")
    first, *others = (found["top"] for found in json.loads(result.out)["predictions"])
    assert others == [first] * 3

    kept = checkpoint.read(path)  # a network for three channels, each a third of the gray one
    first_layer = next(iter(kept.model))
    weights = {**kept.model, first_layer: torch.cat([kept.model[first_layer]] * 3, 1) / 3}
    spec = replace(kept.spec, shape=(3, 8, 8), mean=kept.spec.mean * 3, std=kept.spec.std * 3)
    checkpoint.write(tmp_path / "rgb.pt", replace(kept, spec=spec, model=weights))
    found = json.loads(nnx("predict", "rgb.pt", files[0], "rgb.png", "--json").out)["predictions"]
    for prediction in found:
        assert prediction["probability"] == pytest.approx(first[0]["probability"], abs=1e-5)


def test_all_that_is_wrong_is_said_at_once_and_nothing_else(nnx, trained, tmp_path):
    path, files, _ = trained
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    Image.new("L", (28, 20)).save(tmp_path / "large.png")
    os.mkfifo(tmp_path / "fifo")
    result = nnx("predict", path, files[0], "text.png", "empty.png", "large.png", "fifo", ".", "missing.png", "--json")
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 6
    said = [
        "text.png: is not an image",
        "empty.png: is empty",
        "large.png: is 28 wide and 20 high",
        "fifo: ",
        ".: is a folder",
        "missing.png: no such",
    ]
    for line, words in zip(lines, said, strict=True):
        assert line.startswith(f"error: {words}")
    assert "the network was trained on images 8 wide and 8 high" in result.err

    result = nnx("predict", path, *["missing.png"] * 50)
    assert len(result.err.splitlines()) == 10
    assert result.err.endswith("... and 41 more\n")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("missing.pt", "a.png"), "missing.pt: no such file"),
        (("CHECKPOINT",), "Missing argument"),
        (("CHECKPOINT", "a.png", "--top", 0), "--top"),
        (("CHECKPOINT", "a.png", "--device", "cuda:77"), "this machine has: cpu"),
        (("CHECKPOINT", "a.png", "--device", "gpu"), "this machine has: cpu"),
    ],
)
def test_a_wrong_command_is_2(nnx, trained, words, what):
    result = nnx("predict", *(trained[0] if word == "CHECKPOINT" else word for word in words))
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert what in result.err


def test_a_checkpoint_of_rows_takes_no_images(nnx, trained, tmp_path):
    kept = checkpoint.read(trained[0])
    spec = replace(kept.spec, shape=(64,), mean=(0.0,) * 64, std=(1.0,) * 64, look=None)
    checkpoint.write(tmp_path / "rows.pt", replace(kept, spec=spec))
    result = nnx("predict", "rows.pt", trained[1][0])
    assert result.code == 2
    assert "was trained on rows of numbers" in result.err


def test_odd_names_move_no_cursor(nnx, trained, tmp_path):
    for name in ("a\x1b[31m.png", os.fsdecode(b"\xff.png")):
        (tmp_path / name).write_bytes(trained[1][0].read_bytes())
        result = nnx("predict", trained[0], name, "-q")
        assert result.code == 0
        assert "\x1b" not in result.out
        assert json.loads(nnx("predict", trained[0], name, "--json").out)["predictions"][0]["input"] == name
