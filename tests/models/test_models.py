"""Tests over every architecture and kind of input, which include new files automatically; then tests of each one."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from nnx import models
from nnx.config import registry
from nnx.errors import ConfigError
from nnx.models import _layers, transformer
from nnx.preprocessing.spec import Spec

NAMES = registry.names("model")
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (13,)]
TEN = tuple("0123456789")
SMALL = {"transformer": {"patch": 4, "width": 32, "depth": 2}}  # 4 divides 8, 28 and 32


def spec(shape):
    channels = shape[0]
    return Spec(shape, TEN, (0.0,) * channels, (1.0,) * channels)


def config(name, **settings):
    return registry.find("model", name)(**{**SMALL.get(name, {}), **settings})


def build(name, shape=(1, 8, 8), seed=0, outputs=10, **settings):
    torch.manual_seed(seed)
    return models.build(config(name, **settings), spec(shape), outputs)


def inputs(shape, B=6, seed=1):
    """(B, *shape) random inputs with mean 0 and standard deviation 1, like normalised data."""
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed))


def digits():
    data = load_digits()
    return torch.tensor((data.images[:512, None] - 4.9) / 6, dtype=torch.float32), torch.tensor(data.target[:512])


EVERY = [(name, shape) for name in NAMES for shape in SHAPES if (name, len(shape)) != ("cnn", 1)]

# Every option of every architecture, on 8x8 digits
VARIANTS = [
    *[
        ("mlp", {"hidden": [16], "norm": norm, "dropout": dropout})
        for norm in ("none", "batch", "layer")
        for dropout in (0, 0.3)
    ],
    ("mlp", {"hidden": []}),
    ("mlp", {"hidden": [16] * 20, "norm": "layer"}),
    *[
        ("cnn", {"channels": [4, 6], "norm": norm, "residual": residual})
        for norm in ("none", "batch")
        for residual in (False, True)
    ],
    *[
        ("cnn", {"channels": [4, 6], "pool": pool, "head": head})
        for pool in ("max", "average", "none")
        for head in ("flatten", "average")
    ],
    *[
        ("cnn", {"channels": [4, 6], "pool": ["stride", "none"], "kernel": kernel, "padding": padding})
        for kernel in (3, [4, 3])
        for padding in ("same", "valid")
    ],
    ("cnn", {"channels": [4, 6], "pool": ["none", "max"], "kernel": [3, 2], "padding": "valid"}),
    ("cnn", {"channels": [4], "pool": "none", "padding": "valid", "depth": 3}),
    ("cnn", {"channels": [4], "depth": 3, "kernel": 4, "hidden": [8, 8], "dropout": 0.3, "residual": True}),
    *[
        ("rnn", {"hidden": 12, "cell": cell, "bidirectional": both})
        for cell in ("rnn", "lstm", "gru")
        for both in (False, True)
    ],
    ("rnn", {"hidden": 12, "layers": 3, "read": "mean", "dropout": 0.3, "bidirectional": True}),
    *[
        ("transformer", {"read": read, "positions": positions, "dropout": 0.1})
        for read in ("class_token", "mean")
        for positions in ("learned", "sincos")
    ],
    ("transformer", {"width": 12, "heads": 3, "depth": 1, "mlp_ratio": 0.5, "patch": 8, "read": "mean"}),
]


# ---------------------------------------------------------------- every architecture, every input


@pytest.mark.parametrize(("name", "shape"), EVERY)
@pytest.mark.parametrize("outputs", [1, 10])
def test_shapes(name, shape, outputs):
    model = build(name, shape, outputs=outputs)
    for B in (1, 6):
        logits = model.eval()(inputs(shape, B))
        assert logits.shape == (B, outputs)
        assert logits.dtype == torch.float32


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_every_parameter_learns(name, shape):
    model = build(name, shape).train()
    F.cross_entropy(model(inputs(shape, 16)), torch.arange(16) % 10).backward()
    unchanged = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert not unchanged


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_the_seed_decides_the_weights(name, shape):
    one, two, other = build(name, shape, seed=0), build(name, shape, seed=0), build(name, shape, seed=1)
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    assert not all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_the_first_loss_is_that_of_guessing(name, shape):
    x = inputs(shape, 64)
    losses = [F.cross_entropy(build(name, shape, seed=seed)(x), torch.arange(64) % 10).item() for seed in range(5)]
    assert abs(sum(losses) / 5 - math.log(10)) < 1, losses
    assert max(losses) < math.log(10) + 1.5, losses


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_the_table_adds_up(name, shape):
    model = build(name, shape).train()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    rows = models.layer_table(model, spec(shape))
    assert (
        sum(row.parameters for row in rows)
        == models.count_parameters(model)
        == sum(p.numel() for p in model.parameters())
    )
    assert rows[-1].shape == (10,)
    assert all(row.name and row.kind for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    assert model.training, "the model is unchanged"
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert not any(module._forward_hooks for module in model.modules())


# ---------------------------------------------------------------- every architecture, every option


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_in_evaluation_the_logits_of_a_sample_depend_on_it_alone(name, settings):
    model = build(name, **settings)
    x = inputs((1, 8, 8), 12)
    model.train()(x)  # changes the running statistics of batch norms from their initial values
    model.eval()
    with torch.no_grad():
        whole = model(x)
        assert torch.equal(model(x), whole), "no randomness"
        torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(12)]), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x.flip(0)), whole.flip(0), rtol=1e-4, atol=1e-5)
    assert whole.std(0).min() > 1e-4, "the control: samples differ"


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_dropout_is_active_only_in_training(name, settings):
    model, x = build(name, **settings).train(), inputs((1, 8, 8))
    assert torch.equal(model(x), model(x)) == (not settings.get("dropout"))


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_every_parameter_has_a_finite_gradient(name, settings):
    model = build(name, **settings).train()
    model(inputs((1, 8, 8), 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    rows = models.layer_table(model, spec((1, 8, 8)))
    assert sum(row.parameters for row in rows) == models.count_parameters(model)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_real_digits(name):
    small = {"mlp": {"hidden": [32]}, "cnn": {"channels": [8, 16]}, "rnn": {"hidden": 32}, "transformer": {"patch": 2}}
    model = build(name, **small.get(name, {})).train()
    images, labels = digits()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(80):
        index = torch.randint(len(images), (64,), generator=generator)
        loss = F.cross_entropy(model(images[index]), labels[index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] / 2


# ---------------------------------------------------------------- errors name the sizes that work


@pytest.mark.parametrize(
    ("name", "shape", "settings", "key", "words"),
    [
        ("transformer", (1, 28, 28), {"width": 64, "heads": 5}, "model.heads", "these do: 1, 2, 4, 8, 16, 32, 64"),
        ("transformer", (1, 28, 28), {"patch": 5}, "model.patch", "these do: 1, 2, 4, 7, 14, 28"),
        ("transformer", (1, 28, 20), {"patch": 7}, "model.patch", "these do: 1, 2, 4"),
        ("transformer", (1, 8, 8), {"patch": 16}, "model.patch", "these do: 1, 2, 4, 8"),
        (
            "transformer",
            (1, 28, 28),
            {"width": 30, "heads": 5, "positions": "sincos"},
            "model.width",
            "divisible by 4, not 30; e.g. 32",
        ),
        ("cnn", (1, 8, 8), {"channels": [4] * 4}, "model.channels", "at most 3 stages, or pool: none"),
        ("cnn", (1, 28, 28), {"channels": [4] * 5}, "model.channels", "at most 4 stages"),
        (
            "cnn",
            (1, 8, 8),
            {"channels": [4] * 5, "padding": "valid", "pool": "none"},
            "model.channels",
            "at most 3 stages, or pool: none and padding: same",
        ),
        (
            "cnn",
            (1, 8, 8),
            {"channels": [4] * 2, "kernel": [3] * 3},
            "model.kernel",
            "has 3 values, model.channels has 2 stages",
        ),
        (
            "cnn",
            (1, 8, 8),
            {"channels": [4] * 2, "pool": ["max"] * 3},
            "model.pool",
            "has 3 values, model.channels has 2 stages",
        ),
        ("cnn", (1, 8, 8), {"residual": True, "padding": "valid"}, "model.residual", "make smaller"),
        ("cnn", (1, 8, 8), {"residual": True, "pool": ["stride", "max"]}, "model.residual", "make smaller"),
        ("cnn", (13,), {}, "model.name", "use mlp, rnn or transformer"),
    ],
)
def test_sizes_that_cannot_work(name, shape, settings, key, words):
    with pytest.raises(ConfigError) as caught:
        build(name, shape, **settings)
    [problem] = caught.value.problems
    assert problem.key == key
    assert words in problem.message


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        *[
            ("transformer", (1, 28, 28), {"width": 64, "depth": 1, "heads": heads})
            for heads in (1, 2, 4, 8, 16, 32, 64)
        ],
        *[("transformer", (1, 28, 28), {"depth": 1, "patch": patch}) for patch in (4, 7, 14, 28)],
        ("transformer", (1, 28, 28), {"width": 32, "depth": 1, "heads": 4, "positions": "sincos"}),
        ("cnn", (1, 8, 8), {"channels": [4] * 3}),
        ("cnn", (1, 8, 8), {"channels": [4] * 9, "pool": "none"}),
        ("cnn", (1, 28, 28), {"channels": [4] * 4}),
    ],
    ids=str,
)
def test_sizes_that_the_messages_suggest_work(name, shape, settings):
    assert build(name, shape, **settings)(inputs(shape)).shape == (6, 10)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mlp", {"hidden": [65_536] * 100}),
        ("cnn", {"channels": [65_536] * 2, "kernel": 63}),
        ("rnn", {"hidden": 65_536, "layers": 30}),
        ("transformer", {"width": 65_536, "depth": 100}),
    ],
)
def test_models_larger_than_memory_are_refused(name, settings):
    with pytest.raises(ConfigError, match=r"model: [\d,]+ parameters take [\d,]+ GiB .*make it narrower or shallower"):
        build(name, **settings)


def test_a_width_of_ten_to_the_twelve_is_out_of_range():
    with pytest.raises(ValueError, match="less than or equal to 65536"):
        config("mlp", hidden=[10**12])


# ---------------------------------------------------------------- mlp


@pytest.mark.parametrize("name", _layers.activations())
def test_an_activation_is_torchs_function_of_that_name(name):
    x = torch.linspace(-4, 4, 101)
    arguments = (torch.tensor([0.25]),) if name == "prelu" else ()
    torch.testing.assert_close(_layers.activation(name).eval()(x), getattr(F, name)(x, *arguments))


@pytest.mark.parametrize("name", _layers.activations())
def test_mlp_with_each_activation(name):
    model = build("mlp", hidden=[32, 32], activation=name).train()
    F.cross_entropy(model(inputs((1, 8, 8), 16)), torch.arange(16) % 10).backward()
    assert all(p.grad.abs().max() > 0 and p.grad.isfinite().all() for p in model.parameters())
    assert build("cnn", channels=[4], activation=name)(inputs((1, 8, 8))).isfinite().all()


def test_mlp_is_matrices_and_relus():
    model = build("mlp", hidden=[16, 12])
    x = inputs((1, 8, 8))
    W1, b1, W2, b2, W3, b3 = model.parameters()
    hidden = ((x.flatten(1) @ W1.T + b1).clamp(min=0) @ W2.T + b2).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ W3.T + b3)
    assert [tuple(p.shape) for p in (W1, W2, W3)] == [(16, 64), (12, 16), (10, 12)]


@pytest.mark.parametrize(
    ("activation", "gain"), [("relu", math.sqrt(2)), ("tanh", 1.0), ("gelu", math.sqrt(2)), ("selu", 1.0)]
)
def test_initial_weights_have_the_scale_for_their_activation(activation, gain):
    model = build("mlp", (1, 28, 28), hidden=[512, 512], activation=activation)
    first, _, second, _, last, _ = model.parameters()
    for weight, expected in ((first, gain / 28), (second, gain / math.sqrt(512)), (last, 1 / math.sqrt(512))):
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not any(p.any() for p in model.parameters() if p.ndim == 1)


# ---------------------------------------------------------------- cnn


def test_cnn_is_convolutions_and_pools():
    model = build("cnn", channels=[3, 5], norm="none", kernel=3)
    x = inputs((1, 8, 8))
    W1, b1, W2, b2, W3, b3 = model.parameters()
    y = F.max_pool2d(F.conv2d(x, W1, b1, padding=1).relu(), 2)
    y = F.max_pool2d(F.conv2d(y, W2, b2, padding=1).relu(), 2)
    torch.testing.assert_close(model(x), y.flatten(1) @ W3.T + b3)


def test_a_residual_block_adds_its_input():
    model = build("cnn", channels=[4], depth=2, norm="none", residual=True, pool="none")
    first, second = model.stages
    x = inputs((1, 8, 8))
    y = (first.conv(x) + F.conv2d(x, first.skip.weight)).relu()
    torch.testing.assert_close(first(x), y)
    torch.testing.assert_close(second(y), (second.conv(y) + y).relu())


# ---------------------------------------------------------------- rnn


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 6), (13,)])
def test_the_last_state_is_torchs_own(cell, layers, both, shape):
    """torch's `h_n` is the state of each direction after its last step."""
    model = build("rnn", shape, cell=cell, hidden=7, layers=layers, bidirectional=both).eval()
    x = inputs(shape)
    rows = torch.stack([x[:, :, row].reshape(6, -1) for row in range(8)], 1) if len(shape) == 3 else x[:, :, None]
    _, last = model.recurrent(rows)
    h_n = last[0] if cell == "lstm" else last
    summary = torch.cat([h_n[-2], h_n[-1]], 1) if both else h_n[-1]
    torch.testing.assert_close(model(x), model.output(summary))


def test_the_mean_is_of_all_states():
    model = build("rnn", cell="gru", hidden=7, read="mean").eval()
    x = inputs((1, 8, 8))
    torch.testing.assert_close(model(x), model.output(model.recurrent(x[:, 0])[0].mean(1)))


def test_recurrent_weights_start_orthogonal_and_the_forget_gate_open():
    model = build("rnn", cell="lstm", hidden=16)
    for gate in model.recurrent.weight_hh_l0.detach().split(16):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
    bias = (model.recurrent.bias_ih_l0 + model.recurrent.bias_hh_l0).detach()
    assert bias.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


# ---------------------------------------------------------------- transformer


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_an_explicit_softmax(heads):
    torch.manual_seed(0)
    block = transformer.Block(transformer.Config(width=12, heads=heads)).eval()
    x = torch.randn(2, 5, 12)
    q, k, v = (x @ W.T + b for W, b in zip(block.qkv.weight.split(12), block.qkv.bias.split(12), strict=True))
    width, parts_of_y = 12 // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        powers = scores.exp()
        parts_of_y.append((powers / powers.sum(-1, keepdim=True)) @ v[..., part])
    attended = torch.cat(parts_of_y, -1) @ block.project.weight.T + block.project.bias
    torch.testing.assert_close(block.attention(x), attended, rtol=1e-4, atol=1e-5)


def test_a_block_is_torchs_pre_norm_layer():
    torch.manual_seed(0)
    block = transformer.Block(transformer.Config(width=12, heads=3, mlp_ratio=2)).eval()
    theirs = nn.TransformerEncoderLayer(12, 3, 24, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    pairs = [
        *[(theirs.self_attn.in_proj_weight, block.qkv.weight), (theirs.self_attn.in_proj_bias, block.qkv.bias)],
        *[(theirs.self_attn.out_proj, block.project), (theirs.linear1, block.mlp[0]), (theirs.linear2, block.mlp[2])],
    ]
    with torch.no_grad():
        for to, of in pairs:
            if isinstance(to, nn.Linear):
                to.load_state_dict(of.state_dict())
            else:
                to.copy_(of)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_tokens_are_the_patches_from_left_to_right_and_down():
    model = build("transformer", (2, 8, 12), patch=4)
    x = inputs((2, 8, 12))
    patches = [x[:, :, row : row + 4, column : column + 4].flatten(1) for row in (0, 4) for column in (0, 4, 8)]
    assert torch.equal(model.tokens(x), torch.stack(patches, 1))


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 16), (13,)])
@pytest.mark.parametrize("read", ["class_token", "mean"])
def test_sincos_positions_are_distinct(shape, read):
    model = build("transformer", shape, positions="sincos", read=read)
    table = model.positions[0]
    assert len(table) == (math.prod(shape[1:]) // 16 if len(shape) == 3 else 13) + (read == "class_token")
    distance = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert distance.min() > 0.3
    assert table.abs().max() <= 1
    assert "positions" not in model.state_dict(), "a function of the config is not saved"


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_without_positions_the_order_of_patches_has_no_effect(positions):
    """Swapping two patches changes the logits, except with positions of zero: attention ignores the order."""
    model = build("transformer", positions=positions, read="mean", patch=4).eval()
    x = inputs((1, 8, 8))
    swapped = torch.cat([x[:, :, 4:], x[:, :, :4]], 2)
    with torch.no_grad():
        assert (model(x) - model(swapped)).abs().max() > 1e-4
        model.positions.zero_()
        torch.testing.assert_close(model(x), model(swapped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [1, 17, transformer.FEW_TOKENS + 1, transformer.FEW_TOKENS_BFLOAT16 + 1])
def test_attention_is_torchs(dtype, tolerance, tokens):
    q, k, v = torch.randn(3, 2, 4, tokens, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = F.scaled_dot_product_attention(q, k, v)
    found = transformer.attention(q.to(dtype), k.to(dtype), v.to(dtype), 0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("tokens", [17, transformer.FEW_TOKENS + 1])
def test_attention_drops_weights(tokens):
    q, k = torch.randn(2, 64, 4, tokens, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    sums = transformer.attention(q, k, torch.ones_like(q), 0.5)  # of the weights, which are 1 without dropout
    assert sums.std() > 0.1
    assert abs(sums.mean() - 1) < 0.05
