"""Print a trace on stdout as numbered sections: input, forward pass, one neuron, loss, backward pass, update, checks.

print_trace(trace("digits_mlp"))
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nnx.errors import printable
from nnx.formatting import percent as _percent
from nnx.terminal import pixels as pixel_art
from nnx.terminal.console import FirstThatFits, new_console, wrap_text
from nnx.terminal.trace_format import POSITIONS, first_and_last, format_loss, format_number, more, new_table
from nnx.terminal.trace_neuron import neuron_in_full, updated_weights
from nnx.trace.result import LayerTrace, Outcome, Trace

PIPE = 100  # columns, where stdout is no terminal and COLUMNS is not set
INDENT = 3  # columns
GAP = 3  # columns between pictures
ROUNDING = 1e-12  # a mean below this share of the maximum is 0 up to rounding, such as that of a layer norm
# Rows of a table, at most; the number of rows left out is printed
LAYERS = 15
CLASSES = 10
FEATURES = 8
BAR = 24  # characters of a bar for probability 1
ASCII = str.maketrans({"×": "x", "━": "=", "√": "root ", "²": "^2", "░": ".", "▒": ":", "▓": "*", "█": "#", "▀": "#"})


def print_trace(trace: Trace) -> None:
    """Print all sections on stdout, ASCII only where the encoding requires it. A pipe gets lines of COLUMNS columns, or
    of 100."""
    columns = os.environ.get("COLUMNS", "")
    pipe_width = int(columns) if columns.isdecimal() and int(columns) else PIPE
    console = new_console(sys.stdout, pipe_width)
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
        ("Forward pass: the outputs of each layer", _forward(trace)),
        ("Prediction and loss", _prediction(trace)),
        ("Backward pass: the gradient of the loss with respect to each layer's weights", _backward(trace)),
        ("Update: weight - learning_rate × gradient", _update(trace)),
        ("The same sample after the update", _after_update(trace)),
        ("Checks: the same numbers computed in a second way", _checks(trace)),
    ]
    if neuron:
        title = f"One neuron in full: unit {neuron.unit} of layer {neuron.layer}, {neuron.name}"
        parts.insert(2, (title, neuron_in_full(trace, neuron, width)))
    for number, (title, content) in enumerate(parts, 1):
        heading = Text("\n" + " " * INDENT).join(wrap_text(Text(title), width))
        heading = Text.assemble(f"{number:<{INDENT}}", heading, style="bold cyan")
        yield Group(heading, Padding(Group(*content), (0, 0, 0, INDENT)))


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
    room = (console.width - INDENT + GAP) // len(images) - GAP
    pictures = [pixel_art.render(pixel_art.scale_to_view(image), room, console=console) for image in images]
    yield Text("\n").join(pixel_art.side_by_side(*pictures, gap=GAP))


def _features(trace: Trace) -> Iterator[RenderableType]:
    """The features of a table row, raw and normalised."""
    sample = trace.sample
    table = new_table(["feature"], ["value", "normalised"])
    for i, (raw, x) in enumerate(zip(sample.raw[:FEATURES], sample.normalised, strict=False)):
        table.add_row(Text(sample.features[i]), format_number(raw), format_number(x))
    yield table
    if (left_out := len(sample.raw) - FEATURES) > 0:
        yield more(left_out)


# ---------------------------------------------------------------- forward pass


def _forward(trace: Trace) -> Iterator[RenderableType]:
    yield Text(
        "Numbered layers compute weighted sums: inputs × weights + bias. An activation function makes the network "
        "non-linear: ReLU, for example, replaces negative values by 0.",
        "dim",
    )
    tables = [_layer_table(trace, values) for values in (4, 3, 2, 1, 0)]
    yield FirstThatFits([*tables, _layer_table(trace, 0, has_kind=False), _layer_table(trace, 0, False, False)])


def _layer_table(trace: Trace, values: int, has_kind: bool = True, has_minimum: bool = True) -> Table:
    """A row for each layer, with the first `values` outputs."""
    titles = ["shape", *(["min"] if has_minimum else []), "mean", "max", "zero"]
    left = ["", "layer", *(["kind"] if has_kind else [])]
    table = new_table(left, [*titles, "first values"] if values else titles)
    for layer in first_and_last(trace.layers, LAYERS):
        if isinstance(layer, int):
            table.add_row("", f"... and {layer} more", style="dim")
        else:
            row = _layer_row(layer)
            cells = [row[n] for n in range(len(row)) if (has_kind or n != 2) and (has_minimum or n != 4)]
            table.add_row(*cells, *([_first_values(layer, values)] if values else []))
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
    yield FirstThatFits([_class_table(trace, rows, bar) for bar in (BAR, BAR // 2, BAR // 4, 0)])
    if (left_out := len(order) - len(rows)) > 0:
        yield more(left_out)
    if not has_logits:
        logit = format_number(trace.logits[0])
        yield Text(f"The network has one logit, {logit}. Its sigmoid is the probability of {trace.classes[1]}.")
    for step in trace.loss.steps:
        yield Text(step)
    yield Text.assemble(f"loss L, {trace.loss.name}: ", (format_loss(trace.loss.value), "bold"))


def _class_table(trace: Trace, rows: Sequence[int], length: int) -> Table:
    """A row for each of these classes. `length` is the number of characters of a bar for probability 1."""
    has_logits = len(trace.logits) == len(trace.classes)
    table = new_table(
        ["class"],
        ["logit", "probability"] if has_logits else ["probability"],
        [""] if length else [],
        ["dL/dlogit"] if has_logits else [],
    )
    for k in rows:
        is_target = k == trace.sample.target
        name = Text(f"{trace.classes[k]} <- target", "bold") if is_target else Text(trace.classes[k])
        cells: list[RenderableType] = [name, *([format_number(trace.logits[k])] if has_logits else [])]
        cells.append(_percent(trace.probabilities[k]))
        if length:
            cells.append(Text("━" * round(length * trace.probabilities[k]), "cyan"))
        if has_logits:
            cells.append(format_number(trace.loss.slopes[k]))
        table.add_row(*cells)
    return table


# ---------------------------------------------------------------- backward pass


def _backward(trace: Trace) -> Iterator[RenderableType]:
    is_plain = trace.loss.name == "cross_entropy" and len(trace.loss.steps) == 1
    start = "dL/dlogit, here probability - one-hot target," if is_plain else "dL/dlogit"
    yield Text(
        f"Backpropagation starts with {start} and applies the chain rule layer by layer, from the last to the first. "
        "|x| is the norm: √ of the sum of squares.",
        "dim",
    )
    tables = [_gradient_table(trace, figures) for figures in (4, 3, 2)]
    yield FirstThatFits([*tables, _gradient_table(trace, 2, has_kind=False)])


def _gradient_table(trace: Trace, figures: int, has_kind: bool = True) -> Table:
    """A row for each layer, with the last `figures` of: its number of weights, three norms."""
    table = new_table(
        ["", "layer", *(["kind"] if has_kind else [])], ["weights", "|weights|", "|gradient|", "largest"][-figures:]
    )
    for layer in first_and_last(list(reversed(trace.gradients)), LAYERS):
        if isinstance(layer, int):
            table.add_row("", f"... and {layer} more", style="dim")
        else:
            norms = map(format_number, (layer.weights_norm, layer.norm, layer.largest))
            row = [f"{layer.parameters:,}", *norms][-figures:]
            table.add_row(str(layer.number or ""), layer.name, *([layer.kind] if has_kind else []), *row)
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
        layouts = [(True, "gradient descent"), (True, "descent"), (False, "gradient descent"), (False, "descent")]
        tables = [updated_weights(trace, neuron, *layout) for layout in layouts]
        yield FirstThatFits([*tables, updated_weights(trace, neuron, False, "descent", decimals=7)])
    if not update.is_plain:
        yield Text(f"{update.optimizer} {update.says}.")
    if update.clipped:
        yield Text(
            f"The gradient of all weights together has the norm {format_number(update.gradient_norm)}. "
            f"train.clip_grad_norm scales it by {format_number(update.clipped)} before {update.optimizer}'s step."
        )


def _after_update(trace: Trace) -> Iterator[RenderableType]:
    update = trace.update
    yield Text("First-order prediction of the loss: L + the sum over all weights of gradient × change.", "dim")
    outcomes = {"gradient descent": update.descent} | ({} if update.is_plain else {update.optimizer: update.optimized})
    titles = [("first-order prediction", trace.sample.label), ("prediction", trace.sample.label)]
    yield FirstThatFits(
        [
            *(_outcomes(trace, outcomes, title, f'p("{label}")') for title, label in titles),
            _outcomes(trace, outcomes, "prediction", "p(target)"),
        ]
    )
    overshot = [name for name, outcome in outcomes.items() if outcome.loss > trace.loss.value]
    if overshot:
        yield Text(
            f"The loss is higher after {' and '.join(overshot)}: at learning rate {update.learning_rate:.4g} the step "
            "overshot the minimum. Lower optimizer.lr.",
            "yellow",
        )
    else:
        yield Text("The loss is lower. Training repeats this step, batch after batch.", "dim")


def _outcomes(trace: Trace, outcomes: dict[str, Outcome], prediction: str, probability: str) -> Table:
    """A row before the update, and one after each step of `outcomes`. The last two are titles: of the first-order
    prediction, and of the target's probability."""
    table = new_table(["step"], ["loss", prediction, probability])
    table.add_row("before", format_loss(trace.loss.value), "", _percent(trace.probabilities[trace.sample.target]))
    for name, outcome in outcomes.items():
        table.add_row(name, format_loss(outcome.loss), format_loss(outcome.foretold), _percent(outcome.probability))
    return table


# ---------------------------------------------------------------- checks


def _checks(trace: Trace) -> Iterator[RenderableType]:
    table = new_table(["", "", ""], ["error"])
    lines = []
    for check in trace.checks:
        mark = Text("ok", "green") if check.passed else Text("WRONG", "bold red")
        error = f"{check.error:.0e}" if check.error else "0"
        table.add_row(mark, check.name, check.what, error)
        lines.append(Text.assemble(mark, f"  {check.name}: {check.what}; error {error}"))
    yield FirstThatFits([table, Group(*lines)])


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
