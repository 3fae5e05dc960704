"""What differs between systems: by itself, and in whole commands on a simulated Windows and macOS."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from nnx.cli import _launch
from nnx.datasets import _mapped
from nnx.errors import MachineError
from nnx.system import platform

HERE = Path(__file__).parent.parent
PENCIL = HERE / "data" / "handwriting" / "2-pencil.jpg"

# ---------------------------------------------------------------- memory


V1 = "/sys/fs/cgroup/memory/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 1_000_000),
        ({"/sys/fs/cgroup/memory.max": "500000", "/sys/fs/cgroup/memory.current": "200000"}, 300_000),
        ({"/sys/fs/cgroup/memory.max": "max", "/sys/fs/cgroup/memory.current": "200000"}, 1_000_000),
        ({f"{V1}.limit_in_bytes": "500000", f"{V1}.usage_in_bytes": "600000"}, 0),
        ({f"{V1}.limit_in_bytes": "9223372036854771712", f"{V1}.usage_in_bytes": "1"}, 1_000_000),
    ],
)
def test_free_memory_is_the_least_that_machine_and_container_have(files, free, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    monkeypatch.setattr(platform, "_read", lambda path: files.get(path, ""))
    assert platform.free_memory() == free
    assert _mapped.fits(int(free * 0.5))
    assert not _mapped.fits(int(free * 0.5) + 2)


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process_counts(limit):
    code = (
        "import resource; from nnx.system import platform\n"
        f"resource.setrlimit(resource.{limit}, (3 * 2**29, 3 * 2**29))\n"
        "free = platform.free_memory(); block = bytearray(2**27); print(free, free - platform.free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    free, less = map(int, done.stdout.split())
    assert 2**28 < free < 3 * 2**29
    assert less == pytest.approx(2**27, rel=0.05)


def test_this_machine_has_some():
    assert 2**20 < platform.free_memory() <= platform.total_memory() < 2**50
    assert 2**20 < platform.peak_memory() < platform.total_memory()


def test_the_answers_of_psutil_are_those_of_linux():
    """Where the standard library answers it is used: these are the figures that other systems get."""
    assert psutil.virtual_memory().total == platform.total_memory()
    assert len(psutil.Process().cpu_affinity()) == platform.cores()
    assert psutil.pid_exists(os.getpid()) is platform.is_running(os.getpid()) is True
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert psutil.pid_exists(ended.pid) is platform.is_running(ended.pid) is False


# ---------------------------------------------------------------- simulated systems


class Simulated:
    """Runs code and commands in processes on the simulated `system`, in `folder`."""

    def __init__(self, system: str, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE / "simulated_platform"), str(HERE.parent)]),
            "NNX_SIMULATED_PLATFORM": system,
            "NNX_DEBUG": "1",
            "PYTHONIOENCODING": "cp1252",
        }

    def python(self, code: str, *arguments: str) -> str:
        """stdout of `code`, which must succeed."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            encoding="cp1252",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def nnx(self, *arguments: str) -> str:
        """stdout of a command, which must succeed."""
        return self.python("from nnx.__main__ import main; main()", *arguments)


@pytest.fixture(params=["win32", "darwin"])
def simulated(request, tmp_path):
    return Simulated(request.param, tmp_path)


@pytest.fixture
def windows(tmp_path):
    return Simulated("win32", tmp_path)


def test_the_simulation_hides_what_the_system_lacks(windows):
    """The control: without it, the tests below would run on Linux as it is."""
    assert windows.python("from nnx.system import platform; print(platform.MAX_PROCESSES)") == "61\n"
    code = "import nnx.errors as some; import builtins; exec(compile({!r}, 'nnx', 'exec'), vars(some))"
    for forbidden in (
        "import fcntl",
        "import resource",
        "import os; os.sysconf",
        "import os; os.sched_getaffinity",
        "import os; os.O_NOFOLLOW",
        "import signal; signal.SIGHUP",
        "import os; os.open('.', os.O_RDONLY)",
        "open('/proc/cpuinfo')",
        "import ctypes; ctypes.CDLL(None)",
        "import os; os.kill(os.getpid(), 0)",
    ):
        with pytest.raises(AssertionError, match="Error"):
            windows.python(code.format(forbidden))
        subprocess.run([sys.executable, "-c", forbidden.replace("os.kill(os.getpid(), 0)", "0")], check=True)


def test_train_eval_predict_explain_resume(simulated):
    small = ("--set", "train.epochs=2", "--set", "model.hidden=[16]")
    assert "test accuracy" in simulated.nnx("train", "digits_mlp", *small, "--out", "run")
    assert "accuracy" in simulated.nnx("eval", "run")
    assert "2-pencil.jpg" in simulated.nnx("predict", "run", str(PENCIL))
    simulated.nnx("explain", "run", "--only", "filters")
    assert "3, best" in simulated.nnx("train", "--resume", "run", "--set", "train.epochs=3")
    assert "\r" not in (simulated.folder / "run" / "metrics.jsonl").read_bytes().decode(), "the same bytes everywhere"


def test_the_bits_are_those_of_this_system(simulated, tmp_path):
    """Nothing that is done differently changes what is computed."""
    train = ("train", "digits_mlp", "--set", "train.epochs=1", "--set", "model.hidden=[8]", "--out")
    simulated.nnx(*train, "there")
    subprocess.run([sys.executable, "-m", "nnx", *train, "here"], cwd=tmp_path, check=True, capture_output=True)
    lines = [(tmp_path / run / "metrics.jsonl").read_text().split('"seconds"')[0] for run in ("here", "there")]
    assert lines[0] == lines[1]


IMAGES = """
from pathlib import Path
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for k in range(2):
    for i in range(60):
        folder = Path("pictures") / f"class {k}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8) // (k + 1)).save(folder / f"{i}.png")
lines = [f"class {k}\\\\{i}.png,{'even' if k else 'odd'}" for k in range(2) for i in range(60)]
Path("pictures/list.csv").write_bytes("\\r\\n".join(["file,label", *lines, ""]).encode())
"""


def test_pictures_in_folders_and_in_a_list_of_windows(simulated):
    """Worker processes decode them. The list has backslashes and CRLF."""
    simulated.python(IMAGES)
    for path in ("pictures", "pictures/list.csv"):
        config = f"dataset: {{name: folder, path: {path}}}\nmodel: {{name: mlp, hidden: [4]}}\ntrain: {{epochs: 1}}\n"
        (simulated.folder / "own.yaml").write_bytes(config.replace("\n", "\r\n").encode())
        assert "test accuracy" in simulated.nnx("train", "own.yaml", "--out", "own", "--force")


SPAWN = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from nnx import train
from nnx.datasets import _decode
from nnx.system import platform, workers
platform.cores, _decode.WORTH_PROCESSES, _decode.CHUNK = lambda: 2, 100, 10
used, real = [], workers.map_in_processes
workers.map_in_processes = lambda *arguments: used.append(1) or real(*arguments)
summary = train("own.yaml", out="own").summary
print(summary["epochs"], len(used))
"""


def test_spawn_as_start_method(tmp_path):
    """As on Windows and macOS, but everything else of this system. The script has no main guard."""
    here = Simulated("", tmp_path)
    here.python(IMAGES)
    (tmp_path / "own.yaml").write_text("dataset: {name: folder, path: pictures}\nmodel: mlp\ntrain: {epochs: 1}\n")
    (tmp_path / "script.py").write_text(SPAWN)
    assert here.python("import runpy; runpy.run_path('script.py', run_name='__main__')") == "1 1\n"


# ---------------------------------------------------------------- locks and files on Windows

HOLD = """
import sys, time
from pathlib import Path
from nnx.run import folder
with folder.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""
TRY = """
import sys
from pathlib import Path
from nnx.errors import MachineError
from nnx.run import folder
try:
    with folder.lock_folder(Path(sys.argv[1])):
        print("free")
except MachineError as error:
    print(error)
"""


def test_the_lock_of_filelock_names_its_owner_and_ends_with_it(windows):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "."], cwd=windows.folder, env=windows.environment, stdin=-1, stdout=-1, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert f"in use by process {other.pid};" in windows.python(TRY, ".")
        other.kill()
    assert windows.python(TRY, ".") == "free\n"
    assert windows.python(TRY, ".") == "free\n", "after one that ended by itself"


@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "hard link", "folder"])
def test_prepared_lock_files_are_refused_on_windows_too(windows, kind):
    path, target = windows.folder / ".lock", windows.folder / "notes"
    target.write_text("keep\n")
    if kind == "symbolic link":
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(windows.folder / "made")
    elif kind == "hard link":
        os.link(target, path)
    else:
        path.mkdir()
    code = TRY.replace("MachineError", "InputError")
    assert "nnx does not write through links" in windows.python(code, ".")
    assert target.read_text() == "keep\n"
    assert not (windows.folder / "made").exists()


def test_a_file_that_a_virus_scanner_reads_is_replaced_a_moment_later(windows):
    code = """
import os, threading, time
from pathlib import Path
from nnx.errors import MachineError
from nnx.system import files
target = Path("a")
files.replace(target, b"old")
scanner = target.open("rb")
threading.Timer(0.1, scanner.close).start()
files.replace(target, b"new")
print(target.read_text())
with target.open("rb"):
    try:
        files.replace(target, b"never")
    except MachineError as error:
        print(error)
print(target.read_text(), sorted(os.listdir()))
"""
    first, refused, last = windows.python(code).splitlines()
    assert first == "new"
    assert "the previous file is unchanged" in refused
    assert last == "new ['a']"


def test_stale_files_are_told_from_those_in_use_without_a_signal(windows):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (windows.folder / f".a.{ended.pid}.tmp").touch()
    (windows.folder / f".b.{os.getpid()}.tmp").touch()
    windows.python("from pathlib import Path; from nnx.system import files; files.remove_stale_files(Path())")
    assert [path.name for path in windows.folder.iterdir()] == [f".b.{os.getpid()}.tmp"]


def test_durable_on_macos(tmp_path):
    """F_FULLFSYNC, and fsync where the drive has no such call."""
    code = """
import nnx.system.platform as platform
from pathlib import Path
calls = []
real = platform.fcntl.fcntl
platform.fcntl.fcntl = lambda file, command: calls.append(command) or real(file, command)
from nnx.system import files
files.replace(Path("a"), b"1")
def refuse(file, command):
    raise OSError(45, "Operation not supported")
platform.fcntl.fcntl = refuse
files.replace(Path("a"), b"2")
print(calls, Path("a").read_text())
"""
    assert Simulated("darwin", tmp_path).python(code) == "['full sync'] 2\n"


def test_several_processes_need_libuv_which_torch_lacks_on_windows(monkeypatch):
    def elastic_launch(config, program):
        raise RuntimeError("use_libuv was requested but PyTorch was built without libuv support")

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr(logging, "disable", lambda: None)
    with pytest.raises(MachineError, match="--nproc 2: this torch is built without libuv"):
        _launch.launch(2, 0)


def test_a_port_in_use_is_not_shared(windows):
    code = """
from nnx.errors import MachineError
from nnx.serve.server import bind
first = bind("127.0.0.1", 0)
try:
    bind("127.0.0.1", first.getsockname()[1])
except MachineError as error:
    print(error)
"""
    assert "is in use by another program" in windows.python(code)


def test_a_command_is_quoted_for_the_shell_of_windows(windows):
    code = "from nnx.system import platform; print(platform.quote('runs/my digits'), platform.quote('a'))"
    assert windows.python(code) == '"runs/my digits" a\n'
    assert platform.quote("runs/my digits") == "'runs/my digits'"


def test_ctrl_break_saves_and_says_how_to_resume(windows):
    code = """
import os, signal
from nnx.system import signals
with signals.catch_signals() as received:
    os.kill(os.getpid(), signals.STOPPING[2])
    print(received() == signals.STOPPING[2])
"""
    assert windows.python(code) == "True\n"
