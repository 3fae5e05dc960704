"""Results -> tables on stdout; what else there is to say -> stderr. What single commands print: see nnx.screens.

What is printed on stdout can be copied and piped: nothing there is cut or framed.
"""

import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nnx.errors import printable
from nnx.events import Choice, LayerSummary
from nnx.formatting import interval as _interval
from nnx.formatting import loss as _loss
from nnx.formatting import percent as _percent
from nnx.formatting import seconds as _seconds

WHILE = 0.5  # seconds, before it is shown how far something is
MATRIX = 20  # classes whose confusion matrix can still be read


def print_choices(choices: Iterable[Choice]) -> None:
    """What was decided for the user, and why, on stderr."""
    Console(stderr=True).print(aligned(rows(choices)), soft_wrap=True)


def print_notes(lines: Iterable[str]) -> None:
    """What else there is to say, on stderr."""
    for line in lines:
        print(printable(line), file=sys.stderr)  # noqa: T201 (to stderr)


def print_table(table: Table) -> None:
    """A table of results, on stdout, without the spaces that rich puts behind each line."""
    console = stdout()
    with console.capture() as captured:
        console.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_lines(lines: Iterable[Text]) -> None:
    """Lines of results, on stdout, none of them wrapped."""
    console = stdout()
    for line in lines:
        console.print(line, soft_wrap=True)


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """What to tell of how many are done, of how many: a bar where stderr is a terminal and it takes a while, else
    nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress

    columns = (
        progress.TextColumn(what),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
    task, begun = bar.add_task("", total=None), time.monotonic()

    def tell(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - begun > WHILE:
            bar.start()

    try:
        yield tell
    finally:
        bar.stop()


def print_result(summary: dict[str, Any]) -> None:
    """The end of a run, on stdout."""
    stdout().print(result_table(summary), soft_wrap=True)


def print_metrics(metrics: dict[str, Any]) -> None:
    """What an evaluation found, on stdout."""
    stdout().print(metrics_table(metrics))


def model_table(layers: Sequence[LayerSummary], parameters: int, flops: int | None = None) -> Table:
    """The layers: name, kind, output shape, parameters and, where they were counted, floating-point operations."""
    counted = flops is not None
    table = frameless(["layer", "kind"], ["output", "parameters", *(["FLOPs"] if counted else [])])
    for layer in layers:
        sizes = [layer.parameters, *([layer.flops or 0] if counted else [])]
        table.add_row(
            Text(layer.name), Text(layer.kind), " × ".join(map(str, layer.shape)), *(f"{size:,}" for size in sizes)
        )
    table.add_row("total", "", "", f"{parameters:,}", *([f"{flops:,}"] if counted else []), style="bold")
    return table


def result_table(summary: dict[str, Any]) -> Text:
    """The summary of a run, one figure a line; paths are never cut."""
    samples, again = summary["test_samples"], summary.get("test_duplicates")
    return aligned(
        [
            ("run", str(summary["run"]), ""),
            ("checkpoint", str(summary["checkpoint"]), ""),
            *([("report", str(summary["report"]), "")] if summary["report"] else []),
            ("epochs", f"{summary['epochs']}, best {summary['best_epoch']}", ""),
            ("val accuracy", _percent(summary["val_accuracy"]), ""),
            (
                "test accuracy",
                _percent(summary["test_accuracy"]),
                f"{_interval(summary['test_accuracy'], samples)} on {samples:,} samples",
            ),
            ("test loss", _loss(summary["test_loss"]), ""),
            *([("duplicates", repeated(again, samples), "")] if again else []),
            ("parameters", f"{summary['parameters']:,}", ""),
            ("training", _seconds(summary["train_seconds"]), f"{summary['samples_per_second']:,.0f} samples/s"),
            ("device", f"{summary['device']}, {summary['precision']}", ""),
        ]
    )


def repeated(count: int, samples: int) -> str:
    """What there is to say of so many test samples that are no test."""
    return f"{count:,} of {samples:,} test samples are also in the training data"


def by_heart(count: int, samples: int) -> str:
    """A warning of them."""
    return f"{repeated(count, samples)}: there the network may answer by heart, so the test accuracy can be too high"


def metrics_table(metrics: dict[str, Any]) -> Group:
    """Accuracy, loss, calibration; each class; and which classes are taken for which."""
    labels = [str(row["label"]) for row in metrics["per_class"]]
    matrix = metrics["confusion_matrix"]
    pace = f"{_seconds(metrics['seconds'])}, {metrics['samples_per_second']:,.0f} samples/s"
    head = Text(f"{metrics['split']}: {metrics['samples']:,} samples in {pace}")
    figures = [
        ("accuracy", _percent(metrics["accuracy"]), _interval(metrics["accuracy"], metrics["samples"])),
        ("loss", _loss(metrics["loss"]), ""),
        (
            "calibration error",
            _percent(metrics["expected_calibration_error"]),
            "expected: how far confidence is from accuracy",
        ),
    ]
    classes = frameless(["class"], ["precision", "recall", "F1", "support"])
    for label, row in zip(labels, metrics["per_class"], strict=True):
        classes.add_row(
            Text(label), *(_percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}"
        )
    confusions = most_confused(labels, matrix)
    wide = [confusion_matrix(labels, matrix)] if len(labels) <= MATRIX else []
    return Group(head, "", aligned(figures), "", classes, "", _Fitting([*wide, confusions]))


def confusion_matrix(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Table:
    """Rows are the truth, columns what was predicted, by label where labels are short, else by number."""
    short = max(map(len, labels)) <= 4
    names = labels if short else [f"{i}" for i in range(len(labels))]
    table = frameless(["true \\ predicted"], names)
    for i, (label, row) in enumerate(zip(labels, matrix, strict=True)):
        counts = [
            Text(f"{n:,}" if n else ".", "bold green" if i == j else "red" if n else "dim") for j, n in enumerate(row)
        ]
        table.add_row(Text(label if short else f"{i} {label}"), *counts)
    return table


def most_confused(labels: Sequence[str], matrix: Sequence[Sequence[int]], most: int = 10) -> Table:
    """The pairs of classes that are taken for one another most often."""
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n),
        key=lambda pair: -pair[0],
    )
    table = frameless(["true", "predicted"], ["times", "of its class"])
    for n, i, j in pairs[:most]:
        table.add_row(Text(labels[i]), Text(labels[j]), f"{n:,}", _percent(n / sum(matrix[i])))
    return table


class _Fitting:
    """The first that is not too wide, else the last."""

    def __init__(self, choices: Sequence[RenderableType]) -> None:
        self.choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update_width(10_000)
        fitting = (
            choice for choice in self.choices if Measurement.get(console, free, choice).maximum <= options.max_width
        )
        yield next(fitting, self.choices[-1])


# ---------------------------------------------------------------- formats


class _Stdout(Console):
    def on_broken_pipe(self) -> None:
        raise  # what was caught around this call: rich would end the process with 1, the command line knows better


def stdout() -> Console:
    """Where stdout is no terminal, no line is wrapped."""
    return _Stdout(width=None if sys.stdout.isatty() else 10_000)


def rows(choices: Iterable[Choice]) -> list[tuple[str, str, str]]:
    """Choices for `aligned`."""
    return [
        (choice.what, printable(choice.value), printable(choice.reason)) for choice in choices
    ]  # which may hold names of files


def aligned(rows: Sequence[tuple[str, str, str]], width: int | None = None) -> Text:
    """Name, value and remark in columns, without padding at the end and without a frame. Remarks beyond `width` go on
    beneath."""
    names, values = (max((len(row[i]) for row in rows if row[2] or i == 0), default=0) for i in (0, 1))
    room = max(20, (width or 0) - names - values - 4)
    lines = []
    for name, value, remark in rows:
        first, *rest = (
            textwrap.wrap(remark, room, break_long_words=False, break_on_hyphens=False) if width else None
        ) or [remark]
        behind = (f"{'':{values - len(value)}}  {first}", "dim") if first else ""
        lines.append(Text.assemble((name.ljust(names), "dim"), "  ", value, behind))
        lines += [Text(f"{'':{names + values + 4}}{more}", "dim") for more in rest]
    return Text("\n").join(lines)


def frameless(left: Sequence[str], right: Sequence[str]) -> Table:
    """A table with these columns, to the left and to the right of what they hold, and no lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in (*left, *right):
        table.add_column(Text(name), justify="left" if name in left else "right", overflow="fold")
    return table
