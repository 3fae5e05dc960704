"""Downloads, against a server on this machine that misbehaves: nothing half done is left, and the next try heals."""

import bz2
import gzip
import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_idx import MNIST, idx, tiny

from nnx import datasets
from nnx.datasets import _download, _torchvision, cifar10, cifar100, emnist, fashion_mnist, kmnist, mnist, qmnist, svhn, usps
from nnx.errors import DataError, MachineError

CONTENT = dict(zip(MNIST, map(idx, (*tiny(40), *tiny(20, seed=1))), strict=True))


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; `faults` by path is one of 404, cut, wrong, stall. `asked` is every path that was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {}, {}, []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content, fault = self.server.files.get(self.path), self.server.faults.get(self.path)
        if content is None or fault == "404":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write({None: content, "wrong": content[::-1]}.get(fault, content[: len(content) // 2]))
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


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def served(server, monkeypatch):
    """A tiny MNIST on the server, and torchvision's table pointing there."""
    packed = {f"{name}.gz": gzip.compress(content) for name, content in CONTENT.items()}
    server.files = {f"/{name}": content for name, content in packed.items()}
    table = SimpleNamespace(mirrors=[server.url], resources=[(name, md5(content)) for name, content in packed.items()])
    monkeypatch.setattr(_torchvision, "_class", lambda cls: table)
    monkeypatch.setattr(mnist, "SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()})
    monkeypatch.setattr(_download, "TIMEOUT", 0.3)
    server.table = table
    return server


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".download.lock"
    }


def load(folder: Path, **options) -> datasets.Dataset:
    return datasets.load(mnist.Config(), seed=0, data_dir=str(folder), **options)


# ---------------------------------------------------------------- what is missing, offline

IDX_FILES = list(MNIST)
EXPECTED = {
    mnist: ("MNIST/raw", IDX_FILES),
    fashion_mnist: ("FashionMNIST/raw", IDX_FILES),
    kmnist: ("KMNIST/raw", IDX_FILES),
    emnist: ("EMNIST/raw", [f"emnist-balanced-{h}-{k}-ubyte" for h in ("train", "test") for k in ("images-idx3", "labels-idx1")]),
    qmnist: ("QMNIST/raw", [f"qmnist-{h}-{k}" for h in ("train", "test") for k in ("images-idx3-ubyte", "labels-idx2-int")]),
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
    assert len(served.asked) == 4


def test_only_what_is_missing_is_downloaded(served, tmp_path):
    load(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    load(tmp_path)
    assert served.asked[4:] == ["/t10k-labels-idx1-ubyte.gz"]


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
    assert contents(tmp_path / "stopped/MNIST/raw") == {MNIST[0]: CONTENT[MNIST[0]]}
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


def test_the_first_mirror_that_works_is_used_https_before_http(tmp_path, server, monkeypatch):
    server.files = {"/good": b"content"}
    asked = []
    pieces = _download._pieces
    monkeypatch.setattr(_download, "_pieces", lambda url, progress: asked.append(url) or pieces(url, progress))
    urls = [f"{server.url}gone", f"{server.url}good", "https://127.0.0.1:1/x"]
    _download.fetch(urls, tmp_path / "x", md5=md5(b"content"), progress=lambda *_: None)
    assert asked == [urls[2], urls[0], urls[1]]
    assert (tmp_path / "x").read_bytes() == b"content"


# ---------------------------------------------------------------- faults

FAULTS = {
    "404": "Not Found",
    "cut": r"the connection was cut after [\d,]+ of [\d,]+ bytes",
    "wrong": "not the expected content",
    "stall": "timed out",
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items(), ids=FAULTS)
@pytest.mark.parametrize("name", [MNIST[0], MNIST[2]])
def test_a_fault_leaves_nothing_half_done_and_the_next_try_heals(served, tmp_path, fault, reason, name):
    served.faults = {f"/{name}.gz": fault}
    raw = tmp_path / "MNIST" / "raw"
    with pytest.raises(DataError, match=reason) as caught:
        load(tmp_path)
    done = MNIST[: MNIST.index(name)]
    assert contents(raw) == {file: CONTENT[file] for file in done}
    message = str(caught.value)
    assert message.startswith(
        f"mnist is not in {raw} and can't be downloaded. Put these files there: {', '.join(MNIST[len(done) :])}, or try"
    )
    assert f"{served.url}{name}.gz: " in message
    served.faults = {}
    assert len(load(tmp_path).test()) == 20
    assert contents(raw) == CONTENT


def test_no_network(served, tmp_path):
    served.table.mirrors = ["http://127.0.0.1:1/", "http://localhost:1/"]
    with pytest.raises(DataError, match=r"Put these files there: train-images.*http://127.0.0.1:1/.*: .*refused.*; http://localhost:1/"):
        load(tmp_path)
    assert contents(tmp_path) == {}


def test_content_that_is_not_the_pinned_one(served, tmp_path, monkeypatch):
    monkeypatch.setitem(mnist.SHA256, MNIST[1], "0" * 64)
    with pytest.raises(DataError, match=f"{MNIST[1]} is not the expected content: its SHA-256 is"):
        load(tmp_path)
    assert set(contents(tmp_path / "MNIST/raw")) == {MNIST[0]}


def test_a_killed_download_leaves_only_its_temporary_folder_and_the_next_heals(served, tmp_path):
    served.faults = {f"/{MNIST[1]}.gz": "stall"}
    code = (
        "from types import SimpleNamespace; from nnx import datasets; from nnx.datasets import _torchvision, mnist\n"
        f"_torchvision._class = lambda cls: SimpleNamespace(**{vars(served.table)!r}); mnist.SHA256 = {{}}\n"
        f"datasets.load(mnist.Config(), seed=0, data_dir={str(tmp_path)!r})"
    )
    killed = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while f"/{MNIST[1]}.gz" not in served.asked and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    raw = tmp_path / "MNIST" / "raw"
    assert (raw / ".download").is_dir()
    assert {name for name in contents(raw) if not name.startswith(".download/")} == {MNIST[0]}
    served.faults = {}
    assert len(load(tmp_path).test()) == 20
    assert contents(raw) == CONTENT
    assert sorted(os.listdir(raw)) == sorted(MNIST)


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
        MachineError, match=r"can't be written \(.*\)\. mnist is not in .*make room, or name another folder as dataset.root"
    ):
        load(tmp_path)


def test_a_full_disk(served, tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Full() if path.suffix == ".gz" and mode == "wb" else real(path, mode))
    with pytest.raises(MachineError, match=r"MNIST/raw: can't be written \(No space left on device\)"):
        load(tmp_path)
    assert contents(tmp_path) == {}


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
    monkeypatch.setattr(_torchvision, "_class", lambda cls: SimpleNamespace(url=f"{server.url}gzip.zip", md5=md5(packed.getvalue())))
    for split in ("balanced", "digits"):
        config = emnist.Config(split=split, validation=47)
        assert len(datasets.load(config, seed=0, data_dir=str(tmp_path / "data" / "deep")).test()) == 94
    assert server.asked == ["/gzip.zip"]
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
    table = SimpleNamespace(url=f"{server.url}cifar-100-python.tar.gz", tgz_md5=md5(packed.getvalue()))
    monkeypatch.setattr(_torchvision, "_class", lambda cls: table)
    folder = tmp_path / "cifar-100-python"
    _torchvision.ensure("cifar100", folder, ["train", "test", "meta"], "CIFAR100")
    assert contents(folder) == {"train": b"cifar-100-python/train", "test": b"/abs/test", "meta": b"../meta"}


def test_single_files_stay_packed(server, tmp_path, monkeypatch):
    files = {"usps.bz2": bz2.compress(b"train"), "usps.t.bz2": bz2.compress(b"test")}
    server.files = {f"/{name}": content for name, content in files.items()}
    halves = zip(("train", "test"), files.items(), strict=True)
    table = {half: [server.url + name, name, md5(content)] for half, (name, content) in halves}
    monkeypatch.setattr(_torchvision, "_class", lambda cls: SimpleNamespace(split_list=table))
    (tmp_path / "usps.t.bz2").write_bytes(files["usps.t.bz2"])
    _torchvision.ensure("usps", tmp_path, list(files), "USPS")
    assert contents(tmp_path) == files
    assert server.asked == ["/usps.bz2"]
