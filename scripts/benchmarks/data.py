"""The images for all contestants: MNIST if found, else random images in its format, which train as fast."""

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@contextmanager
def provided() -> Iterator[bool]:
    """Set NNX_DATA_DIR to a folder with the data. Yields whether it is the real MNIST."""
    from nnx.datasets import find_folder
    from nnx.datasets.mnist import Config

    folder = find_folder(Config())
    real = all((folder / "MNIST" / "raw" / name).is_file() for name in FILES)
    with tempfile.TemporaryDirectory() as temporary:
        if not real:
            folder = Path(temporary)
            write_synthetic(folder)
        os.environ["NNX_DATA_DIR"] = str(folder)
        yield real


def write_synthetic(folder: Path) -> None:
    """Write random images and labels in MNIST's format. Not as many, because nnx checks the hash of files of MNIST's
    length."""
    import numpy as np

    raw, generator = folder / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for images, labels, n in ((*FILES[:2], 59_904), (*FILES[2:], 9_984)):
        (raw / images).write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + generator.bytes(n * 28 * 28))
        (raw / labels).write_bytes(struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n)))
