"""nnx init [RECIPE]: copy a recipe."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nnx.cli._options import Out


def init(
    recipe: Annotated[str, typer.Argument(help="Name of the recipe (nnx list recipes).")] = "digits_mlp",
    out: Out = None,
) -> None:
    """Copy a recipe into the current folder, as a starting point."""
    from nnx import config
    from nnx.config import registry
    from nnx.errors import InputError, printable
    from nnx.formatting import print_wrapped
    from nnx.system import files

    recipes = config.recipes()
    if recipe not in recipes:
        raise InputError(f"{recipe}: no such recipe{registry.suggest(recipe, recipes)}")
    if out and out.suffix in (".yaml", ".yml"):
        raise InputError(
            f"--out {out}: names the folder to copy the recipe to, not the file; rename the file afterwards"
        )
    path = (out or Path()) / f"{recipe}.yaml"
    if path.exists():
        raise InputError(f"{path}: already exists; name another folder with --out, or delete the file")
    files.write(path, recipes[recipe].read_text(encoding="utf-8"))
    written = printable(str(path))
    print_wrapped(f"wrote {written}. Train with: nnx train {written}", sys.stdout)
