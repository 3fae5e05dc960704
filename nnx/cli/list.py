"""nnx list [KIND]"""

import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer

from nnx.cli._options import Json, print_json
from nnx.errors import InputError, printable


class Kind(StrEnum):
    """What there is to choose from."""

    recipes = "recipes"
    models = "models"
    datasets = "datasets"
    losses = "losses"
    optimizers = "optimizers"
    schedules = "schedules"
    cache = "cache"


SINGULAR = {
    "models": "model",
    "datasets": "dataset",
    "losses": "loss",
    "optimizers": "optimizer",
    "schedules": "schedule",
}


def list_parts(
    kind: Annotated[Kind | None, typer.Argument(help="Only this kind.", show_default=False)] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Of the cache: remove all that is in it.")] = False,
    json: Json = False,
) -> None:
    """List the recipes, models, datasets, losses, optimizers and schedules, each with what it is; or the cache of
    decoded data."""
    if clear and kind is not Kind.cache:
        raise InputError("--clear is for the cache: nnx list cache --clear")
    if kind is Kind.cache:
        _cache(clear, json)
        return
    found = {each.value: _described(each) for each in ([kind] if kind else Kind) if each is not Kind.cache}
    if json:
        print_json(found)
        return
    from rich.console import Console

    console = Console()
    for title, entries in found.items():
        console.print(
            f"[bold]{title}[/]" if kind is None else "", _rows(entries.items()), sep="\n" if kind is None else ""
        )


def _cache(clear: bool, json: bool) -> None:
    """Show what data was decoded and kept, or what of it was removed."""
    from nnx import formatting
    from nnx.datasets import _cache as cache

    entries = cache.entries()
    if clear:
        cache.clear()
    size = sum(entry.size for entry in entries)
    if json:
        found = [
            {"path": str(entry.path), "source": entry.source, "bytes": entry.size, "used": entry.used}
            for entry in entries
        ]
        print_json(
            {"folder": str(cache.folder()), "bytes": 0 if clear else size, "removed" if clear else "entries": found}
        )
        return
    import time

    from rich.console import Console

    used = {entry: time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)) for entry in entries}
    rows = [
        (printable(entry.source), f"{formatting.size(entry.size)}, last used {used[entry]}, in {entry.path.name}")
        for entry in entries
    ]
    done = "removed from" if clear else "in"
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    console.print(
        _rows(rows),
        f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}, {formatting.size(size)}, {done} {cache.folder()}",
        sep="",
    )


def _rows(entries: Iterable[tuple[str, str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    table.add_column()
    for name, description in entries:
        table.add_row(Text(name), Text(description))
    return table


def _described(kind: Kind) -> dict[str, str]:
    """Each name of a kind, with the first line of its file or class."""
    from nnx import config
    from nnx.config import registry

    if kind is Kind.recipes:
        return {
            name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            for name, path in config.recipes().items()
        }
    one = SINGULAR[kind]
    described = {}
    for name in registry.names(one):
        home = registry.module(one, name)
        text = home.__doc__ if hasattr(home, "Config") else registry.find(one, name).__doc__
        described[name] = (text or "").strip().partition("\n")[0]
    return described
