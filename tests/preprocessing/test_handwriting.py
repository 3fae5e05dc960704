"""Pictures that users make become images like the training images: compared with the same drawing made by other means,
and step by step."""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.datasets import load_digits

from nnx.preprocessing import handwriting, images, segmentation
from nnx.preprocessing.handwriting import prepare
from nnx.preprocessing.image_statistics import ImageStatistics, stroke_width
from nnx.preprocessing.spec import Spec

DIGITS = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
CLASSES = tuple("0123456789")
OF_DIGITS = Spec((1, 8, 8), CLASSES, (0.5,), (0.5,), image_statistics=ImageStatistics.measure(DIGITS[:, None]))
STATISTICS = ImageStatistics(0, 255, True, 20, 2.4, "mass", (0.5, 0.5), ((0,),))  # as of MNIST
SPEC = Spec((1, 28, 28), CLASSES, (0.13,), (0.31,), image_statistics=STATISTICS)
PAGE = (240, 320)


def drawn(width=12.0, at=(70, 190), size=90, page=PAGE):
    """A five drawn with a round pen of that width, from 0 to 1 where its ink is: computed from each pixel's distance to
    its skeleton."""
    t = np.linspace(0, 1, 400)
    arc = np.stack([0.69 + 0.31 * np.sin(t * 4.4 - 2), 0.25 + 0.31 * np.cos(t * 4.4 - 2)], 1)
    lines = [np.linspace((0.0, 0.6), (0.0, 0.1), 200), np.linspace((0.0, 0.1), arc[0], 200), arc]
    skeleton = np.ones(page, bool)
    for y, x in np.concatenate(lines) * size + np.array(at):
        skeleton[round(y), round(x)] = False
    far = ndimage.distance_transform_edt(skeleton)
    return np.clip(width / 2 + 0.5 - far, 0, 1).astype(np.float32)


def on(paper, colour, covered):
    """(H, W, C) uint8: ink of a colour on a paper, which is a colour or a whole page."""
    paper = np.broadcast_to(np.asarray(paper, np.float32), (*covered.shape, np.shape(paper)[-1]))
    pixels = paper * (1 - covered[..., None]) + np.asarray(colour, np.float32) * covered[..., None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def light(fall=0.5, page=PAGE):
    """Light that decreases to the right, from 1 to 1 - fall."""
    return np.broadcast_to(np.linspace(1, 1 - fall, page[1])[None, :, None], (*page, 1))


def texts(steps):
    return [step.text for step in steps]


CLEAN = on([255], [0], drawn())


def similarity(image, other):
    """The correlation of the pixels of two images, the largest over shifts of up to one pixel, as centres are
    rounded."""
    moved = (np.roll(image, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1))
    return max(np.corrcoef(each.ravel(), other.ravel())[0, 1] for each in moved)


# ---------------------------------------------------------------- unchanged images


def test_an_image_of_the_training_is_taken_as_it_is():
    for pixels in DIGITS:
        image, steps = prepare(pixels[:, :, None], OF_DIGITS)
        assert np.array_equal(image, pixels[None])
        assert steps == []
    colours = np.repeat(DIGITS[0][:, :, None], 3, 2)
    assert np.array_equal(prepare(colours, OF_DIGITS)[0], DIGITS[:1])


def test_one_that_is_only_inverted_is_only_inverted():
    exact = 0
    for pixels in DIGITS[:300]:
        image, steps = prepare(255 - pixels[:, :, None], OF_DIGITS)
        assert texts(steps)[0] == "inverted"
        exact += len(steps) == 1 and np.array_equal(image, pixels[None])
    assert exact > 295, "except for digits whose position is unusual"


def test_without_statistics_or_ink_an_image_is_only_resized():
    photograph = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for statistics in (None, replace(STATISTICS, plain=False)):
        for fit in (None, "pad", "stretch"):
            spec = Spec((3, 28, 28), CLASSES, (0.5,) * 3, (0.5,) * 3, fit=fit, image_statistics=statistics)
            image, steps = prepare(photograph, spec)
            assert np.array_equal(image.transpose(1, 2, 0), images.to_size(photograph, 28, 28, fit or "pad"))
            assert [text.split(",")[0] for text in texts(steps)] == ["resized from 60x40"]
            assert ("as in the training" in texts(steps)[0]) == (fit is not None)
            assert ("does not say what its images look like" in texts(steps)[0]) == (statistics is None and fit is None)
            right = photograph[:28, :28]
            assert np.array_equal(prepare(right, spec)[0].transpose(1, 2, 0), right)
            assert prepare(right, spec)[1] == []


def test_what_was_resized_for_the_training_is_resized_likewise():
    spec = replace(SPEC, fit="pad")
    white = on([0], [255], drawn())
    image, steps = prepare(white, spec)
    assert np.array_equal(image[0], images.to_size(white, 28, 28, "pad")[:, :, 0])
    assert texts(steps) == ["resized from 320x240, as in the training"]
    assert texts(prepare(255 - white, spec)[1])[0] == "inverted", "the training images have the other polarity"
    coloured = np.random.default_rng(0).integers(0, 99, (50, 40, 3), dtype=np.uint8)
    assert np.array_equal(
        prepare(coloured, spec)[0][0], images.to_size(images.to_channels(coloured, 1), 28, 28, "pad")[:, :, 0]
    )


# ---------------------------------------------------------------- ink


def test_it_gets_the_box_the_centre_and_the_levels_of_the_training_images():
    for covered in (drawn(), drawn(at=(10, 8)), drawn(at=(100, 200), size=60), drawn(width=5), drawn(width=20)):
        image, _ = prepare(on([255], [0], covered), SPEC)
        assert image.shape == (1, 28, 28)
        (rows, columns) = ndimage.find_objects((image[0] > 51).astype(int))[0]
        assert max(rows.stop - rows.start, columns.stop - columns.start) == 20
        assert ndimage.center_of_mass(image[0].astype(float)) == pytest.approx((14, 14), abs=0.6)
        assert (image.min(), image.max()) == (0, 255)
        assert stroke_width(image / np.float32(255))[0] == pytest.approx(2.4, rel=0.35)


def test_a_network_of_other_images_gets_other_images():
    statistics = replace(STATISTICS, background=200, ink=30, box=10, centred="box", centre=(-2.0, 3.0))
    spec = Spec((3, 20, 24), CLASSES, (0.5,) * 3, (0.5,) * 3, image_statistics=statistics)
    image, _ = prepare(CLEAN, spec)
    assert image.shape == (3, 20, 24)
    assert (image == image[:1]).all()
    assert (image.min(), image.max()) == (30, 200)
    (rows, columns) = ndimage.find_objects((image[0] < 166).astype(int))[0]
    assert max(rows.stop - rows.start, columns.stop - columns.start) == 10
    assert (rows.start + rows.stop - 1) / 2 == pytest.approx(9.5 - 2, abs=0.6)
    assert (columns.start + columns.stop - 1) / 2 == pytest.approx(11.5 + 3, abs=0.6)


RNG = np.random.default_rng(3)
LINES = np.full((*PAGE, 3), [246, 248, 250], np.float32)
LINES[20::30], LINES[:, 15::30] = [170, 200, 230], [170, 200, 230]
DUST = np.where(ndimage.binary_dilation(RNG.random(PAGE) > 0.9995, iterations=1), 60, 240)[..., None]
TABLE = np.full((400, 480, 3), [70, 50, 35], np.float32) + RNG.normal(0, 8, (400, 480, 1))
TABLE[90 : 90 + PAGE[0], 100 : 100 + PAGE[1]] = on([235, 230, 225], [40, 40, 50], drawn())
LIKE = {
    "white on black": on([0], [255], drawn()),
    "pale": on([230], [190], drawn()),
    "blue on yellow": on([250, 235, 140], [40, 60, 170], drawn()),
    "red on green, as bright": on([60, 170, 80], [220, 98, 60], drawn()),
    "chalk": on([45, 65, 55], [220, 225, 220], drawn() * np.clip(RNG.normal(0.8, 0.3, PAGE), 0, 1)),
    "in uneven light": np.rint(on([240, 235, 220], [40, 40, 50], drawn()) * light(0.6)).astype(np.uint8),
    "in half a shadow": np.rint(on([240, 235, 220], [40, 40, 50], drawn()) * np.where(light(1.0) > 0.3, 1, 0.5)).astype(
        np.uint8
    ),
    "noisy": np.clip(np.rint(on([200], [50], drawn()) + RNG.normal(0, 15, (*PAGE, 1))), 0, 255).astype(np.uint8),
    "squared paper": on(LINES, [30, 30, 80], drawn()),
    "dusty": on(DUST, [20], drawn()),
    "a page on a table": np.clip(np.rint(TABLE), 0, 255).astype(np.uint8),
    "off-centre": on([255], [0], drawn(at=(5, 5))),
    "twice as large": on([255], [0], drawn(width=24, size=180, at=(30, 60), page=(480, 640))),
    "tiny": on([255], [0], drawn(width=5, size=37, at=(600, 150), page=(900, 700))),
    "thin": on([255], [0], drawn(width=2.5)),
}


@pytest.mark.parametrize("name", LIKE)
def test_the_same_drawing_on_any_paper_becomes_the_same_image(name):
    image, steps = prepare(LIKE[name], SPEC)
    wanted, _ = prepare(CLEAN, SPEC)
    assert similarity(image, wanted) > 0.93, texts(steps)
    unprepared = handwriting.resize_to_spec(LIKE[name], SPEC)
    assert similarity(unprepared, wanted) < 0.8, "the control: resized only"


def test_preparation_is_deterministic():
    for pixels in LIKE.values():
        first, second = prepare(pixels, SPEC), prepare(pixels.copy(), SPEC)
        assert np.array_equal(first[0], second[0])
        assert texts(first[1]) == texts(second[1])


def test_the_ink_of_a_drawing_is_searched_once(monkeypatch):
    """Its pixels are few, and its paper is even, so a second search in a part of it would see no more."""
    searches = []
    find_ink = segmentation.find_ink
    monkeypatch.setattr(segmentation, "find_ink", lambda *given: searches.append(given) or find_ink(*given))
    prepare(CLEAN, SPEC)
    assert len(searches) == 1
    small = on([255], [0], drawn(width=6, size=40))
    prepare(np.kron(small, np.ones((8, 8, 1), np.uint8)), SPEC)
    assert len(searches) == 3, "a large picture is searched small, then its part in detail"
    prepare(LIKE["in uneven light"], SPEC)
    assert len(searches) == 5, "the paper is simpler in a part"


# ---------------------------------------------------------------- steps


def has(words, pixels, spec=SPEC):
    return any(text.startswith(words) for text in texts(prepare(pixels, spec)[1]))


def test_each_step_is_named_if_and_only_if_it_changed_something():
    for words, with_it, without in (
        ("made gray", LIKE["blue on yellow"], CLEAN),
        ("made gray", on([45, 65, 55], [220, 225, 220], drawn()), np.repeat(CLEAN, 3, 2)),
        ("inverted", CLEAN, LIKE["white on black"]),
        ("cut out the page", LIKE["a page on a table"], LIKE["blue on yellow"]),
        ("cropped", CLEAN, on([255], [0], drawn(width=14, size=70, at=(13, 18), page=(90, 70)))),
        ("evened out the light", LIKE["in uneven light"], CLEAN),
        ("evened out the light", LIKE["in half a shadow"], LIKE["noisy"]),
        ("separated the ink", LIKE["noisy"], np.full(PAGE, 255, np.uint8)[..., None]),
        ("removed what else there was", LIKE["dusty"], CLEAN),
        ("strokes thickened", LIKE["thin"], CLEAN),
        ("strokes thinned", on([255], [0], drawn(width=24)), CLEAN),
        ("no ink found", np.full(PAGE, 255, np.uint8)[..., None], CLEAN),
    ):
        assert has(words, with_it), words
        assert not has(words, without), words
    slender = replace(SPEC, image_statistics=replace(STATISTICS, stroke=0.8))  # narrower than a pixel, and so paler
    assert has("stretched the contrast", LIKE["thin"], slender)
    assert not has("stretched the contrast", CLEAN)


@pytest.mark.parametrize("name", LIKE)
def test_each_named_step_changed_something(name):
    pixels = LIKE[name]
    image, steps = prepare(pixels, SPEC)
    pictures = [pixels, *(step.picture for step in steps)]
    for before, after in pairwise(pictures):
        assert not np.array_equal(before, after)
        assert after.dtype == np.uint8
        assert after.ndim == 3
    assert np.array_equal(pictures[-1][:, :, 0], image[0]), "the last is what the network sees"
    assert len(set(texts(steps))) == len(steps)


def test_steps_name_sizes_and_other_marks():
    two = np.maximum(drawn(at=(20, 40)), drawn(at=(120, 220), size=70))
    (text,) = [text for text in texts(prepare(on([255], [0], two), SPEC)[1]) if text.startswith("cropped")]
    assert text.endswith(", 1 other mark left aside")
    (text,) = [text for text in texts(prepare(CLEAN, SPEC)[1]) if text.startswith("cropped")]
    width, height = map(int, text.removeprefix("cropped to ").split("x"))
    (rows, columns) = ndimage.find_objects((drawn() > 0.5).astype(int))[0]
    side = max(rows.stop - rows.start, columns.stop - columns.start)
    assert height == pytest.approx(rows.stop - rows.start + side / 2, abs=4)
    assert width == pytest.approx(columns.stop - columns.start + side / 2, abs=4)


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(200, 300, 1), (1, 1, 3), (28, 300, 1)])
def test_a_blank_page_has_no_ink(level, shape):
    rng = np.random.default_rng(0)
    for noise in (0, 2):
        page = np.clip(rng.normal(level, noise, shape), 0, 255).astype(np.uint8)
        image, steps = prepare(page, SPEC)
        assert texts(steps)[-1] == "no ink found"
        assert image.shape == (1, 28, 28)
        assert (image == STATISTICS.background).all()


# ---------------------------------------------------------------- anything at all

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3]))


@given(SIZES, st.integers(0, 2**32 - 1), st.sampled_from(["noise", "blobs", "two", "gradient"]))
def test_any_picture_becomes_an_image(shape, seed, kind):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, shape)
    if kind == "blobs":
        pixels = np.where(ndimage.gaussian_filter(rng.normal(0, 1, shape), (3, 3, 0)) > 0.05, 255, 20)
    elif kind == "two":
        pixels = np.where(rng.random(shape) > 0.9, *rng.integers(0, 256, 2))
    elif kind == "gradient":
        pixels = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] * rng.integers(0, 4, shape[2]) % 256
    pixels = np.broadcast_to(pixels, shape).astype(np.uint8)
    for spec in (SPEC, OF_DIGITS):
        image, _steps = prepare(pixels, spec)
        assert image.shape == spec.shape
        assert image.dtype == np.uint8


@pytest.mark.parametrize(
    "changed",
    [
        {"box": 2**26},
        {"box": 1},
        {"stroke": 2.0**26},
        {"stroke": 0.0},
        {"centre": (2.0**26, -(2.0**26))},
        {"background": 255, "ink": 254},
    ],
)
def test_statistics_from_a_hostile_checkpoint_do_no_harm(changed):
    spec = replace(SPEC, image_statistics=replace(STATISTICS, **changed))
    begun = time.process_time()
    image, _ = prepare(CLEAN, spec)
    assert image.shape == (1, 28, 28)
    assert time.process_time() - begun < 5


# ---------------------------------------------------------------- parts


def test_otsu_is_the_threshold_of_least_variance():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(20, 5, 900), rng.normal(90, 8, 300)]).astype(np.float32)
    threshold = segmentation.otsu(values)
    within = [
        sum(part.var() * len(part) for part in (values[values < t], values[values >= t]) if len(part))
        for t in np.linspace(values.min(), values.max(), 129)[1:-1]
    ]
    best = sum(part.var() * len(part) for part in (values[values < threshold], values[values >= threshold]))
    assert best == pytest.approx(min(within), rel=1e-3)
    assert segmentation.otsu(np.full(9, 7, np.float32)) == 7


def test_ink_is_where_it_was_put():
    covered = drawn()
    for picture, darker in ((CLEAN, True), (LIKE["white on black"], False), (LIKE["in uneven light"], True)):
        ink = segmentation.find_ink(picture)
        assert ink.darker == darker
        mask = covered > 0.5
        overlap = (ink.mask & mask).sum() / (ink.mask | mask).sum()
        assert overlap > 0.9
        (rows, columns) = ndimage.find_objects(mask.astype(int))[0]
        assert np.abs(np.subtract(ink.box, (rows.start, rows.stop, columns.start, columns.stop))).max() <= 1
