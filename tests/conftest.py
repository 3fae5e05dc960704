"""What all tests share: one thread, so that equal work gives equal bits on any machine, and a config small enough to
train in a blink."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is first imported, which is after this

settings.register_profile(
    "nnx", deadline=None, derandomize=True, database=None
)  # a busy machine is no failure; nor is a lucky draw a pass
settings.load_profile("nnx")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded data is kept in a folder of these tests', not the user's."""
    os.environ["NNX_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny() -> Callable[..., str]:
    """The text of a config on the digits, `lines` added: tiny("train: {epochs: 1}")."""

    def text(*lines: str, model: str = "{name: mlp, hidden: [8]}") -> str:
        return "\n".join(["dataset: {name: digits, validation: 0.1}", f"model: {model}", *lines, ""])

    return text


@pytest.fixture(scope="session")
def real_mnist() -> str:
    """The data folder with the real MNIST; skips the test where there is none."""
    folder = os.environ.get("NNX_DATA_DIR")
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not folder or not all((Path(folder) / "MNIST" / "raw" / name).is_file() for name in names):
        pytest.skip("needs NNX_DATA_DIR with the four files of MNIST in MNIST/raw")
    return folder
