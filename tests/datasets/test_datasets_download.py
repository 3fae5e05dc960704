"""Downloads, against a server on this machine that misbehaves: nothing half done is left, and the next try heals."""

import bz2
import fcntl
import gzip
import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from tiny_idx import MNIST, idx, tiny

from nnx import datasets
from nnx.datasets import (
    _download,
    _ensure_files,
    _progress,
    cifar10,
    cifar100,
    emnist,
    fashion_mnist,
    kmnist,
    mnist,
    qmnist,
    svhn,
    usps,
)
from nnx.datasets._archives import ARCHIVES, Archive
from nnx.errors import DataError, MachineError

CONTENT = dict(zip(MNIST, map(idx, (*tiny(40), *tiny(20, seed=1))), strict=True))


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, from any byte on; `faults` by path are named in Handler. `asked` is every (path, first
    byte)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {}, {}, []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        whole, fault = self.server.files.get(self.path), self.server.faults.get(self.path)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.server.asked.append((self.path, start))
        if whole is None or fault == "404":
            return self.send_error(404)
        content = {"wrong": whole[::-1], "long": whole + b"more", "short": whole[:-1]}.get(fault, whole)
        if start >= len(content):
            return self.send_error(416)
        if asked and fault != "no ranges":
            self.send_response(206)
            first = 0 if fault == "wrong range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        else:
            self.send_response(200)
        if fault == "endless":
            self.send_header("Transfer-Encoding", "chunked")
        elif fault != "no length":
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if fault == "endless":
            return self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(content), content) for _ in range(9)))
        self.wfile.write(content[: len(content) // 2] if fault in ("cut", "stall") else content)
        self.wfile.flush()
        if fault == "stall":
            self.server.over.wait(20)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("NNX_OFFLINE", raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


def archive(server: Server, name: str, *, sized: bool = True) -> Archive:
    content = server.files[f"/{name}"]
    return Archive((server.url + name,), hashlib.sha256(content).hexdigest(), len(content) if sized else None)


@pytest.fixture
def served(server, monkeypatch):
    """A tiny MNIST on the server, and the table of archives pointing there."""
    server.files = {f"/{name}.gz": gzip.compress(content) for name, content in CONTENT.items()}
    monkeypatch.setitem(ARCHIVES, "mnist", tuple(archive(server, f"{name}.gz") for name in MNIST))
    monkeypatch.setattr(_download, "TIMEOUT", 0.3)
    return server


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".download.lock"  # which a kill leaves
    }


def complete(folder: Path) -> dict[str, bytes]:
    """`contents` without what is kept to go on with."""
    return {
        name: content
        for name, content in contents(folder).items()
        if not re.fullmatch(r"(.*/)?\.download/[^/]+\.part", name)
    }


def load(folder: Path, **options) -> datasets.Dataset:
    return datasets.load(mnist.Config(), seed=0, data_dir=str(folder), **options)


def start_loading(folder: Path) -> subprocess.Popen:
    """`load` in a process of its own, as the command line runs it. Its last word is what it imported of torchvision."""
    code = (
        "import sys; from nnx import datasets; from nnx.system import signals; from nnx.datasets import mnist\n"
        "from nnx.errors import NnxError\n"
        "from nnx.datasets._archives import ARCHIVES, Archive\n"
        f"ARCHIVES['mnist'] = {ARCHIVES['mnist']!r}\n"
        "try:\n"
        "    with signals.catch_signals(), signals.exit_on_signal('stopped'):\n"
        f"        datasets.load(mnist.Config(), seed=0, data_dir={str(folder)!r})\n"
        "except NnxError as error:\n"
        "    sys.exit(error.exit_code)\n"
        "print({name for name in sys.modules if 'torchvision' in name})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for(happened) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------- what is missing, offline

IDX_FILES = list(MNIST)
EXPECTED = {
    mnist: ("MNIST/raw", IDX_FILES),
    fashion_mnist: ("FashionMNIST/raw", IDX_FILES),
    kmnist: ("KMNIST/raw", IDX_FILES),
    emnist: (
        "EMNIST/raw",
        [f"emnist-balanced-{h}-{k}-ubyte" for h in ("train", "test") for k in ("images-idx3", "labels-idx1")],
    ),
    qmnist: (
        "QMNIST/raw",
        [f"qmnist-{h}-{k}" for h in ("train", "test") for k in ("images-idx3-ubyte", "labels-idx2-int")],
    ),
    usps: ("usps", ["usps.bz2", "usps.t.bz2"]),
    svhn: ("svhn", ["train_32x32.mat", "test_32x32.mat"]),
    cifar10: ("cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]),
    cifar100: ("cifar-100-python", ["train", "test", "meta"]),
}


@pytest.mark.parametrize("module", EXPECTED, ids=lambda module: module.__name__)
def test_offline_says_what_to_put_where(module, tmp_path, monkeypatch):
    monkeypatch.setenv("NNX_OFFLINE", "1")
    name = module.Config.model_fields["name"].default
    folder, files = EXPECTED[module]
    with pytest.raises(DataError) as caught:
        datasets.load(module.Config(), seed=0, data_dir=str(tmp_path))
    assert str(caught.value) == (
        f"{name} is not in {tmp_path / folder} and NNX_OFFLINE is set. "
        f"Put these files there: {', '.join(files)}, or unset NNX_OFFLINE to download them"
    )
    assert list(tmp_path.iterdir()) == []


def test_offline_names_only_the_missing_and_sees_a_missing_test_file_before_training(tiny_mnist, monkeypatch):
    monkeypatch.setenv("NNX_OFFLINE", "1")
    load(tiny_mnist)  # the control
    (tiny_mnist / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="Put these files there: t10k-labels-idx1-ubyte, or unset"):
        load(tiny_mnist)


# ---------------------------------------------------------------- a download that works


def test_download(served, tmp_path, capfd):
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test())) == (36, 4, 20)
    assert contents(tmp_path / "MNIST/raw") == CONTENT
    assert sorted(path.name for path in (tmp_path / "MNIST/raw").iterdir()) == sorted(CONTENT)  # no lock, no .download
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"downloading {served.url}{name}.gz" for name in MNIST]
    load(tmp_path)
    assert served.asked == [(f"/{name}.gz", 0) for name in MNIST]


def test_a_download_needs_no_torchvision(served, tmp_path):
    loading = start_loading(tmp_path)
    assert loading.communicate()[0] == "set()\n"
    assert contents(tmp_path / "MNIST/raw") == CONTENT


def test_only_what_is_missing_is_downloaded(served, tmp_path):
    load(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    load(tmp_path)
    assert served.asked[4:] == [("/t10k-labels-idx1-ubyte.gz", 0)]


def test_progress_is_told_and_may_stop_the_download(served, tmp_path, capfd):
    told = []
    load(tmp_path / "told", progress=lambda *report: told.append(report))
    size = len(served.files[f"/{MNIST[0]}.gz"])
    assert told[0] == (f"{served.url}{MNIST[0]}.gz", 0, size)
    assert (f"{served.url}{MNIST[0]}.gz", size, size) in told
    assert capfd.readouterr().err == ""

    def stop(url, done, total):
        if MNIST[1] in url:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "stopped", progress=stop)
    assert complete(tmp_path / "stopped/MNIST/raw") == {MNIST[0]: CONTENT[MNIST[0]]}
    assert len(load(tmp_path / "stopped").test()) == 20


def test_a_terminal_gets_a_bar(served, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    load(tmp_path)
    assert "t10k-labels-idx1-ubyte.gz" in sys.stderr.getvalue()
    assert "━" in sys.stderr.getvalue()


def test_the_first_mirror_that_works_is_used(tmp_path, server):
    server.files = {"/good": b"content", "/good2": b"content", "/wrong": b"another"}
    sha256 = hashlib.sha256(b"content").hexdigest()
    names = ("gone", "wrong", "good", "good2")
    _download.fetch(Archive(tuple(server.url + name for name in names), sha256), tmp_path / "x", lambda *_: None)
    assert server.asked == [("/gone", 0), ("/wrong", 0), ("/good", 0)]
    assert (tmp_path / "x").read_bytes() == b"content"


# ---------------------------------------------------------------- faults

FAULTS = {
    "404": "Not Found",
    "cut": r"the connection was lost after [\d,]+ of [\d,]+ bytes",
    "wrong": "not the expected content",
    "stall": "timed out",
    "long": r"the server has ([\d,]+) bytes, not (?!\1)[\d,]+",
    "short": r"the server has ([\d,]+) bytes, not (?!\1)[\d,]+",
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items(), ids=FAULTS)
@pytest.mark.parametrize("name", [MNIST[0], MNIST[2]])
def test_a_fault_leaves_nothing_half_done_and_the_next_try_heals(served, tmp_path, monkeypatch, fault, reason, name):
    monkeypatch.setattr(_download, "TRIES", 1)
    served.faults = {f"/{name}.gz": fault}
    raw = tmp_path / "MNIST" / "raw"
    with pytest.raises(MachineError, match=reason) as caught:
        load(tmp_path)
    left = [] if fault in ("404", "wrong", "long", "short") else [".download"]  # what the next try resumes
    assert sorted(os.listdir(raw) if raw.exists() else []) == sorted([*left, *MNIST[: MNIST.index(name)]])
    done = MNIST[: MNIST.index(name)]
    assert complete(raw) == {file: CONTENT[file] for file in done}
    message = str(caught.value)
    assert message.startswith(
        f"mnist is not in {raw} and can't be downloaded. Put these files there: {', '.join(MNIST[len(done) :])}, or try"
    )
    assert f"{served.url}{name}.gz: " in message
    served.faults = {}
    assert len(load(tmp_path).test()) == 20
    assert contents(raw) == CONTENT
    assert sorted(os.listdir(raw)) == sorted(MNIST)


def test_no_network(served, tmp_path, monkeypatch):
    urls = ("http://127.0.0.1:1/x", "http://localhost:1/x")
    monkeypatch.setitem(ARCHIVES, "mnist", (Archive(urls, "0" * 64),))
    with pytest.raises(
        MachineError,
        match=r"Put these files there: train-images.*http://127.0.0.1:1/x: .*refused.*; http://localhost:1/x",
    ):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["404", "cut", "wrong", "stall"])
def test_a_failed_download_leaves_only_what_the_next_one_resumes(served, tmp_path, fault):
    served.faults = {f"/{name}.gz": fault for name in MNIST}
    for _ in range(2):
        with pytest.raises(MachineError, match=r"can't be downloaded. Put these files there: train-im") as caught:
            load(tmp_path / "data")
        assert caught.value.exit_code == 3
        left = [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()]
        assert left == ([f"{MNIST[0]}.gz.part"] if fault in ("cut", "stall") else [])
    assert (tmp_path / "data").exists() == bool(left)


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_the_rest_of_a_cut_download_is_asked_for_at_once(served, tmp_path, fault):
    size = len(served.files[f"/{MNIST[0]}.gz"])
    served.faults = {f"/{MNIST[0]}.gz": fault}
    with pytest.raises(MachineError, match=FAULTS[fault]):
        load(tmp_path)
    starts = [0]
    while len(starts) <= _download.TRIES:
        starts.append(starts[-1] + (size - starts[-1]) // 2)  # half of the rest each time
    assert served.asked == [(f"/{MNIST[0]}.gz", start) for start in starts[:-1]]
    part = tmp_path / f"MNIST/raw/.download/{MNIST[0]}.gz.part"
    assert part.read_bytes() == served.files[f"/{MNIST[0]}.gz"][: starts[-1]]
    served.faults, served.asked = {}, []
    load(tmp_path)
    assert served.asked == [(f"/{name}.gz", start) for name, start in zip(MNIST, (starts[-1], 0, 0, 0), strict=True)]


PARTS = {
    "a beginning": lambda whole: whole[:100],
    "all of it": lambda whole: whole,
    "all but a byte": lambda whole: whole[:-1],
    "a wrong beginning": lambda whole: b"?" * 100,
    "wrong, and as long": lambda whole: whole[::-1],
    "too long": lambda whole: whole + b"more",
    "nothing": lambda whole: b"",
}


@pytest.mark.parametrize("fault", [None, "no ranges", "wrong range", "endless", "no length"])
@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize("part", PARTS)
def test_whatever_a_killed_download_left_is_healed(server, tmp_path, fault, sized, part):
    whole = server.files["/x"] = bytes(range(256)) * 10
    server.faults = {"/x": fault}
    target = tmp_path / "x.part"
    target.write_bytes(PARTS[part](whole))
    lengths = []
    wanted = archive(server, "x", sized=sized)

    def fetch():
        _download.fetch(wanted, target, lambda *_: lengths.append(target.stat().st_size if target.exists() else 0))

    if not sized and fault in ("endless", "no length") and part not in ("a beginning", "all but a byte", "all of it"):
        with pytest.raises(
            _download.DownloadError, match="does not report the number of bytes"
        ):  # it could fill the disk
            fetch()
        assert not target.exists() or part == "nothing"
    else:
        fetch()
        assert target.read_bytes() == whole
    assert max(lengths, default=0) <= max(len(whole), len(PARTS[part](whole)))
    if part == "a beginning" and fault is None:
        assert server.asked == [("/x", 100)]
    if part == "all of it" and sized:
        assert server.asked == []


def test_progress_of_a_download_that_goes_on(server, tmp_path, capfd):
    server.files["/x"] = bytes(1000)
    (tmp_path / "x").write_bytes(bytes(400))
    told = []
    _download.fetch(archive(server, "x"), tmp_path / "x", lambda *report: told.append(report))
    assert told[0] == (f"{server.url}x", 400, 1000)
    assert told[-1] == (f"{server.url}x", 1000, 1000)
    (tmp_path / "x").write_bytes(bytes(400))
    with _progress.download_progress() as progress:
        _download.fetch(archive(server, "x"), tmp_path / "x", progress)
    assert capfd.readouterr().err == f"downloading {server.url}x\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_server_stalls_ends_it_at_once_and_the_next_run_goes_on(served, tmp_path, number, code):
    served.faults = {f"/{MNIST[1]}.gz": "stall"}
    size = len(served.files[f"/{MNIST[1]}.gz"])
    raw = tmp_path / "MNIST" / "raw"
    part = raw / f".download/{MNIST[1]}.gz.part"
    loading = start_loading(tmp_path)
    wait_for(lambda: part.exists() and part.stat().st_size == size // 2)
    begun = time.monotonic()
    loading.send_signal(number)
    loading.communicate()
    assert loading.returncode == code
    assert time.monotonic() - begun < 5  # the time-out is 20 s
    assert contents(raw) == {
        MNIST[0]: CONTENT[MNIST[0]],
        f".download/{MNIST[1]}.gz.part": served.files[f"/{MNIST[1]}.gz"][: size // 2],
    }
    served.faults, served.asked = {}, []
    assert len(load(tmp_path).test()) == 20
    assert served.asked == [(f"/{name}.gz", start) for name, start in zip(MNIST[1:], (size // 2, 0, 0), strict=True)]
    assert contents(raw) == CONTENT
    assert sorted(os.listdir(raw)) == sorted(MNIST)


def test_what_a_process_left_that_was_killed_at_tidying_up_goes(served, tmp_path, monkeypatch):
    load(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    monkeypatch.setenv("NNX_OFFLINE", "1")
    left = raw / ".download" / f"{MNIST[0]}.gz.part"
    left.parent.mkdir()
    left.write_bytes(b"left")
    monkeypatch.setattr(fcntl, "flock", refuse)  # as a folder that can't be written would
    load(tmp_path)
    assert left.exists()
    monkeypatch.undo()
    monkeypatch.setenv("NNX_OFFLINE", "1")
    load(tmp_path)
    assert sorted(os.listdir(raw)) == sorted(MNIST)


def refuse(*_):
    raise OSError(30, "Read-only file system")


def test_two_at_once_download_once(served, tmp_path):
    failures = []

    def run():
        try:
            load(tmp_path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(served.asked) == 4


def test_a_folder_that_cannot_be_made(served, tmp_path):
    (tmp_path / "MNIST").write_text("a file")
    with pytest.raises(
        MachineError,
        match=r"can't be written \(.*\)\. mnist is not in .*free some space, or set dataset.root to another folder",
    ):
        load(tmp_path)


@pytest.mark.parametrize("when", ["downloading", "unpacking"])
def test_a_full_disk(served, tmp_path, monkeypatch, when):
    class Full(io.FileIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    real = Path.open
    if when == "downloading":
        fdopen = os.fdopen
        monkeypatch.setattr(
            os, "fdopen", lambda fd, mode="r", *a, **k: (Full if mode == "ab" else fdopen)(fd, mode, *a, **k)
        )
    else:
        monkeypatch.setattr(
            Path, "open", lambda path, mode="r", **more: Full(path, mode) if mode == "xb" else real(path, mode, **more)
        )
    with pytest.raises(MachineError, match=r"MNIST/raw: can't be written \(No space left on device\)"):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- archives


def test_emnist_zip(server, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("../../evil.gz", b"out of the folder")
        zipped.writestr("gzip/readme.txt", b"not data")
        for split in ("balanced", "digits"):
            for half in ("train", "test"):
                images, labels = tiny(94, 10 if split == "digits" else 47)
                zipped.writestr(f"gzip/emnist-{split}-{half}-images-idx3-ubyte.gz", gzip.compress(idx(images)))
                zipped.writestr(f"gzip/emnist-{split}-{half}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    server.files = {"/gzip.zip": packed.getvalue()}
    monkeypatch.setitem(ARCHIVES, "emnist", (archive(server, "gzip.zip"),))
    for split in ("balanced", "digits"):
        config = emnist.Config(split=split, validation=47)
        assert len(datasets.load(config, seed=0, data_dir=str(tmp_path / "data" / "deep")).test()) == 94
    assert server.asked == [("/gzip.zip", 0)]
    raw = tmp_path / "data/deep/EMNIST/raw"
    assert {path.name for path in raw.iterdir()} == {
        "evil.gz",  # by its base name, inside the folder
        *(f"emnist-balanced-{h}-{k}-ubyte" for h in ("train", "test") for k in ("images-idx3", "labels-idx1")),
        *(f"emnist-digits-{h}-{k}-ubyte.gz" for h in ("train", "test") for k in ("images-idx3", "labels-idx1")),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_tar(server, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-100-python/meta")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("cifar-100-python/train", "/abs/test", "../meta", "file.txt~"):
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    server.files = {"/cifar-100-python.tar.gz": packed.getvalue()}
    monkeypatch.setitem(ARCHIVES, "cifar100", (archive(server, "cifar-100-python.tar.gz"),))
    folder = tmp_path / "cifar-100-python"
    _ensure_files.ensure_files("cifar100", folder, ["train", "test", "meta"])
    assert contents(folder) == {"train": b"cifar-100-python/train", "test": b"/abs/test", "meta": b"../meta"}


def test_single_files_stay_packed(server, tmp_path, monkeypatch):
    files = {"usps.bz2": bz2.compress(b"train"), "usps.t.bz2": bz2.compress(b"test")}
    server.files = {f"/{name}": content for name, content in files.items()}
    monkeypatch.setitem(ARCHIVES, "usps", tuple(archive(server, name, sized=False) for name in files))
    (tmp_path / "usps.t.bz2").write_bytes(files["usps.t.bz2"])
    _ensure_files.ensure_files("usps", tmp_path, list(files))
    assert contents(tmp_path) == files
    assert server.asked == [("/usps.bz2", 0)]
