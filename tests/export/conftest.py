"""Tiny trained networks of every architecture, on images, on rows and on a table with categories and gaps."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import ARCHITECTURES, table

import nnx
from nnx import export
from nnx.export import _check


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained("mlp", "digits")` -> the run folder of a network trained for two epochs. Each is trained once."""
    runs: dict[tuple[str, str, str], Path] = {}
    torch.set_num_threads(1)

    def train(architecture: str, data: str = "digits", extra: str = "") -> Path:
        key = (architecture, data, extra)
        if key not in runs:
            folder = tmp_path_factory.mktemp("run")
            dataset = f"{{name: {data}}}"
            if data == "table":
                dataset = f"{{name: table, path: {folder / 'table.csv'}, target: broken}}"
                (folder / "table.csv").write_text(table())
            if data == "arrays":
                dataset = f"{{name: arrays, path: {folder / 'rows.npz'}}}"
                rows = np.random.default_rng(0).normal(3, 20, (200, 5)).astype(np.float32)
                np.savez(folder / "rows.npz", x_train=rows, y_train=(rows[:, 0] > rows[:, 1]).astype(np.int64))
            model = ARCHITECTURES.get(architecture, architecture)
            (folder / "config.yaml").write_text(f"dataset: {dataset}\nmodel: {model}\n{extra}\n")
            settings = ["train.epochs=2", "train.batch_size=32", "train.report=false", "threads=1", "precision=float32"]
            nnx.train(folder / "config.yaml", settings, out=folder / "run")
            runs[key] = folder / "run"
        return runs[key]

    return train


@pytest.fixture(scope="session")
def run_here() -> Callable[..., Any]:
    """Runs exported contents as `_check.run_in_fresh_process` does, but in this process, which saves seconds."""

    def run(name: str, contents: dict[str, bytes], batches: list[Any]) -> list[Any]:
        exporter = export.exporter(name)
        with tempfile.TemporaryDirectory() as folder:
            for ending, content in contents.items():
                (Path(folder) / f"exported{ending}").write_bytes(content)
            predict = exporter.load(Path(folder) / f"exported{exporter.ENDING}")
            return [predict(batch) for batch in batches]

    return run


@pytest.fixture
def check_here(monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., Any]) -> None:
    """Exports in this test are checked in this process. Others prove that the fresh process works."""
    monkeypatch.setattr(_check, "run_in_fresh_process", run_here)
