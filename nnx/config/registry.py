"""The file name is the registry: `nnx/models/mlp.py` is `model: {name: mlp}`.

Each dataset and each model is a file in a package. Losses, optimizers and schedules are small: each kind is one file
with a class per component. There is no registration step: to add a component, add its file (or class). Only the
components that a config names are imported.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pydantic import BaseModel, ConfigDict

LOCATIONS = {
    "dataset": "nnx.datasets",
    "model": "nnx.models",
    "loss": "nnx.losses",
    "optimizer": "nnx.optimizers",
    "schedule": "nnx.schedules",
}


class StrictModel(BaseModel):
    """An immutable section of a config. Unknown keys, wrong types, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)


class Component(StrictModel):
    """The config of a component, which `name` selects. Subclasses narrow `name` to a Literal with a default."""

    name: str


def names(kind: str) -> list[str]:
    """The names of all components of a `kind` ("model", "dataset", ...), sorted."""
    location = importlib.import_module(LOCATIONS[kind])
    if not hasattr(location, "__path__"):
        return sorted(_component_classes(location))
    files = pkgutil.iter_modules(location.__path__)
    return sorted(file.name for file in files if not file.name.startswith("_"))


def module(kind: str, name: str) -> ModuleType:
    """The module that defines component `name`. Raises LookupError, with a suggestion, if there is none."""
    if name not in (known := names(kind)):
        raise LookupError(f"unknown {kind} {name!r}{suggest(name, known)}")
    location = importlib.import_module(LOCATIONS[kind])
    return importlib.import_module(f"{LOCATIONS[kind]}.{name}") if hasattr(location, "__path__") else location


def find(kind: str, name: str) -> type[Component]:
    """The Config class of component `name`. Raises LookupError, with a suggestion, if there is none."""
    source = module(kind, name)
    component: type[Component] = source.Config if hasattr(source, "Config") else _component_classes(source)[name]
    return component


def suggest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'adam'?" if one of `known` is similar to `word`, else ", one of: ...", those with `word` in them
    if there are several."""
    known = sorted(known)
    if len(word) > 2 and len(longer := [name for name in known if word.lower() in name.lower()]) > 1:
        return f", one of: {', '.join(longer)}"
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f", did you mean {by_lower[close[0]]!r}?"
    return f", one of: {', '.join(known)}" if known else ""


def _component_classes(source: ModuleType) -> dict[str, type[Component]]:
    """The Component classes of a module by their default `name`."""
    classes = [item for item in vars(source).values() if isinstance(item, type) and issubclass(item, Component)]
    by_name = {component.model_fields["name"].default: component for component in classes}
    return {name: component for name, component in by_name.items() if isinstance(name, str)}
