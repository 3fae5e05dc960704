"""Attributions sum to the difference of the logits, equal known results, and are compared with a control."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnx import explain
from nnx.config import registry
from nnx.explain import _draw, saliency
from nnx.models import _layer_outputs

MODELS = registry.names("model")


def arguments(subject):
    x = subject.inputs()
    return x, torch.from_numpy(subject.predicted), saliency.baseline(subject)


@pytest.mark.parametrize("model", MODELS)
def test_attributions_sum_to_the_difference_of_the_logits(subject, model):
    network = subject(model).network
    x, targets, black = arguments(subject(model))
    found = saliency.integrated_gradients(network, x, targets, black)
    with torch.no_grad():
        rise = (network(x) - network(black))[torch.arange(len(x)), targets].numpy()
    assert np.abs(rise).min() > 0.01, "there is something to explain"
    off = np.abs(found.values.reshape(len(x), -1).sum(1) - rise) / np.abs(rise)
    assert off.max() < 0.01
    np.testing.assert_allclose(found.missing, off, atol=1e-4)
    [(_, explanation)] = explain.explain(subject(model), ["saliency"])
    assert explanation.figures["completeness_error"] == pytest.approx(off.max(), abs=1e-4)


def test_the_control_two_steps_are_not_enough_and_steps_are_doubled_until_they_are(subject, monkeypatch):
    network = subject("rnn").network
    x, targets, black = arguments(subject("rnn"))
    once = saliency.attribute(network, x, targets, black, np.full(len(x), 2))
    assert once.missing.max() > 0.01
    monkeypatch.setattr(saliency, "STEPS", 2)
    found = saliency.integrated_gradients(network, x, targets, black)
    assert found.steps.max() > 2
    assert found.missing.max() < 0.01
    again = saliency.attribute(network, x, targets, black, found.steps)
    np.testing.assert_allclose(again.values, found.values, atol=1e-6)
    monkeypatch.setattr(saliency, "MAX_STEPS", 2)
    found = saliency.integrated_gradients(network, x, targets, black)
    assert (found.steps == 2).all(), "and no further than allowed"


def test_only_samples_that_lack_something_take_more_steps():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    x, targets = torch.randn(20, 4), torch.zeros(20, dtype=torch.int64)
    found = saliency.integrated_gradients(network, x, targets, torch.zeros(1, 4))
    assert found.missing.max() < 0.01
    assert found.steps.min() == saliency.STEPS < found.steps.max()
    halved = np.maximum(found.steps // 2, saliency.STEPS)
    coarser = saliency.attribute(network, x, targets, torch.zeros(1, 4), halved)
    assert ((coarser.missing >= 0.01) == (found.steps > saliency.STEPS)).all()


def test_the_caption_gives_the_reason_for_a_large_error(subject, monkeypatch):
    [(_, whole)] = explain.explain(subject("cnn"), ["saliency"])
    assert "the smallest difference" not in whole.pictures[0].caption
    monkeypatch.setattr(saliency, "STEPS", 2)
    monkeypatch.setattr(saliency, "MAX_STEPS", 2)
    [(_, short)] = explain.explain(subject("cnn"), ["saliency"])
    assert f"the smallest difference is only {min(map(abs, short.figures['rise'])):.2g}" in short.pictures[0].caption


def test_credits_of_a_linear_network_are_weight_times_difference():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x, black, targets = torch.randn(3, 12), torch.randn(1, 12), torch.tensor([2, 0, 3])
    found = saliency.integrated_gradients(network, x, targets, black)
    expected = network[1].weight[targets] * (x - black)
    np.testing.assert_allclose(found.values, expected.detach().numpy(), atol=1e-5)


def test_the_baseline_is_an_image_without_ink(subject):
    explained = subject("cnn")
    assert torch.equal(saliency.baseline(explained)[0], explained.inputs(np.zeros_like(explained.images))[0])
    assert (saliency.baseline(explained) < 0).all(), "zero would be the mean of all images, not black"


def test_grad_cam_is_what_the_paper_says(subject):
    network = subject("cnn").network
    x, targets, _ = arguments(subject("cnn"))
    maps: torch.Tensor = network.stages(x).detach().requires_grad_()
    network.head(maps)[torch.arange(len(x)), targets].sum().backward()
    weights = maps.grad.mean((2, 3), keepdim=True)
    expected = F.interpolate(F.relu((weights * maps).sum(1, keepdim=True)), x.shape[2:], mode="bilinear")[:, 0]
    np.testing.assert_allclose(saliency.grad_cam(network, x, targets), expected.detach().numpy(), atol=1e-5)
    assert list(_layer_outputs.layer_modules(network, x[:1]))[:2] == ["stages.0", "stages.1"]


@pytest.mark.parametrize("model", MODELS)
def test_a_control_that_is_the_network_itself_agrees_in_all_the_real_one_does_not(subject, model, monkeypatch):
    ours = subject(model)
    [(_, real)] = explain.explain(ours, ["saliency"])
    assert abs(real.figures["integrated_gradients"]["says"]) < 0.5
    itself = explain.build_subject(ours.checkpoint, ours.data, ours.images, ours.names)
    itself.untrained = itself.network
    [(_, same)] = explain.explain(itself, ["saliency"])
    assert same.figures["integrated_gradients"]["says"] == pytest.approx(1)
    assert same.figures["integrated_gradients"]["looks"] == pytest.approx(1)


def test_pictures_without_any_difference_have_no_correlation():
    assert saliency.rank_correlation(np.zeros(9), np.arange(9.0)) is None
    assert saliency.rank_correlation(np.arange(9.0), np.arange(9.0) ** 3) == pytest.approx(1)
    assert saliency.rank_correlation(np.arange(9.0), -np.arange(9.0)) == pytest.approx(-1)


def test_one_logit_speaks_for_the_second_class_and_against_the_first():
    network = nn.Linear(3, 1)
    x = torch.randn(4, 3)
    logits = network(x)[:, 0]
    torch.testing.assert_close(saliency._target_logit(network, x, torch.tensor([1, 1, 1, 1])), logits)
    torch.testing.assert_close(saliency._target_logit(network, x, torch.tensor([0, 0, 0, 0])), -logits)


# ---------------------------------------------------------------- true class, mistakes, occlusion


def test_the_title_shows_the_true_and_the_predicted_class_and_marks_a_mistake():
    from matplotlib.figure import Figure

    figures = {"samples": ["test 4", "test 5"], "labels": ["cat", "dog"], "classes": ["cat", "cat"]}
    right, wrong = Figure().subplots(1, 2)
    for n, axes in enumerate((right, wrong)):
        saliency._title(axes, figures, n)
    assert right.get_title() == "test 4\ntrue cat\npred. cat"
    assert wrong.get_title() == "test 5\ntrue dog\n✗ pred. cat"
    assert wrong.title.get_color() != right.title.get_color()
    saliency._title(right, figures | {"labels": None}, 1)
    assert right.get_title() == "test 5\npred. cat", "without labels nothing is a mistake"


def test_a_caption_with_a_mistake_explains_the_mark(subject):
    ours = subject("mlp")
    [(_, correct)] = explain.explain(relabelled(ours, ours.predicted), ["saliency"])
    [(_, wrong)] = explain.explain(relabelled(ours, (ours.predicted + 1) % 10), ["saliency"])
    assert "misclassified" not in correct.pictures[0].caption
    assert "A frame and a cross mark a misclassified sample." in wrong.pictures[0].caption
    assert wrong.figures["labels"] != wrong.figures["classes"] == correct.figures["labels"]


def relabelled(ours, labels):
    return explain.build_subject(ours.checkpoint, ours.data, ours.images, ours.names, labels)


def test_each_row_of_maps_has_a_colour_bar(subject, monkeypatch):
    drawn = []
    monkeypatch.setattr(saliency._draw, "relative_bar", lambda *_, signed, **__: drawn.append(signed))
    list(explain.explain(subject("cnn"), ["saliency"]))
    assert drawn == [True, False], "integrated gradients and Grad-CAM"


def test_images_stand_above_their_maps(subject, monkeypatch):
    figures = []
    to_png = saliency._draw.to_png
    monkeypatch.setattr(saliency._draw, "to_png", lambda figure: figures.append(figure) or to_png(figure))
    ours = subject("cnn")
    list(explain.explain(ours, ["saliency"]))
    lefts = [axes.get_position().x0 for axes in figures[0].get_axes() if axes.images and axes.get_label() == ""]
    N = min(len(ours.images), saliency.SAMPLES)
    columns = np.array(lefts).reshape(-1, N)
    np.testing.assert_allclose(columns - columns[0], 0, atol=0.002)


@pytest.mark.parametrize("size", [1, 5, 6, 8, 28, 48, 225])
def test_occlusion_windows_cover_all_pixels(size):
    windows = saliency.occlusion_windows(size)
    assert set().union(*(range(size)[window] for window in windows)) == set(range(size))
    assert len({window.stop - window.start for window in windows}) == 1
    assert len(windows) <= 13


def test_occlusion_of_a_linear_network_is_the_sum_of_weight_times_input_in_the_window():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
    x, targets = torch.randn(2, 3, 12, 12), torch.tensor([1, 0])
    share = (network[1].weight[targets].view_as(x) * x).sum(1).detach()
    drops = saliency.occlusion(network, x, targets)
    windows = saliency.occlusion_windows(12)
    over = [(rows, columns) for rows in windows for columns in windows if rows.start <= 5 < rows.stop]
    over = [pair for pair in over if pair[1].start <= 7 < pair[1].stop]
    expected = torch.stack([share[:, rows, columns].sum((1, 2)) for rows, columns in over]).mean(0)
    np.testing.assert_allclose(drops[:, 5, 7], expected, atol=1e-5)


def test_colour_images_are_occluded_too_and_gray_ones_are_not(colour_subject, subject):
    [(_, colour)] = explain.explain(colour_subject("cnn"), ["saliency"])
    [(_, gray)] = explain.explain(subject("cnn"), ["saliency"])
    assert colour.figures["occlusion"]["says"] is not None
    assert "Occlusion" in colour.pictures[0].caption
    assert "occlusion" not in gray.figures


def test_a_blank_grad_cam_says_why(subject, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setattr(saliency, "grad_cam", lambda network, x, targets: np.zeros((len(x), 8, 8), np.float32))
    [(_, blank)] = explain.explain(subject("cnn"), ["saliency"])
    assert "no region raises the logit" in blank.pictures[0].caption
    axes = Figure().subplots()
    saliency._draw_map(axes, np.zeros((8, 8)), np.zeros((1, 8, 8), np.uint8), signed=False)
    assert [text.get_text() for text in axes.texts] == ["no positive\nevidence"]


def test_a_colour_image_shows_its_outlines_over_the_heat():
    """Where the colours meet, also of equal brightness; nothing elsewhere, however bright it is."""
    image = np.zeros((3, 8, 8), np.uint8)
    image[0, :, :4] = 200
    image[1, :, 4:] = 200
    lines = _draw.outlines(image)
    assert (lines[:, 3:5] == 1).all()
    assert lines[:, [0, 1, 2, 5, 6, 7]].max() == 0
