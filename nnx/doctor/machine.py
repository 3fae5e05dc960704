"""What of this machine and installation nnx needs: what is there, what is not, and what to do about it.

for check in checks():
    print(check.state, check.name, check.found, check.cure)
"""

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.text import Text

from nnx.errors import printable

State = Literal["ok", "note", "warning", "error"]

PYTHON = (3, 11)
ROOM = 2**30  # bytes of disk and of memory, at least
SIGNS = {
    "ok": ("✓", "+", "green"),
    "note": ("·", "-", "dim"),
    "warning": ("!", "!", "yellow"),
    "error": ("✗", "x", "bold red"),
}
NARROW = 80  # columns of a terminal: what nnx prints is made for so many


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. An error makes nnx unusable, a warning costs something; a note is good to know."""

    name: str
    state: State
    found: str
    cure: str = ""


def checks() -> list[Check]:
    """All of them, in the order in which they are shown. None raises: what goes wrong in looking is what is wrong."""
    looks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("memory", _memory),
        ("disk", _disk),
        ("folders", _folders),
        ("extras", _extras),
        ("terminal", _terminal),
    )
    found = []
    for name, look in looks:
        try:
            found += list(look())
        except Exception as error:  # a broken installation fails in any way
            found.append(
                Check(
                    name,
                    "error",
                    f"{type(error).__name__}: {error}".splitlines()[0],
                    "install nnx anew: pip install --force-reinstall nnx",
                )
            )
    return found


def usable(found: list[Check]) -> bool:
    """Whether nnx can be used at all."""
    return all(check.state != "error" for check in found)


def lines(found: list[Check], *, ascii_only: bool = False) -> Iterator[Text]:
    """A line for each, and one below it for its cure."""
    width = max(len(check.name) for check in found)
    for check in found:
        sign, plain, style = SIGNS[check.state]
        yield Text.assemble((plain if ascii_only else sign, style), f" {check.name:<{width}}  {printable(check.found)}")
        if check.cure:
            yield Text(f"{'':{width + 4}}{check.cure}", "dim" if check.state in ("ok", "note") else "")


# ---------------------------------------------------------------- the installation


def _python() -> Iterator[Check]:
    version = platform.python_version()
    what = f"{version} on {platform.system()} {platform.machine()}"
    needed = ".".join(map(str, PYTHON))
    yield (
        Check("python", "ok", what)
        if sys.version_info >= PYTHON
        else Check("python", "error", what, f"install Python {needed} or newer")
    )


def _packages() -> Iterator[Check]:
    """What nnx is made of, beside what it asks for."""
    needed = _requirements().get("", {})
    there, wrong = [], []
    for name, least in needed.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        there.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            wrong.append(f"{name} {version} is older than {least}")
    try:
        own = f"nnx {metadata.version('nnx')}"
    except metadata.PackageNotFoundError:
        yield Check("packages", "warning", "nnx is not installed, only found", "pip install . in its folder")
        return
    if wrong:
        yield Check("packages", "error", f"{own}: {', '.join(wrong)}", "pip install --upgrade nnx")
    else:
        yield Check("packages", "ok", f"{own}, with {', '.join(there)}")


def _extras() -> Iterator[Check]:
    """What can be added, each with the command that adds it."""
    for extra, packages in sorted(_requirements().items()):
        if extra in ("", "all", "dev"):
            continue
        missing = [name for name in packages if importlib.util.find_spec(name.replace("-", "_")) is None]
        name = f"for {extra}"
        if missing:
            yield Check(name, "note", f"{', '.join(missing)} not installed", f"pip install 'nnx[{extra}]'")
        else:
            yield Check(name, "ok", ", ".join(f"{each} {metadata.version(each)}" for each in packages))


def _requirements() -> dict[str, dict[str, str]]:
    """What nnx requires: by extra, "" for always, the least version of each package."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    try:
        lines = metadata.requires("nnx") or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        if match := re.match(
            r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?[^;]*(?:;.*extra == ['\"]([^'\"]+)['\"])?", line
        ):
            found[match[3] or ""][match[1]] = match[2] or "0"
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if number)  # type: ignore[index]


# ---------------------------------------------------------------- the machine


def _torch() -> Iterator[Check]:
    """What computes, in what precision, by how many threads; and whether it does at all."""
    import torch

    from nnx.models import cnn
    from nnx.system import device as devices
    from nnx.system import workers

    chosen = devices.choose_runtime(
        "auto", "auto", channels_last=cnn.Config.channels_last, bfloat16_speedup=cnn.Config.bfloat16_speedup
    )
    for choice in chosen.choices:
        yield Check(choice.what, "ok", choice.value, choice.reason)
    cores, threads = workers.available_cores(), torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    variable = os.environ.get("OMP_NUM_THREADS")
    what = f"{cores} core{'s' * (cores != 1)} to be had, {threads} thread{'s' * (threads != 1)}, {instructions}"
    if variable and threads < cores:
        yield Check(
            "cpu", "note", what, f"OMP_NUM_THREADS={variable} holds torch to {threads}; unset it to let nnx choose"
        )
    elif threads > cores:
        yield Check(
            "cpu", "warning", what, f"more threads than cores slow each other down; set OMP_NUM_THREADS={cores}"
        )
    else:
        yield Check("cpu", "ok", what)
    yield _computes(chosen.device)


def _computes(device: "object") -> Check:
    """Whether a gradient is what it should be: that of the sum of squares is twice the numbers."""
    import torch

    x = torch.arange(1.0, 5.0, device=str(device), requires_grad=True)
    (x @ x).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    if x.grad.tolist() == [2.0, 4.0, 6.0, 8.0]:
        return Check("gradient", "ok", f"right, on {device}")
    return Check(
        "gradient",
        "error",
        f"wrong, on {device}: {x.grad.tolist()}",
        "install torch anew, for this machine: https://pytorch.org",
    )


def _memory() -> Iterator[Check]:
    from nnx.datasets._mapped import free_memory

    free = free_memory()
    what = f"{_size(free)} free"
    yield (
        Check("memory", "ok", what)
        if free >= ROOM
        else Check("memory", "warning", what, "close what else runs, or use a larger machine")
    )


def _disk() -> Iterator[Check]:
    yield _room("runs go to", Path("runs"), "name another folder by --out")


def _folders() -> Iterator[Check]:
    """Where data comes from, and where decoded data is kept."""
    import platformdirs

    from nnx.datasets import _cache

    named = os.environ.get("NNX_DATA_DIR")
    data = Path(named).expanduser() if named else platformdirs.user_cache_path("nnx") / "data"
    by = "NNX_DATA_DIR" if named else "the user's cache folder; NNX_DATA_DIR names another"
    check = _room(
        "data", data, f"nothing can be downloaded there; name another folder as NNX_DATA_DIR ({by})", only_read="note"
    )
    inside = (
        [path.name for path in sorted(data.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        if data.is_dir()
        else []
    )
    holds = f"; holds {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''}" if inside else ""
    yield replace(check, found=check.found + holds)
    yield _room("cache", _cache.folder(), "what is decoded can't be kept; name another folder as NNX_CACHE_DIR")
    if os.environ.get("NNX_OFFLINE") == "1":
        yield Check("network", "note", "not used, as NNX_OFFLINE=1 says", "unset it to download datasets")


def _room(name: str, folder: Path, cure: str, only_read: State = "warning") -> Check:
    """Whether files can be written to a folder, which need not be there yet, and how much room there is."""
    near = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not near.is_dir():
        return Check(name, "warning", f"{folder}: {'is' if near == folder else f'{near} is'} a file", cure)
    free = shutil.disk_usage(near).free
    what = f"{folder}{'' if folder.exists() else ' (to be made)'}, {_size(free)} free"
    try:
        with tempfile.TemporaryFile(dir=near):
            pass
    except OSError as error:
        return Check(name, only_read, f"{what}, but can't be written ({error.strerror})", cure)
    if free < ROOM:
        return Check(name, "warning", what, "free some room")
    return Check(name, "ok", what)


def _terminal() -> Iterator[Check]:
    from rich.console import Console

    console = Console()
    if not sys.stdout.isatty():
        yield Check("terminal", "note", "none: plain lines, no colours")
        return
    colours = {"truecolor": "16 million colours", "256": "256 colours", "standard": "16 colours", None: "no colours"}
    what = f"{console.width} columns, {colours.get(console.color_system, console.color_system)}, {console.encoding}"
    if console.options.ascii_only:
        yield Check(
            "terminal",
            "warning",
            what,
            "curves and pictures are drawn in ASCII; set LANG to a UTF-8 locale, such as C.UTF-8",
        )
    elif console.width < NARROW:
        yield Check("terminal", "note", what, f"tables need {NARROW} columns")
    else:
        yield Check("terminal", "ok", what)


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
