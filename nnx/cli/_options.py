"""Options and output that several commands share."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nnx.errors import InputError


def check_utf8(path: Path | None, option: str = "--out") -> Path | None:
    """`path` itself. Raises InputError if it contains bytes that are not UTF-8, which no JSON or YAML file can name."""
    if path is not None and any("\ud800" <= c <= "\udfff" for c in str(path)):
        raise InputError(f"{option} {path}: not a UTF-8 name; rename it, or name another")
    return path


def check_out(out: Path | None) -> Path | None:
    """typer's callback for --out: `check_utf8`."""
    return check_utf8(out)


def suggest_ending(checkpoint: Path) -> Path:
    """`checkpoint` itself. Raises InputError if only its ending is missing."""
    if not os.path.exists(checkpoint) and os.path.isfile(f"{checkpoint}.pt"):
        raise InputError(f"{checkpoint}: no such file, did you mean {str(checkpoint) + '.pt'!r}?")
    return checkpoint


Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set optimizer.lr=0.01. Repeatable."),
]
CheckpointPath = Annotated[
    Path,
    typer.Argument(
        callback=suggest_ending, help="A run folder, or a checkpoint file (checkpoint.pt, last.pt).", show_default=False
    ),
]
ClassifierPath = Annotated[
    Path,
    typer.Argument(
        callback=suggest_ending,
        help="A run folder, a checkpoint file (checkpoint.pt, last.pt), or an exported ONNX file.",
        metavar="CHECKPOINT",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="Device: auto, cpu, cuda, cuda:N or mps.", show_default=False),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir", metavar="FOLDER", help="Folder of the datasets.", show_default="NNX_DATA_DIR, or the user's cache"
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", callback=check_out, help="Folder to write to.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress or notes.")]


def print_json(value: Any) -> None:
    """Print `value` on stdout as one JSON document. Raises ValueError for NaN or infinity, which JSON can't express."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
