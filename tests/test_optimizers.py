"""Optimizers compared with torch's; weight decay applies to weights only; the loss falls."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from nnx.config import registry
from nnx.optimizers import fast_step, parameter_groups

NAMES = registry.names("optimizer")

# name -> (settings for us, torch's class, its arguments for the same)
EQUAL = {
    "sgd": ({"lr": 0.05}, torch.optim.SGD, {"lr": 0.05}),
    "sgd, momentum": ({"lr": 0.05, "momentum": 0.9}, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "sgd, nesterov": (
        {"momentum": 0.8, "nesterov": True},
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
    ),
    "sgd, nesterov without momentum": ({"nesterov": True}, torch.optim.SGD, {"lr": 0.1}),
    "adam": ({}, torch.optim.Adam, {"lr": 1e-3}),
    "adam, told": (
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3},
        torch.optim.Adam,
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "adamw": ({"lr": 0.02}, torch.optim.AdamW, {"lr": 0.02}),
    "adamw, told": (
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3},
        torch.optim.AdamW,
        {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "nadam": ({}, torch.optim.NAdam, {"lr": 2e-3}),
    "nadam, told": (
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3},
        torch.optim.NAdam,
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "rmsprop": ({}, torch.optim.RMSprop, {"lr": 1e-3}),
    "rmsprop, told": (
        {"lr": 0.02, "alpha": 0.9, "momentum": 0.5, "eps": 1e-3},
        torch.optim.RMSprop,
        {"lr": 0.02, "alpha": 0.9, "momentum": 0.5, "eps": 1e-3},
    ),
    "adagrad": ({}, torch.optim.Adagrad, {"lr": 0.01}),
    "adagrad, told": ({"lr": 0.1, "eps": 1e-3}, torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-3}),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(108, 10),
        nn.LayerNorm(10),
        nn.Linear(10, 10),
    )


def digits():
    data = load_digits()
    return torch.tensor(data.images[:256, None] / 16, dtype=torch.float32), torch.tensor(data.target[:256])


def descend(model, optimizers, steps):
    inputs, labels = digits()
    losses = []
    for step in range(steps):
        part = slice(32 * step % 256, 32 * step % 256 + 32)
        loss = F.cross_entropy(model(inputs[part]), labels[part])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def build(name, model, **settings):
    return registry.find("optimizer", name)(**settings).build(model)


def assert_equal(one, two):
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


# ---------------------------------------------------------------- every optimizer


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_on_real_digits(name):
    model = network()
    losses = descend(model, build(name, model), 60)
    assert sum(losses[-8:]) / 8 < losses[0] * 0.85
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_it_minimises_a_quadratic(name):
    """|W - target|² of a matrix W, from a random start."""
    bowl = nn.Linear(4, 3, bias=True)
    torch.manual_seed(1)
    target = torch.randn(3, 4)
    optimizers = build(name, bowl, lr=0.05, weight_decay=0)
    first = None
    for _ in range(200):
        loss = (bowl.weight - target).square().mean() + (bowl.bias - 1).square().mean()
        first = first or loss.item()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < first / 10


@pytest.mark.parametrize("name", NAMES)
def test_only_weights_decay(name):
    """Where every gradient is zero, decay alone moves: weights shrink; biases and norms stay where they are, to the
    bit."""
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)  # biases begin at zero, where decay would not show
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in build(name, model, lr=1e-3, weight_decay=0.1):
        optimizer.step()
    for key, p in model.named_parameters():
        if p.ndim < 2:
            assert torch.equal(p, before[key]), key
        else:
            assert p.norm() < before[key].norm(), key


@pytest.mark.parametrize("name", NAMES)
def test_without_decay_nothing_changes_at_zero_gradient(name):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in build(name, model, weight_decay=0):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_is_in_one_group_once(name):
    model = network()
    model[0].weight.requires_grad_(False)  # frozen
    held = [id(p) for optimizer in build(name, model) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(
        group["lr"] == registry.find("optimizer", name)().lr
        for optimizer in build(name, model)
        for group in optimizer.param_groups
    )


# ---------------------------------------------------------------- each against torch's


def test_every_optimizer_is_compared():
    assert {key.split(",")[0] for key in EQUAL} | {"muon"} == set(NAMES)


@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_steps_are_torchs(case, decay):
    settings, kind, arguments = EQUAL[case]
    ours, theirs = network(), network()
    [optimizer] = build(case.split(",")[0], ours, weight_decay=decay, **settings)
    assert type(optimizer) is kind
    weights = [p for key, p in theirs.named_parameters() if key in ("0.weight", "4.weight", "6.weight")]
    others = [p for key, p in theirs.named_parameters() if key not in ("0.weight", "4.weight", "6.weight")]
    direct = kind(
        [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
        foreach=False,
        **arguments,
    )
    descend(ours, [optimizer], 6)
    descend(theirs, [direct], 6)
    assert_equal(ours, theirs)


def test_the_comparison_can_fail():
    """The control: the comparison detects another learning rate."""
    ours, theirs = network(), network()
    descend(ours, build("adam", ours, lr=1.1e-3), 6)
    descend(theirs, [torch.optim.Adam(theirs.parameters(), 1e-3)], 6)
    with pytest.raises(AssertionError):
        assert_equal(ours, theirs)


def test_muon_updates_matrices_and_adamw_the_rest():
    ours, theirs = network(), network()
    muon, rest = build("muon", ours, lr=0.01)
    assert [p.shape for group in muon.param_groups for p in group["params"]] == [(10, 108), (10, 10)]
    assert {p.ndim for group in rest.param_groups for p in group["params"]} == {1, 4}
    matrices = [theirs[4].weight, theirs[6].weight]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    direct = [
        torch.optim.Muon(
            matrices, 0.01, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [{"params": [theirs[0].weight], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], 0.01
        ),
    ]
    descend(ours, [muon, rest], 6)
    descend(theirs, direct, 6)
    assert_equal(ours, theirs)


def test_muon_without_a_rest_is_one_optimizer():
    assert len(build("muon", nn.Linear(3, 3, bias=False))) == 1


def test_parameter_groups():
    model = network()
    weights, others = parameter_groups(model, 0.3)
    assert (weights["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert [p.ndim for p in weights["params"]] == [4, 2, 2]
    assert {p.ndim for p in others["params"]} == {1}
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1, "no empty group"


# ---------------------------------------------------------------- the step at less cost


@pytest.mark.parametrize("case", EQUAL)
def test_the_fast_step_is_bit_identical_to_torchs(case):
    """Also after its state was loaded, and where a parameter had no gradient for a while."""
    settings, _, _ = EQUAL[case]
    config = registry.find("optimizer", case.split(",")[0])(**settings)
    inputs, labels = digits()
    ours, theirs = network(), network()
    own, (public,) = config.build(ours), config.build(theirs)
    move = fast_step(own[0])
    for step in range(12):
        if step == 6:
            saved = own[0].state_dict()
            own = config.build(ours)
            own[0].load_state_dict(saved)
            move = fast_step(own[0])
        for model, go in ((ours, move), (theirs, public.step)):
            F.cross_entropy(model(inputs), labels).backward()
            if step in (3, 4):
                model[4].bias.grad = None
            go()
            model.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_torchs_kernel_the_fast_step_is_the_public_step(monkeypatch):
    monkeypatch.delattr(torch, "_fused_adam_")
    model = network()
    (adam,) = registry.find("optimizer", "adam")().build(model)
    before = [p.clone() for p in model.parameters()]
    inputs, labels = digits()
    F.cross_entropy(model(inputs), labels).backward()
    with pytest.raises(
        AttributeError, match="_fused_adam_"
    ):  # torch's step needs it too: it was torch's step that was called
        fast_step(adam)()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
