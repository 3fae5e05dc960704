"""nnx init [RECIPE]"""

from pathlib import Path
from typing import Annotated

import typer

from nnx.cli._options import Out


def init(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (nnx list recipes).")] = "digits_mlp",
    out: Out = None,
) -> None:
    """Write a recipe into the current folder (or --out), to start from."""
    from nnx import config
    from nnx.config import registry
    from nnx.errors import InputError
    from nnx.system import files

    known = config.recipes()
    if recipe not in known:
        raise InputError(f"{recipe}: no such recipe{registry.suggest(recipe, known)}")
    path = (out or Path()) / f"{recipe}.yaml"
    if path.exists():
        raise InputError(f"{path}: is there already; name another folder by --out, or delete it")
    files.write(path, known[recipe].read_text(encoding="utf-8"))
    print(f"wrote {path}. Train it: nnx train {path}")  # noqa: T201
