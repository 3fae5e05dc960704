"""Floating-point operations of each layer compared with counts by hand: two for each multiply-add."""

import pytest

from nnx import models
from nnx.config import registry
from nnx.preprocessing.spec import Spec

TEN = tuple("0123456789")


def spec(*shape):
    return Spec(shape, TEN, (0.0,) * shape[0], (1.0,) * shape[0])


def flops(name, *shape, **settings):
    return models.flops(registry.find("model", name)(**settings), spec(*shape), 10)


def test_mlp():
    assert flops("mlp", 1, 8, 8, hidden=[30, 20], norm="batch", dropout=0.1) == {
        "": 2 * (64 * 30 + 30 * 20 + 20 * 10),
        **{f"layers.{n}": 0 for n in range(10)},
        "layers.1": 2 * 64 * 30,
        "layers.5": 2 * 30 * 20,
        "layers.9": 2 * 20 * 10,
    }


def test_cnn():
    counts = flops("cnn", 3, 12, 10, channels=[4, 6], kernel=[5, 3], depth=2, residual=True, hidden=[7])
    first = 2 * 12 * 10 * (5 * 5 * 3 * 4 + 3 * 4)  # its 1 x 1 skip is also computed before pooling
    assert counts["stages.0"] == first
    assert counts["stages.1"] == 2 * 6 * 5 * 5 * 5 * 4 * 4
    assert counts["stages.2"] == 2 * 6 * 5 * (3 * 3 * 4 * 6 + 4 * 6)
    assert counts["stages.3"] == 2 * 3 * 2 * 3 * 3 * 6 * 6
    assert (counts["head.1"], counts["head.3"]) == (2 * 6 * 3 * 2 * 7, 2 * 7 * 10)


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("directions", [1, 2])
def test_rnn(cell, gates, directions):
    counts = flops("rnn", 1, 9, 8, cell=cell, hidden=16, layers=2, bidirectional=directions == 2)
    a_step = gates * 16 * ((8 + 16) + (16 * directions + 16)) * directions
    assert counts == {
        "": 2 * (9 * a_step + 16 * directions * 10),
        "recurrent": 2 * 9 * a_step,
        "dropout": 0,
        "output": 2 * 16 * directions * 10,
    }


@pytest.mark.parametrize("read", ["class_token", "mean"])
def test_transformer(read):
    counts = flops("transformer", 1, 8, 12, patch=4, width=24, heads=3, depth=2, mlp_ratio=2.0, read=read)
    T, D = 6 + (read == "class_token"), 24
    products = T * D * 3 * D + T * D * D + 2 * T * D * 2 * D
    attention = T * T * D + T * T * D  # q k^T, and its softmax times v, in all heads together
    assert counts["embed"] == 2 * 6 * 16 * D
    assert counts["blocks.0"] == counts["blocks.1"] == 2 * (products + attention)
    assert counts["output"] == 2 * D * 10


@pytest.mark.parametrize("name", registry.names("model"))
@pytest.mark.parametrize("shape", [(1, 28, 28), (13,)])
def test_layers_add_up_and_every_layer_with_weights_counts(name, shape):
    """Also for new architectures: torch would count nothing for a fused kernel."""
    if name == "cnn" and len(shape) == 1:
        pytest.skip("a cnn needs images")
    config = registry.find("model", name)()
    model = models.build(config, spec(*shape), 10)
    counts = models.flops(config, spec(*shape), 10)
    rows = models.layer_table(model, spec(*shape))
    assert sum(counts.get(row.name, 0) for row in rows) == counts[""]
    assert counts.keys() - {""} <= {row.name for row in rows}
    assert counts[""] >= 2 * models.multiply_adds(model, spec(*shape)) > 0
