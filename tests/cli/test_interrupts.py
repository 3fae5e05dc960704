"""Ctrl-C and other signals, in separate processes: the message, the exit code, and the files left."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

SETTINGS = ("--set", "train.report=false", "--set", "train.epochs=2", "--set", "model={name: mlp, hidden: [8]}")
STALLS = """
import sys, time
from nnx.cli import run_command
from nnx.cli._start import import_torch
import_torch()
from nnx.run import evaluate, pipeline
real = pipeline.evaluate
def stalled(model, batches, *more):
    if len(batches) == {samples}:
        print("stalled", flush=True)
        time.sleep(60)
    return real(model, batches, *more)
evaluate.evaluate = pipeline.evaluate = stalled
sys.argv = ["nnx", *{words!r}]
sys.exit(run_command())
"""
TEST, VALIDATION = 360, 287  # samples of digits


@pytest.fixture
def stalled(tmp_path, environment):
    """Starts a command in a process that stalls when it evaluates this many samples, and waits until it stalls."""
    running = []

    def command(samples, *words):
        code = STALLS.format(samples=samples, words=list(words))
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "stalled\n", process.stderr.read()
        return process

    yield command
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_evaluation_ends_at_once(nnx, stalled, tmp_path, number, code):
    assert nnx("train", "digits_mlp", *SETTINGS, "--out", "r", "-q").code == 0
    process = stalled(TEST, "eval", "r/checkpoint.pt", "--out", "e")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == "stopped before the evaluation finished; nothing was written"
    assert not (tmp_path / "e").exists()


def test_the_second_ctrl_c_exits_at_once_and_the_run_can_be_replaced(nnx, stalled, tmp_path):
    """The first one comes during the validation after an epoch, which the run would finish first."""
    process = stalled(VALIDATION, "train", "digits_mlp", *SETTINGS, "--out", "r")
    process.send_signal(signal.SIGINT)
    assert any("signal again to exit immediately" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [name for name in os.listdir(tmp_path / "r") if name.startswith(".")] == [], (
        "the lock and temporary files are gone"
    )
    assert nnx("train", "digits_mlp", *SETTINGS, "--out", "r", "--force", "-q").code == 0


def test_a_run_stopped_during_the_test_prints_the_command_that_finishes_it(stalled, tmp_path, environment):
    process = stalled(TEST, "train", "digits_mlp", *SETTINGS, "--out", "my run")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    command = shlex.split(err.splitlines()[-1].split("Resume with: ")[1])
    assert command == ["nnx", "train", "--resume", "my run"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my run/summary.json").exists()


def test_a_folder_in_use_is_3_and_names_the_process(nnx, stalled, tmp_path):
    process = stalled(TEST, "train", "digits_mlp", *SETTINGS, "--out", "r")
    for words in (("--force",), ("--resume",)):
        refused = nnx("train", "digits_mlp", *SETTINGS, "--out", "r", *words)
        assert refused.code == 3
        assert refused.err == f"error: r: is in use by process {process.pid}; wait for it, or name another --out\n"
    assert (tmp_path / "r/last.pt").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_3(nnx, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert nnx("train", "digits_mlp", *SETTINGS, "--out", "closed/r").code == 3


def test_a_folder_that_can_not_be_made_is_3(nnx):
    refused = nnx("train", "digits_mlp", *SETTINGS, "--out", "/proc/nothing/r")
    assert refused.code == 3
    assert refused.err.startswith("error: /proc/nothing/r: can't be made (")
