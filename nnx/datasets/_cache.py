"""Sources that were decoded once: their arrays lie in the cache folder, under a hash of all they depend on, and are opened memory-mapped.

    kept = cached("folder", depends, decode)  # decode(writer) is called where there is nothing for `depends` yet
    kept.arrays["train"], kept.facts, kept.note

An entry is a folder, `<name>-<hash>`: `<array>.bin` each, as it lies in memory, and `meta.json`, which says what they are. It is made
beside and renamed when it is complete. What is damaged or cut short is made anew.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnx import files
from nnx.errors import MachineError
from nnx.events import Choice

FORMAT = 1  # of an entry; others are made anew
DTYPES = ("uint8", "float32", "float64", "int64")


@dataclass(frozen=True)
class Depends:
    """What a decoded source depends on: the place it was named by, the options of its decoding, and its files as they are now."""

    source: str
    options: dict[str, Any]
    files: str  # a hash of their names, sizes and times of change

    @property
    def key(self) -> str:
        parts = [FORMAT, self.source, self.options, self.files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """What came of decoding: the arrays by name, plain values beside them, and where they were got from."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    note: Choice


@dataclass(frozen=True)
class Entry:
    """An entry of the cache, as `nnx list cache` shows it."""

    path: Path
    source: str
    size: int  # bytes
    used: float  # when it was last opened: seconds since 1970


class Writer:
    """Takes arrays piece by piece: into files of `folder`, or into memory where that is None."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._pieces: dict[str, list[NDArray[Any]]] = {}
        self._files: dict[str, IO[bytes]] = {}

    def add(self, name: str, piece: NDArray[Any]) -> None:
        """More rows, (n, *shape), for the array of this name."""
        piece = np.ascontiguousarray(piece)
        rows, *shape = self.shapes.get(name, (0, *piece.shape[1:]))
        assert tuple(shape) == piece.shape[1:]
        self.shapes[name], self.dtypes[name] = (rows + len(piece), *shape), str(piece.dtype)
        if self.folder is None:
            self._pieces.setdefault(name, []).append(piece)
            return
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
        self._files[name].write(piece.data.cast("B") if piece.size else b"")

    def restart(self) -> None:
        """Forget all that was added."""
        self.close()
        self.shapes.clear()
        self._pieces.clear()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was added to memory."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}


def folder() -> Path:
    """Where the entries lie: NNX_CACHE_DIR, else the user's cache folder."""
    if named := os.environ.get("NNX_CACHE_DIR"):
        return Path(named).expanduser()
    import platformdirs  # 20 ms

    return platformdirs.user_cache_path("nnx") / "arrays"


def stamp(files: Iterable[tuple[str, int, int]]) -> str:
    """A hash of files' names, sizes and times of change, in the order given."""
    digest = hashlib.sha256()
    for name, size, changed in files:
        digest.update(f"{name}\0{size}\0{changed}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def cached(name: str, depends: Depends, decode: Callable[[Writer], dict[str, Any]]) -> Kept:
    """The arrays and facts of `depends`, from the cache or, where they are not there, by `decode`, which may raise DataError.

    Where the cache can't be written, they are decoded into memory. Raises MachineError where the disk is full.
    """
    place = folder() / f"{name}-{depends.key}"
    if kept := _opened(place):
        return kept
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = (place.parent / f".{place.name}.lock").open("w")
    except OSError as error:
        writer = Writer(None)
        facts = decode(writer)
        why = f"{place.parent} can't be written ({error.strerror}), so that it is decoded at every start; NNX_CACHE_DIR names another"
        return Kept(writer.arrays(), facts, Choice("cache", "none", why))
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one decodes; the kernel lets go of it however that one ends
        try:
            if kept := _opened(place):
                return kept
            changed = _swept(place, depends)
            _make(place, depends, decode)
        finally:
            with contextlib.suppress(OSError):
                Path(lock.name).unlink()
    made = _opened(place)
    if made is None:
        raise MachineError(f"{place}: was written, but can't be read again; free some room, or name another folder as NNX_CACHE_DIR")
    why = "the source has changed since it was decoded" if changed else "kept for later runs; nnx list cache shows what there is"
    return Kept(made.arrays, made.facts, Choice("cache", "decoded anew" if changed else "decoded", why))


def entries() -> list[Entry]:
    """What there is in the cache, the largest first."""
    found = []
    for meta in folder().glob("*/meta.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            size = sum(file.stat().st_size for file in meta.parent.iterdir())
            found.append(Entry(meta.parent, str(json.loads(meta.read_text())["source"]), size, meta.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.size)


def clear() -> None:
    """Remove all entries. Raises MachineError."""
    for entry in entries():
        _remove(entry.path)


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:  # by another process
        pass
    except OSError as error:
        raise MachineError(f"{path}: can't be removed ({error.strerror})") from None


def _make(place: Path, depends: Depends, decode: Callable[[Writer], dict[str, Any]]) -> None:
    """The entry, made beside its place. Raises MachineError where the disk does not take it."""
    beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    writer = Writer(beside)
    try:
        beside.mkdir()
        facts = decode(writer)
        writer.close()
        arrays = {array: {"dtype": writer.dtypes[array], "shape": shape} for array, shape in writer.shapes.items()}
        meta = {"format": FORMAT, "source": depends.source, "options": depends.options, "arrays": arrays, "facts": facts}
        (beside / "meta.json").write_text(json.dumps(meta))
        _remove(place)  # what is there can't be read
        beside.rename(place)
    except OSError as error:
        cure = "free some room, or name another folder as NNX_CACHE_DIR"
        raise MachineError(f"{place.parent}: can't be written ({error.strerror}); {cure}") from None
    finally:
        with contextlib.suppress(OSError):  # of close, whose buffer a full disk does not take
            writer.close()
        shutil.rmtree(beside, ignore_errors=True)


def _opened(place: Path) -> Kept | None:
    """The entry at `place`, memory-mapped; None where there is none that can be used."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        if meta["format"] != FORMAT:
            return None
        arrays: dict[str, NDArray[Any]] = {}
        for name, what in meta["arrays"].items():
            dtype, shape, file = what["dtype"], tuple(what["shape"]), place / f"{name}.bin"
            if dtype not in DTYPES or file.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
                return None
            arrays[name] = np.memmap(file, dtype, "r", shape=shape) if math.prod(shape) else np.zeros(shape, dtype)
        facts: dict[str, Any] = meta["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(place / "meta.json", (time.time(), time.time()))
    return Kept(arrays, facts, Choice("cache", "used", f"{meta['source']} was decoded by an earlier run, and has not changed since"))


def _swept(place: Path, depends: Depends) -> bool:
    """Remove what dead processes left half-made, and the entry of the same source as it was before. Whether there was one."""
    for path in place.parent.glob(".*.tmp"):
        if not files.is_alive(path):
            shutil.rmtree(path, ignore_errors=True)
    changed = False
    for meta in place.parent.glob(f"{place.name.partition('-')[0]}-*/meta.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(meta.read_text())
            if (said["source"], said["options"]) == (depends.source, json.loads(json.dumps(depends.options))) and meta.parent != place:
                _remove(meta.parent)
                changed = True
    return changed
