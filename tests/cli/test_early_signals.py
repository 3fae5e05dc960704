"""Ctrl-C while modules are imported, and a current folder that was deleted: no traceback."""

import signal
import subprocess
import sys
import time

import pytest

INTERRUPTED = """
import builtins, os, runpy, signal, sys
real = builtins.__import__
def interrupting(name, *more):
    if name == {module!r}:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:  # what an interrupted import of numpy ends in
            raise ImportError("cannot load module more than once per process")
    return real(name, *more)
builtins.__import__ = interrupting
sys.argv = ["nnx", *{words!r}]
import nnx
runpy.run_path(os.path.join(nnx.__path__[0], "__main__.py"), run_name="__main__")
"""


@pytest.mark.parametrize("module", ["typer", "nnx.cli._help", "shlex"])
def test_ctrl_c_during_an_import_is_130(module):
    code = INTERRUPTED.format(module=module, words=["--version"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("words", [["list", "models"], ["train", "digits_mlp"]])
@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_ctrl_c_during_a_command_s_imports_is_130(tmp_path, words, module):
    code = INTERRUPTED.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("delay", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("words", [("list", "models"), ("show", "digits_mlp"), ("train", "digits_mlp")])
def test_ctrl_c_in_the_first_second_shows_no_traceback(tmp_path, words, delay):
    process = subprocess.Popen(
        [sys.executable, "-m", "nnx", *words],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors
    assert "Traceback" not in errors
    assert "a bug in nnx" not in errors


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
