"""The run folder: one writer at a time, and its files after a crash."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnx import checkpoint
from nnx.errors import InputError, MachineError
from nnx.run import folder as run_folder

HOLD = """
import sys
from pathlib import Path
from nnx.run import folder as run_folder
with run_folder.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""
RECORDS = [{"epoch": n, "step": 10 * n, "val_loss": 1 / 3 / n} for n in (1, 2, 3)]
LINES = [{**record, "seconds": 0.5, "samples_per_second": 7.0} for record in RECORDS]


def test_a_second_process_is_refused_with_the_firsts_pid(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(MachineError, match=f"in use by process {other.pid}"), run_folder.lock_folder(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / ".lock").exists(), "killed, it left its lock file"
    with run_folder.lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(MachineError, match=f"in use by process {os.getpid()}"), run_folder.lock_folder(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


def test_nothing_is_held_where_the_work_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), run_folder.lock_folder(tmp_path):
        1 / 0  # noqa: B018
    with run_folder.lock_folder(tmp_path):
        pass


def test_a_run_that_began_meanwhile_is_not_overwritten(tmp_path):
    out = run_folder.choose_folder(tmp_path / "r", "x", force=False)
    with run_folder.create_folder(out, force=False, exactly=True):
        (out / "config.yaml").write_text("theirs")
    with (
        pytest.raises(InputError, match="already contains a run"),
        run_folder.create_folder(out, force=False, exactly=True),
    ):
        pass
    assert (out / "config.yaml").read_text() == "theirs"
    with run_folder.create_folder(out, force=True, exactly=True):
        assert not (out / "config.yaml").exists()


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path):
    """Several seeds at once: `for seed in 0 1 2; do nnx train digits_mlp --seed $seed & done`."""
    with (
        run_folder.create_folder(tmp_path / "r/x", force=False, exactly=False) as first,
        run_folder.create_folder(tmp_path / "r/x", force=False, exactly=False) as second,
        run_folder.create_folder(tmp_path / "r/x", force=False, exactly=False) as third,
    ):
        assert [path.name for path in (first, second, third)] == ["x", "x-2", "x-3"]


def test_the_checkpoint_of_a_folder_and_what_is_none(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "other/checkpoint.pt").mkdir(parents=True)
    assert checkpoint.locate(tmp_path) == tmp_path / "checkpoint.pt"
    for none in (
        tmp_path / "checkpoint.pt",
        tmp_path / "other",
        tmp_path / "missing",
        tmp_path / ("long" * 100),
        Path("a\0b"),
    ):
        assert checkpoint.locate(none) == none


def test_what_a_killed_start_left_is_no_run(tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".config.yaml.1.tmp").write_text("seed")
    assert run_folder.choose_folder(tmp_path, "x", force=False) == tmp_path


@pytest.mark.parametrize(
    ("damage", "known"),
    [
        (lambda text: text, [1, 2, 3]),
        (lambda text: text[:-30], [1, 2]),
        (lambda text: "", []),
        (lambda text: text.replace('"step": 20', '"step": 21'), [1, 3]),
        (lambda text: text.split("\n", 1)[1], [2, 3]),
        (lambda text: text + text + '{"epoch": 4}\nnonsense\n[]\n', [1, 2, 3]),
        (lambda text: text.replace("0.5", '"soon"', 1), [2, 3]),
    ],
)
def test_metrics_after_a_crash(damage, known, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(damage("".join(json.dumps(line) + "\n" for line in LINES)))
    timeless = {"seconds": None, "samples_per_second": None}
    assert run_folder.read_metrics(tmp_path, RECORDS) == [
        line if line["epoch"] in known else line | timeless for line in LINES
    ]
    assert len(run_folder.read_metrics(tmp_path, RECORDS[:2])) == 2


def test_no_metrics_and_bytes_that_are_no_text(tmp_path):
    assert len(run_folder.read_metrics(tmp_path, RECORDS)) == 3
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    assert run_folder.read_metrics(tmp_path, []) == []
