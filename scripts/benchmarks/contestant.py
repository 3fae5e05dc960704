"""The protocol of a contestant: it trains on request and reports the time. `measure.Child` is the other end.

out: {"ready": {"torch": "2.14.1"}}    in: 25600    out: {"seconds": 1.9, "samples": 25600, "loss": 0.31}
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZES, BATCH, LR = (784, 256, 128, 10), 128, 1e-3  # the same for all contestants
WARM_UP = 20 * BATCH
# Of 60,000 images, without the smaller last batch, for which some tools would compile again
EPOCH = 468 * BATCH


def serve(train: Callable[[int], tuple[int, float | None]], **facts: Any) -> None:
    """Warm up, report `facts`, then call `train(samples) -> (samples, loss)` for every line of stdin."""
    train(WARM_UP)
    _send({"ready": facts})
    for line in sys.stdin:
        begun = time.perf_counter()
        samples, loss = train(int(line))
        _send({"seconds": time.perf_counter() - begun, "samples": samples, "loss": loss})


def _send(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def portions(samples: int) -> tuple[int, int]:
    """For tools that train whole epochs: the number of epochs, and the samples of each."""
    epochs = max(1, round(samples / EPOCH))
    return epochs, min(EPOCH, samples // BATCH * BATCH)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of `loader`, epoch after epoch."""
    while True:
        yield from loader


def folder() -> Path:
    """The data folder, in torchvision's layout. The parent process sets it."""
    return Path(os.environ["NNX_DATA_DIR"])


def dataset() -> Any:
    """torchvision's MNIST with the usual transforms."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    return MNIST(
        folder(), transform=transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    )


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """(60000, 784) float32 normalised images and int64 labels, for tools that train on arrays."""
    raw = folder() / "MNIST" / "raw"
    images = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, SIZES[0])
    labels = np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8, offset=8)
    return (images.astype(np.float32) / 255 - np.float32(0.1307)) / np.float32(0.3081), labels.astype(np.int64)
