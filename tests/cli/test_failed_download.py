"""A download that fails is a problem of the machine: exit code 3, one line, and nothing is left."""

import pytest

from nnx.datasets._archives import ARCHIVES, Archive


@pytest.mark.parametrize("command", [("train", "mnist_mlp", "--out", "r"), ("show", "mnist_mlp")])
def test_a_failed_download_is_exit_code_3(nnx, monkeypatch, tmp_path, command):
    monkeypatch.delenv("NNX_OFFLINE", raising=False)
    monkeypatch.setenv("NNX_DATA_DIR", "data")
    monkeypatch.setitem(ARCHIVES, "mnist", (Archive(("http://127.0.0.1:1/train-images-idx3-ubyte.gz",), "0" * 64),))
    result = nnx(*command)
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith(
        "error: mnist is not in data/MNIST/raw and can't be downloaded. Put these files there:"
    )
    assert "Connection refused" in result.err
    assert list(tmp_path.iterdir()) == []
