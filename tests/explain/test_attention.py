"""The attention that is drawn is the one that the network computes with."""

import numpy as np
import pytest
import torch

from nnx import explain, models
from nnx.config import registry
from nnx.explain import activations, attention, filters
from nnx.preprocessing.spec import Spec

SPEC = Spec((1, 8, 8), tuple("0123456789"), (0.0,), (1.0,))


def network(read):
    torch.manual_seed(0)
    made = models.build(registry.find("model", "transformer")(patch=2, width=24, depth=3, heads=3, read=read), SPEC, 10)
    with torch.no_grad():
        for block in made.blocks:
            block.qkv.weight *= 4  # far from uniform
    return made.double().eval(), torch.randn(5, 1, 8, 8, dtype=torch.float64)


def fused(made, x):
    """Of each block: the values (N, heads, T, d), and what torch's fused attention made of them (N, heads, T, d), as
    the network runs."""
    recorded = []
    for block in made.blocks:
        block.qkv.register_forward_hook(lambda module, _, out: recorded.append(out))
        block.project.register_forward_pre_hook(lambda module, args: recorded.append(args[0]))
    with torch.no_grad():
        made(x)
    d = made.blocks[0].qkv.in_features // made.blocks[0].heads
    heads = [(qkv.chunk(3, -1)[2], y) for qkv, y in zip(recorded[::2], recorded[1::2], strict=True)]
    return [tuple(each.unflatten(2, (-1, d)).transpose(1, 2) for each in pair) for pair in heads]


@pytest.mark.parametrize("read", ["mean", "class_token"])
def test_attention_times_values_is_what_the_fused_attention_gives(read):
    made, x = network(read)
    maps = attention.attention(made, x)
    assert len(maps) == 3
    for A, (v, y) in zip(maps, fused(made, x), strict=True):
        assert A.shape == (5, 3, v.shape[2], v.shape[2])
        assert A.std() > 0.05, "the control: it is not uniform, where any order of tokens would pass"
        torch.testing.assert_close(A.sum(-1), torch.ones_like(A.sum(-1)))
        torch.testing.assert_close(A @ v, y, rtol=0, atol=1e-12)
        assert (A.mT @ v - y).abs().max() > 1e-2, "the control: looked at and looking exchanged"
        assert (A.roll(1, 1) @ v - y).abs().max() > 1e-2, "the control: heads exchanged"


def test_so_it_is_in_a_trained_network_in_float32(subject):
    explained = subject("transformer")
    maps = attention.attention(explained.network, explained.inputs())
    again = explain.build_subject(
        explained.checkpoint, explained.data, explained.images, explained.names
    )  # whose hooks stay
    for A, (v, y) in zip(maps, fused(again.network, explained.inputs()), strict=True):
        torch.testing.assert_close(A @ v, y, rtol=0, atol=1e-6)


def test_the_rollout_is_the_product_as_it_is_defined():
    made, x = network("class_token")
    maps = [A.numpy().astype(np.float64) for A in attention.attention(made, x)]
    rolled = attention.rollout(maps)
    for n in range(len(x)):
        expected = np.eye(maps[0].shape[-1])
        for A in maps:
            mixed = A[n].mean(0) + np.eye(len(expected))
            expected = mixed / mixed.sum(1, keepdims=True) @ expected
        np.testing.assert_allclose(rolled[n], expected, atol=1e-12)
    np.testing.assert_allclose(rolled.sum(-1), 1)


def test_the_rollout_of_what_is_known():
    T = 4
    alone, all_alike = np.eye(T)[None, None], np.full((1, 1, T, T), 1 / T)
    np.testing.assert_allclose(attention.rollout([alone] * 3)[0], np.eye(T))
    np.testing.assert_allclose(attention.rollout([all_alike] * 50)[0], np.full((T, T), 1 / T), atol=1e-9)


def test_figures_of_heads_whose_answer_is_known(subject):
    explained = subject("transformer")  # patches of 2 pixels: 4 x 4 of them
    alone, all_alike = np.eye(16)[None], np.full((1, 16, 16), 1 / 16)
    assert attention._statistics(alone, explained) == pytest.approx({"entropy": 0, "distance": 0}, abs=1e-9)
    y, x = np.divmod(np.arange(16), 4)
    apart = np.hypot(y[:, None] - y, x[:, None] - x).mean() * 2
    assert attention._statistics(all_alike, explained) == pytest.approx({"entropy": 1, "distance": apart})


# ---------------------------------------------------------------- labels and scales


def drawn(explained, module, name, monkeypatch):
    figures = []
    monkeypatch.setattr(module._draw, "to_png", lambda figure: figures.append(figure) or b"")
    list(explain.explain(explained, [name]))
    return figures


def texts(figure, axis):
    return [text.get_text() for axes in figure.get_axes() for text in getattr(axes, f"get_{axis}ticklabels")()]


def labels(figure, axis):
    return [getattr(axes, f"get_{axis}label")() for axes in figure.get_axes()]


def test_maps_of_attention_have_a_scale_and_the_names_of_their_layers(subject, monkeypatch):
    *_, heads, rolled = drawn(subject("transformer"), attention, "attention", monkeypatch)
    assert "attention rollout" in labels(rolled, "y")
    assert "attention" in labels(heads, "y")
    assert {"0", "max"} <= set(texts(heads, "y"))
    assert [label for label in labels(heads, "y") if "Layer" in label] == [
        "Layer 2\nattention block",
        "Layer 3\nattention block",
    ]


def test_bars_of_a_table_have_names_and_numbers(table_subject, monkeypatch):
    explained = table_subject("transformer")
    *_, heads, rolled = drawn(explained, attention, "attention", monkeypatch)
    for figure in (rolled, heads):
        assert set(explained.features) <= set(texts(figure, "x"))
        assert any(text.startswith("0.") for text in texts(figure, "y"))


def test_token_activations_have_positions_and_a_scale_for_each_block(subject, table_subject, monkeypatch):
    [image] = drawn(subject("transformer"), activations, "activations", monkeypatch)
    assert labels(image, "x").count("token length") == 3, "the embedding and two blocks"
    assert any(label.startswith("patch column") for label in labels(image, "x"))
    assert "patch row" in labels(image, "y")
    [table] = drawn(table_subject("transformer"), activations, "activations", monkeypatch)
    assert set(table_subject("transformer").features) <= set(texts(table, "x"))


def test_positions_are_titled_by_row_and_column(subject, monkeypatch):
    figures = drawn(subject("transformer"), filters, "filters", monkeypatch)
    titles = [text.get_text() for text in figures[-1].get_axes()[0].texts]
    assert titles == [f"{row}, {column}" for row in range(4) for column in range(4)]
