"""How far it is with what takes a while: downloads, decoding, measuring. On stderr, or told to a function of the
caller's."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich import progress as bars

Progress = Callable[[str, int, int | None], None]
"""`progress(url, done, total)`, in bytes, when a server answers and after each piece; it may raise to stop the
download."""

_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(progress: Progress | None) -> Iterator[None]:
    """Downloads inside report to `progress`, or to stderr where it is None."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


@contextmanager
def silent(really: bool = True) -> Iterator[None]:
    """Nothing inside shows how far it is, if `really`: what `-q` asks for."""
    with reporting((lambda url, done, total: None) if really else _progress.get()):
        yield


@contextmanager
def downloads() -> Iterator[Progress]:
    """Where to report: what `reporting` set, else a bar a file where stderr is a terminal, else a line a file."""
    if progress := _progress.get():
        yield progress
    elif not sys.stderr.isatty():
        told: set[str] = set()

        def tell(url: str, done: int, total: int | None) -> None:
            if url not in told:
                told.add(url)
                print(f"downloading {url}", file=sys.stderr)  # noqa: T201 (to stderr)

        yield tell
    else:
        from rich import progress as bars
        from rich.console import Console

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
        )
        with running(bars.Progress(*columns, console=Console(stderr=True))) as bar:
            tasks: dict[str, bars.TaskID] = {}

            def show(url: str, done: int, total: int | None) -> None:
                if url not in tasks:
                    tasks[url] = bar.add_task(url.rpartition("/")[2], total=total)
                bar.update(tasks[url], completed=done)

            yield show


@contextmanager
def counted(doing: str, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """What to tell of each so many done of `total`: a bar where stderr is a terminal, else a line, "decoding 70,000
    images"; nothing where `reporting` goes elsewhere, as with -q."""
    if _progress.get():
        yield lambda done: None
    elif not sys.stderr.isatty():
        print(f"{doing} {total:,} {what}", file=sys.stderr)  # noqa: T201 (to stderr)
        yield lambda done: None
    else:
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.TextColumn(doing), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        with running(bars.Progress(*columns, console=Console(stderr=True), transient=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.advance(task, done)


@contextmanager
def running(bar: "bars.Progress") -> Iterator["bars.Progress"]:
    """`bar`, stopped however this ends: also where a signal comes while it starts, after which `with bar` would leave
    the cursor hidden and stderr its own."""
    try:
        bar.start()
        yield bar
    finally:
        bar.stop()
