"""Limits on memory too low to import torch: one line and exit code 3, whatever its libraries would do."""

import resource
import subprocess
import sys

import pytest

from nnx.cli import _start


def run(kind, limit, *words):
    """nnx with a limit of this many MB."""
    code = (
        f"import resource, sys; resource.setrlimit({kind}, ({limit * 2**20},) * 2)\n"
        f"sys.argv = ['nnx', *{list(words)!r}]; from nnx.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("limit", [100, 200, 300, 500, 700, 800, 900])
@pytest.mark.parametrize("words", [("list",), ("check", "digits_mlp"), ("train", "digits_mlp", "--out", "/nowhere")])
def test_a_low_limit_on_data_is_3(limit, words):
    done = run(resource.RLIMIT_DATA, limit, *words)
    assert (done.returncode, done.stdout) == (3, "")
    text = " ".join(done.stderr.split())
    assert text.startswith(f"error: ulimit -d allows {limit} MB of memory")
    assert text.endswith("(ulimit -d unlimited)")


@pytest.mark.parametrize("words", [("list",), ("show", "digits_mlp"), ("schema",)])
@pytest.mark.parametrize("limit", [100, 500, 2000])
def test_a_low_limit_on_addresses_is_3(limit, words):
    done = run(resource.RLIMIT_AS, limit, *words)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ulimit -v allows")


def test_the_help_needs_no_torch():
    done = run(resource.RLIMIT_DATA, 100, "train", "--help")
    assert done.returncode == 0, done.stderr


def test_the_control_that_much_is_enough():
    done = run(resource.RLIMIT_DATA, _start.NEEDED["-d"] + 50, "list")
    assert done.returncode == 0, done.stderr
