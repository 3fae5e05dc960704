"""Depth: Layer 1 → last layer: whether the layers learn edges, then shapes, then parts, then whole objects."""

from typing import Any

import numpy as np

from nnx.checkpoint import Checkpoint
from nnx.explain import Explanation, Picture, Subject, _claim, _draw, _units, patterns, probe
from nnx.explain.patterns import LayerPatterns, Patterns
from nnx.explain.probe import Probes
from nnx.models import _layer_outputs

UNITS = 6  # of a layer in a picture
HEIGHT = 2.15  # inches of a layer's picture
CELL = 0.36  # inches: the height of a line of the table
READING = (
    "It is often said that depth learns edges, then shapes, then parts, then whole objects. Follow the pictures from "
    "layer 1 on, and judge by the scores: a linear probe reads from each layer the direction of edges, and of "
    "drawings the number of holes (shapes) and of stroke ends (parts), and the class (whole objects). What a network "
    "without training does as well was not learned."
)


def applies(checkpoint: Checkpoint) -> str | None:
    if checkpoint.spec.is_image:
        return None
    return "needs images: a table has no edges, shapes or objects; see probe for the class in each layer"


def explain(subject: Subject) -> Explanation:
    """The claim of Zeiler & Fergus 2014 and LeCun, Bengio & Hinton 2015, judged by `_claim`, with the patterns of each
    layer."""
    shown = subject.measured(patterns.measure)
    probes = subject.measured(probe.measure)
    of_layers = [layer for layer in shown.layers if layer.name in probes.trained]
    layers = [_claim.Layer(layer.name, subject.layer_titles[layer.name], layer.size) for layer in of_layers]
    scores = _scores(probes, [layer.name for layer in layers])
    samples = probes.samples[1]
    chance = probes.properties[0].chance
    image = subject.spec.shape[1], subject.spec.shape[2]
    findings = _claim.judge(layers, scores, image, samples, chance)
    summary = _claim.summarise(findings, sum(layer.name != _layer_outputs.LOGITS for layer in layers))
    pictures = [Picture("depth", _summary_caption(summary, findings, probes), _draw_table(layers, scores, findings))]
    texts = []
    for n, (layer, of_layer) in enumerate(zip(layers, of_layers, strict=True)):
        texts.append(_claim.describe_layer(n, layers, scores, findings, samples))
        caption = f"{layer.title}. {_describe_units(of_layer, shown, image)} {texts[-1]}"
        png = _draw_layer(subject, of_layer, shown, {name: values[n + 1] for name, values in scores.items()})
        pictures.append(Picture(f"depth-{n + 1}-{layer.name}", caption, png))
    figures = {
        "summary": summary,
        "samples": samples,
        "stages": {
            f.stage.name: {
                "property": f.stage.property,
                "layer": layers[f.layer].name,
                "score": f.score.trained,
                "input": f.before,
                "untrained": f.score.untrained,
                "verdict": f.verdict,
                "sentence": f.sentence,
            }
            for f in findings
        },
        "layers": {
            layer.name: {
                "title": layer.title,
                "field": list(layer.field),
                "scores": {name: values[n + 1]._asdict() for name, values in scores.items()},
                "sentence": text,
            }
            for n, (layer, text) in enumerate(zip(layers, texts, strict=True))
        },
    }
    return Explanation(f"{summary} {READING}", tuple(pictures), figures)


def _scores(probes: Probes, names: list[str]) -> dict[str, list[_claim.Score]]:
    """Of each property of the claim that was probed: its score in the input and in each of the layers."""
    known = {target.name: n for n, target in enumerate(probes.properties)}
    return {
        stage.property: [
            _claim.Score(probes.trained[name][n].score, probes.untrained[name][n].score)
            for name in [_units.INPUT, *names]
        ]
        for stage in _claim.STAGES
        if (n := known.get(stage.property)) is not None
    }


def _summary_caption(summary: str, findings: list[_claim.Finding], probes: Probes) -> str:
    missing = [stage for stage in _claim.STAGES if stage not in {f.stage for f in findings}]
    names = " and ".join(stage.name for stage in missing)
    reason = probes.missing.partition(": ")[2] or "all images have the same value."
    note = f"{names.capitalize()} are not measured: {reason}" if missing else ""
    sentences = [f.sentence for f in findings]
    scored = (
        f"Scores of linear probes on {probes.samples[1]:,} test samples: balanced accuracy of the class, R² of the "
        "others. A property is read best from the first layer within the error of the highest score."
    )
    return " ".join(part for part in (summary, *sentences, note, scored) if part)


def _describe_units(layer: LayerPatterns, shown: Patterns, image: tuple[int, int]) -> str:
    """What the units of a layer see, and how alike the images are that activate them."""
    height, width = layer.size
    seen = "the whole image" if layer.size == image else f"{height}×{width} of {image[0]}×{image[1]} pixels"
    statistics = shown.statistics[layer.name]
    return (
        f"A unit sees {seen}; on average {100 * statistics['same_class']:.0f} % of the nine images with its highest "
        f"activation are of one class (untrained {100 * statistics['same_class_untrained']:.0f} %)."
    )


# ---------------------------------------------------------------- pictures


def _draw_table(
    layers: list[_claim.Layer], scores: dict[str, list[_claim.Score]], findings: list[_claim.Finding]
) -> bytes:
    """A PNG with a row per stage and a column per layer: the score, and that of the untrained network below it. A frame
    marks the layer from which the stage is read best."""
    from matplotlib.patches import Rectangle

    names = ["Input", *(_layer_outputs.short_title(layer.title) for layer in layers)]
    values = np.array([[score.trained for score in row] for row in scores.values()])
    figure = _draw.new_figure(1.9 + 1.05 * len(names), 0.9 + CELL * 1.3 * len(values))
    axes = figure.add_subplot()
    drawn = _draw.show(axes, values.clip(0, 1), limit=1, aspect="auto")
    for row, of_layers in enumerate(scores.values()):
        for column, score in enumerate(of_layers):
            colour = "black" if score.trained > 0.6 else "white"
            axes.text(column, row - 0.14, f"{score.trained:.2f}", ha="center", va="center", color=colour)
            axes.text(
                column,
                row + 0.24,
                f"untrained {score.untrained:.2f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=6.5,
            )
    for row, finding in enumerate(findings):
        if finding.verdict != "unclear":
            frame = Rectangle((finding.layer + 0.52, row - 0.46), 0.96, 0.92, fill=False, linewidth=2.5)
            frame.set_edgecolor(_draw.MISTAKE)
            axes.add_patch(frame)
    axes.set_xticks(range(len(names)), [name.replace(": ", "\n") for name in names])
    axes.set_yticks(range(len(findings)), [f"{f.stage.name}\n({f.stage.property})" for f in findings])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _draw.colour_bar(
        figure, drawn, axes, "score of a linear probe\nframed: the first layer within the error of the highest"
    )
    return _draw.to_png(figure)


def _draw_layer(subject: Subject, layer: LayerPatterns, shown: Patterns, scores: dict[str, _claim.Score]) -> bytes:
    """A PNG with the patterns of some units, each above the test image that activates it most, and a bar per score."""
    units = range(min(UNITS, len(layer.units)))
    optimised = [patterns.crop(shown.optimised[layer.name][n], layer, layer.own_positions[n]) for n in units]
    strongest = [patterns.crop(shown.images[layer.best[n, 0]] / 255, layer, layer.positions[n, 0]) for n in units]
    sheet, corners = _draw.arrange([*optimised, *strongest], len(units), 0.0)
    figure = _draw.new_figure(8, HEIGHT)
    left, right = figure.subplots(1, 2, width_ratios=[5, 2])
    _draw.show(_draw.hide_axes(left), sheet)
    left.set_facecolor(_draw.FAINT)
    is_logits = layer.name == _layer_outputs.LOGITS
    names = [_draw.shorten(subject.classes[unit], 8) if is_logits else f"{unit}" for unit in layer.units[units]]
    left.set_xticks([middle for _, middle in corners[: len(units)]], names)
    left.set_yticks([sheet.shape[0] / 4, sheet.shape[0] * 3 / 4], ["optimised", "test image"])
    left.tick_params(length=0)
    left.set_xlabel("class" if is_logits else "unit")
    left.set_title(subject.layer_titles[layer.name], loc="left")
    _draw_scores(right, scores)
    return _draw.to_png(figure)


def _draw_scores(axes: Any, scores: dict[str, _claim.Score]) -> None:
    rows = np.arange(len(scores))
    trained = np.array([score.trained for score in scores.values()])
    untrained = np.array([score.untrained for score in scores.values()])
    axes.barh(rows - 0.2, trained.clip(0), 0.38, color=_draw.COLOURS[0], label="trained")
    axes.barh(rows + 0.2, untrained.clip(0), 0.38, color=_draw.COLOURS[1], label="untrained")
    axes.set_yticks(rows, list(scores))
    axes.set(xlim=(0, 1), ylim=(len(scores) - 0.5, -0.5), xticks=[0, 0.5, 1], xlabel="probe score")
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=2, fontsize=7, handlelength=1, columnspacing=1)
