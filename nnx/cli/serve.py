"""nnx serve CHECKPOINT...: a local page on which one draws, and each network answers."""

import gc
import ipaddress
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nnx.cli._options import DataDir, Device, Quiet, check_checkpoint
from nnx.cli._start import import_torch
from nnx.errors import InputError
from nnx.formatting import print_wrapped
from nnx.system import packages, signals

LOOPBACK = "127.0.0.1"
PACKAGES = ("fastapi", "uvicorn")


def serve(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="Run folders, checkpoint files, or folders of runs.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, metavar="PORT", help="Port of the page.")] = 8000,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="IP address to listen on. Others than this can be reached.")
    ] = LOOPBACK,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    device: Device = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Draw a digit, and see each network answer.

    Serves a local page for one or several networks: draw, drop an image, or
    take a test sample. It shows their probabilities, what they see, their
    layers and why they decide. Also answers programs: see /docs.

    Example: nnx serve runs/mlp runs/cnn
    """
    checkpoints = [check_checkpoint(path) for path in checkpoints]
    packages.require(PACKAGES, "serve", "nnx serve")
    address = _check_address(host)
    import_torch()
    from nnx.serve import application, choose, guard, server
    from nnx.serve.service import Service
    from nnx.terminal import console
    from nnx.training.setup import runtime_for

    with signals.catch_signals(), signals.exit_on_signal("stopped serving"):
        listener = server.bind(address, port)
        networks, notes = choose.find_networks(
            checkpoints, lambda saved: runtime_for(saved.config, device=device or "cpu", precision="float32").device
        )
        reached_at = LOOPBACK if ipaddress.ip_address(address).is_unspecified else address
        url = f"http://{f'[{reached_at}]' if ':' in reached_at else reached_at}:{port}"
        if not ipaddress.ip_address(address).is_loopback:
            notes.append(f"warning: --host {address} lets other machines use this page; there is no password")
        if not quiet:
            console.print_notes(notes)
            print_wrapped(f"serving {', '.join(network.name for network in networks)}; Ctrl-C ends it", sys.stderr)
        service = Service(networks, data_dir)

        def announce() -> None:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            if opens:
                _open(url)

        guarded = application.build(service, guard.allowed_hosts(address, port))
        gc.freeze()  # otherwise the first full garbage collection stops an answer for 0.1 s
        server.serve(guarded, listener, announce)


def _check_address(host: str) -> str:
    """The IP address that is meant. Raises InputError."""
    try:
        return str(ipaddress.ip_address(LOOPBACK if host == "localhost" else host.strip("[]")))
    except ValueError:
        raise InputError(f"--host {host}: is not an IP address; give one, such as {LOOPBACK} or 0.0.0.0") from None


def _open(url: str) -> None:
    """Open the page in a browser, if there is a display."""
    has_display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_display:
        import threading
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
