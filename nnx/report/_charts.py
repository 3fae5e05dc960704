"""Charts as SVG: text the browser sets, colours from the page's style sheet, so that they are sharp on any screen,
light or dark.

Every point says its figures when it is pointed at (`<title>`). Sizes are in units of which the page shows about one a
pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nnx import formatting
from nnx.inference.metrics import BINS, Calibration

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 34  # around the plot
MOST = 60  # points of a line that get a dot of their own
NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Line:
    """A line by its name: (x, y) points. `kind` is the class that colours it in page.css."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """From a value to a place: `low` at `start`, `high` at `end`; evenly, or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self._of(self.low)) / (self._of(self.high) - self._of(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values between low and high."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = max(1, math.ceil((len(exponents) - 1) / most))
            steps = (1, 2, 5) if len(exponents) <= 3 else (1,)
            return [n * 10.0**e for e in exponents[::every] for n in steps if self.low <= n * 10.0**e <= self.high]
        step = nice((self.high - self.low) / most)
        return [n * step for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]

    def _of(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def nice(step: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(n * power for n in NICE if n * power >= step * (1 - 1e-9))


def curves(
    label: str, lines: Sequence[Line], *, best: int | None = None, percent: bool = False, wide: bool = False
) -> Markup:
    """Lines over the epochs; `best` is marked. Of `wide` values, by logarithm where they are above 0 and span more than
    a factor of 30."""
    lines = [Line(line.name, line.kind, [point for point in line.points if math.isfinite(point[1])]) for line in lines]
    values = [y for line in lines for _, y in line.points]
    epochs = [x for line in lines for x, _ in line.points]
    if not values:
        return Markup("")
    x = Axis(min(epochs) - (len(set(epochs)) == 1), max(epochs) + (len(set(epochs)) == 1), LEFT, WIDTH - RIGHT)
    y = _vertical(values, percent, wide)
    parts = [_grid(x, y, percent), _words(WIDTH - RIGHT, HEIGHT - 4, "epoch", "axis end")]
    if best is not None and x.low <= best <= x.high:
        top = y.end
        parts.append(f'<line class="best" x1="{x(best)}" x2="{x(best)}" y1="{y.start}" y2="{top}"/>')
        side, step = ("end", -4) if x(best) > WIDTH / 2 else ("", 4)
        parts.append(
            _words(x(best) + step, y.start - 5 if percent else top + 9, "best", f"tick {side}")
        )  # where curves seldom are
    for line in lines:
        places = [(x(epoch), y(value)) for epoch, value in line.points]
        parts.append(f'<polyline class="{line.kind}" points="{" ".join(f"{a},{b}" for a, b in places)}"/>')
        dotted = "dot" if len(places) <= MOST else "dot unseen"
        for (epoch, value), (a, b) in zip(line.points, places, strict=True):
            said = formatting.percent(value) if percent else f"{value:.4g}"
            parts.append(
                f'<circle class="{line.kind} {dotted}" cx="{a}" cy="{b}" r="3"><title>{line.name}, epoch {epoch}: {said}</title></circle>'
            )
    return _svg(f"{label} over the epochs", parts)


def reliability(calibration: Calibration) -> Markup:
    """How often the network is right against how sure it was, by bins of confidence, with 95 % intervals; and how many
    samples each has."""
    size, strip = 300, 46
    foot, most, total = size - BOTTOM, int(calibration.samples.max()), int(calibration.samples.sum())
    x, y = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, 1, foot - strip - 10, TOP)
    slope = math.degrees(math.atan((y(0) - y(1)) / (x(1) - x(0))))
    parts = [
        _grid(x, y, True, foot=foot),
        f'<line class="even" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>',
        _words(x(0.06), y(0.115), "as sure as right", "tick", turn=-slope),
        _words(LEFT - 6, foot - strip + 8, f"{most:,}", "tick end"),
        _words(WIDTH - RIGHT, size - 4, "how sure", "axis end"),
    ]
    bins = zip(calibration.samples.tolist(), calibration.correct.tolist(), calibration.confidence.tolist(), strict=True)
    for b, (count, right, sure) in enumerate(bins):
        if not count:
            continue
        low, high = formatting.wilson(right / count, count)
        left, width, tall = x(b / BINS) + 1, x((b + 1) / BINS) - x(b / BINS) - 2, max(1.0, strip * count / most)
        said = (
            f"{100 * b / BINS:.0f} to {100 * (b + 1) / BINS:.0f} % sure: {count:,} of {total:,} samples, on average "
            f"{formatting.percent(sure)} sure, right {formatting.percent(right / count)} ({formatting.interval(right / count, count)})"
        )
        parts.append(
            f'<g class="bin"><title>{said}</title>'
            f'<rect class="hit" x="{left - 1:.1f}" y="{TOP}" width="{width + 2:.1f}" height="{foot - TOP}"/>'
            f'<rect class="count" x="{left:.1f}" y="{foot - tall:.1f}" width="{width:.1f}" height="{tall:.1f}"/>'
            f'<line class="whisker" x1="{x(sure)}" x2="{x(sure)}" y1="{y(low)}" y2="{y(high)}"/>'
            f'<circle class="validation dot" cx="{x(sure)}" cy="{y(right / count)}" r="4"/></g>'
        )
    return _svg("How often the network is right, by how sure it is", parts, height=size)


def whisker(share: float, samples: int, low: float) -> Markup:
    """A proportion with its 95 % interval on a line from `low` to 1, for a table's row."""
    x = Axis(min(low, 0.999), 1, 3, 237)
    least, most = formatting.wilson(share, samples)
    return Markup(
        '<svg class="interval" viewBox="0 0 240 12" role="img" aria-label="{label}"><title>{label}</title>'
        '<line class="rail" x1="3" x2="237" y1="6" y2="6"/><line class="whisker" x1="{a}" x2="{b}" y1="6" y2="6"/>'
        '<circle class="validation dot" cx="{c}" cy="6" r="3"/></svg>'
    ).format(label=formatting.interval(share, samples), a=x(max(least, x.low)), b=x(most), c=x(max(share, x.low)))


def _vertical(values: Sequence[float], percent: bool, wide: bool) -> Axis:
    low, high = min(values), max(values)
    if percent:
        margin = max(0.03 * (high - low), 0.002)
        return Axis(max(0.0, low - margin), min(1.0, high + margin), HEIGHT - BOTTOM, TOP)
    if wide and low > 0 and high / low > 30:
        return Axis(low / 1.2, high * 1.2, HEIGHT - BOTTOM, TOP, logarithmic=True)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _grid(x: Axis, y: Axis, percent: bool, foot: float | None = None) -> str:
    """The frame's lines and their numbers."""
    across = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>' for tick in y.ticks()
    ]
    up = [
        _words(LEFT - 6, y(tick) + 4, f"{100 * tick:.4g} %" if percent else f"{tick:.4g}", "tick end")
        for tick in y.ticks()
    ]
    whole = [tick for tick in x.ticks() if tick == round(tick) or foot]
    along = [
        _words(x(t), (foot or y.start) + 16, f"{100 * t:.0f} %" if foot else f"{t:.0f}", "tick middle") for t in whole
    ]
    return "".join([*across, *up, *along])


def _words(x: float, y: float, text: str, kind: str, turn: float = 0) -> str:
    turned = f' transform="rotate({turn:.1f} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{turned}>{text}</text>'


def _svg(label: str, parts: Sequence[str], height: int = HEIGHT) -> Markup:
    """`parts` hold numbers and words of this module only."""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
