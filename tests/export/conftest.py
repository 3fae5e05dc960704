"""Tiny trained networks of every architecture, on images, on rows and on a table with categories and gaps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import ARCHITECTURES, table

import nnx


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
