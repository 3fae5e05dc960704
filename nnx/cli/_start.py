"""All that the command line changes in the whole process, so that it starts and ends quickly. Used as a library, nnx
changes none of it.

- `import_torch`: a stand-in for a module of torch, waiting threads that sleep, optimizers that leave torch._dynamo out
- `import_help`: stand-ins for two modules of rich
- `keep_freed_memory`: glibc keeps freed memory
- `leave`: ends the process without taking down torch's libraries
"""

import contextlib
import ctypes
import gc
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
LEFT_OUT = "torch._meta_registrations"
TRIED = ("2.14.",)  # versions of torch that were seen to do without; others are imported whole


def import_torch() -> None:
    """Import torch in three quarters of the time: 1.13 s instead of 1.49 (medians of 3, two cores of an AMD EPYC 7002,
    torch 2.14).

    Nothing is collected meanwhile (0.16 s), as nothing of it is garbage. The kernels in Python that tell shapes without
    computing (0.33 s, 0.2 s of it saved) are left out until something asks for them: torch's compiler, torchvision, or
    `runtime.whole_torch`.

    Threads that wait go to sleep after some 20 us, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT says otherwise. GNU
    OpenMP's own would spin for some ms: beside other busy processes, each operation then waits for the thread that
    spins to be taken off its core (see README).
    """
    if "torch" in sys.modules:
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "RANK" in os.environ:
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # where a rank dies, torch would show the others' C++ stacks as a warning
    from importlib.metadata import version

    without = version("torch").startswith(TRIED)
    gc.disable()
    if without:
        sys.modules[LEFT_OUT] = ModuleType(LEFT_OUT)
    import torch

    gc.freeze()  # what is there now stays, so it needs no looking through
    gc.enable()
    if without:
        del sys.modules[LEFT_OUT], torch._meta_registrations
        try:
            torch.Generator()
        except RuntimeError:  # torch 2.14 wants this part of them first
            importlib.import_module("torch._prims.rng_prims")
        sys.meta_path.insert(0, _LeftOut())
    _leave_dynamo_out()


def _leave_dynamo_out() -> None:
    """Make what torch wraps in `torch._disable_dynamo` callable without importing torch._dynamo, which takes 1.3 s.

    Where torch._dynamo is not loaded, there is nothing to disable. Where torch no longer wraps in this way, nothing
    changes.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        function = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if function and "torch._dynamo" not in sys.modules and not hasattr(function, "__dynamo_disable"):
            function.__dynamo_disable = function


def import_help() -> None:
    """typer's help imports rich's Markdown and Traceback, which our help has no use for, and which take a third of its
    time.

    The stand-ins are there only while typer looks for them; whoever wants the real ones later gets them.
    """
    stand_ins = {name: ModuleType(name) for name in ("rich.markdown", "rich.traceback") if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        setattr(stand_in, name.removeprefix("rich.").capitalize(), object)
    sys.modules.update(stand_ins)
    import typer.rich_utils  # noqa: F401

    for name in stand_ins:
        del sys.modules[name]


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system and faulting it in again at the next step.

    Large activations are otherwise mapped and unmapped at every step: with this, mnist_cnn trained 8,134 samples a
    second, not 6,684, mnist_transformer 5,572, not 5,259, mnist_mlp 68,577, not 67,658 (medians of 4 processes, A B A
    B, two cores of an AMD EPYC 7002, torch 2.14). Elsewhere than on glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)


class _LeftOut:
    """Brings what was left out before anything that counts on it is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("torch._dynamo", "torch._prims", "torch._decomp", "torch._refs"):
            sys.meta_path.remove(self)
            importlib.import_module(LEFT_OUT)


def leave(code: int) -> NoReturn:
    """End the process. Where torch is loaded, without taking down its libraries one by one, which takes 0.3 s and
    touches 130 MB."""
    if "torch" not in sys.modules:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
