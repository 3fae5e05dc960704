"""Packages that an extra of nnx installs."""

import importlib.util
from collections.abc import Sequence

from nnx.errors import MachineError


def require(packages: Sequence[str], extra: str, where: str) -> None:
    """Raises MachineError, which names what needs them, if one of these packages is not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        be = "are" if len(missing) > 1 else "is"
        names = " and ".join(missing) if len(missing) < 3 else f"{', '.join(missing[:-1])} and {missing[-1]}"
        raise MachineError(f"{where}: needs {names}, which {be} not installed; run: pip install 'nnx[{extra}]'")
