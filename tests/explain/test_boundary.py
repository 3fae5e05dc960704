"""Decision regions: those of classifiers whose boundary is known, in the features' own units."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nnx import config, explain, losses, models
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.explain import _draw, boundary
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec

SHOWN = (-2.0, 8.0, 10.0, 30.0)
SPEC = Spec((2,), ("down", "up"), (3.0, 20.0), (2.0, 5.0))
PREPARE = Normalise(SPEC, torch.device("cpu"))


def linear(weight, bias):
    """A linear classifier on normalised features, one line of weights for each logit."""
    network = nn.Linear(2, len(weight))
    network.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return network.eval()


def centres(side):
    x = -2 + 10 * (np.arange(side) + 0.5) / side
    y = 10 + 20 * (np.arange(side) + 0.5) / side
    return x[None, :], y[:, None]


def test_the_regions_of_a_linear_classifier():
    x, y = centres(40)
    score = 1.5 * (x - 3) / 2 - 0.5 * (y - 20) / 5 + 0.25
    second = 1 / (1 + np.exp(-score))
    for network in (
        linear([[0.0, 0.0], [1.5, -0.5]], [0.0, 0.25]),
        linear([[1.5, -0.5]], [0.25]),
    ):  # two logits, or one for a sigmoid
        probabilities = boundary.regions(network, PREPARE, SHOWN, side=40)
        assert probabilities.shape == (40, 40, 2)
        np.testing.assert_allclose(probabilities[:, :, 1], second, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(2), 1, atol=1e-6)


def test_the_corners_of_three_classes():
    """Class k is nearest to corner k: the logits of a nearest-centroid classifier, |x - c|² without what is common to
    all."""
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.5]])
    network = linear((2 * corners).tolist(), (-(corners**2).sum(1)).tolist())
    x, y = centres(50)
    u, v = np.broadcast_arrays((x - 3) / 2, (y - 20) / 5)
    nearest = ((u - corners[:, 0, None, None]) ** 2 + (v - corners[:, 1, None, None]) ** 2).argmin(0)
    assert (boundary.regions(network, PREPARE, SHOWN, side=50).argmax(2) == nearest).all()


def test_colours_say_which_class_and_how_surely():
    probabilities = np.array([[[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]])
    sure, torn, half = boundary.region_colours(probabilities)[0]
    assert torn == pytest.approx([boundary.PALE] * 3)
    first, second = (np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]) for colour in _draw.COLOURS[:2])
    assert np.abs(sure - first).sum() < np.abs(sure - second).sum()
    assert half == pytest.approx(boundary.PALE + 0.6 * 0.5 * (second - boundary.PALE))


@pytest.fixture
def subject():
    """A network that predicts "up" above y = 20, and data of which a tenth is labelled wrongly."""
    rng = np.random.default_rng(0)
    rows = (rng.uniform([-2, 10], [8, 30], (200, 2))).astype(np.float32)
    labels = (rows[:, 1] > 20).astype(np.int64)
    labels[:20] = 1 - labels[:20]
    made = config.load("digits_mlp", ["model={name: mlp, hidden: []}"])
    network = models.build(made.model, SPEC, losses.outputs(made.loss, 2))
    weights = {"layers.1.weight": torch.tensor([[0.0, -3.0], [0.0, 3.0]]), "layers.1.bias": torch.zeros(2)}
    assert weights.keys() == network.state_dict().keys()
    checkpoint = Checkpoint(made, SPEC, weights, {})
    data = Split(rows, labels)
    return explain.build_subject(checkpoint, lambda _: data, rows[:2], ["a", "b"], labels[:2])


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., :3].astype(int)


def test_it_explains(subject):
    [(_, found)] = explain.explain(subject, ["boundary"])
    assert found.figures["accuracy"] == 0.9
    assert found.figures["area"]["up"] == pytest.approx(0.5, abs=0.02)
    x0, x1, y0, y1 = found.figures["extent"]
    assert x0 < subject.data("test").inputs[:, 0].min() < subject.data("test").inputs[:, 0].max() < x1
    probabilities = boundary.regions(subject.network, subject.prepare, (x0, x1, y0, y1), side=100)
    assert found.figures["sure"] == pytest.approx((probabilities.max(2) > 0.95).mean(), abs=0.02)

    image = pixels(found.pictures[0].png)
    top, bottom = (np.median(image[int(share * len(image)), 200:-200], axis=0) for share in (0.1, 0.75))
    down, up = (np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) for colour in _draw.COLOURS[:2])
    assert np.abs(top - up).sum() < np.abs(top - down).sum(), "large values of the second feature are at the top"
    assert np.abs(bottom - down).sum() < np.abs(bottom - up).sum()
    [(_, again)] = explain.explain(subject, ["boundary"])
    assert again.pictures[0].png == found.pictures[0].png


def test_a_film_of_regions(subject):
    snapshots = [("step 0", linear([[0.0, 3.0], [0.0, -3.0]], [0.0, 0.0])), ("step 1000", subject.network)]
    frames = list(boundary.film(snapshots, subject.prepare, subject.data("test"), subject.classes, subject.features))
    sizes = {Image.open(io.BytesIO(frame)).size for frame in frames}
    assert len(frames) == 2
    assert len(sizes) == 1
    first, last = map(pixels, frames)
    assert np.abs(first[150, 200:-200] - last[150, 200:-200]).mean() > 50, "above the line the first says the contrary"


def test_it_is_for_two_features(subject):
    assert boundary.applies(subject.checkpoint) is None
    for shape in ((3,), (1,), (1, 8, 8)):
        spec = replace(SPEC, shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
        assert "two features" in boundary.applies(replace(subject.checkpoint, spec=spec))


def test_rows_that_are_all_alike_have_a_plane_too():
    x0, x1, y0, y1 = boundary.extent(np.full((3, 2), 7.0))
    assert x0 < 7 < x1
    assert y0 < 7 < y1


# ---------------------------------------------------------------- units


def hidden(units):
    """A subject whose network has a hidden layer of ReLU units: n divides the plane at y = 20 + n."""
    made = config.load("digits_mlp", [f"model={{name: mlp, hidden: [{units}]}}"])
    network = models.build(made.model, SPEC, losses.outputs(made.loss, 2))
    state = {name: torch.zeros_like(values) for name, values in network.state_dict().items()}
    state["layers.1.weight"][:, 1] = 1
    state["layers.1.bias"][:] = -torch.arange(units) / 5  # a standard deviation of y is 5
    rows = np.random.default_rng(0).uniform([-2, 10], [8, 30], (50, 2)).astype(np.float32)
    data = Split(rows, (rows[:, 1] > 20).astype(np.int64))
    return explain.build_subject(Checkpoint(made, SPEC, state, {}), lambda _: data, rows[:2], ["a", "b"])


def test_the_activation_of_each_hidden_unit_over_the_plane():
    _, y = centres(30)
    [(name, activations)] = boundary.unit_activations(hidden(4), SHOWN, side=30).items()
    assert name == "layers.1"
    assert activations.shape == (4, 30, 30)
    for n, unit in enumerate(activations):
        np.testing.assert_allclose(unit, np.broadcast_to(np.maximum((y - 20 - n) / 5, 0), (30, 30)), atol=1e-5)


def test_at_most_32_units_that_vary_most_have_a_map_with_large_values_at_the_top(monkeypatch):
    grids = []
    draw = _draw.grid
    monkeypatch.setattr(_draw, "grid", lambda *given, **options: grids.append(given) or draw(*given, **options))
    plane, picture = boundary.explain(hidden(40)).pictures
    assert (plane.name, picture.name) == ("boundary", "boundary-units-1")
    [(maps, titles)] = grids
    assert titles == [str(n) for n in range(32)]
    assert maps[0][0].mean() > maps[0][-1].mean()
    assert picture.caption.startswith("Layer 1: linear, 40 units (layers.1): ")
    assert "the 32 of 40 units that vary most" in picture.caption
    assert "are the same everywhere" in picture.caption  # those that divide the plane above its upper end


@pytest.mark.parametrize("model", ["{name: transformer, width: 8, depth: 1, heads: 2}", "{name: rnn, hidden: 6}"])
def test_units_of_tokens_and_states_have_a_map_too(model):
    made = config.load("digits_mlp", [f"model={model}"])
    network = models.build(made.model, SPEC, losses.outputs(made.loss, 2))
    data = hidden(1).data("test")
    explained = explain.build_subject(
        Checkpoint(made, SPEC, network.state_dict(), {}), lambda _: data, data.inputs[:2], ["a", "b"]
    )
    for activations in boundary.unit_activations(explained, SHOWN, side=10).values():
        assert activations.shape[1:] == (10, 10)
    assert len(boundary.explain(explained).pictures) > 1
