"""Process-wide changes with which the command line starts and ends quickly. As a library, nnx makes none of them.

- `check_memory_limits`: refuses a limit on memory too low to import torch
- `import_torch`: puts a stub in place of one torch module, adapts how threads wait for each other, avoids importing
  torch._dynamo, and handles SIGBUS, the signal of a memory-mapped file that was shortened
- `import_help`: puts stubs in place of two modules of rich
- `keep_freed_memory`: makes glibc keep freed memory
- `exit_quickly`: ends the process without unloading torch's libraries
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import sys
from types import ModuleType
from typing import NoReturn

from nnx.errors import MachineError
from nnx.system import platform

# option numbers of mallopt, from glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
_handlers: list[object] = []  # kept alive for C
# MB. A short training takes 1,025 of data, 3,825 of addresses, the import of torch 770 and 3,310 (torch 2.14, CUDA,
# two threads). Below these limits libraries end the process (SIGSEGV, SIGABRT, code 127), or a training waits for ever.
NEEDED = {"-d": 1000, "-v": 3300}  # by the option of ulimit: data, addresses
DEFERRED = "torch._meta_registrations"
TESTED = ("2.14.",)  # versions of torch tested without the deferred module; others are imported completely


def check_memory_limits() -> None:
    """Raises MachineError if a limit on this process's memory is too low to import torch."""
    for option, allowed in platform.memory_limits().items():
        needed = NEEDED[option]
        if allowed < needed * 2**20:
            problem = f"allows {allowed // 2**20:,} MB of memory, too little to import torch, which needs {needed:,} MB"
            raise MachineError(f"ulimit {option} {problem}; raise it (ulimit {option} unlimited)")


def import_torch() -> None:
    """Import torch in three quarters of the time: 1.13 s instead of 1.49 (medians of 3, two cores of an AMD EPYC 7002,
    torch 2.14).

    Garbage collection is off meanwhile (0.16 s), as an import produces no garbage. The Python kernels that compute
    shapes only (0.33 s, 0.2 s of it saved) are deferred until something needs them: torch's compiler, torchvision, or
    `device.load_meta_kernels`.

    Unless OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, torch's waiting threads spin on free cores and sleep beside other
    busy processes (see nnx.system.waiting). Where the system does not tell which, they spin for about 20 us.
    """
    if "torch" in sys.modules:
        return
    check_memory_limits()
    adapts = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if adapts and not os.path.exists("/proc/self/schedstat"):
        os.environ["GOMP_SPINCOUNT"] = "1000"
    if "RANK" in os.environ:  # if a rank dies, torch would print the other ranks' C++ stacks as a warning
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from importlib.metadata import version

    defer = version("torch").startswith(TESTED)
    gc.disable()
    if defer:
        sys.modules[DEFERRED] = ModuleType(DEFERRED)
    import torch

    gc.freeze()  # these objects live until the end: the collector need not scan them
    gc.enable()
    if defer:
        del sys.modules[DEFERRED], torch._meta_registrations
        try:
            torch.Generator()
        except RuntimeError:  # torch 2.14 needs this part of them first
            importlib.import_module("torch._prims.rng_prims")
        sys.meta_path.insert(0, _DeferredImport())
    _avoid_dynamo()
    _exit_on_bus_error()
    if adapts:
        from nnx.system.waiting import adapt_waiting

        adapt_waiting()


def _exit_on_bus_error() -> None:
    """Print an error and exit with 3 where reading a memory-mapped file that was shortened would kill the process.

    A handler in Python can't: it would run only after the instruction that failed, which is repeated for ever.
    """
    library = platform.c_library()
    if not library or not hasattr(signal, "SIGBUS"):
        return

    def exit_with_message(number: int) -> None:
        mapped = sys.modules.get("nnx.datasets._mapped")
        if mapped and (path := mapped.find_shortened()):
            os.write(2, os.fsencode(f"error: {path}: {mapped.SHORTENED}\n"))
            os._exit(3)
        os.write(2, b"error: the memory or the disk failed (SIGBUS)\n")
        os._exit(3)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(exit_with_message)
    _handlers.append(handler)
    library.signal(signal.SIGBUS, handler)


def _avoid_dynamo() -> None:
    """Make the methods that torch wraps in `torch._disable_dynamo` callable without importing torch._dynamo (1.3 s).

    If torch._dynamo is not loaded, there is nothing to disable. If torch no longer wraps them, nothing changes.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        function = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if function and "torch._dynamo" not in sys.modules and not hasattr(function, "__dynamo_disable"):
            function.__dynamo_disable = function


def import_help() -> None:
    """Import typer's help without rich's Markdown and Traceback, which nnx's help does not use and which take a third
    of its time.

    The stubs exist only while typer imports them; later imports get the real modules.
    """
    stubs = {name: ModuleType(name) for name in ("rich.markdown", "rich.traceback") if name not in sys.modules}
    for name, stub in stubs.items():
        setattr(stub, name.removeprefix("rich.").capitalize(), object)
    sys.modules.update(stubs)
    import typer.rich_utils  # noqa: F401

    for name in stubs:
        del sys.modules[name]


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, instead of returning it to the system and faulting it in again at the next step.

    Otherwise glibc maps and unmaps large activations at every step. With this, mnist_cnn trained 8,134 samples per
    second instead of 6,684, mnist_transformer 5,572 instead of 5,259, mnist_mlp 68,577 instead of 67,658 (medians of 4
    processes, A B A B, two cores of an AMD EPYC 7002, torch 2.14). Does nothing without glibc.
    """
    mallopt = getattr(platform.c_library(), "mallopt", None)
    if not mallopt:
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)


class _DeferredImport:
    """Import hook that imports the deferred module before any module that depends on it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("torch._dynamo", "torch._prims", "torch._decomp", "torch._refs"):
            sys.meta_path.remove(self)
            importlib.import_module(DEFERRED)


def exit_quickly(code: int) -> NoReturn:
    """End the process. If torch is loaded, skip unloading its libraries, which takes 0.3 s and touches 130 MB."""
    if "torch" not in sys.modules:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader closed it
            stream.flush()
    os._exit(code)
