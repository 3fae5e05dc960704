"""The README's way from a clone to an answer: its commands, its curl line and its Python client."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serve.conftest import serving

from nnx.cli import run_command

ROOT = Path(__file__).parents[2]
DEFAULT = "http://127.0.0.1:8000"
_, _, SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Draw\n")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", SECTION.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
(_, COMMANDS), (_, CURL), (_, PYTHON) = BLOCKS


@pytest.mark.mnist
def test_three_commands_lead_to_the_page(real_mnist, tmp_path, monkeypatch):
    setup, *others = [shlex.split(line, comments=True) for line in COMMANDS.splitlines()]
    assert setup == ["scripts/setup", "serve"]  # what it installs, pyproject.toml says
    train, serve = others
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNX_DATA_DIR", str(real_mnist))
    monkeypatch.setattr(sys, "argv", ["nnx", *train[1:], "--set", "train.epochs=1"])
    assert train[0] == serve[0] == ".venv/bin/nnx"
    assert run_command() == 0
    assert serve[1] == "serve"
    with serving(*(tmp_path / run for run in serve[2:])) as served:
        assert served.client.get("/").status_code == 200


def test_curl_gets_an_answer(served):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    assert CURL.count(DEFAULT) == 1
    done = subprocess.run(
        ["sh", "-ec", CURL.replace(DEFAULT, served.url)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert '"label": "' in done.stdout, done.stdout + done.stderr


def test_the_python_client_gets_an_answer(served):
    assert PYTHON.count(DEFAULT) == 1
    names: dict = {}
    exec(compile(PYTHON, "README.md", "exec"), names)
    label, probability = names["ask"]((ROOT / "tests/data/handwriting/2-pencil.jpg").read_bytes(), served.url)
    assert label in "0123456789"
    assert 0.1 < probability <= 1


def test_the_python_client_is_typed(tmp_path):
    (tmp_path / "client.py").write_text(PYTHON, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, tmp_path / "client.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
