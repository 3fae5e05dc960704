"""Data files cut at random moments while they are memory-mapped: 3 with their name, and a resume to the same bits."""

import contextlib
import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nnx import checkpoint, datasets
from nnx.datasets import _cache, table
from tortures._child import Ended, check, command, ended, folder

SAMPLES = 2400  # of 64 bytes: 38 pages of memory
SETTINGS = ("train.epochs=5", "train.batch_size=32", "train.save_every=7", "train.report=false", "model.hidden=[8]")
FILES = ("checkpoint.pt", "last.pt")
SOURCES = {  # how the data is given -> the config of the dataset, the file that is cut; None: the cache entry
    "npy": ("{name: arrays, path: arrays}", "arrays/x_train.npy"),
    "IDX": ("{name: idx, path: images-idx3-ubyte}", "images-idx3-ubyte"),
    "cache entry of images": ("{name: folder, path: folder}", None),
    "cache entry of a table": ("{name: table, path: table.csv, target: class}", None),
}


def torture(share: float, seed: int) -> dict[str, Any]:
    """Cut the file of each kind of source at 30 random moments, with one thread and with two."""
    rng = random.Random(seed)
    datasets.fits = lambda size: False  # type: ignore[assignment]  # as if the data did not fit in memory
    table.CACHED_FROM = 0
    with folder() as base, contextlib.chdir(base):
        kinds = [(source, threads) for source in SOURCES for threads in (1, 2)]
        if share < 1:
            kinds = rng.sample(kinds, 1)
        _prepare(base, {source for source, _ in kinds})
        cuts = max(round(30 * share), 2)
        stopped = unsaved = early = late = 0
        for source, threads in kinds:
            train, cut_file = _command(source, threads)
            _remove_cache(base)
            whole = ended(command(*train, "--out", "whole"))
            check(whole.code == 0, f"{source}: the uninterrupted run failed: {whole.err}")
            seconds = Path("whole/last.pt").stat().st_mtime - Path("whole/config.yaml").stat().st_mtime
            expected = [Path("whole", name).read_bytes() for name in FILES]
            for _ in range(cuts):
                outcome = _cut(train, cut_file, rng, seconds, f"{source}, {threads} threads", expected)
                stopped += outcome == "stopped"
                unsaved += outcome == "unsaved"
                early += outcome == "early"
                late += outcome == "late"
            shutil.rmtree("whole")
    check(stopped > 0 or cuts < 10, "no run was stopped after its first save")
    return {
        "cuts": cuts * len(kinds),
        "stopped with 3, and resumed to the same bits": stopped,
        "stopped before the first save": unsaved,
        "refused at the start, or decoded again": early,
        "after the end": late,
    }


def _command(source: str, threads: int) -> tuple[tuple[str, ...], str | None]:
    dataset, cut_file = SOURCES[source]
    Path("own.yaml").write_text(f"dataset: {dataset}\nmodel: mlp\nthreads: {threads}\n")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ("train", "own.yaml", "-q", *settings), cut_file


def _cut(
    train: tuple[str, ...], cut_file: str | None, rng: random.Random, seconds: float, where: str, expected: list[bytes]
) -> str:
    """Train, cut the file meanwhile, restore it, and finish the run."""
    shutil.rmtree("run", ignore_errors=True)
    path = Path(cut_file) if cut_file else next(entry.path for entry in _cache.entries()) / "inputs.bin"
    if not cut_file:
        path = max(path.parent.glob("*.bin"), key=lambda file: file.stat().st_size)
    content = path.read_bytes()
    size = rng.choice([0, len(content) // 2, len(content) - rng.randrange(1, 300), rng.randrange(len(content))])
    delay = rng.uniform(-0.1, 0.9) * seconds  # after the training began; before 0: at the start of the command
    last = Path("run/last.pt")
    run = ended(_with_cut(command(*train, "--out", "run"), path, size, delay))
    at = f"{where}: cut to {size:,} of {len(content):,} bytes at {delay:.2f} s"
    check("Traceback" not in run.err, f"{at}: {run.err}")
    check(run.code in (0, 2, 3), f"{at}: exit code {run.code}: {run.err}")
    if run.code:
        check(str(path) in run.err and run.err.count("\n") == 1, f"{at}: the error does not name {path}: {run.err}")
    if last.exists():
        checkpoint.read(last)
    if cut_file:
        path.write_bytes(content)
    outcome = _outcome(run, last, at)
    again = () if outcome == "late" else ("train", "--resume", "run", "-q")
    if outcome in ("unsaved", "early"):
        again = (*train, "--out", "run", "--force")
    if again:
        finished = ended(command(*again))
        check(finished.code == 0, f"{at}: the run did not finish with the restored file: {finished.err}")
    for name, data in zip(FILES, expected, strict=True):
        check(Path("run", name).read_bytes() == data, f"{at}, {outcome}: {name} differs from an uninterrupted run's")
    return outcome


def _outcome(run: Ended, last: Path, at: str) -> str:
    if run.code == 0:
        return "late"
    if run.code == 2:
        check(not last.exists(), f"{at}: exit code 2 after the training began: {run.err}")
        return "early"
    return "stopped" if last.exists() else "unsaved"


def _with_cut(function: Callable[[], int], path: Path, size: int, delay: float) -> Callable[[], int]:
    """`function`, with the file cut to `size`, `delay` seconds after the training began."""

    def cut() -> None:
        while delay > 0 and not Path("run/config.yaml").exists():
            time.sleep(0.001)
        time.sleep(abs(delay))
        os.truncate(path, size)

    def call() -> int:
        threading.Thread(target=cut, daemon=True).start()
        return function()

    return call


def _remove_cache(base: Path) -> None:
    shutil.rmtree(base / "cache", ignore_errors=True)


def _prepare(base: Path, sources: set[str]) -> None:
    """The same 8x8 images in each format, and a table."""
    os.environ["NNX_CACHE_DIR"] = str(base / "cache")
    generator = np.random.default_rng(0)
    labels = (np.arange(SAMPLES) % 3).astype(np.uint8)
    images = generator.integers(0, 156, (SAMPLES, 8, 8), dtype=np.uint8) + labels[:, None, None] * np.uint8(40)
    Path("arrays").mkdir()
    np.save("arrays/x_train.npy", images)
    np.save("arrays/y_train.npy", labels)
    Path("images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, *images.shape) + images.tobytes())
    Path("labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, SAMPLES) + labels.tobytes())
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if "cache entry of images" not in sources:
            break
        place = Path("folder", str(label), f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    rows = [",".join(map(str, (*image.flat, "abc"[label]))) for image, label in zip(images, labels, strict=True)]
    header = ",".join((*(f"x{i}" for i in range(64)), "class"))
    Path("table.csv").write_text("\n".join((header, *rows)) + "\n")
