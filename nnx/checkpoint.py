"""Checkpoints: written whole or not at all, sealed against damage, read without running anything that is in them.

The file is an ordinary torch zip, which `torch.load(path, weights_only=True)` reads too, of plain values and dense tensors:

    {"format": 1, "json": text, "model": {name: tensor}, "training": {...} or None}

`json` holds the config, the spec and the counters. There are no class names, times, paths or host names in it, so the bytes of two
equal states are equal. The SHA-256 of all that precedes it stands in the zip's end comment: it guards against accidents, not attackers.
"""

import hashlib
import io
import json
import re
import stat
import struct
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnx import config as configs
from nnx import files
from nnx.config import Config
from nnx.errors import CheckpointError, ConfigError
from nnx.spec import Spec

FORMAT = 1
MAX_BYTES = 8 * 2**30
SEAL = b"nnx-sha256:"
_SEAL_LENGTH = len(SEAL) + 64
_NAMES = re.compile(r"archive/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what it needs to be used; with `training`, also what it needs to be trained on."""

    config: Config
    spec: Spec
    model: dict[str, Tensor]
    record: dict[str, Any]  # the epoch it is from, as in metrics.jsonl
    counters: dict[str, Any] | None = None  # from here on: what only a resume needs
    training: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None  # what else the bits depend on: see runtime.fingerprint
    data: str | None = None  # SHA-256 of the samples


def write(path: Path, checkpoint: Checkpoint, *, keep: Path | None = None) -> None:
    """Replace `path` by `checkpoint` in one step: after a crash at any moment it is the old file or the new one.

    With `keep`, the old file goes on under that name.
    Raises MachineError where the disk does not take it; the old file is then untouched.
    """
    texts = {
        "config": checkpoint.config.to_dict(),
        "spec": checkpoint.spec.to_dict(),
        "record": checkpoint.record,
        "counters": checkpoint.counters,
        "environment": checkpoint.environment,
        "data": checkpoint.data,
    }
    data = io.BytesIO()
    torch.save(
        {"format": FORMAT, "json": json.dumps(texts), "model": _plain(checkpoint.model), "training": _plain(checkpoint.training)}, data
    )
    files.replace(path, _sealed(data.getvalue()), keep=keep)


def read(path: Path) -> Checkpoint:
    """The checkpoint in `path`, on the CPU.

    Raises CheckpointError for anything else, damaged or hostile, without running or inflating what is in it.
    """
    try:
        data = _read_bytes(path)
        _check_seal(data)
        _check_zip(data)
        try:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception:  # torch's own text tells how to switch safety off
            raise CheckpointError("holds something other than plain values and tensors; it is not loaded") from None
        return _parse(content, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def without_training(checkpoint: Checkpoint) -> Checkpoint:
    """The same network, without what only a resume needs."""
    return replace(checkpoint, counters=None, training=None, environment=None, data=None)


def _plain(value: Any) -> Any:
    """Nested dicts and lists, with each tensor dense and by itself, so that equal values make equal bytes."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, dict):
        return {sys.intern(key) if isinstance(key, str) else key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


def _sealed(data: bytes) -> bytes:
    """`data`, a zip without comment, with its SHA-256 as the comment."""
    assert data[-22:-18] == b"PK\x05\x06", "torch.save writes a zip whose end record has no comment"
    body = data[:-2] + struct.pack("<H", _SEAL_LENGTH)
    return body + SEAL + hashlib.sha256(body).hexdigest().encode()


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder; name the checkpoint.pt in it" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise CheckpointError(f"is {what}")
        if status.st_size > MAX_BYTES:
            raise CheckpointError(f"larger than {MAX_BYTES // 2**30} GiB, which no checkpoint of nnx is")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError("no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read ({getattr(error, 'strerror', None) or error})") from None


def _check_seal(data: bytes) -> None:
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not the file itself; run `git lfs pull`")
    body, comment = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if not comment.startswith(SEAL):
        cut = data.startswith(b"PK\x03\x04")
        raise CheckpointError("is cut short, or not a checkpoint of nnx" if cut else "is not a checkpoint of nnx")
    if comment != SEAL + hashlib.sha256(body).hexdigest().encode():
        raise CheckpointError("is damaged: its content does not match its checksum. Use another copy, or last.pt of the same run")


def _check_zip(data: bytes) -> None:
    """Only the members of a torch file, stored as they are: nothing that grows when it is read."""
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception:
        raise CheckpointError("is not a readable zip archive") from None
    for member in members:
        if not _NAMES.fullmatch(member.filename) or member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise CheckpointError(f"holds a member that no checkpoint has: {member.filename[:60]!r}")
    if sum(member.file_size for member in members) > len(data):
        raise CheckpointError("its members overlap")


def _parse(content: Any, name: str) -> Checkpoint:
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise CheckpointError("is not a checkpoint of nnx")
    if content["format"] > FORMAT:
        raise CheckpointError(f"has format {content['format']}, newer than this nnx reads ({FORMAT}); upgrade nnx")
    try:
        texts = json.loads(content["json"])
        model, training = content["model"], content["training"]
        _check_tensors([model, training])
        return Checkpoint(
            configs.from_dict(texts["config"], name),
            Spec.from_dict(texts["spec"]),
            {str(key): value for key, value in model.items()},
            dict(texts["record"]),
            texts["counters"],
            training,
            texts.get("environment"),
            texts.get("data"),
        )
    except ConfigError as error:
        raise CheckpointError(f"its config is not valid: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
        raise CheckpointError("lacks parts that a checkpoint of nnx has") from None


def _check_tensors(value: Any) -> None:
    """Dense, as large as their storage says, and finite. Raises CheckpointError."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and value.device.type == "cpu" and value.is_contiguous()
        if not dense or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError("holds a tensor that is not plain and dense")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError("holds weights that are infinite or NaN")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_tensors(item)
