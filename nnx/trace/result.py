"""What a trace has found, as plain values: the story that `nnx trace` prints, and the document of its `--json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

MOST = 5_000  # numbers of a list that a JSON document holds; of a longer one the first, and how many more there are


@dataclass(frozen=True)
class Sample:
    """What goes in: `raw` as the dataset has it, `normalised` as the network sees it, both flat, of this `shape`.

    `target` is the number of its class, `label` the name; `features` are the names of a table's.
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
    """A layer's outputs for the sample, flat, of this `shape`. `number` counts, from 1, the layers that a neuron can be
    chosen from."""

    number: int | None
    name: str
    kind: str
    shape: tuple[int, ...]
    minimum: float
    mean: float
    maximum: float
    zeros: float  # share of outputs that are exactly zero
    values: Sequence[float]


@dataclass(frozen=True)
class Term:
    """One input of a neuron: input * weight = product; what the loss says of the weight, and where a step moves it."""

    label: str
    input: float
    weight: float
    product: float
    gradient: float
    after_descent: float = 0.0  # weight - learning_rate * gradient
    after_optimizer: float = 0.0  # where the config's optimizer moves it


@dataclass(frozen=True)
class Stage:
    """What becomes of a weighted sum on its way: "ReLU" and the value behind it."""

    name: str
    value: float


@dataclass(frozen=True)
class Gate:
    """One of the weighted sums of a recurrent unit: what the row, the past and the biases bring, and the sum behind its
    activation."""

    name: str
    from_input: float
    from_state: float
    bias: float
    sum: float
    activation: str
    output: float


@dataclass(frozen=True)
class Attention:
    """Where one token looks: the weights of a head, which add up to 1."""

    block: str
    head: int
    token: str
    weights: Sequence[float]  # one a token
    tokens: Sequence[str]


@dataclass(frozen=True)
class Neuron:
    """One neuron in full: sum of its products plus biases, what follows, and what the loss says of that sum.

    Where the same weights are used at several places (a filter, a token's layer, a time step), this is one of `uses` of
    them, and the gradient of a weight is the sum of what each place says.
    """

    layer: int
    name: str
    kind: str
    unit: int
    place: tuple[int, ...]
    where: str  # the place in words
    chosen: str  # why this neuron
    terms: Sequence[Term]
    biases: Sequence[Term]
    sum: float
    then: Sequence[Stage]
    slope: float  # dL/dsum at this place
    uses: int
    window: tuple[int, int, int, int] | None = None  # the part of the image that it sees: top, left, bottom, right
    kernel: tuple[int, int, int] | None = None  # maps, height and width of its filter
    gates: Sequence[Gate] = ()
    state: tuple[float, float] | None = None  # of a recurrent unit, before and after
    cell: tuple[float, float] | None = None  # an LSTM's c, before and after

    def having(self, descent: Sequence[float], optimizer: Sequence[float]) -> "Neuron":
        """The same, each weight and bias, in this order, with where both steps move it."""
        moved = [
            replace(t, after_descent=d, after_optimizer=o)
            for t, d, o in zip(self._all, descent, optimizer, strict=True)
        ]
        return replace(self, terms=moved[: len(self.terms)], biases=moved[len(self.terms) :])

    @property
    def _all(self) -> list[Term]:
        return [*self.terms, *self.biases]


@dataclass(frozen=True)
class Loss:
    """How wrong the answer is. `steps` derive the value from the probabilities; `by_hand` is what they come to."""

    name: str
    value: float
    steps: Sequence[str]
    by_hand: float | None  # None for a loss that is not known here
    slopes: Sequence[float]  # dL/dlogit


@dataclass(frozen=True)
class Gradient:
    """How the loss moves with a layer's weights: the norm of the gradient, and the norm of the weights themselves."""

    number: int | None
    name: str
    kind: str
    parameters: int
    norm: float
    weights_norm: float
    largest: float  # the largest |gradient| of one weight


@dataclass(frozen=True)
class Outcome:
    """The sample once more, after a step: the loss, what the slope foretold of it, and the probability of the right
    class."""

    loss: float
    foretold: float
    probability: float


@dataclass(frozen=True)
class Update:
    """A step of plain gradient descent, and one of the config's optimizer, each from the same weights."""

    learning_rate: float
    schedule: str  # where that rate comes from
    gradient_norm: float
    clipped: float | None  # what the gradient is multiplied by, as train.clip_grad_norm asks
    optimizer: str
    says: str  # what the optimizer does, in a sentence
    is_plain: bool  # the optimizer's step is that of plain gradient descent, to the bit
    descent: Outcome
    optimized: Outcome


@dataclass(frozen=True)
class Check:
    """Something computed twice, in two ways: how far they are apart, and how far they may be."""

    name: str
    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN, too


@dataclass(frozen=True)
class Trace:
    """One training step of one sample, in the order of happening."""

    source: str
    epoch: int | None  # that the checkpoint is from; None for freshly drawn weights
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
        """Plain values for JSON; of a list of more than 5,000 values the first, and how many were left out."""
        told: dict[str, Any] = _cut(asdict(self))
        for check, each in zip(self.checks, told["checks"], strict=True):
            each["passed"] = check.passed
        return told


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        kept = [_cut(item) for item in value[:MOST]]
        return kept if len(value) <= MOST else {"values": kept, "left_out": len(value) - MOST}
    return value
