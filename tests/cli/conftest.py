"""Runs the command line in this process, as a shell would."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnx.cli import run_command


@dataclass
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def nnx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`nnx("train", "digits_mlp")` in an empty current folder -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["nnx", *map(str, words)])
        capsys.readouterr()
        code = run_command()
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return command


@pytest.fixture
def environment() -> dict[str, str]:
    """For commands in a process of their own: one thread, so that bits are equal."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
