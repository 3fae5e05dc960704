"""Parses a file of `torch.save` before torch loads it. Nothing in it is run, built or inflated here.

    places = members(file, end)               # {name: (offset, bytes)} of the zip that ends at `end`
    expected = outline(pickled, places)       # its dicts and lists, with an Outline in place of each tensor
    agree(expected, torch.load(...))          # raises unless torch loaded just that

torch's own reader trusts too much: it reads past the end of a storage that claims to be larger than it is.
"""

import io
import itertools
import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from torch import Tensor

from nnx.errors import CheckpointError

MAX_MEMBERS = 25_000  # 750 layers with batch norm, a moving average and Adam
MAX_PICKLE = 24 * 2**20  # bytes; the history of 100,000 epochs, the most there can be, is 17 MB

# What torch writes behind the directory: zip64's record, its locator, the zip's own end record.
_END = struct.Struct("<4sQ4x2L4Q4sLQL4s4H2L2x")
# An entry of the directory: signature, flags, method, CRC, bytes, bytes, lengths of texts, offset.
_ENTRY = struct.Struct("<4s4x2H4x3L3H8xL")
# Before a member: the same, with CRC and bytes 0, since they follow it.
_HEADER = struct.Struct("<4s2x2H4x3L2H")
# After a member: signature, CRC, bytes, bytes.
_TRAILER = struct.Struct("<4s3L")
_STREAMED, _UTF8 = 0x8, 0x800  # the flags that torch sets
_NAMES = re.compile(
    rb"archive/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]{1,9})"
)
_SMALL = 64  # bytes, at most, of all but the pickle and the storages

_STORAGES = {"torch FloatStorage": torch.float32, "torch LongStorage": torch.int64}
_REBUILD, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK, _HOOKS = object(), object()  # the latter: an empty OrderedDict, which goes with each tensor


class Outline(NamedTuple):
    """A tensor without its numbers. It is dense, and alone in its storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class _Storage(NamedTuple):
    dtype: torch.dtype
    numbers: int


class _Global(str):
    """The name of a Python object, which is never looked up."""


def members(file: BinaryIO, end: int) -> dict[str, tuple[int, int]]:
    """{name: (offset, bytes)} of the zip that ends at `end`, not counting its comment, in torch's layout: members
    stored one after the other.

    Raises CheckpointError for any other zip: compressed, overlapping, repeated or unknown members, gaps,
    contradictions, zip64.
    """
    *record, count, length, start = _END.unpack(_read_at(file, end - _END.size, _END.size))
    zip64 = [b"PK\x06\x06", 44, 0, 0, count, count, length, start]
    locator = [b"PK\x06\x07", 0, start + length, 1]
    expected_record = [*zip64, *locator, b"PK\x05\x06", 0, 0, count]
    if (
        record != expected_record
        or start + length != end - _END.size
        or count > MAX_MEMBERS
        or length > count * (_ENTRY.size + 64)
    ):
        raise CheckpointError("is not a readable zip archive")
    directory = io.BytesIO(_read_at(file, start, length))
    places: dict[str, tuple[int, int]] = {}
    position = 0
    for _ in range(count):
        signature, flags, method, crc, stored, size, *lengths, offset = _ENTRY.unpack(directory.read(_ENTRY.size))
        name = directory.read(lengths[0])
        text = name.decode("ascii", "backslashreplace")
        *header, extra = _HEADER.unpack(_read_at(file, position, _HEADER.size))
        begin = position + _HEADER.size + len(name) + extra
        trailer = _TRAILER.pack(b"PK\x07\x08", crc, size, size) if size else b""  # an empty member has none
        position, expected = begin + size + len(trailer), position
        limit = MAX_PICKLE if text.endswith(".pkl") else size if text.startswith("archive/data/") else _SMALL
        is_expected = (
            (signature, method, offset, lengths[1:]) == (b"PK\x01\x02", 0, expected, [0, 0])
            and flags | _UTF8 == (_STREAMED | _UTF8 if size else _UTF8)
            and stored == size <= limit
            and _NAMES.fullmatch(name)
            and text not in places
            and header == [b"PK\x03\x04", flags, method, 0, 0, 0, len(name)]
            and file.read(len(name)) == name
            and _read_at(file, begin + size, len(trailer)) == trailer
        )
        if not is_expected:
            raise CheckpointError(f"contains a member that no checkpoint has: {text[:60]!r}")
        places[text] = begin, size
    if position != start or directory.read():
        raise CheckpointError("is not a readable zip archive")
    return places


def canonical(data: bytes) -> bytes:
    """`data`, a zip of `torch.save`, in the layout that `members` reads: unchanged where it has that layout already.

    The layout is torch 2.14's. Another version's members are written anew, so that saving does not depend on how torch
    lays out its files. Raises zipfile.BadZipFile where `data` is no zip.
    """
    try:
        members(io.BytesIO(data), len(data))
        return data
    except (CheckpointError, struct.error):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive_of({f"archive/{name.partition('/')[2]}": archive.read(name) for name in archive.namelist()})


def archive_of(contents: Mapping[str, bytes]) -> bytes:
    """A zip of these members, by name, as torch 2.14 lays it out: stored, each aligned to 64 bytes."""
    data, directory = bytearray(), bytearray()
    for name, content in contents.items():
        encoded, offset, crc, size = name.encode(), len(data), zlib.crc32(content), len(content)
        flags = (_STREAMED if size else 0) | _UTF8
        padding = -(offset + _HEADER.size + len(encoded) + 4) % 64
        data += _HEADER.pack(b"PK\x03\x04", flags, 0, 0, 0, 0, len(encoded), padding + 4)
        data += encoded + b"FB" + struct.pack("<H", padding) + b"Z" * padding + content
        data += _TRAILER.pack(b"PK\x07\x08", crc, size, size) if size else b""
        lengths = (len(encoded), 0, 0)
        directory += _ENTRY.pack(b"PK\x01\x02", flags, 0, crc, size, size, *lengths, offset) + encoded
    count, start, length = len(contents), len(data), len(directory)
    versions = 0x2D031E  # made by Unix, version 3.0; needs version 4.5, zip64
    record = (b"PK\x06\x06", 44, 0, 0, count, count, length, start)
    locator = (b"PK\x06\x07", 0, start + length, 1)
    end = bytearray(_END.pack(*record, *locator, b"PK\x05\x06", 0, 0, count, count, length, start))
    end[12:16] = versions.to_bytes(4, "little")
    return bytes(data + directory + end)


def outline(pickled: bytes, places: Mapping[str, tuple[int, int]]) -> Any:
    """The value that `pickled` would make, with an Outline in place of each tensor. Each storage among the members at
    `places` must belong to just one of them.

    Only strings and names may be referred to again, so that few bytes make a small value. Raises CheckpointError, or
    what an operation without operands raises: IndexError, KeyError, TypeError, ValueError.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages = {name: size for name, (_, size) in places.items() if name.startswith("archive/data/")}
    count = len(storages)
    operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(pickled)
    for done, (operation, argument, position) in enumerate(operations):
        if done > 10_000 + 40 * (count - len(storages)):  # torch needs 33 a tensor
            _refuse("more operations than its tensors need")
        match operation.name:
            case "BINGET" | "LONG_BINGET":
                if type(memo[argument]) not in (str, _Global):
                    _refuse("a value used twice")
                stack.append(memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                stack.append(argument)
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(_since_mark(stack)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" as name:
                stack.append(_CONSTANTS[name])
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_called(stack.pop(), arguments))
            case "GLOBAL" if argument in (_REBUILD, _ORDERED, *_STORAGES):
                stack.append(_Global(argument))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "SETITEM" | "SETITEMS" as name:
                items = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _set(stack[-1], items[::2], items[1::2])
            case "APPEND" | "APPENDS" as name:
                items = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
                if type(stack[-1]) is not list:
                    _refuse("an item outside a list")
                stack[-1] += items
            case "PROTO" if position == 0 and argument == 2:
                pass
            case "STOP" if position + 1 == len(pickled) and len(stack) == 1 and not storages:
                return stack.pop()
            case name:
                _refuse(f"{name} {argument if isinstance(argument, str) else ''}".strip())
    _refuse("no end")


def agree(expected: Any, loaded: Any) -> None:
    """Raises CheckpointError unless `loaded` matches its outline and all tensors are dense and finite."""
    if type(expected) is Outline:
        if not isinstance(loaded, Tensor) or not _is_dense(loaded) or (loaded.dtype, tuple(loaded.shape)) != expected:
            raise CheckpointError("contains a tensor that is not plain and dense")
        if loaded.is_floating_point() and not bool(loaded.isfinite().all()):
            raise CheckpointError("contains weights that are infinite or NaN")
    elif type(expected) in (dict, list) and type(loaded) is type(expected) and len(loaded) == len(expected):
        for key, value in expected.items() if isinstance(expected, dict) else enumerate(expected):
            agree(value, loaded[key])
    elif type(loaded) is not type(expected) or loaded != expected:
        _refuse("a value that two readers read differently")


def _is_dense(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
    return plain and tensor.untyped_storage().nbytes() == tensor.nbytes


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(f"contains something other than plain values and tensors ({what[:60]!r}); it is not loaded")


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set(target: Any, keys: list[Any], values: list[Any]) -> None:
    before = len(target)
    if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
        _refuse("a key that is not text or a number")
    target.update(zip(keys, values, strict=True))
    if len(target) != before + len(keys):
        _refuse("the same key twice")


def _storage(reference: Any, storages: dict[str, int]) -> _Storage:
    """The storage that a tensor refers to. It is removed from `storages`, so that no other tensor can have it."""
    kind, name, key, place, numbers = reference
    dtype = _STORAGES[name]
    if (kind, type(name), place, type(numbers)) != ("storage", _Global, "cpu", int) or type(key) is not str:
        _refuse("an unknown storage")
    if storages.pop(f"archive/data/{key}", -1) != numbers * dtype.itemsize:
        _refuse("a storage of the wrong size, or with two tensors")
    return _Storage(dtype, numbers)


def _called(function: Any, arguments: Any) -> Any:
    """The result of a call: only two are allowed, an empty OrderedDict and a dense tensor."""
    if type(function) is not _Global or type(arguments) is not tuple:
        _refuse("an unknown call")
    if function == _ORDERED and not arguments:
        return _HOOKS
    storage, offset, shape, strides, gradient, hooks = arguments
    strides_if_dense = itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1)
    is_dense = (
        function == _REBUILD
        and type(storage) is _Storage
        and (type(shape), type(strides), gradient, hooks) == (tuple, tuple, False, _HOOKS)
        and all(type(number) is int for number in (offset, *shape, *strides))
        and len(shape) == len(strides) <= 8
        and (offset, math.prod(shape)) == (0, storage.numbers)
        and all(
            n == 1 or stride == step
            for n, stride, step in zip(reversed(shape), reversed(strides), strides_if_dense, strict=False)
        )
    )
    if not is_dense:
        _refuse("a tensor that is not plain and dense")
    return Outline(storage.dtype, shape)
