"""Find the checkpoints to serve: files, run folders, and folders of runs."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from nnx import checkpoint as checkpoints
from nnx.errors import CheckpointError, InputError, printable
from nnx.preprocessing.spec import Spec
from nnx.serve.network import Network, fits

MAX_FOUND = 8  # networks from folders of runs: more don't fit on a page


class Found(NamedTuple):
    """A checkpoint, and what the page would call it."""

    name: str
    path: Path
    spec: Spec


def find_networks(
    paths: Sequence[Path], device: Callable[[checkpoints.Checkpoint], torch.device]
) -> tuple[list[Network], list[str]]:
    """The networks of checkpoint files and run folders, and those in folders of runs that fit together with them; and
    notes on what was left out.

    Of a folder alone, the largest group that fits together is served, its newest at most MAX_FOUND. Raises
    CheckpointError for a named checkpoint that can't be read, and InputError for two that do not fit together.
    """
    named: list[Found] = []
    found: list[Found] = []
    notes: list[str] = []
    names: set[str] = set()
    for path in paths:
        folder = os.path.isdir(path) and not os.path.isfile(path / "checkpoint.pt")
        for file in _runs_in(path) if folder else [checkpoints.locate(path)]:
            try:
                spec = checkpoints.read(file).spec  # keeps no weights: there may be hundreds of runs
            except CheckpointError as error:
                if not folder:
                    raise
                notes.append(f"left out: {error}")
                continue
            (found if folder else named).append(Found(_unique_name(file, names), file, spec))
    for other in named[1:]:
        if not fits(named[0].spec, other.spec):
            problem = f"does not fit {named[0].path}: {_difference(named[0].spec, other.spec)}"
            raise InputError(f"{other.path}: {problem}; serve it alone, on another --port")
    if not named and not found:
        raise CheckpointError(f"{paths[0]}: contains no run whose checkpoint.pt can be read; name one")
    chosen = [each for each in found if fits(named[0].spec, each.spec)] if named else max(_groups(found), key=len)
    first = (named or chosen)[0].spec
    notes += [f"left out: {each.path}: {_difference(first, each.spec)}" for each in found if each not in chosen]
    if len(chosen) > MAX_FOUND:
        notes.append(f"left out: {len(chosen) - MAX_FOUND} older of {len(chosen)} runs; name them to serve them")
    served = [*named, *sorted(chosen[:MAX_FOUND], key=lambda each: each.name)]
    return [_load(each, device) for each in served], [printable(note) for note in notes]


def _load(found: Found, device: Callable[[checkpoints.Checkpoint], torch.device]) -> Network:
    saved = checkpoints.read(found.path)
    return Network(found.name, found.path, saved, device(saved))


def _groups(found: Sequence[Found]) -> list[list[Found]]:
    """The checkpoints that fit together, in groups, in the order of their first members."""
    groups: list[list[Found]] = []
    for each in found:
        home = next((group for group in groups if fits(group[0].spec, each.spec)), None)
        if home is None:
            groups.append([each])
        else:
            home.append(each)
    return groups


def _runs_in(folder: Path) -> list[Path]:
    """The checkpoints of the runs in a folder, the newest first. Raises CheckpointError if there is none."""
    try:
        files = [run / "checkpoint.pt" for run in folder.iterdir() if os.path.isfile(run / "checkpoint.pt")]
        files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: can't be read ({error.strerror}); check its permissions") from None
    if not files:
        raise CheckpointError(f"{folder}: contains no run with a checkpoint.pt; train one: nnx train digits_cnn")
    return files


def _unique_name(file: Path, names: set[str]) -> str:
    """What the page calls a checkpoint: its run's name, or its own if that is not checkpoint.pt."""
    run = file.absolute().parent.name
    base = printable(run if file.name == "checkpoint.pt" else f"{run}/{file.stem}")[:60] or "network"
    name, n = base, 1
    while name in names:
        n += 1
        name = f"{base} ({n})"
    names.add(name)
    return name


def _difference(first: Spec, second: Spec) -> str:
    if first.is_image != second.is_image:
        kinds = [("rows of a table", "images")[spec.is_image] for spec in (second, first)]
        return f"it was trained on {kinds[0]}, not on {kinds[1]}"
    if first.classes != second.classes:
        counts = [f"{len(spec.classes):,}" for spec in (second, first)]
        return f"it has {counts[0]} classes, not {counts[1]}" if counts[0] != counts[1] else "it has other classes"
    return "its inputs are others"
