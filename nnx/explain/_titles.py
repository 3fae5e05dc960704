"""The title of a page: the recipe, or the architecture, and the data."""

import re
from contextlib import suppress
from pathlib import Path

from nnx.config import Config, registry
from nnx.config.registry import Component
from nnx.errors import printable
from nnx.system import files

FILES_OF_A_RUN = ("checkpoint", "last", "previous", "config", "run")  # a config read from them has no name of its own
FIRST_LINE = "# recipe: "  # and its name: so begins the config.yaml of a run
MAX_NAME = 200  # characters of it
TIMESTAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")


def page_title(config: Config) -> str:
    """ "mnist_cnn on MNIST". Without a recipe: "cnn on MNIST"."""
    return f"{recipe_name(config)} on {data_name(config.dataset)}"


def recipe_name(config: Config) -> str:
    """The recipe that the config was read from; for a run's config, the one that its folder names; else the
    architecture."""
    if config.recipe not in FILES_OF_A_RUN:
        return config.recipe
    folder = Path(config._source.name).absolute().parent
    named_after = TIMESTAMP.sub("", folder.name) if TIMESTAMP.search(folder.name) else config.model.name
    return _recorded_name(folder) or named_after


def named_yaml(config: Config) -> str:
    """The config as YAML for a run folder. A comment in its first line keeps the recipe's name, for `recipe_name`."""
    return f"{FIRST_LINE}{printable(recipe_name(config))[:MAX_NAME]}\n{config.to_yaml()}"


def _recorded_name(folder: Path) -> str:
    """The recipe's name in the folder's config.yaml, or "" where there is none."""
    path = folder / "config.yaml"
    with suppress(OSError, UnicodeDecodeError):
        files.check_regular(path)
        with path.open(encoding="utf-8") as file:
            line = file.readline(len(FIRST_LINE) + MAX_NAME + 1)
        if line.startswith(FIRST_LINE):
            return printable(line.removeprefix(FIRST_LINE).strip())
    return ""


def data_name(dataset: Component) -> str:
    """The name of a known dataset: "MNIST"; the folder or file of your own data; the shape of a toy problem."""
    if path := getattr(dataset, "path", None):
        return Path(path).absolute().name
    if kind := getattr(dataset, "kind", None):
        return str(kind)
    title, colon, _ = (registry.module("dataset", dataset.name).__doc__ or "").partition(": ")
    return title if colon and "\n" not in title and len(title) < 30 else dataset.name
