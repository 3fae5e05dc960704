"""Images of 16 bits with low values, on the command line: refused with the cure, then scaled alike by train, eval and
predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from pictures import save

DATA = {"name": "folder", "path": "pics", "white": "auto"}


@pytest.fixture(autouse=True)
def pictures(nnx, tmp_path, monkeypatch):
    """Images of 12 bits, bright at the left or right, in 16-bit files, with the same images in 8 bits beside them."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))
    rng = np.random.default_rng(0)
    for n in range(60):
        values = rng.integers(0, 1000, (6, 6), dtype=np.uint16)
        half = values[:, :3] if n % 2 else values[:, 3:]
        half += 3000
        save(Path("pics", "rl"[n % 2], f"{n:02}.png"), values)
        save(Path("eight", "rl"[n % 2], f"{n:02}.png"), np.rint(values * (255 / 4095)).astype(np.uint8))
    np.save("deep.npy", np.stack([values, values]))
    Path("a.yaml").write_text(
        f"dataset: {json.dumps(DATA)}\nmodel: {{name: mlp, hidden: [8]}}\ntrain: {{epochs: 8, batch_size: 8}}\n"
    )


def predictions(nnx, *paths):
    result = nnx("predict", "r", *paths, "--json")
    assert result.code == 0, result.err
    return [found["top"] for found in json.loads(result.out)["predictions"]]


def test_train_show_eval_and_predict_agree_on_white(nnx):
    for command in ("train", "show"):
        result = nnx(command, "a.yaml", "--set", "dataset.white=null")
        assert result.code == 2
        assert "leave 17 of 256 gray levels; set dataset.white to the value that is white, such as 4095" in result.err
    assert not Path("runs").exists()

    shown = nnx("show", "a.yaml")
    assert shown.code == 0
    assert "4095" in shown.err + shown.out
    trained = nnx("train", "a.yaml", "--out", "r")
    assert trained.code == 0, trained.err
    assert "white      4095" in trained.err
    eight = nnx("train", "a.yaml", "--out", "r8", "--set", "dataset.path=eight")
    metrics = [Path(run, "metrics.jsonl").read_text().splitlines()[-1] for run in ("r", "r8")]
    losses = [json.loads(line)["val_loss"] for line in metrics]
    assert eight.code == 0
    assert losses[0] == losses[1], "the same 8-bit values"

    deep, shallow = (sorted(map(str, Path(name).glob("*/*.png"))) for name in ("pics", "eight"))
    assert predictions(nnx, *deep) == predictions(nnx, *shallow)
    assert [top[0]["label"] for top in predictions(nnx, *deep)] == [Path(name).parent.name for name in deep]
    array, file = predictions(nnx, "deep.npy")[0][0], predictions(nnx, "pics/l/59.png")[0][0]
    assert array["probability"] == pytest.approx(file["probability"], abs=1e-6)
    evaluated = [
        json.loads(nnx("eval", "r/checkpoint.pt", "--json", *more).out)
        for more in ((), ("--set", "dataset.path=eight"), ("--set", "dataset.white=4095"))
    ]
    assert evaluated[0]["loss"] == evaluated[1]["loss"] == evaluated[2]["loss"]
    refused = nnx("eval", "r/checkpoint.pt", "--set", "dataset.white=255")
    assert refused.code == 2
    assert "dataset.white: is 255, but the network was trained with 4095; remove it" in refused.err


def test_predict_refuses_images_whose_white_it_does_not_know(nnx):
    assert nnx("train", "a.yaml", "--out", "r", "--set", "dataset.path=eight").code == 0
    refused = nnx("predict", "r", "pics/l/59.png")
    assert refused.code == 2
    assert "error: pics/l/59.png: has values of at most 3," in refused.err
    assert "too dark for an image of 16 bits; save it with 8 bits" in refused.err


def test_predict_refuses_images_above_white(nnx):
    assert nnx("train", "a.yaml", "--out", "r").code == 0
    save(Path("bright.png"), np.full((6, 6), 60000, np.uint16))
    refused = nnx("predict", "r", "bright.png")
    assert refused.code == 2
    assert "error: bright.png: has values up to 60,000, above the white of 4,095; save it" in refused.err


def test_predict_takes_large_photographs(nnx):
    assert nnx("train", "a.yaml", "--out", "r", "--set", "dataset.size=6").code == 0
    values = np.zeros((4200, 4200), np.uint8)
    values[:, :2100] = 200
    save(Path("large.jpg"), values)
    save(Path("large.png"), values)
    assert predictions(nnx, "large.jpg", "--prepare", "none")[0][0]["label"] == "l"
    refused = nnx("predict", "r", "large.png")
    assert refused.code == 2
    assert "has 4,200 x 4,200 pixels, more than 16 megapixels; save a smaller image, or train with" in refused.err
