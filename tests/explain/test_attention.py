"""The attention that is drawn is the one that the network computes with."""

import numpy as np
import pytest
import torch

from nnx import explain, models
from nnx.config import registry
from nnx.explain import attention
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
