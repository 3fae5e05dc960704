"""nnx list [KIND]"""

from enum import StrEnum
from typing import Annotated

import typer

from nnx.cli._options import Json, print_json


class Kind(StrEnum):
    """What there is to choose from."""

    recipes = "recipes"
    models = "models"
    datasets = "datasets"
    losses = "losses"
    optimizers = "optimizers"
    schedules = "schedules"


SINGULAR = {"models": "model", "datasets": "dataset", "losses": "loss", "optimizers": "optimizer", "schedules": "schedule"}


def list_parts(kind: Annotated[Kind | None, typer.Argument(help="Only this kind.", show_default=False)] = None, json: Json = False) -> None:
    """List the recipes, models, datasets, losses, optimizers and schedules, each with what it is."""
    found = {each.value: _described(each) for each in ([kind] if kind else Kind)}
    if json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, entries in found.items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, description in entries.items():
            table.add_row(name, description)
        console.print(f"[bold]{title}[/]" if kind is None else "", table, sep="\n" if kind is None else "")


def _described(kind: Kind) -> dict[str, str]:
    """Each name of a kind, with the first line of its file or class."""
    from nnx import config, parts

    if kind is Kind.recipes:
        return {name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for name, path in config.recipes().items()}
    one = SINGULAR[kind]
    described = {}
    for name in parts.names(one):
        home = parts.module(one, name)
        text = home.__doc__ if hasattr(home, "Config") else parts.find(one, name).__doc__
        described[name] = (text or "").strip().partition("\n")[0]
    return described
