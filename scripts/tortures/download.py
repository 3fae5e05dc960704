"""SIGKILL at 50 random moments of a download: the next run continues it, gets every byte right, and leaves no rest."""

import contextlib
import gzip
import hashlib
import http.server
import os
import random
import re
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnx import datasets
from nnx.datasets import _ensure_files, _progress, mnist
from nnx.datasets._archives import ARCHIVES, Archive
from tortures._child import check, ended, folder

FILES = list(mnist.PINNED)
PIECE, PAUSE = 1 << 13, 0.001  # the server is slow: bytes of a piece, seconds of pause after it


def torture(share: float, seed: int) -> dict[str, Any]:
    """Kill a download of a small MNIST, check the files, and load it in a second process, `share` of 50 times."""
    kills, generator = max(round(50 * share), 2), random.Random(seed)
    content = dict(zip(FILES, (*make_half(800, generator), *make_half(200, generator)), strict=True))
    packed = {f"{name}.gz": gzip.compress(whole) for name, whole in content.items()}
    total = sum(map(len, packed.values()))
    going_on = kept = again = 0
    with folder() as base, serve(packed, base / "asked") as url:
        set_archives(url, packed, "first")
        seconds = min(ended(lambda raw=base / name: ensure(raw)).seconds for name in ("first", "second"))
        for kill in range(kills):
            raw = base / str(kill) / "MNIST" / "raw"
            set_archives(url, packed, f"killed-{kill}")
            ended(lambda raw=raw: ensure(raw), kill_after=generator.uniform(0, seconds))
            done = {f"{path.name}.gz" for path in raw.glob("*ubyte") if path.read_bytes() == content[path.name]}
            check(len(done) == len(list(raw.glob("*ubyte"))), f"kill {kill}: an incomplete file was moved into place")
            parts = {path.stem: path.stat().st_size for path in raw.glob(".download/*.part")}
            set_archives(url, packed, f"next-{kill}")
            _heal(base / str(kill), content)
            missing = {
                name: parts.get(name, 0)
                for name, whole in packed.items()
                if name not in done and parts.get(name) != len(whole)
            }
            asked = _asked(base / "asked", f"next-{kill}")
            check(asked == missing, f"kill {kill}: requested {asked} instead of {missing}")
            going_on += any(missing.values())
            kept += sum(parts.values()) + sum(len(packed[name]) for name in done)
            again += sum(parts.get(name, 0) - start for name, start in asked.items())
    return {
        "kills, each healed by the next run": kills,
        "of them in the middle of a file": going_on,
        "bytes of a download": total,
    } | {
        "kept at a kill, on average": kept // kills,
        "kept, but requested again": again,
    }


def set_archives(url: str, packed: dict[str, bytes], who: str) -> None:
    """Serve the files from `url` from now on. The server logs `who` as the client."""
    urls = {name: f"{url}{who}/{name}" for name in packed}
    ARCHIVES["mnist"] = tuple(
        Archive((urls[name],), hashlib.sha256(whole).hexdigest(), len(whole)) for name, whole in packed.items()
    )


def make_half(count: int, generator: random.Random) -> tuple[bytes, bytes]:
    """`count` images of noise and their labels, in MNIST's format."""
    images = struct.pack(">4I", 0x803, count, 28, 28) + generator.randbytes(count * 784)
    return images, struct.pack(">2I", 0x801, count) + bytes(number % 10 for number in range(count))


def ensure(raw: Path) -> None:
    with _progress.reporting(lambda *_: None):
        _ensure_files.ensure_files("mnist", raw, FILES)


def _heal(base: Path, content: dict[str, bytes]) -> None:
    """Load everything in another process, and check that the folder then contains `content` and nothing else."""

    def load() -> None:
        datasets.load(mnist.Config(), seed=0, data_dir=str(base), progress=lambda *_: None).test()

    run = ended(load)
    check(run.code == 0, f"kill {base.name}: the next run ended with {run.code}: {run.err}")
    left = {path.name: path.read_bytes() if path.is_file() else b"" for path in (base / "MNIST" / "raw").iterdir()}
    check(left.keys() == content.keys(), f"kill {base.name}: left behind: {left.keys() - content.keys()}")
    check(left == content, f"kill {base.name}: the bytes differ from the server's")


def _asked(log: Path, who: str) -> dict[str, int]:
    """The name and the first byte of each request by `who`."""
    words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {name: int(start) for asker, name, start in words if asker == who}


@contextlib.contextmanager
def serve(files: dict[str, bytes], log: Path) -> Iterator[str]:
    """The URL of a slow server of `files`, in its own process. It writes each request to `log`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, who, name = self.path.split("/")
            whole = files[name]
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            with log.open("a") as file:
                file.write(f"{who} {name} {start}\n")
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(whole) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.end_headers()
            with contextlib.suppress(OSError):  # killed
                for at in range(start, len(whole), PIECE):
                    self.wfile.write(whole[at : at + PIECE])
                    time.sleep(PAUSE)

        def log_message(self, *_: Any) -> None:
            pass

    os.environ["no_proxy"] = "127.0.0.1"
    os.environ.pop("NNX_OFFLINE", None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        pid = os.fork()  # before any thread starts; in its own process, so that later forks have none of its threads
        if not pid:
            server.serve_forever()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
