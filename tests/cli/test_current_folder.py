"""Python files that lie in the current folder are never run."""

import os
import subprocess
import sys

import pytest

import nnx

TRAIN = ("train", "digits_mlp", "--set", "train.epochs=1", "--set", "train.report=false", "--out", "r", "-q")
NAMES = ("nnx", "random", "torch", "socket", "struct", "pickle", "numpy", "typer", "sklearn", "pathlib", "typing")


@pytest.fixture
def hostile(tmp_path):
    """A folder of modules that note when they are run."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    return tmp_path


def run(folder, *command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_control_python_itself_runs_them(hostile):
    assert run(hostile, "-c", "import random").returncode == 0
    assert (hostile / "ran").read_text() == "random "


def test_ranks_do_not(hostile):
    done = run(hostile, "-P", "-m", "nnx", *TRAIN, "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert not (hostile / "ran").exists()


def test_python_m_nnx_does_not_beyond_the_package_itself(hostile):
    (hostile / "nnx.py").unlink()  # python has found nnx before anything of it can run
    done = run(hostile, "-m", "nnx", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert not (hostile / "ran").exists()


def test_an_empty_entry_of_pythonpath_does_not(tmp_path):
    """`PYTHONPATH=$UNSET:more` names the current folder. What Python itself imports first, nnx can't help."""
    for name in ("torch", "numpy", "typer", "yaml", "sklearn"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    root = os.path.dirname(os.path.dirname(nnx.__file__))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nnx").write_text("from nnx.__main__ import main\nmain()\n")  # as pip makes it
    for path, start in ((f":{root}", ("-P", "-m", "nnx")), (f"{root}:", ("-m", "nnx")), (f"{root}::", ("bin/nnx",))):
        done = run(tmp_path, *start, "check", "digits_mlp", PYTHONPATH=path)
        assert (done.returncode, done.stdout) == (0, "digits_mlp: ok\n"), done.stderr
    done = run(tmp_path, "-m", "nnx", *TRAIN, "--nproc", "2", PYTHONPATH=f"{root}:")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_worker_processes_do_not(hostile):
    script = (
        "import sys\n"
        "from nnx.system import workers\n"
        "sys.path.insert(0, '')\n"  # as an interactive session has it
        "print(list(workers.map_in_processes(len, [('ab',), ('abc',)], 1)))\n"
        "assert sys.path[0] == ''\n"
    )
    done = run(hostile, "-P", "-c", script)
    assert (done.returncode, done.stdout) == (0, "[2, 3]\n"), done.stderr
    assert not (hostile / "ran").exists()
