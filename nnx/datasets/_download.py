"""Downloads a file over http, with mirrors and time-outs; resumes an interrupted download; checks the SHA-256.

torchvision's downloader is not used: it has no time-out, always starts again, and shows progress only on its own bar.
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnx.datasets._archives import Archive
from nnx.datasets._progress import Progress
from nnx.system import locks

TIMEOUT = 20.0  # seconds, to connect and between any two pieces
CHUNK = 1 << 18  # bytes, at most
TRIES = 5  # per mirror, as long as each try changes something


def fetch(archive: Archive, part: Path, progress: Progress) -> None:
    """Download `archive` to `part`, from the first of its mirrors that has the right content.

    Resumes a download that `part` contains the beginning of, if the server can. Never writes more than the archive's
    length. Raises DownloadError with each mirror's error if none has the content; `part` is then partial or missing.
    """
    reasons = []
    for url in archive.urls:
        for _ in range(TRIES):
            before = _length(part)
            try:
                _continue(url, part, archive.size, progress)
                _check(part, archive.sha256)
            except _NetworkError as error:
                reason = f"{url}: {error}"
            else:
                return
            if _length(part) == before:
                break
        reasons.append(reason)
    raise DownloadError("; ".join(reasons))


class DownloadError(Exception):
    """No mirror has the content of an archive."""


class _NetworkError(Exception):
    """An error of the network, as distinct from one of the disk."""


@contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Append the rest, up to `size`, to `part`. Writes each piece at once, so that a kill loses none of it."""
    done = _length(part)
    if done == size:
        return
    headers = {"User-Agent": "nnx"} | ({"Range": f"bytes={done}-"} if done else {})
    with _network():
        try:
            response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if done and error.code == 416:  # the server has nothing more; the hash decides whether this is all
                return
            raise
    with response:
        offered = response.length
        if response.status != 206:  # the whole file, whatever range was requested
            done = 0
        elif match := re.fullmatch(rf"bytes {done}-\d+/(\d+)", response.headers.get("Content-Range", "")):
            offered = int(match[1])
        else:
            part.unlink()  # otherwise every try would request the same range
            raise _NetworkError("the server sent a different range than requested")
        total = size or offered
        if total is None or offered not in (None, total):
            problem = f"has {offered:,} bytes, not {total:,}" if total else "does not report the number of bytes"
            raise _NetworkError(f"the server {problem}")
        progress(url, done, total)
        with os.fdopen(locks.open_regular(part, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
            file.truncate(done)
            while done < total:
                with _network():
                    piece = response.read1(min(CHUNK, total - done))
                if not piece:
                    raise _NetworkError(f"the connection was lost after {done:,} of {total:,} bytes")
                file.write(piece)
                file.flush()
                done += len(piece)
                progress(url, done, total)


def _check(part: Path, sha256: str) -> None:
    """Remove `part` and raise _NetworkError if its content is wrong, so that no later try resumes it."""
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        part.unlink()
        raise _NetworkError(f"not the expected content (its SHA-256 is {digest}, not {sha256})")
