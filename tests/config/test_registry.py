"""The registry finds every component by its name, and only by its name."""

import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from examples import example, required

from nnx import config, datasets, losses, models, optimizers, schedules
from nnx.config import registry

ALL = [(kind, name) for kind in registry.LOCATIONS for name in registry.names(kind)]
UNIONS = {"loss": losses.Loss, "optimizer": optimizers.OptimizerConfig, "schedule": schedules.Schedule}


@pytest.mark.parametrize(("kind", "package"), [("model", models), ("dataset", datasets)])
def test_names_are_the_files(kind, package):
    files = Path(package.__file__).parent.glob("[!_]*.py")
    assert registry.names(kind) == sorted(file.stem for file in files)


@pytest.mark.parametrize("kind", UNIONS)
def test_names_are_the_members_of_the_union(kind):
    """The registry would find a class that `Loss = A | B` leaves out, but the type checker would not know it."""
    members = typing.get_args(UNIONS[kind])
    assert registry.names(kind) == sorted(member.model_fields["name"].default for member in members)
    assert {registry.find(kind, name) for name in registry.names(kind)} == set(members)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_component_has_its_name_and_a_description(kind, name):
    component = registry.find(kind, name)
    assert issubclass(component, registry.Component)
    assert component.model_fields["name"].default == name
    assert typing.get_args(component.model_fields["name"].annotation) == (name,)
    assert example(component).name == name, "every default is valid"
    assert (component.__doc__ or registry.module(kind, name).__doc__ or "").strip()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_component_is_strict_and_immutable(kind, name):
    component = registry.find(kind, name)
    with pytest.raises(ValueError, match="frozen"):
        example(component).name = "other"
    with pytest.raises(ValueError, match="Extra inputs"):
        component(**required(component), nonsense=1)


@pytest.mark.parametrize("kind", registry.LOCATIONS)
def test_an_unknown_name_gets_a_suggestion_or_a_list(kind):
    name = registry.names(kind)[0]
    with pytest.raises(LookupError, match=f"unknown {kind} '{name}x', did you mean '{name}'"):
        registry.find(kind, name + "x")
    with pytest.raises(LookupError) as caught:
        registry.find(kind, "zzzzzz")
    assert str(caught.value) == f"unknown {kind} 'zzzzzz', one of: {', '.join(registry.names(kind))}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("model", "_layers"), ("model", "__init__"), ("dataset", "_idx"), ("loss", "Component"), ("model", "")],
)
def test_private_names_are_not_components(kind, name):
    with pytest.raises(LookupError, match="unknown"):
        registry.find(kind, name)


def test_a_new_file_is_a_new_component(tmp_path, monkeypatch):
    (tmp_path / "perceptron.py").write_text(
        "from typing import Literal\nfrom nnx.config.registry import Component\n"
        "class Config(Component):\n    name: Literal['perceptron'] = 'perceptron'\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert "perceptron" in registry.names("model")
    assert registry.find("model", "perceptron")().name == "perceptron"
    made = config.parse("dataset: digits\nmodel: perceptron\n", "a.yaml")
    assert made.model.name == "perceptron"


def test_suggest():
    assert registry.suggest("adamm", ["sgd", "adam"]) == ", did you mean 'adam'?"
    assert registry.suggest("qqq", ["sgd", "adam"]) == ", one of: adam, sgd"
    assert registry.suggest("qqq", []) == ""


def test_reading_configs_imports_no_torch():
    """`--help` must be fast; torch takes seconds to import."""
    code = "import sys, nnx, nnx.config, nnx.config.registry; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
