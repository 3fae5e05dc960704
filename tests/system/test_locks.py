"""Lock files: one process at a time, and no file of another user is changed."""

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
