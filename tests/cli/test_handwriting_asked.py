"""One's own handwriting just works: drawings and photographs, and real digits of MNIST in disguise, asked of a network
trained on MNIST."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnx import config, datasets
from nnx.cli import run_command
from nnx.config import Config
from nnx.inference import classifier as classifiers
from nnx.models import cnn
from nnx.preprocessing import handwriting, images
from nnx.system import device as devices

pytestmark = pytest.mark.mnist
FOLDER = Path(__file__).parents[1] / "data/handwriting"


@pytest.fixture(scope="module")
def mnist_cnn(real_mnist, tmp_path_factory):
    """A network that reads MNIST's digits, trained by the command on half of them, once."""
    folder = tmp_path_factory.mktemp("mnist")
    sys.argv = ["nnx", "train", "mnist_cnn_fast", "--set", "train.epochs=1", "--set", "dataset.validation=30000"]
    sys.argv += ["--data-dir", real_mnist, "--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    return folder / "run/checkpoint.pt"


@pytest.fixture(scope="module")
def test_split(real_mnist):
    made: Config = config.load("mnist_mlp")
    return datasets.load(made.dataset, seed=0, data_dir=real_mnist).test()


def said(checkpoint, seen):
    """The labels that the network gives, asked directly."""
    runtime = devices.choose_runtime("cpu", "auto", bfloat16_speedup=cnn.Config.bfloat16_speedup)
    with (
        torch.no_grad(),
        runtime.autocast(),  # in the precision of training, as eval
    ):
        parts = torch.from_numpy(np.stack(seen)).split(500)
        return torch.cat([classifiers.load(checkpoint)(part) for part in parts]).argmax(1).tolist()


def test_all_of_mnist_as_png_files_is_what_eval_measures(nnx, mnist_cnn, real_mnist, test_split, tmp_path):
    """Images of the training's size and polarity are taken as they are, every one, though --prepare is auto."""
    measured = json.loads(nnx("eval", mnist_cnn, "--data-dir", real_mnist, "--json").out)
    (tmp_path / "png").mkdir()
    for n, pixels in enumerate(test_split.inputs):
        Image.fromarray(pixels[0]).save(tmp_path / f"png/{n:05d}.png")
    found = json.loads(nnx("predict", mnist_cnn, "png", "--json", "-q").out)["predictions"]
    assert {tuple(each["prepared"]) for each in found} == {()}
    matrix = np.zeros((10, 10), dtype=int)
    for truth, each in zip(test_split.labels, found, strict=True):
        matrix[truth, int(each["label"])] += 1
    assert matrix.tolist() == measured["confusion_matrix"]
    assert [each["label"] for each in found] == [str(k) for k in said(mnist_cnn, test_split.inputs)]


def test_twenty_drawings_and_photographs_of_digits(nnx, mnist_cnn):
    """Written for this test by scripts/handwriting: each digit twice, with twenty pens on as many papers."""
    files = sorted(FOLDER.iterdir())
    assert sorted(file.name[0] for file in files) == sorted("0123456789" * 2)
    found = json.loads(nnx("predict", mnist_cnn, FOLDER, "--json").out)["predictions"]
    assert sum(Path(each["input"]).name[0] == each["label"] for each in found) >= 18
    assert all(each["prepared"] for each in found), "each says how it was prepared"
    spec = classifiers.load(mnist_cnn).spec
    guessed = said(mnist_cnn, [handwriting.resize_to_spec(images.decode(file), spec) for file in files])
    assert sum(file.name[0] == str(k) for file, k in zip(files, guessed, strict=True)) < 10, "the control: resized only"


def photographed(digit, rng):
    """A digit of MNIST, eight times as large, as dark ink somewhere on a page that the light falls on from one side; a
    noisy JPEG."""
    large = np.asarray(Image.fromarray(digit).resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
    covered = np.zeros((400, 500, 1), np.float32)
    y, x = rng.integers(0, 176), rng.integers(0, 276)
    covered[y : y + 224, x : x + 224, 0] = np.clip((large - 0.5) * 4 + 0.5, 0, 1)
    light = np.linspace(1, rng.uniform(0.3, 0.9), 500)[None, :, None]
    page = ([235, 225, 205] * (1 - covered) + [50, 45, 60] * covered) * light + rng.normal(0, 5, (400, 500, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(page), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    return images.decode(file.getvalue())


def on_a_board(digit, rng):
    """A digit of MNIST, nine times as large, in chalk."""
    large = np.asarray(Image.fromarray(digit).resize((252, 252), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    page = [45, 65, 55] * (1 - large) + [225, 225, 215] * large * np.clip(rng.normal(0.8, 0.3, large.shape), 0, 1)
    return np.clip(np.rint(page), 0, 255).astype(np.uint8)


def upside_down_in_brightness(digit, rng):
    return 255 - digit[:, :, None]


@pytest.mark.parametrize(
    ("disguise", "count"), [(photographed, 60), (on_a_board, 100), (upside_down_in_brightness, 1000)]
)
def test_digits_of_mnist_in_disguise(mnist_cnn, test_split, disguise, count):
    spec, rng = classifiers.load(mnist_cnn).spec, np.random.default_rng(0)
    pictures = [disguise(digit[0], rng) for digit in test_split.inputs[:count]]
    right = [
        test_split.labels[:count] == said(mnist_cnn, [how(each) for each in pictures])
        for how in (lambda each: handwriting.prepare(each, spec)[0], lambda each: handwriting.resize_to_spec(each, spec))
    ]
    assert right[0].mean() >= 0.95
    assert right[1].mean() < 0.8, "the control: resized only"
