"""The tools that nnx is compared with, each in its own virtual environment in the user's cache, with our torch."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import platformdirs
from benchmarks.measure import Failed

PACKAGES = {
    "lightning": ["lightning"],
    "keras": ["keras", "jax"],
    "skorch": ["skorch"],
    "fastai": ["fastai"],
}  # scikit-learn is installed with nnx


def python(peer: str) -> str:
    """The Python executable with `peer`, which is installed first if needed. Raises Failed if that fails."""
    if peer not in PACKAGES:
        return sys.executable
    folder = platformdirs.user_cache_path("nnx") / "bench" / peer
    executable, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing {peer} into {folder}", file=sys.stderr)
        command = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[peer]]
        try:
            venv.create(folder, clear=True, with_pip=True)
            # torch is large: with this file, pip finds ours
            (site_packages(folder) / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise Failed(f"not installed: {lines[-1]}") from None
        done.touch()
    return str(executable)


def site_packages(folder: Path) -> Path:
    """The site-packages folder of the environment in `folder`."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
