"""stdout and stderr that are closed, have no reader, are full, or can't show a character."""

import os
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest

NNX = f"{shlex.quote(sys.executable)} -P -m nnx"
TRAIN = "train digits_mlp --set train.epochs=2 --set train.report=false --out r"


@pytest.fixture
def shell(tmp_path):
    """`shell("list >&-")` in an empty current folder -> exit code of nnx, all that was printed."""

    def run(command, **environment):
        done = subprocess.run(
            ["bash", "-c", f"{NNX} {command}\nexit ${{PIPESTATUS[0]}}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    return run


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">&-", 141),
        (">&- 2>&- <&-", 141),
        ("2>&1 | true", 141),
        ("2>&1 | head -2", 141),
        ("> /dev/full", 3),
    ],
)
def test_a_training_whose_output_is_lost_goes_on_to_its_end(shell, tmp_path, redirection, code):
    found, text = shell(f"{TRAIN} {redirection}")
    assert found == code, text
    assert "Traceback" not in text
    assert "bug" not in text
    assert (tmp_path / "r/summary.json").exists()
    assert (tmp_path / "r/checkpoint.pt").exists()


def test_a_training_of_two_processes_without_a_reader_goes_on_to_its_end(shell, tmp_path):
    assert shell(f"{TRAIN} --nproc 2 2>&1 | true")[0] == 141
    assert (tmp_path / "r/summary.json").exists()


COMMANDS = ["--help", "--version", "list", "schema", "check digits_mlp", "init digits_mlp", "predict --help", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_needs_an_open_stdout_or_stderr(shell, command):
    assert shell(f"{command} >&-") == (141, "")
    code, text = shell(f"{command} --out=other 2>&-" if command.startswith("init") else f"{command} 2>&-")
    assert code == 0
    assert text
    assert "Traceback" not in text


def test_an_error_keeps_its_exit_code_without_stdout_and_stderr(shell):
    assert shell("check digits_mpl >&- 2>&-") == (2, "")
    assert shell("bogus >&-") == (2, "error: No such command 'bogus'. See nnx --help\n")
    code, text = shell("predict nothing.pt - >&- <&-")
    assert code == 2
    assert text.startswith("error: nothing.pt")


def test_a_run_is_evaluated_predicted_and_traced_without_stdout(shell):
    assert shell(TRAIN)[0] == 0
    for command in ("eval r", "trace r", "verify r", "show digits_mlp --no-trial", "explain r --only filters -q"):
        assert shell(f"{command} >&-")[0] == 141
        code, text = shell(f"{command} 2>&-")
        assert code == 0
        assert text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "ascii:strict"])
def test_what_the_encoding_of_the_output_can_not_show_is_replaced(shell, tmp_path, encoding):
    rows = [f"{i % 3},{i % 7},{('日本', 'é', '☃')[i % 3]}\n" for i in range(90)]
    (tmp_path / "t.csv").write_text("größe,π,class\n" + "".join(rows), encoding="utf-8")
    config = "dataset: {name: table, path: t.csv, target: class}\nmodel: mlp\ntrain: {epochs: 1, report: false}\n"
    (tmp_path / "t.yaml").write_text(config)
    commands = ["train t.yaml --out r", "eval r", "predict r t.csv", "predict r t.csv --csv", "trace r", "list"]
    for command in [*commands, "show t.yaml --no-trial", "train --help"]:
        code, text = shell(command, PYTHONIOENCODING=encoding)
        assert code == 0, text
    text = shell("predict r t.csv --csv -q", PYTHONIOENCODING=encoding)[1]
    assert "??" in text
    assert "8 x 8" in shell("show digits_mlp --no-trial", PYTHONIOENCODING="ascii")[1]


INTERRUPTED = """
import signal, sys
from nnx.cli import _streams
_streams.install()

class Alarm(Exception):
    pass

writing = False

def interrupt(*_):
    global writing
    if writing:
        writing = False
        raise Alarm

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
interrupts = 0
for number in range(40000):
    try:
        writing = True
        sys.stderr.write(f"{number}\\n")
        writing = False
    except Alarm:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(interrupts)
"""


@pytest.mark.parametrize("encoding", ["idna", "utf-16", "ascii:bogus"])
def test_an_encoding_that_can_not_replace_characters_ends_no_command(shell, encoding):
    code, text = shell("check digits_mlp", PYTHONIOENCODING=encoding)
    assert (code, text.encode().decode("ascii", "ignore").replace("\0", "")[-15:]) == (0, "digits_mlp: ok\n")


def test_a_signal_during_a_write_prints_no_line_twice():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) > 50, "the control: writes were interrupted"
    numbers = [int(line) for line in done.stderr.split()]
    assert [second for first, second in pairwise(numbers) if second <= first] == []
