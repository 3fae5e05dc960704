"""Settings and fixtures of all tests: one thread, so that results are bit-identical on any machine; a tiny config."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import browser  # noqa: F401 - a fixture
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported, after this
for name in ("COLUMNS", "LINES"):  # readline, imported by pytest, sets them for the workers of pytest-xdist
    os.environ.pop(name, None)

# Tests must not fail because a machine is busy, nor pass because of lucky draws
settings.register_profile("nnx", deadline=None, derandomize=True, database=None)
settings.load_profile("nnx")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a temporary folder as the cache of decoded data, not the user's."""
    os.environ["NNX_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny() -> Callable[..., str]:
    """A function that returns the text of a digits config with additional lines: tiny("train: {epochs: 1}")."""

    def text(*lines: str, model: str = "{name: mlp, hidden: [8]}") -> str:
        return "\n".join(["dataset: {name: digits, validation: 0.1}", f"model: {model}", *lines, ""])

    return text


@pytest.fixture(scope="session")
def real_mnist() -> str:
    """The data folder with the real MNIST. Skips the test if there is none."""
    folder = os.environ.get("NNX_DATA_DIR")
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not folder or not all((Path(folder) / "MNIST" / "raw" / name).is_file() for name in names):
        pytest.skip("needs NNX_DATA_DIR with the four files of MNIST in MNIST/raw")
    return folder
