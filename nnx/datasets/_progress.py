"""Progress of downloads, decoding and measuring: on stderr, or reported to a function of the caller."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from nnx.formatting import print_wrapped

if TYPE_CHECKING:
    from rich import progress as bars

Progress = Callable[[str, int, int | None], None]
"""`progress(url, done, total)`, in bytes, called when a server answers and after each piece; may raise to stop."""

_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(progress: Progress | None) -> Iterator[None]:
    """Report downloads inside the block to `progress`, or on stderr if that is None."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


@contextmanager
def silent(quiet: bool = True) -> Iterator[None]:
    """Show no progress inside the block, if `quiet`: the effect of `-q`."""
    with reporting((lambda url, done, total: None) if quiet else _progress.get()):
        yield


@contextmanager
def download_progress() -> Iterator[Progress]:
    """The function to report a download to: that of `reporting`, else a bar per file on a terminal, else a line."""
    if progress := _progress.get():
        yield progress
    elif not sys.stderr.isatty():
        printed: set[str] = set()

        def print_once(url: str, done: int, total: int | None) -> None:
            if url not in printed:
                printed.add(url)
                print_wrapped(f"downloading {url}")

        yield print_once
    else:
        from rich import progress as bars
        from rich.console import Console

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
        )
        with started(bars.Progress(*columns, console=Console(stderr=True))) as bar:
            tasks: dict[str, bars.TaskID] = {}

            def update_bar(url: str, done: int, total: int | None) -> None:
                if url not in tasks:
                    tasks[url] = bar.add_task(url.rpartition("/")[2], total=total)
                bar.update(tasks[url], completed=done)

            yield update_bar


@contextmanager
def count_progress(action: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of units just done: advances a bar on a terminal.

    Elsewhere one line is printed at the start, "decoding 70,000 images". With `reporting` or -q nothing is shown.
    """
    if _progress.get():
        yield lambda done: None
    elif not sys.stderr.isatty():
        print_wrapped(f"{action} {total:,} {unit}")
        yield lambda done: None
    else:
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.TextColumn(action), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        with started(bars.Progress(*columns, console=Console(stderr=True), transient=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.advance(task, done)


@contextmanager
def started(bar: "bars.Progress") -> Iterator["bars.Progress"]:
    """`bar`, started, and stopped however the block ends.

    A signal that comes while `with bar` starts would leave the cursor hidden and stderr redirected.
    """
    try:
        bar.start()
        yield bar
    finally:
        bar.stop()
