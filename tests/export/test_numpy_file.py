"""The Python file that the numpy exporter writes: equal to PyTorch for every option, readable, and numpy alone."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from nnx import models
from nnx.config import registry
from nnx.errors import InputError
from nnx.export import _numpy_layers, numpy
from nnx.export._network import ExportedNetwork, describe_input
from nnx.models._layers import activations
from nnx.preprocessing.spec import Spec

IMAGES = Spec((2, 12, 8), ("a", "b", "c"), (0.2, 0.4), (0.3, 0.5))
ROWS = Spec((5,), ("a", "b", "c"), (1.0,) * 5, (2.0,) * 5)
VARIANTS = [
    (IMAGES, {"name": "mlp", "hidden": []}),
    (ROWS, {"name": "mlp", "hidden": [7, 6], "norm": "layer", "dropout": 0.5}),
    (ROWS, {"name": "mlp", "hidden": [7, 6], "norm": "batch"}),
    (IMAGES, {"name": "cnn", "channels": [4, 5], "depth": 2, "residual": True, "pool": ["max", "none"]}),
    (IMAGES, {"name": "cnn", "channels": [4, 5], "kernel": [4, 2], "pool": "average", "norm": "none"}),
    (IMAGES, {"name": "cnn", "channels": [4, 5], "kernel": [3, 4], "pool": "stride", "head": "average"}),
    (IMAGES, {"name": "cnn", "channels": [4], "kernel": [3], "padding": "valid", "pool": "stride", "hidden": [6, 5]}),
    *(
        (spec, {"name": "rnn", "hidden": 6, "cell": cell, "layers": layers, "bidirectional": both, "read": read})
        for spec in (IMAGES, ROWS)
        for cell, layers, both, read in (
            ("rnn", 1, False, "last"),
            ("lstm", 2, True, "last"),
            ("gru", 2, True, "mean"),
            ("lstm", 1, False, "mean"),
        )
    ),
    (IMAGES, {"name": "transformer", "patch": 4, "width": 8, "depth": 2, "heads": 2, "positions": "sincos"}),
    (ROWS, {"name": "transformer", "width": 8, "depth": 1, "heads": 4, "read": "mean", "mlp_ratio": 0.7}),
]


def build(spec, config, outputs=3):
    """A network with random weights, also where training starts at 0, and random batch statistics."""
    torch.manual_seed(0)
    network = models.build(registry.find("model", config["name"])(**listed(config)), spec, outputs)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / 5)
        if config["name"] == "cnn":  # else its logits are so large that each probability is 0 or 1
            [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(0.05)
    return ExportedNetwork(network, spec)


def listed(config):
    """`kernel: 3` as the list that the config makes of it."""
    return {
        key: [value] if key in ("kernel", "pool") and not isinstance(value, list) else value
        for key, value in config.items()
    }


def write(folder, network, config):
    """The exported file, as the exporter writes it."""
    accuracy = {"accuracy": 0.5, "samples": 10, "split": "test"}
    facts = {"model": config["name"], "classes": list(network.spec.classes), "input": describe_input(network.spec)}
    facts |= {"accuracy": accuracy, "nnx": "1", "checkpoint_sha256": "0" * 64}
    for ending, content in numpy.encode(network, facts).items():
        (folder / f"exported{ending}").write_bytes(content)
    return folder / "exported.py"


def check_equal(path, network):
    spec, rng = network.spec, np.random.default_rng(0)
    inputs = rng.integers(0, 256, (9, *spec.shape)).astype(np.uint8)
    inputs = inputs if spec.is_image else inputs.astype(np.float32) / 50
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    assert np.abs(expected - expected[0]).max() > 1e-4, "the network tells samples apart"
    output = numpy.load(path)(inputs)
    assert output.dtype == np.float32
    assert np.abs(output - expected).max() < 1e-5


@pytest.mark.parametrize(("spec", "config"), VARIANTS)
def test_every_option_of_an_architecture(tmp_path, spec, config):
    network = build(spec, config)
    check_equal(write(tmp_path, network, config), network)


@pytest.mark.parametrize("name", sorted(activations()))
def test_every_activation(tmp_path, name):
    """In a network, and each alone on numbers up to +-100."""
    config = {"name": "mlp", "hidden": [30], "activation": name}
    network = build(ROWS, config)
    check_equal(write(tmp_path, network, config), network)
    x = torch.cat([torch.linspace(-100, 100, 101), torch.linspace(-4, 4, 101)])
    module = activations()[name]().eval()
    slope = [module.weight.detach().numpy()] if isinstance(module, nn.PReLU) else []
    with np.errstate(all="raise", under="ignore"):
        output = getattr(_numpy_layers, name)(x.numpy(), *slope)
    torch.testing.assert_close(torch.from_numpy(output).float(), module(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_network_with_one_output(tmp_path):
    """Two classes by a sigmoid."""
    spec = Spec((5,), ("no", "yes"), (1.0,) * 5, (2.0,) * 5)
    config = {"name": "mlp", "hidden": [4]}
    network = build(spec, config, outputs=1)
    check_equal(write(tmp_path, network, config), network)


def test_it_reads_like_a_lesson(tmp_path):
    """It has the forward pass as a list of layers, and only the functions that it uses."""
    config = {"name": "mlp", "hidden": [4]}
    text = write(tmp_path, build(IMAGES, config), config).read_text()
    assert "weighted_sum = x @ weights + bias" in text
    assert "    # Hidden layer 1: 192 inputs, 4 units\n    x = linear(x, numbers" in text
    for absent in ("def lstm", "def gelu", "import math", "mypy", "torch"):
        assert absent not in text
    assert max(map(len, text.splitlines())) <= 120


def test_lines_are_short_and_no_function_is_unused(tmp_path):
    config = {"name": "rnn", "cell": "gru", "hidden": 3, "layers": 2, "bidirectional": True}
    code = write(tmp_path, build(IMAGES, config), config).read_text()
    assert max(map(len, code.splitlines())) <= 120
    functions = re.findall(r"^def (\w+)", code, re.MULTILINE)
    assert "gru" in functions
    assert "tanh" not in functions
    assert all(len(re.findall(rf"(?<![\w.]){name}\(", code)) > 1 for name in functions)


def test_it_runs_as_a_program_without_torch(tmp_path):
    config = {"name": "cnn", "channels": [4]}
    path = write(tmp_path, build(IMAGES, config), config)
    np.save(tmp_path / "one.npy", np.zeros((2, 12, 8), np.uint8))
    code = "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, path, tmp_path / "one.npy"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path / 'one.npy'}: ")


def test_class_names_can_not_add_code(tmp_path):
    spec = Spec((5,), ('"]; raise SystemExit #', '\'\n"""', "{x}"), (1.0,) * 5, (2.0,) * 5)
    config = {"name": "mlp", "hidden": [4]}
    network = build(spec, config)
    path = write(tmp_path, network, config)
    check_equal(path, network)


def test_an_unknown_architecture_is_refused(tmp_path):
    config = {"name": "mlp", "hidden": [4]}
    with pytest.raises(InputError, match="has no forward pass of maxout; use another format"):
        write(tmp_path, build(ROWS, config), {"name": "maxout"})
