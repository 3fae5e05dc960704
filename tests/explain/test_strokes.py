"""Edge direction, stroke width, slant, holes and stroke ends: of shapes drawn here, whose truth is known."""

import numpy as np
import pytest
from scipy import ndimage

from nnx.explain import _strokes as strokes

SIZE, FINE = 28, 16


def plane():
    """x to the right and y upwards, in pixels from the middle, on a grid finer than the pixels."""
    y, x = (np.mgrid[: SIZE * FINE, : SIZE * FINE] + 0.5) / FINE - SIZE / 2
    return x, -y


def drawn(shape):
    """A shape of the fine grid as a uint8 image (1, H, W): each pixel as grey as it is covered."""
    covered = shape.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3))
    return np.round(255 * covered).astype(np.uint8)[None]


def bar(width, lean=0.0, length=18.0):
    """An upright bar, sheared so that it leans `lean` degrees to the right."""
    x, y = plane()
    return (np.abs(x - y * np.tan(np.radians(lean))) < width / 2) & (np.abs(y) < length / 2)


def turned(width, degrees, length=20.0):
    x, y = plane()
    a = np.radians(degrees)
    along, across = x * np.sin(a) + y * np.cos(a), x * np.cos(a) - y * np.sin(a)
    return (np.abs(across) < width / 2) & (np.abs(along) < length / 2)


def ring(width, radius=7.0, x0=0.0, y0=0.0):
    x, y = plane()
    return np.abs(np.hypot(x - x0, y - y0) - radius) < width / 2


def ink(*shapes):
    found = strokes.ink(np.stack([drawn(shape) for shape in shapes]))
    assert found is not None
    return found


@pytest.mark.parametrize("width", [1.5, 2, 2.5, 3, 4, 5])
def test_stroke_width(width):
    """Of shapes without ends, at which every stroke is narrower: a ring, and lines across the whole image in five
    directions."""
    assert strokes.stroke_width(ink(ring(width))) == pytest.approx([width], rel=0.06)
    lines = strokes.stroke_width(ink(*(turned(width, degrees, length=99) for degrees in (0, 20, 45, 70, 90))))
    # an upright line of 1.5 pixels, from -0.75 to 0.75, makes two columns equally grey, like one of 2 pixels
    if width >= 2:
        assert lines == pytest.approx([width] * 5, rel=0.07)


def test_stroke_width_grows_with_the_pen():
    widths = np.linspace(1.5, 5, 15)
    measured = strokes.stroke_width(ink(*(ring(width) for width in widths)))
    assert (np.diff(measured) > 0).all()


@pytest.mark.parametrize("lean", [-40, -20, 0, 10, 30])
def test_slant(lean):
    assert strokes.slant(ink(bar(3, lean))) == pytest.approx([lean], abs=0.5)
    assert strokes.slant(ink(bar(3, lean)[:, ::-1])) == pytest.approx([-lean], abs=0.5)


def test_slant_is_that_of_the_least_squares_line():
    images = ink(ring(2, x0=1), turned(3, 25) | ring(2, 4, 3, 4))
    for image, found in zip(images, strokes.slant(images), strict=True):
        rows, columns = np.nonzero(image)
        shift = np.polyfit(-rows, columns, 1, w=np.sqrt(image[rows, columns]))[0]
        assert found == pytest.approx(np.degrees(np.arctan(shift)), abs=1e-3)


def test_holes():
    x, y = plane()
    eight = ring(2, 4, y0=4.5) | ring(2, 4, y0=-4.5)
    shapes = {
        "bar": (bar(3), 0),
        "ring": (ring(2), 1),
        "eight": (eight, 2),
        "six": (ring(2, 4, y0=-4) | ((np.abs(x + 4) < 1) & (np.abs(y - 3) < 7)), 1),
        "open ring": (ring(2) & ~((np.abs(x) < 3) & (y > 0)), 0),
        "thin slanted square": (np.abs(np.abs(x) + np.abs(y) - 8) < 0.8, 1),
        "cup on the border": (np.abs(np.maximum(np.abs(x), np.abs(y - 8)) - 8) < 1, 0),
        "disc": (np.hypot(x, y) < 8, 0),
    }
    assert strokes.holes(ink(*(shape for shape, _ in shapes.values()))).tolist() == [
        number for _, number in shapes.values()
    ]


def test_holes_are_those_of_the_euler_number():
    """Components minus Euler number, which is counted from pixels, edges and corners of the finest grid."""
    x, _ = plane()
    for shape in (
        ring(2),
        ring(2, 4, y0=4.5) | ring(2, 4, y0=-4.5),
        bar(3),
        ring(2) | ring(2, 3),
        bar(2) | (ring(2, 4, 6) & (x > 0)),
    ):
        fine = np.pad(shape, 1).astype(int)
        pixels = fine.sum()
        edges = np.maximum(fine[1:], fine[:-1]).sum() + np.maximum(fine[:, 1:], fine[:, :-1]).sum()
        corners = np.maximum(np.maximum(fine[1:, 1:], fine[1:, :-1]), np.maximum(fine[:-1, 1:], fine[:-1, :-1])).sum()
        components = ndimage.label(fine, np.ones((3, 3)))[1]
        assert strokes.holes(ink(shape)) == [components - (corners - edges + pixels)]


def test_black_on_white_is_the_same_drawing():
    images = np.stack([drawn(ring(2)), drawn(bar(3, 20))])
    ours, inverse = strokes.ink(images), strokes.ink(255 - images)
    assert ours is not None
    assert inverse is not None
    np.testing.assert_allclose(ours, inverse, atol=1e-6)
    colours = strokes.ink(np.repeat(images, 3, axis=1))
    np.testing.assert_allclose(ours, colours, atol=1e-6)


def test_an_empty_image_has_nothing():
    empty = strokes.ink(np.zeros((1, 1, 8, 8), np.uint8))
    assert empty is not None
    assert [measure(empty).tolist() for measure in (strokes.stroke_width, strokes.slant, strokes.holes)] == [
        [0],
        [0],
        [0],
    ]


def test_a_photograph_is_no_drawing():
    from sklearn.datasets import load_sample_image

    photograph = load_sample_image("china.jpg")[:416, :640]
    patches = photograph.reshape(13, 32, 20, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    assert strokes.ink(patches) is None
    assert strokes.ink(patches[:, :1]) is None
    assert strokes.ink(np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)) is None


def test_colours_and_shading_are_no_ink():
    """A shape in colour; a shaded ball and a flat grey one on a plain ground, as in a photograph of a thing; and a
    stroke on medium grey. A stroke of any one grey is ink, on a dark or a light ground."""
    stroke = np.stack([drawn(ring(2)), drawn(bar(3, 20))])
    colour = np.repeat(stroke, 3, axis=1)
    colour[:, 2] //= 2
    assert strokes.ink(colour) is None
    x, y = plane()
    distance = np.hypot(x, y)
    ball = np.where(distance < 9, 1 - 0.8 * distance / 9, 0)
    patch = np.where(distance < 9, np.where(x > 3, 1, 0.5), 0)
    for thing in (ball, patch):
        image = np.round(255 * thing.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3))).astype(np.uint8)[None, None]
        assert strokes.ink(image) is None
        assert strokes.ink(255 - image) is None
    assert strokes.ink(128 + stroke // 2) is None
    for ground in (stroke // 2, 255 - stroke // 2, 40 + stroke // 2):
        assert strokes.ink(ground) is not None


def test_digits_of_8x8_pixels_are_ink():
    from sklearn.datasets import load_digits

    images = np.round(load_digits().images[:, None] * 255 / 16).astype(np.uint8)
    assert strokes.ink(images) is not None


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (bar(3), 2),
        (turned(3, 45), 2),
        (turned(2, 20) | turned(2, 110), 4),
        (ring(2.5), 0),
        (bar(3, length=24) | ring(2.5, 5), 2),
    ],
)
@pytest.mark.parametrize("side", [14, 28, 112])
def test_the_ends_of_strokes(shape, expected, side):
    image = ndimage.zoom(drawn(shape) / np.float32(255), (1, side / SIZE, side / SIZE), order=1)
    ink = image / image.max()
    assert strokes.stroke_ends(ink).tolist() == [expected]


def test_thinned_strokes_are_thin_and_keep_their_topology():
    shapes = np.concatenate([drawn(ring(4)), drawn(bar(5)), drawn(turned(4, 30) | turned(4, 120))]) > 127
    lines = strokes.thin(shapes)
    assert (lines & ~shapes).sum() == 0
    assert (lines.sum((1, 2)) <= 1.25 * np.array([2 * np.pi * 7, 18, 40])).all(), "about the length of the strokes"
    for line, shape in zip(lines, shapes, strict=True):
        for part, background in ((True, False), (False, True)):
            counts = [
                ndimage.label(np.pad(image == part, 1, constant_values=background), np.ones((3, 3)) if part else None)[
                    1
                ]
                for image in (line, shape)
            ]
            assert counts[0] == counts[1]


def test_the_direction_of_edges():
    upright = drawn(bar(3, length=28))[None]
    flat = upright.swapaxes(2, 3)
    slanted = drawn(turned(3, 45, length=40))[None]
    found = strokes.edge_direction(np.concatenate([upright, 255 - upright, flat, slanted, 0 * flat]))
    assert found == pytest.approx([1, 1, -1, 0, 0], abs=0.02)
    photographs = np.concatenate([flat, 0 * flat, 0 * flat], axis=1)
    assert strokes.edge_direction(photographs) == pytest.approx([-1]), "an edge of one colour"


def test_the_direction_of_edges_is_that_in_the_middle():
    image = drawn(bar(3, length=28))[None]
    image[:, :, :6] = 255 * (np.arange(6) % 2)[:, None]
    assert strokes.edge_direction(image) == pytest.approx([1], abs=0.02)
