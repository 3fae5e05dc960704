"""A traced step against independent autograd code, PyTorch's optimizers and cells, and nnx.backprop.

Controls: the checks catch wrong forward and backward passes.
"""

import importlib
import io
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnx import backprop, config, datasets, models
from nnx import datasets as datasets_package
from nnx import models as models_package
from nnx.config import registry
from nnx.errors import CheckpointError, DivergedError, InputError
from nnx.preprocessing.columns import Columns, NumberColumn
from nnx.preprocessing.spec import Spec
from nnx.run.pipeline import run
from nnx.terminal import trace as trace_view
from nnx.trace import trace
from nnx.trace.input_names import feature_name
from nnx.trace.loss import explain_loss
from nnx.trace.result import MOST

SMALL = {
    "mlp": "{name: mlp, hidden: [12, 7]}",
    "cnn": "{name: cnn, channels: [4, 6]}",
    "rnn": "{name: rnn, hidden: 9}",
    "transformer": "{name: transformer, patch: 4, width: 12, heads: 3, depth: 2}",
}
NAMES = registry.names("model")

TABLE = '''
"""Rows of numbers."""
from typing import Literal
import numpy as np
from nnx.datasets import DatasetConfig, Source, Split
class Config(DatasetConfig):
    """Rows."""
    name: Literal["rows"] = "rows"
def load(config, folder):
    random = np.random.default_rng(0)
    def split(n):
        rows = random.normal(3, 5, (n, 11)).astype(np.float32)
        return Split(rows, (rows[:, 0] > rows[:, 1]).astype(np.int64))
    return Source(split(200), lambda: split(50), ("no", "yes"))
'''
COLOURS = '''
"""Small colour images."""
from typing import Literal
import numpy as np
from nnx.datasets import DatasetConfig, Source, Split
class Config(DatasetConfig):
    """Colours."""
    name: Literal["colours"] = "colours"
def load(config, folder):
    random = np.random.default_rng(0)
    def split(n):
        return Split(random.integers(0, 256, (n, 3, 8, 12), dtype=np.uint8), np.arange(n) % 3)
    return Source(split(60), lambda: split(30), ("red", "green", "blue"))
'''


@pytest.fixture
def others(tmp_path, monkeypatch):
    """A table and a set of colour images, by name: rows, colours."""
    for name, text in (("rows", TABLE), ("colours", COLOURS)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(datasets_package, "__path__", [*datasets_package.__path__, str(tmp_path)])
    yield
    for name in ("rows", "colours"):
        sys.modules.pop(f"nnx.datasets.{name}", None)


WRONG = '''
"""A network with something wrong in it, or nothing."""
from typing import Literal
import torch
from torch import nn
from nnx.models import ModelConfig
class Config(ModelConfig):
    """Wrong."""
    name: Literal["NAME"] = "NAME"
class Bend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()
    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        return BACKWARD
class Activation(nn.Module):
    def forward(self, x):
        return Bend.apply(x)
class Linear(nn.Linear):
    def forward(self, x):
        return super().forward(FORWARD)
class Model(nn.Module):
    def __init__(self, config, spec, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), Linear(spec.size, 6), Activation(), nn.Linear(6, outputs))
        START
    def forward(self, x):
        return self.layers(x)
'''


@pytest.fixture
def architecture(tmp_path, monkeypatch):
    """Add an architecture by name, right but for what is given: architecture("wrong", BACKWARD="grad")."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(models_package, "__path__", [*models_package.__path__, str(folder)])
    added = []

    def add(name, **changes):
        text = WRONG
        for word, code in (
            {"NAME": name, "BACKWARD": "grad * (x > 0)", "FORWARD": "x", "START": "pass"} | changes
        ).items():
            text = text.replace(word, code)
        (folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        added.append(name)

    yield add
    for name in added:
        sys.modules.pop(f"nnx.models.{name}", None)


def settings(name, *more):
    return [f"model={SMALL.get(name, name)}", *more]


def untraced(chosen, traced):
    """The network of a config in float64, initialised as in training, and the sample as a batch, without nnx.trace."""
    data = datasets.load(chosen.dataset, seed=chosen.seed)
    torch.manual_seed(chosen.seed)
    outputs = 1 if chosen.loss.name == "binary_cross_entropy" else len(data.spec.classes)
    model = models.build(chosen.model, data.spec, outputs).double().eval()
    raw = data.split(traced.sample.split).inputs[traced.sample.index].astype(np.float64)
    unit, axis = (255, (-1, 1, 1)) if raw.ndim == 3 else (1, (-1,))
    normal = (raw / unit - np.reshape(data.spec.mean, axis)) / np.reshape(data.spec.std, axis)
    x = torch.tensor(traced.sample.normalised, dtype=torch.float64).view(1, *raw.shape)
    torch.testing.assert_close(x[0], torch.from_numpy(normal), rtol=1e-5, atol=1e-5)  # float32, as training feeds them
    return model, x, torch.tensor([data.split(traced.sample.split).labels[traced.sample.index]])


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs).detach(), rtol=1e-10, atol=1e-12
    )


def all_hold(traced):
    assert [check for check in traced.checks if not check.passed] == []


# ---------------------------------------------------------------- every architecture, against other code


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_plain_pytorch(name):
    lr = 0.05
    traced = trace(
        "digits_mlp", index=3, overrides=settings(name, f"optimizer={{name: adam, lr: {lr}}}", "schedule=constant")
    )
    all_hold(traced)
    chosen = config.load("digits_mlp", settings(name))
    model, x, label = untraced(chosen, traced)
    logits = model(x)
    loss = F.cross_entropy(logits, label)
    loss.backward()
    close(traced.logits, logits[0])
    close(traced.probabilities, logits.softmax(1)[0])
    close(traced.loss.value, loss)
    close(traced.loss.slopes, logits.softmax(1)[0] - F.one_hot(label[0], 10))
    assert traced.sample.label == str(int(label))
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    assert math.hypot(*(each.norm for each in traced.gradients)) == pytest.approx(
        math.hypot(*(float(g.norm()) for g in gradients.values())), rel=1e-10
    )
    assert sum(each.parameters for each in traced.gradients) == traced.parameters == models.count_parameters(model)

    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p -= lr * p.grad
    close(traced.update.descent.loss, F.cross_entropy(model(x), label))
    descended = {key: p.detach().clone() for key, p in model.named_parameters()}
    model.load_state_dict({**model.state_dict(), **before})
    torch.optim.Adam(model.parameters(), lr, foreach=False).step()
    close(traced.update.optimized.loss, F.cross_entropy(model(x), label))
    close(traced.update.optimized.probability, model(x).softmax(1)[0, label[0]])
    foretold = loss.item() + sum(
        float((gradients[key] * (p.detach() - before[key])).sum()) for key, p in model.named_parameters()
    )
    assert traced.update.optimized.foretold == pytest.approx(foretold, rel=1e-9)

    # Each of its weights, wherever it is stored, has its own gradient and its own values after both steps
    neuron = traced.neuron
    one = {term.weight: term for term in (*neuron.terms, *neuron.biases)}
    seen = 0
    for key, weight in before.items():
        numbers = zip(
            weight.flatten(),
            *(tensors.flatten() for tensors in (gradients[key], descended[key], dict(model.named_parameters())[key])),
            strict=True,
        )
        for w, gradient, after, adam in numbers:
            if float(w) in one and (term := one[float(w)]).weight != 0:
                close((term.gradient, term.after_descent, term.after_optimizer), torch.stack([gradient, after, adam]))
                seen += 1
    assert seen == len({term.weight for term in neuron.terms})


def test_a_neuron_of_each_layer_of_an_mlp():
    for number, (layer, units) in enumerate((("layers.1", 12), ("layers.3", 7), ("layers.5", 10)), 1):
        traced = trace("digits_mlp", overrides=settings("mlp"), neuron=f"{number}:{units - 1}")
        all_hold(traced)
        model, x, label = untraced(config.load("digits_mlp", settings("mlp")), traced)
        depth = int(layer.removeprefix("layers."))
        inputs, sums = model.layers[:depth](x), model.layers[: depth + 1](x)
        F.cross_entropy(model(x), label).backward()
        neuron = traced.neuron
        assert (neuron.layer, neuron.name, neuron.unit, neuron.place, neuron.uses) == (number, layer, units - 1, (), 1)
        close([term.input for term in neuron.terms], inputs[0])
        close(neuron.sum, sums[0, units - 1])
        close([term.weight for term in neuron.terms], model.get_submodule(layer).weight[units - 1])
        close([term.gradient for term in neuron.terms], model.get_submodule(layer).weight.grad[units - 1])
        close(neuron.slope, model.get_submodule(layer).bias.grad[units - 1])
        assert [stage.name for stage in neuron.then] == ([] if number == 3 else ["ReLU"])
        assert all(stage.value == max(0, neuron.sum) for stage in neuron.then)
        assert trace("digits_mlp", overrides=settings("mlp"), neuron=f"{layer}:{units - 1}").neuron == neuron
    assert traced.neuron.terms[3].label == "unit 3"


def test_a_filter_at_a_place_and_its_way_to_the_activation():
    traced = trace("digits_cnn", overrides=settings("cnn"), neuron="2:3@2,1", index=5)
    all_hold(traced)
    model, x, _ = untraced(config.load("digits_cnn", settings("cnn")), traced)
    first = model.stages[0](x)
    block = model.stages[1]
    patch = F.pad(first, (1, 1, 1, 1))[0, :, 2:5, 1:4]
    close([term.input for term in traced.neuron.terms], patch.flatten())
    close(traced.neuron.sum, block.conv(first)[0, 3, 2, 1])
    pooled = block.pool(block.conv(first))
    close(
        [stage.value for stage in traced.neuron.then],
        torch.stack([pooled[0, 3, 1, 0], block.norm(pooled)[0, 3, 1, 0], block(first)[0, 3, 1, 0]]),
    )
    assert [stage.name for stage in traced.neuron.then] == ["MaxPool2d", "BatchNorm2d", "ReLU"]
    assert traced.neuron.kernel == (4, 3, 3)
    assert (traced.neuron.terms[10].label, traced.neuron.uses, traced.neuron.window) == (
        "map 1, row 1, column 1",
        16,
        None,
    )
    at_the_edge = trace("digits_cnn", overrides=settings("cnn"), neuron="1:0@0,0").neuron
    assert [term.label for term in at_the_edge.terms[3:6]] == ["padding", "row 0, column 0", "row 0, column 1"]
    assert (at_the_edge.window, at_the_edge.terms[3].input) == ((-1, -1, 2, 2), 0)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_recurrent_unit_is_torchs_cell_step_by_step(cell):
    model_of = f"model={{name: rnn, cell: {cell}, hidden: 9}}"
    traced = trace("digits_rnn", overrides=[model_of], neuron="1:4@5", index=2)
    all_hold(traced)
    model, x, _ = untraced(config.load("digits_rnn", [model_of]), traced)
    single = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[cell](8, 9, dtype=torch.float64)
    single.load_state_dict({key.removesuffix("_l0"): value for key, value in model.recurrent.state_dict().items()})
    state, states = None, []
    for row in x[0, 0]:
        state = single(row[None], state)
        states.append(state if cell == "lstm" else (state, state))
    neuron = traced.neuron
    close(neuron.state, torch.stack([states[4][0][0, 4], states[5][0][0, 4]]))
    if cell == "lstm":
        close(neuron.cell, torch.stack([states[4][1][0, 4], states[5][1][0, 4]]))
    assert neuron.cell is None or cell == "lstm"
    assert [gate.name for gate in neuron.gates][-1:] == [
        "state" if cell == "rnn" else "output gate" if cell == "lstm" else "candidate"
    ]
    for gate in neuron.gates:
        bent = math.tanh(gate.sum) if gate.activation == "tanh" else 1 / (1 + math.exp(-gate.sum))
        assert gate.output == pytest.approx(bent, rel=1e-12)
        assert gate.sum == pytest.approx(gate.from_input + gate.from_state + gate.bias, rel=1e-12)
    assert (len(neuron.terms), neuron.uses, neuron.where, neuron.window) == (8 + 9, 8, "row 5", (5, 0, 6, 8))
    assert (neuron.terms[3].label, neuron.terms[8].label) == ("row 5, column 3", "unit 0 at the previous row")


def test_a_token_and_its_attention():
    model_of = "model={name: transformer, patch: 4, width: 12, heads: 3, depth: 2}"  # four patches and a class token
    traced = trace("digits_transformer", overrides=[model_of], neuron="blocks.1.mlp.0:2@0")
    all_hold(traced)
    model, x, _ = untraced(config.load("digits_transformer", [model_of]), traced)
    tokens = torch.cat([model.class_token, model.embed(model.tokens(x))], 1) + model.positions
    block = model.blocks[1]
    seen = block.norm1(model.blocks[0](tokens))
    q, k, _ = (part.view(1, 5, 3, 4).transpose(1, 2) for part in block.qkv(seen).chunk(3, 2))
    weights = (q @ k.transpose(2, 3) / 2).softmax(3)
    close(traced.attention.weights, weights[0, traced.attention.head, 0])
    assert (traced.attention.block, traced.attention.token, traced.neuron.where) == (
        "blocks.1",
        "class token",
        "class token",
    )
    assert traced.attention.tokens[4] == "patch 3, rows 4-7, columns 4-7"
    patch = trace("digits_transformer", overrides=[model_of], neuron="embed:2@3")
    assert (patch.neuron.where, patch.attention.token, patch.neuron.window) == (
        *[traced.attention.tokens[4]] * 2,
        (4, 4, 8, 8),
    )
    close([term.input for term in patch.neuron.terms], x[0, 0, 4:, 4:].flatten())


VARIANTS = [
    ("digits_mlp", "{name: mlp, hidden: [9, 5], activation: sigmoid}"),
    ("digits_mlp", "{name: mlp, hidden: [9, 5], norm: batch, activation: gelu}"),
    ("digits_mlp", "{name: mlp, hidden: [9, 5], norm: layer, activation: tanh}"),
    ("digits_mlp", "{name: mlp, hidden: []}"),
    ("digits_cnn", "{name: cnn, channels: [3, 4], residual: true, depth: 2, hidden: [6]}"),
    ("digits_cnn", "{name: cnn, channels: [3, 4], norm: none, pool: average, kernel: 4}"),
    ("digits_cnn", "{name: cnn, channels: [3, 4], pool: stride, padding: valid, kernel: [3, 2], head: average}"),
    ("digits_cnn", "{name: cnn, channels: [3, 4], pool: [none, max], padding: valid}"),
    ("digits_rnn", "{name: rnn, cell: rnn, hidden: 5, layers: 2, bidirectional: true, read: mean}"),
    ("digits_rnn", "{name: rnn, cell: gru, hidden: 5, layers: 2, bidirectional: true, read: mean}"),
    ("digits_rnn", "{name: rnn, cell: lstm, hidden: 5, layers: 2, bidirectional: true}"),
    (
        "digits_transformer",
        "{name: transformer, patch: 8, width: 8, heads: 2, depth: 1, read: mean, positions: sincos}",
    ),
]
LOSSES = [
    "mse",
    "focal",
    "cross_entropy",
    "{name: cross_entropy, label_smoothing: 0.2}",
    "{name: focal, class_weights: balanced}",
    "{name: cross_entropy, label_smoothing: 0.2, class_weights: balanced}",
    "{name: cross_entropy, class_weights: [1, 2, 3, 4, 5, 6, 7, 8, 9, 0.5]}",
]


@pytest.mark.parametrize(("recipe", "model"), VARIANTS)
def test_every_choice_holds_its_checks_at_every_layer(recipe, model):
    traced = trace(recipe, overrides=[f"model={model}"])
    all_hold(traced)
    last = max(layer.number or 0 for layer in traced.layers)
    for number in range(2, last + 1):
        all_hold(trace(recipe, overrides=[f"model={model}"], neuron=f"{number}:1", index=number))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_derived(loss):
    traced = trace("digits_mlp", overrides=settings("mlp", f"loss={loss}"), index=11)
    all_hold(traced)
    assert traced.loss.steps
    assert traced.loss.by_hand == pytest.approx(traced.loss.value, rel=1e-12)
    assert any(check.name == "plain Python" for check in traced.checks) == (loss in ("mse", "cross_entropy"))


@pytest.mark.parametrize(
    "optimizer", [*registry.names("optimizer"), "{name: sgd, momentum: 0.9, nesterov: true, weight_decay: 0.1}"]
)
def test_every_optimizer_makes_its_own_step(optimizer):
    traced = trace("digits_cnn", overrides=settings("cnn", f"optimizer={optimizer}", "train.clip_grad_norm=null"))
    all_hold(traced)
    same = [term.after_descent == pytest.approx(term.after_optimizer, abs=1e-12) for term in traced.neuron.terms]
    assert traced.update.is_plain == (optimizer == "sgd") == all(same)
    assert traced.update.says
    if "nesterov" in optimizer:
        assert "1.9 times as long" in traced.update.says
        step = [
            (t.after_optimizer - t.weight) / (t.after_descent - t.weight - traced.update.learning_rate * 0.1 * t.weight)
            for t in traced.neuron.terms
        ]
        assert step == pytest.approx([1.9] * 9)


def test_clipping_comes_before_the_optimizer_alone():
    free, clipped = (
        trace("digits_mlp", overrides=settings("mlp", "optimizer=sgd", f"train.clip_grad_norm={limit}"))
        for limit in ("null", 0.5)
    )
    assert free.update.clipped is None
    assert clipped.update.clipped == pytest.approx(0.5 / clipped.update.gradient_norm, rel=1e-6)
    assert not clipped.update.is_plain
    for one, other in zip(free.neuron.terms, clipped.neuron.terms, strict=True):
        assert one.after_descent == other.after_descent
        assert (other.after_optimizer - other.weight) == pytest.approx(
            clipped.update.clipped * (one.after_descent - one.weight), rel=1e-4
        )


# ---------------------------------------------------------------- other data


def test_rows_of_numbers(others, capsys):
    for name in ("mlp", "rnn", "transformer"):
        traced = trace("digits_mlp", overrides=settings(name, "dataset=rows", "train.augment.shift=0"))
        all_hold(traced)
        _, x, _ = untraced(config.load("digits_mlp", settings(name, "dataset=rows")), traced)
        assert traced.neuron.terms[0].label.startswith("feature ")
        trace_view.print_trace(traced)
        out = capsys.readouterr().out
        assert re.search(rf"^ +feature 0 +{traced.sample.raw[0]:.3f} +{float(x[0, 0]):.3f}$", out, re.MULTILINE), out
        assert "... and 3 more" in out


def test_columns_have_their_names():
    spec = Spec(
        (2,),
        ("no", "yes"),
        (0.0, 0.0),
        (1.0, 1.0),
        columns=Columns((NumberColumn("age"), NumberColumn("\x1b[31mheight"))),
    )
    assert [feature_name(spec, i) for i in range(2)] == ["age", "\\x1b[31mheight"]


def test_two_classes_by_one_sigmoid(others, capsys):
    traced = trace("digits_mlp", overrides=settings("mlp", "dataset=rows", "loss=binary_cross_entropy"), index=4)
    all_hold(traced)
    assert traced.probabilities[1] == pytest.approx(1 / (1 + math.exp(-traced.logits[0])), rel=1e-12)
    assert traced.loss.value == pytest.approx(
        -math.log(traced.probabilities[("no", "yes").index(traced.sample.label)]), rel=1e-12
    )
    trace_view.print_trace(traced)
    assert "Its sigmoid is the probability of yes" in capsys.readouterr().out


def test_colour_images(others, capsys):
    for name in NAMES:
        traced = trace("digits_mlp", overrides=settings(name, "dataset=colours", "train.augment.shift=0"), split="test")
        all_hold(traced)
        labels = [term.label for term in traced.neuron.terms]
        assert "channel 2, row" in " ".join(labels)
        trace_view.print_trace(traced)
        assert "3 × 8 × 12 pixels" in capsys.readouterr().out


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_brings_its_weights_and_its_preprocessing(others, tmp_path):
    for _ in run(config.load("digits_cnn", settings("cnn", "train.epochs=3", "train.ema=0.9")), out=tmp_path / "r"):
        pass
    kept = torch.load(tmp_path / "r/checkpoint.pt", weights_only=True)["model"]
    traced = trace(tmp_path / "r/checkpoint.pt", index=1, split="test")
    all_hold(traced)
    assert [term.weight for term in traced.neuron.terms] == kept["stages.0.conv.weight"][
        traced.neuron.unit
    ].double().flatten().tolist()
    assert (traced.epoch, traced.update.learning_rate) == (3, pytest.approx(0.04 * 3e-3))
    assert any("start from step 0" in note for note in traced.notes)
    assert trace(tmp_path / "r", index=1, split="test").logits == traced.logits, "a run folder means its checkpoint"
    fresh = trace("digits_cnn", overrides=settings("cnn"), index=1, split="test")
    assert fresh.epoch is None
    assert traced.loss.value < fresh.loss.value
    slower = trace(tmp_path / "r", overrides=["optimizer={name: sgd, lr: 0.001}"], index=1, split="test")
    assert slower.update.is_plain
    with pytest.raises(InputError, match="can't change the model"):
        trace(tmp_path / "r", overrides=["model.hidden=[3]"])
    trained_on = "was trained on 1x8x8 inputs and 10 classes"
    with pytest.raises(CheckpointError, match=f"{trained_on}, but the dataset has 3x8x12 inputs and 3 classes"):
        trace(tmp_path / "r", overrides=["dataset=colours"])


def test_a_probability_near_1_is_printed_as_its_difference_from_1():
    loss = registry.find("loss", "cross_entropy")()
    steps, value = explain_loss(loss, [-1e-6, math.log(1e-6)], 0, "cat", [1, 1])
    assert (steps, value) == (['-log p("cat") = -log (1 - 1e-06) = 1e-06'], 1e-6)
    steps, _ = explain_loss(loss, [math.log(0.25), math.log(0.75)], 0, "cat", [1, 1])
    assert steps == ['-log p("cat") = -log 0.25 = 1.386']


def test_a_step_that_overshoots_is_reported(capsys):
    traced = trace("digits_mlp", overrides=settings("mlp", "optimizer={name: sgd, lr: 5}"), index=1)
    all_hold(traced)
    assert traced.update.descent.loss > traced.loss.value
    trace_view.print_trace(traced)
    assert "overshot the minimum" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_4(architecture):
    architecture("huge", FORWARD="x * float('inf')")
    with pytest.raises(DivergedError, match="loss of this sample is"):
        trace("digits_mlp", overrides=["model=huge"])


# ---------------------------------------------------------------- controls: the checks catch errors


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ({}, []),
        ({"BACKWARD": "grad"}, ["gradient"]),
        ({"BACKWARD": "grad * (x > 0) * 1.001"}, ["gradient"]),
        ({"BACKWARD": "torch.zeros_like(grad)"}, ["gradient"]),
        ({"FORWARD": "x * 1.001"}, ["weighted sum", "chain rule"]),
        ({"FORWARD": "x + 1e-6"}, ["weighted sum", "chain rule"]),
    ],
    ids=str,
)
def test_a_network_whose_passes_are_wrong_is_caught(architecture, nnx, change, caught):
    name = "_".join(["wrong", *map(str, change.values())]).translate({ord(c): "_" for c in "()* >.+-="})
    architecture(name, **change)
    traced = trace("digits_mlp", overrides=[f"model={name}"])
    assert {check.name for check in traced.checks if not check.passed} == set(caught)
    result = nnx("trace", "digits_mlp", "--set", f"model={name}", "--json")
    assert result.code == (5 if caught else 0)
    assert {check["name"] for check in json.loads(result.out)["checks"] if not check["passed"]} == set(caught)
    if caught:
        assert result.err.startswith(f"error: digits_mlp: {len(caught)} of ")
        assert all(name in result.err for name in caught)
        assert "WRONG" in nnx("trace", "digits_mlp", "--set", f"model={name}").out


def test_plain_python_that_differs_is_caught(monkeypatch):
    right = backprop.Network.backpropagate

    def wrong(self, inputs, label, loss="cross_entropy"):
        traced = right(self, inputs, label, loss)
        traced.weights[0][0][0] += 1e-6
        return traced

    monkeypatch.setattr(backprop.Network, "backpropagate", wrong)
    checks = {check.name: check.passed for check in trace("digits_mlp", overrides=settings("mlp")).checks}
    assert checks.pop("plain Python") is False
    assert all(checks.values())


def test_gates_and_attention_that_differ_are_caught(monkeypatch):
    wrong = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": F.hardsigmoid}
    monkeypatch.setattr("nnx.trace.recurrent.ACTIVATIONS", wrong)
    failed = {check.name for check in trace("digits_rnn", overrides=settings("rnn")).checks if not check.passed}
    assert "gates" in failed
    monkeypatch.setattr("nnx.trace.neuron.math.sqrt", lambda x: 1.01 * x**0.5)
    assert {c.name for c in trace("digits_transformer", overrides=settings("transformer")).checks if not c.passed} == {
        "attention"
    }


def test_a_gradient_at_a_kink_is_right_on_either_side_of_it_and_wrong_elsewhere(architecture):
    """Inputs and biases of 0: every weighted sum is exactly where ReLU has its corner, with slopes 0 to the left and 1
    to the right."""
    for name, slope, passes in (
        ("left", "0", True),
        ("middle", "0.5", True),
        ("right", "1", True),
        ("beyond", "1.1", False),
        ("before", "-0.1", False),
    ):
        architecture(name, FORWARD="x * 0", BACKWARD=f"grad * {slope}", START="nn.init.zeros_(self.layers[1].bias)")
        check = {check.name: check for check in trace("digits_mlp", overrides=[f"model={name}"]).checks}["gradient"]
        assert check.passed == passes, (name, check)
        assert ("at a kink" in check.what) == (passes and name != "middle"), check


# ---------------------------------------------------------------- the command


@pytest.fixture
def nnx(monkeypatch, capsys, tmp_path):
    """`nnx("trace", "digits_mlp")` in an empty folder -> exit code, stdout, stderr."""
    from types import SimpleNamespace

    from nnx.cli import run_command

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["nnx", *map(str, words)])
        capsys.readouterr()
        code = run_command()
        captured = capsys.readouterr()
        assert list(folder.iterdir()) == [], "nothing is ever written"
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return command


@pytest.mark.parametrize("recipe", ["digits_mlp", "digits_cnn", "digits_rnn", "digits_transformer"])
def test_the_sections_in_a_pipe(nnx, recipe):
    result = nnx("trace", recipe)
    assert (result.code, result.err) == (0, "")
    assert "\x1b" not in result.out
    lines = result.out.splitlines()
    assert len(lines) <= 115, "about two screens"
    assert all(len(line) <= trace_view.PIPE and line == line.rstrip() for line in lines)
    traced = trace(recipe)
    for number, title in enumerate(
        (
            "Input",
            "Forward pass",
            "One neuron in full",
            "Prediction and loss",
            "Backward pass",
            "Update",
            "The same sample",
            "Checks",
        ),
        1,
    ):
        assert any(line.startswith(f"{number}  {title}") for line in lines), title
    assert f"{traced.loss.value:#.5g}" in result.out
    assert f"{traced.neuron.sum:.3f}" in result.out
    assert "WRONG" not in result.out


def test_long_tables_are_cut_with_a_count(nnx):
    out = nnx("trace", "digits_mlp", "--neuron", "1:2").out
    assert "sum of the other 56" in out
    assert "... and 60 more" in out
    products = [
        float(line.split()[-1]) for line in out.splitlines() if re.match(r"   row \d, column \d( +-?[\d.]+){3}$", line)
    ]
    assert len(products) == 8
    by_size = [abs(product) for product in products]
    assert by_size == sorted(by_size, reverse=True)
    deep = nnx("trace", "digits_mlp", "--set", f"model.hidden={[4] * 30}").out
    assert "... and 47 more" in deep  # of 61 rows: 30 sums, 30 ReLUs, the logits


def test_json_is_one_document_with_everything(nnx):
    result = nnx("trace", "digits_cnn", "--json", "--index", 2, "--split", "validation")
    assert (result.code, result.err) == (0, "")
    document = json.loads(result.out)
    traced = trace("digits_cnn", index=2, split="validation")
    assert document["neuron"]["sum"] == traced.neuron.sum
    assert [layer["name"] for layer in document["layers"]] == [layer.name for layer in traced.layers]
    assert len(document["layers"][0]["values"]) == 32 * 8 * 8
    assert all(check["passed"] for check in document["checks"])
    assert document["sample"]["index"] == 2
    large = json.loads(nnx("trace", "digits_cnn", "--json", "--set", "model.channels=[100]").out)["layers"][0]["values"]
    assert (len(large["values"]), large["left_out"]) == (MOST, 100 * 64 - MOST)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("digits_mpl",), "did you mean 'digits_mlp'"),
        (("nothing.pt",), "nothing.pt: no such file"),
        (("digits_mlp", "--index", 5000), "--index 5000: the train split has 1,150 samples. Use 0 to 1,149"),
        (("digits_mlp", "--index", -1), "--index"),
        (("digits_mlp", "--split", "tests"), "--split"),
        (("digits_mlp", "--neuron", "1-5"), "expected LAYER:UNIT"),
        (("digits_mlp", "--neuron", "4:1"), "no layer 4. The layers have the numbers 1 to 3"),
        (("digits_mlp", "--neuron", "layers1:1"), "did you mean 'layers.1'"),
        (("digits_mlp", "--neuron", "1:128"), "layers.1 has 128 units. Use a unit from 0 to 127"),
        (("digits_mlp", "--neuron", "1:1@2"), "layers.1 has only one position. Leave out @"),
        (("digits_cnn", "--neuron", "1:1@2"), "stages.0.conv has positions 0,0 to 7,7"),
        (("digits_cnn", "--neuron", "1:1@2,8"), "stages.0.conv has positions 0,0 to 7,7"),
        (("digits_mlp", "--set", "model.hiden=[3]"), "did you mean 'hidden'"),
    ],
)
def test_wrong_input_is_2(nnx, words, what):
    result = nnx("trace", *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert what in result.err


def test_pictures_in_a_terminal():
    from rich.console import Console

    traced = trace("digits_mlp", overrides=settings("mlp"))
    for width in (60, 80, 120):
        for colour in (True, False):
            screen = Console(
                width=width,
                force_terminal=True,
                color_system="truecolor" if colour else None,
                record=True,
                file=io.StringIO(),
            )
            for part in trace_view.sections(traced, screen):
                screen.print(part)
            assert max(map(len, screen.export_text(clear=False, styles=False).splitlines())) <= width
            assert ("orange" in screen.export_text()) == colour
