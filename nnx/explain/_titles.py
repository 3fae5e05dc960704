"""The title of a page: the recipe, or the architecture, and the data."""

import re
from pathlib import Path

from nnx.config import Config, registry
from nnx.config.registry import Component

FILES_OF_A_RUN = ("checkpoint", "last", "previous", "config", "run")  # a config read from them has no name of its own
TIMESTAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")


def page_title(config: Config) -> str:
    """ "mnist_cnn on MNIST". Without a recipe: "cnn on MNIST"."""
    return f"{recipe_name(config)} on {data_name(config.dataset)}"


def recipe_name(config: Config) -> str:
    """The recipe that the config was read from, or that the run folder is named after; else the architecture."""
    if config.recipe not in FILES_OF_A_RUN:
        return config.recipe
    folder = Path(config._source.name).parent.name
    return TIMESTAMP.sub("", folder) if TIMESTAMP.search(folder) else config.model.name


def data_name(dataset: Component) -> str:
    """The name of a known dataset: "MNIST"; the folder or file of your own data; the shape of a toy problem."""
    if path := getattr(dataset, "path", None):
        return Path(path).absolute().name
    if kind := getattr(dataset, "kind", None):
        return str(kind)
    title, colon, _ = (registry.module("dataset", dataset.name).__doc__ or "").partition(": ")
    return title if colon and "\n" not in title and len(title) < 30 else dataset.name
