"""What is computed twice, in two ways: the gradient against finite differences and against plain Python, sums against
torch's."""

import math
from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor, nn

from nnx import losses
from nnx.backprop import Network
from nnx.config.registry import Component
from nnx.models import PlainModel
from nnx.trace.gradients import Answer, Question
from nnx.trace.neuron import Selection, take_weights
from nnx.trace.recorded_pass import RecordedPass
from nnx.trace.result import Check, Loss, Neuron

STEPS = (
    1e-5,
    1e-6,
    1e-4,
    1e-3,
    1e-7,
)  # of a finite difference: the first serves, the others where rounding or a kink is in its way
RELATIVE = 1e-5  # how far a finite difference may be from the gradient, of the larger of both
EXACT = 1e-9  # how far the same sum may be in another order, of the largest of its numbers, or 1
MOST_TENSORS = 60  # that are looked into, evenly spread, where a network has more
PLAIN_PYTHON = 1_000_000  # weights, beyond which backprop takes too long
EPSILON = 2.0**-52


def finite_differences(question: Question, answer: Answer, choice: Selection | None, seed: int) -> Check:
    """The gradient of some weights of the chosen neuron, and of random ones of every layer, against what the loss does
    when they move."""
    parameters, gradients = dict(question.model.named_parameters()), answer.gradients
    places = list(_places(gradients, choice, Random(seed)))
    seen = [_compare(parameters[name], i, float(gradients[name].flatten()[i]), question, answer) for name, i in places]
    measured = [error for error, _ in seen if error is not None]
    kinks = sum(kink for _, kink in seen)
    what = f"against (L(w + h) - L(w - h)) / 2h, {len(seen)} weights"
    what += f", {len(seen) - len(measured)} of them too small to see" if len(measured) < len(seen) else ""
    what += f", {kinks} of them at a kink" if kinks else ""
    return Check("gradient", what, max(measured, default=0.0), RELATIVE)


def _places(gradients: dict[str, Tensor], choice: Selection | None, random: Random) -> Iterator[tuple[str, int]]:
    """The neuron's five weights of the largest |gradient| and five others, its biases; and two weights of each
    tensor."""
    chosen: list[tuple[str, int]] = []
    if choice:
        weights = [
            (span.parameter, span.start + i) for span in choice.layer.weights(choice.unit) for i in range(span.count)
        ]
        by_size = sorted(weights, key=lambda place: -abs(float(gradients[place[0]].flatten()[place[1]])))
        chosen = by_size[:5] + random.sample(by_size[5:], min(5, len(by_size[5:])))
        chosen += [(span.parameter, span.start) for span in choice.layer.biases(choice.unit)]
    names = list(gradients)
    stride = math.ceil(len(names) / MOST_TENSORS)
    for name in names[::stride]:
        size = gradients[name].numel()
        chosen += [(name, i) for i in random.sample(range(size), min(2 if len(names) <= MOST_TENSORS else 1, size))]
    yield from dict.fromkeys(chosen)


@torch.no_grad()
def _compare(
    parameter: nn.Parameter, place: int, gradient: float, question: Question, answer: Answer
) -> tuple[float | None, bool]:
    """How far the gradient is from a finite difference, of the larger of both, and whether the loss has a kink there.

    None where the difference drowns in rounding at every step that is short enough to reach no other kink: a loss of
    10^-14 has no slope to measure. At a kink, where a ReLU gets exactly 0, any slope between that to the left and that
    to the right is right.
    """
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), parameter.shape))
    weight, base = float(parameter[at]), answer.loss
    magnitude = max(1.0, base) + float(
        answer.logits.abs().max() * answer.slopes.abs().sum()
    )  # of what is rounded on the way to the loss
    errors: list[float] = []
    blurred = off = outside = False
    for h in STEPS:
        parameter[at] = weight + h
        above, _ = question.ask()
        parameter[at] = weight - h
        below, _ = question.ask()
        parameter[at] = weight
        slope, left, right = (above - below) / (2 * h), (base - below) / h, (above - base) / h
        size, rounding = max(abs(slope), abs(gradient)), 8 * EPSILON * magnitude / h
        if size == 0:
            return 0.0, False  # of a ReLU that is off: nothing moves, as the gradient says
        if abs(slope - gradient) <= rounding and size <= rounding / RELATIVE:
            blurred = True  # equal as far as can be seen, which is not far
            continue
        errors.append(abs(slope - gradient) / size)
        if errors[-1] <= RELATIVE / 10:
            return errors[-1], False
        bent = abs(right - left) > 1e-3 * size + 4 * rounding
        off |= not bent and h <= STEPS[0]  # a longer step may well bend where a shorter one sees nothing
        outside |= not min(left, right) - rounding <= gradient <= max(left, right) + rounding
    if not errors or (blurred and not off):
        return None, False
    return (min(errors), False) if off or outside else (0.0, True)


def by_hand(
    seen: RecordedPass,
    choice: Selection | None,
    neuron: Neuron | None,
    gradients: dict[str, Tensor],
    loss: Loss,
    attention: float | None,
) -> Iterator[Check]:
    """Sums, in plain Python or written out, against what the network computed. `attention`: how far the latter is from
    the former."""
    if choice and neuron:
        added = math.fsum(term.product for term in (*neuron.terms, *neuron.biases))
        yield _exact("weighted sum", "the neuron's products and biases, added up by hand", [added], [neuron.sum])
        layer, unit = choice.layer, choice.unit
        inputs = torch.cat([layer.inputs(unit), layer.bias_inputs(unit)], 1)  # (P, n + biases)
        what = f"dL/dsum × input{f', over {neuron.uses} places,' if neuron.uses > 1 else ''} against autograd"
        yield _exact("chain rule", what, (layer.slopes[unit] @ inputs).tolist(), take_weights(gradients, choice.spans))
    if seen.apart is not None:
        yield Check("gates", "written out, at every step, against torch's own", seen.apart, EXACT)
    if attention is not None:
        yield Check("attention", "softmax(q k / √d) v, against the block's own", attention, EXACT)
    if loss.by_hand is not None:
        yield _exact("loss", "from the probabilities, as shown, against training's", [loss.by_hand], [loss.value])


def plain_python(question: Question, answer: Answer, loss: Component, rate: float) -> Iterator[Check]:
    """An MLP of relu or sigmoid against nnx.backprop: the loss, each gradient, each weight after a step. Nothing for
    other networks."""
    model, gradients = question.model, list(answer.gradients.values())
    layers = model.plain_layers() if isinstance(model, PlainModel) else []
    linears, kinds = (
        [layer for layer in layers[::2] if type(layer) is nn.Linear],
        {type(layer) for layer in layers[1::2]},
    )
    names = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid"}
    size = sum(gradient.numel() for gradient in gradients)
    if (
        2 * len(linears) - 1 != len(layers)
        or len(kinds) > 1
        or kinds - names.keys()
        or not _is_told(loss)
        or size > PLAIN_PYTHON
    ):
        return
    sizes = [linears[0].in_features, *(layer.out_features for layer in linears)]
    network = Network(sizes, activation=names[kinds.pop()] if kinds else "identity")
    network.weights = [layer.weight.tolist() for layer in linears]
    network.biases = [layer.bias.tolist() for layer in linears]
    found = network.gradients([question.x.flatten().tolist()], question.target.tolist(), loss.name)
    network.update(found, rate)
    moved = [
        parameter.detach() - rate * gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    ]
    numbers = [*zip(found.weights, gradients[::2], strict=True), *zip(found.biases, gradients[1::2], strict=True)]
    numbers += [*zip(network.weights, moved[::2], strict=True), *zip(network.biases, moved[1::2], strict=True)]
    apart = [float((torch.tensor(ours, dtype=torch.float64) - other).abs().max()) for ours, other in numbers]
    what = f"nnx.backprop: loss, {size:,} gradients, weights after"
    yield Check("plain Python", what, max(abs(found.loss - answer.loss), *apart), EXACT)


def _is_told(loss: Component) -> bool:
    """Whether nnx.backprop has this loss."""
    plain = isinstance(loss, losses.CrossEntropy) and not loss.label_smoothing and loss.class_weights is None
    return plain or isinstance(loss, losses.MeanSquaredError)


def _exact(name: str, what: str, ours: Sequence[float], theirs: Sequence[float]) -> Check:
    scale = max(1.0, *(abs(number) for number in theirs)) if theirs else 1.0
    apart = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    return Check(name, what, max(apart, default=0.0) / scale, EXACT)
