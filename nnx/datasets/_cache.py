"""A cache of decoded data: arrays in the cache folder, under a hash of all they depend on, opened memory-mapped.

    cached = load_or_decode("folder", key, decode, {"train": ("uint8", 4)})  # calls decode(writer) unless cached
    cached.arrays["train"], cached.facts, cached.note

An entry is a folder, `<name>-<hash>`, with a file `<array>.bin` per array, its raw bytes, and `meta.json`, which
describes them. It is written beside its place and renamed once it is complete and on the disk. An entry that is cut
short or of another form is decoded again.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets._mapped import check_in_background, note_mapped
from nnx.errors import InputError, MachineError
from nnx.events import Choice
from nnx.formatting import print_wrapped
from nnx.system import files, locks, platform

FORMAT = 4  # of an entry; entries of other formats are decoded again
LARGE = 2**28  # bytes of an array: one that is larger is checked in the background, 0.3 s and more
MAX_META = 2**26  # bytes of a meta.json: that of a table with 100,000 categories of 200 characters has 20 MB
ENTRY_NAME = re.compile(r"[a-z]+-[0-9a-f]{32}")
CURE = "free some space, or set NNX_CACHE_DIR to another folder"

Forms = Mapping[str, tuple[str, int]]
"""The arrays of an entry: name -> (dtype, number of dimensions)."""


@dataclass(frozen=True)
class CacheKey:
    """What decoded data depends on: its source, the options of decoding, and the present state of its files."""

    source: str  # the absolute path
    options: dict[str, Any]
    files: str  # a hash of their names, sizes and modification times: see `hash_stats`

    @property
    def digest(self) -> str:
        parts = [FORMAT, self.source, self.options, self.files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CachedData:
    """Decoded data: the arrays by name, plain values about them, and a note on where they came from."""

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
    """Takes arrays piece by piece and writes them to files in `folder`, or keeps them in memory if that is None."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.checksums: dict[str, int] = {}  # CRC-32 of each file
        self._pieces: dict[str, list[NDArray[Any]]] = {}
        self._files: dict[str, IO[bytes]] = {}

    def add(self, name: str, piece: NDArray[Any]) -> None:
        """Append rows, (n, *shape), to the array of this name."""
        piece = np.ascontiguousarray(piece)
        rows, *shape = self.shapes.get(name, (0, *piece.shape[1:]))
        assert tuple(shape) == piece.shape[1:]
        self.shapes[name] = rows + len(piece), *shape
        if self.folder is None:
            self._pieces.setdefault(name, []).append(piece)
            return
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
        data = piece.data.cast("B") if piece.size else b""
        self.checksums[name] = zlib.crc32(data, self.checksums.get(name, 0))
        self._files[name].write(data)

    def restart(self) -> None:
        """Discard everything added so far."""
        self.close()
        self.shapes.clear()
        self.checksums.clear()
        self._pieces.clear()

    def close(self, *, durably: bool = False) -> None:
        """Close the files; `durably`: after a sync to disk, so that a power failure leaves no holes in them."""
        while self._files:
            with self._files.popitem()[1] as file:
                if durably:
                    file.flush()
                    platform.sync(file.fileno())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays kept in memory."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}


def folder() -> Path:
    """The folder of the cache: NNX_CACHE_DIR, else the user's cache folder."""
    if named := os.environ.get("NNX_CACHE_DIR"):
        return Path(named).expanduser()
    import platformdirs  # 20 ms

    return platformdirs.user_cache_path("nnx") / "arrays"


def hash_stats(texts: Iterable[str], numbers: Iterable[int]) -> str:
    """A hash of files' names, and of their sizes and modification times, each in the order given."""
    digest = hashlib.sha256("\0".join(texts).encode(errors="surrogateescape"))  # file names never contain a NUL
    digest.update(np.fromiter(numbers, np.int64).data)
    return digest.hexdigest()


def hash_file_stats(files: Iterable[Path]) -> str:
    """The `hash_stats` of some files. Raises MachineError."""
    files = list(files)
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise MachineError(f"{error.filename}: can't be read ({error.strerror}); check its permissions") from None
    return hash_stats(
        map(str, files),
        (number for status in stats for number in (status.st_size, status.st_mtime_ns, status.st_ctime_ns)),
    )


def load_or_decode(
    name: str,
    key: CacheKey,
    decode: Callable[[Writer], dict[str, Any]],
    forms: Forms,
    fact_types: Mapping[str, type] | None = None,
    is_valid: Callable[[CachedData], bool] = lambda cached: True,
) -> CachedData:
    """The arrays and facts of `key` from the cache or, if they are not in it, from `decode`, which may raise DataError.

    `decode` gives arrays of these `forms` to the writer and returns facts of these types. An entry is decoded again
    unless `is_valid`: whether its values are possible, such as labels in range. If the cache folder is not
    writable, the data is decoded into memory. Raises MachineError if the disk is full.
    """
    fact_types = fact_types or {}
    place = folder() / f"{name}-{key.digest}"
    if cached := _open_entry(place, key, forms, fact_types, is_valid):
        return cached
    with contextlib.ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(place))
        except OSError as error:
            writer = Writer(None)
            facts = decode(writer)
            problem = f"{place.parent} can't be written ({error.strerror}), so every run decodes the data again"
            note = Choice("cache", "none", f"{problem}; set NNX_CACHE_DIR to another folder")
            return CachedData(writer.arrays(), facts, note)
        if cached := _open_entry(
            place, key, forms, fact_types, is_valid
        ):  # made by the process that this one waited for
            return cached
        changed = _remove_outdated(place, key)
        _make_entry(place, key, decode)
    made = _open_entry(place, key, forms, fact_types, is_valid)
    if made is None:
        raise MachineError(f"{place}: was written, but can't be read again; {CURE}")
    if changed:
        note = Choice("cache", "decoded anew", "the source has changed since it was decoded")
    else:
        note = Choice("cache", "decoded", "stored for later runs; nnx list cache shows all entries")
    return CachedData(made.arrays, made.facts, note)


def in_range(indices: NDArray[Any], end: int) -> bool:
    """Whether all of some whole numbers are in [0, end)."""
    return not len(indices) or bool(indices.min() >= 0 and indices.max() < end)


def entries() -> list[Entry]:
    """The entries of the cache, the largest first."""
    listed = []
    for path in folder().glob("*-*"):
        with contextlib.suppress(OSError):
            if ENTRY_NAME.fullmatch(path.name):
                size = sum(file.lstat().st_size for file in path.iterdir())
                meta = _read_meta(path / "meta.json")
                source = meta["source"] if meta else "(can't be read any more)"
                listed.append(Entry(path, source, size, path.stat().st_mtime))
    return sorted(listed, key=lambda entry: -entry.size)


def read_facts(entry: Entry) -> dict[str, Any] | None:
    """The plain values of an entry, unchecked. None if it can't be read."""
    meta = _read_meta(entry.path / "meta.json")
    facts = meta.get("facts") if meta else None
    return facts if isinstance(facts, dict) else None


def clear() -> None:
    """Remove all entries, and unfinished ones of processes that have ended. Raises MachineError."""
    for entry in entries():
        _remove(entry.path)
    _remove_unfinished(folder())


def _remove(path: Path) -> None:
    """Remove the folder, or the file or link that somebody put there. Raises MachineError."""
    try:
        files.remove(path)
    except FileNotFoundError:  # removed by another process
        pass
    except OSError as error:
        raise MachineError(f"{path}: can't be removed ({error.strerror})") from None


# ---------------------------------------------------------------- an entry


def _make_entry(place: Path, key: CacheKey, decode: Callable[[Writer], dict[str, Any]]) -> None:
    """Make the entry beside `place`, then move it there. Raises MachineError if writing fails."""
    unfinished = place.with_name(f".{place.name}.tmp")  # no other process writes it: this one has the lock
    writer = Writer(unfinished)
    try:
        unfinished.mkdir()
        facts = decode(writer)
        writer.close(durably=True)
        meta = {
            "format": FORMAT,
            "source": key.source,
            "options": key.options,
            "shapes": writer.shapes,
            "checksums": writer.checksums,
            "facts": facts,
        }
        with (unfinished / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta | {"checksum": _meta_checksum(meta)}, file)
            file.flush()
            platform.sync(file.fileno())
        _remove(place)  # an entry there is unreadable
        platform.replace(unfinished, place)
    except OSError as error:
        raise MachineError(f"{place.parent}: can't be written ({error.strerror}); {CURE}") from None
    finally:
        with contextlib.suppress(OSError):  # close fails if a full disk does not take its buffer
            writer.close()
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_intact(file: Path, array: NDArray[Any], checksum: Any) -> bool:
    """Whether the content of `file` has this CRC-32. A large file is checked in the background: a failure is then an
    error at the end of the first epoch."""

    def matches() -> bool:
        data = array.reshape(-1).view(np.uint8).data if array.size else b""
        return bool(zlib.crc32(data) == checksum)

    if array.nbytes <= LARGE:
        return matches()
    check_in_background(file, matches)
    return True


def _read_meta(path: Path) -> dict[str, Any] | None:
    """The content of a meta.json; None if it is unreadable, malformed or of another format."""
    try:
        files.check_regular(path)
        with path.open(encoding="utf-8") as file:
            meta = json.loads(file.read(MAX_META))
    except (OSError, ValueError, RecursionError):
        return None
    types = {"format": int, "source": str, "options": dict, "shapes": dict, "checksums": dict, "facts": dict}
    if not isinstance(meta, dict) or meta.pop("checksum", None) != _meta_checksum(meta):
        return None
    valid = all(type(meta.get(name)) is kind for name, kind in types.items())
    return meta if valid and meta["format"] == FORMAT else None


def _meta_checksum(meta: dict[str, Any]) -> int:
    """The CRC-32 of the content of a meta.json, without this checksum."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(meta)), sort_keys=True).encode())


def _open_entry(
    place: Path,
    key: CacheKey,
    forms: Forms,
    fact_types: Mapping[str, type],
    is_valid: Callable[[CachedData], bool],
) -> CachedData | None:
    """The entry at `place`, memory-mapped; None if there is no usable one.

    Which arrays and facts it must have, and of which type, is never taken from the entry itself.
    """
    meta = _read_meta(place / "meta.json")
    if meta is None or any(type(meta["facts"].get(name)) is not kind for name, kind in fact_types.items()):
        return None
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, dimensions) in forms.items():
        shape = meta["shapes"].get(name)
        if type(shape) is not list or len(shape) != dimensions:
            return None
        if not all(type(side) is int and side >= 0 for side in shape):
            return None
        file = place / f"{name}.bin"
        size = math.prod(shape)
        try:
            if file.stat().st_size != size * np.dtype(dtype).itemsize:
                return None
            note_mapped(file)
            arrays[name] = np.memmap(file, dtype, "r", shape=tuple(shape)) if size else np.zeros(shape, dtype)
            if not _is_intact(file, arrays[name], meta["checksums"].get(name)):
                return None
        except (OSError, ValueError, OverflowError):
            return None
    note = Choice("cache", "used", f"{key.source} has not changed since an earlier run decoded it")
    cached = CachedData(arrays, meta["facts"], note)
    if not is_valid(cached):
        return None
    with contextlib.suppress(OSError):
        os.utime(place, (time.time(), time.time()))
    return cached


# ---------------------------------------------------------------- several processes


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the lock of the entry at `place`. Waits, with a message, while another process holds it.

    The kernel releases the lock however a process ends.
    """
    path = _lock_path(place)
    lock = locks.acquire(path)
    if lock is None:
        message = f"waiting for another process that is decoding the same data ({place})"
        print_wrapped(message)
        lock = locks.acquire(path, wait=True)
    assert lock
    try:
        yield
    finally:
        locks.release(path, lock)


def _lock_path(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _remove_unfinished(cache: Path) -> None:
    """Remove the unfinished entries of processes that have ended.

    The lock tells, not the process number: the processes may be on other machines.
    """
    for path in cache.glob(".*.tmp"):
        with contextlib.suppress(OSError, InputError, MachineError):
            lock_path = _lock_path(path.with_name(path.name[1:].removesuffix(".tmp")))
            if lock := locks.acquire(lock_path):
                _remove(path)
                locks.release(lock_path, lock)


def _remove_outdated(place: Path, key: CacheKey) -> bool:
    """Remove unfinished entries, and outdated ones of the same source. Returns whether there was an outdated one."""
    _remove(place.with_name(f".{place.name}.tmp"))
    _remove_unfinished(place.parent)
    same_source = json.loads(json.dumps([key.source, key.options]))
    removed = False
    for path in place.parent.glob(f"{place.name.partition('-')[0]}-*/meta.json"):
        meta = _read_meta(path)
        if meta and path.parent != place and [meta["source"], meta["options"]] == same_source:
            _remove(path.parent)
            removed = True
    return removed
