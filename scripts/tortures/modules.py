"""Python files named like each module that nnx could import, in the current folder and beside configs: none runs."""

import importlib.metadata
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from tortures._child import check, folder

LIMIT = 300  # seconds; the compiler takes one minute
IMAGES = 3100  # enough for processes that decode
TRAIN = ("--set", "train.epochs=1", "--set", "model.hidden=[8]", "--force", "-q")
COMMANDS: dict[str, tuple[str, ...]] = {
    "train, two processes": ("train", "digits_mlp", *TRAIN, "--nproc", "2", "--out", "new"),
    "train, decoding in processes": ("train", "elsewhere/images.yaml", *TRAIN, "--out", "new"),
    "train, Parquet": ("train", "elsewhere/parquet.yaml", *TRAIN, "--out", "new"),
    "train --resume": ("train", "--resume", "run", "-q", "--set", "train.epochs=2"),
    "eval": ("eval", "run", "-q", "--out", "results"),
    "predict": ("predict", "run", "images/0/0.png"),
    "predict, decoding in processes": ("predict", "run", "images", "-q"),
    "explain": ("explain", "run", "-q"),
    "trace": ("trace", "run"),
    "verify": ("verify", "run", "--steps", "2"),
    "init": ("init", "digits_mlp", "--out", "made"),
    "list": ("list",),
    "list cache": ("list", "cache"),
    "show": ("show", "elsewhere/images.yaml"),
    "check": ("check", "elsewhere/images.yaml"),
    "schema": ("schema",),
    "doctor": ("doctor",),
    "doctor, image": ("doctor", "images/0/0.png", "--checkpoint", "run", "--out", "steps.png"),
    "--help": ("--help",),
    "--show-completion": ("--show-completion",),
    "train, compiled": ("train", "digits_mlp", *TRAIN, "--set", "compile=true", "--out", "new"),
}
SLOW = ("train, compiled",)  # a minute: only if all commands are run
CONFIG = "dataset: {{name: {name}, path: {path}}}\nmodel: mlp\n"


def torture(share: float, seed: int) -> dict[str, Any]:
    """Each command, as `nnx` and as `python -m nnx`, in a folder of modules that note that they were run."""
    rng = random.Random(seed)
    names = _names()
    with folder() as base:
        _prepare(base)
        ran = base / "ran"
        _plant(base, names, ran)
        subprocess.run([sys.executable, "-c", "import random"], cwd=base, check=True)
        check(ran.exists(), "the control: python itself did not run the random.py of the current folder")
        ran.unlink()
        before = _run_by_python(base, ran)
        cases = [(name, way) for name in COMMANDS for way in _ways() if share == 1 or name not in SLOW]
        parallel = [case for case in cases if "process" in case[0]]
        few = max(round(len(cases) * share), 2)
        chosen = cases if share == 1 else [rng.choice(parallel), *rng.sample(cases, few - 1)]
        for name, way in chosen:
            _tested(base, name, way, before, ran)
    return {"modules": len(names), "commands": len({name for name, _ in chosen}), "runs": len(chosen), "modules run": 0}


def _names() -> list[str]:
    """The names of all modules of the standard library, of all installed packages, and of those that Python looks for
    at its start."""
    names = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    names |= {"sitecustomize", "usercustomize", "nnx", "configs", "planted_backend"}
    return sorted(name for name in names if name.isidentifier())


def _ways() -> dict[str, list[str]]:
    """How nnx is started: its script, where it is installed, and as a module."""
    script = Path(sys.executable).with_name("nnx")
    ways = {"nnx": [str(script)], "python -m nnx": [sys.executable, "-m", "nnx"]}
    return ways if script.exists() else {"python -m nnx": ways["python -m nnx"]}


def _plant(base: Path, names: list[str], ran: Path) -> None:
    """Put the modules into the current folder, beside the configs, beside the images and into the run."""
    for place in (base, base / "elsewhere", base / "images", base / "run"):
        for name in names:
            text = f"file = open({str(ran)!r}, 'a')\nfile.write({f'{place.name}/{name}.py'!r} + '\\n')\nfile.close()\n"
            (place / f"{name}.py").write_text(text)
        (place / "matplotlibrc").write_text("backend: module://planted_backend\n")


def _run_by_python(base: Path, ran: Path) -> list[str]:
    """The modules of the current folder that `python -m nnx` runs before any line of nnx: nothing that nnx can help."""
    modules = ["nnx.py"]
    (base / "empty.py").write_text("")
    while True:
        (base / modules[-1]).unlink()
        subprocess.run([sys.executable, "-m", "empty"], cwd=base, capture_output=True)
        if not ran.exists():
            return modules
        modules.append(Path(ran.read_text().split()[0]).name)
        ran.unlink()


def _tested(base: Path, name: str, way: str, before: list[str], ran: Path) -> None:
    """Run the command. The modules of `before` are there unless Python itself would run them."""
    for module in before:
        if way == "nnx":
            shutil.copy(base / "elsewhere" / module, base)
        else:
            (base / module).unlink(missing_ok=True)
    for text in ("results", "made", "steps.png"):
        shutil.rmtree(base / text, ignore_errors=True)
    shutil.rmtree(base / "cache", ignore_errors=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment["NNX_CACHE_DIR"] = str(base / "cache")
    done = subprocess.run(
        [*_ways()[way], *COMMANDS[name]], cwd=base, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    modules = ran.read_text().split() if ran.exists() else []
    check(not modules, f"{name} as `{way}` ran {', '.join(dict.fromkeys(modules))}")
    check(done.returncode == 0, f"{name} as `{way}`: exit code {done.returncode}: {done.stderr[-500:]}")


def _prepare(base: Path) -> None:
    """A run, thousands of images, a Parquet file and their configs."""
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        place = base / "images" / str(number % 3) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number < 300:
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
        else:
            os.link(base / "images" / str(number % 3) / f"{number % 300}.png", place)
    (base / "elsewhere").mkdir()
    (base / "elsewhere/images.yaml").write_text(CONFIG.format(name="folder", path=base / "images"))
    (base / "elsewhere/parquet.yaml").write_text(CONFIG.format(name="table", path="table.parquet, target: class"))
    table = pl.DataFrame({"a": generator.random(90), "b": generator.random(90), "class": ["x", "y", "z"] * 30})
    table.write_parquet(base / "table.parquet")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "nnx",
            "train",
            "digits_mlp",
            *TRAIN,
            "--set",
            "train.report=false",
            "--out",
            "run",
        ],
        cwd=base,
        capture_output=True,
        text=True,
    )
    check(done.returncode == 0, f"the run to start from failed: {done.stderr[-500:]}")
