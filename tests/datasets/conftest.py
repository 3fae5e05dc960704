"""Data folders for the tests: a tiny MNIST."""

import gzip
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
