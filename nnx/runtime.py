"""Where and how to compute: device, precision, threads, each with the reason for the choice; and the seed of every step."""

import ctypes
import os
from dataclasses import dataclass

import torch

from nnx.errors import DeviceError
from nnx.events import Choice

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device, the dtype of the arithmetic (weights are float32 always), and why."""

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, ...]

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass runs in `dtype`; does nothing for float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def choose(device: str, precision: str) -> Runtime:
    """The runtime for a config's `device` and `precision`. Raises DeviceError where one is asked for by name and is not there."""
    chosen, device_reason = _device(device)
    dtype, precision_reason = _precision(precision, chosen)
    return Runtime(
        chosen,
        dtype,
        (
            Choice("device", f"{chosen}{_described(chosen)}", device_reason),
            Choice("precision", str(dtype).removeprefix("torch."), precision_reason),
        ),
    )


def keep_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system and faulting it in again at the next step.

    Large activations are otherwise mapped and unmapped at every step: mnist_cnn trained 2,759 samples a second with this and 1,267
    without (median of 25 steps, one process each, not interleaved, on a noisy pair of 2.5 GHz Xeon cores; torch 2.15). Elsewhere than on
    glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one step, so that its dropout depends on (seed, step) and on nothing before it."""
    torch.manual_seed(mix(seed, step))


def mix(seed: int, *counters: int) -> int:
    """One 63-bit seed out of several small numbers, far apart for neighbours (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = seed
    for counter in counters:
        value = (value + (counter + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def environment() -> dict[str, str | int]:
    """What results depend on beyond config and data: versions, hardware, threads."""
    import platform

    return {
        "nnx": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _device(name: str) -> tuple[torch.device, str]:
    if name != "auto":
        _check_device(name)
        return torch.device(name), "as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is there"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "Apple's GPU is there"
    return torch.device("cpu"), "no GPU found"


def _check_device(name: str) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{n}" for n in range(gpus)), *(["mps"] if mps else [])]
    if name not in known:
        raise DeviceError(f"device {name!r} is not there; this machine has: {', '.join(known)}")


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f" ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f" ({threads} thread{'s' * (threads != 1)})" if device.type == "cpu" else ""


def _precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    if name == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16, f"tensor cores of {device} take it"
        return torch.float32, f"exact, and the safe choice on {device.type}"
    if name == "float16" and device.type == "cpu":
        raise DeviceError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
    return PRECISIONS[name], "as asked"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nnx")
    except PackageNotFoundError:
        return "unknown"
