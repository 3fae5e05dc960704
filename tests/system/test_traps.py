"""Links, pipes and devices where a command expects its files: nothing else changes, nothing hangs."""

import gzip
import hashlib
import os
import sys

import numpy as np
import pytest

from nnx.cli import run_command
from nnx.datasets import _cache, _download, _ensure_files
from nnx.datasets._archives import ARCHIVES, Archive
from nnx.errors import CheckpointError, InputError, MachineError
from nnx.run import folder as run_folder
from nnx.system import files
from nnx.training import film

KEY = "ssh-ed25519 AAAA\n"
FORMS = {"inputs": ("uint8", 2)}


@pytest.fixture
def victim(tmp_path):
    """A file outside of all folders of nnx."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/authorized_keys").write_text(KEY)
    return tmp_path / "home/authorized_keys"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A file that can be downloaded, at a URL that no test reaches before it writes."""
    packed = gzip.compress(b"content")
    (tmp_path / "mirror.gz").write_bytes(packed)
    url = f"file://{tmp_path}/mirror.gz"
    monkeypatch.setitem(ARCHIVES, "mnist", (Archive((url,), hashlib.sha256(packed).hexdigest(), len(packed)),))
    monkeypatch.delenv("NNX_OFFLINE", raising=False)
    return _ensure_files


def make_trap(kind, path, victim):
    if kind == "symbolic link":
        path.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a folder":
        path.symlink_to(victim.parent)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe"])
def test_a_partial_download_is_never_written_through_a_link(tmp_path, victim, archive, monkeypatch, kind):
    work = tmp_path / "raw/.download"
    work.mkdir(parents=True)
    make_trap(kind, work / "mirror.gz.part", victim)
    monkeypatch.setattr(_download.urllib.request, "urlopen", Response)
    with pytest.raises(InputError, match="nnx does not write through links"):
        archive.ensure_files("mnist", tmp_path / "raw", ["mirror"])
    assert victim.read_text() == KEY


@pytest.mark.parametrize("kind", ["symbolic link", "link to a folder", "pipe"])
def test_the_folder_of_partial_downloads_must_be_a_folder(tmp_path, victim, archive, kind):
    (tmp_path / "raw").mkdir()
    make_trap(kind, tmp_path / "raw/.download", victim)
    with pytest.raises(InputError, match=r"\.download: is a link, or not a folder; remove it"):
        archive.ensure_files("mnist", tmp_path / "raw", ["mirror"])
    assert [path.name for path in victim.parent.iterdir()] == ["authorized_keys"]


def test_an_unpacked_file_replaces_a_link_instead_of_following_it(tmp_path, victim):
    (tmp_path / "work").mkdir()
    (tmp_path / "raw").mkdir()
    part = tmp_path / "work/mirror.gz.part"
    part.write_bytes(gzip.compress(b"content"))
    (tmp_path / "work/mirror").symlink_to(victim)
    _ensure_files._unpack(part, "mirror.gz", tmp_path / "raw", ["mirror"])
    assert victim.read_text() == KEY
    assert (tmp_path / "raw/mirror").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_read(tmp_path, victim, kind):
    for name in ("summary.json", "metrics.jsonl", "film.npz"):
        make_trap(kind, tmp_path / name, victim)
    assert run_folder.read_summary(tmp_path) == {}
    assert run_folder.read_metrics(tmp_path, []) == []
    with pytest.raises(CheckpointError, match="can't be read as a film"):
        film.read(tmp_path / "film.npz")


@pytest.mark.parametrize("kind", ["symbolic link", "link to a folder", "pipe", "device"])
@pytest.mark.parametrize("place", ["{}", "{}/meta.json", ".{}.tmp"])
def test_a_prepared_cache_is_replaced(tmp_path, victim, monkeypatch, kind, place):
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))
    key = _cache.CacheKey("/source", {}, "hash")
    trap = tmp_path / "cache" / place.format(f"folder-{key.digest}")
    trap.parent.mkdir(parents=True)
    make_trap(kind, trap, victim)

    def decode(writer):
        writer.add("inputs", np.ones((3, 2), np.uint8))
        return {}

    assert _cache.load_or_decode("folder", key, decode, FORMS).arrays["inputs"].sum() == 6
    assert not trap.is_symlink()
    assert [path.name for path in victim.parent.iterdir()] == ["authorized_keys"]
    _cache.clear()
    assert victim.read_text() == KEY


def test_explain_does_not_write_into_a_folder_that_the_run_links_to(tmp_path, victim, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.pt").write_bytes(b"")
    (tmp_path / "run/explain").symlink_to(victim.parent)
    monkeypatch.setattr(sys, "argv", ["nnx", "explain", str(tmp_path / "run")])
    assert run_command() == 2
    assert "is a link; name the folder that it leads to with --out" in capsys.readouterr().err


def test_what_is_removed_is_the_link_and_never_waits_for_a_pipe(tmp_path, victim):
    for kind in ("symbolic link", "link to a folder", "pipe"):
        make_trap(kind, tmp_path / "trap", victim)
        files.remove(tmp_path / "trap")
        assert not (tmp_path / "trap").is_symlink()
        assert not (tmp_path / "trap").exists()
    (tmp_path / "trap/below").mkdir(parents=True)
    files.remove(tmp_path / "trap")
    assert victim.read_text() == KEY


class Response:
    """A response of a server that never sends anything."""

    def __init__(self, *_, **__):
        self.length, self.status, self.headers = None, 200, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read1(self, _):
        raise MachineError("read before the file was opened")
