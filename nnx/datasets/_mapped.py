"""Samples that are larger than memory: they stay in their file and are read when they are indexed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets import _changes
from nnx.errors import MachineError
from nnx.system import platform

SHORTENED = "became shorter while it was in use; restore the file, then run the command again or resume the run"
SHARE = 0.5  # of the free memory that data may take; the network and its activations need the rest


class Mapped:
    """The samples at N `rows` of the memory-mapped array `whole`, as an array of shape (N, *whole.shape[1:])."""

    def __init__(self, whole: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.whole = whole
        self.rows = rows
        self.shape = (len(rows), *whole.shape[1:])
        self.dtype = whole.dtype
        self.ndim = whole.ndim
        self.nbytes = len(rows) * whole[:1].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The samples at `index`, read from the file."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        samples: NDArray[Any] = self.whole[(self.rows[first], *rest)]
        return np.ascontiguousarray(samples)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, index: NDArray[np.int64], axis: int = 0) -> "Mapped":
        """The samples at `index`, in that order. Reads nothing."""
        assert axis == 0
        return Mapped(self.whole, self.rows[index])


_checks: list[tuple[Path, threading.Thread, list[bool]]] = []
_opened: dict[Path, os.stat_result] = {}  # the mapped files, as they were when they were opened


def note_mapped(path: Path) -> None:
    """Remember the size and the content of a file that is being memory-mapped, for `check_mapped_files` and the end of
    a run."""
    _opened[path] = path.stat()
    _changes.record_mapped(path)


def find_shortened() -> Path | None:
    """A mapped file that has become shorter since it was opened: reading beyond its end is a bus error."""
    for path, before in _opened.items():
        try:
            now = os.stat(path)
        except OSError:  # removed: its content stays readable
            continue
        if os.path.samestat(now, before) and now.st_size < before.st_size:  # else replaced: the same holds
            return path
    return None


def check_in_background(path: Path, is_intact: Callable[[], bool]) -> None:
    """Run `is_intact` in a thread; `check_mapped_files` raises what it finds."""
    damaged: list[bool] = []
    thread = threading.Thread(target=lambda: damaged.append(not is_intact()), daemon=True)
    thread.start()
    _checks.append((path, thread, damaged))


def check_mapped_files(*, wait: bool = True) -> None:
    """Raises MachineError if a mapped file has become shorter since it was opened, or if a check in the background
    failed. Waits for those checks, unless told not to."""
    if path := find_shortened():
        raise MachineError(f"{path}: {SHORTENED}")
    for path, thread, damaged in _checks[:]:
        if wait:
            thread.join()
        if not thread.is_alive():
            _checks.remove((path, thread, damaged))
            if damaged != [False]:
                cure = "delete its folder, then run the command again"
                raise MachineError(f"{path}: is damaged, its content does not match its checksum; {cure}")


def is_mapped(array: Any) -> bool:
    """Whether `array` is in a file: a memory map, a view of one, or a `Mapped`."""
    while array is not None and not isinstance(array, np.memmap | Mapped):
        array = getattr(array, "base", None)
    return array is not None


def fits(size: int) -> bool:
    """Whether `size` bytes are at most SHARE of the free memory."""
    return size <= platform.free_memory() * SHARE
