"""nnx predict reads handwriting after training on MNIST: drawings, photographs, and transformed MNIST digits."""

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
    """The checkpoint of a network trained on half of MNIST, once for all tests."""
    folder = tmp_path_factory.mktemp("mnist")
    sys.argv = ["nnx", "train", "mnist_cnn_fast", "--set", "train.epochs=1", "--set", "dataset.validation=30000"]
    sys.argv += ["--data-dir", real_mnist, "--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    return folder / "run/checkpoint.pt"


@pytest.fixture(scope="module")
def test_split(real_mnist):
    made: Config = config.load("mnist_mlp")
    return datasets.load(made.dataset, seed=0, data_dir=real_mnist).test()


def predict(checkpoint, inputs):
    """The classes that the network predicts, called directly."""
    runtime = devices.choose_runtime("cpu", "auto", prefers_bfloat16=cnn.Config.prefers_bfloat16)
    with (
        torch.no_grad(),
        runtime.autocast(),  # in the training precision, as eval
    ):
        batches = torch.from_numpy(np.stack(inputs)).split(500)
        return torch.cat([classifiers.load(checkpoint)(batch) for batch in batches]).argmax(1).tolist()


def test_all_of_mnist_as_png_files_is_what_eval_measures(nnx, mnist_cnn, real_mnist, test_split, tmp_path):
    """With --prepare auto, images with the size and polarity of the training images remain unchanged."""
    measured = json.loads(nnx("eval", mnist_cnn, "--data-dir", real_mnist, "--json").out)
    (tmp_path / "png").mkdir()
    for n, pixels in enumerate(test_split.inputs):
        Image.fromarray(pixels[0]).save(tmp_path / f"png/{n:05d}.png")
    predictions = json.loads(nnx("predict", mnist_cnn, "png", "--json", "-q").out)["predictions"]
    assert {tuple(each["prepared"]) for each in predictions} == {()}
    matrix = np.zeros((10, 10), dtype=int)
    for truth, each in zip(test_split.labels, predictions, strict=True):
        matrix[truth, int(each["label"])] += 1
    assert matrix.tolist() == measured["confusion_matrix"]
    assert [each["label"] for each in predictions] == [str(k) for k in predict(mnist_cnn, test_split.inputs)]


def test_twenty_drawings_and_photographs_of_digits(nnx, mnist_cnn):
    """Drawn for this test by scripts/handwriting: each digit twice, with twenty pens on twenty papers."""
    files = sorted(FOLDER.iterdir())
    assert sorted(file.name[0] for file in files) == sorted("0123456789" * 2)
    predictions = json.loads(nnx("predict", mnist_cnn, FOLDER, "--json").out)["predictions"]
    assert sum(Path(each["input"]).name[0] == each["label"] for each in predictions) >= 18
    assert all(each["prepared"] for each in predictions), "every image was prepared"
    spec = classifiers.load(mnist_cnn).spec
    resized = predict(mnist_cnn, [handwriting.resize_to_spec(images.decode(file), spec) for file in files])
    assert sum(file.name[0] == str(k) for file, k in zip(files, resized, strict=True)) < 10, "the control: resized only"


def photographed(digit, rng):
    """A digit of MNIST, eight times as large, as dark ink anywhere on a page lit from one side; a noisy JPEG."""
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


def inverted(digit, rng):
    return 255 - digit[:, :, None]


@pytest.mark.parametrize(("transform", "count"), [(photographed, 60), (on_a_board, 100), (inverted, 1000)])
def test_transformed_digits_of_mnist(mnist_cnn, test_split, transform, count):
    spec = classifiers.load(mnist_cnn).spec
    rng = np.random.default_rng(0)
    pictures = [transform(digit[0], rng) for digit in test_split.inputs[:count]]
    labels = test_split.labels[:count]
    prepared = predict(mnist_cnn, [handwriting.prepare(picture, spec)[0] for picture in pictures])
    resized = predict(mnist_cnn, [handwriting.resize_to_spec(picture, spec) for picture in pictures])
    assert (labels == prepared).mean() >= 0.95
    assert (labels == resized).mean() < 0.8, "the control: resized only"
