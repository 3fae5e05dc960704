"""Decoding on all cores: what one process makes of the files, whatever becomes of the others, and nothing left of
any."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import pixels, save, tree

from nnx import datasets
from nnx.datasets import _decode, _progress, folder
from nnx.errors import MachineError
from nnx.system import workers


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def source(path, **settings):
    return folder.load(folder.Config(path=str(path), **settings), Path("unused"))


# ---------------------------------------------------------------- several processes


@pytest.fixture
def many(tmp_path, monkeypatch):
    """600 images, gray before a few coloured ones, one bad: decoded by two processes in chunks of 50."""
    monkeypatch.setattr(_decode, "WORTH_PROCESSES", 100)
    monkeypatch.setattr(_decode, "CHUNK", 50)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    for n in range(600):
        save(tmp_path / "many" / "ab"[n % 2] / f"{n:03}.png", pixels(n % 50, colour=n > 400))
    (tmp_path / "many/a/300.png").write_bytes(b"bad")
    return tmp_path / "many"


def children():
    """The processes that this one has started and that still run."""
    me = str(os.getpid())
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
            if fields[1] == me and fields[0] != "Z" and b"spawn_main" in command:
                found.append(int(stat.parent.name))
    return found


def test_processes_decode_what_one_does(many, monkeypatch, capfd):
    several = source(many, skip_bad=True)
    assert "decoding 600 images" in capfd.readouterr().err
    assert children() == []
    monkeypatch.setattr(_decode, "WORTH_PROCESSES", 10**9)
    monkeypatch.setenv("NNX_CACHE_DIR", str(many.parent / "another"))
    one = source(many, skip_bad=True)
    assert one.notes[1].value == "decoded", "and not found in the cache"
    for theirs, own in ((several.train, one.train), (several.test(), one.test())):
        np.testing.assert_array_equal(theirs.inputs, own.inputs)
        np.testing.assert_array_equal(theirs.labels, own.labels)
    assert several.train.inputs.shape[1] == 3
    assert len(several.train) + len(several.test()) == 599
    assert capfd.readouterr() == ("", ""), "too few to be told of"


def test_a_killed_process_is_the_machines_fault(many, monkeypatch):
    real = workers.ProcessPoolExecutor.submit
    given = []

    def killing(self, *arguments):
        given.append(real(self, *arguments))
        if len(given) == 3:
            for pid in children():
                os.kill(pid, signal.SIGKILL)
        return given[-1]

    monkeypatch.setattr(workers.ProcessPoolExecutor, "submit", killing)
    with pytest.raises(MachineError) as caught:
        source(many, skip_bad=True)
    assert str(caught.value) == "a worker process was killed or can't be started; free memory, and run again"
    assert children() == []
    assert list(Path(os.environ["NNX_CACHE_DIR"]).iterdir()) == [], "no half entry"


def test_no_more_is_decoded_ahead_than_is_taken(many, monkeypatch):
    """A slow disk must not fill the memory."""
    submitted = []
    real = workers.ProcessPoolExecutor.submit
    monkeypatch.setattr(workers.ProcessPoolExecutor, "submit", lambda self, *a: submitted.append(1) or real(self, *a))
    paths = [str(many / "a/000.png")] * 1000
    with contextlib.closing(_decode.decode_all(paths, _decode.DecodeOptions((6, 5), None, None))) as chunks:
        next(chunks)
        assert 0 < len(submitted) <= 6, "of 20"
    assert children() == []


def test_large_images_go_a_few_at_a_time(monkeypatch, tmp_path):
    sizes = []
    monkeypatch.setattr(
        _decode,
        "_decode_chunk",
        lambda start, paths, how: sizes.append(len(paths)) or _decode.Chunk(np.zeros((0, 1, 1, 1)), [], [], []),
    )
    for side in (28, 224, 4096):
        list(_decode.decode_all(["x"] * 512, _decode.DecodeOptions((side, side), "pad", 3)))
        assert sizes[0] == max(1, min(256, 2**25 // (3 * side * side)))
        sizes.clear()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_sees_a_bar_also_where_colours_come_late_unless_quiet(many, monkeypatch, quiet):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        workers, "map_in_processes", lambda function, chunks, cores: (function(*chunk) for chunk in chunks)
    )
    with datasets.silent(quiet):
        assert source(many, skip_bad=True).train.inputs.shape[1] == 3
    assert ("decoding" in shown.getvalue()) != quiet


# ---------------------------------------------------------------- signals

DECODES = """
import sys, os
from pathlib import Path
from nnx.system import signals
from nnx.datasets import _decode, folder
from nnx.errors import NnxError
_decode.WORTH_PROCESSES, _decode.CHUNK = 100, 10
os.sched_getaffinity = lambda pid: {0, 1}
try:
    with signals.catch_signals(), signals.exit_on_signal("stopped; nothing was written"):
        print("begun", flush=True)
        folder.load(folder.Config(path=sys.argv[1], size=28), Path())
        print("done", flush=True)
except NnxError as error:
    print(error, file=sys.stderr)
    os._exit(error.exit_code)
"""


@pytest.fixture
def slow(tmp_path):
    """A folder that takes a while: links to one large picture."""
    large = save(tmp_path / "large.png", pixels(0, size=(2000, 2000)))
    for n in range(400):
        path = tmp_path / "slow" / "ab"[n % 2] / f"{n:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(large)
    return tmp_path / "slow"


def family(pid):
    """The processes that it has started, of which some may have lost it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(happened, seconds=30):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(slow, script=DECODES, **options):
    """The process, its workers, and the half-made entry, when there is some of it."""
    cache = Path(os.environ["NNX_CACHE_DIR"])
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(slow)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    wait_for(lambda: [*cache.glob(".*.tmp/*.bin")] or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    return process, family(process.pid), cache


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_with_all_its_processes_and_leaves_nothing(slow, number, code):
    """To the whole group, as a terminal sends it."""
    process, workers, cache = begun(slow, start_new_session=True)
    assert len(workers) >= 2
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "begun\n")
    assert err.splitlines()[-1] == "stopped; nothing was written"
    assert "Traceback" not in err
    wait_for(lambda: not any(map(runs, workers)))
    assert list(cache.iterdir()) == []


def test_ctrl_c_while_the_processes_start(slow):
    process = subprocess.Popen(
        [sys.executable, "-c", DECODES, str(slow)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(family(process.pid)) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "stopped; nothing was written"


def test_ctrl_c_just_when_there_is_a_pool_leaves_nothing_for_python_to_complain_of(slow):
    """A signal that came while the pool was made is heard as soon as it is: nothing must lie between."""
    script = DECODES.replace(
        "try:\n",
        """
class Pool(workers.ProcessPoolExecutor):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        os.kill(os.getpid(), 2)
workers.ProcessPoolExecutor = Pool
try:
""",
        1,
    ).replace("from nnx.system import signals", "from nnx.system import signals, workers")
    done = subprocess.run([sys.executable, "-c", script, slow], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "begun\n")
    assert done.stderr.splitlines()[-1] == "stopped; nothing was written"
    assert "leaked" not in done.stderr


def test_processes_do_not_outlive_a_kill_and_the_next_run_sweeps_what_is_half_made(slow, tmp_path):
    process, workers, cache = begun(slow)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(runs, workers)))
    assert [path.name[-4:] for path in cache.iterdir() if path.is_dir()] == [".tmp"], (
        "the control: there is half an entry"
    )
    tree(tmp_path / "other", {"a": 5, "b": 5})
    source(tmp_path / "other")
    assert [path.name.partition("-")[0] for path in cache.iterdir()] == ["folder"], (
        "another dataset's, and no lock either"
    )


def test_a_script_without_a_guard_is_not_run_again_by_its_processes(tmp_path):
    """multiprocessing would run it in each, and each would wait for the lock that its parent holds."""
    script = tmp_path / "script.py"
    script.write_text(DECODES)
    pictures = tree(tmp_path / "pictures", {"a": 60, "b": 60})
    done = subprocess.run([sys.executable, script, pictures], capture_output=True, text=True, timeout=60)
    assert done.stdout == "begun\ndone\n", done.stderr


def test_in_a_real_terminal(slow):
    """Nothing of rich's bar is left of it after Ctrl-C."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DECODES, str(slow)], stdout=subprocess.PIPE, stderr=other, start_new_session=True
    )
    os.close(other)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: nobody is there any more
        while piece := os.read(main, 1000):
            if b"/400" in seen + piece and b"/400" not in seen:
                os.killpg(process.pid, signal.SIGINT)
            seen += piece
    process.communicate(timeout=30)
    os.close(main)
    assert process.returncode == 130
    assert seen.rstrip().endswith(b"stopped; nothing was written")
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h"), "the cursor is back"


@pytest.mark.parametrize("bar", ["decoding", "download", "the control: rich's own"])
def test_a_signal_while_a_bar_starts_leaves_the_terminal_as_it_was(bar, monkeypatch):
    from rich import live, progress
    from rich.console import Console

    def arrives(self):
        raise InterruptedError

    @contextlib.contextmanager
    def plain():
        with progress.Progress(console=Console(stderr=True)):
            yield lambda *_: None

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live._RefreshThread, "start", arrives)
    shown = {
        "decoding": lambda: _progress.count_progress("decoding", 5000, "images"),
        "download": _progress.download_progress,
    }.get(bar, plain)
    with pytest.raises(InterruptedError), shown():
        pass
    restored = sys.stderr is terminal and terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count(
        "\x1b[?25h"
    )
    assert restored == ("control" not in bar)
