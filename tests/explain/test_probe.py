"""Ridge probes: against scikit-learn's, against properties that are planted or absent, and against chance."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from teach import taught

from nnx import explain
from nnx.datasets import Split
from nnx.errors import DataError
from nnx.explain import _ridge, probe
from nnx.explain._ridge import ProbeResult, Property

DRAWINGS = ["class", "edge direction", "stroke width", "slant", "holes", "stroke ends"]


@pytest.fixture(scope="module")
def digits():
    """Pixels and classes of digits in random order: to fit to, and to score on."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    pixels, labels = bunch.data[order].astype(np.float32), bunch.target[order].astype(np.int64)
    return pixels[:900], pixels[900:], Property("class", labels[:900], labels[900:], 10)


def expected(fit, test, targets, penalty):
    """What scikit-learn says, for a penalty as a share of a sample's mean sum of squares."""
    mean = fit.mean(0)
    alpha = penalty * np.square(fit - mean).sum(1).mean()
    return Ridge(alpha=alpha, solver="svd").fit(fit.astype(float), targets).predict(test.astype(float))


@pytest.mark.parametrize("width", [10, 64, 1500])
def test_the_weights_are_those_of_scikit_learn(digits, width):
    """Narrower than there are samples, and wider."""
    pixels, others, label = digits
    mixing = np.random.default_rng(1).normal(size=(64, width)).astype(np.float32)
    fit, test = np.tanh(pixels[:500] @ mixing / 30), np.tanh(others @ mixing / 30)
    mean = fit.mean(0)
    ridge = _ridge._Ridge(torch.from_numpy(fit - mean), torch.from_numpy(test - mean))
    assert ridge.wide == (width > 500)
    targets = np.eye(10)[label.fit[:500]]
    for penalty in (1e-2, 1.0, 100.0):
        predicted = ridge.predict(torch.from_numpy(targets), penalty).numpy()
        np.testing.assert_allclose(predicted, expected(fit, test, targets, penalty), atol=2e-4)


def test_the_penalty_is_the_best_on_held_out_samples(digits):
    pixels, others, label = digits
    ink = Property("ink", pixels.sum(1).astype(float) ** 2, others.sum(1).astype(float) ** 2)
    for each, found in zip((label, ink), _ridge.probe(pixels, others, [label, ink], seed=0), strict=True):
        targets = np.eye(10)[each.fit] if each.classes else each.fit[:, None]
        cut = 675
        centred = pixels - pixels.mean(0)  # as the probe does, before it cuts

        def measure(predicted, truth, each=each):
            return (
                balanced_accuracy_score(truth, predicted.argmax(1))
                if each.classes
                else r2_score(truth, predicted.ravel())
            )

        trials = {
            p: measure(expected(centred[:cut], centred[cut:], targets[:cut], _share(centred, cut, p)), each.fit[cut:])
            for p in _ridge.PENALTIES
        }
        assert trials[found.penalty] == pytest.approx(max(trials.values()), abs=0.005)
        predicted = expected(pixels, others, targets, found.penalty)
        assert found.score == pytest.approx(measure(predicted, each.test), abs=2e-3)
        if each.classes:
            assert (found.correct == (predicted.argmax(1) == each.test)).mean() > 0.99


def _share(centred, cut, penalty):
    """The penalty in terms of samples that are centred by themselves, which scikit-learn does."""
    return (
        penalty
        * np.square(centred[:cut]).sum(1).mean()
        / np.square(centred[:cut] - centred[:cut].mean(0)).sum(1).mean()
    )


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 300, p=[0.7, 0.1, 0.1, 0.1])
    predicted = torch.from_numpy(np.eye(4)[truth] + rng.normal(0, 0.7, (300, 4)))
    label = Property("class", truth, truth, 4)
    assert _ridge.score(label, predicted, truth) == pytest.approx(balanced_accuracy_score(truth, predicted.argmax(1)))
    values = rng.normal(3, 2, 300)
    predicted = torch.from_numpy(values + rng.normal(0, 1, 300))[:, None]
    assert _ridge.score(Property("x", values, values), predicted, values) == pytest.approx(
        r2_score(values, predicted[:, 0])
    )


def test_what_is_planted_is_found_and_what_is_not_is_not():
    rng = np.random.default_rng(0)
    number, label = rng.normal(size=1200), rng.integers(0, 4, 1200)
    noise = rng.normal(size=(1200, 30)).astype(np.float32)
    planted = np.column_stack([noise, number, np.eye(4)[label]]).astype(np.float32)
    properties = [Property("class", label[:600], label[600:], 4), Property("number", number[:600], number[600:])]
    there = _ridge.probe(planted[:600], planted[600:], properties, seed=0)
    absent = _ridge.probe(noise[:600], noise[600:], properties, seed=0)
    assert [found.score for found in there] == pytest.approx([1, 1], abs=1e-3)
    assert absent[0].score == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 600) ** 0.5)
    assert absent[1].score == pytest.approx(0, abs=0.03)


def test_shuffled_labels_cannot_be_predicted(digits):
    """Within three standard errors of chance; in the control, where labels are not shuffled, far beyond."""
    pixels, others, label = digits
    ink = Property("ink", pixels.sum(1).astype(float), others.sum(1).astype(float))
    of_class, of_ink = _ridge.probe(pixels, others, [label, ink], seed=3)
    assert len(of_class.shuffled) == _ridge.SHUFFLES
    error = of_class.shuffled.std(ddof=1) / len(of_class.shuffled) ** 0.5
    assert label.chance == 0.1
    assert abs(of_class.shuffled.mean() - label.chance) < 3 * error
    assert error < 0.02
    assert of_class.score - label.chance > 30 * error
    assert -0.05 < of_ink.shuffled.mean() < 0.01
    assert of_ink.score > 0.99


def test_a_dead_layer_scores_chance(digits):
    _, _, label = digits
    dead = np.zeros((900, 12), np.float32)
    (found,) = _ridge.probe(dead, dead[:897], [label], seed=0)
    assert found.score == pytest.approx(0.1)


# ---------------------------------------------------------------- the explainer


def test_the_gain_with_depth_and_its_error():
    """Against the bootstrap over test samples."""
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 900, p=[0.5, 0.3, 0.2])
    label = Property("class", truth, truth, 3)
    rights = {"input": rng.random(900) < 0.8, "middle": rng.random(900) < 0.95}
    rights["logits"] = rights["middle"] & (rng.random(900) < 0.995)  # a little less, as chance may have it

    def recall(right):
        return np.mean([right[truth == k].mean() for k in range(3)])

    layers = {name: ProbeResult(recall(right), right, np.zeros(2), 1.0) for name, right in rights.items()}
    found = probe._compare_depths(layers, {name: [each] for name, each in layers.items()}, label)
    assert found["last"] == "middle"
    assert found["from_input"]["gain"] == pytest.approx(recall(rights["middle"]) - recall(rights["input"]))
    draws = []
    for _ in range(400):
        index = np.concatenate([rng.choice(np.flatnonzero(truth == k), (truth == k).sum()) for k in range(3)])
        draws.append(
            np.mean(
                [(rights["middle"].astype(float) - rights["input"])[index][truth[index] == k].mean() for k in range(3)]
            )
        )
    assert found["from_input"]["error"] == pytest.approx(np.std(draws), rel=0.15)
    assert found["grows"]
    assert found["never_falls"]
    assert not found["from_untrained"]["certain"]

    falling = dict(zip(rights, (layers["middle"], layers["input"], layers["input"]), strict=True))
    found = probe._compare_depths(falling, {name: [each] for name, each in falling.items()}, label)
    assert not found["grows"]
    assert not found["never_falls"]


def test_what_is_probed(digits):
    def split(inputs):
        return Split(inputs, np.arange(len(inputs)) % 2)

    drawings = split(load_digits().images[:60, None].astype(np.uint8) * 15)
    found, missing = probe.properties_of(drawings, drawings, ("a", "b"))
    assert [each.name for each in found] == DRAWINGS
    assert missing == ""
    photograph = (
        load_sample_image("china.jpg")[:416, :640]
        .reshape(13, 32, 20, 32, 3)
        .transpose(0, 2, 4, 1, 3)
        .reshape(-1, 3, 32, 32)
    )
    for inputs, names, why in (
        (
            photograph,
            ["class", "edge direction"],
            "Strokes are not probed: the images are not one ink on a plain background.",
        ),
        (np.zeros((60, 3), np.float32), ["class"], "Only the class is probed: the samples are not images."),
    ):
        found, missing = probe.properties_of(split(inputs), split(inputs), ("a", "b"))
        assert [each.name for each in found] == names
        assert missing == why


def test_it_explains(subject):
    explained = taught(subject("mlp"))
    [(_, found)] = explain.explain(explained, ["probe"])
    assert found.figures["fitted_to"]["split"] == "train"
    assert found.figures["scored_on"]["samples"] == len(explained.data("test"))
    assert set(found.figures["properties"]) == set(DRAWINGS)
    of_class = found.figures["properties"]["class"]
    layers = list(of_class["layers"])
    assert layers[0] == "input"
    assert layers[-1] == "logits"
    assert len(layers) == 4
    first, last = (of_class["layers"][name] for name in (layers[0], layers[-2]))
    assert first["trained"] == first["untrained"]
    depth = found.figures["class_with_depth"]
    assert depth["last"] == layers[-2]
    assert depth["from_untrained"]["gain"] == pytest.approx(last["trained"] - last["untrained"])
    assert depth["from_input"]["gain"] == pytest.approx(last["trained"] - first["trained"])
    assert depth["from_untrained"]["certain"]
    assert last["trained"] > last["untrained"] + 0.1
    for values in of_class["layers"].values():
        assert abs(values["shuffled"] - of_class["chance"]) < 4 * values["shuffled_error"]
    [(_, again)] = explain.explain(explained, ["probe"])
    assert again == found


@pytest.mark.parametrize("panels", [1, 2, 3, 4])
def test_a_panel_a_property_and_the_layers_below_each_column(panels, monkeypatch):
    drawn = []
    monkeypatch.setattr(probe._draw, "to_png", drawn.append)
    layers = dict.fromkeys(("input", "logits"), [ProbeResult(0.5, np.ones(3, bool), np.zeros(2), 1.0)] * panels)
    probe._draw_scores(layers, layers, [Property(str(n), np.ones(3), np.ones(3)) for n in range(panels)])
    [figure] = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == [str(n) for n in range(panels)]
    assert {axes.get_ylabel() for axes in figure.axes} == {"variance explained, R²"}
    named = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes]
    assert named == [n >= panels - 2 for n in range(panels)]


def test_the_axis_of_a_class_is_the_balanced_accuracy_of_a_probe(monkeypatch):
    figures = []
    monkeypatch.setattr(probe._draw, "to_png", figures.append)
    layers = {"input": [ProbeResult(0.5, np.ones(3, bool), np.zeros(2), 1.0)]}
    labels = np.array([0, 1, 1])
    probe._draw_scores(layers, layers, [Property("class", labels, labels, 2)])
    [axes] = figures[0].axes
    assert axes.get_ylabel().replace("\n", " ") == "balanced accuracy of a linear probe"


def test_too_few_samples_are_an_error(subject):
    explained = subject("mlp")
    few = explain.build_subject(
        explained.checkpoint, lambda name: explained.data(name).take(np.arange(20)), explained.images, explained.names
    )
    with pytest.raises(DataError, match="probe: needs 40"):
        probe.explain(few)
