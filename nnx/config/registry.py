"""The file name is the registry: `nnx/models/mlp.py` is `model: {name: mlp}`.

Datasets and models are packages with one file a part; losses, optimizers and schedules are small enough to share a
file. Nothing is registered: adding the file (or the class) is all it takes, and only the part that is asked for is
imported.
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
    """A piece of config: unknown keys, wrong types, infinities and NaN are errors; values never change after
    parsing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)


class Component(StrictModel):
    """A piece of config that names what it configures. Subclasses narrow `name` to a Literal with a default."""

    name: str


def names(kind: str) -> list[str]:
    """Every part of a `kind` ("model", "dataset", ...), sorted."""
    home = importlib.import_module(LOCATIONS[kind])
    if hasattr(home, "__path__"):
        return sorted(module.name for module in pkgutil.iter_modules(home.__path__) if not module.name.startswith("_"))
    return sorted(_classes(home))


def module(kind: str, name: str) -> ModuleType:
    """The module that holds part `name`. Raises LookupError, with a suggestion, where there is none."""
    if name not in (known := names(kind)):
        raise LookupError(f"unknown {kind} {name!r}{suggest(name, known)}")
    home = importlib.import_module(LOCATIONS[kind])
    return importlib.import_module(f"{LOCATIONS[kind]}.{name}") if hasattr(home, "__path__") else home


def find(kind: str, name: str) -> type[Component]:
    """The Config class of part `name`. Raises LookupError, with a suggestion, where there is none."""
    home = module(kind, name)
    found: type[Component] = home.Config if hasattr(home, "Config") else _classes(home)[name]
    return found


def suggest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'adam'?" where one of `known` is close, else ", one of: ..."."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]!r}?"
    return f", one of: {', '.join(known)}" if known else ""


def _classes(home: ModuleType) -> dict[str, type[Component]]:
    parts = (item for item in vars(home).values() if isinstance(item, type) and issubclass(item, Component))
    return {
        str(part.model_fields["name"].default): part
        for part in parts
        if isinstance(part.model_fields["name"].default, str)
    }
