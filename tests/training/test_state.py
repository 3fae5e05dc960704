"""The moving average of the weights against torch's own, and that a step's seed is its own."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nnx import config, models
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices
from nnx.training.state import State

SPEC = Spec((1, 8, 8), tuple("0123456789"), (0.5,), (0.3,))
CPU = devices.choose_runtime("cpu", "float32")


def made(*overrides):
    whole = config.from_dict({"dataset": "digits", "model": "cnn"}, "made", overrides)
    torch.manual_seed(0)
    return State.new(whole, models.build(whole.model, SPEC, 10), CPU, 10)


def move(state, n):
    """What a step does to weights and buffers, without the training."""
    torch.manual_seed(n)
    with torch.no_grad():
        for p in state.model.parameters():
            p += torch.randn_like(p)
    state.model(torch.randn(4, 1, 8, 8))  # batch normalisation counts
    state.begin_step()
    state.end_step(torch.tensor(0.0), 4)


def rising(decay):
    """torch's average with our rise of the decay, as its documentation has it."""

    def update(averaged, current, updates):
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, updates)

    return update


def test_the_moving_average_is_torchs():
    state = made("train.ema=0.5", "model.channels=[3]")
    oracle = AveragedModel(state.model, multi_avg_fn=rising(0.5))
    for n in range(20):
        move(state, n)
        oracle.update_parameters(state.model)
        for ours, theirs in zip(state.evaluated.parameters(), oracle.module.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours, current = dict(state.evaluated.named_buffers()), dict(state.model.named_buffers())
    counter, mean = "stages.0.norm.num_batches_tracked", "stages.0.norm.running_mean"
    assert ours[counter] == current[counter] == 20
    assert not torch.equal(ours[mean], current[mean])  # averaged too
    assert state.average.n_averaged == 20


def test_without_torchs_private_function_the_average_is_the_same(monkeypatch):
    averages = []
    for there in (True, False):
        if not there:
            monkeypatch.delattr(torch, "_foreach_lerp_")
        state = made("train.ema=0.9", "model.channels=[3]")
        for n in range(5):
            move(state, n)
        averages.append(list(state.evaluated.parameters()))
    torch.testing.assert_close(*averages)


def test_the_average_begins_as_the_first_steps_weights():
    state = made("train.ema=0.999", "model.channels=[3]")
    move(state, 0)
    for averaged, current in zip(state.evaluated.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(averaged, current)


def test_a_step_seeds_this_device_alone_and_depends_on_nothing_before():
    state = made()
    state.begin_step()
    first = torch.rand(3)
    torch.rand(100)
    state.begin_step()
    assert torch.equal(torch.rand(3), first)
    state.step = 1
    state.begin_step()
    assert not torch.equal(torch.rand(3), first)
