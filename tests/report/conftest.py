"""Reports made by hand: any shape, any classes, predictions as wished, so that no training is needed."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch

from nnx import config, losses, models, report
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.inference.metrics import Predictions
from nnx.preprocessing.spec import Spec
from nnx.report import _pictures

Make = Callable[..., report.ReportContent]


def content(
    shape: tuple[int, ...] = (1, 8, 8),
    classes: tuple[str, ...] = tuple("0123456789"),
    samples: int = 300,
    sharpness: float = 2.0,
    model: str = "{name: mlp, hidden: [8]}",
    epochs: int = 3,
    **more: Any,
) -> report.ReportContent:
    """An untrained network's report, with random but skilful predictions; `sharpness` makes them surer and more often
    right."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    K = len(classes)
    channels = shape[0]
    spec = Spec(shape, classes, (0.4,) * channels, (0.3,) * channels)
    settings = config.load("digits_mlp", [f"model={model}", f"train.epochs={epochs}"])
    network = models.build(settings.model, spec, losses.outputs(settings.loss, K))
    size = (samples, *shape)
    inputs = rng.integers(0, 256, size, dtype=np.uint8) if len(shape) == 3 else rng.normal(size=size).astype(np.float32)
    labels = rng.integers(0, K, samples)
    logits = rng.normal(size=(samples, K))
    logits[np.arange(samples), labels] += sharpness
    powers = np.exp(2 * logits)
    probabilities = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    records = [
        {"epoch": n, "step": 36 * n, "train_loss": 2 / n, "val_loss": 2.1 / n, "val_accuracy": 1 - 0.5 / n, "lr": 1e-3}
        | {"seconds": 0.5, "samples_per_second": 1000.0}
        for n in range(1, epochs + 1)
    ]
    record = {key: value for key, value in records[-1].items() if key not in ("seconds", "samples_per_second")}
    checkpoint = Checkpoint(settings, spec, network.state_dict(), record)
    given = {"records": records} | more
    return report.ReportContent(
        checkpoint, "test", Split(inputs, labels), Predictions(probabilities, labels, 0.5, 2.0), **given
    )


@pytest.fixture
def make() -> Make:
    return content


@pytest.fixture
def pictured() -> None:
    """For tests that want the pictures of the layers, which take most of a report's second."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictured" not in request.fixturenames:
        monkeypatch.setattr(_pictures, "FAST_EXPLAINERS", ())


class Page(HTMLParser):
    """What a page holds: tables as rows of text, elements with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif ("td" in self._open or "th" in self._open) and "title" not in self._open:
            self.tables[-1][-1][-1] += data
        if "script" not in self._open and "style" not in self._open:
            self.text.append(data)

    def table(self, kind: str) -> list[list[str]]:
        """The rows of the table whose class or id holds `kind`."""
        tables = [attributes for tag, attributes in self.elements if tag == "table"]
        number = next(
            n for n, attributes in enumerate(tables) if kind in f"{attributes.get('class')} {attributes.get('id')}"
        )
        return self.tables[number]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]


@pytest.fixture
def page() -> Callable[[str], Page]:
    return Page
