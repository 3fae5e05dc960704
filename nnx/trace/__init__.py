"""One training step of one sample in real numbers: weighted sums, activations, loss, gradients, update, and the loss
after it.

    found = trace("digits_mlp", index=3)                   # a config, with freshly drawn weights
    found = trace("runs/mlp/checkpoint.pt", neuron="1:5")  # or a checkpoint, with trained ones
    found.neuron.sum, found.loss.value, found.update.descent.loss

In float64 on the CPU, so that each number can be checked on the spot: gradients against finite differences, sums by
hand, and a plain MLP against nnx.backprop. How it is drawn: see nnx.terminal.trace.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import checkpoint, models
from nnx import config as configs
from nnx.checkpoint import Checkpoint, build_network
from nnx.config import Config
from nnx.errors import CheckpointError, DivergedError, InputError
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.trace import checks
from nnx.trace.gradients import Answer, Question, log_probabilities
from nnx.trace.input_names import feature
from nnx.trace.loss import derive
from nnx.trace.neuron import attention, describe_neuron, select_neuron, take_weights
from nnx.trace.recorded_pass import RecordedPass, collect_layers
from nnx.trace.result import Gradient, LayerTrace, Loss, Sample, Trace
from nnx.trace.step import update
from nnx.training.setup import TrainingSetup, build_criterion, prepare

__all__ = ["Trace", "trace"]

# One sample has no batch to take turns in, and its numbers are for the eye: no speed, no reduced precision
PLAIN = ("device=cpu", "precision=float32", "compile=false", "train.ema=null")


def trace(
    source: str | Path,
    *,
    index: int = 0,
    split: str = "train",
    neuron: str | None = None,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
) -> Trace:
    """One step of sample `index` of a split, by the network of a config or recipe, or of a checkpoint or a run's
    folder.

    `neuron` names the one to tell in full (see `nnx.trace.neuron.select_neuron`). Whether a check held is in the result.
    Nothing is written. Raises ConfigError, CheckpointError, DataError, InputError, MachineError, and DivergedError
    where numbers are not finite.
    """
    config, kept, name = _open(source, overrides)
    setup = prepare(config, data_dir=data_dir)
    if kept:
        _take_over(setup, kept, name)
    spec = kept.spec if kept else setup.dataset.spec
    samples = setup.dataset.split(split)
    if not 0 <= index < len(samples):
        raise InputError(f"--index {index}: there are {len(samples):,} samples in {split}, 0 to {len(samples) - 1:,}")
    raw, label = np.array(samples.inputs[index : index + 1]), int(samples.labels[index])  # a copy, also out of a file
    model = _in_float64(setup.state.model)
    x = Normalise(spec, torch.device("cpu"))(torch.from_numpy(raw)).double()
    with _double():
        question = Question(model, x, torch.tensor([label]), build_criterion(config, setup.dataset, setup.runtime))
        answer = question.learn()
        if not math.isfinite(answer.loss):
            raise DivergedError(
                f"{name}: the loss of this sample is {answer.loss}; its numbers are beyond what can be computed with"
            )
        seen, weights = (
            collect_layers(model, spec, x[0], answer.calls),
            {key: p.detach().clone() for key, p in model.named_parameters()},
        )
        choice = select_neuron(seen, neuron)
        told = describe_neuron(seen, choice, weights, answer.gradients) if choice else None
        looked = attention(seen, choice)
        loss = _loss(setup, answer, label)
        found = list(checks.by_hand(seen, choice, told, answer.gradients, loss, looked[1] if looked else None))
        found.append(checks.finite_differences(question, answer, choice, config.seed))
        moved, descended, optimized = update(setup.state, question, answer)
        found += checks.plain_python(question, answer, config.loss, moved.learning_rate)
    if told and choice:
        told = told.having(take_weights(descended, choice.spans), take_weights(optimized, choice.spans))
    return Trace(
        source=name,
        epoch=int(kept.record["epoch"]) if kept and "epoch" in kept.record else None,
        architecture=config.model.name,
        seed=config.seed,
        parameters=models.count_parameters(model),
        notes=list(_notes(config, model, kept)),
        sample=_sample(config, spec, split, index, label, raw, x),
        layers=list(_layers(seen)),
        neuron=told,
        attention=looked[0] if looked else None,
        classes=spec.classes,
        logits=answer.logits.tolist(),
        probabilities=log_probabilities(answer.logits[None])[0].exp().tolist(),
        loss=loss,
        gradients=list(_gradients(seen, weights, answer.gradients)),
        update=moved,
        checks=found,
    )


def _open(source: str | Path, overrides: Sequence[str]) -> tuple[Config, Checkpoint | None, str]:
    """The config that `source` is or holds, its checkpoint where it is one, and what to call it."""
    path = checkpoint.locate(Path(source))
    settings = [*overrides, *PLAIN]
    if path.suffix != ".pt" and (path.suffix in (".yaml", ".yml") or not os.path.isfile(path)):
        return configs.load(source, settings), None, str(source)
    kept = checkpoint.read(path)
    config = configs.from_dict(kept.config.to_dict(), str(path), settings)
    if config.model != kept.config.model or (config.loss.name == BINARY) != (kept.config.loss.name == BINARY):
        raise InputError(
            f"{path}: its network is as it was trained; of a checkpoint, --set can't change model, nor how many outputs it has"
        )
    return config, kept, str(path)


BINARY = "binary_cross_entropy"


def _take_over(setup: TrainingSetup, kept: Checkpoint, name: str) -> None:
    """Put the checkpoint's weights into the setup's network. Raises CheckpointError where the data is of another kind."""
    ours, theirs = setup.dataset.spec, kept.spec
    if (ours.shape, ours.classes) != (theirs.shape, theirs.classes):
        was, has = (
            f"{'x'.join(map(str, spec.shape))} inputs and {len(spec.classes)} classes" for spec in (theirs, ours)
        )
        raise CheckpointError(f"{name}: was trained on {was}, the dataset has {has}, or others of that number")
    setup.state.model.load_state_dict(build_network(kept).state_dict())


def _in_float64(model: nn.Module) -> nn.Module:
    """The very parameters, which the optimizers hold, in float64 and in torch's usual layout; dropout off, running
    statistics on."""
    model.double().eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


@contextmanager
def _double() -> Iterator[None]:
    """Inside, what is made without a dtype, such as the weights of classes, is float64, too."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _sample(config: Config, spec: Spec, split: str, index: int, label: int, raw: NDArray[Any], x: Tensor) -> Sample:
    names = () if spec.is_image else tuple(feature(spec, i) for i in range(spec.size))
    shown = raw.flatten().tolist(), x.flatten().tolist()
    return Sample(config.dataset.name, split, index, label, spec.classes[label], spec.shape, names, *shown)


def _loss(setup: TrainingSetup, answer: Answer, label: int) -> Loss:
    """The loss, and how it comes about."""
    classes = setup.dataset.spec.classes
    counts = np.bincount(setup.dataset.train.labels, minlength=len(classes)).tolist()
    log_p = log_probabilities(answer.logits[None])[0].tolist()
    steps, by_hand = derive(setup.config.loss, log_p, label, classes[label], counts)
    return Loss(setup.config.loss.name, answer.loss, steps, by_hand, answer.slopes.tolist())


def _notes(config: Config, model: nn.Module, kept: Checkpoint | None) -> Iterator[str]:
    """What differs here from a step of training."""
    yield "float64 on the CPU, one sample; a step of training takes the mean over a batch"
    off = ["dropout"] if any(isinstance(module, nn.Dropout) and module.p for module in model.modules()) else []
    off += ["augmentation"] if config.train.augment.is_on else []
    off += ["mixup"] if config.train.mixup else []
    if off:
        yield f"{' and '.join([', '.join(off[:-1]), off[-1]] if off[:-1] else off)} {'are' if off[1:] else 'is'} off"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        fresh = "" if kept else ": 0 and 1 before any training"
        yield f"batch normalisation uses its running mean and variance{fresh}, as one sample has none of its own"
    if kept:
        yield "the optimizer and the schedule begin afresh, as a checkpoint keeps the network alone"


def _layers(seen: RecordedPass) -> Iterator[LayerTrace]:
    """A row for each layer's turn; recurrent layers one for each layer and direction."""
    numbers = {name: number for number, name in enumerate(seen.layers, 1)}
    for call in seen.calls:
        inside = [name for name, cells in seen.recurrent.items() if cells.weighted.call is call]
        for name, output in [(name, seen.recurrent[name].states) for name in inside] or [(call.name, call.output)]:
            low, mean, high = float(output.min()), float(output.mean()), float(output.max())
            zeros = float((output == 0).double().mean())
            kind, shape = type(call.module).__name__, tuple(output.shape)
            yield LayerTrace(
                numbers.get(name), name, kind, shape, low, mean, high, zeros, output.detach().flatten().tolist()
            )


def _gradients(seen: RecordedPass, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> Iterator[Gradient]:
    """The gradient of each layer that has weights, in the order of the network."""
    owners = {parameter: layer.name for layer in seen.layers.values() for parameter in layer.parameters}
    groups: dict[str, list[str]] = {}
    for name in gradients:
        groups.setdefault(owners.get(name, name.rpartition(".")[0] or name), []).append(name)
    numbers = {name: number for number, name in enumerate(seen.layers, 1)}
    modules: dict[str, Any] = dict(seen.model.named_modules())
    for name, members in groups.items():
        gradient, weight = (
            torch.cat([tensors[member].flatten() for member in members]) for tensors in (gradients, weights)
        )
        kind = seen.layers[name].kind if name in seen.layers else type(modules.get(name, nn.Parameter())).__name__
        yield Gradient(
            numbers.get(name),
            name,
            kind,
            len(weight),
            float(gradient.norm()),
            float(weight.norm()),
            float(gradient.abs().max()),
        )
