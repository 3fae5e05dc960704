"""What differs between kinds of devices: the only file of nnx that tests for CUDA or MPS.

Each function answers one question about a device. A device of a kind that is not named here is treated as a CPU is.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def is_mps(device: torch.device) -> bool:
    return device.type == "mps"


def list_devices() -> list[str]:
    """The values of the config's `device` that this machine has, without "auto"."""
    gpus = count_gpus()
    mps = torch.backends.mps.is_available()
    return ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{n}" for n in range(gpus)), *(["mps"] if mps else [])]


def count_gpus() -> int:
    """The number of CUDA devices."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def default_device() -> tuple[torch.device, str]:
    """The fastest device of this machine, and the reason."""
    if torch.cuda.is_available():
        return torch.device("cuda"), "CUDA device found"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "Apple GPU found"
    return torch.device("cpu"), "no GPU found"


def product_name(device: torch.device) -> str:
    """The name of a CUDA device, such as "NVIDIA H100 80GB HBM3"; empty for other devices."""
    return torch.cuda.get_device_name(device) if is_cuda(device) else ""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA device has tensor cores for bfloat16. False for other devices: ask the CPU by its flags."""
    return is_cuda(device) and torch.cuda.is_bf16_supported()


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout on this device draws from.

    `torch.manual_seed` would seed all devices, and would record the whole call stack if CUDA is available but not
    initialised.
    """
    if is_mps(device):
        torch.mps.manual_seed(seed)
    elif is_cuda(device):
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def free_memory(device: torch.device) -> int | None:
    """Bytes of free memory of a CUDA device. None for devices that use the computer's memory."""
    return torch.cuda.mem_get_info(device)[0] if is_cuda(device) else None


def peak_memory(device: torch.device) -> int | None:
    """Bytes of a CUDA device's memory that this process used at most so far. None for other devices."""
    return torch.cuda.max_memory_allocated(device) if is_cuda(device) else None


def records_graphs(device: torch.device) -> bool:
    """Whether steps on this device can be recorded and replayed as one (CUDA graphs)."""
    return is_cuda(device)


def differentiable_rnn(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, recurrent layers have gradients in evaluation mode too: cuDNN's kernels do not, PyTorch's own do."""
    return torch.backends.cudnn.flags(enabled=False) if is_cuda(device) else nullcontext()


def collective_backend(device: torch.device) -> str:
    """The backend of torch.distributed for tensors on the CPU and on this device; a CUDA device becomes the current
    one. Not run on a GPU yet."""
    if not is_cuda(device):
        return "gloo"
    torch.cuda.set_device(device)
    return "cpu:gloo,cuda:nccl"


def fuses_optimizers(device: torch.device) -> bool:
    """Whether torch has a kernel for this device that updates all parameters at once."""
    return device.type == "cpu" or is_mps(device) or is_cuda(device)
