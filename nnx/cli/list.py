"""nnx list [KIND]: recipes, models, datasets and other parts, or the data cache."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer

from nnx.cli._options import Json, print_json
from nnx.cli._start import check_memory_limits
from nnx.errors import InputError, printable


class Kind(StrEnum):
    """What nnx list can list."""

    recipes = "recipes"
    models = "models"
    datasets = "datasets"
    losses = "losses"
    optimizers = "optimizers"
    schedules = "schedules"
    formats = "formats"
    cache = "cache"


SINGULAR = {
    "models": "model",
    "datasets": "dataset",
    "losses": "loss",
    "optimizers": "optimizer",
    "schedules": "schedule",
}


def list_parts(
    kind: Annotated[
        Kind | None,
        typer.Argument(
            metavar="KIND", show_choices=False, show_default=False, help=f"List only this kind: {', '.join(Kind)}."
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Empty the cache (with kind cache).")] = False,
    json: Json = False,
) -> None:
    """List recipes, models, datasets and other parts, or the data cache.

    The data cache contains the decoded data of earlier runs. To see it, run:
    nnx list cache
    """
    if clear and kind is not Kind.cache:
        raise InputError("--clear: applies to the cache only; use nnx list cache --clear")
    if kind is Kind.cache:
        _list_cache(clear, json)
        return
    check_memory_limits()
    kinds = [kind] if kind else [kind for kind in Kind if kind is not Kind.cache]
    descriptions = {kind.value: _describe(kind) for kind in kinds}
    if json:
        print_json(descriptions)
        return
    from rich.text import Text

    from nnx.terminal import console

    for title, entries in descriptions.items():
        if kind is None:
            console.print_lines([Text(title, "bold")])
        console.print_table(_table(entries.items()))


def _list_cache(clear: bool, json: bool) -> None:
    """Print the entries of the data cache, or those that `clear` removes."""
    from nnx import formatting
    from nnx.datasets import _cache as cache

    entries = cache.entries()
    if clear:
        cache.clear()
    size = sum(entry.size for entry in entries)
    if json:
        records = [
            {"path": str(entry.path), "source": entry.source, "bytes": entry.size, "used": entry.used}
            for entry in entries
        ]
        print_json(
            {"folder": str(cache.folder()), "bytes": 0 if clear else size, "removed" if clear else "entries": records}
        )
        return
    import time

    from rich.text import Text

    from nnx.terminal import console

    used = {entry: time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)) for entry in entries}
    rows = [
        (printable(entry.source), f"{formatting.size(entry.size)}, last used {used[entry]}, in {entry.path.name}")
        for entry in entries
    ]
    count = f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}"
    place = f"{'removed from' if clear else 'in'} {cache.folder()}"
    console.print_table(_table(rows))
    console.print_lines([Text(f"{count}, {formatting.size(size)}, {place}")])


def _table(entries: Iterable[tuple[str, str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, description in entries:
        table.add_row(Text(name), Text(description))
    return table


def _describe(kind: Kind) -> dict[str, str]:
    """Map each name of this kind to the first line of its file or class."""
    from nnx import config, export
    from nnx.config import registry

    if kind is Kind.recipes:
        return {
            name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            for name, path in config.recipes().items()
        }
    if kind is Kind.formats:
        return {name: _first_line(export.exporter(name).__doc__) for name in export.names()}
    singular = SINGULAR[kind]
    descriptions = {}
    for name in registry.names(singular):
        module = registry.module(singular, name)
        docstring = module.__doc__ if hasattr(module, "Config") else registry.find(singular, name).__doc__
        descriptions[name] = _first_line(docstring)
    return descriptions


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]
