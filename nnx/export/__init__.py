"""A trained network as a file for other programs. Each format is one file here; the file name is the format's name.

The first line of the file says what the format is for. The file has

    ENDING = ".onnx"                   # of the exported file's name
    PACKAGES = ("onnx", ...)           # that it needs, of the extra nnx[export]
    TOLERANCE = 1e-4                   # largest difference of a probability from PyTorch's that is accepted
    WITHOUT_TORCH = True               # whether the check runs the exported file without torch
    encode(network, facts) -> {ending: bytes}          # the exported file, and others beside it, by their endings
    load(path) -> function from raw inputs to probabilities     # called in a fresh process

`network` takes raw inputs and returns probabilities (see `_network`), so that preprocessing can't stay behind. A file
is kept only if `_check` finds that it predicts what PyTorch does.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from nnx.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nnx.export._network import ExportedNetwork

Predict = Callable[["NDArray[Any]"], "NDArray[Any]"]
"""(B, ...) raw inputs -> (B, K) probabilities."""


class Exporter(Protocol):
    """The file of a format, as this package's docstring describes it."""

    ENDING: str
    PACKAGES: tuple[str, ...]
    TOLERANCE: float
    WITHOUT_TORCH: bool

    def encode(self, network: "ExportedNetwork", facts: dict[str, Any]) -> dict[str, bytes]: ...

    def load(self, path: Path) -> Predict: ...


def names() -> list[str]:
    """The names of all formats, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def exporter(name: str) -> Exporter:
    """The exporter of a format. Raises InputError if there is none of that name."""
    if name not in (known := names()):
        from nnx.config.registry import suggest  # imports pydantic, which `nnx --help` does not need

        raise InputError(f"--format {name}: unknown format{suggest(name, known)}")
    return cast(Exporter, importlib.import_module(f"{__name__}.{name}"))


def check_packages(name: str) -> None:
    """Raises MachineError if a package that this format needs is not installed."""
    from nnx.system import packages

    packages.require(exporter(name).PACKAGES, "export", f"--format {name}")
