"""Where and how to compute: device, precision, threads, each with the reason for the choice; and the seed of every
step."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from nnx.errors import DeviceError, MachineError
from nnx.events import Choice
from nnx.system import distributed

# Multiply-adds of a step, forward. Two threads instead of one gave 0.94 times the samples at 0.5 M, 0.98 at 7.1 M
# (digits_rnn), 1.06 at 10 M (digits_cnn), 1.15 at 6.7 M, 1.22 at 7.5 M and 1.49 at 30 M (MLPs); medians of 4, in turns,
# two cores of an AMD EPYC 7002.
MULTIPLY_ADDS_PER_THREAD = 4_000_000
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device, the dtype of the arithmetic (weights are float32 always), and why."""

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    channels_last: bool = False  # images lie in memory pixel by pixel, each with all its channels

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def place(self, model: nn.Module) -> nn.Module:
        """`model`, moved to the device, its filters laid out as the images will be."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def replacing(self, other: Choice) -> "Runtime":
        """The same, with another choice in the place of the one about the same."""
        return replace(self, choices=tuple(other if choice.what == other.what else choice for choice in self.choices))

    def adding(self, *choices: Choice) -> "Runtime":
        """The same, with further choices noted."""
        return replace(self, choices=(*self.choices, *choices))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a forward pass runs in `dtype`; nothing for float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)


def choose_runtime(
    device: str,
    precision: str,
    *,
    channels_last: bool = False,
    bfloat16_speedup: float | None = None,
) -> Runtime:
    """The runtime for a config's `device` and `precision`, and what its architecture states (see models.ModelConfig).

    Raises DeviceError where a device or precision is asked for by name and is not there.
    """
    chosen, device_reason = _device(device)
    dtype, precision_reason = _precision(precision, chosen, bfloat16_speedup)
    choices = [
        Choice("device", f"{chosen}{_described(chosen)}", device_reason),
        Choice("precision", str(dtype).removeprefix("torch."), precision_reason),
    ]
    pays = False
    if channels_last:
        pays, layout_reason = _channels_last(chosen)
        choices.append(Choice("layout", "channels last" if pays else "channels first", layout_reason))
    return Runtime(chosen, dtype, tuple(choices), pays)


def set_threads(wanted: int | Literal["auto"], multiply_adds: int) -> Choice:
    """Have torch use so many threads for the CPU part of a step of so many `multiply_adds`, forward; auto: as many as
    pay off."""
    processes = distributed.current().local_world
    cores = max(1, available_cores() // processes)
    if wanted != "auto":
        threads, reason = wanted, "as asked"
    elif "OMP_NUM_THREADS" in os.environ:
        threads, reason = torch.get_num_threads(), "OMP_NUM_THREADS"
    else:
        threads = max(1, min(cores, multiply_adds // MULTIPLY_ADDS_PER_THREAD))
        few = f"a step of {multiply_adds / 1e6:,.1f} M multiply-adds is too small for more"
        each = f" for each of {processes} processes" if processes > 1 else ""
        reason = few if threads < cores else f"{cores} core{'s' * (cores != 1)} to be had{each}"
    torch.set_num_threads(threads)
    return Choice("threads", str(threads), reason)


@cache
def available_cores() -> int:
    """Cores that this process may use: torch's count of physical cores, less where its affinity or its container's
    share is smaller."""
    cores = [
        torch.get_num_threads(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    ]
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        cores += [math.ceil(int(quota) / int(period))] if quota != "max" else []
    except (OSError, ValueError):
        pass
    return min(cores)


def load_meta_kernels() -> None:
    """Bring what the command line leaves out of torch at its start (see nnx.cli._start): shapes without computing, on
    the meta device."""
    import torch._meta_registrations  # noqa: F401


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seed the device's generator for one step, so that its dropout depends on (seed, step) and on nothing before it.

    `torch.manual_seed` would seed all devices, and first note down the whole call stack where CUDA is there but not in
    use.
    """
    if device.type == "mps":
        torch.mps.manual_seed(mix_seed(seed, step))
    else:
        generator = (
            torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        )
        generator.manual_seed(mix_seed(seed, step))


def mix_seed(seed: int, *counters: int) -> int:
    """One 63-bit seed out of several small numbers, far apart for neighbours (the finaliser of SplitMix64, Steele et
    al. 2014)."""
    value = seed
    for counter in counters:
        value = (value + (counter + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def environment_fingerprint(chosen: Runtime) -> dict[str, str | int]:
    """What the bits of a training run depend on besides config and data: equal fingerprints on a CPU, equal bits."""
    there = environment()
    kept = {key: there[key] for key in ("nnx", "torch", "machine", "cpu")}
    instructions = {"instructions": torch.backends.cpu.get_cpu_capability()}
    return kept | instructions | {choice.what: choice.value for choice in chosen.choices}


def set_deterministic(device: torch.device) -> Choice:
    """Have a GPU compute equal bits from equal bits, which costs time; a CPU does anyway. Not run yet: no GPU was
    there."""
    if device.type == "cpu":
        return Choice("deterministic", "true", "as it always is on a cpu: at no cost")
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    return Choice(
        "deterministic", "true", "as asked; kernels that add in a fixed order are slower, by how much was not measured"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy or Python ran out of memory: the device's or the computer's."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def explain_out_of_memory(cure: str) -> Iterator[None]:
    """Inside, running out of memory is a MachineError that says how much was asked for, where that is known, and the
    `cure`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"[Tt]ried to allocate ([0-9.]+) ?([KMG]i?B|bytes)", str(error))
        size = (
            ""
            if not asked
            else f"{int(asked[1]) / 2**20:,.0f} MiB"
            if asked[2] == "bytes"
            else f"{asked[1]} {asked[2]}"
        )
        raise MachineError(f"out of memory{f' at {size} more' if size else ''}. {cure}") from None


def environment() -> dict[str, str | int]:
    """What results depend on beyond config and data: versions, hardware, threads."""
    import platform

    return {
        "nnx": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpuinfo("model name"),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _device(name: str) -> tuple[torch.device, str]:
    if distributed.current().world > 1:
        return _device_of_rank(name)
    if name != "auto":
        _check_device(name)
        return torch.device(name), "as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is there"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "Apple's GPU is there"
    return torch.device("cpu"), "no GPU found"


def _device_of_rank(name: str) -> tuple[torch.device, str]:
    """A GPU of its own for each process, or the CPU for all. Not run yet with a GPU: none was there."""
    _, _, local_rank, processes = distributed.current()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu"), "as asked" if name == "cpu" else "no GPU found that several processes can use"
    if name in ("auto", "cuda") and processes <= gpus:
        return torch.device("cuda", local_rank), "a GPU for each process"
    raise DeviceError(
        f"device {name!r}: {processes} processes need a GPU each (device: cuda), and there are {gpus}; or use device: cpu"
    )


def _check_device(name: str) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{n}" for n in range(gpus)), *(["mps"] if mps else [])]
    if name not in known:
        raise DeviceError(f"device {name!r} is not there; this machine has: {', '.join(known)}")


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f" ({torch.cuda.get_device_name(device)})"
    return ""


def _precision(name: str, device: torch.device, bfloat16_speedup: float | None) -> tuple[torch.dtype, str]:
    if name == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16, f"tensor cores of {device} take it"
        if device.type == "cpu" and bfloat16_speedup and _multiplies_bfloat16():
            speedup = f"measured {bfloat16_speedup}x faster for this architecture"
            return torch.bfloat16, f"{speedup} on a CPU that multiplies it, as this one does"
        return torch.float32, f"exact, and the safe choice on {device.type}"
    if name == "float16" and device.type == "cpu":
        raise DeviceError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
    return PRECISIONS[name], "as asked"


def _channels_last(device: torch.device) -> tuple[bool, str]:
    """Whether images should lie so for a CNN, and why."""
    if device.type == "cuda":
        return True, "what tensor cores convolve"
    if device.type == "cpu" and "avx2" in _cpuinfo("flags").split() and "avx512f" not in _cpuinfo("flags").split():
        return True, "measured 1.5x faster for cnn on a CPU with AVX2"
    return False, f"torch's own; channels last was slower, or not measured, on {device.type}s like this"


def _multiplies_bfloat16() -> bool:
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
    except OSError:
        return ""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nnx")
    except PackageNotFoundError:
        return "unknown"
