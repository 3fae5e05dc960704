"""The fresh process that runs exported files: python -m nnx.export._fresh FORMAT (FILE INPUTS.npz OUTPUTS.npz)..."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnx import export


def main() -> None:
    name, *paths = sys.argv[1:]
    exporter = export.exporter(name)
    if exporter.WITHOUT_TORCH:
        blocked: dict[str, Any] = sys.modules  # importing a module that is None fails
        blocked["torch"] = None
    for file, given, answers in zip(*(iter(paths),) * 3, strict=True):
        predict = exporter.load(Path(file))
        with np.load(given) as stored:
            outputs = [predict(stored[key]) for key in stored.files]
        np.savez(answers, *outputs)


if __name__ == "__main__":
    main()
