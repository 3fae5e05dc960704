"""What an RNN says after each row is what its output layer makes of its state there."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nnx import explain, models
from nnx.checkpoint import Checkpoint
from nnx.config import registry
from nnx.explain import activations
from nnx.losses import probabilities


def subject_of(subject, **settings):
    ours = subject("rnn")
    model = registry.find("model", "rnn")(hidden=9, **settings)
    torch.manual_seed(0)
    network = models.build(model, ours.spec, 10)
    checkpoint = Checkpoint(
        ours.checkpoint.config.model_copy(update={"model": model}), ours.spec, network.state_dict(), {}
    )
    return explain.build_subject(checkpoint, ours.data, ours.images, ours.names)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("read", ["last", "mean"])
def test_belief_is_the_output_layer_on_the_state_so_far(subject, cell, read):
    explained = subject_of(subject, cell=cell, read=read)
    belief = activations.step_predictions(explained)
    with torch.no_grad():
        states = explained.network.recurrent(explained.inputs()[:, 0])[0]
        if read == "mean":
            states = states.cumsum(1) / torch.arange(1, 9)[:, None]
        expected = probabilities(explained.network.output(states).flatten(0, 1)).view(len(states), 8, 10)
    np.testing.assert_allclose(belief, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(belief[:, -1], explained.probabilities, atol=1e-6)
    assert np.abs(belief[:, 2] - belief[:, -1]).max() > 1e-3, "the control: it does change"


@pytest.mark.parametrize("settings", [{"bidirectional": True}, {"layers": 2, "bidirectional": True, "read": "mean"}])
def test_belief_of_any_rnn_ends_with_its_answer(subject, settings):
    explained = subject_of(subject, **settings)
    np.testing.assert_allclose(activations.step_predictions(explained)[:, -1], explained.probabilities, atol=1e-6)
    [(_, found)] = explain.explain(explained, ["activations"])
    assert set(found.figures["decided_at"]) == set(explained.names)


@pytest.mark.parametrize(
    ("predicted", "row"),
    [([0, 1, 2, 2], 3), ([2, 2, 2, 2], 1), ([2, 2, 1, 2], 4), ([0, 0, 0, 1], 4)],
    ids=["late", "at once", "wavers", "last"],
)
def test_the_decision_step_is_when_the_prediction_no_longer_changes(predicted, row):
    assert activations.decision_step(np.eye(3)[predicted]) == row


def test_what_is_too_much_to_show_is_counted():
    maps = np.zeros((2, 40, 3, 3))
    maps[:, 5:] = np.arange(1, 36)[:, None, None]
    sheet = activations._sheet(maps, 0)
    assert sheet.content == "the 32 strongest of 40 feature maps, 3×3 each"
    assert not sheet.is_signed
    assert np.nanmin(sheet.image) == 4, "the five silent maps and the three weakest are left out"
    assert [number for *_, number in sheet.labels] == list(range(8, 40)), "each map has its own number"
    assert activations._sheet(np.ones((2, 600)), 1).content == "the first 512 of 600 neurons"
    assert activations._sheet(-np.ones((2, 6)), 1).is_signed


# ---------------------------------------------------------------- numbers, axes, colour bars


def test_a_neuron_has_a_number_by_row_and_column():
    sheet = activations._sheet(np.arange(2 * 130.0).reshape(2, 130), 0)
    axes = Figure().subplots()
    sheet.draw(axes)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "64", "128"]
    assert axes.get_xticks().tolist() == list(range(0, 64, 8))
    assert sheet.image[1, 8] == 64 + 8


def test_the_number_stands_above_its_map():
    sheet = activations._sheet(np.ones((1, 20, 4, 4)), 0)
    axes = Figure().subplots()
    sheet.draw(axes)
    assert [text.get_text() for text in axes.texts] == [f"{n}" for n in range(20)]
    for x, y, _ in sheet.labels:
        assert sheet.image[int(y), int(x)] == 1, "the first line of the map"
        assert np.isnan(sheet.image[int(y) - 3 : int(y), int(x)]).all(), "room for the number"


def drawn(explained, monkeypatch):
    figures = []
    monkeypatch.setattr(activations._draw, "to_png", lambda figure: figures.append(figure) or b"")
    list(explain.explain(explained, ["activations"]))
    return figures[0]


def labels(figure, axis):
    return [getattr(axes, f"get_{axis}label")() for axes in figure.get_axes()]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_each_layer_has_a_colour_bar_and_the_prediction_an_axis(subject, model, monkeypatch):
    figure = drawn(subject(model), monkeypatch)
    layers = len(subject(model).layer_titles) - 2  # without input and output
    assert len(figure.get_axes()) == 2 + 2 * layers, "sample, prediction, then each layer with its bar"
    assert "probability" in labels(figure, "x")


def test_states_and_prediction_have_colour_bars_and_the_line_a_legend(subject, monkeypatch):
    figure = drawn(subject("rnn"), monkeypatch)
    assert {"state", "probability"} <= set(labels(figure, "x"))
    [legend] = figure.legends
    [text] = legend.get_texts()
    row = activations.decision_step(activations.step_predictions(subject("rnn"))[0])
    assert text.get_text() == f"from row {row} on, the prediction is {subject('rnn').predicted[0]}"
    line = next(line for axes in figure.get_axes() for line in axes.get_lines())
    assert line.get_color() == legend.get_lines()[0].get_color() == activations.LINE
    figure.canvas.draw()
    ticks = {text.get_position()[1]: text.get_text() for text in figure.get_axes()[0].get_yticklabels()}
    assert ticks[0] == "1", "the axis counts rows as the legend does"
    assert all(text == f"{place + 1:g}" for place, text in ticks.items())


def test_a_row_of_a_table_names_its_features(table_subject, monkeypatch):
    figures = []
    monkeypatch.setattr(activations._draw, "to_png", lambda figure: figures.append(figure) or b"")
    explained = table_subject("mlp")
    activations.explain(explained)
    left = figures[0].subfigs[0].axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == explained.features
    assert left.get_xlabel() == "standardised value"


def test_the_values_of_a_row_near_the_mean_have_room_on_their_axis(table_subject, monkeypatch):
    explained = table_subject("mlp")
    small = torch.full_like(explained.inputs()[:1], -0.034)
    monkeypatch.setattr(type(explained), "inputs", lambda self: small)
    figure = activations._draw.new_figure(2.6, 2)
    axes = figure.add_subplot()
    activations._draw_row(axes, explained, 0)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
    assert len(boxes) > 2
    assert all(left.x1 < right.x0 for left, right in pairwise(sorted(boxes, key=lambda box: box.x0)))


def test_units_are_numbered_only_where_they_are():
    few = activations._sheet(np.ones((1, 20), np.float32), 0)
    assert few.image.shape == (1, 32)
    figure = activations._draw.new_figure(4, 1)
    axes = figure.add_subplot()
    few.draw(axes)
    assert axes.get_xticks().tolist() == [0, 8, 16]
    assert activations._sheet(np.ones((1, 40), np.float32), 0).image.shape == (1, 40)
    assert activations._sheet(np.ones((1, 100), np.float32), 0).image.shape == (2, 64)
