"""Downloads a file over http, with mirrors, time-outs and progress, and checks its MD5.

torchvision's own downloader is not used: it has no time-out, reports only to its own bar, and tries plain http after https.
"""

import hashlib
import http.client
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from nnx.errors import DataError

TIMEOUT = 20.0  # seconds, to connect and between any two pieces
CHUNK = 1 << 18  # bytes

Progress = Callable[[str, int, int | None], None]
"""`progress(url, done, total)`, in bytes, at the start (done is 0) and after each piece; it may raise to stop the download."""

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
def shown() -> Iterator[Progress]:
    """Where to report: what `reporting` set, else a bar a file where stderr is a terminal, else a line a file."""
    if progress := _progress.get():
        yield progress
    elif not sys.stderr.isatty():
        yield lambda url, done, total: None if done else print(f"downloading {url}", file=sys.stderr)  # noqa: T201 (to stderr)
    else:
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn())
        with bars.Progress(*columns, console=Console(stderr=True)) as bar:
            tasks: dict[str, bars.TaskID] = {}

            def show(url: str, done: int, total: int | None) -> None:
                if url not in tasks:
                    tasks[url] = bar.add_task(url.rpartition("/")[2], total=total)
                bar.update(tasks[url], completed=done)

            yield show


def fetch(urls: Iterable[str], target: Path, *, md5: str, progress: Progress) -> None:
    """Write to `target` what the first of `urls` to answer with the right content has, https before http.

    Raises DataError with each url's reason where none has. `target` may then be incomplete: give it a temporary name.
    """
    reasons = []
    for url in sorted(urls, key=lambda url: not url.startswith("https:")):
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with target.open("wb") as file:
                for piece in _pieces(url, progress):
                    digest.update(piece)
                    file.write(piece)
        except _NetworkError as error:
            reasons.append(f"{url}: {error}")
            continue
        if digest.hexdigest() == md5:
            return
        reasons.append(f"{url}: not the expected content (its MD5 is {digest.hexdigest()}, not {md5})")
    raise DataError("; ".join(reasons))


class _NetworkError(Exception):
    """The network's failure, told apart from the disk's."""


def _pieces(url: str, progress: Progress) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "nnx"}), timeout=TIMEOUT) as response:
            total, done = response.length, 0
            progress(url, done, total)
            while piece := response.read(CHUNK):
                yield piece
                done += len(piece)
                progress(url, done, total)
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if total is not None and done < total:
        raise _NetworkError(f"the connection was cut after {done:,} of {total:,} bytes")
