"""Print the preview of a config on stdout, as `nnx show` does: settings, data, model, run, forecast.

The settings can be copied into a config file. On a terminal, the output fits its width; in a pipe, no line is wrapped.
"""

import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from nnx.errors import printable
from nnx.formatting import size, wrap
from nnx.terminal import pixels as pixel_art
from nnx.terminal.console import (
    align,
    choice_rows,
    describe_duplicates,
    model_table,
    plain_table,
    print_lines,
    print_table,
    stdout_console,
    wraps,
)

if TYPE_CHECKING:  # imports torch
    from nnx.run.preview import Data, Example, Forecast, Preview

BARS = 20  # classes with a bar each, at most
BAR = 30  # characters of a bar, at most
MIN_BAR = 8  # and at least
THUMBNAIL = 14  # characters of width, at most
ROWS = 20  # features listed, at most
Rows = list[tuple[str, str, str]]


def print_preview(preview: "Preview", console: Console | None = None) -> None:
    """Print all sections on stdout, or on `console`."""
    console = console or stdout_console()
    width = console.width if wraps(console) else None
    for part in sections(preview, console, width):
        if isinstance(part, Text):
            print_lines([part], console)
        else:
            print_table(part, console)


def sections(preview: "Preview", console: Console, width: int | None) -> list[RenderableType]:
    """The parts to print on a terminal of `width` columns, or in a pipe (None)."""
    choices = choice_rows(preview.choices)
    # the YAML writer breaks a line only after the setting that exceeds the width, hence the margin
    settings = preview.config.to_yaml(width - 24) if width else preview.config.to_yaml()
    title = f"all settings of {printable(preview.config.recipe)}; this config gives the same run"
    parts: list[RenderableType] = [
        *(Text(f"# {line}", "dim") for line in wrap(title, (width or sys.maxsize) - 2)),
        Text(settings),
        _title("data"),
        align(_data(preview.data), width),
        "",
        *_classes(preview.data, width or sys.maxsize),
        *_samples(preview.data, console, width or 80),
        _title("model"),
        model_table(preview.layers, preview.parameters, preview.flops),
        Text("FLOPs of a forward pass of one sample; training needs about three times as many", "dim"),
        "",
        _title("run"),
        align(choices, width),
    ]
    if preview.forecast:
        parts += ["", *_forecast(preview.forecast, "at most " * bool(preview.config.train.patience), width)]
    return parts


def _title(text: str) -> Text:
    return Text(text, "bold")


# ---------------------------------------------------------------- data


def _data(data: "Data") -> Rows:
    samples = ", ".join(f"{count:,} {split}" for split, count in data.samples.items() if count)
    is_image = len(data.shape) == 3
    axes = "channels × height × width" if is_image else "features"
    return [
        ("dataset", data.name, ""),
        *([("path", printable(data.path), "")] if data.path else []),
        ("samples", samples, ""),
        ("shape", f"{' × '.join(map(str, data.shape))}, {data.dtype}", axes),
        ("memory", ", ".join(f"{size(count)} {split}" for split, count in data.size.items() if count), ""),
        *(
            [("mean", _channels(data.mean), "of pixels in [0, 1]"), ("std", _channels(data.std), "")]
            if is_image
            else []
        ),
        *(_duplicates(data) if data.samples["test"] else []),
        *choice_rows(data.notes),
    ]


def _duplicates(data: "Data") -> list[tuple[str, str, str]]:
    if data.duplicates is None:
        return [("duplicates", "not counted", "would read more than 2 GB of files")]
    if not data.duplicates:
        return [("duplicates", "none", "no test sample is also in the training data")]
    examples = ", ".join(data.duplicate_examples) + ", ..." * (data.duplicates > len(data.duplicate_examples))
    return [("duplicates", describe_duplicates(data.duplicates, data.samples["test"]), ""), ("", "such as", examples)]


def _channels(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _classes(data: "Data", width: int) -> list[RenderableType]:
    """A bar per class, shorter or left out beside long names; or for many classes a sentence."""
    counts = data.counts["train"]
    if len(counts) > BARS:
        smallest = counts.index(min(counts))
        largest = counts.index(max(counts))
        names = [printable(data.classes[index]) for index in (smallest, largest)]
        spread = f"{counts[smallest]:,} ({names[0]}) to {counts[largest]:,} ({names[1]})"
        median = f"{statistics.median(counts):,.0f}"
        return [Text(f"{len(counts)} classes with {spread} training samples each, median {median}"), ""]
    splits = [split for split in data.counts if data.samples[split]]
    table = plain_table(["class"], splits)
    room = width - max(cell_len(printable(label)) for label in data.classes) - sum(len(split) + 2 for split in splits)
    bar = min(BAR, room - 2)
    if bar >= MIN_BAR:
        table.add_column("", no_wrap=True)
    for label, train, *of_splits in zip(data.classes, counts, *(data.counts[split] for split in splits), strict=True):
        table.add_row(
            Text(printable(label)),
            *(f"{count:,}" for count in of_splits),
            *([Text("━" * round(bar * train / max(counts)), "cyan")] if bar >= MIN_BAR else []),
        )
    return [table, ""]


def _samples(data: "Data", console: Console, width: int) -> list[RenderableType]:
    """A training sample of each class: the first ten as images, or the first three as columns of a table."""
    if len(data.shape) == 3:
        return [Text("\n").join([*_thumbnails(data.examples, console, width), Text()])]
    examples = data.examples[:3]
    table = plain_table(["feature"], ["mean", "std", *(f"a {example.label}" for example in examples)])
    for index, name in enumerate(data.features[:ROWS]):
        values = (data.mean[index], data.std[index], *(example.inputs[index] for example in examples))
        table.add_row(Text(name), *(f"{value:.4g}" for value in values))
    more = len(data.features) - ROWS
    return [table, *([Text(f"and {more:,} more", "dim")] if more > 0 else []), ""]


def _thumbnails(examples: "Sequence[Example]", console: Console, available: int) -> list[Text]:
    """Labels and images in as few rows as fit the `available` columns, with about the same number of images each."""
    blocks = []
    width = min(THUMBNAIL, examples[0].inputs.shape[2], available)
    for example in examples:
        pixels = np.moveaxis(example.inputs[: 3 if len(example.inputs) > 2 else 1], 0, -1)
        label = Text(example.label)
        label.truncate(width, overflow="ellipsis")
        blocks.append([label, *pixel_art.render(np.ascontiguousarray(pixels), width, console=console)])
    rows = -(-len(blocks) // max(1, (available + 2) // (width + 2)))
    per_row = -(-len(blocks) // rows)
    lines = []
    for start in range(0, len(blocks), per_row):
        lines += [*pixel_art.side_by_side(*blocks[start : start + per_row]), Text()]
    return lines[:-1]


# ---------------------------------------------------------------- the forecast


def _forecast(forecast: "Forecast", at_most: str, width: int | None) -> list[RenderableType]:
    epochs = f"{at_most}{forecast.epochs} epoch{'s' * (forecast.epochs != 1)}"
    rows = [
        (
            "epoch",
            _duration(forecast.training + forecast.validation),
            f"{_duration(forecast.validation)} of it validation" if forecast.validation else "",
        ),
        (
            "run",
            _duration(forecast.seconds),
            f"{_duration(forecast.start)} to start, {epochs}, {_duration(forecast.end)} to test",
        ),
        ("memory", size(forecast.memory), "peak"),
    ]
    if forecast.device_memory is not None:
        rows.append(("", size(forecast.device_memory), "peak on the device"))
    basis = (
        f"Estimated from {forecast.steps:,} steps on this machine under its current load. "
        f"The time to save to disk is not included."
    )
    return [_title("forecast"), align(rows, width), Text(basis, "dim")]


def _duration(seconds: float) -> str:
    """A duration with two digits, in a suitable unit."""
    for length, unit, limit in ((0.001, "ms", 1000), (1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if seconds < limit * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{seconds / 86400:,.1f} days"
