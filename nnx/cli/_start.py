"""Start and leave quickly: half of a short run's time is torch being imported and taken down again."""

import contextlib
import gc
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn

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
