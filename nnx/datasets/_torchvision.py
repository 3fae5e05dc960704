"""Reads CIFAR, SVHN and USPS with torchvision, imported only when called because the import takes 5 s."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnx.datasets import Source, Split
from nnx.datasets._ensure_files import ensure_files
from nnx.errors import DataError, MachineError


def read(cls: str, folder: Path, *, only: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """torchvision's dataset object of class `cls`, read from `folder`; `only` overrides attributes of that class.

    Raises DataError if the files are damaged, MachineError if permissions or memory prevent reading them.
    """
    try:
        return type(cls, (_class(cls),), dict(only or {}))(folder, **options)
    except (PermissionError, MemoryError) as error:
        problem = f"{cls} can't be read ({error})"
        raise MachineError(f"{folder}: {problem}; check the files' permissions and the free memory") from None
    except Exception as error:  # damaged files make its parsers fail in many ways
        problem = f"the files of {cls} can't be read ({error})"
        raise DataError(f"{folder}: {problem}; delete them and run again to download them again") from None


def cifar(name: str, cls: str, folder: Path, base: str, *, train: Sequence[str], test: str, meta: str) -> Source:
    """CIFAR in `folder`/`base`, from the files with its training data, test data and class names.

    The files are pickles, which can run code when read: torchvision reads them only if their MD5 hashes match its own.
    """
    ensure_files(name, folder / base, [*train, test, meta])

    def read_half(*, training: bool) -> Any:
        # Without this torchvision would open the files of the other half, such as the test data, to hash them
        other_half: dict[str, list[str]] = {"test_list" if training else "train_list": []}
        return read(cls, folder, only=other_half, train=training)

    def to_split(data: Any) -> Split:
        images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))  # (N, 3, H, W)
        return Split(images, np.array(data.targets, np.int64))

    training = read_half(training=True)
    test_files = (folder / base / test,)
    return Source(
        to_split(training), lambda: to_split(read_half(training=False)), tuple(training.classes), test_files=test_files
    )


def _class(cls: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, cls)
