"""Probe: what can be read off each layer by a weighted sum: the class, and of drawings stroke width, slant and
holes."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.errors import DataError
from nnx.explain import Explanation, Picture, Subject, _draw, _ridge, _strokes, _units
from nnx.explain._ridge import Probed, Property

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 2000  # to fit to, and as many to score on
LEAST = 40
CERTAIN = 3  # standard errors: what counts as more than chance
READING = (
    "A point says how well a weighted sum of a layer's numbers tells a property of samples that it was not fitted to: where the line rises "
    "the layers lay the property open, where it falls they drop it or wind it up; that it can be read does not mean that the network uses "
    "it, and only what lies above random weights was learned."
)


def applies(checkpoint: Checkpoint) -> str | None:
    return None


def explain(subject: Subject) -> Explanation:
    """Linear probes (Alain & Bengio 2017), each beside two controls: the same layer with random weights, and shuffled
    properties, of which nothing can be told (Hewitt & Liang 2019)."""
    fit, test, source = _samples(subject)
    properties, missing = properties_of(fit, test, subject.classes)
    of_fit, of_test = (_units.features(subject.network, subject, np.asarray(split.inputs)) for split in (fit, test))
    trained = {name: _ridge.probe(layer, of_test[name], properties, subject.seed) for name, layer in of_fit.items()}
    of_fit, of_test = (_units.features(subject.untrained, subject, np.asarray(split.inputs)) for split in (fit, test))
    untrained = {
        name: _ridge.probe(layer, of_test[name], properties, subject.seed, shuffles=0) for name, layer in of_fit.items()
    }
    figures = {
        "fitted_to": {"split": source, "samples": len(fit)},
        "scored_on": {"split": "test", "samples": len(test)},
        "missing": missing,
        "properties": {
            each.name: {
                "score": "recall averaged over classes" if each.classes else "R2",
                "chance": each.chance,
                "layers": {name: _figures(trained[name][n], untrained[name][n]) for name in trained},
            }
            for n, each in enumerate(properties)
        },
        "class_with_depth": _with_depth({name: found[0] for name, found in trained.items()}, untrained, properties[0]),
    }
    picture = Picture("probe", _caption(figures), _picture(trained, untrained, properties))
    return Explanation(READING, (picture,), figures)


def properties_of(fit: Split, test: Split, classes: tuple[str, ...]) -> tuple[list[Property], str]:
    """What is to be told of the samples, the class first; and why that is all, where it is."""
    found = [Property("class", fit.labels, test.labels, len(classes))]
    both = [_strokes.ink(np.asarray(split.inputs)) if split.inputs.ndim == 4 else None for split in (fit, test)]
    if both[0] is None or both[1] is None:
        what = (
            "The images have no plain background to tell strokes from"
            if fit.inputs.ndim == 4
            else "There are no images"
        )
        return found, f"{what}: only the class is probed."
    of_fit, of_test = both[0], both[1]
    measures = {"stroke width": _strokes.stroke_width, "slant": _strokes.slant, "holes": _strokes.holes}
    found += [
        Property(name, measure(of_fit).astype(float), measure(of_test).astype(float))
        for name, measure in measures.items()
    ]
    return [each for each in found if np.ptp(each.fit) and np.ptp(each.test)], ""


def _samples(subject: Subject) -> tuple[Split, Split, str]:
    """Samples to fit to, those the network was not trained on where they are enough, and to score on, in random order.
    Raises DataError."""
    order = np.random.default_rng(subject.seed)
    source = "validation" if len(subject.data("validation")) >= SAMPLES else "train"
    fit, test = (
        split.take(order.permutation(len(split))[:SAMPLES]) for split in (subject.data(source), subject.data("test"))
    )
    if min(len(fit), len(test)) < LEAST or min(len(np.unique(split.labels)) for split in (fit, test)) < 2:
        raise DataError(
            f"probe: needs {LEAST} training and {LEAST} test samples of two classes, there are {len(fit)} and {len(test)}"
        )
    return fit, test, source


def _figures(trained: Probed, untrained: Probed) -> dict[str, float]:
    return {
        "trained": trained.score,
        "untrained": untrained.score,
        "shuffled": float(trained.shuffled.mean()),
        "shuffled_error": float(trained.shuffled.std(ddof=1) / len(trained.shuffled) ** 0.5),
        "penalty": trained.penalty,
    }


def _with_depth(layers: dict[str, Probed], untrained: dict[str, list[Probed]], label: Property) -> dict[str, Any]:
    """The claim that layers lay the class open, step by step, tested on the same samples."""
    names = list(layers)
    last = names[-2] if len(names) > 2 else names[-1]  # the last before the logits

    def gain(before: Probed, after: Probed) -> dict[str, Any]:
        """How much more of the class is told, its standard error, and whether that is more than chance."""
        weight = 1 / (
            len(np.unique(label.test)) * np.bincount(label.test, minlength=label.classes)[label.test]
        )  # a sample's in the score
        difference = after.right.astype(float) - before.right
        error = float(np.sqrt((weight**2 * (difference - difference.mean()) ** 2).sum()))
        return {
            "gain": after.score - before.score,
            "error": error,
            "certain": abs(after.score - before.score) > CERTAIN * error,
        }

    steps = {name: gain(layers[before], layers[name]) for before, name in pairwise(names)}
    whole = gain(layers[names[0]], layers[last])
    return {
        "last": last,
        "from_input": whole,
        "from_untrained": gain(untrained[last][0], layers[last]),
        "steps": steps,
        "grows": whole["gain"] > 0 and whole["certain"],
        "never_falls": not any(step["gain"] < 0 and step["certain"] for step in steps.values()),
    }


def _caption(figures: dict[str, Any]) -> str:
    found = figures["class_with_depth"]
    scores = figures["properties"]["class"]["layers"]
    last = found["last"]
    whole = found["from_input"]
    verdict = "does not change for certain"
    if whole["certain"]:
        verdict = "falls" if whole["gain"] < 0 else "grows"
    steps = (
        ""
        if verdict != "grows"
        else ", at no layer less than before"
        if found["never_falls"]
        else ", though not at every layer"
    )
    return (
        f"How well the class can be told {verdict} with depth{steps}: from {100 * scores[_units.INPUT]['trained']:.1f} % in the input to "
        f"{100 * scores[last]['trained']:.1f} % in {last}, with random weights {100 * scores[last]['untrained']:.1f} %. Fitted to "
        f"{figures['fitted_to']['samples']:,} images, scored on {figures['scored_on']['samples']:,} others. {figures['missing']}"
    ).strip()


# ---------------------------------------------------------------- picture


def _picture(trained: dict[str, list[Probed]], untrained: dict[str, list[Probed]], properties: list[Property]) -> bytes:
    """A panel a property: its score from layer to layer."""
    columns = min(2, len(properties))
    rows = -(-len(properties) // columns)
    figure = _draw.new_figure(8 if columns > 1 else 5, 2.6 * rows + 0.4)
    table = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, (n, each) in zip(table, enumerate(properties), strict=False):
        _lines(axes, [found[n] for found in trained.values()], [found[n] for found in untrained.values()], each)
        axes.set_xticks(
            range(len(trained)),
            list(trained),
            rotation=30 if len(trained) > 3 else 0,
            ha="right" if len(trained) > 3 else "center",
        )
        axes.tick_params(labelbottom=n + columns >= len(properties))  # the last of its column
    for axes in table[len(properties) :]:
        axes.remove()
    handles, names = table[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2 * columns)
    return _draw.to_png(figure)


def _lines(axes: "Axes", trained: list[Probed], untrained: list[Probed], each: Property) -> None:
    depth = range(len(trained))
    axes.plot(depth, [found.score for found in trained], "o-", color=_draw.COLOURS[0], label="trained")
    axes.plot(
        depth, [found.score for found in untrained], "s--", color=_draw.COLOURS[1], markersize=4, label="random weights"
    )
    axes.plot(depth, [found.shuffled.mean() for found in trained], "x", color=_draw.INK, label="labels shuffled")
    axes.axhline(each.chance, color=_draw.INK, linestyle=":", linewidth=1, label="chance")
    axes.set(ylim=(-0.05, 1.05), xlim=(-0.3, len(trained) - 0.7))
    axes.set_title(f"{each.name}: {'share right' if each.classes else 'share of its variance told, R²'}", loc="left")
    axes.grid(axis="y")
