"""A memory-mapped file that becomes shorter while it is in use: exit code 3 and its name, not a bus error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnx.datasets import Mapped, Split, _mapped
from nnx.errors import MachineError
from nnx.loader.batches import BatchLoader
from nnx.preprocessing.spec import Spec

READ = """
import os, sys
from pathlib import Path
from nnx.cli._start import import_torch
import_torch()
import numpy as np, torch
from nnx.datasets import _mapped
path = Path("images.npy")
_mapped.note_mapped(path)
images = np.lib.format.open_memmap(path, mode="r")
if sys.argv[1] != "whole":
    os.truncate(path, 8192)
if sys.argv[1] == "torch":
    print(int(torch.from_numpy(images).index_select(0, torch.arange(len(images)).flip(0)).sum()))
else:
    print(int(images[::-1].sum()))
"""


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "images.npy", np.ones((5000, 1, 28, 28), np.uint8))
    return tmp_path / "images.npy"


@pytest.mark.parametrize("reader", ["numpy", "torch", "whole"])
def test_reading_beyond_its_end_is_3_with_its_name(path, reader):
    command = [sys.executable, "-W", "ignore", "-c", READ, reader]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=60)
    if reader == "whole":  # the control
        assert (done.returncode, done.stdout) == (0, f"{5000 * 28 * 28}\n"), done.stderr
    else:
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == f"error: images.npy: {_mapped.SHORTENED}\n"


def test_its_size_is_checked_before_each_epoch_and_evaluation(path, monkeypatch):
    monkeypatch.setattr(_mapped, "_opened", {})
    _mapped.note_mapped(path)
    whole = np.lib.format.open_memmap(path, mode="r")
    split = Split(Mapped(whole, np.arange(100)), np.zeros(100, np.int64))
    loader = BatchLoader(split, Spec((1, 28, 28), ("a", "b"), (0.0,), (1.0,)), torch.device("cpu"))
    assert len(next(iter(loader.in_order()))[1]) == 100, "the control"
    os.truncate(path, 8192)
    with pytest.raises(MachineError, match=r"images\.npy: became shorter while it was in use"):
        next(iter(loader.in_order()))


def test_a_file_that_is_replaced_or_removed_stays_readable(path, monkeypatch):
    monkeypatch.setattr(_mapped, "_opened", {})
    _mapped.note_mapped(path)
    Path(path.with_name("new")).write_bytes(b"short")
    os.replace(path.with_name("new"), path)
    _mapped.check_mapped_files()
    path.unlink()
    _mapped.check_mapped_files()
