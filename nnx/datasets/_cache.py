"""Sources that were decoded once: their arrays lie in the cache folder, under a hash of all they depend on, and are
opened memory-mapped.

    kept = cached("folder", depends, decode, {"train": ("uint8", 4)})  # decode(writer) is called where there is nothing for `depends` yet
    kept.arrays["train"], kept.facts, kept.note

An entry is a folder, `<name>-<hash>`: `<array>.bin` each, as it lies in memory, and `meta.json`, which says what they
are. It is made beside and renamed when it is complete and on the disk. What was cut short, or is of another form than
it should have, is made anew.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnx.errors import MachineError
from nnx.events import Choice

FORMAT = 2  # of an entry; others are made anew
MAX_META = 2**26  # bytes of a meta.json: that of a table with 100,000 categories of 200 characters has 20 MB
ENTRY = re.compile(r"[a-z]+-[0-9a-f]{32}")  # its name
CURE = "free some room, or name another folder as NNX_CACHE_DIR"

Arrays = Mapping[str, tuple[str, int]]
"""What an entry holds: the type of each array, and how many dimensions it has."""


@dataclass(frozen=True)
class Depends:
    """What a decoded source depends on: the place it was named by, the options of its decoding, and its files as they
    are now."""

    source: str
    options: dict[str, Any]
    files: str  # a hash of their names, sizes and times of change: see `stamp`

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
        self._pieces: dict[str, list[NDArray[Any]]] = {}
        self._files: dict[str, IO[bytes]] = {}

    def add(self, name: str, piece: NDArray[Any]) -> None:
        """More rows, (n, *shape), for the array of this name."""
        piece = np.ascontiguousarray(piece)
        rows, *shape = self.shapes.get(name, (0, *piece.shape[1:]))
        assert tuple(shape) == piece.shape[1:]
        self.shapes[name] = rows + len(piece), *shape
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

    def close(self, *, durably: bool = False) -> None:
        """Close the files; `durably`: once they are on the disk, so that a machine that stops now leaves no holes in
        them."""
        while self._files:
            with self._files.popitem()[1] as file:
                if durably:
                    file.flush()
                    os.fsync(file.fileno())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was added to memory."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}


def folder() -> Path:
    """Where the entries lie: NNX_CACHE_DIR, else the user's cache folder."""
    if named := os.environ.get("NNX_CACHE_DIR"):
        return Path(named).expanduser()
    import platformdirs  # 20 ms

    return platformdirs.user_cache_path("nnx") / "arrays"


def stamp(texts: Iterable[str], numbers: Iterable[int]) -> str:
    """A hash of files' names and of their sizes and times of change, each in the order given."""
    digest = hashlib.sha256("\0".join(texts).encode(errors="surrogateescape"))  # no name holds a NUL
    digest.update(np.fromiter(numbers, np.int64).data)
    return digest.hexdigest()


def stamp_of(files: Iterable[Path]) -> str:
    """The `stamp` of some files. Raises MachineError."""
    files = list(files)
    try:
        states = [file.stat() for file in files]
    except OSError as error:
        raise MachineError(f"{error.filename}: can't be read ({error.strerror}); check its permissions") from None
    return stamp(map(str, files), (number for state in states for number in (state.st_size, state.st_mtime_ns)))


def cached(
    name: str,
    depends: Depends,
    decode: Callable[[Writer], dict[str, Any]],
    arrays: Arrays,
    facts: Mapping[str, type] | None = None,
) -> Kept:
    """The arrays and facts of `depends`, from the cache or, where they are not there, by `decode`, which may raise
    DataError.

    It gives the `arrays` to the writer, and returns the `facts`, of these types. Where the cache can't be written, they
    are decoded into memory. Raises MachineError where the disk is full.
    """
    place = folder() / f"{name}-{depends.key}"
    if kept := _opened(place, depends, arrays, facts or {}):
        return kept
    with contextlib.ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(place))
        except OSError as error:
            writer = Writer(None)
            found = decode(writer)
            why = f"{place.parent} can't be written ({error.strerror}), so that it is decoded at every start; NNX_CACHE_DIR names another"
            return Kept(writer.arrays(), found, Choice("cache", "none", why))
        if kept := _opened(place, depends, arrays, facts or {}):  # by another process, for which this one has waited
            return kept
        changed = _swept(place, depends)
        _make(place, depends, decode)
    made = _opened(place, depends, arrays, facts or {})
    if made is None:
        raise MachineError(f"{place}: was written, but can't be read again; {CURE}")
    why = (
        "the source has changed since it was decoded"
        if changed
        else "kept for later runs; nnx list cache shows what there is"
    )
    return Kept(made.arrays, made.facts, Choice("cache", "decoded anew" if changed else "decoded", why))


def entries() -> list[Entry]:
    """What there is in the cache, the largest first."""
    found = []
    for path in folder().glob("*-*"):
        with contextlib.suppress(OSError):
            if ENTRY.fullmatch(path.name):
                size = sum(file.lstat().st_size for file in path.iterdir())
                meta = _meta(path / "meta.json")
                found.append(
                    Entry(path, meta["source"] if meta else "(can't be read any more)", size, path.stat().st_mtime)
                )
    return sorted(found, key=lambda entry: -entry.size)


def clear() -> None:
    """Remove all entries, and what of others was left half-made. Raises MachineError."""
    for entry in entries():
        _remove(entry.path)
    _sweep(folder())


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:  # by another process
        pass
    except OSError as error:
        raise MachineError(f"{path}: can't be removed ({error.strerror})") from None


# ---------------------------------------------------------------- an entry


def _make(place: Path, depends: Depends, decode: Callable[[Writer], dict[str, Any]]) -> None:
    """The entry, made beside its place. Raises MachineError where the disk does not take it."""
    beside = place.with_name(f".{place.name}.tmp")  # of this process alone, which holds the lock
    writer = Writer(beside)
    try:
        beside.mkdir()
        facts = decode(writer)
        writer.close(durably=True)
        meta = {
            "format": FORMAT,
            "source": depends.source,
            "options": depends.options,
            "shapes": writer.shapes,
            "facts": facts,
        }
        with (beside / "meta.json").open("w") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        _remove(place)  # what is there can't be read
        beside.rename(place)
    except OSError as error:
        raise MachineError(f"{place.parent}: can't be written ({error.strerror}); {CURE}") from None
    finally:
        with contextlib.suppress(OSError):  # of close, whose buffer a full disk does not take
            writer.close()
        shutil.rmtree(beside, ignore_errors=True)


def _meta(path: Path) -> dict[str, Any] | None:
    """What a meta.json says, as far as it has the form; None where it can't be read or is of another format."""
    try:
        with path.open() as file:
            meta = json.loads(file.read(MAX_META))
    except (OSError, ValueError, RecursionError):
        return None
    kinds = {"format": int, "source": str, "options": dict, "shapes": dict, "facts": dict}
    right = isinstance(meta, dict) and all(type(meta.get(key)) is kind for key, kind in kinds.items())
    return meta if right and meta["format"] == FORMAT else None


def _opened(place: Path, depends: Depends, wanted: Arrays, facts: Mapping[str, type]) -> Kept | None:
    """The entry at `place`, memory-mapped; None where there is none that can be used.

    What arrays and facts there are, and of what type, is never taken from the entry itself.
    """
    meta = _meta(place / "meta.json")
    if meta is None or any(type(meta["facts"].get(key)) is not kind for key, kind in facts.items()):
        return None
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, dimensions) in wanted.items():
        shape, file = meta["shapes"].get(name), place / f"{name}.bin"
        if (
            type(shape) is not list
            or len(shape) != dimensions
            or not all(type(side) is int and side >= 0 for side in shape)
        ):
            return None
        try:
            if file.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
                return None
            arrays[name] = (
                np.memmap(file, dtype, "r", shape=tuple(shape)) if math.prod(shape) else np.zeros(shape, dtype)
            )
        except (OSError, ValueError, OverflowError):
            return None
    with contextlib.suppress(OSError):
        os.utime(place, (time.time(), time.time()))
    return Kept(
        arrays,
        meta["facts"],
        Choice("cache", "used", f"{depends.source} was decoded by an earlier run, and has not changed since"),
    )


# ---------------------------------------------------------------- several processes


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Of several processes one is inside; the others wait, and say so. The kernel lets go of the lock however that one
    ends."""
    lock = _lock(place, wait=False)
    if lock is None:
        print(f"waiting for another process, which decodes the same data ({place})", file=sys.stderr)  # noqa: T201
        lock = _lock(place, wait=True)
    assert lock
    with lock:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                Path(lock.name).unlink()


def _lock(place: Path, *, wait: bool) -> IO[str] | None:
    """The lock file of the entry at `place`, locked, or None where another process has it. Raises OSError."""
    path = place.with_name(f".{place.name}.lock")
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    stack.pop_all()
                    return file
            except BlockingIOError:
                return None
            except FileNotFoundError:  # whoever had the lock has removed its file: another one is to be locked
                pass


def _sweep(cache: Path) -> None:
    """Remove what processes that are no more left half-made. By the lock, not by a process's number: others may be on
    other machines."""
    for path in cache.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if lock := _lock(path.with_name(path.name[1:].removesuffix(".tmp")), wait=False):
                with lock:
                    shutil.rmtree(path, ignore_errors=True)
                    Path(lock.name).unlink()


def _swept(place: Path, depends: Depends) -> bool:
    """Remove what is half-made, and the entry of the same source as it was before. Whether there was one."""
    shutil.rmtree(place.with_name(f".{place.name}.tmp"), ignore_errors=True)
    _sweep(place.parent)
    changed = False
    for path in place.parent.glob(f"{place.name.partition('-')[0]}-*/meta.json"):
        meta = _meta(path)
        if (
            meta
            and path.parent != place
            and [meta["source"], meta["options"]] == json.loads(json.dumps([depends.source, depends.options]))
        ):
            _remove(path.parent)
            changed = True
    return changed
