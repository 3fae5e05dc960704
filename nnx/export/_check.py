"""Compares an exported file with PyTorch: runs it in a fresh process on real samples, before it is kept."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnx import export
from nnx.errors import CheckFailed
from nnx.events import Choice

if TYPE_CHECKING:
    from nnx.export._network import ExportedNetwork

BATCHES = (1, 2, 7, 1000)  # samples; the last one is the whole split if that has fewer
TIE = 1e-6  # labels whose probabilities differ by less than this are equally probable: float32 has 7 digits


@dataclass(frozen=True)
class Row:
    """The comparison of one batch: the largest difference of a probability, and how many labels differ."""

    samples: int
    difference: float
    labels: int

    def passes(self, tolerance: float) -> bool:
        return self.difference <= tolerance and not self.labels  # false for NaN


def encode(
    name: str,
    network: "ExportedNetwork",
    facts: dict[str, Any],
    inputs: NDArray[Any],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> tuple[dict[str, bytes], list[Row], tuple[Choice, ...]]:
    """The exported contents in a format, how they compare with the (N, K) `expected` probabilities of the (N, ...) raw
    inputs, and what the exporter has chosen. An exporter whose file states its check, or contains samples with their
    (N,) true labels, has its own `encode_checked`. Raises CheckFailed if the file can't be run, and InputError if there
    can be none."""
    exporter = export.exporter(name)
    if own := getattr(exporter, "encode_checked", None):
        contents, rows, choices = own(network, facts, inputs, expected, labels)
        return contents, rows, choices
    contents = exporter.encode(network, facts)
    return contents, compare(name, contents, inputs, expected), ()


def compare(name: str, contents: dict[str, bytes], inputs: NDArray[Any], expected: NDArray[np.float32]) -> list[Row]:
    """Run the exported `contents` of a format on (N, ...) raw inputs, in a fresh process, and compare with the (N, K)
    `expected` probabilities. Raises CheckFailed if they can't be run."""
    bounds = batch_bounds(len(inputs))
    outputs = run_in_fresh_process(name, contents, [inputs[start:end] for start, end in bounds])
    return [compare_batch(output, expected[start:end]) for output, (start, end) in zip(outputs, bounds, strict=True)]


def batch_bounds(samples: int) -> list[tuple[int, int]]:
    """The start and end of each batch: different samples in the small ones."""
    starts = (0, 1, 3, 0)
    bounds = [(start, min(start + size, samples)) for start, size in zip(starts, BATCHES, strict=True)]
    return [(start, end) for start, end in bounds if start < end]


def compare_batch(output: NDArray[Any], expected: NDArray[np.float32]) -> Row:
    """A batch of probabilities beside the expected ones. A wrong shape is an infinite difference."""
    if output.shape != expected.shape:
        return Row(len(expected), float("inf"), len(expected))
    rows = np.arange(len(expected))
    lost = expected.max(1) - expected[rows, output.argmax(1)]
    return Row(len(expected), float(np.abs(output - expected).max()), int((lost > TIE).sum()))


def run_in_fresh_process(name: str, contents: dict[str, bytes], batches: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs of the exported `contents` for each batch. Raises CheckFailed if the process fails."""
    ending = export.exporter(name).ENDING
    with tempfile.TemporaryDirectory(prefix="nnx-export-") as folder:
        for other, content in contents.items():
            (Path(folder) / f"exported{other}").write_bytes(content)
        given, answers = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, *batches)
        start_fresh_process(name, f"{folder}/exported{ending}", given, answers)
        with np.load(answers) as stored:
            return [stored[key] for key in stored.files]


def start_fresh_process(name: str, *paths: Path | str) -> None:
    """Run exported files of a format: for each, its path, those of its inputs, and of its outputs to be written, both
    .npz. Raises CheckFailed if the process fails."""
    package = str(Path(export.__file__).parent.parent.parent)
    folders = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nnx.export._fresh", name, *paths],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckFailed(f"the exported file can't be run, so it was not kept: {reason[:300]}")
