"""Checkpoints: written whole or not at all, sealed against damage, read without running anything in them.

The file is an ordinary torch zip, which `torch.load(path, weights_only=True)` also reads. It contains plain values and
dense tensors:

    {"format": 3, "json": text, "model": {name: tensor}, "training": {...} or None}

`json` holds the config, the spec and the counters. The file has no class names, times, paths or host names, so two
equal states have equal bytes. The zip's end comment is the SHA-256 of everything before it: it guards against
accidents, not against attackers.
"""

import hashlib
import io
import json
import os
import stat
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nnx.checkpoint import torch_archive
from nnx.checkpoint.schema import FORMAT, WRONG_PARTS, Checkpoint, located, parse
from nnx.errors import CheckpointError, exported_kind
from nnx.system import files

MAX_BYTES = 4 * 2**30  # a larger zip has another format
SEAL = b"nnx-sha256:"
_SEAL_LENGTH = len(SEAL) + 64
_LFS = b"version https://git-lfs"
_LARGE = 32 * 2**20  # bytes


def write(path: Path, checkpoint: Checkpoint, *, keep: Path | None = None) -> None:
    """Replace `path` by `checkpoint` in one step: after a crash at any moment it is the old file or the new one.

    With `keep`, the old file is kept under that name. Raises MachineError where the disk does not take it, and
    CheckpointError where it is larger than can be read; the old file is then untouched.
    """
    texts = {
        "config": checkpoint.config.to_dict(),
        "spec": checkpoint.spec.to_dict(),
        "record": checkpoint.record,
        "counters": checkpoint.counters,
        "environment": checkpoint.environment,
        "data": checkpoint.data,
    }
    content = {
        "format": FORMAT,
        "json": json.dumps(texts),
        "model": _plain(checkpoint.model),
        "training": _plain(checkpoint.training),
    }
    data = io.BytesIO()
    torch.save(content, data)
    sealed = _seal(torch_archive.canonical(data.getvalue()))
    try:
        torch_archive.members(io.BytesIO(sealed[:MAX_BYTES]), len(sealed) - _SEAL_LENGTH)
    except (CheckpointError, struct.error):
        limits = "more than a checkpoint can hold: 4 GiB, 25,000 tensors. Make the network smaller"
        raise CheckpointError(f"{path}: {limits}") from None
    files.replace(path, sealed, keep=keep)


def read(path: Path) -> Checkpoint:
    """The checkpoint in `path`, on the CPU.

    Raises CheckpointError for anything else, damaged or hostile, without running or inflating what is in it.
    """
    # torch's own text tells how to switch safety off
    with located(path, otherwise=WRONG_PARTS):
        return _read(path)


def locate(path: Path) -> Path:
    """`path` itself, or checkpoint.pt in it where it is a run folder."""
    within = path / "checkpoint.pt"
    return within if os.path.isfile(within) else path  # unlike Path.is_file, quiet about unreadable or too long names


def without_training(checkpoint: Checkpoint) -> Checkpoint:
    """The same network, without what only a resume needs."""
    return replace(checkpoint, counters=None, training=None, environment=None)


def _plain(value: Any) -> Any:
    """Nested dicts and lists, with each tensor dense and in its own storage, so that equal values have equal bytes."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, dict):
        return {sys.intern(key) if isinstance(key, str) else key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


def _seal(data: bytes) -> bytes:
    """`data`, a zip without a comment, with its SHA-256 as the comment."""
    assert data[-22:-18] == b"PK\x05\x06", "a zip without a comment ends in its end record"
    body = data[:-2] + struct.pack("<H", _SEAL_LENGTH)
    return body + SEAL + hashlib.sha256(body).hexdigest().encode()


def _read(path: Path) -> Checkpoint:
    """As `read`, with errors that do not name the path yet; or any other error, where the file is damaged."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_is_sealed(file, size, path)
        if size > _LARGE:  # reading and hashing gigabytes takes seconds; a file of a few bytes can claim to have them
            _outline(file, size, path)
        file.seek(0)
        data = file.read(size)
    _check_seal(data)
    outline, checkpoint = _outline(io.BytesIO(data), len(data), path)
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    torch_archive.agree(outline, content)
    training = content["training"]
    if training is not None:
        training.setdefault("losses", torch.zeros(0))  # format 1 does not have them
    return replace(checkpoint, model=content["model"], training=training)


def _open(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError("is a folder without a checkpoint.pt; name a run folder")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise CheckpointError(f"larger than {MAX_BYTES / 2**30:.0f} GiB, which no checkpoint of nnx is")
        return open(path, "rb")
    except FileNotFoundError:
        raise CheckpointError("no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read ({getattr(error, 'strerror', None) or error})") from None


def _check_is_sealed(file: BinaryIO, size: int, path: Path) -> None:
    """Raises CheckpointError where the file has no seal."""
    start = file.read(len(_LFS))
    file.seek(max(0, size - _SEAL_LENGTH))
    if start == _LFS:
        raise CheckpointError("is a Git LFS pointer, not the file itself; run `git lfs pull`")
    if file.read(len(SEAL)) != SEAL:
        if kind := exported_kind(path):
            raise CheckpointError(kind)
        is_zip = start.startswith(b"PK\x03\x04")
        raise CheckpointError("is cut short, or not a checkpoint of nnx" if is_zip else "is not a checkpoint of nnx")


def _check_seal(data: bytes) -> None:
    if data[-_SEAL_LENGTH:] != SEAL + hashlib.sha256(memoryview(data)[:-_SEAL_LENGTH]).hexdigest().encode():
        raise CheckpointError(
            "is damaged: its content does not match its checksum. Use another copy, or last.pt of the same run"
        )


def _outline(file: BinaryIO, size: int, path: Path) -> tuple[Any, Checkpoint]:
    """The content of the file without its tensors, and the checkpoint that it makes, without its weights."""
    members = torch_archive.members(file, size - _SEAL_LENGTH)
    start, length = members["archive/data.pkl"]
    file.seek(start)
    outline = torch_archive.outline(file.read(length), members)
    return outline, parse(outline, str(path))
