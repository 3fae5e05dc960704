"""Notices files whose content changes while a run uses them: memory-mapped files, and test files opened at its end."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HASHED = 2**25  # bytes of a file: the content of a larger one is not hashed


@dataclass(frozen=True)
class FileState:
    """A file as it was when a dataset was loaded. `mapped`: its content is read through a memory map."""

    path: Path
    status: os.stat_result
    sha256: str | None  # of a file up to HASHED bytes
    mapped: bool

    @classmethod
    def of(cls, path: Path, *, mapped: bool = False) -> "FileState":
        """The present state of a file. Raises OSError."""
        status = path.stat()
        return cls(path, status, _sha256(path) if status.st_size <= HASHED else None, mapped)

    @property
    def has_changed(self) -> bool:
        """Whether a reader now gets other content: by its hash or, of a large file, by its size and time stamps."""
        try:
            now = self.path.stat()
            if self.mapped and not os.path.samestat(now, self.status):  # replaced: the map keeps the old content
                return False
            if self.sha256:
                return now.st_size != self.status.st_size or _sha256(self.path) != self.sha256
        except OSError:  # removed: a map keeps the content
            return not self.mapped
        return _stamps(now) != _stamps(self.status)


_recorded: list[FileState] | None = None


@contextmanager
def recording() -> Iterator[list[FileState]]:
    """Yields a list to which `record_mapped` adds, inside."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = previous


def record_mapped(path: Path) -> None:
    """Record the state of a file that is being memory-mapped. Raises OSError."""
    if _recorded is not None:
        _recorded.append(FileState.of(path, mapped=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamps(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
