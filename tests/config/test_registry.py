"""The registry: every part is found by its name, and only by its name."""

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


@pytest.mark.parametrize(("kind", "home"), [("model", models), ("dataset", datasets)])
def test_names_are_the_files(kind, home):
    files = Path(home.__file__).parent.glob("[!_]*.py")
    assert registry.names(kind) == sorted(file.stem for file in files)


@pytest.mark.parametrize("kind", UNIONS)
def test_names_are_the_members_of_the_union(kind):
    """A class left out of `Loss = A | B` would be found, but not known to the type checker."""
    members = typing.get_args(UNIONS[kind])
    assert registry.names(kind) == sorted(member.model_fields["name"].default for member in members)
    assert {registry.find(kind, name) for name in registry.names(kind)} == set(members)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_part_is_what_its_name_says(kind, name):
    found = registry.find(kind, name)
    assert issubclass(found, registry.Component)
    assert found.model_fields["name"].default == name
    assert typing.get_args(found.model_fields["name"].annotation) == (name,)
    assert example(found).name == name, "every default is valid"
    assert (found.__doc__ or registry.module(kind, name).__doc__ or "").strip()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_part_is_strict_and_never_changes(kind, name):
    found = registry.find(kind, name)
    with pytest.raises(ValueError, match="frozen"):
        example(found).name = "other"
    with pytest.raises(ValueError, match="Extra inputs"):
        found(**required(found), nonsense=1)


@pytest.mark.parametrize("kind", registry.LOCATIONS)
def test_an_unknown_name_is_met_with_a_suggestion_or_a_list(kind):
    name = registry.names(kind)[0]
    with pytest.raises(LookupError, match=f"unknown {kind} '{name}x', did you mean '{name}'"):
        registry.find(kind, name + "x")
    with pytest.raises(LookupError) as caught:
        registry.find(kind, "zzzzzz")
    assert str(caught.value) == f"unknown {kind} 'zzzzzz', one of: {', '.join(registry.names(kind))}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("model", "_layers"), ("model", "__init__"), ("dataset", "_idx"), ("loss", "Part"), ("model", "")],
)
def test_what_is_private_is_no_part(kind, name):
    with pytest.raises(LookupError, match="unknown"):
        registry.find(kind, name)


def test_a_new_file_is_a_new_part(tmp_path, monkeypatch):
    (tmp_path / "perceptron.py").write_text(
        "from typing import Literal\nfrom nnx.config.registry import Part\n"
        "class Config(Part):\n    name: Literal['perceptron'] = 'perceptron'\n"
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


def test_importing_what_reads_configs_imports_no_torch():
    """`--help` answers at once; torch takes seconds to import."""
    code = "import sys, nnx, nnx.config, nnx.config.registry; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode
        == 0
    )
