"""Data folders for the tests: a tiny MNIST, and the real one where NNX_DATA_DIR has it."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from numpy.typing import NDArray
from tiny_idx import MNIST, idx, tiny


@pytest.fixture
def write_idx() -> Callable[..., None]:
    def write(path: Path, array: NDArray, *, packed: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if packed:
            Path(f"{path}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            path.write_bytes(idx(array))

    return write


@pytest.fixture
def tiny_mnist(tmp_path, write_idx) -> Path:
    """A data folder with an MNIST of 40 training and 20 test images."""
    arrays = (*tiny(40), *tiny(20, seed=1))
    for name, array in zip(MNIST, arrays, strict=True):
        write_idx(tmp_path / "MNIST" / "raw" / name, array)
    return tmp_path


@pytest.fixture
def real_mnist() -> str:
    """The data folder with the real MNIST; skips the test where there is none."""
    folder = os.environ.get("NNX_DATA_DIR")
    if not folder or not all((Path(folder) / "MNIST" / "raw" / name).is_file() for name in MNIST):
        pytest.skip("needs NNX_DATA_DIR with the four files of MNIST in MNIST/raw")
    return folder
