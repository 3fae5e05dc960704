"""Choose the device, precision and threads, each with its reason, and seed every step."""

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
from nnx.system import accelerator, distributed, platform

# Multiply-adds of the forward pass of a step. Two threads instead of one changed the throughput by a factor of 0.94 at
# 0.5 M, 0.98 at 7.1 M (digits_rnn), 1.06 at 10 M (digits_cnn), 1.15 at 6.7 M, 1.22 at 7.5 M and 1.49 at 30 M (MLPs).
# Medians of 4 alternating runs, two cores of an AMD EPYC 7002.
MULTIPLY_ADDS_PER_THREAD = 4_000_000
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device, the dtype of the computation (weights are always float32), and the reasons for these choices."""

    device: torch.device
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    channels_last: bool = False  # memory format of images: all channels of a pixel together

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, with the filters in the memory format of the images."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def replacing(self, other: Choice) -> "Runtime":
        """A copy in which `other` replaces the choice with the same `what`."""
        return replace(self, choices=tuple(other if choice.what == other.what else choice for choice in self.choices))

    def adding(self, *choices: Choice) -> "Runtime":
        """A copy with further `choices`."""
        return replace(self, choices=(*self.choices, *choices))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that runs a forward pass in `dtype`. It does nothing for float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)


def choose_runtime(
    device: str,
    precision: str,
    *,
    layout: str = "auto",
    channels_last: bool = False,
    prefers_bfloat16: bool = False,
) -> Runtime:
    """The runtime for a config's `device`, `precision` and `layout`, and for its architecture (see models.ModelConfig).

    Raises DeviceError if a device or precision requested by name is not available.
    """
    chosen, device_reason = _device(device)
    dtype, precision_reason = _precision(precision, chosen, prefers_bfloat16)
    product = accelerator.product_name(chosen)
    choices = [
        Choice("device", f"{chosen} ({product})" if product else str(chosen), device_reason),
        Choice("precision", str(dtype).removeprefix("torch."), precision_reason),
    ]
    if channels_last:
        channels_last, layout_reason = _channels_last(layout, chosen)
        choices.append(Choice("layout", "channels last" if channels_last else "channels first", layout_reason))
    return Runtime(chosen, dtype, tuple(choices), channels_last)


def set_threads(requested: int | Literal["auto"], multiply_adds: int) -> Choice:
    """Set torch's number of CPU threads. "auto" chooses it from the multiply-adds of the forward pass of a step."""
    processes = distributed.current().local_world
    cores = max(1, available_cores() // processes)
    if requested != "auto":
        threads, reason = requested, "as requested"
    elif "OMP_NUM_THREADS" in os.environ:
        threads, reason = torch.get_num_threads(), "OMP_NUM_THREADS is set"
    else:
        threads = max(1, min(cores, multiply_adds // MULTIPLY_ADDS_PER_THREAD))
        if threads < cores:
            reason = f"a step of {multiply_adds / 1e6:,.1f} M multiply-adds is too small for more"
        else:
            per_process = f" for each of {processes} processes" if processes > 1 else ""
            reason = f"{cores} core{'s' * (cores != 1)} available{per_process}"
    torch.set_num_threads(threads)
    return Choice("threads", str(threads), reason)


@cache
def available_cores() -> int:
    """The number of cores that this process may use: the smallest of torch's count of physical cores, the CPU affinity
    and the CPU quota of the container."""
    cores = min(torch.get_num_threads(), platform.cores())
    quota = platform.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def load_meta_kernels() -> None:
    """Load torch's kernels for the meta device, which compute only shapes. The command line starts without them (see
    nnx.cli._start)."""
    import torch._meta_registrations  # noqa: F401


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seed the device's generator for one step, so that its dropout depends on (seed, step) only."""
    accelerator.seed_generator(device, mix_seed(seed, step))


def mix_seed(seed: int, *counters: int) -> int:
    """A 63-bit seed from several small numbers. Adjacent numbers give unrelated seeds: the finaliser of SplitMix64
    (Steele et al. 2014) mixes them."""
    value = seed
    for counter in counters:
        value = (value + (counter + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def environment_fingerprint(chosen: Runtime) -> dict[str, str | int]:
    """What the bits of a training run depend on besides config and data. On a CPU, equal fingerprints give equal
    bits."""
    versions = environment()
    fingerprint = {key: versions[key] for key in ("nnx", "torch", "machine", "cpu")}
    instructions = {"instructions": torch.backends.cpu.get_cpu_capability()}
    return fingerprint | instructions | {choice.what: choice.value for choice in chosen.choices}


def set_deterministic(device: torch.device) -> Choice:
    """Make a GPU compute bit-identical results, at a cost in speed. A CPU always does. Not tested yet: no GPU was
    available."""
    if device.type == "cpu":
        return Choice("deterministic", "true", "always the case on a cpu, at no cost")
    # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    return Choice("deterministic", "true", "as requested; its kernels are slower, by how much was not measured")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that torch, numpy or Python ran out of memory, of the device or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


@contextmanager
def explain_out_of_memory(cure: str) -> Iterator[None]:
    """Inside, running out of memory raises a MachineError with the size of the allocation, if known, and the `cure`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        request = ""
        if match := re.search(r"[Tt]ried to allocate ([0-9.]+) ?([KMG]i?B|bytes)", str(error)):
            size = f"{int(match[1]) / 2**20:,.0f} MiB" if match[2] == "bytes" else f"{match[1]} {match[2]}"
            request = f": can't allocate {size}"
        raise MachineError(f"out of memory{request}. {cure}") from None


def environment() -> dict[str, str | int]:
    """The versions, hardware and threads that results depend on, besides config and data."""
    from platform import machine, processor, python_version

    return {
        "nnx": _version(),
        "torch": torch.__version__,
        "python": python_version(),
        "machine": machine(),
        "cpu": platform.cpu_info("model name") or processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _device(name: str) -> tuple[torch.device, str]:
    """The device for a config's `device`, and the reason. Raises DeviceError if it is not available."""
    if distributed.current().world > 1:
        return _device_of_rank(name)
    if name != "auto":
        _check_device(name)
        return torch.device(name), "as requested"
    return accelerator.default_device()


def _device_of_rank(name: str) -> tuple[torch.device, str]:
    """One GPU for each process, or the CPU for all. Not tested with GPUs yet: none was available."""
    _, _, local_rank, processes = distributed.current()
    gpus = accelerator.count_gpus()
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu"), "as requested" if name == "cpu" else "no GPU found that several processes can use"
    if name in ("auto", "cuda") and processes <= gpus:
        return torch.device("cuda", local_rank), "one GPU for each process"
    requirement = f"{processes} processes need a GPU each (device: cuda), {gpus} found"
    raise DeviceError(f"device {name!r}: {requirement}; or use device: cpu")


def _check_device(name: str) -> None:
    """Raises DeviceError if this machine has no device of this name."""
    available = accelerator.list_devices()
    if name not in available:
        raise DeviceError(f"device {name!r} not found; this machine has: {', '.join(available)}")


def _precision(name: str, device: torch.device, prefers_bfloat16: bool) -> tuple[torch.dtype, str]:
    """The dtype for a config's `precision`, and the reason. Raises DeviceError if the device does not support it."""
    if name == "auto":
        if accelerator.multiplies_bfloat16(device):
            return torch.bfloat16, f"supported by the tensor cores of {device}"
        if device.type == "cpu" and prefers_bfloat16 and _has_bfloat16_instructions():
            return torch.bfloat16, "this CPU has instructions for it"
        return torch.float32, f"full precision, the safe choice on {device.type}"
    if name == "float16" and device.type == "cpu":
        raise DeviceError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
    return PRECISIONS[name], "as requested"


def _channels_last(layout: str, device: torch.device) -> tuple[bool, str]:
    """Whether a CNN should use the channels-last memory format for a config's `layout` on `device`, and the reason."""
    if layout != "auto":
        return layout == "channels_last", "as requested"
    if accelerator.is_cuda(device):
        return True, "the native layout of tensor cores"
    # mnist_cnn, batches of 128: 1.5 times as fast on a Zen 2 (AVX2), 1.4 on a Zen 4 (AVX-512) in float32 and bfloat16,
    # 1.8 and 2.1 on a Xeon with AMX
    if device.type == "cpu" and "avx2" in platform.cpu_info("flags").split():
        return True, "faster on CPUs with AVX2"
    return False, f"PyTorch's default; channels last was not measured on a {device.type} like this"


def _has_bfloat16_instructions() -> bool:
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(platform.cpu_info("flags").split())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nnx")
    except PackageNotFoundError:
        return "unknown"
