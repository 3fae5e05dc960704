"""Format predictions as a table or CSV, and describe the preparation of their images."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnx.errors import printable
from nnx.formatting import percent, wrap

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

LISTED = 10  # images, at most, whose preparation is listed one by one; for more, the steps are counted


def as_csv(predictions: Sequence[dict[str, Any]]) -> str:
    """One line per prediction: input, label, probability, label_2, probability_2 and so on; for images, their
    preparation. Texts are made safe for a terminal and a spreadsheet, see `_csv_text`."""
    columns = [
        f"{name}{'' if n == 1 else f'_{n}'}"
        for n in range(1, len(predictions[0]["top"]) + 1)
        for name in ("label", "probability")
    ]
    with_images = "prepared" in predictions[0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", *columns, *(["prepared"] if with_images else [])])
    for prediction in predictions:
        ranked = [value for entry in prediction["top"] for value in (_csv_text(entry["label"]), entry["probability"])]
        prepared = [_csv_text("; ".join(prediction["prepared"]))] if with_images else []
        writer.writerow([_csv_text(prediction["input"]), *ranked, *prepared])
    return text.getvalue()


def _csv_text(text: str) -> str:
    """The text on one line, with an apostrophe before a leading = + - @ that a spreadsheet would take for a formula.
    Numbers stay as they are."""
    line = printable(text)
    is_formula = line.lstrip().startswith(("=", "+", "-", "@")) and not re.fullmatch(
        r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", line
    )
    return f"'{line}" if is_formula else line


def as_table(predictions: Sequence[dict[str, Any]], heading: str = "input") -> "RenderableType":
    """One row per prediction, or where the terminal is too narrow for that, a line per class below each input."""
    from nnx.terminal.console import FirstThatFits

    return FirstThatFits([_rows(predictions, heading), _Blocks(predictions)])


def _rows(predictions: Sequence[dict[str, Any]], heading: str) -> "Table":
    """One row per prediction: its input, label, probability, and the next most probable classes. `heading` is that of
    the first column."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(heading, overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("others", overflow="fold")
    for prediction in predictions:
        others = [f"{printable(entry['label'])} {percent(entry['probability'])}" for entry in prediction["top"][1:]]
        table.add_row(
            Text(printable(prediction["input"])),
            Text(printable(prediction["label"])),
            percent(prediction["probability"]),
            Text(", ".join(others)),
        )
    return table


class _Blocks:
    """Renders each input, and below it its classes and their probabilities."""

    def __init__(self, predictions: Sequence[dict[str, Any]]) -> None:
        self.predictions = predictions

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.cells import cell_len
        from rich.text import Text

        figures = 12  # columns: the indent, a gap and "100.00 %"
        room = max(1, options.max_width - figures)
        tops = [
            [(printable(entry["label"]), entry["probability"]) for entry in each["top"]] for each in self.predictions
        ]
        widest = min(room, max(cell_len(label) for top in tops for label, _ in top))
        for prediction, top in zip(self.predictions, tops, strict=True):
            lines = wrap(printable(prediction["input"]), options.max_width)
            for label, probability in top:
                *pieces, last = wrap(label, widest)
                gap = " " * (widest - cell_len(last))
                lines += [*(f"  {piece}" for piece in pieces), f"  {last}{gap}  {percent(probability):>8}"]
            yield Text("\n".join(lines), no_wrap=True, overflow="ignore")


def preparation_notes(predictions: Sequence[dict[str, Any]]) -> list[str]:
    """Describe how the images were prepared: a line per image, or for more than LISTED images one line with the count
    of each step and the reasons given after colons. Unchanged images have no line."""
    prepared = [prediction for prediction in predictions if prediction.get("prepared")]
    if len(prepared) <= LISTED:
        return [f"{printable(image['input'])} prepared: {'; '.join(image['prepared'])}" for image in prepared]
    steps = [step for image in prepared for step in image["prepared"]]
    counts = ", ".join(f"{kind} {count:,}" for kind, count in Counter(map(_step_kind, steps)).items())
    reasons = dict.fromkeys(reason for step in steps if (reason := step.partition(": ")[2]))
    summary = f"prepared {len(prepared):,} of {len(predictions):,} images: {counts} (--json lists them)"
    return ["; ".join([summary, *reasons])]


def _step_kind(step: str) -> str:
    """A step without its figures: "cropped" for "cropped to 143x98"."""
    return re.split(r",| to | from ", step)[0]
