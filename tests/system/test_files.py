"""Files are replaced atomically, the old file can be kept, and temporary files of dead processes are removed."""

import errno
import os
import subprocess
import sys

import pytest

from nnx.errors import MachineError
from nnx.system import files


def test_the_old_file_is_kept_under_another_name(tmp_path):
    path, kept = tmp_path / "last.pt", tmp_path / "previous.pt"
    for n in range(3):
        files.replace(path, b"%d" % n, keep=kept)
        assert path.read_bytes() == b"%d" % n
        assert kept.exists() == (n > 0)
    assert kept.read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_the_old_file_is_kept_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    test_the_old_file_is_kept_under_another_name(tmp_path)


def test_other_errors_are_reported(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def link(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(MachineError, match="Disk quota exceeded"):
        files.replace(path, b"new", keep=tmp_path / "previous.pt")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_only_files_of_dead_processes_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = process.pid
    mine, theirs, other = (
        tmp_path / name for name in (f".last.pt.{os.getpid()}.tmp", f".last.pt.{dead}.tmp", ".notes.tmp")
    )
    for path in (mine, theirs, other):
        path.write_text("x")
    files.remove_stale_files(tmp_path)
    assert mine.exists()
    assert other.exists()
    assert not theirs.exists()


def test_write_creates_the_folder_or_reports_the_error(tmp_path):
    files.write(tmp_path / "a/b/c.json", "x\n")
    assert (tmp_path / "a/b/c.json").read_text() == "x\n"
    with pytest.raises(MachineError, match=r"c\.json/d: can't be made"):
        files.write(tmp_path / "a/b/c.json/d/e", "x")


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path):
    """Its name is known beforehand to whoever prepares the folder."""
    target = tmp_path / "authorized_keys"
    target.write_text("ssh-ed25519 AAAA")
    (tmp_path / f".last.pt.{os.getpid()}.tmp").symlink_to(target)
    files.replace(tmp_path / "last.pt", b"state")
    assert target.read_text() == "ssh-ed25519 AAAA"
    assert (tmp_path / "last.pt").read_bytes() == b"state"
    assert not (tmp_path / "last.pt").is_symlink()


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127])
def test_the_longest_names_are_written(tmp_path, name):
    """Their temporary files have a shorter name."""
    (tmp_path / name).write_text("old")
    files.replace(tmp_path / name, b"new", keep=tmp_path / name[:-1])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "new", name[:-1]: "old"}
