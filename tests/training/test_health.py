"""Health checks: the figures against other code, each problem provoked, no warning without one, and no bit changed."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from nnx import config, models
from nnx.datasets import Split
from nnx.events import Epoch, Finished, Health, Started
from nnx.loader.batches import BatchLoader
from nnx.preprocessing.spec import Spec
from nnx.run.pipeline import run
from nnx.system import device as devices
from nnx.terminal import train
from nnx.training import health
from nnx.training.health import HealthMonitor, probe_size
from nnx.training.loop import backpropagation, train_step
from nnx.training.state import State

CPU = devices.choose_runtime("cpu", "float32")
RECIPES = {
    "digits_mlp": 40,
    "digits_cnn": 8,
    "digits_rnn": 6,
    "digits_transformer": 5,
}  # and epochs: with their schedules, from start to end


def watched(recipe, *settings, out):
    """The Healths of a run."""
    events = list(run(config.load(recipe, settings), out=out, watch=True))
    assert isinstance(events[-1], Finished)
    return [event for event in events if isinstance(event, Health)]


def warnings_of(events):
    return [warning for event in events for warning in event.warnings]


def made(*settings, shape=(12,), classes=5, seed=0):
    """A state before its first step, on data of noise."""
    chosen = config.load("digits_mlp", ["model.hidden=[16, 8]", "train.ema=null", "schedule=constant", *settings])
    torch.manual_seed(seed)
    spec = Spec(shape, tuple(map(str, range(classes))), (0.0,) * shape[0], (1.0,) * shape[0])
    model = models.build(chosen.model, spec, classes)
    return State.new(chosen, model, CPU, steps_per_epoch=4), spec


def samples(spec, n=64, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    inputs = scale * torch.randn(n, *spec.shape, generator=generator)
    inputs = (128 + 50 * inputs).clamp(0, 255).to(torch.uint8) if spec.is_image else inputs
    return BatchLoader(
        Split(inputs.numpy(), torch.randint(len(spec.classes), (n,), generator=generator).numpy()), spec, CPU.device
    )


# ---------------------------------------------------------------- figures


def test_the_figures_are_those_of_other_code():
    state, spec = made("model.hidden=[16, 8]")
    with torch.no_grad():
        state.model.layers[1].bias[:5] = -100  # dead for sure
    data = samples(spec)
    checked = HealthMonitor(state, data, F.cross_entropy).check()
    (x, y), layers = next(data.in_order()), state.model.layers
    loss = F.cross_entropy(state.model(x), y)
    loss.backward()
    assert checked.loss == pytest.approx(loss.item(), rel=1e-5)
    assert checked.guess == pytest.approx(math.log(5))
    assert checked.gradients == {
        f"layers.{i}": pytest.approx(layers[i].weight.grad.norm().item(), rel=1e-5) for i in (1, 3, 5)
    }
    hidden = F.relu(layers[1](x))
    assert checked.dead == {
        "layers.2": pytest.approx((hidden.sum(0) == 0).float().mean().item()),
        "layers.4": pytest.approx((F.relu(layers[3](hidden)).sum(0) == 0).float().mean().item()),
    }
    assert checked.dead["layers.2"] >= 5 / 16
    assert (checked.epoch, checked.samples, checked.update) == (0, 64, None)


def test_a_dead_map_is_zero_at_all_places_of_all_samples():
    state, spec = made("model={name: cnn, channels: [6], norm: none}", shape=(1, 8, 8))
    data = samples(spec)
    assert HealthMonitor(state, data, F.cross_entropy).check().dead == {"stages.0.activation": 0}
    with torch.no_grad():
        state.model.stages[0].conv.bias[:2] = -1000
        state.model.stages[0].conv.weight[2].zero_()
        state.model.stages[0].conv.bias[2] = 1e-3  # barely alive
    assert HealthMonitor(state, data, F.cross_entropy).check().dead["stages.0.activation"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("optimizer", ["{name: sgd, lr: 0.1}", "{name: adam, lr: 0.01}"])
def test_the_longest_of_the_measured_steps(optimizer):
    state, spec = made(f"optimizer={optimizer}")
    data = samples(spec)
    watch = HealthMonitor(state, data, F.cross_entropy)
    step = watch.wrap(train_step(backpropagation(F.cross_entropy, CPU)))
    x, y = next(data.in_order())
    lengths = []
    for batch in range(4):
        before = [w.detach().clone() for w in state.model.parameters() if w.ndim == 2]
        state.begin_step()
        state.end_step(step(state, x, y), len(x))
        if batch != 1:  # of four: the first, the middle and the last are measured
            after = [w.detach() for w in state.model.parameters() if w.ndim == 2]
            moved = sum((new - old).square().sum() for new, old in zip(after, before, strict=True)).sqrt()
            lengths.append((moved / sum(old.square().sum() for old in before).sqrt()).item())
    assert watch.check().update == pytest.approx(max(lengths), rel=1e-4)
    assert watch.check().update is None, "each step is reported once"


def test_the_probe_is_a_hundredth_but_enough_and_spread_evenly():
    assert [len(probe_size(n)) for n in (3, 64, 1150, 10_000, 55_000)] == [3, 64, 64, 100, 256]
    for n in (3, 100, 55_000):
        index = probe_size(n)
        assert (index[0], index[-1], len(set(index.tolist()))) == (0, n - 1, len(index))
        assert max(index[1:] - index[:-1]) - min(index[1:] - index[:-1]) <= 1


# ---------------------------------------------------------------- nothing changes

ALL_ON = ["train.epochs=2", "train.ema=0.9", "train.augment={shift: 1}", "train.mixup=0.2"]
DROPPING = {
    "mlp": "{name: mlp, hidden: [12], norm: batch, dropout: 0.2}",
    "cnn": "{name: cnn, channels: [4, 6], dropout: 0.2}",
    "rnn": "{name: rnn, hidden: 8, layers: 2, dropout: 0.2}",
    "transformer": "{name: transformer, patch: 4, width: 8, heads: 2, depth: 1, dropout: 0.2}",
}


@pytest.mark.parametrize("name", DROPPING)
def test_a_watched_run_has_the_same_bits(name, tmp_path):
    chosen = config.load("digits_mlp", [f"model={DROPPING[name]}", *ALL_ON])
    for watch in (False, True):
        events = list(run(chosen, out=tmp_path / str(watch), watch=watch))
        assert sum(isinstance(event, Health) for event in events) == (3 if watch else 0)
    for file in ("checkpoint.pt", "last.pt"):
        assert (tmp_path / "True" / file).read_bytes() == (tmp_path / "False" / file).read_bytes()


def test_the_matrices_of_a_plain_mlp_too(tmp_path):
    chosen = config.load("digits_mlp", ["train.epochs=2"])
    for watch in (False, True):
        started = next(
            event for event in list(run(chosen, out=tmp_path / str(watch), watch=watch)) if isinstance(event, Started)
        )
        assert any(choice.value == "matrices" for choice in started.choices)
    assert (tmp_path / "True/last.pt").read_bytes() == (tmp_path / "False/last.pt").read_bytes()


def test_a_check_that_changed_something_would_be_noticed(tmp_path, monkeypatch):
    right = HealthMonitor.check

    def careless(self):
        checked = right(self)
        torch.rand(1)
        self.state.model.train()(next(self.samples.in_order())[0])  # moves what batch norm keeps
        return checked

    monkeypatch.setattr(HealthMonitor, "check", careless)
    chosen = config.load("digits_mlp", [f"model={DROPPING['mlp']}", *ALL_ON])
    for watch in (False, True):
        list(run(chosen, out=tmp_path / str(watch), watch=watch))
    assert (tmp_path / "True/last.pt").read_bytes() != (tmp_path / "False/last.pt").read_bytes()


def test_a_check_leaves_the_network_as_it_was():
    state, spec = made("model={name: cnn, channels: [4], dropout: 0.5}", shape=(1, 8, 8))
    watch = HealthMonitor(state, samples(spec), F.cross_entropy)
    before, random = {key: value.clone() for key, value in state.model.state_dict().items()}, torch.get_rng_state()
    for training in (True, False):
        state.model.train(training)
        watch.check()
        assert state.model.training == training
        assert state.model.stages[0].norm.training == training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
    assert all(p.grad is None for p in state.model.parameters())
    assert not any(module._forward_hooks for module in state.model.modules())


# ---------------------------------------------------------------- no warning without a problem


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_digits_recipes_have_no_warning(recipe, tmp_path):
    epochs = RECIPES[recipe]
    checked = watched(recipe, f"train.epochs={epochs}", out=tmp_path / "r")
    assert warnings_of(checked) == []
    assert [each.epoch for each in checked] == list(range(epochs + 1))
    assert abs(checked[0].loss - checked[0].guess) < 0.7
    assert all(1e-5 < each.update < 0.1 for each in checked[1:-1])


@pytest.mark.mnist
@pytest.mark.parametrize("recipe", ["mnist_mlp", "mnist_cnn"])
def test_mnist_has_no_warning(recipe, tmp_path, monkeypatch):
    import os

    if not (
        Path(os.environ.get("NNX_DATA_DIR", "")) / "MNIST/raw/train-images-idx3-ubyte"
    ).is_file() or not os.environ.get("NNX_DATA_DIR"):
        pytest.skip("NNX_DATA_DIR does not hold MNIST/raw")
    assert warnings_of(watched(recipe, "train.epochs=1", out=tmp_path / "r")) == []


# ---------------------------------------------------------------- each problem, provoked, with a healthy control


def test_a_learning_rate_too_high_and_what_it_kills(tmp_path):
    checked = watched("digits_mlp", "optimizer={name: adam, lr: 1}", "train.epochs=3", out=tmp_path / "r")
    assert max(checked[1].dead.values()) > 0.9
    long, dead = warnings_of(checked)  # the cause first, what it brought about behind it, both once
    assert re.match(
        r"epoch 1: learning rate too high: a step changed the weights by \d.*\. Lower optimizer.lr \(now 1\)", long
    )
    assert "add schedule.warmup: 1" in long
    assert re.match(
        r"epoch 1: dead ReLUs: \d+ % of the units of layers.\d .*output 0 for all 64 samples"
        r".*start again with a lower optimizer.lr",
        dead,
    )
    cycled = warnings_of(
        watched(
            "digits_mlp", "optimizer={name: adam, lr: 1}", "schedule=one_cycle", "train.epochs=2", out=tmp_path / "s"
        )
    )
    assert "warmup" not in cycled[0], "one_cycle has no such key"


def test_a_learning_rate_too_low(tmp_path):
    for optimizer in ("{name: adam, lr: 1e-7}", "{name: sgd, lr: 1e-6}"):
        warnings = warnings_of(
            watched("digits_mlp", f"optimizer={optimizer}", "train.epochs=3", out=tmp_path / optimizer[7:10])
        )
        assert len(warnings) == 1
        assert re.match(
            r"epoch 1: learning rate too low: no step changed the weights by .* Raise optimizer.lr \(now 1e-0",
            warnings[0],
        )
    slow = watched(
        "digits_mlp",
        "optimizer={name: sgd, lr: 0.01}",
        "train.epochs=3",
        "schedule={name: cosine, warmup: 1}",
        out=tmp_path / "r",
    )
    assert warnings_of(slow) == [], "a rate that a schedule has brought down is not too low"


def test_the_very_first_step_may_be_longer(tmp_path):
    """That of rmsprop moves every weight by ten times the learning rate; at its own rate digits_cnn's by 0.1 of their
    length."""
    settings = ("optimizer={name: rmsprop, lr: 2e-3}", "schedule=constant", "train.epochs=2", "train.ema=null")
    checked = watched("digits_mlp", *settings, out=tmp_path / "r")
    assert 0.1 < checked[1].update < 0.3
    assert warnings_of(checked) == []
    assert (
        "learning rate too high"
        in warnings_of(watched("digits_mlp", "optimizer={name: rmsprop, lr: 1e-2}", *settings[1:], out=tmp_path / "s"))[
            0
        ]
    )


def test_a_network_that_has_learned_everything_may_take_short_steps():
    state, spec = made("optimizer={name: sgd, lr: 0.1}")
    data = samples(spec)
    with torch.no_grad():
        state.model.layers[5].bias[3] = 50.0
    data.labels.fill_(3)
    watch = HealthMonitor(state, data, F.cross_entropy)
    step = watch.wrap(train_step(backpropagation(F.cross_entropy, CPU)))
    state.begin_step()
    state.end_step(step(state, *next(data.in_order())), 64)
    checked = watch.check()
    assert checked.update < 1e-5
    assert checked.warnings == ()


def test_dead_relus_are_distinguished_by_their_cause():
    state, spec = made()
    data = samples(spec)
    assert HealthMonitor(state, data, F.cross_entropy).check().warnings == ()
    with torch.no_grad():
        state.model.layers[3].bias[:5] = -1000
    (begun,) = HealthMonitor(state, data, F.cross_entropy).check().warnings
    assert begun.startswith("before the first step: ")
    assert "of the units of layers.4 output 0" in begun
    assert "They are dead from the start" in begun
    state.step, state.epoch = 4, 1
    (later,) = HealthMonitor(state, data, F.cross_entropy).check().warnings
    assert "dead ReLUs: 62 % of the units of layers.4 output 0 for all 64 samples" in later
    assert "model.activation: leaky_relu" in later
    with torch.no_grad():
        state.model.layers[1].bias.fill_(-1000)
    (all_of_them,) = HealthMonitor(state, data, F.cross_entropy).check().warnings
    assert "100 % of the units of layers.2 (and most of those of 1 more)" in all_of_them, all_of_them
    with torch.no_grad():
        state.model.layers[1].bias.zero_()
        state.model.layers[3].bias[:5] = 0
        state.model.layers[3].bias[:2] = -1000
    assert HealthMonitor(state, data, F.cross_entropy).check().warnings == (), "a quarter is no cause for alarm"


def test_gradients_that_vanish(tmp_path):
    deep = "model={name: mlp, hidden: [24, 24, 24, 24, 24, 24, 24, 24], activation: %s}"
    (warning,) = warnings_of(watched("digits_mlp", deep % "sigmoid", "train.epochs=2", out=tmp_path / "sigmoid"))
    assert re.match(r"before the first step: vanishing gradients: the gradient of the first layer \(", warning)
    assert warning.endswith("Set model.activation: relu instead of sigmoid, or model.norm: layer")
    for well in (deep % "relu", "model={name: mlp, hidden: [24, 24], activation: sigmoid}"):
        assert warnings_of(watched("digits_mlp", well, "train.epochs=2", out=tmp_path / str(len(well)))) == []
    state, spec = made("model={name: rnn, cell: rnn, hidden: 8}", shape=(1, 8, 8))
    assert HealthMonitor(state, samples(spec), F.cross_entropy).check().warnings == ()
    with torch.no_grad():
        state.model.recurrent.bias_ih_l0.fill_(30.0)  # tanh is flat there
    assert HealthMonitor(state, samples(spec), F.cross_entropy).check().warnings[0].endswith("Set model.cell: lstm")


def test_gradients_that_explode():
    for clip, cure in (
        ("null", "Set train.clip_grad_norm: 1, or lower optimizer.lr (now 0.003)"),
        (1, ". Lower optimizer.lr (now 0.003)"),
    ):
        state, spec = made("model.hidden=[16, 16, 16, 16]", f"train.clip_grad_norm={clip}")
        state.step = 1
        data = samples(spec)
        assert HealthMonitor(state, data, F.cross_entropy).check().warnings == ()
        with torch.no_grad():
            for layer in state.model.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight *= 8
        (warning,) = HealthMonitor(state, data, F.cross_entropy).check().warnings
        assert re.search("exploding gradients: the norm of the gradient is ", warning)
        assert warning.endswith(cure)


def test_a_first_loss_far_above_a_guess():
    state, spec = made("model.hidden=[16]")
    data = samples(spec)
    assert HealthMonitor(state, data, F.cross_entropy).check().warnings == ()
    raw = samples(spec, scale=100.0)
    warning, *_ = HealthMonitor(state, raw, F.cross_entropy).check().warnings
    assert re.match(
        r"before the first step: the loss is [\d.]+, but random guessing gives ln 5 = 1.61. "
        r"The inputs are not normalised: their root mean square is \d+",
        warning,
    )
    with torch.no_grad():
        state.model.layers[3].weight *= 30
    warning, *_ = HealthMonitor(state, data, F.cross_entropy).check().warnings
    assert re.search(
        r"initial weights are too large: the logits have a standard deviation of \d+.*, more than 1", warning
    )
    state.step = 1
    assert not any("guessing" in warning for warning in HealthMonitor(state, data, F.cross_entropy).check().warnings), (
        "that warning is only for the initial loss"
    )


def test_two_classes_by_one_sigmoid_have_their_guess_too():
    state, spec = made("loss=binary_cross_entropy", classes=2)
    state.model.layers[5] = nn.Linear(8, 1)
    checked = HealthMonitor(state, samples(spec), state.config.loss.build([1, 1], CPU.device)).check()
    assert checked.guess == pytest.approx(math.log(2))
    assert abs(checked.loss - checked.guess) < 0.7
    assert checked.warnings == ()


def test_each_warning_is_given_once():
    state, spec = made()
    with torch.no_grad():
        state.model.layers[1].bias.fill_(-1000)
    watch = HealthMonitor(state, samples(spec), F.cross_entropy)
    assert len(watch.check().warnings) == 1
    assert watch.check().warnings == ()


# ---------------------------------------------------------------- on the screen

SOME = Health(
    2,
    64,
    0.5,
    math.log(10),
    {"layers.2": 0.031, "layers.4": 0.2},
    {"layers.1": 0.31, "layers.3": 0.2, "layers.5": 0.4},
    2.1e-3,
    (),
)
EPOCH = Epoch(2, 72, 0.31, 0.29, 0.91, 1e-3, 0.8, 55_000.0, True)


def shown(*events, terminal=False, quiet=False):
    screen = Console(
        file=io.StringIO(), width=80, height=40, force_terminal=terminal, _environ={"TERM": "xterm-256color"}
    )
    assert list(train.show(iter(events), console=screen, quiet=quiet)) == list(events)
    return screen.file.getvalue()


def test_a_line_an_epoch_where_there_is_no_terminal():
    lines = shown(EPOCH, SOME, replace(SOME, warnings=("all is lost",))).splitlines()
    assert re.sub(" +", " ", lines[1]) == "health dead 3 %, 20 % update 2.1e-03 gradient 3.1e-01 first, 4.0e-01 last"
    assert lines[3] == "warning: all is lost"
    assert max(map(len, lines)) <= 80
    start = shown(replace(SOME, epoch=0, update=None, loss=2.61)).strip()
    assert "loss 2.610 (chance 2.303)" in start
    assert "update" not in start
    many = replace(SOME, dead={f"layers.{i}": i / 10 for i in range(6)})
    assert "dead 50 % at most" in shown(many)
    assert shown(replace(SOME, dead={}, gradients={}, update=None)).strip() == "health"


def test_in_the_live_view_it_is_part_of_the_picture_and_warnings_are_lines(monkeypatch):
    monkeypatch.setattr(train, "REDRAW", 0)
    started = Started(Path("r"), (), {"train": 9}, (), 1, 3, 36, 0, 0)
    text = re.sub(
        r"\x1b\[[?0-9;]*[A-Za-z]", "", shown(started, EPOCH, replace(SOME, warnings=("all is lost",)), terminal=True)
    )
    assert re.search(r"update 2.1e-03 +gradient 3.1e-01 first", text)
    assert "warning: all is lost" in text
    assert not re.search(r"^health", text, re.MULTILINE)


def test_quiet_leaves_the_warnings(capsys):
    shown(EPOCH, replace(SOME, warnings=("all is lost",)), quiet=True)
    assert capsys.readouterr().err == "warning: all is lost\n"


def test_the_flag(tmp_path, monkeypatch, capsys):
    import json
    import sys

    from nnx.cli import run_command

    monkeypatch.chdir(tmp_path)
    for words, expected in ((["--watch"], True), ([], False)):
        monkeypatch.setattr(
            sys,
            "argv",
            ["nnx", "train", "digits_mlp", "--set", "train.epochs=1", "--json", "--out", f"r{expected}", *words],
        )
        assert run_command() == 0
        captured = capsys.readouterr()
        assert ("\nhealth   " in captured.err) == expected
        assert captured.err.splitlines()[-1].startswith("health: underfitting: validation accuracy ")
        assert json.loads(captured.out)["epochs"] == 1
    assert health.MOST == 256
