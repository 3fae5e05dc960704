"""A trace -> the story of one training step on stdout: the input, the sums, the answer, how wrong it is, and what is
done about it.

story.tell(trace("digits_mlp"))
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nnx.errors import printable
from nnx.formatting import percent as _percent
from nnx.terminal import pixels as pixel_art
from nnx.trace.result import Attention, Neuron, Term, Trace

PIPE = 100  # columns, where stdout is no terminal
INDENT = 3  # columns
ROUNDING = 1e-12  # of a mean, beside the largest: that of a layer norm is 0
TERMS, MOVED, LAYERS, CLASSES, FEATURES, LOOKS = 8, 4, 15, 10, 8, 5  # rows of a table; what is left out is counted
BAR = 24  # characters of a certain answer
ASCII = str.maketrans({"×": "x", "━": "=", "√": "root ", "²": "^2", "░": ".", "▒": ":", "▓": "*", "█": "#", "▀": "#"})
Item = TypeVar("Item")
FOLLOWS = {
    "MaxPool2d": "the largest around it",
    "AvgPool2d": "the mean around it",
    "BatchNorm1d": "batch norm",
    "BatchNorm2d": "batch norm",
}


def tell(found: Trace) -> None:
    """Print the whole story."""
    console = Console(width=None if sys.stdout.isatty() else PIPE)
    label, classes = printable(found.sample.label), tuple(map(printable, found.classes))  # names may hold anything
    found = replace(found, classes=classes, sample=replace(found.sample, label=label))
    with console.capture() as captured:
        for chapter in chapters(found, console):
            console.print(chapter)
            console.print()
    text = "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))  # without the padding of tables
    if console.options.ascii_only:
        text = text.translate(ASCII).encode("ascii", errors="replace").decode()
    print(text)  # noqa: T201


def chapters(found: Trace, console: Console) -> Iterator[RenderableType]:
    """The story's parts in order, as wide and as colourful as the console is."""
    width = console.width - INDENT
    yield _head(found)
    sections: list[tuple[str, Iterable[RenderableType]]] = [
        (
            f'The input: sample {found.sample.index:,} of {found.sample.split}, a "{found.sample.label}"',
            _input(found, console),
        ),
        ("Forward: layer after layer", _forward(found, width)),
        ("The answer, and how wrong it is", _answer(found)),
        ("Backward: how the loss moves with each layer's weights", _backward(found)),
        ("The update: weight - learning_rate × gradient", _update(found)),
        ("The same sample after the step", _after(found)),
        ("Checked on the spot", _checks(found)),
    ]
    if found.neuron:
        sections.insert(
            2,
            (
                f"One neuron in full: unit {found.neuron.unit} of layer {found.neuron.layer}, {found.neuron.name}",
                _neuron(found, width),
            ),
        )
    for number, (title, parts) in enumerate(sections, 1):
        yield Group(Text(f"{number}  {title}", "bold cyan"), Padding(Group(*parts), (0, 0, 0, INDENT)))


def _head(found: Trace) -> Text:
    weights = f"trained, of epoch {found.epoch}" if found.epoch is not None else f"freshly drawn with seed {found.seed}"
    line = f"\n{found.architecture}, {found.parameters:,} weights and biases, {weights}. {'. '.join(map(_sentence, found.notes))}."
    return Text.assemble(
        ("One training step of one sample, in real numbers: ", "bold"), (found.source, "bold"), (line, "dim")
    )


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:]


# ---------------------------------------------------------------- 1: the input


def _input(found: Trace, console: Console) -> Iterator[RenderableType]:
    sample, neuron = found.sample, found.neuron
    if len(sample.shape) == 1:
        table = _table(["feature"], ["value", "as the network sees it"])
        for i, (raw, x) in enumerate(zip(sample.raw[:FEATURES], sample.normalised, strict=False)):
            table.add_row(Text(sample.features[i]), figure(raw), figure(x))
        yield table
        if (left := len(sample.raw) - FEATURES) > 0:
            yield _more(left)
        return
    levels, seen = (
        f"{min(sample.raw):g} to {max(sample.raw):g}",
        f"{figure(min(sample.normalised))} to {figure(max(sample.normalised))}",
    )
    line = f"{sample.dataset}, {' × '.join(map(str, sample.shape))} pixels of {levels}; normalised, as the network sees them, {seen}."
    C, H, W = sample.shape
    pixels = np.array(sample.raw, np.uint8).reshape(C, H, W).transpose(1, 2, 0)[:, :, : 3 if C == 3 else 1]
    shown, in_colour = [pixels], pixel_art.has_colours(console)
    if (
        neuron
        and in_colour
        and C == 1
        and len(neuron.terms) == H * W
        and neuron.uses == 1
        and found.layers[0].name == neuron.name
    ):
        line += f" Beside them the weights of unit {neuron.unit}, told below, each at its pixel: orange above 0, blue below."
        shown.append(pixel_art.signed(np.array([term.weight for term in neuron.terms]).reshape(H, W)))
    elif neuron and in_colour and neuron.window:
        line += " Tinted: what the neuron told below looks at."
        shown = [pixel_art.tinted(pixels, neuron.window)]
    yield Text(line, "dim")
    yield Text("\n").join(
        pixel_art.beside(*(pixel_art.image(pixel_art.sized(each), console=console) for each in shown), gap=3)
    )


# ---------------------------------------------------------------- 2: forward


def _forward(found: Trace, width: int) -> Iterator[RenderableType]:
    yield Text(
        "Numbered layers weigh what they get, inputs × weights + bias; an activation bends the sums, ReLU by making the negative 0.",
        "dim",
    )
    tables = [_layer_table(found, numbers) for numbers in (4, 3, 2, 1, 0)]
    yield next((table for table in tables if _width(table) <= width), tables[-1])


def _layer_table(found: Trace, numbers: int) -> Table:
    table = _table(
        ["", "layer", "kind"], ["shape", "min", "mean", "max", "zero", *(["first values"] if numbers else [])]
    )
    for layer in _ends(found.layers, LAYERS):
        if isinstance(layer, int):
            table.add_row("", f"... and {layer} more", style="dim")
            continue
        first = "  ".join(f"{figure(x):>6}" for x in layer.values[:numbers]) + (
            " ..." if len(layer.values) > numbers else "    "
        )
        table.add_row(
            str(layer.number or ""),
            layer.name,
            layer.kind,
            "×".join(map(str, layer.shape)),
            *map(
                figure, (layer.minimum, layer.mean if abs(layer.mean) > ROUNDING * layer.maximum else 0, layer.maximum)
            ),
            f"{layer.zeros:.0%}" if layer.zeros else "",
            *([first] if numbers else []),
        )
    return table


# ---------------------------------------------------------------- 3: one neuron


def _neuron(found: Trace, width: int) -> Iterator[RenderableType]:
    neuron = found.neuron
    assert neuron is not None
    places = {"Conv2d": "places", "Linear": "tokens"}.get(neuron.kind, "time steps")
    where = f" One of {neuron.uses} {places} that share its weights: {neuron.where}." if neuron.uses > 1 else ""
    yield Text(f"{_sentence(neuron.chosen)}.{where} The largest products come first.", "dim")
    if neuron.gates:
        yield _gates(neuron)
        yield Text(f"The {neuron.gates[min(2, len(neuron.gates) - 1)].name} in full:", "dim")
    shown: Sequence[Term] = sorted(neuron.terms, key=lambda term: -abs(term.product))
    shown = shown[:TERMS] if len(shown) > TERMS + 1 else shown
    of_map = _most(neuron)
    if of_map and _width(squares := _squares(neuron, of_map)) <= width:
        yield squares
        yield _sum(neuron, [], [term for term in neuron.terms if term not in of_map])
    else:
        yield _sum(neuron, shown, [term for term in neuron.terms if term not in shown])
    if found.attention:
        yield _looks(found.attention)


def _sum(neuron: Neuron, rows: Sequence[Term], rest: Sequence[Term]) -> Table:
    """Inputs, weights and products, what the others bring together, the sum, and what follows."""
    table = _table(["input"] if rows else [""], ["value", "× weight", "= product"] if rows else ["", "", ""])
    table.show_header = bool(rows)
    for term in rows:
        table.add_row(Text(term.label), figure(term.input), figure(term.weight), figure(term.product))
    if not rows:
        shown = math.fsum(term.product for term in neuron.terms) - math.fsum(term.product for term in rest)
        table.add_row("the products above, together", "", "", figure(shown))
    if rest:
        table.add_row(
            Text(f"... and {len(rest):,} more, together", "dim"),
            "",
            "",
            figure(math.fsum(term.product for term in rest)),
        )
    for term in neuron.biases:
        table.add_row(
            Text(term.label), figure(term.input) if term.input != 1 else "", figure(term.weight), figure(term.product)
        )
    table.add_row("weighted sum", "", "", Text(figure(neuron.sum), "bold"))
    for stage in neuron.then:
        table.add_row(FOLLOWS.get(stage.name, stage.name), "", "", figure(stage.value))
    return table


def _most(neuron: Neuron) -> Sequence[Term]:
    """Of a filter, the part for the map that adds most to its sum; nothing of other neurons."""
    if neuron.kernel is None:
        return []
    maps, height, width = neuron.kernel
    parts = [neuron.terms[m * height * width : (m + 1) * height * width] for m in range(maps)]
    return max(parts, key=lambda part: abs(math.fsum(term.product for term in part)))


def _squares(neuron: Neuron, terms: Sequence[Term]) -> RenderableType:
    """A filter on its patch, of one map: inputs, weights and products as they lie."""
    assert neuron.kernel is not None
    maps, height, width = neuron.kernel
    columns: dict[str, Callable[[Term], float]] = {
        "patch": lambda t: t.input,
        "× filter": lambda t: t.weight,
        "= products": lambda t: t.product,
    }
    grid, squares = Table.grid(padding=(0, 3)), []
    for title, value in columns.items():
        square = Table.grid(padding=(0, 1))
        for row in range(height):
            square.add_row(*(Text(f"{figure(value(term)):>6}") for term in terms[row * width : (row + 1) * width]))
        squares.append(Group(Text(title, "dim"), square))
    grid.add_row(*squares)
    which = terms[0].label.partition(",")[0]
    return Group(Text(f"Of the {maps} maps it looks at, {which}, which adds most:", "dim"), grid) if maps > 1 else grid


def _gates(neuron: Neuron) -> Group:
    """Every gate's sum, and what the unit keeps and gives."""
    table = _table(["gate"], ["inputs", "+ past", "+ biases", "= sum"], [""], [""])
    for gate in neuron.gates:
        table.add_row(
            gate.name,
            *map(figure, (gate.from_input, gate.from_state, gate.bias, gate.sum)),
            gate.activation,
            figure(gate.output),
        )
    assert neuron.state is not None
    opened, (before, after) = [figure(gate.output) for gate in neuron.gates], map(figure, neuron.state)
    lines = []
    if neuron.cell:
        cell_before, cell = map(figure, neuron.cell)
        lines.append("cell = forget × cell before + input × candidate")
        lines.append(f"     = {opened[1]} × {cell_before} + {opened[0]} × {opened[2]} = {cell}")
        lines.append(f"state = output × tanh(cell) = {opened[3]} × {figure(math.tanh(neuron.cell[1]))} = {after}")
    elif len(opened) == 3:
        closed = figure(1 - neuron.gates[1].output)
        lines.append(
            f"state = (1 - update) × candidate + update × state before = {closed} × {opened[2]} + {opened[1]} × {before} = {after}"
        )
    return Group(table, *map(Text, lines))


def _looks(attention: Attention) -> Text:
    """Where a token looks, most first."""
    order = sorted(range(len(attention.weights)), key=lambda t: -attention.weights[t])
    looked = [f"{attention.tokens[t].partition(',')[0]} ({attention.weights[t]:.0%})" for t in order[:LOOKS]]
    more = f", and {len(order) - LOOKS} more" if len(order) > LOOKS else ""
    who = attention.token.partition(",")[0]
    return Text(
        f"Attention, head {attention.head} of {attention.block}: {who} looks at {', '.join(looked)}{more}.".replace(
            "%", " %"
        )
    )


# ---------------------------------------------------------------- 4: the answer and the loss


def _answer(found: Trace) -> Iterator[RenderableType]:
    order = sorted(range(len(found.classes)), key=lambda k: -found.probabilities[k])
    right, each = found.sample.target, len(found.logits) == len(found.classes)
    shown = order[:CLASSES] if right in order[:CLASSES] else [*order[: CLASSES - 1], right]
    table = _table(["class"], [*(["logit"] if each else []), "probability"], [""], [*(["dL/dlogit"] if each else [])])
    for k in shown:
        bar = Text("━" * round(BAR * found.probabilities[k]), "cyan")
        name = Text(found.classes[k] + (" <- right" if k == right else ""), "bold" if k == right else "")
        logit, slope = ([figure(numbers[k])] if each else [] for numbers in (found.logits, found.loss.slopes))
        table.add_row(name, *logit, _percent(found.probabilities[k]), bar, *slope)
    yield table
    if (left := len(order) - len(shown)) > 0:
        yield _more(left)
    if not each:
        yield Text(f"One logit, {figure(found.logits[0])}, whose sigmoid is the probability of {found.classes[1]}.")
    for step in found.loss.steps:
        yield Text(step)
    yield Text.assemble(f"loss L, {found.loss.name}: ", (_loss(found.loss.value), "bold"))


# ---------------------------------------------------------------- 5: backward


def _backward(found: Trace) -> Iterator[RenderableType]:
    plain = (
        " That is probability - target." if found.loss.name == "cross_entropy" and len(found.loss.steps) == 1 else ""
    )
    yield Text(
        f"From dL/dlogit back through the layers, the last first, by the chain rule.{plain} |x| is a length: √ of the sum of squares.",
        "dim",
    )
    table = _table(["", "layer", "kind"], ["weights", "|weights|", "|gradient|", "largest"])
    for layer in _ends(list(reversed(found.gradients)), LAYERS):
        if isinstance(layer, int):
            table.add_row("", f"... and {layer} more", style="dim")
        else:
            norms = map(figure, (layer.weights_norm, layer.norm, layer.largest))
            table.add_row(str(layer.number or ""), layer.name, layer.kind, f"{layer.parameters:,}", *norms)
    yield table


# ---------------------------------------------------------------- 6 and 7: the update, and after it


def _update(found: Trace) -> Iterator[RenderableType]:
    update, neuron = found.update, found.neuron
    yield Text(f"learning_rate {update.learning_rate:.4g}: {update.schedule}.", "dim")
    if neuron:
        everywhere = f", added up over all {neuron.uses} places" if neuron.uses > 1 else ""
        yield Text(
            f"dL/dsum of the neuron is {figure(neuron.slope)}; a weight's gradient is that times its input{everywhere}.",
            "dim",
        )
        if neuron.slope == 0:
            yield Text(
                "It is 0: the activation is flat here, or nothing behind looks at it, so that nothing comes back and it can't learn."
            )
        yield _moved(found, neuron)
    if not update.is_plain:
        yield Text(f"{update.optimizer} {update.says}.")
    if update.clipped:
        norm = f"The gradient of all weights together has the norm {figure(update.gradient_norm)}"
        yield Text(
            f"{norm}; train.clip_grad_norm multiplies it by {figure(update.clipped)} before {update.optimizer} sees it."
        )


def _moved(found: Trace, neuron: Neuron) -> Table:
    """The neuron's weights before and after, those first that had the largest products."""
    update = found.update
    table = _table(
        ["weight of"], ["gradient", "weight", "gradient descent", *([] if update.is_plain else [update.optimizer])]
    )
    shown = [*sorted(neuron.terms, key=lambda term: -abs(term.product))[:MOVED], *neuron.biases]
    moves = [
        abs(after - t.weight) for t in shown for after in (t.after_descent, t.after_optimizer) if after != t.weight
    ]
    digits = min(10, max([3, *(2 - math.floor(math.log10(move)) for move in moves)]))
    for place, term in enumerate(shown, 1):
        after = (term.after_descent,) if update.is_plain else (term.after_descent, term.after_optimizer)
        table.add_row(
            Text(term.label),
            figure(term.gradient),
            f"{term.weight:.{digits}f}",
            *(f"{weight:.{digits}f}" for weight in after),
        )
        if place == MOVED < len(neuron.terms):
            table.add_row(Text(f"... and {len(neuron.terms) - MOVED:,} more", "dim"))
    return table


def _after(found: Trace) -> Iterator[RenderableType]:
    update, right = found.update, found.sample.target
    table = _table(["step"], ["loss", "foretold by the slope", f'p("{found.sample.label}")'])
    table.add_row("before", _loss(found.loss.value), "", _percent(found.probabilities[right]))
    steps = {"gradient descent": update.descent} | ({} if update.is_plain else {update.optimizer: update.optimized})
    for name, outcome in steps.items():
        table.add_row(name, _loss(outcome.loss), _loss(outcome.foretold), _percent(outcome.probability))
    yield table
    longer = [name for name, outcome in steps.items() if outcome.loss > found.loss.value]
    if longer:
        rate = (
            f"at this learning rate, {update.learning_rate:.4g}, it went too far, over the valley's bottom and up again"
        )
        yield Text(
            f"The loss rose by {' and by '.join(longer)}: {rate}; a smaller optimizer.lr would lower it.", "yellow"
        )
    else:
        yield Text("Smaller. Learning is this step, over and over, for one batch after another.", "dim")


# ---------------------------------------------------------------- 8: checks


def _checks(found: Trace) -> Iterator[RenderableType]:
    table = _table(["", "", ""], ["apart"])
    for check in found.checks:
        mark = Text("ok", "green") if check.passed else Text("WRONG", "bold red")
        table.add_row(mark, check.name, check.what, f"{check.error:.0e}" if check.error else "0")
    yield table


# ---------------------------------------------------------------- formats


def figure(x: float) -> str:
    """Three decimals, fewer of large numbers; powers of ten for what would be lost."""
    if x == 0:
        return "0"
    if not 5e-4 <= abs(x) < 1e6:
        return f"{x:.1e}"
    return f"{x:.{max(0, 3 - max(0, len(str(int(abs(x)))) - 2))}f}"


def _loss(loss: float) -> str:
    return f"{loss:#.5g}"


def _more(count: int) -> Text:
    return Text(f"... and {count:,} more", "dim")


def _ends(items: Sequence[Item], most: int) -> list[Item | int]:
    """All of them, or the first and the last with the number between them that is left out."""
    if len(items) <= most:
        return list(items)
    half = (most - 1) // 2
    return [*items[:half], len(items) - 2 * half, *items[-half:]]


def _table(*sides: Sequence[str]) -> Table:
    """Columns by their titles, in groups that stand to the left and to the right by turns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for side, names in enumerate(sides):
        for name in names:
            table.add_column(Text(name), justify="right" if side % 2 else "left", overflow="fold")
    return table


def _width(table: RenderableType) -> int:
    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum
