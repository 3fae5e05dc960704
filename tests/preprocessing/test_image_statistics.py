"""Statistics of training images, compared with images of known strokes, boxes and centres, and with scipy's
measures."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from nnx import checkpoint
from nnx.datasets import Mapped
from nnx.errors import CheckpointError
from nnx.preprocessing.image_statistics import ImageStatistics, ink_box, mass_centre, stroke_width
from nnx.preprocessing.images import to_size

RNG = np.random.default_rng(0)


def ring(radius, width, size=40, blur=0.0):
    """A circle drawn with a pen of that width, antialiased by drawing it ten times as large."""
    y, x = np.mgrid[0 : size * 10, 0 : size * 10] / 10 - size / 2 + 0.05
    drawn = (np.abs(np.hypot(y, x) - radius) < width / 2).reshape(size, 10, size, 10).mean((1, 3))
    return ndimage.gaussian_filter(drawn, blur).astype(np.float32)


def strokes(count, *, centred="mass", size=28, box=20, rng=None):
    """(N, size, size) from 0 to 1: a few lines with this bounding box and centre, give or take half a pixel."""
    rng = rng or np.random.default_rng(1)
    images = []
    while len(images) < count:
        page = np.zeros((60, 60), np.float32)
        points = rng.uniform(8, 52, (4, 2))
        for a, b in pairwise(points):
            for t in np.linspace(0, 1, 200):
                y, x = np.rint(a + (b - a) * t).astype(int)
                page[y - 3 : y + 4, x - 3 : x + 4] = 1
        (rows, columns) = ndimage.find_objects(page.astype(int))[0]
        part = page[rows, columns]
        scale = box / max(part.shape)
        height, width = (max(1, round(n * scale)) for n in part.shape)
        small = to_size(np.uint8(part * 255)[:, :, None], height, width, "stretch")[:, :, 0] / np.float32(255)
        centre = ndimage.center_of_mass(small) if centred == "mass" else ((height - 1) / 2, (width - 1) / 2)
        y, x = (round((size - 1) / 2 - c) for c in centre)
        if y >= 0 and x >= 0 and y + height <= size and x + width <= size:
            image = np.zeros((size, size), np.float32)
            image[y : y + height, x : x + width] = small
            images.append(image)
    return np.stack(images)


def uint8(share):
    return np.rint(share * 255).astype(np.uint8)[:, None]


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize("width", [1.5, 2, 3, 4.5])
@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_the_width_of_a_stroke_is_that_of_the_pen(width, blur):
    measured = stroke_width(ring(12, width, blur=blur)[None])[0]
    # Blur lowers the peak of a narrow stroke below 1: nobody can then tell a narrow stroke from a pale one.
    peak = ring(12, width, blur=blur).max()
    assert measured == pytest.approx(width / peak, rel=0.08)


def test_boxes_and_centres_are_scipys():
    images = RNG.random((20, 9, 13)).astype(np.float32) ** 4
    images[3] = 0
    for image, box, centre in zip(images, ink_box(images), mass_centre(images), strict=True):
        if not image.any():
            assert np.isnan(box).all()
            assert np.isnan(centre).all()
            continue
        rows, columns = ndimage.find_objects((image > 0.2).astype(int))[0]
        assert box.tolist() == [rows.start, rows.stop - 1, columns.start, columns.stop - 1]
        assert centre == pytest.approx(ndimage.center_of_mass(image))


@pytest.mark.parametrize("centred", ["mass", "box"])
def test_how_images_were_centred_is_found(centred):
    statistics = ImageStatistics.measure(uint8(strokes(100, centred=centred)))
    assert statistics.plain
    assert (statistics.background, statistics.ink, statistics.box, statistics.centred) == (0, 255, 20, centred)
    assert np.abs(statistics.centre).max() < 0.5
    assert 1.5 < statistics.stroke < 5


def test_shifted_images_are_centred_elsewhere():
    images = np.roll(uint8(strokes(100)), (2, -1), (2, 3))
    before, after = ImageStatistics.measure(uint8(strokes(100))), ImageStatistics.measure(images)
    assert np.subtract(after.centre, before.centre) == pytest.approx([2, -1], abs=0.02)


def test_real_digits():
    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]
    statistics = ImageStatistics.measure(images)
    assert (statistics.background, statistics.ink, statistics.plain) == (0, 255, True)
    assert (statistics.box, statistics.centred) == (8, "box")
    assert np.abs(np.array(statistics.average) - images[::4, 0].mean(0)).max() <= 1
    opposite = ImageStatistics.measure(255 - images)
    assert opposite == replace(statistics, background=255, ink=0, average=opposite.average)
    assert not statistics.is_inverted(images[:, 0, :, 0].T).any()
    assert statistics.is_inverted(255 - images[:, 0, :, 0].T).all()


@pytest.mark.mnist
def test_mnist_is_as_its_authors_say(real_mnist):
    """http://yann.lecun.com/exdb/mnist/: fit into 20x20, centred in 28x28 by the centre of mass of the pixels."""
    from nnx import datasets
    from nnx.datasets import mnist

    statistics = datasets.load(mnist.Config(), seed=0, data_dir=real_mnist).spec.image_statistics
    assert (statistics.background, statistics.ink, statistics.plain) == (0, 255, True)
    assert (statistics.box, statistics.centred) == (20, "mass")
    assert statistics.centre == pytest.approx((0.5, 0.5), abs=0.05), "the pixel after the middle"
    assert 2 < statistics.stroke < 3


def test_what_is_not_ink_on_a_plain_background():
    lines = strokes(60)
    assert ImageStatistics.measure(uint8(lines)).plain, "the control"
    assert ImageStatistics.measure(np.repeat(uint8(lines), 3, 1)).plain, "gray in three channels"
    coloured = np.repeat(uint8(lines), 3, 1)
    coloured[:, 1] //= 2
    shirts = np.zeros((60, 1, 28, 28), np.uint8)
    shirts[:, :, 2:26, 5:23] = RNG.integers(120, 255, (60, 1, 24, 18))
    mixed = uint8(lines)
    mixed[::4] = 255 - mixed[::4]
    for what in (
        coloured,
        shirts,
        mixed,
        RNG.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8),
        np.cumsum(RNG.normal(0, 20, (60, 1, 28, 28)), 3).clip(-128, 127).astype(np.int8).view(np.uint8),
        uint8(lines) // 12,  # too faint to tell from noise
        np.full((5, 1, 28, 28), 7, np.uint8),
    ):
        assert not ImageStatistics.measure(what).plain


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 9), (2, 4, 9, 1), (700, 2, 5, 3), (3, 3, 200, 320)])
@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_any_images_have_statistics(shape, kind):
    images = np.full(shape, 9, np.uint8) if kind == "constant" else RNG.integers(0, 256, shape, dtype=np.uint8)
    statistics = ImageStatistics.measure(images)
    assert ImageStatistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics
    assert ImageStatistics.measure(Mapped(images, np.arange(len(images)))) == statistics
    H, W = shape[2:]
    assert np.shape(statistics.average) == (min(H, 32), W) if W <= 32 else np.shape(statistics.average) == (20, 32)
    if kind == "constant":
        assert set(np.ravel(statistics.average)) == {9}
        assert not statistics.plain


# ---------------------------------------------------------------- statistics in a checkpoint


def valid_statistics():
    return ImageStatistics.measure(uint8(strokes(20)))


HOSTILE = {
    "background": [-1, 256, 1.0, True, None, "0", [0]],
    "ink": [-1, 256, 0.5, None, {}],
    "plain": [0, 1, None, "yes"],
    "box": [0, -5, 2**40, 20.0, None, float("nan")],
    "stroke": [-1, float("nan"), float("inf"), 1e30, "2", None, True],
    "centred": ["mess", None, 0, ["mass"], {}],
    "centre": [[0], [0, 0, 0], [0, float("nan")], [0, "1"], [10**12, 0], 7, None, [[0], [0]], "ab", [True, 0]],
    "average": [
        [],
        [[]],
        [[0] * 33],
        [[0]] * 33,
        [[0, 0], [0]],
        [[256]],
        [[-1]],
        [[0.5]],
        [["a"]],
        "ab",
        None,
        7,
        [7],
        [[[0]]],
        [[0]] * 200_000,
    ],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values], ids=lambda v: str(v)[:20]
)
def test_invalid_statistics_are_refused(key, value):
    right = valid_statistics().to_dict()
    assert ImageStatistics.from_dict(right) == valid_statistics()
    with pytest.raises((ValueError, KeyError, TypeError)):
        ImageStatistics.from_dict({**right, key: value})


def test_ink_must_differ_from_its_background_and_keys_from_others():
    right = valid_statistics().to_dict()
    for wrong in (
        {**right, "ink": right["background"]},
        {**right, "more": 1},
        {k: v for k, v in right.items() if k != "ink"},
        [],
        "look",
        7,
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            ImageStatistics.from_dict(wrong)


def test_a_checkpoint_with_invalid_statistics_is_refused(nnx_checkpoint, tmp_path):
    kept = nnx_checkpoint
    checkpoint.write(tmp_path / "right.pt", kept)
    assert checkpoint.read(tmp_path / "right.pt").spec == kept.spec
    assert kept.spec.image_statistics.plain
    checkpoint.write(
        tmp_path / "wrong.pt",
        replace(kept, spec=replace(kept.spec, image_statistics=replace(kept.spec.image_statistics, box=-1))),
    )
    with pytest.raises(CheckpointError, match="does not have exactly the parts of an nnx checkpoint"):
        checkpoint.read(tmp_path / "wrong.pt")


@pytest.fixture
def nnx_checkpoint(tmp_path, tiny):
    from nnx import config
    from nnx.run.pipeline import run

    (tmp_path / "a.yaml").write_text(tiny("train: {epochs: 1}"))
    *_, finished = run(config.load(tmp_path / "a.yaml"), out=tmp_path / "r")
    return checkpoint.read(Path(finished.summary["checkpoint"]))
