"""The choices of device, precision and threads, and their reasons."""

import os
import subprocess
import sys

import pytest
import torch

from nnx import config, models
from nnx.config import registry
from nnx.errors import ConfigError, DeviceError
from nnx.preprocessing.spec import Spec
from nnx.run.pipeline import run
from nnx.system import device as devices

IMAGES = Spec((1, 28, 28), tuple("0123456789"), (0.1,), (0.3,))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_small_work_gets_one_thread_and_large_work_all_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "available_cores", lambda: 3)
    chosen = {work: devices.set_threads("auto", work) for work in (0, 2 * devices.MULTIPLY_ADDS_PER_THREAD, 10**12)}
    assert [choice.value for choice in chosen.values()] == ["1", "2", "3"]
    assert "too small" in chosen[0].reason
    assert "3 cores" in chosen[10**12].reason
    assert torch.get_num_threads() == 3


def test_requested_threads_and_those_of_the_environment_are_used(monkeypatch):
    assert devices.set_threads(2, 0).value == "2"
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert devices.set_threads("auto", 0) == devices.Choice("threads", "2", "OMP_NUM_THREADS is set")


def test_available_cores_follow_the_affinity():
    assert 1 <= devices.available_cores() <= len(os.sched_getaffinity(0))
    code = "from nnx.system import device; print(device.available_cores())"
    one = subprocess.run(["taskset", "-c", "0", sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert one.stdout == "1\n"


@pytest.mark.parametrize("text", ["0", "-1", "5000", "1.5", "many", "true"])
def test_threads_are_auto_or_a_count(text):
    with pytest.raises(ConfigError, match="expected auto, or a number"):
        config.from_dict({"dataset": "digits", "model": "mlp"}, "made", [f"threads={text}"])


@pytest.mark.parametrize(
    ("flags", "model", "expected"),
    [
        ("fma avx512f avx512_bf16", "cnn", torch.bfloat16),
        ("fma amx_bf16", "rnn", torch.bfloat16),
        ("fma avx512_bf16", "transformer", torch.bfloat16),
        ("fma avx512_bf16", "mlp", torch.float32),
        ("fma avx512f avx2", "cnn", torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_cpu_and_architecture_gain_from_it(monkeypatch, flags, model, expected):
    monkeypatch.setattr(devices.platform, "cpu_info", lambda key: flags)
    prefers = registry.find("model", model).prefers_bfloat16
    chosen = devices.choose_runtime("cpu", "auto", prefers_bfloat16=prefers)
    assert chosen.dtype == expected
    assert ("instructions" in chosen.choices[1].reason) == (expected == torch.bfloat16)


def test_a_requested_precision_is_used_or_refused():
    assert devices.choose_runtime("cpu", "bfloat16").dtype == torch.bfloat16
    with pytest.raises(DeviceError, match="float16 needs a GPU"):
        devices.choose_runtime("cpu", "float16")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mlp", 784 * 256 + 256 * 128 + 128 * 10),
        ("{name: cnn, channels: [4, 8], norm: none}", 28 * 28 * 4 * 9 + 14 * 14 * 8 * 4 * 9 + 7 * 7 * 8 * 10),
        ("{name: rnn, cell: lstm, hidden: 16}", 28 * 4 * 16 * (28 + 16) + 160),
        (
            "{name: transformer, patch: 7, width: 8, depth: 1, heads: 2, read: mean}",
            16 * (49 * 8 + 8 * 24 + 8 * 8 + 2 * 8 * 16) + 80,
        ),
    ],
)
def test_multiply_adds_by_hand(model, expected):
    whole = config.from_dict({"dataset": "digits", "model": "mlp"}, "made", [f"model={model}"])
    assert models.multiply_adds(models.build(whole.model, IMAGES, 10), IMAGES) == expected


def test_a_precision_without_kernels_is_replaced_or_refused(monkeypatch, tmp_path):
    """As an LSTM in bfloat16 on a CPU without AVX-512."""
    monkeypatch.setattr(devices.platform, "cpu_info", lambda key: "avx512_bf16")
    count = models.multiply_adds

    def no_kernels(model, spec):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor")
        return count(model, spec)

    monkeypatch.setattr(models, "multiply_adds", no_kernels)
    rnn = {"dataset": "digits", "model": {"name": "rnn", "hidden": 8}, "train": {"epochs": 1}}
    started, *_, finished = run(config.from_dict(rnn, "made"), out=tmp_path / "auto")
    assert finished.summary["precision"] == "float32"
    assert "can't compute this rnn in bfloat16" in next(
        choice.reason for choice in started.choices if choice.what == "precision"
    )
    with pytest.raises(DeviceError, match="use precision: float32"):
        next(run(config.from_dict({**rnn, "precision": "bfloat16"}, "made"), out=tmp_path / "asked"))
    assert not (tmp_path / "asked").exists()
