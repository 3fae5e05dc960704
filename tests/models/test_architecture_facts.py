"""Training setup takes the facts about an architecture from its file, never from its name."""

import sys
from textwrap import dedent

import pytest
import torch

from nnx import config, models
from nnx.config import registry
from nnx.system import device as devices
from nnx.training.setup import prepare, runtime_for
from nnx.training.step import StepMethod

CPUS = {
    "AVX2": "fma avx2",
    "AVX-512": "fma avx2 avx512f",
    "AVX-512 with bfloat16": "fma avx2 avx512f avx512_bf16",
    "AVX2 with bfloat16": "fma avx2 amx_bf16",
    "neither": "fma sse4_2",
    "bfloat16 without AVX2": "bf16 asimd amx_bf16",
}
CHANNELS_LAST = "channels_last: ClassVar = True"
BFLOAT16 = "prefers_bfloat16: ClassVar = True"

CONVOLUTIONAL = """
    from typing import ClassVar, Literal
    from torch import nn
    from nnx.models import ModelConfig

    class Config(ModelConfig):
        "A small convolutional network."
        name: Literal["NAME"] = "NAME"
        FACTS

    class Model(nn.Module):
        def __init__(self, config, spec, outputs):
            super().__init__()
            C, H, W = spec.shape
            self.conv = nn.Conv2d(C, 4, 3, padding=1)
            self.output = nn.Linear(4 * H * W, outputs)

        def forward(self, x):
            return self.output(self.conv(x).relu().flatten(1))
"""
FULLY_CONNECTED = """
    from typing import Literal
    from torch import nn
    from nnx.models import ModelConfig

    class Config(ModelConfig):
        "A small fully connected network."
        name: Literal["NAME"] = "NAME"

    class Model(nn.Module):
        def __init__(self, config, spec, outputs):
            super().__init__()
            self.hidden = nn.Linear(spec.size, 8)
            self.activation = nn.ReLU()
            self.output = nn.Linear(8, outputs)

        def forward(self, x):
            return self.output(self.activation(self.hidden(x.flatten(1))))
"""
PLAIN_LAYERS = """
        def plain_layers(self):
            return [self.hidden, self.activation, self.output]
"""


@pytest.fixture
def add_architecture(tmp_path, monkeypatch):
    """Adds a file to nnx.models, until the test ends."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    added = []

    def add(name, code, *facts):
        text = dedent(code).replace("NAME", name).replace("FACTS", "\n    ".join(facts))
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        added.append(name)

    yield add
    for name in added:
        sys.modules.pop(f"{models.__name__}.{name}", None)
        vars(models).pop(name, None)


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CPUS.values(), ids=CPUS)
def cpu(request, monkeypatch):
    monkeypatch.setattr(devices.platform, "cpu_info", lambda key: request.param)
    return request.param


def settings(model):
    return config.from_dict({"dataset": "digits", "model": model, "device": "cpu"}, "test")


def choices(setup_or_runtime):
    """(value, or None if there is no such choice) of layout and precision, and whether images are channels-last."""
    runtime = getattr(setup_or_runtime, "runtime", setup_or_runtime)
    values = {choice.what: choice.value for choice in runtime.choices}
    return values.get("layout"), values["precision"], runtime.channels_last, runtime.dtype


def test_the_same_facts_give_the_choices_of_cnn(cpu, add_architecture):
    add_architecture("sibling", CONVOLUTIONAL, CHANNELS_LAST, BFLOAT16)
    assert choices(runtime_for(settings("sibling"))) == choices(runtime_for(settings("cnn")))
    assert choices(prepare(settings("sibling"))) == choices(prepare(settings("cnn")))


def test_the_reason_is_the_cpus_instructions(add_architecture, monkeypatch):
    monkeypatch.setattr(devices.platform, "cpu_info", lambda key: CPUS["AVX-512 with bfloat16"])
    add_architecture("sibling", CONVOLUTIONAL, BFLOAT16)
    precision = next(choice for choice in runtime_for(settings("sibling")).choices if choice.what == "precision")
    assert (precision.value, precision.reason) == ("bfloat16", "this CPU has instructions for it")


def test_without_the_facts_there_is_neither(cpu, add_architecture):
    add_architecture("unmeasured", CONVOLUTIONAL, "pass")
    assert choices(prepare(settings("unmeasured"))) == (None, "float32", False, torch.float32)


def test_the_cpus_give_every_combination(monkeypatch):
    """The control: the flags above lead cnn to each layout and each precision."""
    combinations = set()
    for flags in CPUS.values():
        monkeypatch.setattr(devices.platform, "cpu_info", lambda key, flags=flags: flags)
        combinations.add(choices(runtime_for(settings("cnn")))[:2])
    assert combinations == {
        (layout, precision) for layout in ("channels last", "channels first") for precision in ("float32", "bfloat16")
    }


@pytest.mark.parametrize(
    ("code", "method"),
    [(FULLY_CONNECTED + PLAIN_LAYERS, StepMethod.MATRICES), (FULLY_CONNECTED, StepMethod.AUTOGRAD)],
    ids=["plain_layers", "none"],
)
def test_plain_layers_are_trained_by_matrices(code, method, add_architecture, monkeypatch):
    monkeypatch.setattr(devices.platform, "cpu_info", lambda key: CPUS["AVX2"])
    add_architecture("dense", code)
    assert prepare(settings("dense")).step_method is method


def test_the_files_are_gone_after_a_test(add_architecture):
    assert not {"sibling", "unmeasured", "dense"} & set(registry.names("model"))
    assert not {f"nnx.models.{name}" for name in ("sibling", "unmeasured", "dense")} & sys.modules.keys()
