"""The result of a trace as plain values: what `nnx trace` prints, and the document of its `--json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

MOST = 5_000  # entries of a list in the JSON document; a longer list is cut, with the number of entries left out


@dataclass(frozen=True)
class Sample:
    """The input: `raw` as in the dataset, `normalised` as the network gets it, both flattened from `shape`.

    `target` is the index of its class, `label` the name. `features` are the names of a table's features.
    """

    dataset: str
    split: str
    index: int
    target: int
    label: str
    shape: tuple[int, ...]
    features: tuple[str, ...]
    raw: Sequence[float]
    normalised: Sequence[float]


@dataclass(frozen=True)
class LayerTrace:
    """A layer's outputs for the sample, flattened from `shape`.

    `number` counts, from 1, the layers of which a neuron can be selected; None for other layers.
    """

    number: int | None
    name: str
    kind: str
    shape: tuple[int, ...]
    minimum: float
    mean: float
    maximum: float
    zeros: float  # fraction of outputs that are exactly 0
    values: Sequence[float]


@dataclass(frozen=True)
class Term:
    """One input of a neuron: input * weight = product; the weight's gradient, and the weight after the update."""

    label: str
    input: float
    weight: float
    product: float
    gradient: float
    after_descent: float = 0.0  # weight - learning_rate * gradient
    after_optimizer: float = 0.0  # the weight after a step of the config's optimizer


@dataclass(frozen=True)
class Stage:
    """A layer that a weighted sum passes through, such as "ReLU", and the value after it."""

    name: str
    value: float


@dataclass(frozen=True)
class Gate:
    """A gate of a recurrent unit: what its inputs, the previous state and the biases contribute to its weighted sum,
    and the output of its activation.
    """

    name: str
    from_input: float
    from_state: float
    bias: float
    sum: float
    activation: str
    output: float


@dataclass(frozen=True)
class Attention:
    """The attention weights of one token in one head. They add up to 1."""

    block: str
    head: int
    token: str
    weights: Sequence[float]  # one for each token
    tokens: Sequence[str]


@dataclass(frozen=True)
class Neuron:
    """One neuron at one position: its inputs and weights, their weighted sum, what follows, and the gradients.

    Where `uses` positions share the weights (of feature maps, tokens, time steps), the gradient of a weight is the sum
    over all positions.
    """

    layer: int
    name: str
    kind: str
    unit: int
    place: tuple[int, ...]
    where: str  # the name of the position
    chosen: str  # why this neuron was selected
    terms: Sequence[Term]
    biases: Sequence[Term]
    sum: float
    then: Sequence[Stage]
    slope: float  # dL/dsum at this position
    uses: int
    window: tuple[int, int, int, int] | None = None  # receptive field in the image: top, left, bottom, right
    kernel: tuple[int, int, int] | None = None  # maps, height and width of its filter
    gates: Sequence[Gate] = ()
    state: tuple[float, float] | None = None  # of a recurrent unit, before and after the time step
    cell: tuple[float, float] | None = None  # an LSTM's cell state, before and after the time step

    def with_updates(self, descent: Sequence[float], optimizer: Sequence[float]) -> "Neuron":
        """A copy with the values of all weights, then all biases, after gradient descent and after the optimizer."""
        updated = [
            replace(term, after_descent=after_descent, after_optimizer=after_optimizer)
            for term, after_descent, after_optimizer in zip(
                [*self.terms, *self.biases], descent, optimizer, strict=True
            )
        ]
        return replace(self, terms=updated[: len(self.terms)], biases=updated[len(self.terms) :])


@dataclass(frozen=True)
class Loss:
    """The loss of the prediction. `steps` compute it from the probabilities, with the result `by_hand`."""

    name: str
    value: float
    steps: Sequence[str]
    by_hand: float | None  # None for a loss that is not part of nnx
    slopes: Sequence[float]  # dL/dlogit


@dataclass(frozen=True)
class Gradient:
    """The gradient of the loss in a layer's parameters: its norm, and the norm of the parameters themselves."""

    number: int | None
    name: str
    kind: str
    parameters: int
    norm: float
    weights_norm: float
    largest: float  # the largest |gradient| of a single parameter


@dataclass(frozen=True)
class Outcome:
    """The same sample after a step: its loss, and the probability of the target class.

    `foretold` is the first-order prediction of that loss: loss + the sum of gradient * change over all weights.
    """

    loss: float
    foretold: float
    probability: float


@dataclass(frozen=True)
class Update:
    """A step of plain gradient descent, and one of the config's optimizer, each from the same weights."""

    learning_rate: float
    schedule: str  # the origin of that learning rate
    gradient_norm: float
    clipped: float | None  # factor by which train.clip_grad_norm scales the gradient; None where it does not
    optimizer: str
    says: str  # what the optimizer does, as a sentence without its subject
    is_plain: bool  # the optimizer's step is exactly that of gradient descent
    descent: Outcome
    optimized: Outcome


@dataclass(frozen=True)
class Check:
    """Numbers computed in two ways: their largest difference, and the largest that passes."""

    name: str
    what: str  # the method
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN, too


@dataclass(frozen=True)
class Trace:
    """One training step of one sample, in order of execution."""

    source: str
    epoch: int | None  # of the checkpoint; None for initial weights
    architecture: str
    seed: int
    parameters: int
    notes: Sequence[str]
    sample: Sample
    layers: Sequence[LayerTrace]
    neuron: Neuron | None
    attention: Attention | None
    classes: Sequence[str]
    logits: Sequence[float]
    probabilities: Sequence[float]
    loss: Loss
    gradients: Sequence[Gradient]
    update: Update
    checks: Sequence[Check]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. A list is cut after 5,000 values, with the number of values left out."""
        document: dict[str, Any] = _cut(asdict(self))
        for check, entry in zip(self.checks, document["checks"], strict=True):
            entry["passed"] = check.passed
        return document


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        first = [_cut(item) for item in value[:MOST]]
        return first if len(value) <= MOST else {"values": first, "left_out": len(value) - MOST}
    return value
