"""A file of `torch.save`, understood before torch may load it: nothing in it is run, built or inflated here.

    found = members(file, end)                # {name: (offset, bytes)} of the zip that ends at `end`
    outlined = outline(pickled, found)        # its dicts and lists, with an Outline in place of each tensor
    agree(outlined, torch.load(...))          # that torch made of it what was understood

torch's own reader trusts too much: it reads past the end of a storage that claims to be larger than it is.
"""

import io
import itertools
import math
import pickletools
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from torch import Tensor

from nnx.errors import CheckpointError

MAX_MEMBERS = 25_000  # 750 layers with batch norm, a moving average and Adam
MAX_PICKLE = 24 * 2**20  # bytes; the history of 100,000 epochs, the most there can be, is 17 MB

_END = struct.Struct(
    "<4sQ4x2L4Q4sLQL4s4H2L2x"
)  # what torch writes behind the directory: zip64's record, its locator, the zip's own record
_ENTRY = struct.Struct(
    "<4s4x2H4x3L3H8xL"
)  # of the directory: signature, flags, method, CRC, bytes, bytes, lengths of texts, offset
_HEADER = struct.Struct("<4s2x2H4x3L2H")  # before a member: the same, but CRC and bytes, which follow it, are 0
_TRAILER = struct.Struct("<4s3L")  # after it: signature, CRC, bytes, bytes
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
    """The name of something in Python, which is not looked up."""


def members(file: BinaryIO, end: int) -> dict[str, tuple[int, int]]:
    """{name: (offset, bytes)} of the zip that ends at `end`, without its comment: as torch writes it, members stored
    one behind the other.

    Raises CheckpointError for any other: compressed, overlapping, doubled or strange members, gaps, contradictions,
    zip64.
    """
    *record, count, length, start = _END.unpack(_take(file, end - _END.size, _END.size))
    own = [
        b"PK\x06\x06",
        44,
        0,
        0,
        count,
        count,
        length,
        start,
        b"PK\x06\x07",
        0,
        start + length,
        1,
        b"PK\x05\x06",
        0,
        0,
        count,
    ]
    if record != own or start + length != end - _END.size or count > MAX_MEMBERS or length > count * (_ENTRY.size + 64):
        raise CheckpointError("is not a readable zip archive")
    directory = io.BytesIO(_take(file, start, length))
    found: dict[str, tuple[int, int]] = {}
    position = 0
    for _ in range(count):
        signature, flags, method, crc, stored, size, *lengths, offset = _ENTRY.unpack(directory.read(_ENTRY.size))
        name = directory.read(lengths[0])
        text = name.decode("ascii", "backslashreplace")
        *header, extra = _HEADER.unpack(_take(file, position, _HEADER.size))
        begin = position + _HEADER.size + len(name) + extra
        trailer = _TRAILER.pack(b"PK\x07\x08", crc, size, size) if size else b""  # what is empty has none
        position, expected = begin + size + len(trailer), position
        limit = MAX_PICKLE if text.endswith(".pkl") else size if text.startswith("archive/data/") else _SMALL
        right = (
            (signature, method, offset, lengths[1:]) == (b"PK\x01\x02", 0, expected, [0, 0])
            and flags | _UTF8 == (_STREAMED | _UTF8 if size else _UTF8)
            and stored == size <= limit
            and _NAMES.fullmatch(name)
            and text not in found
            and header == [b"PK\x03\x04", flags, method, 0, 0, 0, len(name)]
            and file.read(len(name)) == name
            and _take(file, begin + size, len(trailer)) == trailer
        )
        if not right:
            raise CheckpointError(f"holds a member that no checkpoint has: {text[:60]!r}")
        found[text] = begin, size
    if position != start or directory.read():
        raise CheckpointError("is not a readable zip archive")
    return found


def outline(pickled: bytes, found: Mapping[str, tuple[int, int]]) -> Any:
    """What `pickled` would make, with an Outline in place of each tensor; every storage among the members `found`
    belongs to one of them.

    Only strings and names may be referred to again: what is made of few bytes is small. Raises CheckpointError, or what
    an operation without its operands raises: IndexError, KeyError, TypeError, ValueError.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages = {name: size for name, (_, size) in found.items() if name.startswith("archive/data/")}
    count = len(storages)
    operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(pickled)
    for done, (operation, argument, position) in enumerate(operations):
        if done > 10_000 + 40 * (count - len(storages)):  # torch needs 33 a tensor
            _refuse("too much for its tensors")
        match operation.name:
            case "BINGET" | "LONG_BINGET":
                if type(memo[argument]) not in (str, _Global):
                    _refuse("a value in two places")
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


def agree(outlined: Any, loaded: Any) -> None:
    """Raises CheckpointError unless `loaded` is what was outlined, its tensors dense and finite."""
    if type(outlined) is Outline:
        dense = (
            isinstance(loaded, Tensor)
            and loaded.layout == torch.strided
            and loaded.device.type == "cpu"
            and loaded.is_contiguous()
        )
        if (
            not dense
            or (loaded.dtype, tuple(loaded.shape)) != outlined
            or loaded.untyped_storage().nbytes() != loaded.nbytes
        ):
            raise CheckpointError("holds a tensor that is not plain and dense")
        if loaded.is_floating_point() and not bool(loaded.isfinite().all()):
            raise CheckpointError("holds weights that are infinite or NaN")
    elif type(outlined) in (dict, list) and type(loaded) is type(outlined) and len(loaded) == len(outlined):
        for key, value in outlined.items() if isinstance(outlined, dict) else enumerate(outlined):
            agree(value, loaded[key])
    elif type(loaded) is not type(outlined) or loaded != outlined:
        _refuse("what can be read in two ways")


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(f"holds something other than plain values and tensors ({what[:60]!r}); it is not loaded")


def _take(file: BinaryIO, position: int, length: int) -> bytes:
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
        _refuse("a strange key")
    target.update(zip(keys, values, strict=True))
    if len(target) != before + len(keys):
        _refuse("the same key twice")


def _storage(reference: Any, storages: dict[str, int]) -> _Storage:
    """The storage that a tensor refers to; it is taken out of `storages`, so that no other tensor can."""
    kind, name, key, place, numbers = reference
    dtype = _STORAGES[name]
    if (kind, type(name), place, type(numbers)) != ("storage", _Global, "cpu", int) or type(key) is not str:
        _refuse("a strange storage")
    if storages.pop(f"archive/data/{key}", -1) != numbers * dtype.itemsize:
        _refuse("a storage that is not as large as it should be, or has two tensors")
    return _Storage(dtype, numbers)


def _called(function: Any, arguments: Any) -> Any:
    """What comes of the only two calls there may be."""
    if type(function) is not _Global or type(arguments) is not tuple:
        _refuse("a strange call")
    if function == _ORDERED and not arguments:
        return _HOOKS
    storage, offset, shape, strides, gradient, hooks = arguments
    dense = itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1)
    right = (
        function == _REBUILD
        and type(storage) is _Storage
        and (type(shape), type(strides), gradient, hooks) == (tuple, tuple, False, _HOOKS)
        and all(type(number) is int for number in (offset, *shape, *strides))
        and len(shape) == len(strides) <= 8
        and (offset, math.prod(shape)) == (0, storage.numbers)
        and all(
            n == 1 or stride == step for n, stride, step in zip(reversed(shape), reversed(strides), dense, strict=False)
        )
    )
    if not right:
        _refuse("a tensor that is not plain and dense")
    return Outline(storage.dtype, shape)
