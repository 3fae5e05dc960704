"""Print one neuron of a trace in full: its weighted sum, its gates or attention, and its weights after the update."""

import math
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nnx.terminal.console import FirstThatFits
from nnx.terminal.trace_format import POSITIONS, format_number, new_table
from nnx.trace.result import Attention, Neuron, Term, Trace

# Rows of a table, at most; the number of rows left out is printed
TERMS = 8  # products
UPDATED = 4  # updated weights
TOKENS = 5
STAGES = {
    "MaxPool2d": "max pooling",
    "AvgPool2d": "average pooling",
    "BatchNorm1d": "batch norm",
    "BatchNorm2d": "batch norm",
    "LayerNorm": "layer norm",
}


def neuron_in_full(trace: Trace, neuron: Neuron, width: int) -> Iterator[RenderableType]:
    """How it came to its output, in `width` columns."""
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
    table = new_table(["input"] if rows else [""], ["value", "× weight", "= product"] if rows else ["", "", ""])
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
    wide = new_table(["gate"], ["from input", "+ from state", "+ biases", "= sum"], ["activation"], ["output"])
    narrow = new_table(["gate"], ["input", "+ state", "+ biases", "= sum", "output"])
    for gate in neuron.gates:
        sums = list(map(format_number, (gate.from_input, gate.from_state, gate.bias, gate.sum)))
        output = format_number(gate.output)
        wide.add_row(gate.name, *sums, gate.activation, output)
        narrow.add_row(gate.name, *sums, output)
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
    return Group(FirstThatFits([wide, narrow]), *map(Text, lines))


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


def updated_weights(trace: Trace, neuron: Neuron, has_gradient: bool, descent: str, decimals: int = 10) -> Table:
    """The neuron's weights with the largest products and its biases, before and after both steps. `descent` is the
    title of gradient descent's. Weights have as many decimals as show the change, at most `decimals`."""
    update = trace.update
    optimizer = [] if update.is_plain else [update.optimizer]
    table = new_table(["weight of"], [*(["gradient"] if has_gradient else []), "weight", descent, *optimizer])
    rows = [*sorted(neuron.terms, key=lambda term: -abs(term.product))[:UPDATED], *neuron.biases]
    changes = [
        abs(after - term.weight)
        for term in rows
        for after in (term.after_descent, term.after_optimizer)
        if after != term.weight
    ]
    digits = min(decimals, max([3, *(2 - math.floor(math.log10(change)) for change in changes)]))
    for number, term in enumerate(rows, 1):
        after = (term.after_descent,) if update.is_plain else (term.after_descent, term.after_optimizer)
        weights = [f"{weight:.{digits}f}" for weight in (term.weight, *after)]
        table.add_row(Text(term.label), *([format_number(term.gradient)] if has_gradient else []), *weights)
        if number == UPDATED < len(neuron.terms):
            table.add_row(Text(f"... and {len(neuron.terms) - UPDATED:,} more", "dim"))
    return table


def _width(renderable: RenderableType) -> int:
    """The columns that it needs without wrapping."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, renderable).maximum
