"""Print the progress of a run on stderr: a live view on a terminal, else one plain line per epoch.

summary = follow(run(config), quiet=quiet)
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from itertools import groupby, pairwise
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from nnx.errors import printable
from nnx.events import Epoch, Event, Finished, Health, Started, Step
from nnx.formatting import loss as _loss
from nnx.formatting import percent as _percent
from nnx.formatting import print_wrapped
from nnx.formatting import seconds as _seconds
from nnx.terminal.console import (
    align,
    choice_rows,
    duplicates_warning,
    model_table,
    print_lines,
    stderr_console,
    wraps,
)

# seconds between two drawings, at least; at 20 steps per second, drawing costs 0.9 % of a core of a 2.5 GHz Xeon
REDRAW = 1 / 4
# size of the curve in characters, at most
COLUMNS = 60
ROWS = 6
PREPARING = "preparing data and network; a long training measures its speed (2 s)"  # on the screen until Started
DIM = Style(dim=True)
CYAN = Style(color="cyan")
MAGENTA = Style(color="magenta")


def follow(events: Iterable[Event], *, quiet: bool = False) -> dict[str, Any]:
    """Print the progress of a run until its end, and return its summary."""
    summary: dict[str, Any] = {}
    for event in show(events, quiet=quiet):
        if isinstance(event, Finished):
            summary = event.summary
    return summary


def show(events: Iterable[Event], *, quiet: bool = False, console: Console | None = None) -> Iterator[Event]:
    """Print each event and pass it on. Prints on stderr by default: live on a terminal, else one plain line per epoch.

    `quiet` silences everything but warnings.
    """
    if quiet:
        for event in events:
            for warning in _warnings(event):
                print_wrapped(f"warning: {printable(warning)}")
            yield event
        return
    console = console or stderr_console()
    view = _LiveView()
    table: _EpochTable | None = None
    lines: list[Text] = []
    last_drawn = -math.inf

    def draw() -> None:
        if lines:
            print_lines(lines, console)  # rich redraws the live part below them
        elif live:
            live.refresh()
        lines.clear()

    # Events trigger the drawing, not rich's thread: a step without a drawing only costs a look at the clock
    with (
        Live(view, console=console, auto_refresh=False, redirect_stdout=False)
        if console.is_interactive
        else nullcontext() as live
    ):
        try:
            for event in events:
                view.update(event)
                if isinstance(event, Health) and not live:
                    lines.append(health_line(event, view.epochs))
                if warnings := _warnings(event):
                    draw()  # the lines before the warnings
                for warning in warnings:
                    print_lines([Text(f"warning: {printable(warning)}", "yellow")], console)
                if isinstance(event, Started):
                    print_lines([header(event, console.width if wraps(console) else None)], console)
                    if live:
                        console.print("", model_table(event.layers, event.parameters), "", sep="\n")
                        table = _EpochTable(event, console.width)
                elif isinstance(event, Epoch):
                    lines += table.rows(event) if table else epoch_lines(event, view.epochs)
                if not live or time.monotonic() - last_drawn >= REDRAW:
                    draw()
                    last_drawn = time.monotonic()
                yield event
        finally:  # also if the run ends early
            view.preparing = False
            draw()


def _warnings(event: Event) -> Sequence[str]:
    """The warnings that an event carries."""
    if isinstance(event, Finished):
        summary = event.summary
        warnings = [*summary.get("warnings", ())]
        if count := summary.get("test_duplicates"):
            conflicts = summary.get("test_duplicate_conflicts")
            examples = summary.get("test_duplicate_examples", ())
            warnings.append(duplicates_warning(count, summary["test_samples"], conflicts, examples))
        return warnings
    return event.warnings if isinstance(event, Started | Health) else ()


def header(event: Started, width: int | None = None) -> Text:
    """The run folder, the automatic choices, the number of samples, and the size of the model, in `width` columns."""
    samples = ", ".join(f"{count:,} {split}" for split, count in event.samples.items() if count)
    model = f"{event.parameters:,} parameters in {len(event.layers)} layer{'s' * (len(event.layers) != 1)}"
    choices = choice_rows(event.choices)
    run = [("run", printable(str(event.run)), ""), *_resumed(event)]
    return align([*run, *choices, ("samples", samples, ""), ("model", model, "")], width)


def _resumed(event: Started) -> list[tuple[str, str, str]]:
    """Where a resumed run continues, and its best epoch so far."""
    if not event.step:
        return []
    whole = event.step == event.epoch * event.steps_per_epoch
    where = f"epoch {event.epoch} of {event.epochs}" if whole else f"step {event.step:,}"
    return [("resumed", f"after {where}{f'; best {best}' if (best := _best_figure(event.best)) else ''}", "")]


def _best_figure(best: dict[str, Any] | None) -> str:
    """The validation accuracy of the best epoch and its number: "97.94 % at epoch 3". Empty if it was not measured."""
    accuracy = best["val_accuracy"] if best and "val_accuracy" in best else None
    return "" if best is None or accuracy is None else f"{_percent(accuracy)} at epoch {best['epoch']}"


def epoch_lines(event: Epoch, epochs: int) -> list[Text]:
    """One line for a pipe or a file, and a second one if training stops early. Without validation, it has none."""
    best = "bold green" if event.is_best else ""
    val_loss = _figure(event.val_loss, _loss)
    accuracy = f"{_figure(event.val_accuracy, _percent):>7} {'*' if event.is_best else ' '}"
    validation = [("  val ", "dim"), f"{val_loss:>8}  ", (accuracy, best)] if val_loss != "-" else [" "]
    line = Text.assemble(
        ("epoch ", "dim"),
        f"{event.epoch:>{len(str(epochs))}}/{epochs}",
        ("  loss ", "dim"),
        f"{_loss(event.train_loss):>8}",
        *validation,
        (" lr ", "dim"),
        f"{event.lr:.1e}  {_seconds(event.seconds):>6}  {event.samples_per_second:,.0f}/s",
    )
    return [line, *_stopping(event)]


def _stopping(event: Epoch) -> list[Text]:
    """The line that says why training stops early, if it does."""
    return [] if event.stopping is None else [Text(f"stopping: {event.stopping}")]


HEADER_EVERY = 20  # rows of the table of epochs
GAP = 2  # spaces between two of its columns
# the columns of it, and their widths
WIDTHS = {
    "epoch": 5,
    "train loss": 10,
    "val loss": 8,
    "val acc": 8,
    "best": 4,
    "lr": 7,
    "time": 6,
    "samples/s": 9,
}
# left out on a narrow terminal, in this order
LEFT_OUT = ("samples/s", "lr", "time", "best", "val loss", "train loss")
VALIDATION = ("val loss", "val acc", "best")


class _EpochTable:
    """The epochs of a run as rows of a table, with a header above every twentieth. Narrow terminals get fewer columns,
    a run without validation none of its columns."""

    def __init__(self, event: Started, width: int) -> None:
        self.epochs = event.epochs
        self.widths = dict(WIDTHS, epoch=max(WIDTHS["epoch"], 2 * len(str(event.epochs)) + 1))
        if not event.samples.get("validation", 1):
            for name in VALIDATION:
                del self.widths[name]
        for name in LEFT_OUT:
            if sum(self.widths.values()) + GAP * (len(self.widths) - 1) > width:
                self.widths.pop(name, None)
        self.count = 0

    def rows(self, event: Epoch) -> list[Text]:
        """The row of an epoch, after a header where one is due, and a line if training stops early."""
        cells = {
            "epoch": f"{event.epoch}/{self.epochs}",
            "train loss": _figure(event.train_loss, _loss),
            "val loss": _figure(event.val_loss, _loss),
            "val acc": _figure(event.val_accuracy, _percent),
            "best": "*" if event.is_best else "",
            "lr": f"{event.lr:.1e}",
            "time": _seconds(event.seconds),
            "samples/s": f"{event.samples_per_second:,.0f}",
        }
        styles = {"val acc": "bold green", "best": "bold green"} if event.is_best else {}
        header = [] if self.count % HEADER_EVERY else [self._row({name: name for name in self.widths}, {}, "dim")]
        self.count += 1
        return [*header, self._row(cells, styles), *_stopping(event)]

    def _row(self, cells: dict[str, str], styles: dict[str, str], style: str = "") -> Text:
        """Right-aligned cells; one that is wider than its column takes of the gap before it."""
        row = Text()
        for index, (name, width) in enumerate(self.widths.items()):
            row.append(f"{cells[name]:>{width + GAP * (index > 0)}}", styles.get(name, style))
        return row


def _figure(value: float | None, render: Callable[[float], str]) -> str:
    """A figure as text; "-" if it was not measured."""
    return "-" if value is None else render(value)


def health_line(event: Health, epochs: int) -> Text:
    """The health of the network, printed below the epoch's line: 80 columns wide for a few ReLU layers. Before the
    first step, also its loss and that of chance."""
    figures = [("loss", f"{_loss(event.loss)} (chance {_loss(event.guess)})")] if not event.epoch else []
    parts = [part for name, value in (*figures, *_health_figures(event)) for part in ((f"  {name} ", "dim"), value)]
    return Text.assemble((f"health{'':{2 * len(str(epochs))}}", "dim"), *parts)


def _health_figures(event: Health) -> list[tuple[str, str]]:
    """The share of dead ReLUs in each layer, or the largest of many; the update size; the gradient norms of the first
    and the last layer."""
    shares = list(event.dead.values())
    gradients = list(event.gradients.values())
    dead = ", ".join(f"{share:.0%}" for share in shares) if len(shares) <= 4 else f"{max(shares):.0%} at most"
    figures = [("dead", dead.replace("%", " %"))] if shares else []
    if event.update is not None:
        figures.append(("update", f"{event.update:.1e}"))
    if gradients:
        figures.append(("gradient", f"{gradients[0]:.1e} first, {gradients[-1]:.1e} last"))
    return figures


class _LiveView:
    """The live part of the screen: progress bars, figures, and the loss curve."""

    def __init__(self) -> None:
        self.begun = 0.0  # time of the first step in this process, also for a resumed run
        self.first = self.step = 0
        self.epoch = self.batch = 0  # both from 0
        self.epochs = self.steps_per_epoch = 1
        self.latest: Step | None = None
        self.evaluated: dict[str, Any] | None = None  # line of metrics.jsonl of the latest epoch
        self.best: dict[str, Any] | None = None  # of the best one
        self.preparing = True  # until Started, or an error before it
        self.finished = False
        self.health: Health | None = None
        self.train = _Curve()
        self.validation = _Curve()

    def update(self, event: Event) -> None:
        match event:
            case Started():
                self.preparing = False
                self.epochs = event.epochs
                self.steps_per_epoch = event.steps_per_epoch
                self.epoch = event.epoch
                self.step = self.first = event.step
                self.begun = time.monotonic()
                for record in event.history:
                    self.train.add(record["step"], record["train_loss"])
                    self._add_epoch(record)
                self.best = event.best
            case Step():
                self.epoch = event.epoch
                self.batch = event.batch
                self.step = event.step
                self.latest = event
                self.train.add(event.step, event.loss)
            case Epoch():
                self.epoch = event.epoch
                self.batch = 0
                self.step = event.step
                self._add_epoch(vars(event))
                self.best = self.evaluated if event.is_best else self.best
            case Health():
                self.health = event
            case Finished():
                self.finished = True

    def _add_epoch(self, record: dict[str, Any]) -> None:
        """Add a finished epoch, as a line of metrics.jsonl."""
        self.evaluated = record
        self.validation.add(record["step"], record.get("val_loss"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        if not self.begun:
            if self.preparing:
                yield Segment(PREPARING, DIM)
                yield Segment.line()
            return
        if not self.finished:
            yield Segment.line()
            yield from self._progress(options)
        if options.size.height >= 20 and options.max_width >= 40 and not options.ascii_only:
            yield Segment.line()
            columns = min(COLUMNS, options.max_width - 10)
            yield from _draw_curves(self.train, self.validation, columns, self.steps_per_epoch)
        if self.finished:
            yield Segment.line()

    def _progress(self, options: ConsoleOptions) -> Iterator[Segment]:
        steps = self.epochs * self.steps_per_epoch
        epoch = f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}"
        batch = f"batch {self.batch}/{self.steps_per_epoch}"
        label = max(len(epoch), len(batch))
        rate = (self.step - self.first) / max(time.monotonic() - self.begun, 1e-9)
        yield from _bar(epoch.ljust(label), self.step, steps, rate, options)
        yield from _bar(batch.ljust(label), self.batch, self.steps_per_epoch, rate, options)
        if step := self.latest:
            rate_figure = ("samples/s", f"{step.samples_per_second:,.0f}")
            yield from _figures(options, ("loss", _loss(step.loss)), ("lr", f"{step.lr:.1e}"), rate_figure)
        if self.evaluated and (best := _best_figure(self.best)):
            yield from _figures(options, ("val acc", _percent(self.evaluated["val_accuracy"])), ("best", best))
        if self.health:
            yield from _figures(options, *_health_figures(self.health))


# Segments, as Text takes rich twice as long to lay out: 3.3 instead of 1.7 ms for the whole live part
def _bar(label: str, done: int, total: int, rate: float, options: ConsoleOptions) -> Iterator[Segment]:
    left = f"{timedelta(seconds=round((total - done) / rate))} left" if rate else ""
    end = f"  {100 * done / total:3.0f} %  {left}"
    width = max(0, min(COLUMNS, options.max_width - len(label) - len(end) - 2))
    full = round(width * min(done / total, 1))
    heavy, light = ("#", "-") if options.ascii_only else ("━", "─")
    yield from (
        Segment(f"{label}  "),
        Segment(heavy * full, CYAN),
        Segment(light * (width - full), DIM),
        Segment(end),
        Segment.line(),
    )


def _figures(options: ConsoleOptions, *figures: tuple[str, str]) -> Iterator[Segment]:
    """Names and values, as many in a line as fit."""
    column = 0
    for name, value in figures:
        length = len(name) + 1 + len(value)
        if column and column + length > options.max_width:
            yield Segment.line()
            column = 0
        yield from (Segment(f"{name} ", DIM), Segment(f"{value}   "))
        column += length + 3
    yield Segment.line()


# ---------------------------------------------------------------- the curve


class _Curve:
    """(step, ln loss) of a run of any length, thinned to at most one point per column of dots, evenly along the axis.
    Skips values that are not finite."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._gap = 0  # steps between two points, at least

    def add(self, step: int, loss: float | None) -> None:
        if loss is None or not math.isfinite(loss):
            return
        self._append(step, math.log(max(loss, 1e-9)))
        if len(self.points) > 2 * COLUMNS:
            points, self.points = self.points, []
            self._gap = (points[-1][0] - points[0][0]) // COLUMNS
            for point in points:
                self._append(*point)

    def _append(self, step: int, height: float) -> None:
        if not self.points or step - self.points[-1][0] >= self._gap:
            self.points.append((step, height))


BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # the bit of each of a character's 2 x 4 dots
EMPTY = 0x2800
MARK = ord("o")


def _draw_curves(train: _Curve, validation: _Curve, columns: int, steps_per_epoch: int) -> Iterator[Segment]:
    """Draw the training loss as a line of dots and each validation loss as an o, on a logarithmic scale, over the
    epochs from 0 to now."""
    points = train.points + validation.points
    if len(points) < 2:
        return
    steps, heights = zip(*points, strict=True)
    last = max(*steps, 1)
    top = max(heights)
    dots_per_step = (2 * columns - 1) / last
    dots_per_unit = (4 * ROWS - 1) / max(top - min(heights), 1e-9)

    def dots(curve: _Curve) -> list[tuple[int, int]]:
        return [(round(x * dots_per_step), round((top - y) * dots_per_unit)) for x, y in curve.points]

    cells = [[EMPTY] * columns for _ in range(ROWS)]
    for (x0, y0), (x1, y1) in pairwise(dots(train)):
        length = max(x1 - x0, abs(y1 - y0), 1)
        for i in range(length + 1):
            x = x0 + (x1 - x0) * i // length
            y = y0 + (y1 - y0) * i // length
            cells[y // 4][x // 2] |= BRAILLE[x % 2][y % 4]
    for x, y in dots(validation):
        cells[y // 4][x // 2] = MARK
    mark = "o val" if validation.points else ""
    labels = [_loss(math.exp(top)), "loss,", "log scale", "⠒⠒ train", mark, _loss(math.exp(min(heights)))]
    for label, row in zip(labels, cells, strict=True):
        yield Segment(f"{label:>9} ", DIM)
        for is_validation, run in groupby(row, lambda cell: cell == MARK):
            yield Segment("".join(map(chr, run)).replace(chr(EMPTY), " "), MAGENTA if is_validation else CYAN)
        yield Segment.line()
    now = f"{last / steps_per_epoch:.1f}".removesuffix(".0")
    yield Segment(f"{'epoch':>9} 0{now:>{columns - 1}}", DIM)
    yield Segment.line()
