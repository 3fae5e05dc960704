"""A filter that is drawn is one that the first layer computes with: laid on the image, it gives the layer's own
weighted sum."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnx import config, explain, losses, models
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.explain import filters
from nnx.models._first_layer import as_images, first_layer, input_weights
from nnx.preprocessing.columns import CategoryColumn, Columns, NumberColumn
from nnx.preprocessing.spec import Spec


def drawn(subject):
    name, module = first_layer(subject.network, subject.inputs()[:1])
    kind, images = as_images(input_weights(module), module, subject.spec)
    return name, module, kind, images


def test_a_neuron_of_the_mlp(subject):
    name, module, kind, images = drawn(subject("mlp"))
    assert (name, kind, images.shape) == ("layers.1", "whole", (24, 1, 8, 8))
    x = subject("mlp").inputs()
    sums = (x.numpy()[:, None] * images).sum((2, 3, 4)) + module.bias.detach().numpy()
    np.testing.assert_allclose(sums, module(x.flatten(1)).detach().numpy(), atol=1e-4)


def test_a_kernel_of_the_cnn(subject):
    name, module, kind, images = drawn(subject("cnn"))
    assert (name, kind, images.shape) == ("stages.0.conv", "kernel", (6, 1, 3, 3))
    x = subject("cnn").inputs()
    there = (x.numpy()[:, None, :, 2:5, 3:6] * images).sum((2, 3, 4))  # around row 3, column 4
    np.testing.assert_allclose(there, module(x).detach().numpy()[:, :, 3, 4], atol=1e-5)


def test_a_patch_of_the_transformer(subject):
    name, module, kind, images = drawn(subject("transformer"))
    assert (name, kind, images.shape) == ("embed", "patch", (16, 1, 2, 2))
    x = subject("transformer").inputs()
    token = (x.numpy()[:, None, :, 2:4, 6:8] * images).sum(
        (2, 3, 4)
    ) + module.bias.detach().numpy()  # row 1, column 3 of the patches
    own = module(subject("transformer").network.tokens(x))[:, 4 + 3]
    np.testing.assert_allclose(token, own.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_the_gates_of_the_rnn_are_in_torch_s_order(cell, gates):
    names = filters.GATES.get(cell.upper(), ("state",))
    assert len(names) == gates
    if cell == "lstm":  # opening the forget gate alone keeps the cell as it is: what "forget gate" says
        module = torch.nn.LSTM(1, 1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            module.bias_ih_l0[names.index("forget gate")] = 50.0
            _, (_, cell_after) = module(torch.zeros(3, 1), (torch.zeros(1, 1), torch.full((1, 1), 7.0)))
        assert cell_after.item() == pytest.approx(7)
    if cell == "gru":  # z near 1 keeps the state
        module = torch.nn.GRU(1, 1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            module.bias_ih_l0[names.index("update gate")] = 50.0
            _, after = module(torch.zeros(3, 1), torch.full((1, 1), 0.7))
        assert after.item() == pytest.approx(0.7)


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_colours_are_read_as_colours_and_gray_as_red_and_blue(model, subject, colour_subject):
    gray, coloured = filters.explain(subject(model)), filters.explain(colour_subject(model))
    assert gray.figures["kind"] == coloured.figures["kind"]
    assert "at a red weight" in gray.reading or "at red weights" in gray.reading
    assert "in its own colour" not in gray.pictures[0].caption
    assert "red" not in coloured.reading
    assert "colour" in coloured.reading
    assert "in its own colour" in coloured.pictures[0].caption


def test_neighbours_are_alike_in_strokes_and_not_in_noise():
    noise = np.random.default_rng(0).normal(size=(50, 1, 20, 20))
    smooth = F.avg_pool2d(torch.from_numpy(noise), 5, 1, 2).numpy()
    assert abs(filters.neighbour_correlation(noise)) < 0.02
    assert filters.neighbour_correlation(smooth) > 0.7
    assert filters.neighbour_correlation(np.ones((3, 1, 1, 1))) == 0


def test_of_many_filters_the_strongest_are_shown():
    weight = np.ones((100, 4)) * np.arange(100)[:, None]
    assert filters._strongest(weight).tolist() == list(range(36, 100))


# ---------------------------------------------------------------- columns of a table


def test_the_influence_of_a_number_is_the_norm_of_its_weights_and_of_categories_their_scaled_spread():
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 500, p=[0.6, 0.3, 0.1])
    numbers = rng.normal(0, [1, 5], (500, 2))
    rows = torch.from_numpy(np.column_stack([numbers, np.eye(3)[codes]])).float()
    weight = torch.from_numpy(rng.normal(size=(7, 5))).float()
    first, second, category = filters.column_influence(weight, rows, {"a": [0], "b": [1], "c": [2, 3, 4]})
    norms = weight.norm(dim=0).numpy()
    assert first == pytest.approx(norms[0] * rows[:, 0].std(correction=0).item(), rel=1e-5)
    assert second == pytest.approx(norms[1] * rows[:, 1].std(correction=0).item(), rel=1e-5)
    shares = np.bincount(codes) / 500
    spread = np.diag(shares) - np.outer(shares, shares)  # the covariance of one-hot features
    of_categories = weight[:, 2:].double().numpy()
    assert category == pytest.approx(np.trace(of_categories @ spread @ of_categories.T) ** 0.5, rel=1e-5)
    shifted = weight.clone()
    shifted[:, 2:] += 3
    unchanged = filters.column_influence(shifted, rows, {"c": [2, 3, 4]})
    assert unchanged == pytest.approx(category, rel=1e-5), "a bias can do the same"


def table_of_dates(trained_on_area):
    """An MLP on a table of a number, 200 dates and three cities. Its weights are initial ones, except for `area`."""
    rng = np.random.default_rng(0)
    dates = tuple(f"day {n}" for n in range(200))
    columns = Columns(
        (
            CategoryColumn("date", dates),
            NumberColumn("area", 80.0, 20.0, 78.0, indicator=True),
            CategoryColumn("city", ("Bern", "Lima", "Rome")),
        )
    )
    encoded = np.column_stack([rng.integers(0, 200, 400), rng.normal(80, 20, 400), rng.integers(0, 3, 400)])
    encoded[:20, 1] = np.nan
    rows = columns.apply(encoded.astype(float), columns)
    made = config.load("digits_mlp", ["model={name: mlp, hidden: [16]}"])
    spec = Spec((rows.shape[1],), ("no", "yes"), (0.0,) * rows.shape[1], (1.0,) * rows.shape[1], columns=columns)
    torch.manual_seed(1)
    network = models.build(made.model, spec, losses.outputs(made.loss, 2))
    state = network.state_dict()
    state["layers.1.weight"][:, 200] += trained_on_area
    data = Split(rows, rng.integers(0, 2, 400))
    return explain.build_subject(Checkpoint(made, spec, state, {}), lambda _: data, rows[:1], ["a"], data.labels[:1])


def test_a_table_is_ranked_by_column_not_by_single_dates():
    explanation = filters.explain(table_of_dates(1.0))
    figures = explanation.figures
    assert figures["columns"] == ["date", "area", "city"]
    influence = dict(zip(figures["columns"], figures["influence"], strict=True))
    untrained = dict(zip(figures["columns"], figures["influence_untrained"], strict=True))
    assert max(influence, key=lambda name: influence[name]) == "area"
    assert influence["area"] > 3 * untrained["area"]
    for name in ("date", "city"):
        assert influence[name] == pytest.approx(untrained[name], rel=0.4)
    assert (figures["rows"], figures["shown"]) == (400, 3)
    assert "count together" in explanation.pictures[0].caption


def test_the_bars_of_the_untrained_network_are_beside_those_of_the_trained_one(monkeypatch):
    charts = []
    monkeypatch.setattr(filters._draw, "to_png", lambda figure: charts.append(figure) or b"")
    filters.explain(table_of_dates(1.0))
    [figure] = charts
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["area", "date", "city"]
    assert len(axes.containers) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trained", "untrained"]
    assert axes.get_legend() is None, "a legend inside the axes may hide a bar"


# ---------------------------------------------------------------- rows of a recurrent layer


def test_the_units_that_training_changed_most_are_shown():
    initial = np.random.default_rng(0).normal(size=(3, 128, 8))
    trained = initial.copy()
    changed = np.arange(5, 128, 8)
    trained[1, changed, 2] += 1
    trained[2, changed[0] + 1] += 0.1  # less than the others
    assert filters.most_changed(trained, initial).tolist() == changed.tolist()
    assert filters.most_changed(trained[:, :10], initial[:, :10]).tolist() == list(range(10))


def test_the_initial_weights_are_those_of_the_training(subject):
    """A network that was hardly trained is near its initial weights, and not near those of the control."""
    explained = subject("rnn")
    trained, initial, control = (
        input_weights(first_layer(network, explained.inputs()[:1])[1])
        for network in (explained.network, explained.initial, explained.untrained)
    )
    assert (trained - initial).norm() < 0.5 * (trained - control).norm()


def test_a_recurrent_layer_is_drawn_after_and_before_training(subject, monkeypatch):
    figures = []
    monkeypatch.setattr(filters._draw, "to_png", lambda figure: figures.append(figure) or b"")
    monkeypatch.setattr(filters, "MAX_UNITS", 6)
    explanation = filters.explain(subject("rnn"))
    assert len(set(explanation.figures["units"])) == 6
    assert "the 6 of 16 units that training changed most" in explanation.pictures[0].caption
    labels = [axes.get_ylabel() for axes in figures[0].axes]
    assert [label for label in labels if label] == ["unit, after training", "unit, before training"]
    units = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert units == [str(n) for n in explanation.figures["units"]]
