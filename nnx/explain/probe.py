"""Probe: how well a linear probe predicts the class, the edges and the strokes of an image from each layer."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.errors import DataError
from nnx.explain import Explanation, Picture, Subject, _draw, _ridge, _strokes, _units
from nnx.explain._ridge import ProbeResult, Property

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 2000  # to fit to, and as many to score on
MIN_SAMPLES = 40
SIGNIFICANT = 3  # standard errors
STROKES: dict[str, Callable[[Any], NDArray[Any]]] = {
    "stroke width": _strokes.stroke_width,
    "slant": _strokes.slant,
    "holes": _strokes.holes,
    "stroke ends": _strokes.stroke_ends,
}
READING = (
    "A point shows how well a linear probe, a weighted sum of a layer's activations, predicts a property of samples "
    "that it was not fitted to. Where the line rises, the layers make the property easier to read off; where it "
    "falls, they discard or entangle it. A high score does not mean that the network uses the property, and only what "
    "lies above the untrained network was learned."
)


def applies(checkpoint: Checkpoint) -> str | None:
    return None


@dataclass(frozen=True)
class Probes:
    """The results of a probe of each property on each layer, of the network and of the untrained one."""

    properties: list[Property]  # the class first
    missing: str  # which are not probed, and why
    trained: dict[str, list[ProbeResult]]  # of each layer from the input to the logits, one result per property
    untrained: dict[str, list[ProbeResult]]
    split: str  # of the samples that the probes are fitted to
    samples: tuple[int, int]  # to fit to, and to score on


def measure(subject: Subject) -> Probes:
    """Linear probes (Alain & Bengio 2017), each with two controls: the same layer of the untrained network, and
    shuffled properties, which cannot be predicted (Hewitt & Liang 2019).

    Raises DataError if there are too few samples.
    """
    fit, test, source = _choose_samples(subject)
    properties, missing = properties_of(fit, test, subject.classes)

    def probe_layers(network: nn.Module, shuffles: int) -> dict[str, list[ProbeResult]]:
        of_fit, of_test = (_units.layer_features(network, subject, np.asarray(split.inputs)) for split in (fit, test))
        return {
            name: _ridge.probe(layer, of_test[name], properties, subject.seed, shuffles)
            for name, layer in of_fit.items()
        }

    trained = probe_layers(subject.network, _ridge.SHUFFLES)
    untrained = probe_layers(subject.untrained, 0)
    return Probes(properties, missing, trained, untrained, source, (len(fit), len(test)))


def explain(subject: Subject) -> Explanation:
    probes = subject.measured(measure)
    trained = probes.trained
    untrained = probes.untrained
    class_results = {name: results[0] for name, results in trained.items()}
    figures = {
        "fitted_to": {"split": probes.split, "samples": probes.samples[0]},
        "scored_on": {"split": subject.held_out_name, "samples": probes.samples[1]},
        "missing": probes.missing,
        "properties": {
            target.name: {
                "score": "recall averaged over classes" if target.classes else "R2",
                "chance": target.chance,
                "layers": {name: _scores(trained[name][n], untrained[name][n]) for name in trained},
            }
            for n, target in enumerate(probes.properties)
        },
        "class_with_depth": _compare_depths(class_results, untrained, probes.properties[0]),
    }
    titled = {subject.short_title(name): results for name, results in trained.items()}
    picture = Picture("probe", _caption(subject, figures), _draw_scores(titled, untrained, probes.properties))
    return Explanation(READING, (picture,), figures)


def properties_of(fit: Split, test: Split, classes: tuple[str, ...]) -> tuple[list[Property], str]:
    """The properties to predict, the class first; and which are not probed and why, "" if all are."""
    properties = [Property("class", fit.labels, test.labels, len(classes))]
    if fit.inputs.ndim != 4:
        return properties, "Only the class is probed: the samples are not images."
    of_fit, of_test = (np.asarray(split.inputs) for split in (fit, test))
    properties.append(_measure_both("edge direction", _strokes.edge_direction, of_fit, of_test))
    inks = [_strokes.ink(images) for images in (of_fit, of_test)]
    missing = ""
    if inks[0] is None or inks[1] is None:
        missing = "Strokes are not probed: the images are not one ink on a plain background."
    else:
        properties += [_measure_both(name, measure, inks[0], inks[1]) for name, measure in STROKES.items()]
    return [target for target in properties if np.ptp(target.fit) and np.ptp(target.test)], missing


def _measure_both(name: str, measure: Callable[[Any], NDArray[Any]], fit: Any, test: Any) -> Property:
    return Property(name, measure(fit).astype(float), measure(test).astype(float))


def _choose_samples(subject: Subject) -> tuple[Split, Split, str]:
    """Samples to fit to, from the validation split if it is large enough, samples to score on, both in random order,
    and the name of the first split. Where only training samples exist, half of them are to score on.

    Raises DataError.
    """
    rng = np.random.default_rng(subject.seed)
    source = "train"
    if subject.held_out_name == "train":
        order = rng.permutation(len(subject.held_out))
        halves = np.array_split(order, 2)
        fit, test = (subject.held_out.take(half[:SAMPLES]) for half in halves)
    else:
        can_validate = {"test", "validation"} <= {*subject.split_names()}
        if can_validate and len(subject.data("validation")) >= SAMPLES:
            source = "validation"
        fit, test = (
            split.take(rng.permutation(len(split))[:SAMPLES]) for split in (subject.data(source), subject.held_out)
        )
    classes = min(len(np.unique(split.labels)) for split in (fit, test))
    if min(len(fit), len(test)) < MIN_SAMPLES or classes < 2:
        raise DataError(
            f"probe: needs {MIN_SAMPLES} training and {MIN_SAMPLES} {subject.held_out_name} samples of two classes, "
            f"found {len(fit)} and {len(test)}"
        )
    return fit, test, source


def _scores(trained: ProbeResult, untrained: ProbeResult) -> dict[str, float]:
    return {
        "trained": trained.score,
        "untrained": untrained.score,
        "shuffled": float(trained.shuffled.mean()),
        "shuffled_error": float(trained.shuffled.std(ddof=1) / len(trained.shuffled) ** 0.5),
        "penalty": trained.penalty,
    }


def _compare_depths(
    layers: dict[str, ProbeResult], untrained: dict[str, list[ProbeResult]], label: Property
) -> dict[str, Any]:
    """Whether the class becomes easier to predict from layer to layer, tested on the same samples."""
    names = list(layers)
    last = names[-2] if len(names) > 2 else names[-1]  # the last before the logits

    def gain(before: ProbeResult, after: ProbeResult) -> dict[str, Any]:
        """The gain in the score, its standard error, and whether it is significant."""
        samples_per_class = np.bincount(label.test, minlength=label.classes)
        weight = 1 / (len(np.unique(label.test)) * samples_per_class[label.test])  # of each sample in the score
        difference = after.correct.astype(float) - before.correct
        error = float(np.sqrt((weight**2 * (difference - difference.mean()) ** 2).sum()))
        return {
            "gain": after.score - before.score,
            "error": error,
            "certain": abs(after.score - before.score) > SIGNIFICANT * error,
        }

    steps = {name: gain(layers[before], layers[name]) for before, name in pairwise(names)}
    total = gain(layers[names[0]], layers[last])
    return {
        "last": last,
        "from_input": total,
        "from_untrained": gain(untrained[last][0], layers[last]),
        "steps": steps,
        "grows": total["gain"] > 0 and total["certain"],
        "never_falls": not any(step["gain"] < 0 and step["certain"] for step in steps.values()),
    }


def _caption(subject: Subject, figures: dict[str, Any]) -> str:
    comparison = figures["class_with_depth"]
    scores = figures["properties"]["class"]["layers"]
    last = comparison["last"]
    trend = "does not change significantly with depth"
    if comparison["from_input"]["certain"]:
        if comparison["from_input"]["gain"] < 0:
            trend = "falls with depth"
        else:
            steps = "and never falls from layer to layer" if comparison["never_falls"] else "but falls at some layers"
            trend = f"grows with depth {steps}"
    return (
        f"The probe accuracy for the class {trend}: {100 * scores[_units.INPUT]['trained']:.1f} % in the input, "
        f"{100 * scores[last]['trained']:.1f} % in {subject.layer_titles[last]} "
        f"({100 * scores[last]['untrained']:.1f} % in the untrained network). "
        f"Fitted to {figures['fitted_to']['samples']:,} samples, scored on "
        f"{figures['scored_on']['samples']:,} others ({figures['scored_on']['split']} split). {figures['missing']}"
    ).strip()


# ---------------------------------------------------------------- picture


def _draw_scores(
    trained: dict[str, list[ProbeResult]], untrained: dict[str, list[ProbeResult]], properties: list[Property]
) -> bytes:
    """A PNG with a panel per property: its score in each layer."""
    columns = min(2, len(properties))
    rows = -(-len(properties) // columns)
    figure = _draw.new_figure(8 if columns > 1 else 5, 2.6 * rows + 0.4)
    table = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    many = len(trained) > 3
    for n, (axes, target) in enumerate(zip(table, properties, strict=False)):
        of_trained = [results[n] for results in trained.values()]
        of_untrained = [results[n] for results in untrained.values()]
        _draw_panel(axes, of_trained, of_untrained, target)
        axes.set_xticks(
            range(len(trained)), list(trained), rotation=30 if many else 0, ha="right" if many else "center"
        )
        axes.tick_params(labelbottom=n + columns >= len(properties))  # only on the lowest panel of each column
    for axes in table[len(properties) :]:
        axes.remove()
    handles, names = table[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2 * columns)
    return _draw.to_png(figure)


def _draw_panel(axes: "Axes", trained: list[ProbeResult], untrained: list[ProbeResult], target: Property) -> None:
    depth = range(len(trained))
    colours = _draw.COLOURS
    axes.plot(depth, [result.score for result in trained], "o-", color=colours[0], label="trained")
    random_scores = [result.score for result in untrained]
    axes.plot(depth, random_scores, "s--", color=colours[1], markersize=4, label="untrained")
    axes.plot(depth, [result.shuffled.mean() for result in trained], "x", color=_draw.INK, label="shuffled labels")
    axes.axhline(target.chance, color=_draw.INK, linestyle=":", linewidth=1, label="chance")
    axes.set(ylim=(-0.05, 1.05), xlim=(-0.3, len(trained) - 0.7))
    axes.set_title(target.name, loc="left")
    axes.set_ylabel("balanced accuracy\nof a linear probe" if target.classes else "variance explained, R²")
    axes.grid(axis="y")
