"""A filter that is drawn is one that the first layer computes with: laid on the image, it gives the layer's own
weighted sum."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnx.explain import filters
from nnx.models._first_layer import as_images, first_layer, input_weights


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
    assert "under red" in gray.reading
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
