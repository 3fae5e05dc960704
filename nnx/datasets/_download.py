"""Downloads a file over http, with mirrors and time-outs; goes on where a try before was cut or killed; checks the
SHA-256.

torchvision's own downloader is not used: it has no time-out, always starts over, and reports only to its own bar.
"""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnx.datasets._archives import Archive
from nnx.datasets._progress import Progress
from nnx.errors import DataError

TIMEOUT = 20.0  # seconds, to connect and between any two pieces
CHUNK = 1 << 18  # bytes, at most
TRIES = 5  # of one mirror, as long as each try changes something


def fetch(archive: Archive, part: Path, progress: Progress) -> None:
    """Make `part` the whole of `archive`, from the first of its mirrors to have the right content.

    What `part` holds already, of a download that was cut or killed, is gone on from where the server can. No more is
    written than the archive is long. Raises DataError with each mirror's reason where none has it: then `part` is a
    beginning, or missing.
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
    raise DataError("; ".join(reasons))


class _NetworkError(Exception):
    """The network's failure, told apart from the disk's."""


@contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Append to `part` what it lacks, up to `size`. What has arrived is written at once, so that a kill loses none of
    it."""
    done = _length(part)
    if done == size:
        return
    headers = {"User-Agent": "nnx"} | ({"Range": f"bytes={done}-"} if done else {})
    with _network():
        try:
            response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if done and error.code == 416:  # it has nothing beyond what is there, which may be all: the sum decides
                return
            raise
    with response:
        offered = response.length
        if response.status != 206:  # all of it, whatever was asked for
            done = 0
        elif match := re.fullmatch(rf"bytes {done}-\d+/(\d+)", response.headers.get("Content-Range", "")):
            offered = int(match[1])
        else:
            part.unlink()  # else it would be asked for the same range for ever
            raise _NetworkError("it sent another range than it was asked for")
        total = size or offered
        if total is None or offered not in (None, total):
            raise _NetworkError(
                f"it has {offered:,} bytes, not {total:,}" if total else "it does not say how many bytes it has"
            )
        progress(url, done, total)
        with part.open("ab") as file:
            file.truncate(done)
            while done < total:
                with _network():
                    piece = response.read1(min(CHUNK, total - done))
                if not piece:
                    raise _NetworkError(f"the connection was cut after {done:,} of {total:,} bytes")
                file.write(piece)
                file.flush()
                done += len(piece)
                progress(url, done, total)


def _check(part: Path, sha256: str) -> None:
    """Remove `part` and raise _NetworkError where it is not what is expected: nothing can be built on it."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise _NetworkError(f"not the expected content (its SHA-256 is {found}, not {sha256})")
