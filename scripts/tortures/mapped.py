"""20 GB of images in a process limited to 4 GB: they stay in their file, and memory does not grow.

Training from the file is as fast as from memory.
"""

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from nnx import config, datasets
from nnx.events import Started, Step
from nnx.run.pipeline import run
from tortures._child import check, ended, folder

IMAGE = 28 * 28  # bytes
WARM_UP, STEPS = 100, 1500  # steps before the measurement, and in it
ROUNDS = 3  # memory and file in turns
LEAST = 0.75  # lower limit, relative to the samples/s from memory
GROWTH = 64 * 2**20  # bytes of anonymous memory that glibc may reserve during the training


def torture(share: float, seed: int) -> dict[str, Any]:
    """Train from a large sparse file; then from one that fits in memory, both from memory and memory-mapped."""
    size = 20 * 10**9 * share
    limit = 4 * 10**9 if share == 1 else _private() + max(4 * 10**9 * share, 4 * 10**8)  # torch alone takes 1 GB
    with folder() as base:
        large = _train(base / "large", int(size / IMAGE), int(limit), sparse=True)
        check("memory-mapped" in large["path"], f"{size / 1e9:g} GB were not mapped: {large['path']}")
        check(large["growth"] < GROWTH, f"anonymous memory grew by {large['growth'] / 2**20:.0f} MiB")
        samples = max(int(10**6 * share), 10**5)
        pairs = []
        for _ in range(ROUNDS):
            memory = _train(base / "small", samples, None)
            mapped = _train(base / "small", samples, None, fits=False)
            check(
                "in memory" in memory["path"] and "memory-mapped" in mapped["path"],
                f"{memory['path']}; {mapped['path']}",
            )
            pairs.append((memory["rate"], mapped["rate"]))
        ratio = statistics.median(mapped / memory for memory, mapped in pairs)
        check(ratio >= LEAST, f"from a file {ratio:.2f} times the samples/s from memory: {pairs}")
    return {
        "GB in the file": round(size / 1e9, 1),
        "GB of memory allowed": round(limit / 1e9, 1),
        "MB of anonymous memory": round(large["anonymous"] / 1e6),
        "MB more after the first steps": round(large["growth"] / 1e6, 1),
        "seconds to the first step": round(large["start"], 1),
        "samples/s from it": round(large["rate"]),
        "samples/s, file over memory": round(ratio, 2),
        "samples": samples,
    }


def _train(path: Path, samples: int, limit: int | None, *, sparse: bool = False, fits: bool = True) -> dict[str, Any]:
    if not path.exists():
        _write(path, samples, sparse)
    test = ended(lambda: _measured(path, limit, fits), limit=900)
    check(test.code == 0, f"{path.name}: {test.err[-500:]}")
    figures: dict[str, Any] = json.loads(test.out)
    return figures


def _write(path: Path, samples: int, sparse: bool) -> None:
    path.mkdir()
    with (path / "x_train.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (samples, 28, 28)})
        if sparse:
            file.truncate(file.tell() + samples * IMAGE)
        else:
            file.write(np.random.default_rng(0).integers(0, 256, samples * IMAGE, dtype=np.uint8))
    np.save(path / "y_train.npy", (np.arange(samples) % 10).astype(np.uint8))


def _measured(path: Path, limit: int | None, fits: bool) -> int:
    """In a child process: train some steps, with the limit or as if the data did not fit, and print the figures."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if not fits:
        datasets.fits = lambda size: False  # type: ignore[assignment]
    made = config.from_dict(
        {
            "dataset": {"name": "arrays", "path": str(path), "validation": 1000, "test": 1000},
            "model": "mlp",
            "train": {"epochs": 1000, "batch_size": 128},
            "threads": 1,
        },
        "mapped",
    )
    begun = time.perf_counter()
    figures = {}
    clock = _Clock()
    for event in run(made, out=path.with_name(f"{path.name}-{time.time_ns()}")):
        if isinstance(event, Started):
            figures["path"] = next(
                f"{choice.value}: {choice.reason}" for choice in event.choices if choice.what == "data path"
            )
            figures["start"] = time.perf_counter() - begun
        elif isinstance(event, Step) and clock(event.step):
            break
    print(json.dumps(figures | clock.figures()))
    return 0


class _Clock:
    """Measures time and memory after WARM_UP steps, and STEPS later."""

    def __init__(self) -> None:
        self.readings: list[tuple[int, float, int]] = []

    def __call__(self, step: int) -> bool:
        if step >= (self.readings[0][0] + STEPS if self.readings else WARM_UP):
            self.readings.append((step, time.perf_counter(), _anonymous()))
        return len(self.readings) == 2

    def figures(self) -> dict[str, Any]:
        (first, began, before), (last, ended, after) = self.readings
        return {"rate": (last - first) * 128 / (ended - began), "anonymous": after, "growth": after - before}


def _anonymous() -> int:
    """Bytes of anonymous memory."""
    return _status("RssAnon")


def _private() -> int:
    """Bytes that RLIMIT_DATA already counts."""
    return _status("VmData")


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
