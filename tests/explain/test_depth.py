"""Layer 1 → last layer: the verdicts follow from the scores, and the page contains each layer's own figures."""

from collections import Counter

import numpy as np
import pytest

from nnx import explain
from nnx.explain import _claim, depth, patterns, probe
from nnx.explain._claim import Layer, Score

CNN = [
    Layer("stages.0", "Layer 1: conv 3×3, 16 filters (stages.0)", (3, 3)),
    Layer("stages.1", "Layer 2: conv 3×3, 32 filters (stages.1)", (8, 8)),
    Layer("head.1", "Layer 3: linear, 128 units (head.1)", (28, 28)),
    Layer("logits", "Output: 10 logits", (28, 28)),
]
MLP = [
    Layer("layers.1", "Layer 1: linear, 256 units (layers.1)", (28, 28)),
    Layer("layers.3", "Layer 2: linear, 128 units (layers.3)", (28, 28)),
    Layer("logits", "Output: 10 logits", (28, 28)),
]
AS_CLAIMED = {
    "edge direction": ([0.5, 0.93, 0.90, 0.6, 0.4], [0.5, 0.7, 0.7, 0.4, 0.2]),
    "holes": ([0.3, 0.5, 0.88, 0.8, 0.6], [0.3, 0.4, 0.5, 0.3, 0.1]),
    "stroke ends": ([0.3, 0.5, 0.6, 0.7, 0.6], [0.3, 0.4, 0.4, 0.3, 0.1]),
    "class": ([0.8, 0.9, 0.95, 0.98, 0.98], [0.8, 0.85, 0.8, 0.7, 0.4]),
}


def judge(scores, layers=CNN, samples=2000):
    pairs = {name: [Score(*both) for both in zip(*rows, strict=True)] for name, rows in scores.items()}
    findings = _claim.judge(layers, pairs, (28, 28), samples, 0.1)
    summary = _claim.summarise(findings, len(layers) - 1)
    sentences = [_claim.describe_layer(n, layers, pairs, findings, samples) for n in range(len(layers))]
    return {f.stage.name: f for f in findings}, summary, sentences


def changed(**rows):
    return AS_CLAIMED | {name.replace("_", " "): both for name, both in rows.items()}


def test_where_the_claim_holds():
    findings, summary, sentences = judge(AS_CLAIMED)
    assert [f.verdict for f in findings.values()] == ["holds"] * 4
    assert [f.layer for f in findings.values()] == [0, 1, 2, 2]
    assert summary == "The claim holds for this network."
    assert findings["edges"].sentence == (
        "Edges: the direction of the edges in the middle of the image is read best from layer 1 (0.93; input 0.50, "
        "untrained 0.70): the claim holds."
    )
    assert sentences[1] == (
        "From here a linear probe reads best: the number of holes in the drawing (0.88; untrained 0.50). Read "
        "better than from layer 1: stroke ends (0.50 to 0.60) and class (0.90 to 0.95). Read worse than from layer 1: "
        "edge direction (0.93 to 0.90)."
    )
    assert sentences[3].startswith("Read worse than from layer 3: edge direction (0.60 to 0.40), holes")


def test_what_random_weights_do_too_is_of_the_architecture():
    findings, summary, _ = judge(changed(edge_direction=([0.5, 0.93, 0.9, 0.6, 0.4], [0.5, 0.92, 0.9, 0.7, 0.2])))
    assert findings["edges"].verdict == "architecture"
    assert findings["edges"].sentence.endswith("the architecture does this, not the training.")
    assert summary == (
        "The claim holds in part: it holds for shapes, parts and whole objects; edges come mostly from the "
        "architecture."
    )
    most = ([0.5, 0.93, 0.9, 0.6, 0.4], [0.5, 0.85, 0.9, 0.7, 0.2])
    findings, _, _ = judge(changed(edge_direction=most))
    assert findings["edges"].verdict == "architecture"
    assert "most of this" in findings["edges"].sentence


def test_units_that_see_the_whole_image_are_no_edges():
    scores = {name: tuple(row[:3] + row[4:] for row in both) for name, both in AS_CLAIMED.items()}
    findings, summary, _ = judge(scores, MLP)
    assert findings["edges"].verdict == "fails"
    assert "each of its units sees the whole image and detects no edge" in findings["edges"].sentence
    assert summary == (
        "The claim holds in part: it holds for shapes, parts and whole objects; it does not hold for edges."
    )


def test_what_is_read_as_well_from_pixels_is_not_learned():
    findings, _, _ = judge(changed(edge_direction=([0.92, 0.93, 0.9, 0.6, 0.4], [0.92, 0.9, 0.9, 0.7, 0.2])))
    assert findings["edges"].verdict == "fails"
    assert findings["edges"].sentence == (
        "Edges: the direction of the edges in the middle of the image is read as well from the input (0.92) as from "
        "any layer (0.93 at most): the claim does not hold."
    )


def test_another_order_fails():
    findings, _, _ = judge(
        changed(
            holes=([0.3, 0.5, 0.6, 0.88, 0.6], [0.3, 0.4, 0.4, 0.3, 0.1]),
            stroke_ends=([0.3, 0.7, 0.7, 0.7, 0.6], [0.3, 0.4, 0.4, 0.3, 0.1]),
        )
    )
    assert findings["shapes"].verdict == "holds"
    assert findings["parts"].verdict == "fails"
    assert findings["parts"].sentence.endswith("before shapes (layer 3): the order is another.")
    findings, _, _ = judge(
        {
            "edge direction": AS_CLAIMED["edge direction"],
            "class": ([0.8, 0.98, 0.98, 0.98, 0.98], [0.8, 0.85, 0.8, 0.7, 0.4]),
        }
    )
    assert findings["whole objects"].verdict == "fails"
    assert findings["whole objects"].sentence.endswith("like the edges: one layer does both.")


def test_nothing_holds():
    flat = ([0.8, 0.8, 0.8, 0.8, 0.8], [0.8, 0.8, 0.8, 0.8, 0.8])
    findings, summary, sentences = judge(dict.fromkeys(AS_CLAIMED, flat))
    assert {f.verdict for f in findings.values()} == {"fails"}
    assert summary == "The claim does not hold for this network."
    assert sentences[0] == "A linear probe reads nothing better or worse than from the input."


def test_what_no_probe_reads_says_nothing():
    noise = ([0.0, 0.05, 0.1, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0])
    findings, summary, _ = judge(changed(edge_direction=noise))
    assert findings["edges"].verdict == "unclear"
    assert findings["edges"].sentence.startswith("Edges: no layer lets a linear probe read")
    assert "edges" in summary
    assert summary.endswith("(edges not measured).")
    assert judge({"class": ([0.1, 0.1, 0.1, 0.1, 0.1],) * 2})[1].startswith("Nothing can be said")


def test_one_hidden_layer_has_no_order():
    scores = {name: tuple(row[:2] + row[-1:] for row in both) for name, both in AS_CLAIMED.items()}
    assert judge(scores, [CNN[0], CNN[3]])[1] == (
        "With 1 hidden layer there is no order of layers: the claim needs two or more."
    )


def test_a_difference_within_the_error_is_none():
    """The margin of R² is two standard errors: those of many simulated samples."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(400):
        truth = rng.normal(size=500)
        guess = 0.6 * truth + rng.normal(0, (0.6 * 0.4) ** 0.5, 500)
        scores.append(np.corrcoef(truth, guess)[0, 1] ** 2)
    assert _claim.margin(np.mean(scores), 500, is_class=False) == pytest.approx(2 * np.std(scores), rel=0.15)
    assert _claim.margin(0.9, 400, is_class=True) == pytest.approx(2 * (0.09 / 400) ** 0.5)
    assert _claim.margin(1.0, 400, is_class=True) == _claim.MIN_MARGIN[True]
    tied = changed(holes=([0.3, 0.5, 0.88, 0.89, 0.6], [0.3, 0.4, 0.5, 0.3, 0.1]))
    assert judge(tied)[0]["shapes"].layer == 1
    assert judge(tied, samples=10**6)[0]["shapes"].layer == 1, "0.01 is below the smallest margin"


# ---------------------------------------------------------------- the explainer


def test_a_change_that_rounding_hides_is_none():
    rows = [0.8, 0.9, 0.95, 0.994, 0.986]  # 0.99 to 0.99
    assert "class" not in judge(changed(**{"class": (rows, AS_CLAIMED["class"][1])}))[2][3]
    rows[4] = 0.984
    assert "class (0.99 to 0.98)" in judge(changed(**{"class": (rows, AS_CLAIMED["class"][1])}))[2][3]


def test_it_explains_with_the_figures_of_probe_and_patterns(subject):
    explained = subject("cnn")
    results = dict(explain.explain(explained, ["depth", "patterns", "probe"]))
    found = results["depth"]
    assert found.pictures[0].name == "depth"
    assert found.pictures[0].caption.startswith(found.figures["summary"])
    assert found.reading.startswith(found.figures["summary"])
    layers = found.figures["layers"]
    assert list(layers) == ["stages.0", "stages.1", "head.1", "logits"]
    assert [picture.name for picture in found.pictures[1:]] == [f"depth-{n}-{name}" for n, name in enumerate(layers, 1)]
    for picture, (name, layer) in zip(found.pictures[1:], layers.items(), strict=True):
        assert picture.caption.startswith(f"{explained.layer_titles[name]}. A unit sees ")
        assert picture.caption.endswith(layer["sentence"])
        assert layer["field"] == results["patterns"].figures["layers"][name]["field"]
        for property, scores in layer["scores"].items():
            probed = results["probe"].figures["properties"][property]["layers"][name]
            assert scores == {key: probed[key] for key in ("trained", "untrained")}
    assert "A unit sees 4×4 of 8×8 pixels" in found.pictures[1].caption
    assert "A unit sees the whole image" in found.pictures[-1].caption
    assert set(found.figures["stages"]) == {stage.name for stage in _claim.STAGES}


def test_nothing_is_computed_twice(subject, monkeypatch):
    calls = Counter()
    for module in (probe, patterns):

        def counted(explained, measure=module.measure, name=module.__name__):
            calls[name] += 1
            return measure(explained)

        monkeypatch.setattr(module, "measure", counted)
    list(explain.explain(subject("mlp"), ["depth", "patterns", "probe"]))
    assert set(calls.values()) == {1}
    assert len(calls) == 2


def test_photographs_have_no_shapes_and_parts(subject, colour_subject):
    explained = colour_subject("cnn")
    found = depth.explain(explained)
    assert set(found.figures["stages"]) == {"edges", "whole objects"}
    assert "Shapes and parts are not measured: the images are not one ink on a plain background." in (
        found.pictures[0].caption
    )


def test_it_is_for_images(table_subject):
    assert "needs images" in depth.applies(table_subject("mlp").checkpoint)
