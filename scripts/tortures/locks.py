"""Links, pipes, folders and devices at each path that a command opens: no other file changes, and no command hangs."""

import contextlib
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nnx import checkpoint
from nnx.datasets import _cache
from nnx.errors import NnxError
from nnx.system import files, locks
from tortures._child import check, command, ended, folder
from tortures.download import FILES, ensure, make_half, serve, set_archives

LIMIT = 90  # seconds in which a command must end, on a busy machine
MEMORY = 2**30  # bytes that a command may take: an endless device would need all
SMALL = ("train.epochs=1", "model.hidden=[8]", "train.film=true", "train.ema=null", "train.report=false")
QUICK = ("-q", *(word for setting in SMALL for word in ("--set", setting)))
IMAGES = "dataset={name: folder, path: images}"
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "digits_mlp", *QUICK, "--out", "new"),
    "train --force": ("train", "digits_mlp", *QUICK, "--out", "run", "--force"),
    "train --resume": ("train", "--resume", "run", "-q", "--set", "train.epochs=2"),
    "train, decoding": ("train", "digits_mlp", *QUICK, "--set", IMAGES, "--out", "new"),
    "train, decoded": ("train", "digits_mlp", *QUICK, "--set", IMAGES, "--out", "new"),
    "eval": ("eval", "run", "-q", "--out", "results"),
    "predict": ("predict", "run", "images/0/0.png", "-q"),
    "explain": ("explain", "run", "-q", "--only", "filters"),
    "trace": ("trace", "run"),
    "verify": ("verify", "run", "--steps", "2"),
    "init": ("init", "digits_mlp"),
    "show": ("show", "own.yaml", "--no-trial"),
    "doctor": ("doctor", "images/0/0.png", "--checkpoint", "run", "--out", "steps.png"),
    "list cache": ("list", "cache"),
    "list cache --clear": ("list", "cache", "--clear"),
    "download": (),
}
WRITTEN = {"new", "run", "results", "cache", "raw", "digits_mlp.yaml", "steps.png"}  # first parts of paths


def torture(share: float, seed: int) -> dict[str, Any]:
    """Watch which paths each command opens. Then run it with each of them replaced by each kind of trap."""
    rng = random.Random(seed)
    with folder() as base, contextlib.chdir(base), _served_files() as download:
        _prepare(base)
        functions = {name: command(*words) if words else download for name, words in COMMANDS.items()}
        some = set(rng.sample(list(functions), min(max(round(4 * len(functions) * share), 3), len(functions))))
        paths = {name: _watched(base, name, functions[name]) for name in functions if name in some}
        _control(base, functions)
        cases = [(name, path, kind) for name in paths for path in sorted(paths[name]) for kind in TRAPS]
        chosen = rng.sample(cases, max(round(len(cases) * share), 12))
        refused = 0
        for name, path, kind in chosen:
            refused += _tested(base, name, path, kind, functions[name]) != 0
    return {
        "commands": len(paths),
        "paths that they open": len({path for opened in paths.values() for path in opened}),
        "traps": len(chosen),
        "of them refused with 2 or 3": refused,
        "files changed": 0,
    }


# ---------------------------------------------------------------- the traps


def _link(path: Path, victims: Path) -> None:
    path.symlink_to(victims / "file")


def _dangling_link(path: Path, victims: Path) -> None:
    path.symlink_to(victims / "made")


def _hard_link(path: Path, victims: Path) -> None:
    os.link(victims / "file", path)


def _linked_folder(path: Path, victims: Path) -> None:
    path.symlink_to(victims / "folder")


def _pipe(path: Path, victims: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victims: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"content")


def _device(path: Path, victims: Path) -> None:
    """An endless file: /dev/zero, or a link to it where only root may make devices."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


TRAPS = {
    "link": _link,
    "dangling link": _dangling_link,
    "hard link": _hard_link,
    "link to a folder": _linked_folder,
    "pipe": _pipe,
    "folder": _folder,
    "device": _device,
}


# ---------------------------------------------------------------- a case


def _tested(base: Path, name: str, path: str, kind: str, function: Callable[[], Any]) -> int:
    """Run the command with a trap at `path`. Returns its exit code."""
    _reset(base, name)
    before = _victims(base)

    def trapped() -> Any:
        place = base / path.replace("{pid}", str(os.getpid()))
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        TRAPS[kind](place, base / "victims")
        return function()

    where = f"{name}, {kind} at {path}"
    try:
        run = ended(_limited(trapped), limit=LIMIT)
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from None
    changed = [victim for victim, state in _victims(base).items() if before.get(victim) != state]
    check(not changed and _victims(base).keys() == before.keys(), f"{where}: changed {changed or 'the folder'}")
    check(run.code in (0, 2, 3), f"{where}: exit code {run.code}: {run.err[-500:]}")
    check("Traceback" not in run.err, f"{where}: {run.err[-500:]}")
    last = run.err.strip().rpartition("\n")[2]
    check(run.code == 0 or last.startswith("error: "), f"{where}: exit code {run.code}, but the last line is {last!r}")
    check("None" not in last, f"{where}: {last}")
    return run.code


def _limited(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function`, with a limit on the memory that it takes in addition."""

    def call() -> Any:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.RLIM_INFINITY))
        return function()

    return call


def _victims(base: Path) -> dict[str, tuple[bytes, int, int]]:
    """The content, the mode and the time of change of each file that no command may touch."""
    return {
        str(path.relative_to(base)): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        for path in sorted((base / "victims").rglob("*"))
        if path.is_file()
    }


def _control(base: Path, functions: dict[str, Callable[[], int]]) -> None:
    """The same check must fail where nnx writes through links."""

    def careless(function: Callable[[], int]) -> int:
        locks.open_regular = lambda path, flags: os.open(path, flags, 0o666)
        files.replace = lambda path, data, **_: path.write_bytes(data)
        return function()

    for name, path, kind in (("train", "new/.lock", "hard link"), ("eval", "results/eval.json", "link")):
        try:
            _tested(base, name, path, kind, partial(careless, functions[name]))
        except AssertionError as error:
            check("changed" in str(error), f"the control failed for another reason: {error}")
        else:
            raise AssertionError(f"the control: {path} was written through a link, and nobody noticed")


# ---------------------------------------------------------------- the commands and their paths


def _watched(base: Path, name: str, function: Callable[[], Any]) -> set[str]:
    """The paths below `base` that the command opens or makes, with {pid} for its process number."""
    _reset(base, name)
    log = base / "log"

    def watched() -> Any:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        pid = str(os.getpid())

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            index = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1}.get(event)
            if index is not None and isinstance(arguments[index], str | os.PathLike):
                path = os.path.relpath(os.path.abspath(arguments[index]), base)
                if path.partition("/")[0] in WRITTEN and path not in WRITTEN - {"steps.png", "digits_mlp.yaml"}:
                    os.write(descriptor, f"{path.replace(f'.{pid}.', '.{pid}.')}\n".encode())

        sys.addaudithook(hook)
        return function()

    try:
        run = ended(watched, limit=LIMIT)
    except AssertionError as error:
        raise AssertionError(f"the control: {name}: {error}") from None
    check(run.code == 0, f"the control: {name} failed without a trap: {run.err}")
    return set(log.read_text().splitlines())


def _prepare(base: Path) -> None:
    """Images, a run, a decoded cache, and the files that no command may change."""
    os.environ["NNX_CACHE_DIR"] = str(base / "cache")
    generator = np.random.default_rng(0)
    for number in range(60):
        place = base / "images" / str(number % 3) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
    for name in ("file", "folder/file", "folder/config.yaml", f"folder/{FILES[0]}.gz.part"):
        (base / "victims" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "victims" / name).write_bytes(b"ssh-ed25519 AAAA\n")
    config = "dataset: {name: folder, path: images}\nmodel: mlp\n"
    (base / "own.yaml").write_text(config)
    trained = ended(command("train", "digits_mlp", *QUICK, "--out", "templates/run"))
    check(trained.code == 0, f"the run to start from failed: {trained.err}")
    checkpoint.read(base / "templates/run/last.pt")
    decoded = ended(command("train", "digits_mlp", *QUICK, "--set", IMAGES, "--out", "other"))
    check(decoded.code == 0 and bool(_cache.entries()), f"nothing was decoded: {decoded.err}")
    shutil.copytree(base / "cache", base / "templates/cache")


def _reset(base: Path, name: str) -> None:
    """The folders as they are before the command."""
    for written in WRITTEN:
        path = base / written
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    shutil.copytree(base / "templates/run", base / "run")
    if name in ("train, decoded", "list cache", "list cache --clear", "show"):
        shutil.copytree(base / "templates/cache", base / "cache")
    if name == "download":  # begun, and continued by the command
        part = base / "raw/.download" / f"{FILES[0]}.gz.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"")


@contextlib.contextmanager
def _served_files() -> Iterator[Callable[[], int]]:
    """A function that downloads a small MNIST to raw/."""
    import gzip

    generator = random.Random(0)
    content = dict(zip(FILES, (*make_half(40, generator), *make_half(20, generator)), strict=True))
    packed = {f"{name}.gz": gzip.compress(whole) for name, whole in content.items()}
    with serve(packed, Path("requests").absolute()) as url:
        set_archives(url, packed, "locks")

        def download() -> int:
            try:
                ensure(Path("raw"))
            except NnxError as error:
                print("error:", error, file=sys.stderr)
                return error.exit_code
            return 0

        yield download
