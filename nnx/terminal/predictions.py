"""What a network answered, for people and for programs: a table, CSV, and what was done to the images before it was
asked."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnx.errors import printable
from nnx.formatting import percent

if TYPE_CHECKING:
    from rich.table import Table

EACH = 10  # images whose preparation is told one by one; of more it's counted


def as_csv(predictions: Sequence[dict[str, Any]]) -> str:
    """A line for each: input, label, probability, then label_2, probability_2 and so on, and, of images, what was
    prepared."""
    columns = [
        f"{name}{'' if n == 1 else f'_{n}'}"
        for n in range(1, len(predictions[0]["top"]) + 1)
        for name in ("label", "probability")
    ]
    of_images = "prepared" in predictions[0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", *columns, *(["prepared"] if of_images else [])])
    for each in predictions:
        ranked = [value for one in each["top"] for value in (one["label"], one["probability"])]
        writer.writerow([each["input"], *ranked, *(["; ".join(each["prepared"])] if of_images else [])])
    return text.getvalue()


def as_table(predictions: Sequence[dict[str, Any]], first: str = "input") -> "Table":
    """A line for each: its label, how probable that is, and what it might be instead. `first` is over the first
    column."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("else", overflow="fold")
    for each in predictions:
        others = ", ".join(f"{printable(other['label'])} {percent(other['probability'])}" for other in each["top"][1:])
        label = printable(each["label"])
        table.add_row(Text(printable(each["input"])), Text(label), percent(each["probability"]), Text(others))
    return table


def preparation(predictions: Sequence[dict[str, Any]]) -> list[str]:
    """What was done to the images, a line for each; of many how often, and the reason behind a colon. Nothing where
    nothing was."""
    some = [each for each in predictions if each.get("prepared")]
    if len(some) <= EACH:
        return [f"prepared {printable(each['input'])}: {'; '.join(each['prepared'])}" for each in some]
    counted = Counter(_kind(text) for each in some for text in each["prepared"])
    what = ", ".join(f"{kind} {times:,}" for kind, times in counted.items())
    reasons = dict.fromkeys(reason for each in some for text in each["prepared"] if (reason := text.partition(": ")[2]))
    return ["; ".join([f"prepared {len(some):,} of {len(predictions):,} images: {what} (--json says which)", *reasons])]


def _kind(text: str) -> str:
    """A step without its figures: "cropped" of "cropped to 143x98"."""
    return re.split(r",| to | from ", text)[0]
