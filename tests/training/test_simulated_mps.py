"""Everything that runs on an Apple GPU, on a simulated one (see simulated_gpu.py): no float64, no operation that torch
has no kernel for there, and the CPU's results."""

from pathlib import Path

import pytest
import torch
from simulated_gpu import DEVICE, Refused, mps_kernels, simulated_gpu
from test_simulated_gpu import EAGER, MODELS, check_equal, combinations, explain_all, made, run_all, trained

import nnx
from nnx import config, explain
from nnx.errors import DeviceError
from nnx.run.dry_run import measure_throughput
from nnx.system import device as devices
from nnx.system import dropout
from nnx.training.step import StepMethod


@pytest.fixture(autouse=True)
def masks_of_the_device(monkeypatch):
    """Dropout draws the same masks on the CPU as torch does on a device."""
    monkeypatch.setattr(dropout, "draw_mask", dropout.bernoulli_mask)


@pytest.mark.parametrize("overrides", list(combinations()))
def test_training_gives_the_losses_of_the_cpu(overrides):
    _, expected, _ = trained(*overrides, *EAGER)
    with simulated_gpu(mps=True) as gpu:
        setup, events, _ = trained(*overrides)
        assert setup.runtime.device == DEVICE
        assert setup.step_method is StepMethod.AUTOGRAD
    check_equal(events, expected)
    assert gpu.operations > 100, "the control: operations ran on the device"


@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn", "transformer"])
def test_a_run_resumes_and_evaluates_as_on_the_cpu(name, tmp_path):
    settings = [*MODELS[name], "train.epochs=2", "train.ema=0.9", "train.film=true", "precision=float32"]
    settings += ["schedule=constant", "train.batch_size=256"]
    with simulated_gpu(mps=True):
        run_all(*settings, "train.epochs=1", out=tmp_path / "r", watch=True)
        path = run_all(*settings, out=tmp_path / "r", resume=tmp_path / "r")
        on_gpu = nnx.evaluate(path)
    on_cpu = nnx.evaluate(path)
    assert on_gpu["accuracy"] == on_cpu["accuracy"]
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn", "transformer", "table"])
def test_all_explainers_run_on_the_device(name, tmp_path):
    table = ["dataset={name: toy, kind: moons}", "train={epochs: 1, report: false}"]
    settings = table if name == "table" else [*MODELS[name], "train.epochs=1", "train.report=false"]
    path = run_all(*settings, "device=cpu", out=tmp_path / "r")
    with simulated_gpu(mps=True) as gpu:
        results = explain_all(Path(path), gpu)
    assert sum(isinstance(result, explain.Explanation) for result in results.values()) >= 2, results


def test_show_measures_on_the_device():
    with simulated_gpu(mps=True):
        measured = measure_throughput(made()[0], made()[0].loader(made()[1]), seconds=0.2)
    assert measured.steps > 0


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="device 'mps' not found; this machine has: cpu"):
        devices.choose_runtime("mps", "auto")
    assert config.load("digits_mlp", ["device=mps"]).device == "mps"


# ---------------------------------------------------------------- the simulation refuses what MPS would


def test_float64_is_refused():
    with simulated_gpu(mps=True):
        x = torch.ones(3, device=DEVICE)
        for mistake in (x.double, lambda: torch.ones(3, dtype=torch.float64).to(DEVICE)):
            with pytest.raises(Refused, match="float64"):
                mistake()


def test_an_operation_without_a_kernel_is_refused():
    assert "add.Tensor" in mps_kernels()
    assert len(mps_kernels()) > 1000
    with simulated_gpu(mps=True), pytest.raises(Refused, match="no kernel for MPS"):
        torch.linalg.eig(torch.eye(3, device=DEVICE))
