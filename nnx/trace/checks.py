"""Checks: the same numbers computed in two ways.

Gradients are compared with finite differences and nnx.backprop; sums, gates, attention and the loss with their
written-out formulas.
"""

import math
from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor, nn

from nnx import losses
from nnx.backprop import Network
from nnx.config.registry import Component
from nnx.models import PlainModel
from nnx.trace.gradients import BackwardPass, LossFunction
from nnx.trace.neuron import Selection, gather
from nnx.trace.recorded_pass import RecordedPass
from nnx.trace.result import Check, Loss, Neuron

# Steps h of a finite difference. The first usually suffices; the others help where rounding or a kink disturbs it
STEPS = (1e-5, 1e-6, 1e-4, 1e-3, 1e-7)
RELATIVE = 1e-5  # tolerance of a finite difference, relative to the larger of it and the gradient
EXACT = 1e-9  # tolerance of a sum in another order, relative to its largest number or 1
MOST_TENSORS = 60  # tensors that are sampled, evenly spread, where a network has more
PLAIN_PYTHON = 1_000_000  # weights, beyond which nnx.backprop takes too long
EPSILON = 2.0**-52
BACKPROP_ACTIVATIONS = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid"}


def check_gradients(
    loss_function: LossFunction, backward: BackwardPass, selection: Selection | None, seed: int
) -> Check:
    """Compare gradients with finite differences, for weights of the selected neuron and random ones of each layer."""
    parameters = dict(loss_function.model.named_parameters())
    gradients = backward.gradients
    results = [
        _compare_to_finite_difference(parameters[name], i, float(gradients[name].flatten()[i]), loss_function, backward)
        for name, i in _sample_weights(gradients, selection, Random(seed))
    ]
    errors = [error for error, _ in results if error is not None]
    too_small = len(results) - len(errors)
    kinks = sum(is_kink for _, is_kink in results)
    method = f"against (L(w + h) - L(w - h)) / 2h, {len(results)} weights"
    method += f", {too_small} too small to measure" if too_small else ""
    method += f", {kinks} at a kink" if kinks else ""
    return Check("gradient", method, max(errors, default=0.0), RELATIVE)


def _sample_weights(
    gradients: dict[str, Tensor], selection: Selection | None, random: Random
) -> Iterator[tuple[str, int]]:
    """The neuron's five weights with the largest |gradient|, five others and its biases; and two weights per tensor."""
    sampled: list[tuple[str, int]] = []
    if selection:
        layer = selection.layer
        weights = [
            (span.parameter, span.start + i) for span in layer.weights(selection.unit) for i in range(span.count)
        ]
        by_size = sorted(weights, key=lambda weight: -abs(float(gradients[weight[0]].flatten()[weight[1]])))
        sampled = by_size[:5] + random.sample(by_size[5:], min(5, len(by_size[5:])))
        sampled += [(span.parameter, span.start) for span in layer.biases(selection.unit)]
    names = list(gradients)
    per_tensor = 2 if len(names) <= MOST_TENSORS else 1
    for name in names[:: math.ceil(len(names) / MOST_TENSORS)]:
        size = gradients[name].numel()
        sampled += [(name, i) for i in random.sample(range(size), min(per_tensor, size))]
    yield from dict.fromkeys(sampled)


@torch.no_grad()
def _compare_to_finite_difference(
    parameter: nn.Parameter, index: int, gradient: float, loss_function: LossFunction, backward: BackwardPass
) -> tuple[float | None, bool]:
    """The relative error of a gradient against finite differences, and whether the loss has a kink at this weight.

    The error is None where rounding hides the difference at every step that is short enough to reach no other kink: a
    loss of 10^-14 has no measurable slope. At a kink, where a ReLU's input is exactly 0, any gradient between the left
    and the right slope is correct.
    """
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), parameter.shape))
    weight = float(parameter[at])
    base = backward.loss
    # Magnitude of the numbers that are rounded on the way to the loss
    magnitude = max(1.0, base) + float(backward.logits.abs().max() * backward.logit_gradients.abs().sum())
    errors: list[float] = []
    hidden_by_rounding = is_wrong = is_outside = False
    for h in STEPS:
        parameter[at] = weight + h
        above, _ = loss_function.evaluate()
        parameter[at] = weight - h
        below, _ = loss_function.evaluate()
        parameter[at] = weight
        slope = (above - below) / (2 * h)
        left = (base - below) / h
        right = (above - base) / h
        size = max(abs(slope), abs(gradient))
        rounding = 8 * EPSILON * magnitude / h
        if size == 0:
            return 0.0, False  # an inactive ReLU: the loss does not change, and the gradient is 0
        if abs(slope - gradient) <= rounding and size <= rounding / RELATIVE:
            hidden_by_rounding = True  # equal within rounding, which is too coarse here to tell
            continue
        errors.append(abs(slope - gradient) / size)
        if errors[-1] <= RELATIVE / 10:
            return errors[-1], False
        has_kink = abs(right - left) > 1e-3 * size + 4 * rounding
        is_wrong |= not has_kink and h <= STEPS[0]  # a longer step may cross a kink that a shorter one does not reach
        is_outside |= not min(left, right) - rounding <= gradient <= max(left, right) + rounding
    if not errors or (hidden_by_rounding and not is_wrong):
        return None, False
    return (min(errors), False) if is_wrong or is_outside else (0.0, True)


def check_by_hand(
    recorded: RecordedPass,
    selection: Selection | None,
    neuron: Neuron | None,
    gradients: dict[str, Tensor],
    loss: Loss,
    attention_error: float | None,
) -> Iterator[Check]:
    """Compare sums and formulas, written out, with what the network computed.

    `attention_error`: the largest difference of the attention formula from the block's output.
    """
    if selection and neuron:
        total = math.fsum(term.product for term in (*neuron.terms, *neuron.biases))
        yield _exact("weighted sum", "products and biases, summed in plain Python", [total], [neuron.sum])
        layer = selection.layer
        unit = selection.unit
        inputs = torch.cat([layer.inputs(unit), layer.bias_inputs(unit)], 1)  # (P, n + biases)
        positions = f", summed over {neuron.uses} positions," if neuron.uses > 1 else ""
        ours = (layer.gradients[unit] @ inputs).tolist()
        method = f"dL/dsum × input{positions} against autograd"
        yield _exact("chain rule", method, ours, gather(gradients, selection.spans))
    if recorded.gate_error is not None:
        yield Check("gates", "the formulas, step by step, against PyTorch's layer", recorded.gate_error, EXACT)
    if attention_error is not None:
        yield Check("attention", "softmax(q k^T / √d) v against the block's own result", attention_error, EXACT)
    if loss.by_hand is not None:
        yield _exact("loss", "the steps above against the training loss", [loss.by_hand], [loss.value])


def check_against_backprop(
    loss_function: LossFunction, backward: BackwardPass, loss: Component, learning_rate: float
) -> Iterator[Check]:
    """Compare loss, gradients and updated weights of an MLP with nnx.backprop. Yields nothing for other networks."""
    model = loss_function.model
    gradients = list(backward.gradients.values())
    layers = model.plain_layers() if isinstance(model, PlainModel) else []
    linears = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    activations = {type(layer) for layer in layers[1::2]}
    size = sum(gradient.numel() for gradient in gradients)
    if (
        2 * len(linears) - 1 != len(layers)
        or len(activations) > 1
        or activations - BACKPROP_ACTIVATIONS.keys()
        or not _is_in_backprop(loss)
        or size > PLAIN_PYTHON
    ):
        return
    sizes = [linears[0].in_features, *(layer.out_features for layer in linears)]
    network = Network(sizes, activation=BACKPROP_ACTIVATIONS[activations.pop()] if activations else "identity")
    network.weights = [layer.weight.tolist() for layer in linears]
    network.biases = [layer.bias.tolist() for layer in linears]
    ours = network.gradients([loss_function.x.flatten().tolist()], loss_function.target.tolist(), loss.name)
    network.update(ours, learning_rate)
    updated = [
        parameter.detach() - learning_rate * gradient
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    ]
    pairs = [*zip(ours.weights, gradients[::2], strict=True), *zip(ours.biases, gradients[1::2], strict=True)]
    pairs += [*zip(network.weights, updated[::2], strict=True), *zip(network.biases, updated[1::2], strict=True)]
    errors = [float((torch.tensor(one, dtype=torch.float64) - other).abs().max()) for one, other in pairs]
    method = f"nnx.backprop: loss, {size:,} gradients, updated weights"
    yield Check("plain Python", method, max(abs(ours.loss - backward.loss), *errors), EXACT)


def _is_in_backprop(loss: Component) -> bool:
    """Whether nnx.backprop has this loss."""
    is_plain = isinstance(loss, losses.CrossEntropy) and not loss.label_smoothing and loss.class_weights is None
    return is_plain or isinstance(loss, losses.MeanSquaredError)


def _exact(name: str, method: str, ours: Sequence[float], theirs: Sequence[float]) -> Check:
    scale = max(1.0, *(abs(number) for number in theirs)) if theirs else 1.0
    errors = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    return Check(name, method, max(errors, default=0.0) / scale, EXACT)
