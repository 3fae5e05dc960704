"""Faster steps against plain ones: gradients against autograd and against backpropagation in pure Python, whole runs
against each other."""

import math
import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnx import backprop, config, losses, models
from nnx.config import registry
from nnx.errors import ConfigError, DeviceError
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices
from nnx.training import step as steps
from nnx.training.loop import backpropagation, train_step
from nnx.training.state import State

CPU = devices.choose_runtime("cpu", "float32")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def spec(features=12, classes=5):
    return Spec((features,), tuple(map(str, range(classes))), (0.0,) * features, (1.0,) * features)


def made(overrides=(), *, data=None, seed=0, device=CPU):
    data = data or spec()
    whole = config.from_dict({"dataset": "digits", "model": "mlp"}, "made", overrides)
    torch.manual_seed(seed)
    model = models.build(whole.model, data, losses.outputs(whole.loss, len(data.classes)))
    return State.new(whole, model, device, 10)


def criterion(state, classes=5):
    return state.config.loss.build([1] * classes, torch.device("cpu"))


def matrices(state):
    return steps.matrix_backpropagation(steps.loss_with_gradient(state.config.loss, criterion(state)), state.model)


def batch(B=9, features=12, classes=5, seed=0):
    torch.manual_seed(seed)
    return torch.randn(B, features), torch.randint(classes, (B,))


def gradients_of(make, state, *of):
    loss = make(state, *of)
    return [loss, *(p.grad for p in state.model.parameters())]


# ---------------------------------------------------------------- matrices

widths = st.lists(st.integers(1, 20), max_size=4)
SMOOTHED, WEIGHTED = (
    "{name: cross_entropy, label_smoothing: 0.1}",
    "{name: cross_entropy, class_weights: [1, 2, 3, 4, 5]}",
)
LOSSES = ["cross_entropy", SMOOTHED, WEIGHTED, "mse", "focal"]


@settings(deadline=None, max_examples=60)
@given(
    widths,
    st.sampled_from(["relu", "sigmoid", "tanh"]),
    st.sampled_from(LOSSES),
    st.booleans(),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_matrices_give_autograds_gradients(hidden, activation, loss, soft, B, seed):
    state = made([f"model.hidden={hidden}", f"model.activation={activation}", f"loss={loss}"], seed=seed)
    inputs, targets = batch(B, seed=seed)
    if soft:
        targets = torch.rand(B, 5).softmax(1)
    expected = gradients_of(backpropagation(criterion(state), CPU), state, inputs, targets)
    expected = [tensor.clone() for tensor in expected]
    found = gradients_of(matrices(state), state, inputs, targets)
    for ours, autograds in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, autograds, rtol=1e-4, atol=1e-6)


def test_matrices_give_the_gradients_of_pure_python():
    for activation in ("relu", "sigmoid"):
        state = made(["model.hidden=[7, 6]", f"model.activation={activation}"])
        linear = [layer for layer in state.model.modules() if isinstance(layer, nn.Linear)]
        oracle = backprop.Network([12, 7, 6, 5], activation=activation, random=random.Random(0))
        oracle.weights = [layer.weight.tolist() for layer in linear]
        oracle.biases = [layer.bias.tolist() for layer in linear]
        inputs, labels = batch()
        expected = oracle.gradients(inputs.tolist(), labels.tolist())
        found = matrices(state)(state, inputs, labels)
        assert float(found) == pytest.approx(expected.loss, rel=1e-5)
        for layer, weight, bias in zip(linear, expected.weights, expected.biases, strict=True):
            torch.testing.assert_close(layer.weight.grad, torch.tensor(weight), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(layer.bias.grad, torch.tensor(bias), rtol=1e-4, atol=1e-6)


def test_a_wrong_derivative_would_be_seen(monkeypatch):
    monkeypatch.setitem(steps.ACTIVATIONS, nn.ReLU, (torch.relu_, lambda grad, output: grad))
    state = made(["model.hidden=[7, 6]"])
    expected = [tensor.clone() for tensor in gradients_of(backpropagation(criterion(state), CPU), state, *batch())]
    found = gradients_of(matrices(state), state, *batch())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_matrices_learn_the_same_as_autograd():
    """Fifty steps of the whole step function, with clipping and a moving average."""
    ends = []
    for make in (lambda state: backpropagation(criterion(state), CPU), lambda state: matrices(state)):
        state = made(["train.clip_grad_norm=0.5", "train.ema=0.9"])
        step = train_step(make(state))
        for n in range(50):
            state.begin_step()
            state.end_step(step(state, *batch(16, seed=n)), 16)
        ends.append([state.mean_loss(), *(p.detach() for p in state.evaluated.parameters())])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-5)
    assert ends[0][0] != math.log(5)


# ---------------------------------------------------------------- what is chosen

NOT_PLAIN = [
    ["model.dropout=0.1"],
    ["model.norm=batch"],
    ["model.activation=gelu"],
    ["train.accumulate=2"],
    ["model={name: rnn, hidden: 8}"],
    ["model={name: transformer, width: 8}"],
    ["precision=bfloat16"],
]


@pytest.mark.parametrize(
    "overrides", [[], ["model.hidden=[]"], ["model.activation=tanh"], ["loss=mse"], ["train.mixup=0.2"]], ids=str
)
def test_a_plain_mlp_is_done_in_matrices(overrides):
    state = made(overrides)
    assert steps.choose_step(state.config, state.model, CPU)[0] is steps.StepMethod.MATRICES


@pytest.mark.parametrize("overrides", NOT_PLAIN, ids=str)
def test_what_is_not_plain_is_left_as_it_is(overrides):
    state = made(overrides)
    chosen = devices.choose_runtime("cpu", state.config.precision)
    assert steps.choose_step(state.config, state.model, chosen)[0] is steps.StepMethod.AUTOGRAD


def test_compile_false_means_plain_pytorch():
    state = made(["compile=false"])
    assert steps.choose_step(state.config, state.model, CPU)[0] is steps.StepMethod.AUTOGRAD


def test_compile_true_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    state = made(["compile=true"])
    with pytest.raises(DeviceError, match="C\\+\\+ compiler"):
        steps.choose_step(state.config, state.model, CPU)


@pytest.mark.parametrize("text", ["maybe", "1", "0", "null", "[true]"])
def test_compile_is_auto_true_or_false(text):
    with pytest.raises(ConfigError, match="expected auto, true or false"):
        made([f"compile={text}"])


# ---------------------------------------------------------------- compiled, recorded


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_the_same_within_rounding():
    state, other = made(["compile=true"]), made()
    assert steps.choose_step(state.config, state.model, CPU)[0] is steps.StepMethod.COMPILED
    expected = [tensor.clone() for tensor in gradients_of(backpropagation(criterion(other), CPU), other, *batch())]
    found = gradients_of(backpropagation(criterion(state), CPU, fuse=steps.compiled), state, *batch())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@gpu
@pytest.mark.parametrize("name", registry.names("model"))
def test_a_cuda_graph_learns_the_same_as_eager(name):
    data = Spec((1, 8, 8), tuple("01234"), (0.5,), (0.3,))
    device = devices.choose_runtime("cuda", "float32")
    ends = []
    for wrap in (lambda step: step, steps.capture_cuda_graph):
        state = made(
            [f"model={{name: {name}}}", *(["model.patch=4"] if name == "transformer" else []), "train.ema=0.9"],
            data=data,
            device=device,
        )
        step = wrap(train_step(backpropagation(state.config.loss.build([1] * 5, device.device), device)))
        for n in range(30):
            B = 10 if n % 5 == 4 else 16
            torch.manual_seed(n)
            inputs, labels = torch.randn(B, 1, 8, 8).cuda(), torch.randint(5, (B,)).cuda()
            state.begin_step()
            state.end_step(step(state, inputs, labels), B)
        ends.append([state.mean_loss(), *(p.detach() for p in state.evaluated.parameters())])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)
