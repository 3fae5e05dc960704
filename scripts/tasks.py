"""What scripts/setup, demo, check and test do, on every system: python scripts/tasks.py TASK [ARGUMENTS].

The shell scripts and those for PowerShell (.ps1) look for a Python and call this. It needs nothing but Python 3.11 or
newer.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
WINDOWS = sys.platform == "win32"
PROGRAMS = VENV / ("Scripts" if WINDOWS else "bin")
PYTHON = PROGRAMS / ("python.exe" if WINDOWS else "python")
PLATFORMS = ("linux", "darwin", "win32")
CHECKS = (
    "ruff format --check --quiet .",
    "ruff check --quiet .",
    "lint-imports",
    *(f"mypy --no-error-summary --platform {name} --cache-dir .mypy_cache/{name}" for name in PLATFORMS),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
WITHOUT_FORK = "torture is skipped: it needs fork and the signals of Linux and macOS"


def setup(arguments: Sequence[str]) -> None:
    """Make .venv and install nnx into it, editable, with the extras in the first argument. Does nothing if that is done
    already."""
    extras = arguments[0] if arguments else ""
    stamp = VENV / ".nnx-installed"
    version = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    wanted = f"{version} {extras}"
    if PYTHON.exists() and stamp.exists() and wanted in stamp.read_text(encoding="utf-8").splitlines():
        return
    if not PYTHON.exists():
        print(f"making a virtual environment in .venv (Python {sys.version.split()[0]})", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", VENV]).returncode:
            fail("can't make a virtual environment; on Debian: apt install python3-venv")
    note = f" with {extras}" if extras else ""
    print(f"installing nnx{note} (PyTorch is large: this takes a few minutes, once)", flush=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable"]
    run([*pip, f".[{extras}]" if extras else "."])
    # Extras include the plain installation, so note that too: demo and test then don't reinstall after each other.
    stamp.write_text(f"{version} \n{wanted}\n", encoding="utf-8")


def demo(arguments: Sequence[str]) -> None:
    """From a fresh clone to a trained network: handwritten digits that come with scikit-learn. Arguments go to nnx
    train."""
    setup([])
    run([PYTHON, "-m", "nnx", "train", "configs/digits_mlp.yaml", *arguments])
    runs = sorted((ROOT / "runs").glob("*/"), key=lambda folder: folder.stat().st_mtime)
    newest = runs[-1].relative_to(ROOT) if runs else Path("runs")
    activate = ".venv\\Scripts\\activate" if WINDOWS else "source .venv/bin/activate"
    print(f"""
This network has 64 inputs and two hidden layers. Test accuracy is from digits that it never saw in training.
Open {newest / "report.html"} in a browser and press play: a film of the training, step by step. What to try next, with
{PROGRAMS.relative_to(ROOT)} on your PATH ({activate}):

  {f"nnx eval {newest}":54}the confusion matrix
  nnx train digits_cnn                                  a convolutional network on the same digits
  nnx train digits_mlp --set "model.hidden=[16]"        a smaller network
  nnx train mnist_mlp                                   60,000 digits (downloads 11 MB)
  nnx list                                              all recipes, models, datasets, ...""")


def check(arguments: Sequence[str]) -> None:
    """Format, lint, types on each system, and layers, all at once. Prints what each step finds; fails if one fails."""

    def run_one(command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            find(command.split()),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )

    failed = False
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        for command, done in zip(CHECKS, pool.map(run_one, CHECKS), strict=True):
            print(f"== {command}", flush=True)
            if done.returncode:
                print(f"{done.stdout}FAILED: {command} (exit code {done.returncode})", flush=True)
                failed = True
    if failed:
        sys.exit(1)


def test(arguments: Sequence[str]) -> None:
    """Every check and test, from nothing: test [--slow] [PYTEST ARGUMENTS]. --slow adds the tests that take minutes."""
    setup(["dev"])
    slow = [*arguments[:1]] == ["--slow"]
    if not os.environ.get("NNX_DATA_DIR"):
        print("NNX_DATA_DIR is not set: tests that need the real MNIST will be skipped")
    if not find_browser():
        print("no chromium found: tests that open the report in a browser will be skipped", flush=True)
    check([])
    # nnx must be at least 4 times as fast as the usual training loop, measured in the same run
    step([PYTHON, "scripts/bench", "--quick", "--guard", "4"])
    if WINDOWS:
        print(WITHOUT_FORK, flush=True)
    else:  # one twentieth of the torture suite: disks, signals, networks, attackers
        step([PYTHON, "scripts/torture", "--share", "0.05"])
    # two workers with one thread each: the tests are small, and equal thread counts give equal bits
    os.environ["OMP_NUM_THREADS"] = "1"
    workers = os.environ.get("NNX_TEST_WORKERS", "2")
    step([PYTHON, "-m", "pytest", "-n", workers, "-m", "" if slow else "not slow", *arguments[1 if slow else 0 :]])


def find_browser() -> str | None:
    """A browser for the tests of the report. On Debian, root installs one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found and not WINDOWS and os.getuid() == 0 and shutil.which("apt-get"):
        print("installing chromium for the tests of the report", flush=True)
        for words, seconds in (
            ("apt-get -qq update", 120),
            ("apt-get -qq install --no-install-recommends chromium fonts-dejavu-core", 300),
        ):
            try:
                quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
                subprocess.run(words.split(), env=quiet, timeout=seconds, capture_output=True, check=True)
            except (OSError, subprocess.SubprocessError):
                break
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found


def step(command: Sequence[str | Path]) -> None:
    """Print a command, then run it."""
    print("==", *command, flush=True)
    run(command)


def run(command: Sequence[str | Path]) -> None:
    """Run a command in the root of the repository; exit with its code if it fails."""
    code = subprocess.run([*map(str, command)], cwd=ROOT, env=environment()).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


def find(command: Sequence[str]) -> list[str]:
    """The command with the path of its program, which Windows does not look for in the PATH of `environment`."""
    return [shutil.which(command[0], path=environment()["PATH"]) or command[0], *command[1:]]


def environment() -> dict[str, str]:
    """The environment with the programs of .venv first."""
    return {**os.environ, "PATH": os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])}


def fail(problem: str) -> None:
    """Print what is wrong with the machine and exit."""
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(3)


TASKS: dict[str, Callable[[Sequence[str]], None]] = {"setup": setup, "demo": demo, "check": check, "test": test}

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - the shell scripts look for another one; those for PowerShell do not
        fail(f"nnx needs Python 3.11 or newer, this is {sys.version.split()[0]}; install one from https://python.org")
    TASKS[sys.argv[1]](sys.argv[2:])
