"""An image, what is done to it before a network sees it, and how the answer moves with each repair: in the terminal,
and as a picture.

stages = diagnose(pixels, classifier, runtime)
for line in drawn(stages, classifier.spec, console):
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
from rich.console import Console
from rich.table import Table
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
from nnx.terminal.predictions import as_table

Pixels = NDArray[np.uint8]

WIDTH = 28  # characters of a picture, at most
PIPED = 100  # characters of a line where stdout is no terminal
AVERAGE = "average of the training images"
SHOWN = 3  # classes that are named for each


@dataclass(frozen=True)
class Stage:
    """What was done last, the (C, H, W) image that the network would see now, and what it says of it."""

    text: str
    image: Pixels
    top: list[dict[str, Any]]

    @property
    def answer(self) -> str:
        best = self.top[0]
        return f"{printable(best['label'])}, {percent(best['probability'])}"


def prediction_by_stage(pixels: Pixels, classifier: Classifier, runtime: Runtime) -> list[Stage]:
    """The image as it is, then after each step of its preparation; the last is what `nnx predict` sees, and says."""
    spec = classifier.spec
    image, steps = handwriting.prepare(pixels, spec)
    seen = [
        handwriting.resize_to_spec(pixels, spec),
        *(handwriting.resize_to_spec(step.picture, spec) for step in steps[:-1]),
    ]
    seen += [image] if steps else []
    same = pixels.shape[:2] == spec.shape[1:]
    texts = ["as it is" if same else "as it is, only resized", *(step.text for step in steps)]
    batch = Batch(texts, np.stack(seen), [() for _ in texts])
    answers = predict_batches(classifier, [batch], runtime, top=SHOWN)
    return [Stage(text, each, answer["top"]) for text, each, answer in zip(texts, seen, answers, strict=True)]


def average(spec: Spec) -> Pixels | None:
    """The mean of the training images, (H, W), where it is known."""
    return np.array(spec.image_statistics.average, np.uint8) if spec.image_statistics else None


def newest_checkpoint(runs: Path = Path("runs")) -> Path:
    """The checkpoint that was written last in a folder of runs. Raises InputError where there is none."""
    found = sorted(runs.glob("*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(
            f"{runs}: holds no run with a checkpoint.pt; name one by --checkpoint, or train one: nnx train digits_cnn"
        )
    return found[-1]


# ---------------------------------------------------------------- in the terminal


def table(stages: Sequence[Stage]) -> Table:
    """A line for each stage: what was done, and the answer after it."""
    return as_table([{"input": stage.text, **stage.top[0], "top": stage.top} for stage in stages], "step")


def drawn(stages: Sequence[Stage], spec: Spec, console: Console | None = None) -> list[Text]:
    """Lines for the terminal: the training average and each stage side by side, as many as fit, each with its
    answer."""
    console = console or Console(width=None if sys.stdout.isatty() else PIPED)
    mean = average(spec)
    blocks = [_block(AVERAGE, mean[:, :, None], "", console)] if mean is not None else []
    blocks += [_block(stage.text, stage.image.transpose(1, 2, 0), stage.answer, console) for stage in stages]
    wide = max(line.cell_len for block in blocks for line in block)
    across = max(1, (console.width + 2) // (wide + 2))
    lines: list[Text] = []
    for start in range(0, len(blocks), across):
        row = blocks[start : start + across]
        heights = max(_heading(block) for block in row)
        level = [
            [Text("".ljust(wide))] * (heights - _heading(block)) + block for block in row
        ]  # pictures stand on one line
        lines += [*pixel_art.beside(*level), Text("")]
    return lines[:-1]


def _block(text: str, pixels: Pixels, answer: str, console: Console) -> list[Text]:
    """What was done, wrapped; the picture, small ones some times as large; the answer."""
    times = max(1, WIDTH // pixels.shape[1])
    picture = pixel_art.image(pixels.repeat(times, 0).repeat(times, 1), WIDTH, console=console)
    wide = max(WIDTH // 2, max(line.cell_len for line in picture))
    heading = [Text(line, "bold") for line in textwrap.wrap(text, wide)]
    return [*heading, *picture, Text(answer[: max(wide, 24)])]


def _heading(block: list[Text]) -> int:
    return sum(line.style == "bold" for line in block)


# ---------------------------------------------------------------- as a picture


def picture(path: Path, stages: Sequence[Stage], spec: Spec) -> None:
    """Write the same as an image file, whose ending decides on the format: the average, then each stage with its
    likeliest classes.

    Raises InputError for an ending that is none, and MachineError where it can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".webp", ".jpg", ".jpeg"):
        raise InputError(f"{path}: is not called as a picture is; give --out a name such as {path.name}.png")
    mean = average(spec)
    shown: list[Stage | None] = [None] * (mean is not None) + [*stages]
    across = min(5, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.3 * across, 3.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * down, across, squeeze=False, height_ratios=[3, 1] * down)
    for each in axes.flat:
        each.axis("off")
    for n, stage in enumerate(shown):
        row, column = divmod(n, across)
        pixels = stage.image.transpose(1, 2, 0) if stage else mean
        assert pixels is not None
        image = axes[2 * row, column]
        image.imshow(
            pixels if pixels.shape[-1] == 3 else pixels.reshape(pixels.shape[:2]), cmap="gray", vmin=0, vmax=255
        )
        title = textwrap.wrap(stage.text if stage else AVERAGE, 24)
        image.set_title(
            "\n".join([*title, ""][: max(2, len(title))]), fontsize=9, color="black" if stage else "#666666"
        )
        if stage:
            _bars(axes[2 * row + 1, column], stage, last=n == len(shown) - 1)
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:].lower(), dpi=150)
    files.replace(path, data.getvalue())


def _bars(axes: Any, stage: Stage, *, last: bool) -> None:
    """The likeliest classes, as bars from 0 to 1."""
    axes.set_axis_on()
    labels = [textwrap.shorten(printable(each["label"]), 12, placeholder="…") for each in stage.top]
    values = [each["probability"] for each in stage.top]
    axes.barh(
        range(len(values)), values, color=["#0072b2" if last else "#56b4e9", *["#bbbbbb"] * (len(values) - 1)]
    )  # Okabe and Ito 2008
    axes.set_xlim(0, 1)
    axes.set_ylim(SHOWN - 0.4, -0.6)
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
