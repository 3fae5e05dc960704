"""Trained networks, and `nnx serve` in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from nnx import config
from nnx.run.pipeline import run

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'nnx[serve]')")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'nnx[serve]')")


class Served:
    """A running `nnx serve`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def ask(self, **question: object) -> httpx.Response:
        return self.client.post("/api/predict", json=question)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def train(folder: Path, recipe: str, *settings: str) -> Path:
    for _ in run(config.load(recipe, ["train.report=false", "train.film=false", *settings]), out=folder):
        pass
    return folder


@contextmanager
def serving(*words: object, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """`nnx serve WORDS` on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "nnx", "serve", *map(str, words), "--port", str(port), "--no-open"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        if line != f"http://127.0.0.1:{port}\n":
            process.kill()
            raise AssertionError(line + process.communicate()[1])
        yield Served(process, port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: four architectures on the same digits."""
    runs = tmp_path_factory.mktemp("trained")
    train(runs / "mlp", "digits_mlp", "train.epochs=10")
    train(runs / "cnn", "digits_cnn", "train.epochs=3")
    train(runs / "rnn", "digits_rnn", "train.epochs=2", "model.bidirectional=false")
    train(runs / "transformer", "digits_transformer", "train.epochs=2")
    return runs


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[Served]:
    with serving(trained) as running:
        yield running


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("iris") / "iris", "iris_mlp")


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
