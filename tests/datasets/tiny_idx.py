"""Tiny files in MNIST's format, written without anything of nnx."""

import struct

import numpy as np
from numpy.typing import NDArray

CODES = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: NDArray) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def tiny(count: int, classes: int = 10, *, first_label: int = 0, seed: int = 0) -> tuple[NDArray, NDArray]:
    """`count` images (N, 6, 5), not square so that a transposition shows, and their uint8 labels, all classes in
    turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 5), dtype=np.uint8)
    return images, (np.arange(count) % classes + first_label).astype(np.uint8)
