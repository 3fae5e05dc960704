"""Options and output that several commands share."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nnx.errors import InputError
from nnx.system.platform import quote

LONGEST = 255  # bytes in the name of a file, on all common file systems


def check_utf8(path: Path | None, option: str = "--out") -> Path | None:
    """`path` itself. Raises InputError if it contains bytes that are not UTF-8, which no JSON or YAML file can name."""
    if path is not None and any("\ud800" <= c <= "\udfff" for c in str(path)):
        raise InputError(f"{option} {path}: not a UTF-8 name; rename it, or name another")
    return path


def check_out(out: Path | None) -> Path | None:
    """typer's callback for --out: `check_utf8`. Also raises InputError for a name that no file system takes."""
    if out is not None and any(len(os.fsencode(part)) > LONGEST for part in out.parts):
        raise InputError(f"--out {out}: a name in it has more than {LONGEST} bytes; use a shorter one")
    return check_utf8(out)


def is_run(name: str | Path) -> bool:
    """Whether `name` is a checkpoint file or a folder with one."""
    return str(name).endswith(".pt") or os.path.isfile(os.path.join(name, "checkpoint.pt"))


def check_checkpoint(checkpoint: Path) -> Path:
    """`checkpoint` itself. Raises InputError if it is a config or a recipe, if only its ending or its folder is
    missing, or if it is another file of a run."""
    name = str(checkpoint)
    if not os.path.exists(checkpoint):
        for likely in (f"{name}.pt", os.path.join("runs", name), os.path.join("runs", f"{name}.pt")):
            if is_run(likely) and os.path.exists(likely):
                raise InputError(f"{name}: no such file, did you mean {likely!r}?")
        from nnx.config import recipes

        if name in recipes():
            raise InputError(f"{name}: is a recipe, not a run; train it first: nnx train {name}")
        raise InputError(f"{name}: no such file; name a run folder, or a checkpoint in one")
    elif is_run(checkpoint.parent) and not is_run(checkpoint) and checkpoint.suffix in (".yaml", ".json", ".jsonl"):
        raise InputError(f"{name}: is not a checkpoint; did you mean {str(checkpoint.parent)!r}?")
    elif checkpoint.suffix in (".yaml", ".yml") and os.path.isfile(checkpoint):
        raise InputError(f"{name}: is a config, not a checkpoint; train it first: nnx train {quote(name)}")
    return checkpoint


def check_order(checkpoint: Path, others: Sequence[str], command: str) -> None:
    """Raises InputError if the checkpoint is not the first argument of `command`, but one of the `others`."""
    if others and not is_run(checkpoint) and (runs := [name for name in others if is_run(name)]):
        words = [runs[0], str(checkpoint), *(name for name in others if name != runs[0])]
        raise InputError(f"{runs[0]}: the checkpoint comes first: nnx {command} {' '.join(map(quote, words))}")


Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set optimizer.lr=0.01. Repeatable."),
]
CheckpointPath = Annotated[
    Path,
    typer.Argument(
        callback=check_checkpoint,
        help="A run folder, or a checkpoint file (checkpoint.pt, last.pt).",
        show_default=False,
    ),
]
ClassifierPath = Annotated[
    Path,
    typer.Argument(
        callback=check_checkpoint,
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
