"""Charts as SVG: text that the browser draws, colours from the page's style sheet, sharp on any screen, light or dark.

A tooltip (`<title>`) on every point shows its values. Sizes are in SVG units; on the page a unit is about a pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nnx import formatting
from nnx.inference.metrics import BINS, Calibration

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 34  # margins around the plot
MAX_DOTS = 60  # a line with more points than this is drawn without dots
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten


@dataclass(frozen=True)
class Line:
    """A named line through (x, y) points. `kind` is the class in page.css that colours it."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates: `low` to `start`, `high` to `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low = self._scaled(self.low)
        share = (self._scaled(value) - low) / (self._scaled(self.high) - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values from low to high."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = max(1, math.ceil((len(exponents) - 1) / count))
            steps = (1, 2, 5) if len(exponents) <= 3 else (1,)
            return [n * 10.0**e for e in exponents[::every] for n in steps if self.low <= n * 10.0**e <= self.high]
        step = round_up((self.high - self.low) / count)
        return [n * step for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def round_up(step: float) -> float:
    """The next larger 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(n * power for n in STEPS if n * power >= step * (1 - 1e-9))


def curves(
    label: str, lines: Sequence[Line], *, best: int | None = None, percent: bool = False, wide: bool = False
) -> Markup:
    """Lines over the epochs, with the `best` one marked. A `wide` chart has a logarithmic axis where the values are
    positive and span more than a factor of 30."""
    lines = [Line(line.name, line.kind, [point for point in line.points if math.isfinite(point[1])]) for line in lines]
    values = [y for line in lines for _, y in line.points]
    epochs = [x for line in lines for x, _ in line.points]
    if not values:
        return Markup("")
    margin = int(len(set(epochs)) == 1)  # of a single epoch, so that the axis has a length
    x = Axis(min(epochs) - margin, max(epochs) + margin, LEFT, WIDTH - RIGHT)
    y = _value_axis(values, percent, wide)
    parts = [_grid(x, y, percent), _text(WIDTH - RIGHT, HEIGHT - 4, "epoch", "axis end")]
    if best is not None and x.low <= best <= x.high:
        parts.append(f'<line class="best" x1="{x(best)}" x2="{x(best)}" y1="{y.start}" y2="{y.end}"/>')
        side, offset = ("end", -4) if x(best) > WIDTH / 2 else ("", 4)
        height = y.start - 5 if percent else y.end + 9  # where the curve of an accuracy, or a loss, rarely is
        parts.append(_text(x(best) + offset, height, "best", f"tick {side}"))
    for line in lines:
        parts += _curve(line, x, y, percent)
    return _svg(f"{label} over the epochs", parts)


def _curve(line: Line, x: Axis, y: Axis, percent: bool) -> list[str]:
    """A polyline, and a dot with a tooltip for each point."""
    coordinates = [(x(epoch), y(value)) for epoch, value in line.points]
    parts = [f'<polyline class="{line.kind}" points="{" ".join(f"{a},{b}" for a, b in coordinates)}"/>']
    dot = "dot" if len(coordinates) <= MAX_DOTS else "dot unseen"
    for (epoch, value), (a, b) in zip(line.points, coordinates, strict=True):
        number = formatting.percent(value) if percent else f"{value:.4g}"
        title = f"<title>{line.name}, epoch {epoch}: {number}</title>"
        parts.append(f'<circle class="{line.kind} {dot}" cx="{a}" cy="{b}" r="3">{title}</circle>')
    return parts


def reliability_diagram(calibration: Calibration) -> Markup:
    """Accuracy over confidence, by bins of confidence, with 95 % intervals; below, the number of samples in each
    bin."""
    height = 300
    strip = 46  # height of the histogram
    foot = height - BOTTOM
    largest = int(calibration.samples.max())
    total = int(calibration.samples.sum())
    x = Axis(0, 1, LEFT, WIDTH - RIGHT)
    y = Axis(0, 1, foot - strip - 10, TOP)
    slope = math.degrees(math.atan((y(0) - y(1)) / (x(1) - x(0))))
    parts = [
        _grid(x, y, True, foot=foot),
        f'<line class="even" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>',
        _text(x(0.06), y(0.115), "calibrated", "tick", turn=-slope),
        _text(LEFT - 6, foot - strip + 8, f"{largest:,}", "tick end"),
        _text(WIDTH - RIGHT, height - 4, "confidence", "axis end"),
    ]
    bins = zip(calibration.samples.tolist(), calibration.correct.tolist(), calibration.confidence.tolist(), strict=True)
    for b, (samples, correct, confidence) in enumerate(bins):
        if not samples:
            continue
        accuracy = correct / samples
        low, high = formatting.wilson(accuracy, samples)
        left = x(b / BINS) + 1
        width = x((b + 1) / BINS) - x(b / BINS) - 2
        tall = max(1.0, strip * samples / largest)
        title = (
            f"confidence {100 * b / BINS:.0f} to {100 * (b + 1) / BINS:.0f} %: {samples:,} of {total:,} samples, mean "
            f"confidence {formatting.percent(confidence)}, accuracy {formatting.percent(accuracy)} "
            f"({formatting.interval(accuracy, samples)})"
        )
        parts.append(
            f'<g class="bin"><title>{title}</title>'
            f'<rect class="hit" x="{left - 1:.1f}" y="{TOP}" width="{width + 2:.1f}" height="{foot - TOP}"/>'
            f'<rect class="count" x="{left:.1f}" y="{foot - tall:.1f}" width="{width:.1f}" height="{tall:.1f}"/>'
            f'<line class="whisker" x1="{x(confidence)}" x2="{x(confidence)}" y1="{y(low)}" y2="{y(high)}"/>'
            f'<circle class="validation dot" cx="{x(confidence)}" cy="{y(accuracy)}" r="4"/></g>'
        )
    return _svg("Reliability diagram: accuracy over confidence", parts, height=height)


def whisker(share: float, samples: int, low: float) -> Markup:
    """A proportion with its 95 % interval on a line from `low` to 1, for a row of a table."""
    x = Axis(min(low, 0.999), 1, 3, 237)
    lower, upper = formatting.wilson(share, samples)
    return Markup(
        '<svg class="interval" viewBox="0 0 240 12" role="img" aria-label="{label}"><title>{label}</title>'
        '<line class="rail" x1="3" x2="237" y1="6" y2="6"/><line class="whisker" x1="{a}" x2="{b}" y1="6" y2="6"/>'
        '<circle class="validation dot" cx="{c}" cy="6" r="3"/></svg>'
    ).format(label=formatting.interval(share, samples), a=x(max(lower, x.low)), b=x(upper), c=x(max(share, x.low)))


def _value_axis(values: Sequence[float], percent: bool, wide: bool) -> Axis:
    low, high = min(values), max(values)
    if percent:
        margin = max(0.03 * (high - low), 0.002)
        return Axis(max(0.0, low - margin), min(1.0, high + margin), HEIGHT - BOTTOM, TOP)
    if wide and low > 0 and high / low > 30:
        return Axis(low / 1.2, high * 1.2, HEIGHT - BOTTOM, TOP, logarithmic=True)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _grid(x: Axis, y: Axis, percent: bool, foot: float | None = None) -> str:
    """Horizontal grid lines, and the numbers of both axes; `foot` is where the plot ends if not at the axis."""
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>' for tick in y.ticks()
    ]
    values = [
        _text(LEFT - 6, y(tick) + 4, f"{100 * tick:.4g} %" if percent else f"{tick:.4g}", "tick end")
        for tick in y.ticks()
    ]
    whole = [tick for tick in x.ticks() if tick == round(tick) or foot]
    positions = [
        _text(x(t), (foot or y.start) + 16, f"{100 * t:.0f} %" if foot else f"{t:.0f}", "tick middle") for t in whole
    ]
    return "".join([*lines, *values, *positions])


def _text(x: float, y: float, text: str, kind: str, turn: float = 0) -> str:
    transform = f' transform="rotate({turn:.1f} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{transform}>{text}</text>'


def _svg(label: str, parts: Sequence[str], height: int = HEIGHT) -> Markup:
    """`parts` contain numbers and texts of this module only, so they need no escaping."""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
