"""Check the installation and the machine: what nnx needs, what is missing, and how to fix it.

for check in run_checks():
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
from nnx.formatting import wrap
from nnx.terminal.console import MIN_REMARK, new_console

State = Literal["ok", "note", "warning", "error"]

PYTHON = (3, 11)
MIN_FREE = 2**30  # bytes of disk space and of memory
SIGNS = {
    "ok": ("✓", "+", "green"),
    "note": ("·", "-", "dim"),
    "warning": ("!", "!", "yellow"),
    "error": ("✗", "x", "bold red"),
}
MIN_COLUMNS = 80  # of a terminal, for which nnx formats its output


@dataclass(frozen=True)
class Check:
    """The result of one check. With an error nnx does not work, with a warning it works less well; a note is
    information. `found` is what the check found."""

    name: str
    state: State
    found: str
    cure: str = ""


def run_checks() -> list[Check]:
    """Run all checks, in the order in which they are printed. A check that fails with an exception is an error."""
    functions: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("memory", _memory),
        ("disk", _disk),
        ("folders", _folders),
        ("extras", _extras),
        ("terminal", _terminal),
    )
    checks = []
    for name, function in functions:
        try:
            checks += list(function())
        except Exception as error:  # a broken installation can raise anything
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            checks.append(Check(name, "error", message, "reinstall nnx: pip install --force-reinstall nnx"))
    return checks


def is_usable(checks: list[Check]) -> bool:
    """Whether nnx works on this machine: no check is an error."""
    return all(check.state != "error" for check in checks)


def format_checks(checks: list[Check], *, ascii_only: bool = False, width: int | None = None) -> Iterator[Text]:
    """A line per check, and a line below it for its cure; broken between words to fit `width`."""
    names = max(len(check.name) for check in checks)
    indent = names + 4
    room = max(width - indent, MIN_REMARK) if width else sys.maxsize
    for check in checks:
        sign, plain, style = SIGNS[check.state]
        first, *rest = wrap(printable(check.found), room)
        yield Text.assemble((plain if ascii_only else sign, style), f" {check.name:<{names}}  {first}")
        yield from (Text(f"{'':{indent}}{line}") for line in rest)
        cure = wrap(check.cure, room) if check.cure else []
        yield from (Text(f"{'':{indent}}{line}", "dim" if check.state in ("ok", "note") else "") for line in cure)


# ---------------------------------------------------------------- the installation


def _python() -> Iterator[Check]:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= PYTHON:
        yield Check("python", "ok", version)
    else:
        yield Check("python", "error", version, f"install Python {'.'.join(map(str, PYTHON))} or newer")


def _packages() -> Iterator[Check]:
    """The versions of the required packages, compared with those that nnx needs."""
    required = _requirements().get("", {})
    installed = []
    problems = []
    for name, minimum in required.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is missing")
            continue
        installed.append(f"{name} {version}")
        if _numbers(version) < _numbers(minimum):
            problems.append(f"{name} {version} is older than {minimum}")
    try:
        own = f"nnx {metadata.version('nnx')}"
    except metadata.PackageNotFoundError:
        yield Check("packages", "warning", "nnx is imported but not installed", "run pip install . in its folder")
        return
    if problems:
        yield Check("packages", "error", f"{own}: {', '.join(problems)}", "pip install --upgrade nnx")
    else:
        yield Check("packages", "ok", f"{own}, with {', '.join(installed)}")


def _extras() -> Iterator[Check]:
    """The optional packages, and the command that installs the missing ones."""
    for extra, packages in sorted(_requirements().items()):
        if extra in ("", "all", "dev"):
            continue
        missing = [name for name in packages if importlib.util.find_spec(name.replace("-", "_")) is None]
        name = f"nnx[{extra}]"
        if missing:
            yield Check(name, "note", f"{', '.join(missing)} not installed", f"pip install 'nnx[{extra}]'")
        else:
            yield Check(name, "ok", ", ".join(f"{package} {metadata.version(package)}" for package in packages))


def _requirements() -> dict[str, dict[str, str]]:
    """The minimum version of each package that nnx requires, by extra; "" for the packages always required."""
    minimum: dict[str, dict[str, str]] = defaultdict(dict)
    try:
        lines = metadata.requires("nnx") or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        if match := re.match(
            r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?[^;]*(?:;.*extra == ['\"]([^'\"]+)['\"])?", line
        ):
            minimum[match[3] or ""][match[1]] = match[2] or "0"
    return minimum


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: (2, 14, 1) for "2.14.1+cpu"."""
    return tuple(int(number) for number in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if number)  # type: ignore[index]


# ---------------------------------------------------------------- the machine


def _torch() -> Iterator[Check]:
    """The device, precision, layout and threads that nnx chooses, and whether gradients are correct."""
    import torch

    from nnx.models import cnn
    from nnx.system import device as devices
    from nnx.system import platform as system
    from nnx.training import tuning

    runtime = devices.choose_runtime(
        "auto", "auto", channels_last=cnn.Config.channels_last, prefers_bfloat16=cnn.Config.prefers_bfloat16
    )
    for choice in runtime.choices:
        yield Check(choice.what, "ok", choice.value, choice.reason)
    cores = system.cores()
    threads = torch.get_num_threads()
    thread_count = f"{threads} thread{'s' * (threads != 1)}"
    instructions = torch.backends.cpu.get_cpu_capability()
    variable = os.environ.get("OMP_NUM_THREADS")
    cpu = f"{cores} core{'s' * (cores != 1)} available, {thread_count}, {instructions}"
    if variable and threads < cores:
        cure = f"OMP_NUM_THREADS={variable} limits torch to {thread_count}; unset it to let nnx choose"
        yield Check("cpu", "note", cpu, cure)
    elif threads > cores:
        yield Check("cpu", "warning", cpu, f"more threads than cores slow training down; set OMP_NUM_THREADS={cores}")
    else:
        yield Check("cpu", "ok", cpu)
    for workload, speeds in tuning.measurements():
        yield Check("tuning", "ok", workload, "; ".join(speeds))
    yield _gradient(runtime.device)


def _gradient(device: "object") -> Check:
    """Whether torch computes a gradient correctly: that of the sum of squares is twice the numbers."""
    import torch

    x = torch.arange(1.0, 5.0, device=str(device), requires_grad=True)
    (x @ x).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    if x.grad.tolist() == [2.0, 4.0, 6.0, 8.0]:
        return Check("gradient", "ok", f"correct on {device}")
    wrong = f"wrong on {device}: {x.grad.tolist()}"
    return Check("gradient", "error", wrong, "reinstall torch for this machine: https://pytorch.org")


def _memory() -> Iterator[Check]:
    from nnx.system import platform as system

    free = system.free_memory()
    if free >= MIN_FREE:
        yield Check("memory", "ok", f"{_size(free)} free")
    else:
        yield Check(
            "memory", "warning", f"{_size(free)} free", "close other programs, or use a machine with more memory"
        )


def _disk() -> Iterator[Check]:
    yield _check_folder("runs", Path("runs"), "name another folder with --out")


def _folders() -> Iterator[Check]:
    """The folders of the datasets and of the cache, and whether downloads are off."""
    import platformdirs

    from nnx.datasets import _cache

    variable = os.environ.get("NNX_DATA_DIR")
    data = Path(variable).expanduser() if variable else platformdirs.user_cache_path("nnx") / "data"
    cure = "datasets can't be downloaded to it; set NNX_DATA_DIR to another folder"
    check = _check_folder("data", data, cure, read_only="note")
    datasets = []
    if data.is_dir():
        datasets = [path.name for path in sorted(data.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    contents = f"; contains {', '.join(datasets[:8])}{', ...' if len(datasets) > 8 else ''}" if datasets else ""
    yield replace(check, found=check.found + contents)
    yield _check_folder("cache", _cache.folder(), "decoded data can't be cached; set NNX_CACHE_DIR to another folder")
    if os.environ.get("NNX_OFFLINE") == "1":
        yield Check("network", "note", "off (NNX_OFFLINE=1)", "unset NNX_OFFLINE to download datasets")


def _check_folder(name: str, folder: Path, cure: str, read_only: State = "warning") -> Check:
    """Whether files can be written to a folder, which need not exist yet, and its free disk space. `read_only` is the
    state of a folder that can't be written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return Check(name, "warning", f"{folder}: {'is' if existing == folder else f'{existing} is'} a file", cure)
    free = shutil.disk_usage(existing).free
    description = f"{folder}{'' if folder.exists() else ' (not created yet)'}, {_size(free)} free"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(name, read_only, f"{description}, but not writable ({error.strerror})", cure)
    if free < MIN_FREE:
        return Check(name, "warning", description, "free some disk space")
    return Check(name, "ok", description)


def _terminal() -> Iterator[Check]:
    console = new_console(sys.stdout)
    if not sys.stdout.isatty():
        yield Check("terminal", "note", "stdout is not a terminal: plain lines, no colours")
        return
    colours = {"truecolor": "16 million colours", "256": "256 colours", "standard": "16 colours", None: "no colours"}
    colour = colours.get(console.color_system, console.color_system)
    terminal = f"{console.width} columns, {colour}, {console.encoding}"
    if console.options.ascii_only:
        cure = "curves and pictures are drawn in ASCII; set LANG to a UTF-8 locale, such as C.UTF-8"
        yield Check("terminal", "warning", terminal, cure)
    elif console.width < MIN_COLUMNS:
        yield Check("terminal", "note", terminal, f"tables need {MIN_COLUMNS} columns")
    else:
        yield Check("terminal", "ok", terminal)


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
