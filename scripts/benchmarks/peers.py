"""The tools that nnx is measured against, each in a virtual environment of its own in the user's cache, which sees our
torch."""

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
}  # scikit-learn is ours


def python(peer: str) -> str:
    """The Python that has `peer`, installed now if it is not yet. Raises Failed where it can't be."""
    if peer not in PACKAGES:
        return sys.executable
    folder = platformdirs.user_cache_path("nnx") / "bench" / peer
    executable, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing {peer} into {folder}", file=sys.stderr)
        command = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[peer]]
        try:
            venv.create(folder, clear=True, with_pip=True)
            # torch is large: pip finds ours and is content with it
            (site_packages(folder) / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise Failed(f"not installed: {lines[-1]}") from None
        done.touch()
    return str(executable)


def site_packages(folder: Path) -> Path:
    """Where the environment in `folder` keeps its packages."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
