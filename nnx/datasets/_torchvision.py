"""torchvision's readers of CIFAR, SVHN and USPS. It takes 5 s to import, so they import it when they are called."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnx.datasets import Source, Split
from nnx.datasets._ensure_files import ensure_files
from nnx.errors import DataError, MachineError


def read(cls: str, folder: Path, *, only: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """torchvision's dataset object of class `cls`, read from `folder`; `only` replaces tables of that class.

    Raises DataError where torchvision can't read the files, MachineError where the machine can't.
    """
    try:
        return type(cls, (_class(cls),), dict(only or {}))(folder, **options)
    except (PermissionError, MemoryError) as error:
        raise MachineError(
            f"{folder}: {cls} can't be read ({error}); check the files' permissions and the memory"
        ) from None
    except Exception as error:  # its parsers trip over broken files in many ways
        raise DataError(
            f"{folder}: the files of {cls} can't be read ({error}); delete them and run again to download them afresh"
        ) from None


def cifar(name: str, cls: str, folder: Path, base: str, *, train: Sequence[str], test: str, meta: str) -> Source:
    """CIFAR in `folder`/`base`, from the files that hold its training data, test data and class names.

    The files are pickles, which can run code when read: torchvision reads them only if their MD5s are those in its
    table.
    """
    ensure_files(name, folder / base, [*train, test, meta])

    def half(*, training: bool) -> Any:
        other: dict[str, list[str]] = {
            "test_list" if training else "train_list": []
        }  # else torchvision opens the test data to hash it
        return read(cls, folder, only=other, train=training)

    def split(data: Any) -> Split:
        return Split(
            np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets, np.int64)
        )  # (N, 3, H, W)

    training = half(training=True)
    return Source(split(training), lambda: split(half(training=False)), tuple(training.classes))


def _class(cls: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, cls)
