"""`nnx show` on stdout: sections, of which the first is a config to copy. A terminal gets what fits its width, a pipe
whole lines."""

import statistics
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from nnx.formatting import size
from nnx.terminal import pixels as pixel_art
from nnx.terminal.console import aligned, frameless, model_table, repeated, stdout

if TYPE_CHECKING:  # which brings torch along
    from nnx.run.preview import Data, Example, Forecast, Preview

BARS = 20  # classes that get a bar each
BAR = 30  # characters at most
THUMBNAIL = 14  # characters across, at most
ROWS = 20  # features that are listed
Rows = list[tuple[str, str, str]]


def print_shown(shown: "Preview") -> None:
    """All of it, on stdout."""
    console = stdout()
    wide = console.width if sys.stdout.isatty() else None
    for part in sections(shown, console, wide):
        console.print(part, soft_wrap=isinstance(part, Text))


def sections(shown: "Preview", console: Console, wide: int | None) -> list[RenderableType]:
    """What is printed on a terminal so `wide`, or into a pipe."""
    choices = [(choice.what, choice.value, choice.reason) for choice in shown.choices]
    # YAML is broken behind the setting that goes beyond the width, so that has to be less
    settings = shown.config.to_yaml(wide - 24) if wide else shown.config.to_yaml()
    return [
        Text(f"# every setting of {shown.config.recipe}; as a file, this gives the same run", "dim"),
        Text(settings),
        _title("data"),
        aligned(_data(shown.data), wide),
        "",
        *_classes(shown.data),
        *_samples(shown.data, console, wide or 80),
        _title("model"),
        model_table(shown.layers, shown.parameters, shown.flops),
        Text("FLOPs of a forward pass of one sample; training takes about three times that", "dim"),
        "",
        _title("run"),
        aligned(choices, wide),
        *(
            ["", *_forecast(shown.forecast, "at most " * bool(shown.config.train.patience), wide)]
            if shown.forecast
            else []
        ),
    ]


def _title(text: str) -> Text:
    return Text(text, "bold")


# ---------------------------------------------------------------- data


def _data(data: "Data") -> Rows:
    samples = ", ".join(f"{count:,} {split}" for split, count in data.samples.items())
    image = len(data.shape) == 3
    what = "channels × height × width" if image else "features"
    return [
        ("dataset", data.name, ""),
        *([("path", data.path, "")] if data.path else []),
        ("samples", samples, ""),
        ("shape", f"{' × '.join(map(str, data.shape))}, {data.dtype}", what),
        ("memory", ", ".join(f"{size(count)} {split}" for split, count in data.size.items()), ""),
        *([("mean", _channels(data.mean), "in units of [0, 1]"), ("std", _channels(data.std), "")] if image else []),
        ("duplicates", *_duplicates(data)),
        *((note.what, note.value, note.reason) for note in data.notes),
    ]


def _duplicates(data: "Data") -> tuple[str, str]:
    if data.duplicates is None:
        return "not looked for", "more than 2 GB in files would have to be read"
    if data.duplicates:
        return repeated(data.duplicates, data.samples["test"]), ""
    return "none", "no test sample is also in the training data"


def _channels(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _classes(data: "Data") -> list[RenderableType]:
    """A bar for each class, or a sentence on many."""
    counts = data.counts["train"]
    if len(counts) > BARS:
        least, most = counts.index(min(counts)), counts.index(max(counts))
        spread = f"{counts[least]:,} ({data.classes[least]}) to {counts[most]:,} ({data.classes[most]})"
        return [
            Text(f"{len(counts)} classes of {spread} training samples, median {statistics.median(counts):,.0f}"),
            "",
        ]
    table = frameless(["class"], ["train", "validation"])
    table.add_column("", no_wrap=True)
    for label, train, validation in zip(data.classes, counts, data.counts["validation"], strict=True):
        table.add_row(
            Text(label), f"{train:,}", f"{validation:,}", Text("━" * round(BAR * train / max(counts)), "cyan")
        )
    return [table, ""]


def _samples(data: "Data", console: Console, wide: int) -> list[RenderableType]:
    """A training sample of each class, or of the first ten: as an image, or as a column of a table."""
    if len(data.shape) == 3:
        return [Text("\n").join([*_thumbnails(data.examples, console, wide), Text()])]
    shown = data.examples[:3]
    table = frameless(["feature"], ["mean", "std", *(f"a {example.label}" for example in shown)])
    for place, name in enumerate(data.features[:ROWS]):
        values = (data.mean[place], data.std[place], *(example.inputs[place] for example in shown))
        table.add_row(Text(name), *(f"{value:.4g}" for value in values))
    more = len(data.features) - ROWS
    return [table, *([Text(f"and {more:,} more", "dim")] if more > 0 else []), ""]


def _thumbnails(examples: "Sequence[Example]", console: Console, wide: int) -> list[Text]:
    """Labels and images, in as few rows as fit, of about equal length."""
    blocks = []
    width = min(THUMBNAIL, examples[0].inputs.shape[2], wide)
    for example in examples:
        pixels = np.moveaxis(example.inputs[: 3 if len(example.inputs) > 2 else 1], 0, -1)
        label = Text(example.label)
        label.truncate(width, overflow="ellipsis")
        blocks.append([label, *pixel_art.image(np.ascontiguousarray(pixels), width, console=console)])
    rows = -(-len(blocks) // max(1, (wide + 2) // (width + 2)))
    a_row = -(-len(blocks) // rows)
    lines = [
        line
        for start in range(0, len(blocks), a_row)
        for line in (*pixel_art.beside(*blocks[start : start + a_row]), Text())
    ]
    return lines[:-1]


# ---------------------------------------------------------------- the forecast


def _forecast(forecast: "Forecast", at_most: str, wide: int | None) -> list[RenderableType]:
    epochs = f"{at_most}{forecast.epochs} epoch{'s' * (forecast.epochs != 1)}"
    rows = [
        (
            "an epoch",
            _duration(forecast.training + forecast.validation),
            f"{_duration(forecast.validation)} of it validation",
        ),
        (
            "the run",
            _duration(forecast.seconds),
            f"{_duration(forecast.start)} to start, {epochs}, {_duration(forecast.end)} to test",
        ),
        ("memory", size(forecast.memory), "at its peak"),
    ]
    if forecast.device_memory is not None:
        rows.append(("", size(forecast.device_memory), "of the device's own"))
    told = f"About: told from {forecast.steps:,} steps on this machine, as busy as it was. What the disk takes to save is not counted."
    return [_title("forecast"), aligned(rows, wide), Text("\n".join(textwrap.wrap(told, wide or 10_000)), "dim")]


def _duration(seconds: float) -> str:
    """Two digits, in the unit that suits."""
    for length, unit, most in ((0.001, "ms", 1000), (1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if seconds < most * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{seconds / 86400:,.1f} days"
