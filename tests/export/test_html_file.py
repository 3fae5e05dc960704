"""The offline page, run by a browser: its probabilities, its preparation of drawings, its guards and its size."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_export import CASES
from tiny_networks import ARCHITECTURES

import nnx
from nnx import checkpoint
from nnx.export import html
from nnx.preprocessing import handwriting
from nnx.run.evaluate import dataset_of, settings_of
from nnx.run.export import export_checkpoint

BROWSER = html.find_runner()
in_browser = pytest.mark.skipif(
    Path(BROWSER).name not in html.BROWSERS, reason="no Chromium that works (apt-get install chromium)"
)
MORE = {
    "stages": "{name: cnn, channels: [4, 6], depth: 2, residual: true, pool: [average, none], head: average}",
    "strides": "{name: cnn, channels: [4, 6], kernel: [3, 4], pool: stride, activation: hardswish, hidden: [5]}",
    "both ways": "{name: rnn, hidden: 6, cell: lstm, layers: 2, bidirectional: true}",
    "mean state": "{name: rnn, hidden: 6, cell: rnn, bidirectional: true, read: mean}",
    "mean token": "{name: transformer, width: 8, depth: 1, heads: 2, patch: 2, read: mean, positions: sincos}",
    "layer norm": "{name: mlp, hidden: [6], activation: gelu, norm: layer}",
}


def export(run: Path, folder: Path) -> Path:
    export_checkpoint(run, "html", out=folder / "page.html")
    return folder / "page.html"


@in_browser
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE])
def test_the_page_gives_the_probabilities_of_pytorch(trained, tmp_path, architecture):
    """For 100 test digits, with float32 weights."""
    run = trained(MORE.get(architecture, architecture))
    page = export(run, tmp_path)
    assert "Weights: 32-bit floats." in page.read_text()
    saved = checkpoint.read(run / "checkpoint.pt")
    dataset = dataset_of(saved, settings_of(saved, run / "checkpoint.pt"), run / "checkpoint.pt", None)
    digits = dataset.split("test").inputs[:100]
    with torch.inference_mode():
        expected = nnx.load(run)(torch.from_numpy(np.ascontiguousarray(digits))).numpy()
    output = html.load(page)(np.ascontiguousarray(digits))
    assert output.shape == (100, 10)
    assert np.abs(output - expected).max() <= 1e-4
    assert np.abs(expected - expected[0]).max() > 0.01, "predictions differ between digits"


@pytest.mark.parametrize("runner", ["node", ""])
def test_without_a_browser_node_or_numpy_checks(trained, tmp_path, monkeypatch, runner):
    if runner and not shutil.which(runner):
        pytest.skip("node is not installed")
    monkeypatch.setattr(html, "find_runner", lambda: runner and shutil.which(runner))
    page = export(trained("cnn"), tmp_path).read_text()
    assert ("in node" if runner else "by the same arithmetic in numpy") in page


@pytest.mark.parametrize("weights", html.FORMATS)
def test_weights_are_read_as_they_were_written(weights):
    """Base 85 in Python, and in the page's own script."""
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    array = (np.random.default_rng(0).normal(0, 1, (7, 9)) * 10.0 ** np.arange(-6, 3)).astype(np.float32)
    vector = np.array([1e-30, -0.0, 3.4e38, 1 / 3], np.float32)
    arrays = {"vector": vector, "weights": array, "flags": np.array([True, False]), "zeros": np.zeros_like(array)}
    listed, text = html._pack(arrays, weights)
    source = "".join(html._read(html.OWN, name) for name in ("arithmetic.js", "weights.js")).replace(
        '"use strict";', ""
    )
    given = f"{json.dumps(listed)}, {json.dumps(text)}, {json.dumps(html.ALPHABET)}"
    names = json.dumps(["vector", "weights", "zeros"])
    script = f"""{source}; const numbers = readNumbers({given});
        process.stdout.write(JSON.stringify({names}.map((key) => Array.from(numbers[key].data))))"""
    found = [np.array(values, np.float32) for values in json.loads(html._run([node, "-e", script], 30))]
    assert np.array_equal(found[0], vector)
    assert np.array_equal(found[1], (html._rounded(array) if weights == "int19" else array).ravel())
    assert not found[2].any()
    step = np.abs(array).max() / html.HALF if weights == "int19" else 0
    assert np.abs(found[1] - array.ravel()).max() <= 0.5001 * step


def test_the_page_is_small_and_asks_nobody(trained, tmp_path):
    page = export(trained("mlp"), tmp_path).read_text()
    assert len(page) < 150_000
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page)
    assert not re.findall(r"https?://|fetch\(|XMLHttpRequest|WebSocket", page)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; [^\"]*\"", page)
    assert "unsafe" not in page


def test_mnist_mlp_takes_less_than_a_megabyte():
    """With room for samples: the page, and the 235,146 numbers of the recipe."""
    sizes = ((784, 256), (256,), (256, 128), (128,), (128, 10), (10,))
    arrays = {str(n): np.zeros(size, np.float32) for n, size in enumerate(sizes)}
    around = sum(file.stat().st_size for folder in (html.OWN, html.SERVED) for file in folder.iterdir())
    assert len(html._pack(arrays, "int19")[1]) + around + 5000 < 850_000


def test_few_weights_stay_as_trained_and_many_are_shortened(trained, tmp_path, monkeypatch):
    run = trained("transformer")
    as_trained = export(run, tmp_path).read_text()
    monkeypatch.setattr(html, "FEW", 0)
    short = export(run, tmp_path).read_text()
    assert "Weights: 32-bit floats." in as_trained
    assert re.search(r"Weights: 19-bit integers", short)
    assert len(short) < len(as_trained)


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def visit():
    """Opens a page. At the end there must have been no message, no error and no request."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])

        def opened(page: Path, width: int = 1200):
            tab = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
            tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
            tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
            tab.on(
                "request", lambda sent: complaints.append(sent.url) if sent.url[:5] not in ("file:", "data:") else None
            )
            tab.goto(page.as_uri())
            tab.wait_for_selector(".card")
            return tab

        yield opened
        browser.close()
    assert not complaints


@in_browser
@pytest.mark.parametrize(("architecture", "data"), CASES)
def test_the_page_answers(trained, tmp_path, visit, architecture, data):
    """A drawing, or the row that the form starts with, as nnx.load's classifier does."""
    tab = visit(export(trained(architecture, data), tmp_path))
    if data == "digits":
        box = tab.locator("#drawing").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 5)
        tab.mouse.down()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 4 / 5, steps=5)
        tab.mouse.up()
    tab.wait_for_timeout(300)
    latest = wait_for_answer(tab)
    assert abs(sum(latest["probabilities"]) - 1) < 1e-5
    assert latest["label"] in tab.locator("#verdict").text_content()
    kinds = {layer["kind"] for layer in latest["layers"]}
    wanted = {"mlp": {"units"}, "cnn": {"maps"}, "rnn": {"states", "belief"}, "transformer": {"tokens", "attention"}}
    assert kinds == wanted[architecture]


@in_browser
@pytest.mark.parametrize(("architecture", "data"), [("cnn", "digits"), ("mlp", "table"), ("mlp", "arrays")])
def test_the_page_has_samples_with_true_labels(trained, tmp_path, visit, architecture, data):
    """Those of the dataset, of every class: the page answers them as nnx.load's classifier does."""
    run = trained(architecture, data)
    saved = checkpoint.read(run / "checkpoint.pt")
    tab = visit(export(run, tmp_path))
    wait_for_answer(tab) if data != "digits" else None
    dataset = dataset_of(saved, settings_of(saved, run / "checkpoint.pt"), run / "checkpoint.pt", None)
    samples = dataset.split(dataset.split_names[0])
    listed = tab.evaluate("facts.samples.listed")
    assert 0.8 * min(50, len(samples)) <= len(listed) <= 50
    assert {each["label"] for each in listed} == set(samples.labels[:1000].tolist())
    assert all(each["label"] == samples.labels[each["index"]] for each in listed)
    seen = set()
    for _ in range(4):
        tab.evaluate("latest = null")
        tab.locator("#sample").click()
        answer = wait_for_answer(tab)
        split, _, index, label = tab.locator("#note").text_content().replace(":", "").split(maxsplit=3)
        assert (split, label) == (dataset.split_names[0], saved.spec.classes[samples.labels[int(index)]])
        with torch.inference_mode():
            inputs = torch.from_numpy(np.ascontiguousarray(samples.inputs[int(index)]))[None]
            (expected,) = nnx.load(run)(inputs).tolist()
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-4)
        assert f"The true class is {label}." in tab.locator("#verdict").text_content()
        seen.add(index)
    assert len(seen) == 4
    if data != "digits":
        tab.locator("#form input:not([type=range])").first.fill("1")
        wait_for_answer(tab)
        tab.wait_for_timeout(200)
        assert "true class" not in tab.locator("#verdict").text_content(), "another row is no sample"


def test_the_page_says_which_photographs_it_reads(trained, tmp_path):
    assert "needs even light here" in export(trained("cnn"), tmp_path).read_text()
    assert "needs even light" not in export(trained("mlp", "arrays"), tmp_path).read_text()


def test_samples_that_are_large_have_little_room(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "ROOM", 500)
    page = export(trained("cnn"), tmp_path).read_text()
    facts = json.loads(re.search(r'<script id="facts"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert 1 <= len(facts["samples"]["listed"]) < 10


def wait_for_answer(tab):
    for _ in range(50):
        if answers := tab.evaluate("!asking.now && latest"):
            return answers[0]
        tab.wait_for_timeout(100)
    raise AssertionError("no answer")


@in_browser
def test_hostile_class_names_are_text(trained, tmp_path, visit, monkeypatch):
    names = [
        "</script><script>document.title='broken'</script>",
        "<!--<script>",
        "<img src=x onerror=alert(1)>",
        "&amp;",
    ]
    own = html.encode_checked

    def named(network, facts, *rest):
        return own(network, facts | {"classes": names}, *rest)

    monkeypatch.setattr(html, "encode_checked", named)
    tab = visit(export(trained("mlp", "arrays"), tmp_path))
    wait_for_answer(tab)
    assert tab.title() == "nnx: ask mlp"
    assert set(tab.locator(".bars .name").all_text_contents()) == set(names)
    assert tab.evaluate("document.querySelectorAll('img').length") == 0


@in_browser
def test_drawings_are_prepared_as_nnx_predict_does(trained, tmp_path, visit):
    """Strokes of several widths, gray, coloured and white on black, to one gray level."""
    run = trained("cnn")
    spec = checkpoint.read(run / "checkpoint.pt").spec
    tab = visit(export(run, tmp_path))
    for pixels in pictures():
        expected, steps = handwriting.prepare(pixels, spec)
        height, width, channels = pixels.shape
        given = {"height": height, "width": width, "channels": channels, "data": pixels.ravel().tolist()}
        found = tab.evaluate(
            "(given) => prepare({...given, data: Uint8Array.from(given.data)}, facts.spec)"
            ".map(({text, picture}) => [text, Array.from(picture.data)])",
            given,
        )
        assert [text for text, _ in found[1:]] == [step.text for step in steps]
        assert np.abs(np.array(found[-1][1]).reshape(expected.shape[1:]) - expected[0].astype(int)).max() <= 1


def pictures():
    """Drawings on paper of one colour, (h, w, 1 or 3) uint8."""
    for points in ([(120, 80), (280, 80), (180, 330)], [(200, 60), (290, 200), (200, 330), (110, 200), (200, 60)]):
        for width in (12, 34, 90):
            sheet = Image.new("L", (400, 400), 255)
            ImageDraw.Draw(sheet).line(points, fill=0, width=width, joint="curve")
            gray = np.asarray(sheet.resize((200, 200), Image.Resampling.LANCZOS))[:, :, None]
            yield gray
            yield 255 - gray[::2]
            yield (255 - (255 - gray.astype(int)) * np.array([200, 120, 30]) // 255).astype(np.uint8)
