"""The report of a run or of an evaluation: one HTML page that needs nothing but itself, for the eye and for a
colleague.

    report.write(folder / "report.html", Content(kept, "test", samples, predictions, ...))

Text that comes from elsewhere, the names of classes above all, is escaped by the template; what would get through has
no script that runs: the page allows its own alone, by its hash, and loads nothing.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from nnx import datasets, formatting, models
from nnx.checkpoint import Checkpoint, build_network
from nnx.events import Choice
from nnx.inference.metrics import Predictions, calibration, compute_metrics
from nnx.report import _charts, _film, _pictures, _samples, _sheet
from nnx.report._charts import Line
from nnx.report._samples import Cell
from nnx.system import device as devices
from nnx.system import files
from nnx.training.film import Frame

HERE = Path(__file__).parent
ROWS = 2000  # of a table that are shown, once or several times
VALUES = 12  # of a row that are shown
MAPPED = 1000  # classes, at most, whose confusion matrix is drawn as a map
EPOCHS = 200  # that the table of epochs and the curves show; of more, every n-th


@dataclass(frozen=True)
class ReportContent:
    """What a report is about: what a network says of a split's samples.

    `records` are the lines of metrics.jsonl, where they are known. `run` is the summary of the run, or empty for an
    evaluation. `film` is what nnx.training.film kept of the training, if it did. `duplicates` is how many samples of a
    test split are in the training data, too.
    """

    kept: Checkpoint
    split: str
    samples: datasets.Split
    predictions: Predictions
    choices: Sequence[Choice] = ()
    records: Sequence[dict[str, Any]] = ()
    run: dict[str, Any] = field(default_factory=dict)
    film: Frame | None = None
    duplicates: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.kept.spec.classes

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Those of `nnx eval`."""
        return compute_metrics(self.predictions, self.classes, self.split)


class Verdict(NamedTuple):
    """What the network says of a sample: its class, the predicted one, and the next, each with its name and
    probability."""

    truth: tuple[str, float]
    says: tuple[str, float]
    next: tuple[str, float]
    is_right: bool


def write(path: Path, content: ReportContent) -> None:
    """Make the page and put it in place of `path` in one step. Raises MachineError."""
    files.write(path, render(content))


def render(content: ReportContent) -> str:
    """The page."""
    import jinja2  # 20 ms, which a run without a report is spared

    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    loader = jinja2.FileSystemLoader(HERE)
    pages = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {
        "percent": formatting.percent,
        "share": _share,
        "loss": formatting.loss,
        "seconds": formatting.seconds,
    }
    records = _curves(content)
    return pages.get_template("page.html").render(
        content=content,
        figures=content.figures,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        film=(frames := _film_of(content)),
        data=_json({"figures": _few(content.figures), "records": records["records"], "film": frames}),
        layers_seen=_layers(content),
        **_setting(content),
        **_classes(content),
        **_shown(content),
        **records,
    )


def _share(fraction: float) -> str:
    """One decimal, for captions: "41.5 %", on one line."""
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _json(value: Any) -> Markup:
    """For a <script> of data: nothing in it can end the script."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _few(figures: dict[str, Any]) -> dict[str, Any]:
    """Without the confusion matrix where that would be most of the page."""
    return {key: value for key, value in figures.items() if key != "confusion_matrix" or len(value) <= MAPPED // 10}


def _setting(content: ReportContent) -> dict[str, Any]:
    """What was trained, on what, and with what."""
    model = build_network(content.kept)
    return {
        "yaml": content.kept.config.to_yaml(),
        "layers": models.layer_table(model, content.kept.spec),
        "parameters": models.count_parameters(model),
        "epoch": (content.kept.counters or content.kept.record).get("epoch"),
        "environment": devices.environment(),
        "calibration": _charts.reliability(calibration(content.predictions)),
    }


def _film_of(content: ReportContent) -> dict[str, Any] | None:
    """What the script draws of the film, if there is one, and it is of this network's classes."""
    if content.film is None or not 0 <= content.film["labels"].min() <= content.film["labels"].max() < len(
        content.classes
    ):
        return None
    steps_per_epoch = content.records[0]["step"] / content.records[0]["epoch"] if content.records else None
    return _film.for_page(content.film, content.kept.spec, steps_per_epoch)


def _curves(content: ReportContent) -> dict[str, Any]:
    """The lines of metrics.jsonl as charts and as a table."""
    every = -(-len(content.records) // EPOCHS)
    records = [
        record
        for n, record in enumerate(content.records)
        if n % every == 0 or record["epoch"] == content.kept.record.get("epoch")
    ]
    best = content.kept.record.get("epoch")

    def line(name: str, kind: str, key: str) -> Line:
        return Line(name, kind, [(record["epoch"], record[key]) for record in records])

    losses = [line("training", "training", "train_loss"), line("validation", "validation", "val_loss")]
    return {
        "records": records,
        "every": every,
        "best": best,
        "loss_curves": _charts.curves("Loss", losses, best=best, wide=True),
        "accuracy_curve": _charts.curves(
            "Accuracy", [line("validation", "validation", "val_accuracy")], best=best, percent=True
        ),
        "lr_curve": _charts.curves("Learning rate", [line("learning rate", "rate", "lr")]),
    }


def _classes(content: ReportContent) -> dict[str, Any]:
    """The table of the classes: figures, and the interval of each recall."""
    rows = content.figures["per_class"]
    with_samples = [row for row in rows if row["support"]]
    low = min((formatting.wilson(row["recall"], row["support"])[0] for row in with_samples), default=0.0)
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("precision", "recall", "f1")}
    intervals = [_charts.whisker(row["recall"], row["support"], low) if row["support"] else "" for row in rows]
    return {"rows": list(zip(rows, intervals, strict=True)), "mean": mean, "low": low}


def _shown(content: ReportContent) -> dict[str, Any]:
    """Samples: behind each cell of the confusion matrix, the most confident mistakes, the least certain right
    answers."""
    spec, predictions = content.kept.spec, content.predictions
    mistakes, hits = _samples.confident_mistakes(predictions), _samples.uncertain_hits(predictions)
    cells = _samples.cells(predictions)
    longest = _sheet.longest_for(spec.shape, len(cells) + 2 * _samples.GALLERY) if spec.is_image else 0
    room = _sheet.room(spec.shape, longest) if spec.is_image else ROWS
    cells = _samples.fitted(cells, room - len(mistakes) - len(hits))
    everything = [*mistakes, *hits, *(sample for cell in cells for sample in cell.samples)]
    matrix: dict[tuple[int, int], Cell] = {(cell.true, cell.predicted): cell for cell in cells}
    short = max(map(len, content.classes)) <= 4
    return {
        "mistakes": mistakes,
        "hits": hits,
        "cells": cells,
        "mixed_up": [cell for cell in cells if not cell.is_right],
        "matrix": matrix if len(content.classes) <= _samples.MATRIX else None,
        "heads": content.classes if short else [f"{n}" for n in range(len(content.classes))],
        "short": short,
        "map": _map(content) if _samples.MATRIX < len(content.classes) <= MAPPED else "",
        "most_mistakes": max((cell.count for cell in cells if not cell.is_right), default=1),
        "sheet": _sheet.make(content.samples.inputs, everything, longest) if spec.is_image else None,
        "verdicts": {sample: _verdict(content, sample) for sample in dict.fromkeys(everything)},
        "values": {} if spec.is_image else {sample: _values(content, sample) for sample in dict.fromkeys(everything)},
        "features": spec.columns.feature_names if spec.columns else [f"x{n + 1}" for n in range(spec.size)],
    }


def _layers(content: ReportContent) -> list[_pictures.Panel]:
    """Pictures of the layers, with their answers to the first sample that is recognised and to the surest mistake, as
    far as there are such."""
    right = np.flatnonzero(content.predictions.predicted == content.predictions.labels)
    chosen = [*right[:1].tolist(), *_samples.confident_mistakes(content.predictions, 1)]
    named = [f"{content.split} {sample}" for sample in chosen]
    return _pictures.pictures(content.kept, content.samples.take(np.array(chosen)), named)


def _verdict(content: ReportContent, sample: int) -> Verdict:
    said, truth = content.predictions.probabilities[sample], int(content.predictions.labels[sample])
    most, second = np.argsort(-said, kind="stable")[:2].tolist()
    is_, says, next_ = ((content.classes[k], float(said[k])) for k in (truth, most, second))
    return Verdict(is_, says, next_, truth == most)


def _values(content: ReportContent, sample: int) -> list[str]:
    """The first features of a row, as they come."""
    offsets, scales = content.kept.spec.columns.units if content.kept.spec.columns else (0, 1)
    return [f"{value:.4g}" for value in (content.samples.inputs[sample] * scales + offsets)[:VALUES].tolist()]


def _map(content: ReportContent) -> str:
    """The confusion matrix of many classes as an image, a pixel a cell: how opaque is the square root of its share of
    the true class."""
    matrix = np.array(content.figures["confusion_matrix"], float)
    share = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    colours = np.where(np.eye(len(matrix))[:, :, None] > 0, (0, 114, 178), (213, 94, 0))
    return _sheet.png(np.dstack([colours, np.rint(255 * share)]).astype(np.uint8))
