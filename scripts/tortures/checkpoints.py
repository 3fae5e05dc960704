"""10,000 damaged checkpoints, hundreds of malicious ones through every command, and bombs: none loads or runs code.

None takes much time or memory. If a damaged file is sealed again, it may be a network with other numbers: then the
network is complete and finite, or the file is refused.
"""

import codecs
import hashlib
import io
import itertools
import json
import os
import pickle  # noqa: TID251 - for the attacks
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from nnx import config, models
from nnx.checkpoint import build_network, checkpoint
from nnx.config import registry
from nnx.errors import CheckpointError
from nnx.preprocessing.spec import Spec
from nnx.system import device as devices
from nnx.training.state import State
from tortures import _child

import torch  # isort: skip - after _child, which imports it faster

DAMAGED = 10_000
SECONDS = 2.0  # limit of processor time for each file
MEGABYTES = 200  # limit of memory beyond reading a good file
SPEC = Spec((1, 8, 8), tuple("0123456789"), (0.3,), (0.4,))
SMALL = {
    "mlp": {"hidden": [6]},
    "cnn": {"channels": [3]},
    "rnn": {"hidden": 5},
    "transformer": {"patch": 4, "width": 8, "depth": 1},
}

# Each command reads a file, which {folder} contains also as last.pt, previous.pt and checkpoint.pt. Add new commands.
COMMANDS = {
    "eval": ["eval", "{file}"],
    "eval on other data": ["eval", "{file}", "--set", "dataset.root={folder}"],
    "resume a folder": ["train", "--resume", "{folder}"],
    "resume a file": ["train", "--resume", "{file}"],
    "resume --out": ["train", "digits_mlp", "--out", "{folder}", "--resume"],
    "verify": ["verify", "{file}"],
    "predict": ["predict", "{file}", "{file}"],
    "explain": ["explain", "{file}", "{file}", "--out", "{folder}/new"],
    "train": ["train", "{file}", "--out", "{folder}/new"],
    "check": ["check", "{file}"],
    "data": ["train", "mnist_mlp", "--set", "dataset.root={folder}", "--out", "{folder}/new"],
}


def torture(share: float, seed: int) -> dict[str, Any]:
    """Run a share of damage, attacks and bombs (at least a third of these). Raises AssertionError naming the case that
    failed."""
    with _child.folder() as folder:
        good = _good(folder)
        figures = _damage(int(DAMAGED * share), seed, good, folder) | _damage(
            int(DAMAGED * share / 4), seed + 1, good, folder, sealed=True
        )
        figures |= _attacks(share, good, folder)
        return figures | _bombs(share, good, folder)


def _good(folder: Path) -> dict[str, bytes]:
    """A checkpoint.pt and a last.pt of each architecture."""
    files = {}
    for name in registry.names("model"):
        made = config.from_dict(
            {"dataset": "digits", "model": {"name": name, **SMALL.get(name, {})}, "train": {"ema": 0.9}}, name
        )
        state = State.new(made, models.build(made.model, SPEC, 10), devices.choose_runtime("cpu", "float32"), 2)
        for step in range(2):
            state.begin_step()
            loss = state.model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean()
            loss.backward()
            state.update_weights()
            state.end_step(loss.detach(), 4)
        whole = checkpoint.Checkpoint(made, SPEC, state.evaluated.state_dict(), {}, state.counters(), state.tensors())
        for file, kept in (("last.pt", whole), ("checkpoint.pt", checkpoint.without_training(whole))):
            checkpoint.write(folder / "good.pt", kept)
            files[f"{name} {file}"] = (folder / "good.pt").read_bytes()
    return files


# ---------------------------------------------------------------- damage


def _damage(count: int, seed: int, good: Mapping[str, bytes], folder: Path, *, sealed: bool = False) -> dict[str, Any]:
    """Damage `count` files: all must be refused. A file `sealed` again with a correct checksum may be read if only
    numbers changed, to finite ones."""
    path, slowest, outcomes = folder / "damaged.pt", 0.0, dict.fromkeys(("refused", "other_numbers"), 0)
    for number in range(count):
        random = Random(f"{seed} {number}")
        name = random.choice(sorted(good))
        data = _damaged(random, good[name])
        path.write_bytes(reseal(data) if sealed and len(data) > 100 else data)
        begun = time.process_time()
        what = f"damaged checkpoint {number} of seed {seed} ({name})"
        try:
            kept = checkpoint.read(path)
            _child.check(sealed, f"{what} was read")
            network = build_network(kept)
            finite = all(bool(value.isfinite().all()) for value in network.state_dict().values())
            _child.check(finite, f"{what} was read, and is not finite")
            outcomes["other_numbers"] += 1
        except CheckpointError as error:
            _child.check(
                "weights_only" not in str(error) and len(str(error)) < 2000,
                f"{what}: the error quotes the file: {error}",
            )
            outcomes["refused"] += 1
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.process_time() - begun)
        _child.check(slowest <= SECONDS, f"{what} took {slowest:.1f} s")
    if sealed:
        return {"damaged_and_sealed_again": count, "of_them_refused": outcomes["refused"]}
    return {"damaged": count, "refused": outcomes["refused"], "slowest_seconds": round(slowest, 3)}


def _damaged(random: Random, data: bytes) -> bytes:
    """`data` with some bits flipped, a block zeroed, doubled or swapped, or truncated; always changed."""
    made = bytearray(data)
    a, b = sorted(random.sample(range(len(data)), 2))
    length = min(random.choice([1, 8, 64, 512, 4096]), b - a)
    kind = random.choice(["flip", "flip", "zero", "cut", "double", "swap", "directory"])
    if kind == "zero":
        made[a : a + length] = bytes(length)
    elif kind == "cut":
        del made[a:]
    elif kind == "double":
        made[a:a] = made[a : a + length]
    elif kind == "swap":
        made[a : a + length], made[b : b + length] = made[b : b + length], made[a : a + length]
    if kind in ("flip", "directory") or made == data:
        low = data.index(b"PK\x01\x02") if kind == "directory" else 0
        for _ in range(random.choice([1, 1, 2, 8])):
            made[random.randrange(low, len(made) - (98 if kind == "directory" else 0))] ^= 1 << random.randrange(8)
    return bytes(made) if made != data else data[:-1]


# ---------------------------------------------------------------- forging: a second writer of the format


def reseal(data: bytes) -> bytes:
    """A zip with a correct checksum, whatever its content. An attacker can do the same."""
    at = data.rfind(b"PK\x05\x06")
    body = (data[: at + 20] if at >= 0 else data[:-2]) + struct.pack("<H", 75)
    return body + b"nnx-sha256:" + hashlib.sha256(body).hexdigest().encode()


def zipped(
    members: Sequence[tuple[str, bytes]], lies: Mapping[str, Mapping[str, Any]] = {}, *, gap: bytes = b"", **end: int
) -> bytes:
    """A zip as torch writes it. `lies` replace fields of members: flags, method, size, ... in the directory; begin_… in
    the local header, trail_… in the data descriptor."""
    body, directory = bytearray(), bytearray()
    for name, data in members:
        true = {
            "name": name.encode(),
            "flags": 0x808,
            "method": 0,
            "crc": zlib.crc32(data),
            "stored": len(data),
            "size": len(data),
        }
        true |= {"offset": len(body), "extra": b""}
        beside = {"begin_name": name.encode(), "begin_method": 0, "begin_size": 0, "trail_size": len(data)}
        t = true | beside | lies.get(name, {})
        pad = b"Z" * ((-len(body) - 34 - len(name)) % 64)
        pad = struct.pack("<2sH", b"FB", len(pad)) + pad
        begin = (
            0,
            t["flags"],
            t["begin_method"],
            0,
            0,
            0,
            t["begin_size"],
            t["begin_size"],
            len(t["begin_name"]),
            len(pad),
        )
        body += struct.pack("<4s5H3L2H", b"PK\3\4", *begin) + t["begin_name"] + pad + data
        body += struct.pack("<4s3L", b"PK\7\x08", t["crc"], t["trail_size"], t["trail_size"])
        entry = (
            0,
            0,
            t["flags"],
            t["method"],
            0,
            0,
            t["crc"],
            t["stored"],
            t["size"],
            len(t["name"]),
            len(t["extra"]),
            0,
            0,
            0,
            0,
        )
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", *entry, t["offset"]) + t["name"] + t["extra"]
    body += gap
    t = {"count": len(members), "length": len(directory), "start": len(body)} | end
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 798, 45, 0, 0, t["count"], t["count"], t["length"], t["start"])
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(directory), 1)
    small = (t["count"] & 0xFFFF, t["count"] & 0xFFFF, t["length"] & 0xFFFFFFFF, t["start"] & 0xFFFFFFFF, 0)
    return bytes(body + directory) + large + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *small)


def text(value: str) -> bytes:
    """The pickle operation for this string."""
    return b"X" + struct.pack("<L", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """The pickle operation for this number of up to four bytes."""
    return b"J" + struct.pack("<l", value)


PLAIN = b"\x89ccollections\nOrderedDict\n)R"


def tensor(
    key: str,
    shape: Sequence[int],
    strides: Sequence[int] | None = None,
    *,
    numbers: int | None = None,
    kind: str = "Float",
    offset: int = 0,
    tail: bytes = PLAIN,
) -> bytes:
    """The pickle operations for a tensor of this storage, by default a dense one."""
    steps, count = [], 1
    for size in reversed(shape):
        steps.insert(0, count)
        count *= size
    place = (
        f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + number(count if numbers is None else numbers)
    )
    sizes = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides or steps))
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + b"((" + text("storage") + place + b"tQ" + number(offset) + b"".join(sizes) + tail + b"tR"


WEIGHTS = {"layers.1.weight": (6, 64), "layers.1.bias": (6,), "layers.3.weight": (10, 6), "layers.3.bias": (10,)}


def texts(**changes: Any) -> str:
    """The JSON of a good checkpoint of an mlp of 6 units."""
    made = config.from_dict({"dataset": "digits", "model": {"name": "mlp", "hidden": [6]}}, "made")
    whole = {
        "config": made.to_dict(),
        "spec": SPEC.to_dict(),
        "record": {},
        "counters": None,
        "environment": None,
        "data": None,
    }
    return json.dumps(whole | changes)


def pickled(
    *,
    content: str | None = None,
    model: Mapping[str, bytes] = {},
    format: bytes = b"K" + bytes([checkpoint.FORMAT]),
    training: bytes = b"N",
    more: bytes = b"",
) -> bytes:
    """The pickle of a good checkpoint of that mlp. `model` replaces some of its weights."""
    weights = {name: tensor(str(key), shape) for key, (name, shape) in enumerate(WEIGHTS.items())} | dict(model)
    inner = b"}(" + b"".join(text(name) + made for name, made in weights.items()) + b"u"
    whole = {
        "format": format,
        "json": text(texts() if content is None else content),
        "model": inner,
        "training": training,
    }
    return b"\x80\x02}(" + b"".join(text(key) + made for key, made in whole.items()) + more + b"u."


def members(made: bytes | None = None, *more: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    """The members of a good checkpoint of that mlp, with the pickle `made` if given."""
    sizes = [4 * int(torch.tensor(shape).prod()) for shape in WEIGHTS.values()]
    storages = [(f"archive/data/{key}", bytes(size)) for key, size in enumerate(sizes)]
    first = ("archive/data.pkl", pickled() if made is None else made)
    return [first, ("archive/byteorder", b"little"), *storages, ("archive/version", b"3\n"), *more]


# ---------------------------------------------------------------- attacks


def payloads(target: Path) -> dict[str, bytes]:
    """Pickle operations, by name, that would create `target` or run other code."""
    command = f"touch {target}"
    source = f"open({str(target)!r}, 'w').close()"

    def call(name: str, *arguments: str) -> bytes:
        module, _, function = name.rpartition(".")
        return f"c{module}\n{function}\n(".encode() + b"".join(map(text, arguments)) + b"tR"

    def stacked(module: str, name: str, *arguments: str) -> bytes:
        both = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
        return both + b"\x93(" + b"".join(map(text, arguments)) + b"tR"

    system = b"(cposix\nsystem\n"
    return {
        "os.system": call("os.system", command),
        "posix.system": call("posix.system", command),
        "eval": call("builtins.eval", source),
        "exec": call("builtins.exec", source),
        "__builtin__": call("__builtin__.eval", source),
        "popen": call("os.popen", command),
        "subprocess.Popen": b"csubprocess\nPopen\n((" + b"".join(map(text, ("touch", str(target)))) + b"ltR",
        "check_output": b"csubprocess\ncheck_output\n((" + b"".join(map(text, ("touch", str(target)))) + b"ltR",
        "open": call("builtins.open", str(target), "w"),
        "io.open": call("io.open", str(target), "w"),
        "codecs": call("codecs.open", str(target), "w"),
        "numpy": call("numpy.savetxt", str(target), "1"),
        "torch.load": call("torch.serialization.load", str(target)),
        "torch.hub": call("torch.hub.download_url_to_file", f"file://{__file__}", str(target)),
        "torch.jit": call("torch.jit.load", str(target)),
        "runpy": call("runpy.run_path", str(target)),
        "timeit": call("timeit.timeit", source),
        "pty": call("pty.spawn", "touch"),
        "cprofile": call("cProfile.run", source),
        "pdb": call("pdb.run", source),
        "getattr": call("builtins.getattr", "x", "__class__"),
        "import": call("builtins.__import__", "antigravity"),
        "importlib": call("importlib.import_module", "this"),
        "nnx": call("nnx.system.files.write", str(target), "x"),
        "stack global": stacked("os", "system", command),
        "stack global, dotted": stacked("nnx.system.files", "os.system", command),
        "stack global, torch": stacked("torch", "os.system", command),
        "stack global, allowed": stacked("torch._utils", "_rebuild_tensor_v2", command),
        "inst": system[:1] + text(command) + b"iposix\nsystem\n",
        "obj": system + text(command) + b"o",
        "newobj": b"cposix\nsystem\n(" + text(command) + b"t\x81",
        "newobj ex": b"cposix\nsystem\n(" + text(command) + b"t}\x92",
        "build": b"ccodecs\nIncrementalDecoder\n)\x81}" + text("decode") + b"cos\nsystem\nsb",
        "build an ordered dict": b"ccollections\nOrderedDict\n)R}"
        + text("__setitem__")
        + b"cos\nsystem\nsb"
        + text(command)
        + b"Ns",
        "extension": b"\x82\x01",
        "persistent id": b"P" + command.encode() + b"\n",
        "storage of another kind": b"("
        + text("storage")
        + b"cos\nsystem\n"
        + text(command)
        + text("cpu")
        + number(1)
        + b"tQ",
        "hooks": tensor("9", (1,), tail=b"\x89" + call("os.system", command)),
        "hooks, filled": tensor(
            "9", (1,), tail=b"\x89ccollections\nOrderedDict\n)R" + number(1) + call("os.system", command) + b"s"
        ),
        "metadata": tensor("9", (1,), tail=b"\x89ccollections\nOrderedDict\n)R" + call("os.system", command)),
        "parameter": b"ctorch._utils\n_rebuild_parameter\n("
        + call("os.system", command)
        + b"\x89ccollections\nOrderedDict\n)RtR",
        "from type": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nint\n"
        + text(command)
        + b"\x85}tR",
        "default dict": b"ccollections\ndefaultdict\n(cos\ngetcwd\ntR",
        "in the memo": b"cposix\nsystem\nq\x00" + text(command) + b"\x85q\x01h\x00h\x01R",
        "escaped": b"cpos\\x69x\nsystem\n(" + text(command) + b"tR",
        "frame": b"\x95" + struct.pack("<Q", 20) + call("os.system", command),
        "unicode name": "c\N{LATIN SMALL LETTER LONG S}ys\nexit\n)R".encode(),
        "reduce twice": call("functools.partial", "x") + b")R",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + text(command) + b"ltRtR",
        "operator": b"coperator\nmethodcaller\n(" + text("system") + text(command) + b"tR(cnt\nposix\ntR",
    }


def forms(payload: bytes, storage: bytes = b"\0\0\0\0") -> Iterator[tuple[str, bytes]]:
    """The payload as a file, in each format that some reader accepts."""
    alone, hidden = b"\x80\x02" + payload + b".", pickled(more=text("more") + payload)
    tail = ("archive/data/9", storage)
    for name, data in {
        "zip": zipped(members(alone)),
        "in a checkpoint": zipped(members(hidden, tail)),
        "as a weight": zipped(members(pickled(model={"layers.1.bias": payload}), tail)),
        "popped again": zipped(members(b"\x80\x02" + payload + b"0" + pickled()[2:])),
        "behind the end": zipped(members(pickled() + alone)),
        "two pickles": zipped([*members(), ("archive/data.pkl", alone)]),
        "two pickles, turned": zipped([("archive/data.pkl", alone), *members()]),
        "TorchScript": zipped(
            [*members(), ("archive/constants.pkl", alone), ("archive/code/__torch__.py", b"import os")]
        ),
        "before a zip": alone + zipped(members()),
    }.items():
        yield name, data
        yield f"{name}, sealed", reseal(data)
    yield "pickle", alone
    yield "pickle, sealed", reseal(alone + b"\0\0")
    legacy = b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + alone
    yield "legacy", legacy
    yield "legacy, sealed", reseal(legacy + zipped(members()))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(alone)
            archive.addfile(info, io.BytesIO(alone))
    yield "tar", tar.getvalue()
    yield "tar, sealed", reseal(tar.getvalue() + b"\0\0")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + alone
    yield "npy", npy
    npz = io.BytesIO()
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("arr_0.npy", npy)
    yield "npz", npz.getvalue()
    yield "npz, sealed", reseal(npz.getvalue())
    yield "yaml", b"dataset: digits\nmodel: !!python/object/apply:os.system [" + codecs.encode(alone, "hex") + b"]\n"


def _attacks(share: float, good: Mapping[str, bytes], folder: Path) -> dict[str, Any]:
    target = folder / "owned"
    files = [(f"{name}, {form}", data) for name, payload in payloads(target).items() for form, data in forms(payload)]
    chosen = files[:: round(1 / share)]
    _control(target)
    for name, data in chosen:
        _attack(name, data, target, folder / "attack")
    return {"attacks": len(chosen), "commands": len(COMMANDS), "executed": 0}


def _control(target: Path) -> None:
    """The control: an unsafe reader runs the payload, the audit hook sees it, and a good checkpoint is accepted."""
    path = target.with_name("control.pt")
    path.write_bytes(zipped(members(b"\x80\x02" + payloads(target)["os.system"] + b".")))
    ended = _child.ended(lambda: _watched(lambda: torch.load(path, weights_only=False), target))
    _child.check(target.exists() and "ran os.system" in ended.err, f"the control did not run: {ended.err[-300:]}")
    target.unlink()
    path.write_bytes(reseal(zipped(members())))
    ended = _child.ended(_child.command("eval", path))
    _child.check(ended.code == 0, f"the good checkpoint behind the attacks is refused: {ended.err[-300:]}")


def _attack(name: str, data: bytes, target: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in ("attack.pt", "last.pt", "previous.pt", "checkpoint.pt", "config.yaml", "train-images-idx3-ubyte"):
        (folder / file).write_bytes(data)
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (raw / file).write_bytes(data)

    def all_commands() -> None:
        os.environ["NNX_OFFLINE"] = "1"
        for switch in ("", "1"):
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = switch
            if not switch:
                del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
            for what, words in COMMANDS.items():
                code = _child.command(*(word.format(file=folder / "attack.pt", folder=folder) for word in words))()
                sys.stderr.write(f"\n[{what}{' with the switch' * bool(switch)}: {code}]\n")

    ended = _child.ended(lambda: _watched(all_commands, target))
    _child.check(not target.exists() and " ran " not in ended.err, f"{name}: code ran: {ended.err[-500:]}")
    _child.check(ended.code == 0 and "Traceback" not in ended.err, f"{name}: {ended.err[-500:]}")
    codes = [
        line.rsplit(": ", 1)[1]
        for line in ended.err.splitlines()
        if line.startswith("[") and line.endswith("]") and ": " in line
    ]
    _child.check(codes == ["2]"] * 2 * len(COMMANDS), f"{name}: not refused with exit code 2: {ended.err[-1500:]}")


_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
_TRUSTED = ("torch", "torch._utils", "collections")


def _watched(function: Callable[[], Any], target: Path) -> None:
    """Call `function` and report on stderr what code it runs, except for torch's own."""
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal watching
        if not watching or event not in (*_RUNS, "exec", "compile", "pickle.find_class"):
            return
        watching = False  # the report itself is no attack
        named = event == "pickle.find_class" and arguments[0] not in _TRUSTED
        if event in _RUNS or named or str(target) in repr(arguments):
            sys.stderr.write(f" ran {event} {repr(arguments)[:200]}\n")
        watching = True

    sys.addaudithook(watch)
    function()


# ---------------------------------------------------------------- bombs


def bombs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Small files that are large to read, by name, with a function that writes each."""

    def sealed(made: bytes | None = None, *more: tuple[str, bytes], **lies: Any) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            path.write_bytes(reseal(zipped(members(made, *more), **lies)))

        return write

    def deflated(path: Path) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members(None, ("archive/data/9", bytes(200_000_000))):
                archive.writestr(name, data)
        path.write_bytes(reseal(file.getvalue()))

    def in_torch_layout(path: Path) -> None:
        squeezed = zlib.compressobj(wbits=-15)
        data = b"".join([*(squeezed.compress(bytes(10_000_000)) for _ in range(50)), squeezed.flush()])
        lies = {"archive/data/0": {"method": 8, "begin_method": 8, "size": 500_000_000}}
        path.write_bytes(
            reseal(zipped([(name, data if name == "archive/data/0" else old) for name, old in members()], lies))
        )

    def sparse(gigabytes: int, end: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with open(path, "wb") as file:
                file.truncate(gigabytes << 30)
                file.seek(0, 2)
                file.write(end)

        return write

    def lengthened(path: Path) -> None:
        sealed()(path)
        os.truncate(path, 3 << 30)

    def sparse_sealed(path: Path) -> None:
        end = zipped(members())[-98:-2] + struct.pack("<H", 75)
        digest = hashlib.sha256()
        for _ in range(2 << 10):
            digest.update(bytes(1 << 20))
        digest.update(end)
        sparse(2, end + b"nnx-sha256:" + digest.hexdigest().encode())(path)

    weight = "layers.1.weight"
    wide = config.from_dict({"dataset": "digits", "model": {"name": "mlp", "hidden": [65536] * 1000}}, "made").to_dict()
    stages = {"name": "cnn", "channels": [64] * 100, "depth": 100, "pool": "none"}
    deep = config.from_dict({"dataset": "digits", "model": stages}, "made").to_dict()
    hill = config.from_dict(
        {"dataset": "digits", "model": {"name": "transformer", "depth": 200, "width": 4096}}, "made"
    ).to_dict()
    spec = SPEC.to_dict()
    means = {"shape": [700_000], "classes": ["a", "b"], "mean": [0] * 700_000, "std": [1] * 700_000}
    large = {"size": 0xFFFFFFFF, "stored": 0xFFFFFFFF, "extra": struct.pack("<2H2Q", 1, 16, 2**40, 2**40)}
    many = [(f"archive/data/{key}", b"1234") for key in range(10, 24_990)]
    numbers = b"}(" + b"".join(text(key[13:]) + tensor(key[13:], ()) for key, _ in many)
    laughs = (
        b"]q\x00(" + b"K\x01" * 10 + b"e" + b"".join(b"]q%c(" % n + b"h%c" % (n - 1) * 10 + b"e" for n in range(1, 100))
    )
    yield "deflated zeros", deflated
    yield "deflated zeros in torch's layout", in_torch_layout
    yield "stride 0", sealed(pickled(model={weight: tensor("0", (20_000, 20_000), (0, 0), numbers=384)}))
    yield "shape without storage", sealed(pickled(model={weight: tensor("0", (20_000, 20_000), numbers=384)}))
    yield "storage larger than its member", sealed(pickled(model={weight: tensor("0", (20_000, 20_000))}))
    yield "overlapping members", sealed(lies={"archive/data/1": {"offset": 0}})
    yield "sparse, 7 GiB, no seal", sparse(7, b"")
    yield "sparse, 3 GiB, no seal", sparse(3, b"")
    yield "sparse, 3 GiB, a wrong seal of another", sparse(3, reseal(zipped(members()))[-50:])
    yield "sparse, 2 GiB, sealed", sparse_sealed
    yield "sealed, then 3 GiB of nothing", lengthened
    yield "60,000 members", sealed(None, *((f"archive/data/{key}", b"") for key in range(10, 60_000)))
    yield "25,000 members, 1,000,000 notes", sealed(pickled(training=b"]" + b"q\x00" * 1_000_000), *many)
    yield "25,000 tensors", sealed(pickled(training=numbers + b"u"), *many)
    yield "25,000 tensors, and notes", sealed(pickled(training=numbers + b"u" + b"q\x00" * 300_000), *many)
    yield "lists of lists", sealed(pickled(training=laughs))
    yield "5,000,000 lists", sealed(pickled(training=b"(" + b"]" * 5_000_000 + b"t"))
    yield "5,000,000 notes", sealed(pickled(training=b"]" + b"q\x00" * 5_000_000))
    yield "nested lists", sealed(pickled(training=b"]" * 9_000 + b"a" * 8_999))
    yield (
        "1,000,000 keys",
        sealed(pickled(training=b"}(" + b"".join(b"J%bN" % struct.pack("<l", n) for n in range(1_000_000)) + b"u")),
    )
    yield "number of 20,000,000 digits", sealed(pickled(training=b"L" + b"9" * 20_000_000 + b"L\n"))
    yield (
        "number of 20,000,000 bytes",
        sealed(pickled(training=b"\x8b" + struct.pack("<L", 20_000_000) + b"\xff" * 20_000_000)),
    )
    yield "text of 1 GB, so it says", sealed(pickled(training=b"X" + struct.pack("<L", 10**9)))
    yield "text of 2^60, so it says", sealed(pickled(training=b"\x8d" + struct.pack("<Q", 2**60)))
    yield "text of 20 MB", sealed(pickled(training=text("\N{GRINNING FACE}" + "x" * 20_000_000)))
    yield "a pickle of 100 MB", sealed(pickled(training=text("x" * 100_000_000)))
    yield "deep JSON", sealed(pickled(content="[" * 10_000_000))
    yield "wide JSON", sealed(pickled(content="[" + "[]," * 6_000_000 + "1]"))
    yield "wide JSON of texts", sealed(pickled(content="[" + '"abc",' * 3_000_000 + "1]"))
    yield "JSON number", sealed(pickled(content="9" * 20_000_000))
    yield "JSON with many keys", sealed(pickled(content="{" + ",".join(f'"{n}":0' for n in range(1_400_000)) + "}"))
    yield (
        "JSON with nearly too many keys",
        sealed(pickled(content="{" + ",".join(f'"{n}":0' for n in range(745_000)) + "}")),
    )
    yield "JSON with nearly too many lists", sealed(pickled(content="[" + "[]," * 199_990 + '"abcd",' * 545_000 + "1]"))
    yield "wide network", sealed(pickled(content=texts(config=wide)))
    yield "deep network", sealed(pickled(content=texts(config=deep)))
    yield "high network", sealed(pickled(content=texts(config=hill, spec=spec | {"shape": [1, 56, 56]})))
    yield "endless input", sealed(pickled(content=texts(config=hill, spec=spec | {"shape": [1, 10**9, 10**9 + 1]})))
    yield "1,000,000 classes", sealed(pickled(content=texts(spec=spec | {"classes": ["x"] * 1_000_000})))
    yield "700,000 means", sealed(pickled(content=texts(spec=means)))
    yield "a directory of 4 GB, so it says", sealed(None, length=0xFFFFFFF0, start=0)
    yield "members of zip64", sealed(lies={"archive/data/0": large})
    yield "2^40 members", sealed(None, count=2**40)


def _bombs(share: float, good: Mapping[str, bytes], folder: Path) -> dict[str, Any]:
    path = folder / "bomb.pt"
    path.write_bytes(good["mlp last.pt"])
    usual, _ = _read(path, refused=False, name="a good file")
    path.write_bytes(reseal(zipped(members())))
    _read(path, refused=False, name="the forged file behind the bombs")
    largest, slowest, count = (0, ""), (0.0, ""), 0
    for name, write in itertools.islice(bombs(), 0, None, 1 if share > 0.5 else 3):
        write(path)
        peak, seconds = _read(path, refused=True, name=name)
        largest, slowest, count = max(largest, (peak - usual, name)), max(slowest, (seconds, name)), count + 1
        _child.check(peak - usual <= MEGABYTES, f"{name}: took {peak - usual} MB more than a good file")
        _child.check(seconds <= SECONDS, f"{name}: took {seconds:.1f} s")
        path.unlink()
    return {
        "bombs": count,
        "largest_megabytes": f"{largest[0]} ({largest[1]})",
        "slowest_bomb_seconds": f"{slowest[0]:.2f} ({slowest[1]})",
    }


def _read(path: Path, *, refused: bool, name: str) -> tuple[int, float]:
    """Read the file in its own process. Returns megabytes and seconds."""

    def read() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        begun = time.process_time()
        try:
            build_network(checkpoint.read(path))
            outcome = "read"
        except CheckpointError as error:
            outcome = f"refused: {error}"
        seconds = time.process_time() - begun
        peak = next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        print(json.dumps([outcome, peak // 1024, seconds]))

    ended = _child.ended(read)
    _child.check(ended.code == 0, f"{name}: {ended.err[-300:]}")
    outcome, peak, seconds = json.loads(ended.out)
    _child.check((outcome == "read") != refused, f"{name}: {outcome[:300]}")
    return peak, seconds
