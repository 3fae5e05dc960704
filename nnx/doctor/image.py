"""Show each step of an image's preparation with the prediction after it: in the terminal, or as a picture.

stages = prediction_by_stage(pixels, classifier, runtime)
for line in draw_stages(stages, classifier.spec, console):
    console.print(line)
"""

import io
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, RenderableType
from rich.text import Text

from nnx.errors import InputError, printable
from nnx.formatting import percent
from nnx.inference.classifier import Classifier, predict_batches
from nnx.inference.inputs import Batch
from nnx.preprocessing import handwriting
from nnx.preprocessing.spec import Spec
from nnx.system import files
from nnx.system.device import Runtime
from nnx.terminal import pixels as pixel_art
from nnx.terminal.console import new_console
from nnx.terminal.predictions import as_table

Pixels = NDArray[np.uint8]

WIDTH = 28  # characters of a picture, at most
PIPE_WIDTH = 100  # characters of a line where stdout is not a terminal
AVERAGE = "average training image"
TOP = 3  # classes named per stage


@dataclass(frozen=True)
class Stage:
    """The last step, the (C, H, W) image after it, and the most probable classes of that image."""

    text: str
    image: Pixels
    top: list[dict[str, Any]]

    @property
    def prediction(self) -> str:
        """The most probable class with its probability."""
        best = self.top[0]
        return f"{printable(best['label'])}, {percent(best['probability'])}"


def prediction_by_stage(pixels: Pixels, classifier: Classifier, runtime: Runtime) -> list[Stage]:
    """The original image, then the image after each step of its preparation; the last is the input and the prediction
    of `nnx predict`."""
    spec = classifier.spec
    prepared, steps = handwriting.prepare(pixels, spec)
    inputs = [handwriting.resize_to_spec(picture, spec) for picture in (pixels, *(step.picture for step in steps[:-1]))]
    if steps:
        inputs.append(prepared)
    has_size = pixels.shape[:2] == spec.shape[1:]
    texts = ["original" if has_size else "original, only resized", *(step.text for step in steps)]
    batch = Batch(texts, np.stack(inputs), [() for _ in texts])
    predictions = predict_batches(classifier, [batch], runtime, top=TOP)
    return [Stage(*stage) for stage in zip(texts, inputs, (each["top"] for each in predictions), strict=True)]


def average_image(spec: Spec) -> Pixels | None:
    """The mean of the training images, (H, W), or None if the checkpoint does not contain it."""
    return np.array(spec.image_statistics.average, np.uint8) if spec.image_statistics else None


def newest_checkpoint(runs: Path = Path("runs")) -> Path:
    """The most recently written checkpoint in a folder of runs. Raises InputError if there is none."""
    checkpoints = sorted(runs.glob("*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise InputError(
            f"{runs}: contains no run with a checkpoint.pt; "
            f"name a checkpoint with --checkpoint, or train a network: nnx train digits_cnn"
        )
    return checkpoints[-1]


# ---------------------------------------------------------------- in the terminal


def stage_table(stages: Sequence[Stage]) -> RenderableType:
    """A row per stage: the step, and the prediction after it."""
    return as_table([{"input": stage.text, **stage.top[0], "top": stage.top} for stage in stages], "step")


def draw_stages(stages: Sequence[Stage], spec: Spec, console: Console | None = None) -> list[Text]:
    """Lines for the terminal: the average training image and each stage with its prediction, as many side by side as
    fit."""
    console = console or new_console(sys.stdout, PIPE_WIDTH)
    mean = average_image(spec)
    blocks = [_block(AVERAGE, mean[:, :, None], "", console)] if mean is not None else []
    blocks += [_block(stage.text, stage.image.transpose(1, 2, 0), stage.prediction, console) for stage in stages]
    width = max(line.cell_len for block in blocks for line in block)
    per_row = max(1, (console.width + 2) // (width + 2))
    lines: list[Text] = []
    for start in range(0, len(blocks), per_row):
        row = blocks[start : start + per_row]
        height = max(_heading_height(block) for block in row)
        # pad the headings, so that the pictures are on one level
        padded = [[Text("".ljust(width))] * (height - _heading_height(block)) + block for block in row]
        lines += [*pixel_art.side_by_side(*padded), Text("")]
    return lines[:-1]


def _block(text: str, pixels: Pixels, prediction: str, console: Console) -> list[Text]:
    """The wrapped text of the step; the picture, enlarged if it is small; the prediction."""
    scale = max(1, WIDTH // pixels.shape[1])
    picture = pixel_art.render(pixels.repeat(scale, 0).repeat(scale, 1), WIDTH, console=console)
    width = max(WIDTH // 2, max(line.cell_len for line in picture))
    heading = [Text(line, "bold") for line in textwrap.wrap(text, width)]
    best = [Text(line) for line in textwrap.wrap(prediction, max(width, 24))]
    return [*heading, *picture, *best]


def _heading_height(block: list[Text]) -> int:
    """The number of heading lines of a block."""
    return sum(line.style == "bold" for line in block)


# ---------------------------------------------------------------- as a picture


def write_picture(path: Path, stages: Sequence[Stage], spec: Spec) -> None:
    """Write the average training image and each stage with its most probable classes as an image file. The suffix sets
    the format.

    Raises InputError for an unknown suffix, and MachineError if the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".webp", ".jpg", ".jpeg"):
        raise InputError(f"{path}: has no image suffix; give --out a name such as {path.name}.png")
    mean = average_image(spec)
    panels: list[Stage | None] = [None] * (mean is not None) + [*stages]  # None is the average
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.3 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for axis in axes.flat:
        axis.axis("off")
    for n, stage in enumerate(panels):
        row, column = divmod(n, columns)
        pixels = stage.image.transpose(1, 2, 0) if stage else mean
        assert pixels is not None
        image = axes[2 * row, column]
        pixels = pixels if pixels.shape[-1] == 3 else pixels.reshape(pixels.shape[:2])
        image.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        title = textwrap.wrap(stage.text if stage else AVERAGE, 24)
        title = [*title, ""][: max(2, len(title))]
        image.set_title("\n".join(title), fontsize=9, color="black" if stage else "#666666")
        if stage:
            _bars(axes[2 * row + 1, column], stage, last=n == len(panels) - 1)
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:].lower(), dpi=150)
    files.replace(path, data.getvalue())


def _bars(axes: Any, stage: Stage, *, last: bool) -> None:
    """Draw the most probable classes as bars from 0 to 1."""
    axes.set_axis_on()
    labels = [textwrap.shorten(printable(entry["label"]), 12, placeholder="…") for entry in stage.top]
    values = [entry["probability"] for entry in stage.top]
    colours = ["#0072b2" if last else "#56b4e9", *["#bbbbbb"] * (len(values) - 1)]  # Okabe and Ito 2008
    axes.barh(range(len(values)), values, color=colours)
    axes.set_xlim(0, 1)
    axes.set_ylim(TOP - 0.4, -0.6)
    axes.set_yticks(range(len(values)), labels, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for y, value in enumerate(values):
        inside = value > 0.6
        colour = "white" if inside and last and y == 0 else "black"
        axes.text(
            value - 0.02 if inside else value + 0.02,
            y,
            percent(value),
            va="center",
            ha="right" if inside else "left",
            fontsize=8,
            color=colour,
        )
