"""Layer outputs equal those of the layers themselves, for any architecture."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnx import models
from nnx.config import registry
from nnx.models import _layer_outputs
from nnx.preprocessing.spec import Spec

SPEC = Spec((1, 8, 8), tuple("0123456789"), (0.0,), (1.0,))


def build(name, **settings):
    torch.manual_seed(0)
    network = models.build(registry.find("model", name)(**settings), SPEC, 10)
    x = torch.randn(7, 1, 8, 8)
    network.train()(x)  # changes the running statistics of batch norms from their initial values
    return network.eval(), x


@pytest.mark.parametrize(
    ("name", "settings", "shapes"),
    [
        ("mlp", {"hidden": [12, 6]}, {"layers.1": (12,), "layers.3": (6,)}),
        ("mlp", {"hidden": [12], "norm": "batch", "dropout": 0.5}, {"layers.1": (12,)}),
        ("mlp", {"hidden": []}, {}),
        (
            "cnn",
            {"channels": [4, 6], "hidden": [5], "dropout": 0.5},
            {"stages.0": (4, 4, 4), "stages.1": (6, 2, 2), "head.2": (5,)},
        ),
        ("cnn", {"channels": [4], "depth": 2, "head": "average"}, {"stages.0": (4, 4, 4), "stages.1": (4, 4, 4)}),
        ("rnn", {"hidden": 9, "cell": "gru"}, {"recurrent": (8, 9)}),
        ("rnn", {"hidden": 9, "layers": 2, "bidirectional": True, "read": "mean"}, {"recurrent": (8, 18)}),
        (
            "transformer",
            {"patch": 4, "width": 8, "depth": 2},
            {"embed": (4, 8), "blocks.0": (5, 8), "blocks.1": (5, 8)},
        ),
        ("transformer", {"patch": 4, "width": 8, "depth": 1, "read": "mean"}, {"embed": (4, 8), "blocks.0": (4, 8)}),
    ],
)
def test_layers_group_operations_as_people_do(name, settings, shapes):
    network, x = build(name, **settings)
    outputs = _layer_outputs.layer_outputs(network, x)
    assert {key: tuple(value.shape[1:]) for key, value in outputs.items()} == {**shapes, _layer_outputs.LOGITS: (10,)}
    assert torch.equal(outputs[_layer_outputs.LOGITS], network(x))
    assert set(_layer_outputs.layer_modules(network, x)) == set(shapes)
    assert not any(module._forward_hooks for module in network.modules())


def test_outputs_are_the_layers_own():
    mlp, x = build("mlp", hidden=[12, 6], norm="layer", dropout=0.5)
    one, norm = mlp.layers[1], mlp.layers[2]
    torch.testing.assert_close(_layer_outputs.layer_outputs(mlp, x)["layers.1"], F.relu(norm(one(x.flatten(1)))))
    cnn, x = build("cnn", channels=[4, 6])
    torch.testing.assert_close(_layer_outputs.layer_outputs(cnn, x)["stages.1"], cnn.stages(x))
    rnn, x = build("rnn", hidden=9)
    torch.testing.assert_close(_layer_outputs.layer_outputs(rnn, x)["recurrent"], rnn.recurrent(x[:, 0])[0])
    transformer, x = build("transformer", patch=4, width=8, depth=1, read="mean")
    with_place = transformer.embed(transformer.tokens(x)) + transformer.positions
    torch.testing.assert_close(
        _layer_outputs.layer_outputs(transformer, x)["embed"], with_place, msg="positions are added"
    )
    torch.testing.assert_close(
        _layer_outputs.layer_outputs(transformer, x)["blocks.0"], transformer.blocks[0](with_place)
    )


def test_many_samples_are_split_into_batches(monkeypatch):
    network, x = build("mlp", hidden=[12])
    whole = _layer_outputs.layer_outputs(network, x)
    monkeypatch.setattr(_layer_outputs, "MAX_SAMPLES", 3)
    for key, value in _layer_outputs.layer_outputs(network, x).items():
        torch.testing.assert_close(value, whole[key])


def test_an_unknown_architecture():
    class Maxout(nn.Module):
        def __init__(self):
            super().__init__()
            self.sums, self.unused, self.output = nn.Linear(64, 12), nn.Linear(3, 3), nn.Linear(4, 10)

        def forward(self, x):
            return self.output(self.sums(x.flatten(1)).unflatten(1, (-1, 3)).amax(2))

    network = Maxout().eval()
    x = torch.randn(2, 1, 8, 8)
    outputs = _layer_outputs.layer_outputs(network, x)
    assert list(outputs) == ["sums", _layer_outputs.LOGITS]
    assert torch.equal(outputs["sums"], network.sums(x.flatten(1)))


@pytest.mark.parametrize(
    ("shape", "tokens", "places"),
    [
        ((1, 28, 28), 16, (4, 4, 0)),
        ((1, 28, 28), 17, (4, 4, 1)),
        ((3, 32, 16), 32, (8, 4, 0)),
        ((1, 28, 28), 15, None),
        ((13,), 13, (1, 13, 0)),
        ((13,), 14, (1, 13, 1)),
        ((13,), 15, None),
    ],
)
def test_patch_grid(shape, tokens, places):
    assert _layer_outputs.patch_grid(Spec(shape, ("a", "b"), (0.0,) * shape[0], (1.0,) * shape[0]), tokens) == places


# ---------------------------------------------------------------- one naming of layers


@pytest.mark.parametrize(
    ("name", "settings", "titles"),
    [
        ("mlp", {"hidden": [12, 6]}, ["Layer 1: linear, 12 units (layers.1)", "Layer 2: linear, 6 units (layers.3)"]),
        (
            "cnn",
            {"channels": [4, 6], "hidden": [5], "kernel": [5, 3], "residual": True},
            [
                "Layer 1: conv 5×5, 4 filters (stages.0)",
                "Layer 2: conv 3×3, 6 filters (stages.1)",
                "Layer 3: linear, 5 units (head.1)",
            ],
        ),
        ("rnn", {"hidden": 9, "cell": "gru"}, ["Layer 1: GRU, 9 units (recurrent)"]),
        (
            "rnn",
            {"hidden": 9, "cell": "rnn", "layers": 2, "bidirectional": True},
            ["Layer 1: RNN, 9 units, 2 layers, both directions (recurrent)"],
        ),
        (
            "transformer",
            {"patch": 4, "width": 8, "depth": 1, "heads": 2},
            [
                "Layer 1: embedding, 8 numbers per token (embed)",
                "Layer 2: attention block, 2 heads, 8 numbers per token (blocks.0)",
            ],
        ),
    ],
)
def test_titles_number_the_layers_and_say_what_they_are(name, settings, titles):
    network, x = build(name, **settings)
    titled = _layer_outputs.layer_titles(network, x[:1])
    assert list(titled.values()) == ["Input", *titles, "Output: 10 logits"]
    assert list(titled) == ["input", *_layer_outputs.layer_outputs(network, x)]


def test_short_titles_keep_the_number_and_the_kind():
    titles = ["Input", "Layer 1: conv 3×3, 16 filters (stages.0)", "Layer 2: GRU, 9 units (r)", "Output: 10 logits"]
    short = [_layer_outputs.short_title(title) for title in titles]
    assert short == ["Input", "Layer 1: conv 3×3", "Layer 2: GRU", "Output"]
