"""nnx predict CHECKPOINT PATH..."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnx import signals
from nnx.cli._options import Device, Json, Quiet, print_json
from nnx.cli._start import import_torch
from nnx.errors import MAX_LINES, DataError, printable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from rich.table import Table

    from nnx.predict import Classifier
    from nnx.spec import Spec

BATCH = 500  # images that the network sees at once


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint.pt (or last.pt) of a run.", show_default=False)],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Image files.", show_default=False)],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many classes to name for each, most probable first.")] = 3,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is on images: PNG, JPEG, BMP, WebP or TIFF files, of the size that the network was trained on.

    For instance: nnx predict runs/digits/checkpoint.pt seven.png
    """
    import_torch()
    from nnx import console, runtime
    from nnx.predict import load

    with signals.noted(), signals.at_once("stopped before all was said"):
        chosen = runtime.choose(device or "auto", "float32")
        classifier = load(checkpoint, str(chosen.device))
        if not classifier.spec.is_image:
            raise DataError(f"{checkpoint}: was trained on rows of numbers, not on images; give predict the checkpoint of another run")
        with runtime.enough_memory("Name fewer images at a time"):
            predictions = _predictions(classifier, paths, _inputs(paths, classifier.spec), chosen.device, top)
    if not quiet:
        console.print_choices(choice for choice in chosen.choices if choice.what == "device")
    if json:
        print_json({"predictions": predictions})
    else:
        _print(_table(predictions))


def _inputs(paths: list[Path], spec: "Spec") -> "NDArray[np.uint8]":
    """(N, C, H, W), an image a file. Raises one DataError for all the files that are none, or not of the size that `spec` says."""
    import numpy as np

    inputs, mistakes = [], []
    for path in paths:
        try:
            inputs.append(_input(path, spec))
        except DataError as error:
            mistakes.append(str(error))
    if mistakes:
        shown = len(mistakes) if len(mistakes) <= MAX_LINES else MAX_LINES - 1
        more = f"\n... and {len(mistakes) - shown} more" if len(mistakes) > shown else ""
        raise DataError("\nerror: ".join(mistakes[:shown]) + more)  # the first one's "error: " is the caller's
    return np.stack(inputs)


def _input(path: Path, spec: "Spec") -> "NDArray[np.uint8]":
    from nnx import images

    C, H, W = spec.shape
    pixels = images.decode(path)
    if pixels.shape[:2] != (H, W):
        found, wanted = (f"{width} wide and {height} high" for height, width in (pixels.shape[:2], (H, W)))
        raise DataError(f"{path}: is {found}, but the network was trained on images {wanted}; save it in that size")
    return images.to_channels(pixels, C).transpose(2, 0, 1)


def _predictions(
    classifier: "Classifier", paths: list[Path], inputs: "NDArray[np.uint8]", device: "torch.device", top: int
) -> list[dict[str, Any]]:
    import torch

    with torch.inference_mode():
        said = torch.cat([classifier(batch.to(device)).cpu() for batch in torch.split(torch.from_numpy(inputs), BATCH)])
    best, classes = (part.tolist() for part in said.sort(dim=1, descending=True, stable=True))
    found = []
    for path, row, order in zip(paths, best, classes, strict=True):
        ranked = [{"label": classifier.classes[k], "probability": p} for p, k in zip(row, order, strict=True)]
        found.append({"input": str(path), **ranked[0], "top": ranked[:top]})
    return found


def _table(predictions: list[dict[str, Any]]) -> "Table":
    """A line a file: its label, how probable that is, and what it might be instead."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("input", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("else", overflow="fold")
    for prediction in predictions:
        others = ", ".join(f"{other['label']} {_percent(other['probability'])}" for other in prediction["top"][1:])
        table.add_row(Text(printable(prediction["input"])), Text(prediction["label"]), _percent(prediction["probability"]), Text(others))
    return table


def _percent(fraction: float) -> str:
    return f"{fraction:.2%}".replace("%", " %")


def _print(table: "Table") -> None:
    """On stdout; where that is no terminal, no line is wrapped."""
    import sys

    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
