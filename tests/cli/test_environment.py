"""Limits and environment variables with which libraries fail: a clean line, or no difference."""

import os
import signal
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = ("train.epochs=1", "train.report=false", "model.hidden=[8]")
    words = [word for setting in settings for word in ("--set", setting)]
    command = (sys.executable, "-P", "-m", "nnx", "train", "digits_mlp", "-q", *words, "--out", str(folder))
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def small_files():
    """ulimit -f: files of at most 1,000 bytes. Python ignores the signal."""
    resource = pytest.importorskip("resource")
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_3(nnx, run, tmp_path, small_files):
    result = nnx("export", run, "--format", "safetensors", "--out", tmp_path / "a.safetensors", "-q")
    assert (result.code, result.err) == (3, "error: File too large; free some, or use another machine\n")
    assert not list(tmp_path.iterdir())


def test_a_backend_of_matplotlib_that_is_none_changes_nothing(run, tmp_path):
    command = (sys.executable, "-P", "-m", "nnx", "explain", str(run), "--only", "filters", "--out", str(tmp_path))
    done = subprocess.run(command, env={**os.environ, "MPLBACKEND": "bogus"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "filters.png").exists()


@pytest.mark.parametrize("columns", ["0", "-5", "abc", "", "1", "99999999999"])
def test_columns_of_no_terminal_are_ignored(nnx, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    expected = nnx("check", "--help")
    monkeypatch.setenv("COLUMNS", columns)
    assert nnx("check", "--help") == expected
    assert "Validate configs without training." in expected.out
