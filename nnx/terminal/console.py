"""Print results as tables on stdout, and choices, notes and progress on stderr.

Output can be copied and piped: nothing is cut or framed. A terminal gets lines broken between words at its width, a
pipe or a file whole lines. For the output of nnx train, nnx show, nnx predict
and nnx trace, see the modules next to this one.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nnx.errors import printable
from nnx.events import Choice, LayerSummary
from nnx.formatting import interval as _interval
from nnx.formatting import line_breaks, print_wrapped, terminal_width, wrap
from nnx.formatting import loss as _loss
from nnx.formatting import percent as _percent
from nnx.formatting import seconds as _seconds

BAR_DELAY = 0.5  # seconds before a progress bar appears
MATRIX_CLASSES = 20  # a confusion matrix of more classes is unreadable
MIN_REMARK = 20  # columns that a remark needs beside its value
PIPE_WIDTH = 10_000  # columns where stdout is not a terminal: no line is wrapped


def print_choices(choices: Iterable[Choice]) -> None:
    """Print the automatic choices and their reasons on stderr."""
    print_lines([align(choice_rows(choices), terminal_width(sys.stderr))], stderr_console())


def print_notes(lines: Iterable[str]) -> None:
    """Print lines on stderr."""
    for line in lines:
        print_wrapped(printable(line))


def print_table(table: RenderableType, console: Console | None = None) -> None:
    """Print a table, or what `FirstThatFits` it, on stdout, or on `console`, without rich's trailing spaces."""
    console = console or stdout_console()
    with console.capture() as captured:
        console.print(table, crop=False)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_lines(lines: Iterable[Text], console: Console | None = None) -> None:
    """Print lines on stdout, or on `console`, in one piece: broken between words where they are wider than it."""
    console = console or stdout_console()
    fitted = [piece for line in lines for piece in (wrap_text(line, console.width) if wraps(console) else [line])]
    if fitted:
        console.print(*fitted, sep="\n", soft_wrap=True)


def wraps(console: Console) -> bool:
    """Whether the console prints on a terminal, whose lines end at its width."""
    return console.width != PIPE_WIDTH


def wrap_text(text: Text, width: int) -> list[Text]:
    """The lines of `text` in their styles, each wider than `width` columns broken between words."""
    pieces = []
    for line in text.split("\n", allow_blank=True):
        for piece in line.divide(line_breaks(line.plain, width)):
            piece.rstrip()
            pieces.append(piece)
    return pieces


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)`, which draws a progress bar on stderr after half a second. Draws nothing if `quiet`
    or if stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress

    columns = (
        progress.TextColumn(label),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None)
    begun = time.monotonic()

    def update(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - begun > BAR_DELAY:
            bar.start()

    try:
        yield update
    finally:
        bar.stop()


def print_result(summary: dict[str, Any]) -> None:
    """Print the summary of a run on stdout."""
    print_lines([result_table(summary, terminal_width(sys.stdout))])


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print the metrics of an evaluation on stdout."""
    print_table(metrics_table(metrics, terminal_width(sys.stdout)))


def model_table(layers: Sequence[LayerSummary], parameters: int, flops: int | None = None) -> Table:
    """A row per layer: name, kind, output shape, number of parameters and, if counted, floating-point operations."""
    with_flops = flops is not None
    table = plain_table(["layer", "kind"], ["output", "parameters", *(["FLOPs"] if with_flops else [])])
    for layer in layers:
        counts = [layer.parameters, *([layer.flops or 0] if with_flops else [])]
        table.add_row(
            Text(layer.name), Text(layer.kind), " × ".join(map(str, layer.shape)), *(f"{count:,}" for count in counts)
        )
    table.add_row("total", "", "", f"{parameters:,}", *([f"{flops:,}"] if with_flops else []), style="bold")
    return table


def result_table(summary: dict[str, Any], width: int | None = None) -> Text:
    """The summary of a run, one figure per line, in `width` columns. Paths are never cut."""
    samples = summary["test_samples"]
    duplicates = summary.get("test_duplicates")
    is_validated, is_tested = (summary[f"{split}_accuracy"] is not None for split in ("val", "test"))
    epochs = f"{summary['epochs']}, {'best' if is_validated else 'kept'} {summary['best_epoch']}"
    test: list[tuple[str, str, str]] = [("test accuracy", "not measured", "no test samples")]
    if is_tested:
        interval = f"{_interval(summary['test_accuracy'], samples)} on {samples:,} samples"
        test = [
            ("test accuracy", _percent(summary["test_accuracy"]), interval),
            ("test loss", _loss(summary["test_loss"]), ""),
        ]
    return align(
        [
            ("run", printable(str(summary["run"])), ""),
            ("checkpoint", printable(str(summary["checkpoint"])), ""),
            *([("report", printable(str(summary["report"])), "")] if summary["report"] else []),
            ("epochs", epochs, ""),
            ("val accuracy", _percent(summary["val_accuracy"]), "")
            if is_validated
            else ("val accuracy", "not measured", "no validation samples"),
            *test,
            *_baseline_rows(summary),
            *([("duplicates", describe_duplicates(duplicates, samples), "")] if duplicates else []),
            ("parameters", f"{summary['parameters']:,}", ""),
            ("training", _seconds(summary["train_seconds"]), f"{summary['samples_per_second']:,.0f} samples/s"),
            ("device", f"{summary['device']}, {summary['precision']}", ""),
            *(_health_rows(summary["health"]) if "health" in summary else []),
        ],
        width,
    )


def _baseline_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The training accuracy, and the test accuracy of the baselines, where they were measured."""
    rows = []
    if summary.get("train_accuracy") is not None:
        remark = f"on {summary['train_samples']:,} samples"
        rows.append(("train accuracy", _percent(summary["train_accuracy"]), remark))
    linear = summary.get("baselines", {}).get("logistic_regression")
    if linear and linear["accuracy"] is not None:
        rows.append(("baseline", _percent(linear["accuracy"]), "test accuracy of logistic regression"))
    return rows


def _health_rows(health: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The verdict with its evidence, and what to try."""
    rows = [("health", health["verdict"], printable(health["evidence"]))]
    return [*rows, ("", health["advice"], "")] if health["advice"] else rows


def describe_health(health: dict[str, Any]) -> str:
    """The verdict, its evidence and what to try, in one line."""
    advice = f". {health['advice']}" if health["advice"] else ""
    return printable(f"{health['verdict']}: {health['evidence']}{advice}")


def describe_duplicates(count: int, samples: int) -> str:
    """State how many of the test samples are also in the training data."""
    return f"{count:,} of {samples:,} test samples are also in the training data"


def duplicates_warning(count: int, samples: int, conflicts: int | None, examples: Sequence[str]) -> str:
    """Warn that duplicates may make the test accuracy too high, and of those with another label; name some of them."""
    parts = [f"{describe_duplicates(count, samples)} and may be memorised: test accuracy may be too high"]
    if conflicts:
        parts.append(f"{conflicts:,} of them have another label there")
    if examples:
        parts.append(", ".join(examples) + ", ..." * (count > len(examples)))
    return "; ".join(parts)


def metrics_table(metrics: dict[str, Any], width: int | None = None) -> Group:
    """Accuracy, loss and calibration error; metrics of each class; the confusion matrix, or the most frequent
    confusions if it is too wide."""
    labels = [printable(str(row["label"])) for row in metrics["per_class"]]
    matrix = metrics["confusion_matrix"]
    speed = f"{_seconds(metrics['seconds'])}, {metrics['samples_per_second']:,.0f} samples/s"
    head = Text(f"{metrics['split']}: {metrics['samples']:,} samples in {speed}")
    figures = [
        ("accuracy", _percent(metrics["accuracy"]), _interval(metrics["accuracy"], metrics["samples"])),
        ("loss", _loss(metrics["loss"]), ""),
        (
            "calibration error",
            _percent(metrics["expected_calibration_error"]),
            "expected gap between confidence and accuracy",
        ),
    ]
    classes = plain_table(["class"], ["precision", "recall", "F1", "support"])
    for label, row in zip(labels, metrics["per_class"], strict=True):
        classes.add_row(
            Text(label), *(_percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}"
        )
    confusions = [most_confused(labels, matrix)]
    if len(labels) <= MATRIX_CLASSES:
        confusions.insert(0, confusion_matrix(labels, matrix))
    return Group(head, "", align(figures, width), "", classes, "", FirstThatFits(confusions))


def confusion_matrix(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Table:
    """A row per true class, a column per predicted class: its label if all labels are short, else its index."""
    short = max(map(len, labels)) <= 4
    names = labels if short else [f"{i}" for i in range(len(labels))]
    table = plain_table(["true \\ predicted"], names)
    for i, (label, row) in enumerate(zip(labels, matrix, strict=True)):
        counts = [
            Text(f"{n:,}" if n else ".", "bold green" if i == j else "red" if n else "dim") for j, n in enumerate(row)
        ]
        table.add_row(Text(label if short else f"{i} {label}"), *counts)
    return table


def most_confused(labels: Sequence[str], matrix: Sequence[Sequence[int]], limit: int = 10) -> Table:
    """The most frequent confusions: true class, predicted class, count, and share of the true class."""
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n),
        key=lambda pair: -pair[0],
    )
    table = plain_table(["true", "predicted"], ["count", "share of class"])
    for n, i, j in pairs[:limit]:
        table.add_row(Text(labels[i]), Text(labels[j]), f"{n:,}", _percent(n / sum(matrix[i])))
    return table


class FirstThatFits:
    """Renders the first alternative that fits the width, or the last if none does."""

    def __init__(self, alternatives: Sequence[RenderableType]) -> None:
        self.alternatives = alternatives

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update_width(PIPE_WIDTH)
        for alternative in self.alternatives:
            if Measurement.get(console, unlimited, alternative).maximum <= options.max_width:
                break
        yield alternative


# ---------------------------------------------------------------- formats


def stdout_console() -> Console:
    """A console for stdout that wraps no lines if stdout is not a terminal."""
    return new_console(sys.stdout)


def stderr_console() -> Console:
    """The same for stderr. With FORCE_COLOR, rich treats a pipe as a terminal: it gets colours, but no moving bars."""
    return new_console(sys.stderr, force_interactive=None if sys.stderr.isatty() else False)


def new_console(stream: TextIO, pipe: int = PIPE_WIDTH, **options: Any) -> Console:
    """A console for `stream`, as wide as the terminal, or `pipe` columns where it is none. Of TERM=dumb, rich takes 80
    columns without asking, unless it is told the height too."""
    if not stream.isatty():
        options["width"] = pipe
    elif os.environ.get("TERM") in ("dumb", "unknown"):
        options |= {"width": terminal_width(stream), "height": 25}
    return Console(stderr=stream is sys.stderr, **options)


def choice_rows(choices: Iterable[Choice]) -> list[tuple[str, str, str]]:
    """The rows of choices for `align`."""
    # values and reasons may contain file names
    return [(choice.what, printable(choice.value), printable(choice.reason)) for choice in choices]


def align(rows: Sequence[tuple[str, str, str]], width: int | None = None) -> Text:
    """Name, value and remark in columns, without frame or trailing spaces. Values and remarks are broken between words
    to fit `width`; a remark without room beside its value is put below it."""
    names = max((len(name) for name, _, _ in rows), default=0)
    values = max((len(value) for _, value, remark in rows if remark), default=0)
    room = (width or sys.maxsize) - names - 2  # right of the names
    remark_room = room - values - 2
    beside = remark_room >= MIN_REMARK
    lines = []
    for name, value, remark in rows:
        pieces = wrap(value, max(room, MIN_REMARK))
        remarks = wrap(remark, remark_room if beside else max(room, MIN_REMARK)) if remark else []
        if remarks and beside:
            first = f"{'':{values - len(value)}}  {remarks.pop(0)}"
            remarks = [f"{'':{values + 2}}{line}" for line in remarks]
        else:
            first = ""
        lines.append(Text.assemble((name.ljust(names), "dim"), "  ", pieces[0], (first, "dim") if first else ""))
        lines += [Text(f"{'':{names + 2}}{piece}") for piece in pieces[1:]]
        lines += [Text(f"{'':{names + 2}}{line}", "dim") for line in remarks]
    return Text("\n").join(lines)


def plain_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table with left- and right-aligned columns and no lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in (*left, *right):
        table.add_column(Text(name), justify="left" if name in left else "right", overflow="fold")
    return table
