"""Numbers and tables of a printed trace."""

from collections.abc import Sequence
from typing import TypeVar

from rich.table import Table
from rich.text import Text

POSITIONS = {"Conv2d": "positions", "Linear": "tokens"}  # kind of layer -> what shares its weights; else time steps
Item = TypeVar("Item")


def format_number(x: float) -> str:
    """Three decimals, fewer for large numbers; scientific notation for very small and very large ones."""
    if x == 0:
        return "0"
    if not 5e-4 <= abs(x) < 1e6:
        return f"{x:.1e}"
    return f"{x:.{max(0, 3 - max(0, len(str(int(abs(x)))) - 2))}f}"


def format_loss(loss: float) -> str:
    return f"{loss:#.5g}"


def more(count: int) -> Text:
    return Text(f"... and {count:,} more", "dim")


def first_and_last(items: Sequence[Item], most: int) -> list[Item | int]:
    """All items; or, of more than `most`, the first and the last, with the number left out between them."""
    if len(items) <= most:
        return list(items)
    half = (most - 1) // 2
    return [*items[:half], len(items) - 2 * half, *items[-half:]]


def new_table(*groups: Sequence[str]) -> Table:
    """A table with these column titles, in groups that are left- and right-aligned in turn."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, titles in enumerate(groups):
        for title in titles:
            table.add_column(Text(title), justify="right" if number % 2 else "left", overflow="fold")
    return table
