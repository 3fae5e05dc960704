"""Ctrl-C while modules are imported, and a current folder that was deleted: no traceback."""

import subprocess
import sys

import pytest

INTERRUPTED = """
import builtins, os, runpy, signal, sys
real = builtins.__import__
def interrupting(name, *more):
    if name == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *more)
builtins.__import__ = interrupting
sys.argv = ["nnx", "--version"]
import nnx
runpy.run_path(os.path.join(nnx.__path__[0], "__main__.py"), run_name="__main__")
"""


@pytest.mark.parametrize("module", ["typer", "nnx.cli._help", "shlex"])
def test_ctrl_c_during_an_import_is_130(module):
    code = INTERRUPTED.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("words", [("--version",), ("list",), ("check", "digits_mlp"), ("init",)])
def test_a_deleted_current_folder_is_3(tmp_path, words):
    (tmp_path / "gone").mkdir()
    command = 'cd gone; rmdir ../gone; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "nnx", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: the current folder can't be used (No such file or directory); change to another\n"
