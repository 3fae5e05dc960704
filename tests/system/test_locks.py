"""Lock files: one process at a time, and no file of another user is changed."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from nnx.errors import InputError
from nnx.system import locks

HOLD = """
import sys
from pathlib import Path
from nnx.system import locks
lock = locks.acquire(Path(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_one_process_has_the_lock_and_the_kernel_releases_it(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert locks.acquire(path) is None
        other.kill()
    lock = locks.acquire(path)
    assert lock is not None, "the control: it is free once that process is dead"
    locks.release(path, lock)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "hard link", "pipe", "folder"])
def test_prepared_links_and_files_are_neither_followed_nor_changed(tmp_path, kind):
    path = tmp_path / ".lock"
    target = tmp_path / "authorized_keys"
    target.write_text("ssh-ed25519 AAAA\n")
    if kind == "symbolic link":
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "made")
    elif kind == "hard link":
        os.link(target, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(InputError, match="nnx does not write through links"):
        locks.acquire(path)
    assert target.read_text() == "ssh-ed25519 AAAA\n"
    assert not (tmp_path / "made").exists()


def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    """Whoever waits may get the lock of a file that is no more; another process then has the one that took its
    place."""
    path = tmp_path / ".lock"
    real, removed = fcntl.flock, []

    def flock(file, how):
        real(file, how)
        if not removed:
            removed.append(path.unlink())

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = locks.acquire(path)
    assert os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
    assert locks.acquire(path) is None
    locks.release(path, lock)
    again = locks.acquire(path)
    assert again is not None
    locks.release(path, again)


@pytest.mark.parametrize("required", [True, False])
def test_a_drive_without_locks(tmp_path, monkeypatch, required):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    if required:
        with pytest.raises(OSError, match="No locks"):
            locks.acquire(tmp_path / ".lock")
    else:
        assert locks.acquire(tmp_path / ".lock", required=False)
