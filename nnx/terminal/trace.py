"""Print a trace on stdout as numbered sections: input, forward pass, one neuron, loss, backward pass, update, checks.

print_trace(trace("digits_mlp"))
"""

import math
import os
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
from nnx.trace.result import Attention, LayerTrace, Neuron, Term, Trace

PIPE = 100  # columns, where stdout is no terminal and COLUMNS is not set
INDENT = 3  # columns
ROUNDING = 1e-12  # a mean below this share of the maximum is 0 up to rounding, such as that of a layer norm
# Rows of a table, at most; the number of rows left out is printed
TERMS = 8  # products of the neuron
UPDATED = 4  # updated weights of the neuron
LAYERS = 15
CLASSES = 10
FEATURES = 8
TOKENS = 5
BAR = 24  # characters of a bar for probability 1
ASCII = str.maketrans({"×": "x", "━": "=", "√": "root ", "²": "^2", "░": ".", "▒": ":", "▓": "*", "█": "#", "▀": "#"})
STAGES = {
    "MaxPool2d": "max pooling",
    "AvgPool2d": "average pooling",
    "BatchNorm1d": "batch norm",
    "BatchNorm2d": "batch norm",
    "LayerNorm": "layer norm",
}
POSITIONS = {"Conv2d": "positions", "Linear": "tokens"}  # kind of layer -> what shares its weights; else time steps
Item = TypeVar("Item")


def print_trace(trace: Trace) -> None:
    """Print all sections on stdout, ASCII only where the encoding requires it. A pipe gets lines of COLUMNS columns, or
    of 100."""
    columns = os.environ.get("COLUMNS", "")
    pipe_width = int(columns) if columns.isdecimal() and int(columns) else PIPE
    console = Console(width=None if sys.stdout.isatty() else pipe_width)
    label = printable(trace.sample.label)  # names may contain control characters
    classes = tuple(map(printable, trace.classes))
    trace = replace(trace, source=printable(trace.source), classes=classes, sample=replace(trace.sample, label=label))
    with console.capture() as captured:
        for section in sections(trace, console):
            console.print(section)
            console.print()
    text = "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))  # without the padding of tables
    if console.options.ascii_only:
        text = text.translate(ASCII).encode("ascii", errors="replace").decode()
    print(text)  # noqa: T201


def sections(trace: Trace, console: Console) -> Iterator[RenderableType]:
    """The heading and the numbered sections, in the width and colours of the console."""
    width = console.width - INDENT
    sample = trace.sample
    neuron = trace.neuron
    yield _heading(trace)
    parts: list[tuple[str, Iterable[RenderableType]]] = [
        (f'Input: sample {sample.index:,} of the {sample.split} split, label "{sample.label}"', _input(trace, console)),
        ("Forward pass: the outputs of each layer", _forward(trace, width)),
        ("Prediction and loss", _prediction(trace)),
        ("Backward pass: the gradient of the loss with respect to each layer's weights", _backward(trace, width)),
        ("Update: weight - learning_rate × gradient", _update(trace)),
        ("The same sample after the update", _after_update(trace)),
        ("Checks: the same numbers computed in a second way", _checks(trace)),
    ]
    if neuron:
        title = f"One neuron in full: unit {neuron.unit} of layer {neuron.layer}, {neuron.name}"
        parts.insert(2, (title, _neuron(trace, neuron, width)))
    for number, (title, content) in enumerate(parts, 1):
        yield Group(Text(f"{number}  {title}", "bold cyan"), Padding(Group(*content), (0, 0, 0, INDENT)))


def _heading(trace: Trace) -> Text:
    weights = (
        f"trained weights, epoch {trace.epoch}" if trace.epoch is not None else f"initial weights, seed {trace.seed}"
    )
    notes = ". ".join(map(_capitalised, trace.notes))
    return Text.assemble(
        ("One training step of one sample, in real numbers: ", "bold"),
        (trace.source, "bold"),
        (f"\n{trace.architecture}, {trace.parameters:,} parameters ({weights}). {notes}.", "dim"),
    )


# ---------------------------------------------------------------- input


def _input(trace: Trace, console: Console) -> Iterator[RenderableType]:
    sample = trace.sample
    if len(sample.shape) == 1:
        yield from _features(trace)
        return
    raw_range = f"{min(sample.raw):g} to {max(sample.raw):g}"
    normalised_range = f"{format_number(min(sample.normalised))} to {format_number(max(sample.normalised))}"
    shape = " × ".join(map(str, sample.shape))
    line = f"{sample.dataset}, {shape} pixels, values {raw_range}. Normalised for the network: {normalised_range}."
    C, H, W = sample.shape
    pixels = np.array(sample.raw, np.uint8).reshape(C, H, W).transpose(1, 2, 0)[:, :, : 3 if C == 3 else 1]
    images = [pixels]
    neuron = trace.neuron
    if neuron and pixel_art.has_colours(console):
        if C == 1 and len(neuron.terms) == H * W and neuron.uses == 1 and trace.layers[0].name == neuron.name:
            line += f" Beside the image: the weights of unit {neuron.unit} (see 3), positive orange, negative blue."
            images.append(pixel_art.colour_by_sign(np.array([term.weight for term in neuron.terms]).reshape(H, W)))
        elif neuron.window:
            line += " Tinted: the receptive field of the neuron (see 3)."
            images = [pixel_art.tint_window(pixels, neuron.window)]
    yield Text(line, "dim")
    pictures = [pixel_art.render(pixel_art.scale_to_view(image), console=console) for image in images]
    yield Text("\n").join(pixel_art.side_by_side(*pictures, gap=3))


def _features(trace: Trace) -> Iterator[RenderableType]:
    """The features of a table row, raw and normalised."""
    sample = trace.sample
    table = _table(["feature"], ["value", "normalised"])
    for i, (raw, x) in enumerate(zip(sample.raw[:FEATURES], sample.normalised, strict=False)):
        table.add_row(Text(sample.features[i]), format_number(raw), format_number(x))
    yield table
    if (left_out := len(sample.raw) - FEATURES) > 0:
        yield _more(left_out)


# ---------------------------------------------------------------- forward pass


def _forward(trace: Trace, width: int) -> Iterator[RenderableType]:
    yield Text(
        "Numbered layers compute weighted sums: inputs × weights + bias. An activation function makes the network "
        "non-linear: ReLU, for example, replaces negative values by 0.",
        "dim",
    )
    tables = [_layer_table(trace, values) for values in (4, 3, 2, 1, 0)]
    yield next((table for table in tables if _width(table) <= width), tables[-1])


def _layer_table(trace: Trace, values: int) -> Table:
    """A row for each layer, with the first `values` outputs."""
    titles = ["shape", "min", "mean", "max", "zero"]
    table = _table(["", "layer", "kind"], [*titles, "first values"] if values else titles)
    for layer in _first_and_last(trace.layers, LAYERS):
        if isinstance(layer, int):
            table.add_row("", f"... and {layer} more", style="dim")
        else:
            table.add_row(*_layer_row(layer), *([_first_values(layer, values)] if values else []))
    return table


def _layer_row(layer: LayerTrace) -> list[str]:
    mean = layer.mean if abs(layer.mean) > ROUNDING * layer.maximum else 0
    return [
        str(layer.number or ""),
        layer.name,
        layer.kind,
        "×".join(map(str, layer.shape)),
        format_number(layer.minimum),
        format_number(mean),
        format_number(layer.maximum),
        f"{layer.zeros:.0%}" if layer.zeros else "",
    ]


def _first_values(layer: LayerTrace, values: int) -> str:
    first = "  ".join(f"{format_number(x):>6}" for x in layer.values[:values])
    return first + (" ..." if len(layer.values) > values else "    ")


# ---------------------------------------------------------------- one neuron


def _neuron(trace: Trace, neuron: Neuron, width: int) -> Iterator[RenderableType]:
    shared = ""
    if neuron.uses > 1:
        positions = POSITIONS.get(neuron.kind, "time steps")
        shared = f" {neuron.uses} {positions} share its weights; this one is {neuron.where}."
    strongest_map = _strongest_map(neuron)
    grids = _filter_grids(neuron, strongest_map) if strongest_map else None
    has_grids = grids is not None and _width(grids) <= width
    order = "" if has_grids else " The largest products come first."
    yield Text(f"Selected {neuron.chosen}.{shared}{order}", "dim")
    if neuron.gates:
        yield _gates(neuron)
        yield Text(f"The weighted sum of the {neuron.gates[min(2, len(neuron.gates) - 1)].name}:", "dim")
    if grids is not None and has_grids:
        yield grids
        yield _weighted_sum(neuron, [], [term for term in neuron.terms if term not in strongest_map])
    else:
        by_size = sorted(neuron.terms, key=lambda term: -abs(term.product))
        rows = by_size[:TERMS] if len(by_size) > TERMS + 1 else by_size
        yield _weighted_sum(neuron, rows, [term for term in neuron.terms if term not in rows])
    if trace.attention:
        yield _attention(trace.attention)


def _weighted_sum(neuron: Neuron, rows: Sequence[Term], rest: Sequence[Term]) -> Table:
    """Inputs, weights and products of `rows`, the sum of the rest, the biases, the weighted sum and what follows."""
    table = _table(["input"] if rows else [""], ["value", "× weight", "= product"] if rows else ["", "", ""])
    table.show_header = bool(rows)
    for term in rows:
        table.add_row(
            Text(term.label), format_number(term.input), format_number(term.weight), format_number(term.product)
        )
    rest_sum = math.fsum(term.product for term in rest)
    if not rows:
        above = math.fsum(term.product for term in neuron.terms) - rest_sum
        table.add_row("sum of the products above", "", "", format_number(above))
    if rest:
        table.add_row(Text(f"sum of the other {len(rest):,}", "dim"), "", "", format_number(rest_sum))
    for term in neuron.biases:
        factor = format_number(term.input) if term.input != 1 else ""
        table.add_row(Text(term.label), factor, format_number(term.weight), format_number(term.product))
    table.add_row("weighted sum", "", "", Text(format_number(neuron.sum), "bold"))
    for stage in neuron.then:
        table.add_row(STAGES.get(stage.name, stage.name), "", "", format_number(stage.value))
    return table


def _strongest_map(neuron: Neuron) -> Sequence[Term]:
    """The terms of the input map that contributes most to a filter's sum; [] for other neurons."""
    if neuron.kernel is None:
        return []
    maps, height, width = neuron.kernel
    parts = [neuron.terms[m * height * width : (m + 1) * height * width] for m in range(maps)]
    return max(parts, key=lambda part: abs(math.fsum(term.product for term in part)))


def _filter_grids(neuron: Neuron, terms: Sequence[Term]) -> RenderableType:
    """A filter at its position in one input map: grids of the patch, the weights and the products."""
    assert neuron.kernel is not None
    maps, height, width = neuron.kernel
    columns: dict[str, Callable[[Term], float]] = {
        "patch": lambda term: term.input,
        "× filter": lambda term: term.weight,
        "= products": lambda term: term.product,
    }
    grids = []
    for title, value in columns.items():
        grid = Table.grid(padding=(0, 1))
        for row in range(height):
            row_terms = terms[row * width : (row + 1) * width]
            grid.add_row(*(Text(f"{format_number(value(term)):>6}") for term in row_terms))
        grids.append(Group(Text(title, "dim"), grid))
    layout = Table.grid(padding=(0, 3))
    layout.add_row(*grids)
    if maps == 1:
        return layout
    name = terms[0].label.partition(",")[0]
    maps_name = f"{maps} input {'channels' if name.startswith('channel') else 'maps'}"
    return Group(Text(f"Of the {maps_name}, {name} contributes most to the sum:", "dim"), layout)


def _gates(neuron: Neuron) -> Group:
    """Every gate of a recurrent unit, and how they set its new state."""
    table = _table(["gate"], ["from input", "+ from state", "+ biases", "= sum"], ["activation"], ["output"])
    for gate in neuron.gates:
        table.add_row(
            gate.name,
            *map(format_number, (gate.from_input, gate.from_state, gate.bias, gate.sum)),
            gate.activation,
            format_number(gate.output),
        )
    assert neuron.state is not None
    outputs = [format_number(gate.output) for gate in neuron.gates]
    state_before, state = map(format_number, neuron.state)
    lines = []
    if neuron.cell:
        cell_before, cell = map(format_number, neuron.cell)
        tanh_cell = format_number(math.tanh(neuron.cell[1]))
        lines.append("cell = forget × previous cell + input × candidate")
        lines.append(f"     = {outputs[1]} × {cell_before} + {outputs[0]} × {outputs[2]} = {cell}")
        lines.append(f"state = output × tanh(cell) = {outputs[3]} × {tanh_cell} = {state}")
    elif len(outputs) == 3:
        kept = format_number(1 - neuron.gates[1].output)
        lines.append("state = (1 - update) × candidate + update × previous state")
        lines.append(f"      = {kept} × {outputs[2]} + {outputs[1]} × {state_before} = {state}")
    return Group(table, *map(Text, lines))


def _attention(attention: Attention) -> Text:
    """The tokens with the largest attention weights."""

    def short_name(token: str) -> str:
        return token.partition(",")[0]

    order = sorted(range(len(attention.weights)), key=lambda t: -attention.weights[t])
    targets = [f"{short_name(attention.tokens[t])} ({100 * attention.weights[t]:.0f} %)" for t in order[:TOKENS]]
    more = f" and to {len(order) - TOKENS} more" if len(order) > TOKENS else ""
    return Text(
        f"Attention in head {attention.head} of {attention.block}: {short_name(attention.token)} attends to "
        f"{', '.join(targets)}{more}."
    )


# ---------------------------------------------------------------- prediction and loss


def _prediction(trace: Trace) -> Iterator[RenderableType]:
    target = trace.sample.target
    has_logits = len(trace.logits) == len(trace.classes)
    if has_logits:
        yield Text(
            "Softmax turns logits into probabilities: p = exp(logit) / sum of exp(logit) over all classes.", "dim"
        )
    order = sorted(range(len(trace.classes)), key=lambda k: -trace.probabilities[k])
    rows = order[:CLASSES] if target in order[:CLASSES] else [*order[: CLASSES - 1], target]
    table = _table(
        ["class"],
        ["logit", "probability"] if has_logits else ["probability"],
        [""],
        ["dL/dlogit"] if has_logits else [],
    )
    for k in rows:
        name = Text(f"{trace.classes[k]} <- target", "bold") if k == target else Text(trace.classes[k])
        probability = _percent(trace.probabilities[k])
        bar = Text("━" * round(BAR * trace.probabilities[k]), "cyan")
        if has_logits:
            logit = format_number(trace.logits[k])
            table.add_row(name, logit, probability, bar, format_number(trace.loss.slopes[k]))
        else:
            table.add_row(name, probability, bar)
    yield table
    if (left_out := len(order) - len(rows)) > 0:
        yield _more(left_out)
    if not has_logits:
        logit = format_number(trace.logits[0])
        yield Text(f"The network has one logit, {logit}. Its sigmoid is the probability of {trace.classes[1]}.")
    for step in trace.loss.steps:
        yield Text(step)
    yield Text.assemble(f"loss L, {trace.loss.name}: ", (_format_loss(trace.loss.value), "bold"))


# ---------------------------------------------------------------- backward pass


def _backward(trace: Trace, width: int) -> Iterator[RenderableType]:
    is_plain = trace.loss.name == "cross_entropy" and len(trace.loss.steps) == 1
    start = "dL/dlogit, here probability - one-hot target," if is_plain else "dL/dlogit"
    yield Text(
        f"Backpropagation starts with {start} and applies the chain rule layer by layer, from the last to the first. "
        "|x| is the norm: √ of the sum of squares.",
        "dim",
    )
    tables = [_gradient_table(trace, figures) for figures in (4, 3, 2)]
    yield next((table for table in tables if _width(table) <= width), tables[-1])


def _gradient_table(trace: Trace, figures: int) -> Table:
    """A row for each layer, with the last `figures` of: its number of weights, three norms."""
    table = _table(["", "layer", "kind"], ["weights", "|weights|", "|gradient|", "largest"][-figures:])
    for layer in _first_and_last(list(reversed(trace.gradients)), LAYERS):
        if isinstance(layer, int):
            table.add_row("", f"... and {layer} more", style="dim")
        else:
            norms = map(format_number, (layer.weights_norm, layer.norm, layer.largest))
            row = [f"{layer.parameters:,}", *norms][-figures:]
            table.add_row(str(layer.number or ""), layer.name, layer.kind, *row)
    return table


# ---------------------------------------------------------------- update


def _update(trace: Trace) -> Iterator[RenderableType]:
    update = trace.update
    neuron = trace.neuron
    yield Text(f"The learning rate is {update.learning_rate:.4g} ({update.schedule}).", "dim")
    if neuron:
        positions = POSITIONS.get(neuron.kind, "time steps")
        total = f", summed over all {neuron.uses} {positions}" if neuron.uses > 1 else ""
        yield Text(
            f"The neuron's dL/dsum is {format_number(neuron.slope)}. By the chain rule, the gradient of each weight is "
            f"dL/dsum × input{total}.",
            "dim",
        )
        if neuron.slope == 0:
            here = "at this position" if neuron.uses > 1 else "from this sample"
            yield Text(
                "dL/dsum is 0 because the activation is flat here or no later layer uses the output. "
                f"The neuron learns nothing {here}."
            )
        yield _updated_weights(trace, neuron)
    if not update.is_plain:
        yield Text(f"{update.optimizer} {update.says}.")
    if update.clipped:
        yield Text(
            f"The gradient of all weights together has the norm {format_number(update.gradient_norm)}. "
            f"train.clip_grad_norm scales it by {format_number(update.clipped)} before {update.optimizer}'s step."
        )


def _updated_weights(trace: Trace, neuron: Neuron) -> Table:
    """The neuron's weights with the largest products and its biases, before and after both steps."""
    update = trace.update
    optimizer = [] if update.is_plain else [update.optimizer]
    table = _table(["weight of"], ["gradient", "weight", "gradient descent", *optimizer])
    rows = [*sorted(neuron.terms, key=lambda term: -abs(term.product))[:UPDATED], *neuron.biases]
    changes = [
        abs(after - term.weight)
        for term in rows
        for after in (term.after_descent, term.after_optimizer)
        if after != term.weight
    ]
    digits = min(10, max([3, *(2 - math.floor(math.log10(change)) for change in changes)]))
    for number, term in enumerate(rows, 1):
        after = (term.after_descent,) if update.is_plain else (term.after_descent, term.after_optimizer)
        weights = [f"{weight:.{digits}f}" for weight in (term.weight, *after)]
        table.add_row(Text(term.label), format_number(term.gradient), *weights)
        if number == UPDATED < len(neuron.terms):
            table.add_row(Text(f"... and {len(neuron.terms) - UPDATED:,} more", "dim"))
    return table


def _after_update(trace: Trace) -> Iterator[RenderableType]:
    update = trace.update
    yield Text("First-order prediction of the loss: L + the sum over all weights of gradient × change.", "dim")
    table = _table(["step"], ["loss", "first-order prediction", f'p("{trace.sample.label}")'])
    table.add_row("before", _format_loss(trace.loss.value), "", _percent(trace.probabilities[trace.sample.target]))
    outcomes = {"gradient descent": update.descent} | ({} if update.is_plain else {update.optimizer: update.optimized})
    for name, outcome in outcomes.items():
        table.add_row(name, _format_loss(outcome.loss), _format_loss(outcome.foretold), _percent(outcome.probability))
    yield table
    overshot = [name for name, outcome in outcomes.items() if outcome.loss > trace.loss.value]
    if overshot:
        yield Text(
            f"The loss is higher after {' and '.join(overshot)}: at learning rate {update.learning_rate:.4g} the step "
            "overshot the minimum. Lower optimizer.lr.",
            "yellow",
        )
    else:
        yield Text("The loss is lower. Training repeats this step, batch after batch.", "dim")


# ---------------------------------------------------------------- checks


def _checks(trace: Trace) -> Iterator[RenderableType]:
    table = _table(["", "", ""], ["error"])
    for check in trace.checks:
        mark = Text("ok", "green") if check.passed else Text("WRONG", "bold red")
        table.add_row(mark, check.name, check.what, f"{check.error:.0e}" if check.error else "0")
    yield table


# ---------------------------------------------------------------- formats


def format_number(x: float) -> str:
    """Three decimals, fewer for large numbers; scientific notation for very small and very large ones."""
    if x == 0:
        return "0"
    if not 5e-4 <= abs(x) < 1e6:
        return f"{x:.1e}"
    return f"{x:.{max(0, 3 - max(0, len(str(int(abs(x)))) - 2))}f}"


def _format_loss(loss: float) -> str:
    return f"{loss:#.5g}"


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _more(count: int) -> Text:
    return Text(f"... and {count:,} more", "dim")


def _first_and_last(items: Sequence[Item], most: int) -> list[Item | int]:
    """All items; or, of more than `most`, the first and the last, with the number left out between them."""
    if len(items) <= most:
        return list(items)
    half = (most - 1) // 2
    return [*items[:half], len(items) - 2 * half, *items[-half:]]


def _table(*groups: Sequence[str]) -> Table:
    """A table with these column titles, in groups that are left- and right-aligned in turn."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, titles in enumerate(groups):
        for title in titles:
            table.add_column(Text(title), justify="right" if number % 2 else "left", overflow="fold")
    return table


def _width(renderable: RenderableType) -> int:
    """The columns that it needs without wrapping."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, renderable).maximum
