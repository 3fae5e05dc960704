"""The fresh process that runs an exported file: python -m nnx.export._fresh FORMAT FILE INPUTS.npz OUTPUTS.npz"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnx import export


def main() -> None:
    name, file, given, answers = sys.argv[1:]
    exporter = export.exporter(name)
    if exporter.WITHOUT_TORCH:
        blocked: dict[str, Any] = sys.modules  # importing a module that is None fails
        blocked["torch"] = None
    predict = exporter.load(Path(file))
    with np.load(given) as stored:
        outputs = [predict(stored[key]) for key in stored.files]
    np.savez(answers, *outputs)


if __name__ == "__main__":
    main()
