"""The report of a run or an evaluation: one self-contained HTML page.

    report.write(folder / "report.html", ReportContent(checkpoint, "test", samples, predictions, ...))

The template escapes all text from outside, above all class names. As a second barrier, a Content-Security-Policy allows
only the page's own script, by its hash, and forbids every request.
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
import torch
from markupsafe import Markup

from nnx import datasets, formatting, losses, models
from nnx.checkpoint import Checkpoint, build_network
from nnx.config import Config
from nnx.events import Choice
from nnx.explain import _titles
from nnx.inference.metrics import Predictions, calibration, compute_metrics
from nnx.models import _layer_outputs
from nnx.report import _charts, _film, _pictures, _samples, _sheet
from nnx.report._charts import Line
from nnx.report._samples import Cell
from nnx.system import device as devices
from nnx.system import files
from nnx.training.film import Frame

HERE = Path(__file__).parent
MAX_ROWS = 2000  # rows of a table on the page; a row can be there more than once
MAX_VALUES = 12  # values of such a row
MAX_MAP_CLASSES = 1000  # classes whose confusion matrix is drawn as an image
MAX_JSON_CLASSES = 100  # classes whose confusion matrix is in the page's JSON
SHORT_NAME = 4  # characters of a class name that fit above a column of the confusion matrix; longer ones are turned
MAX_NAME = 20  # characters of a class name beside the confusion matrix; longer ones end in an ellipsis
MAX_EPOCHS = 200  # epochs in the table and the curves; of more, every n-th


@dataclass(frozen=True)
class ReportContent:
    """What a report shows: the predictions of a network for the samples of a split.

    `records` are the lines of metrics.jsonl, if known. `assessment` is what the run was judged by: its training
    accuracy, health and baselines, as in summary.json; empty if unknown, without baselines of other test samples. `run`
    is the whole summary, empty for an evaluation. `film`
    is the recording of the training by nnx.training.film, if there is one. `duplicates` are the samples of a test
    split that are also in the training data. `config` is that of the run, named after its recipe;
    that of the checkpoint has no name.
    """

    checkpoint: Checkpoint
    split: str
    samples: datasets.Split
    predictions: Predictions
    choices: Sequence[Choice] = ()
    records: Sequence[dict[str, Any]] = ()
    assessment: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    film: Frame | None = None
    duplicates: datasets.Duplicates | None = None
    config: Config | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.spec.classes

    @property
    def title(self) -> str:
        """The recipe and the data: "mnist_cnn on MNIST"."""
        return _titles.page_title(self.config or self.checkpoint.config)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics of `nnx eval`."""
        return compute_metrics(self.predictions, self.classes, self.split)


class Verdict(NamedTuple):
    """The label of a sample, its predicted class, and the second most probable class, each with its probability."""

    label: tuple[str, float]
    predicted: tuple[str, float]
    second: tuple[str, float]
    is_correct: bool


def write(path: Path, content: ReportContent) -> None:
    """Render the page and replace `path` with it in one step. Raises MachineError."""
    files.write(path, render(content))


def render(content: ReportContent) -> str:
    """The page as HTML."""
    import jinja2  # takes 20 ms, which a run without a report does not spend

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
    curves = _curves(content)
    film = _film_data(content)
    return pages.get_template("page.html").render(
        content=content,
        metrics=content.metrics,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        film=film,
        data=_json({"figures": _metrics_data(content.metrics), "records": curves["records"], "film": film}),
        layer_panels=_layer_panels(content),
        comparison=_comparison(content),
        **_setup(content),
        **_class_table(content),
        **_sample_views(content),
        **curves,
    )


def _share(fraction: float) -> str:
    """A percentage with one decimal that does not break across lines: "41.5 %"."""
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _json(value: Any) -> Markup:
    """JSON for a <script> element, without any character that could end it."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _metrics_data(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without the confusion matrix of very many classes, which would be most of the page."""
    return {key: value for key, value in metrics.items() if key != "confusion_matrix" or len(value) <= MAX_JSON_CLASSES}


def _setup(content: ReportContent) -> dict[str, Any]:
    """Config, network, environment and calibration."""
    kept = content.checkpoint
    outputs = losses.outputs(kept.config.loss, len(kept.spec.classes))
    # an exported ONNX file has no weights by these names; the table needs none
    model = build_network(kept) if kept.model else models.build(kept.config.model, kept.spec, outputs)
    return {
        "yaml": content.checkpoint.config.to_yaml(),
        "layers": models.layer_table(model, content.checkpoint.spec),
        "parameters": models.count_parameters(model),
        "epoch": (content.checkpoint.counters or content.checkpoint.record).get("epoch"),
        "environment": devices.environment(),
        "calibration": _charts.reliability_diagram(calibration(content.predictions)),
    }


def _comparison(content: ReportContent) -> list[tuple[str, float, str]]:
    """The run's test accuracy beside those of the baselines: name, accuracy, remark; itself last. Empty where no
    baseline was measured."""
    baselines = content.assessment.get("baselines") or {}
    rows = []
    frequent = baselines.get("most_frequent_class") or {}
    if frequent.get("accuracy") is not None:
        rows.append(("most frequent class", frequent["accuracy"], f"always predicting {frequent['label']}"))
    linear = baselines.get("logistic_regression") or {}
    if linear.get("accuracy") is not None:
        remark = f"fitted to {linear['train_samples']:,} training samples"
        rows.append(("logistic regression", linear["accuracy"], remark))
    trained = content.assessment.get("train_accuracy")
    samples = content.assessment.get("train_samples")
    remark = f"{formatting.percent(trained)} on {samples:,} training samples" if trained else ""
    return [*rows, ("your network", content.metrics["accuracy"], remark)] if rows else []


def _film_data(content: ReportContent) -> dict[str, Any] | None:
    """The film as the script draws it, or None without a film of this network's classes."""
    if content.film is None:
        return None
    labels = content.film["labels"]
    if labels.min() < 0 or labels.max() >= len(content.classes):
        return None
    steps_per_epoch = content.records[0]["step"] / content.records[0]["epoch"] if content.records else None
    spec = content.checkpoint.spec
    titles = _layer_outputs.layer_titles(build_network(content.checkpoint).eval(), torch.zeros(1, *spec.shape))
    return _film.for_page(content.film, spec, steps_per_epoch, titles)


def _curves(content: ReportContent) -> dict[str, Any]:
    """The lines of metrics.jsonl as charts and as a table."""
    every = -(-len(content.records) // MAX_EPOCHS)
    is_validated = all(record["val_loss"] is not None for record in content.records)
    best = content.checkpoint.record.get("epoch") if is_validated else None
    records = [record for n, record in enumerate(content.records) if n % every == 0 or record["epoch"] == best]

    def line(name: str, kind: str, key: str) -> Line:
        return Line(name, kind, [(record["epoch"], record[key]) for record in records if record[key] is not None])

    losses = [line("training", "training", "train_loss"), line("validation", "validation", "val_loss")]
    accuracies = [line("validation", "validation", "val_accuracy")]
    return {
        "records": records,
        "every": every,
        "is_validated": is_validated,
        "best": best,
        "loss_curves": _charts.curves("Loss", losses, best=best, wide=True),
        "accuracy_curve": _charts.curves("Accuracy", accuracies, best=best, percent=True),
        "lr_curve": _charts.curves("Learning rate", [line("learning rate", "rate", "lr")]),
    }


def _class_table(content: ReportContent) -> dict[str, Any]:
    """The metrics of each class, and the confidence interval of each recall."""
    rows = content.metrics["per_class"]
    with_samples = [row for row in rows if row["support"]]
    low = min((formatting.wilson(row["recall"], row["support"])[0] for row in with_samples), default=0.0)
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("precision", "recall", "f1")}
    intervals = [_charts.whisker(row["recall"], row["support"], low) if row["support"] else "" for row in rows]
    return {"rows": list(zip(rows, intervals, strict=True)), "mean": mean, "low": low}


def _sample_views(content: ReportContent) -> dict[str, Any]:
    """The samples of each cell of the confusion matrix, the most confident mistakes, and the least confident correct
    predictions."""
    spec = content.checkpoint.spec
    predictions = content.predictions
    mistakes = _samples.most_confident_mistakes(predictions)
    hits = _samples.least_confident_hits(predictions)
    cells = _samples.cells(predictions)
    longest = _sheet.longest_side_for(spec.shape, len(cells) + 2 * _samples.GALLERY_SIZE) if spec.is_image else 0
    capacity = _sheet.capacity(spec.shape, longest) if spec.is_image else MAX_ROWS
    cells = _samples.limit_samples(cells, capacity - len(mistakes) - len(hits))
    samples = [*mistakes, *hits, *(sample for cell in cells for sample in cell.samples)]
    unique = dict.fromkeys(samples)
    matrix: dict[tuple[int, int], Cell] = {(cell.true, cell.predicted): cell for cell in cells}
    longest_name = max(map(len, content.classes))
    classes = len(content.classes)
    return {
        "mistakes": mistakes,
        "hits": hits,
        "cells": cells,
        "confusions": [cell for cell in cells if not cell.is_correct],
        "matrix": matrix if classes <= _samples.MAX_MATRIX_CLASSES else None,
        "longest_name": min(longest_name, MAX_NAME),
        "short": longest_name <= SHORT_NAME,
        "map": _confusion_map(content) if _samples.MAX_MATRIX_CLASSES < classes <= MAX_MAP_CLASSES else "",
        "most_mistakes": max((cell.count for cell in cells if not cell.is_correct), default=1),
        "sheet": _sheet.build(content.samples.inputs, samples, longest) if spec.is_image else None,
        "verdicts": {sample: _verdict(content, sample) for sample in unique},
        "values": {} if spec.is_image else {sample: _row_values(content, sample) for sample in unique},
        "features": spec.columns.feature_names if spec.columns else [f"x{n + 1}" for n in range(spec.size)],
    }


def _layer_panels(content: ReportContent) -> list[_pictures.Panel]:
    """Pictures of the layers, with their activations for the first correctly classified sample and the most confident
    mistake, where they exist. None of an exported ONNX file, whose layers can't be looked into."""
    if not content.checkpoint.model:
        return []
    correct = np.flatnonzero(content.predictions.predicted == content.predictions.labels)
    chosen = [*correct[:1].tolist(), *_samples.most_confident_mistakes(content.predictions, 1)]
    names = [f"{content.split} {sample}" for sample in chosen]
    return _pictures.layer_panels(content.checkpoint, content.samples, chosen, names, content.split)


def _verdict(content: ReportContent, sample: int) -> Verdict:
    probabilities = content.predictions.probabilities[sample]
    label = int(content.predictions.labels[sample])
    predicted, second = np.argsort(-probabilities, kind="stable")[:2].tolist()

    def named(k: int) -> tuple[str, float]:
        return content.classes[k], float(probabilities[k])

    return Verdict(named(label), named(predicted), named(second), label == predicted)


def _row_values(content: ReportContent, sample: int) -> list[str]:
    """The first features of a table's row, in their original units."""
    columns = content.checkpoint.spec.columns
    offsets, scales = columns.units if columns else (0, 1)
    return [f"{value:.4g}" for value in (content.samples.inputs[sample] * scales + offsets)[:MAX_VALUES].tolist()]


def _confusion_map(content: ReportContent) -> str:
    """The confusion matrix of many classes as an image with one pixel per cell. Its opacity is the square root of the
    cell's share of the true class."""
    matrix = np.array(content.metrics["confusion_matrix"], float)
    share = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    colours = np.where(np.eye(len(matrix))[:, :, None] > 0, (0, 114, 178), (213, 94, 0))
    return _sheet.png(np.dstack([colours, np.rint(255 * share)]).astype(np.uint8))
