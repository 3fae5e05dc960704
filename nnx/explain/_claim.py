"""The claim that deeper layers learn edges, then shapes, then parts, then whole objects, judged by probe scores.

The rules compare scores only, so that made-up scores can test them. For each stage, "its layer" is the first one from
which a linear probe reads the stage's property as well as from any, within the error. The claim holds for a stage if

1. its layer reads the property better than the input does: the network makes it easier to read,
2. at least a quarter of this gain is missing without training: training did it, not only the architecture,
3. no earlier stage has a later layer, and the whole objects come after the edges,
4. and, for edges, a unit of the layer sees only a part of the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal["holds", "architecture", "fails", "unclear"]


class Stage(NamedTuple):
    """A stage of the claim, and the property that stands for it."""

    name: str
    property: str
    description: str


STAGES = (
    Stage("edges", "edge direction", "the direction of the edges in the middle of the image"),
    Stage("shapes", "holes", "the number of holes in the drawing"),
    Stage("parts", "stroke ends", "the number of stroke ends"),
    Stage("whole objects", "class", "the class"),
)
MIN_SCORE = 0.2  # of the way from chance to 1: a property that is read worse says nothing about layers
MIN_MARGIN = {True: 0.005, False: 0.02}  # of a class, of a number
ERRORS = 2  # standard errors
LEARNED = 0.25  # of the gain over the input: if less is missing without training, the architecture does it


class Score(NamedTuple):
    """How well a property is read from a layer: balanced accuracy of a class, R² of a number."""

    trained: float
    untrained: float


@dataclass(frozen=True)
class Layer:
    """A layer after the input. `field`: the largest receptive field of its units, in pixels."""

    name: str
    title: str  # "Layer 1: conv 3×3, 16 filters (stages.0)"
    field: tuple[int, int]

    @property
    def number(self) -> str:
        """ "layer 1", "the output"."""
        return "the output" if self.title.startswith("Output") else self.title.partition(":")[0].lower()


@dataclass(frozen=True)
class Finding:
    """What the scores say about one stage. `layer` is the index of its layer, from 0 for the first after the input."""

    stage: Stage
    layer: int
    score: Score
    before: float  # the score of the input
    verdict: Verdict
    sentence: str


def margin(best: float, samples: int, *, is_class: bool) -> float:
    """By how much two scores must differ: two standard errors of the better one, but at least 0.005 or 0.02.

    The standard error of R² is that of Olkin & Finn 1995, 2 R (1 - R²) / sqrt(n).
    """
    best = min(max(best, 0.0), 1.0)
    variance = best * (1 - best) if is_class else 4 * best * (1 - best) ** 2
    return float(max(MIN_MARGIN[is_class], ERRORS * (variance / samples) ** 0.5))


def judge(
    layers: Sequence[Layer],
    scores: Mapping[str, Sequence[Score]],
    image: tuple[int, int],
    samples: int,
    chance: float,
) -> list[Finding]:
    """The finding for each stage whose property was measured, in the order of the claim.

    `scores`: of each property, for the input and then each layer. `image`: height and width. `samples`: the number on
    which the scores were measured. `chance`: the score for the class of a guess.
    """
    findings: list[Finding] = []
    for stage in STAGES:
        if stage.property in scores:
            findings.append(_judge_stage(stage, layers, scores[stage.property], image, samples, chance, findings))
    return findings


def _judge_stage(
    stage: Stage,
    layers: Sequence[Layer],
    scores: Sequence[Score],
    image: tuple[int, int],
    samples: int,
    chance: float,
    earlier: Sequence[Finding],
) -> Finding:
    is_class = stage.property == "class"
    guess = chance if is_class else 0.0
    before, *after = scores
    best = max(score.trained for score in after)
    least = margin(best, samples, is_class=is_class)
    n = next(n for n, score in enumerate(after) if score.trained >= best - least)
    score = after[n]

    def finding(verdict: Verdict, reason: str) -> Finding:
        return Finding(stage, n, score, before.trained, verdict, f"{stage.name.capitalize()}: {reason}.")

    if max(best, before.trained) < guess + MIN_SCORE * (1 - guess):
        return finding("unclear", f"no layer lets a linear probe read {stage.description} (at most {best:.2f})")
    if best - before.trained <= least:
        return finding(
            "fails",
            f"{stage.description} is read as well from the input ({before.trained:.2f}) as from any layer ({best:.2f} "
            "at most): the claim does not hold",
        )
    read = (
        f"{stage.description} is read best from {layers[n].number} ({score.trained:.2f}; input {before.trained:.2f}, "
        f"untrained {score.untrained:.2f})"
    )
    if stage.name == "edges" and layers[n].field == image:
        return finding(
            "fails", f"{read}, but each of its units sees the whole image and detects no edge: the claim does not hold"
        )
    if overtaken := next((f for f in earlier if f.verdict != "unclear" and f.layer > n), None):
        return finding(
            "fails", f"{read}, before {overtaken.stage.name} ({layers[overtaken.layer].number}): the order is another"
        )
    if is_class and any(f.stage.name == "edges" and f.verdict != "unclear" and f.layer == n for f in earlier):
        return finding("fails", f"{read}, like the edges: one layer does both")
    learned = score.trained - score.untrained
    if learned <= least:
        return finding("architecture", f"{read}: the architecture does this, not the training")
    if learned < LEARNED * (score.trained - before.trained):
        return finding("architecture", f"{read}: the architecture does most of this, not the training")
    return finding("holds", f"{read}: the claim holds")


def summarise(findings: Sequence[Finding], hidden: int) -> str:
    """A sentence about the claim as a whole. `hidden`: the number of layers before the output."""
    known = [f for f in findings if f.verdict != "unclear"]
    held = [f.stage.name for f in known if f.verdict == "holds"]
    given = [f.stage.name for f in known if f.verdict == "architecture"]
    failed = [f.stage.name for f in known if f.verdict == "fails"]
    if not known:
        return "Nothing can be said about the claim: no property is read from any layer."
    if hidden < 2:
        return (
            f"With {hidden} hidden layer{'s' * (hidden != 1)} there is no order of layers: the claim needs two or more."
        )
    if len(held) == len(known):
        missing = [stage.name for stage in STAGES if stage.name not in held]
        note = f" ({_join(missing)} not measured)" if missing else ""
        return f"The claim holds for this network{note}."
    if not held and not given:
        return "The claim does not hold for this network."
    parts = [f"it holds for {_join(held)}"] if held else []
    parts += [f"{_join(given)} come mostly from the architecture"] if given else []
    parts += [f"it does not hold for {_join(failed)}"] if failed else []
    return f"The claim holds in part: {'; '.join(parts)}."


def describe_layer(
    n: int,
    layers: Sequence[Layer],
    scores: Mapping[str, Sequence[Score]],
    findings: Sequence[Finding],
    samples: int,
) -> str:
    """Sentences about layer n: which properties are read best from it, and which better or worse than from the layer
    before."""
    best = [f for f in findings if f.layer == n and f.verdict != "unclear" and f.score.trained > f.before]
    sentences = []
    if best:
        reads = [f"{f.stage.description} ({f.score.trained:.2f}; untrained {f.score.untrained:.2f})" for f in best]
        sentences.append(f"From here a linear probe reads best: {_join(reads)}.")
    risen: list[str] = []
    fallen: list[str] = []
    for f in findings:
        values = scores[f.stage.property]
        before, after = f"{values[n].trained:.2f}", f"{values[n + 1].trained:.2f}"
        change = values[n + 1].trained - values[n].trained
        least = margin(max(values[n].trained, values[n + 1].trained), samples, is_class=f.stage.property == "class")
        if abs(change) > least and before != after and f not in best:
            (risen if change > 0 else fallen).append(f"{f.stage.property} ({before} to {after})")
    previous = layers[n - 1].number if n else "the input"
    if risen:
        sentences.append(f"Read better than from {previous}: {_join(risen)}.")
    if fallen:
        sentences.append(f"Read worse than from {previous}: {_join(fallen)}.")
    return " ".join(sentences) or f"A linear probe reads nothing better or worse than from {previous}."


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))
