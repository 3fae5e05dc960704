"""Checkpoints: written whole or not at all, sealed against damage, read without running anything that is in them.

The file is an ordinary torch zip, which `torch.load(path, weights_only=True)` reads too, of plain values and dense
tensors:

    {"format": 3, "json": text, "model": {name: tensor}, "training": {...} or None}

`json` holds the config, the spec and the counters. There are no class names, times, paths or host names in it, so the
bytes of two equal states are equal. The SHA-256 of all that precedes it stands in the zip's end comment: it guards
against accidents, not attackers.
"""

import hashlib
import io
import json
import os
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nnx import config as configs
from nnx import losses, models
from nnx.checkpoint import torch_archive
from nnx.checkpoint.torch_archive import Outline
from nnx.config import Config
from nnx.errors import CheckpointError, ConfigError
from nnx.optimizers import OptimizerConfig, fast_step
from nnx.preprocessing.spec import Spec
from nnx.system import files

FORMAT = 3  # 1 had no environment, data and losses; 2 no fit, look and columns in its spec
MAX_BYTES = 4 * 2**30  # beyond it a zip is another format
SEAL = b"nnx-sha256:"
_SEAL_LENGTH = len(SEAL) + 64
_LFS = b"version https://git-lfs"
_LARGE = 32 * 2**20  # bytes
_MAX_INPUT = 2**26  # numbers in one input; to look for the divisors of 10^9 takes minutes
COUNTERS = ("epoch", "batch", "step", "samples", "history")  # of a state, as plain values
MAX_RECORDED_LOSSES = 100  # steps at the beginning of a run whose losses are kept, one by one, for `nnx verify`
_PLAIN = (str, int, float, bool, NoneType)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what it needs to be used; with `training`, also what it needs to be trained on."""

    config: Config
    spec: Spec
    model: dict[str, Tensor]
    record: dict[str, Any]  # the epoch it is from, as in metrics.jsonl
    counters: dict[str, Any] | None = None  # from here on: what only a resume needs
    training: dict[str, Any] | None = None
    environment: dict[str, Any] | None = (
        None  # what else the bits depend on, when the run began and when it was saved: see nnx.training.setup
    )
    data: str | None = None  # SHA-256 of the samples


def write(path: Path, checkpoint: Checkpoint, *, keep: Path | None = None) -> None:
    """Replace `path` by `checkpoint` in one step: after a crash at any moment it is the old file or the new one.

    With `keep`, the old file goes on under that name.
    Raises MachineError where the disk does not take it, and CheckpointError where it is more than can be read; the old
    file is then untouched.
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
        {
            "format": FORMAT,
            "json": json.dumps(texts),
            "model": _plain(checkpoint.model),
            "training": _plain(checkpoint.training),
        },
        data,
    )
    sealed = _sealed(data.getvalue())
    try:
        torch_archive.members(io.BytesIO(sealed[:MAX_BYTES]), len(sealed) - _SEAL_LENGTH)
    except (CheckpointError, struct.error):
        raise CheckpointError(
            f"{path}: more than a checkpoint can hold: 4 GiB, 25,000 tensors. Make the network smaller"
        ) from None
    files.replace(path, sealed, keep=keep)


def read(path: Path) -> Checkpoint:
    """The checkpoint in `path`, on the CPU.

    Raises CheckpointError for anything else, damaged or hostile, without running or inflating what is in it.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        what = str(error)
    except ConfigError as error:
        what = f"its config is not valid: {str(error)[:1000]}"
    except MemoryError:
        what = "does not fit into this machine's memory"
    except Exception:  # KeyError, RecursionError, struct.error, ...: torch's own text tells how to switch safety off
        what = "lacks parts that a checkpoint of nnx has, or has others"
    raise CheckpointError(f"{path}: {what}")


def locate(path: Path) -> Path:
    """The checkpoint that `path` is, or that of the run in the folder that it is."""
    within = path / "checkpoint.pt"
    return within if os.path.isfile(within) else path  # unlike Path.is_file, quiet about unreadable or too long names


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


def _read(path: Path) -> Checkpoint:
    """`read`, whose errors don't say the path yet; or any other, where the file is not as it should be."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_mark(file, size)
        if size > _LARGE:  # to read and hash gigabytes takes seconds, to claim them a few bytes
            _understood(file, size, path)
        file.seek(0)
        data = file.read(size)
    _check_seal(data)
    outlined, kept = _understood(io.BytesIO(data), len(data), path)
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    torch_archive.agree(outlined, content)
    training = content["training"]
    if training is not None:
        training.setdefault("losses", torch.zeros(0))  # format 1 did not keep them
    return replace(kept, model=content["model"], training=training)


def _open(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            raise CheckpointError(
                "is a folder without a checkpoint.pt; name that of a run" if is_folder else "is not a regular file"
            )
        if status.st_size > MAX_BYTES:
            raise CheckpointError(f"larger than {MAX_BYTES / 2**30:.0f} GiB, which no checkpoint of nnx is")
        return open(path, "rb")
    except FileNotFoundError:
        raise CheckpointError("no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read ({getattr(error, 'strerror', None) or error})") from None


def _check_mark(file: BinaryIO, size: int) -> None:
    """Whether there is a seal at all. Raises CheckpointError."""
    begin = file.read(len(_LFS))
    file.seek(max(0, size - _SEAL_LENGTH))
    if begin == _LFS:
        raise CheckpointError("is a Git LFS pointer, not the file itself; run `git lfs pull`")
    if file.read(len(SEAL)) != SEAL:
        cut = begin.startswith(b"PK\x03\x04")
        raise CheckpointError("is cut short, or not a checkpoint of nnx" if cut else "is not a checkpoint of nnx")


def _check_seal(data: bytes) -> None:
    if data[-_SEAL_LENGTH:] != SEAL + hashlib.sha256(memoryview(data)[:-_SEAL_LENGTH]).hexdigest().encode():
        raise CheckpointError(
            "is damaged: its content does not match its checksum. Use another copy, or last.pt of the same run"
        )


def _understood(file: BinaryIO, size: int, path: Path) -> tuple[Any, Checkpoint]:
    """What the file would hold, and the checkpoint that it would be, without their tensors."""
    members = torch_archive.members(file, size - _SEAL_LENGTH)
    begin, length = members["archive/data.pkl"]
    file.seek(begin)
    outlined = torch_archive.outline(file.read(length), members)
    return outlined, _parse(outlined, str(path))


def _parse(content: Any, name: str) -> Checkpoint:
    """The checkpoint that `content` outlines: all of it checked, but for what stands in its tensors."""
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] < 1:
        raise CheckpointError("is not a checkpoint of nnx")
    if content["format"] > FORMAT:
        raise CheckpointError(f"has format {content['format']}, newer than this nnx reads ({FORMAT}); upgrade nnx")
    old = content["format"] == 1
    later = {"fit", "look", "columns"} if content["format"] > 2 else set()
    _need(content.keys() == {"format", "json", "model", "training"})
    texts, training = _loads(content["json"]), content["training"]
    _need(texts.keys() == {"config", "spec", "record", "counters"} | (set() if old else {"environment", "data"}))
    config, spec = configs.from_dict(texts["config"], name), Spec.from_dict(texts["spec"])
    _need(spec.size <= _MAX_INPUT and texts["spec"].keys() == {"shape", "classes", "mean", "std"} | later)
    network = _network(config, spec, len(content["model"]))
    if content["model"] != _weights(network):
        raise CheckpointError(_unlike(config))
    kept = Checkpoint(
        config, spec, {}, texts["record"], texts["counters"], None, texts.get("environment"), texts.get("data")
    )
    _need(_numbers(kept.record) and (kept.data is None or type(kept.data) is str))
    _need(kept.environment is None or kept.environment.keys() == {"began", "saved"})
    for facts in (kept.environment or {}).values():
        _need(all(type(value) in (str, int) for value in facts.values()) and type(facts["train.epochs"]) is int)
    _need((training is None) == (kept.counters is None))
    if training is not None:
        _need(training.keys() == {"model", "average", "optimizers", "scaler", "loss"} | (set() if old else {"losses"}))
        _check_counters(kept.counters)
        _check_training(training, config, network)
    return kept


def _need(right: object) -> None:
    if not right:
        raise CheckpointError("lacks parts that a checkpoint of nnx has, or has others")


def _loads(text: Any) -> dict[str, Any]:
    """The JSON, if the longest history can make it: 100,000 records of six have 600,000 commas, a million different
    keys take 250 MB."""
    if (
        type(text) is not str
        or not text.isascii()
        or text.count(",") > 750_000
        or text.count("{") + text.count("[") > 200_000
    ):
        raise CheckpointError("lacks parts that a checkpoint of nnx has, or has others")
    value: dict[str, Any] = json.loads(text)
    return value


def _network(config: Config, spec: Spec, most: int) -> nn.Module:
    """The network without its memory, if it has no more than `most` parameters: to build 10,000 layers takes 20 s.
    Raises ConfigError."""
    left = iter(range(most))

    def count(*_: object) -> None:
        if next(left, None) is None:
            raise CheckpointError(_unlike(config))

    counting = register_module_parameter_registration_hook(count)
    try:
        return models.build_on_meta(config.model, spec, losses.outputs(config.loss, len(spec.classes)))
    finally:
        counting.remove()


def _unlike(config: Config) -> str:
    return f"its weights do not fit the {config.model.name} that its config describes; it is damaged or was changed"


def _weights(network: nn.Module) -> dict[str, Outline]:
    return {name: Outline(tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}


def _numbers(value: Any) -> bool:
    return type(value) is dict and all(
        type(number) in (int, float) and abs(number) < 2**63 for number in value.values()
    )


def _check_counters(counters: Any) -> None:
    _need(counters.keys() == set(COUNTERS))
    _need(all(type(counters[name]) is int and 0 <= counters[name] < 2**53 for name in COUNTERS if name != "history"))
    _need(type(counters["history"]) is list)
    for record in counters["history"]:
        _need(_numbers(record) and record.keys() >= {"epoch", "val_loss", "val_accuracy"})


def _check_training(training: dict[str, Any], config: Config, network: nn.Module) -> None:
    weights, number = _weights(network), Outline(torch.float32, ())
    averaged = {"n_averaged": Outline(torch.int64, ())} | {f"module.{name}": weight for name, weight in weights.items()}
    _need(training["model"] == weights and training["average"] == (averaged if config.train.ema else None))
    recorded = training.get("losses", Outline(torch.float32, (0,)))
    _need(
        training["loss"] == number
        and recorded.dtype == torch.float32
        and len(recorded.shape) == 1
        and recorded.shape[0] <= MAX_RECORDED_LOSSES
    )
    _need(_numbers(training["scaler"]))
    optimizers = cast(OptimizerConfig, config.optimizer).build(network)
    for optimizer, kinds, saved in zip(optimizers, _moments(config), training["optimizers"], strict=True):
        groups = optimizer.param_groups
        shapes = [tuple(parameter.shape) for group in groups for parameter in group["params"]]
        _need(saved.keys() == {"state", "param_groups"} and saved["state"].keys() <= set(range(len(shapes))))
        _need(
            [group["params"] for group in saved["param_groups"]]
            == [g["params"] for g in optimizer.state_dict()["param_groups"]]
        )
        for setting in (value for group in saved["param_groups"] for value in group.values()):
            _need(
                all(
                    value == number or type(value) in _PLAIN
                    for value in (setting if type(setting) is list else [setting])
                )
            )
        for index, moments in saved["state"].items():
            like = Outline(torch.float32, shapes[index])
            _need(moments == {name: like if is_like else number for name, is_like in kinds.items()})


def _moments(config: Config) -> Iterator[dict[str, bool]]:
    """The moments that each of the config's optimizers keeps, and whether they are as large as the weights: it makes a
    step with four."""
    tiny = nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)])  # a module that draws no random numbers
    for parameter in tiny:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in cast(OptimizerConfig, config.optimizer).build(tiny):
        fast_step(optimizer)()
        parameter, moments = next(iter(optimizer.state.items()), (tiny[0], {}))
        yield {name: moment.shape == parameter.shape for name, moment in moments.items()}
