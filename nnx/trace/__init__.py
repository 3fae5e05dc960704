"""One training step of one sample in real numbers: weighted sums, activations, loss, gradients, update and new loss.

    result = trace("digits_mlp", index=3)                   # a config, with initial weights
    result = trace("runs/mlp/checkpoint.pt", neuron="1:5")  # or a checkpoint, with trained weights
    result.neuron.sum, result.loss.value, result.update.descent.loss

The computation runs in float64 on the CPU, so that the numbers can be checked at once: gradients against finite
differences, sums by hand, and a plain MLP against nnx.backprop. nnx.terminal.trace prints the result.
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

from nnx import checkpoint as checkpoints
from nnx import config as configs
from nnx import models
from nnx.checkpoint import Checkpoint, build_network
from nnx.config import Config
from nnx.errors import CheckpointError, DivergedError, InputError
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.trace import checks
from nnx.trace.gradients import BackwardPass, LossFunction, log_probabilities
from nnx.trace.input_names import feature_name
from nnx.trace.loss import explain_loss
from nnx.trace.neuron import describe_neuron, find_attention, gather, select_neuron
from nnx.trace.recorded_pass import RecordedPass, collect_layers
from nnx.trace.result import Check, Gradient, LayerTrace, Loss, Sample, Trace
from nnx.trace.step import update_weights
from nnx.training.setup import TrainingSetup, build_criterion, prepare

__all__ = ["Trace", "trace"]

# The numbers are for reading: no speed-ups, no reduced precision, no average of weights
PLAIN_SETTINGS = ("device=cpu", "precision=float32", "compile=false", "train.ema=null")
BINARY = "binary_cross_entropy"  # the loss of a network with one output


def trace(
    source: str | Path,
    *,
    index: int = 0,
    split: str = "train",
    neuron: str | None = None,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
) -> Trace:
    """Run one training step on sample `index` of a split, and return every number of it.

    `source` is a config file, a recipe name, a checkpoint or a run folder. `neuron` selects the one to show in full
    (see `nnx.trace.neuron.select_neuron`). The result contains the checks, passed or not. Writes nothing. Raises
    ConfigError, CheckpointError, DataError, InputError, MachineError, and DivergedError where the loss is not finite.
    """
    config, saved, name = _open(source, overrides)
    setup = prepare(config, data_dir=data_dir)
    if saved:
        _load_weights(setup, saved, name)
    spec = saved.spec if saved else setup.dataset.spec
    samples = setup.dataset.split(split)
    if not 0 <= index < len(samples):
        last = len(samples) - 1
        raise InputError(f"--index {index}: the {split} split has {len(samples):,} samples. Use 0 to {last:,}")
    raw = np.array(samples.inputs[index : index + 1])  # a copy, also of a memory-mapped file
    label = int(samples.labels[index])
    model = _to_float64(setup.state.model)
    x = Normalise(spec, torch.device("cpu"))(torch.from_numpy(raw)).double()
    with _float64_by_default():
        criterion = build_criterion(config.loss, setup.dataset, setup.runtime)
        loss_function = LossFunction(model, x, torch.tensor([label]), criterion)
        backward = loss_function.backpropagate()
        if not math.isfinite(backward.loss):
            raise DivergedError(f"{name}: the loss of this sample is {backward.loss}. Its numbers are out of range")
        recorded = collect_layers(model, spec, x[0], backward.calls)
        weights = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        selection = select_neuron(recorded, neuron)
        description = describe_neuron(recorded, selection, weights, backward.gradients) if selection else None
        attention, attention_error = find_attention(recorded, selection) or (None, None)
        loss = _loss(setup, backward, label)
        results: list[Check] = [
            *checks.check_by_hand(recorded, selection, description, backward.gradients, loss, attention_error),
            checks.check_gradients(loss_function, backward, selection, config.seed),
        ]
        update, after_descent, after_optimizer = update_weights(setup.state, loss_function, backward)
        results += checks.check_against_backprop(loss_function, backward, config.loss, update.learning_rate)
    if description and selection:
        description = description.with_updates(
            gather(after_descent, selection.spans), gather(after_optimizer, selection.spans)
        )
    return Trace(
        source=name,
        epoch=int(saved.record["epoch"]) if saved and "epoch" in saved.record else None,
        architecture=config.model.name,
        seed=config.seed,
        parameters=models.count_parameters(model),
        notes=list(_notes(config, model, saved)),
        sample=_sample(config, spec, split, index, label, raw, x),
        layers=list(_layers(recorded)),
        neuron=description,
        attention=attention,
        classes=spec.classes,
        logits=backward.logits.tolist(),
        probabilities=log_probabilities(backward.logits[None])[0].exp().tolist(),
        loss=loss,
        gradients=list(_gradients(recorded, weights, backward.gradients)),
        update=update,
        checks=results,
    )


# ---------------------------------------------------------------- the network


def _open(source: str | Path, overrides: Sequence[str]) -> tuple[Config, Checkpoint | None, str]:
    """The config of `source`, the checkpoint if `source` is one, and the name of `source` in messages."""
    path = checkpoints.locate(Path(source))
    settings = [*overrides, *PLAIN_SETTINGS]
    if path.suffix != ".pt" and (path.suffix in (".yaml", ".yml") or not os.path.isfile(path)):
        return configs.load(source, settings), None, str(source)
    saved = checkpoints.read(path)
    config = configs.from_dict(saved.config.to_dict(), str(path), settings)
    if config.model != saved.config.model or (config.loss.name == BINARY) != (saved.config.loss.name == BINARY):
        raise InputError(f"{path}: --set can't change the model of a checkpoint or its number of outputs")
    return config, saved, str(path)


def _load_weights(setup: TrainingSetup, saved: Checkpoint, name: str) -> None:
    """Load the checkpoint's weights into the setup's network. Raises CheckpointError where the data does not fit."""
    ours = setup.dataset.spec
    theirs = saved.spec
    if (ours.shape, ours.classes) != (theirs.shape, theirs.classes):
        trained_on, has = (
            f"{'x'.join(map(str, spec.shape))} inputs and {len(spec.classes)} classes" for spec in (theirs, ours)
        )
        has += " with other names" if trained_on == has else ""
        raise CheckpointError(f"{name}: was trained on {trained_on}, but the dataset has {has}")
    setup.state.model.load_state_dict(build_network(saved).state_dict())


def _to_float64(model: nn.Module) -> nn.Module:
    """The same parameter objects, which the optimizers refer to, in float64 and contiguous; in evaluation mode."""
    model.double().eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """Inside, tensors created without a dtype, such as class weights, are float64."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


# ---------------------------------------------------------------- parts of the result


def _sample(config: Config, spec: Spec, split: str, index: int, label: int, raw: NDArray[Any], x: Tensor) -> Sample:
    return Sample(
        dataset=config.dataset.name,
        split=split,
        index=index,
        target=label,
        label=spec.classes[label],
        shape=spec.shape,
        features=() if spec.is_image else tuple(feature_name(spec, i) for i in range(spec.size)),
        raw=raw.flatten().tolist(),
        normalised=x.flatten().tolist(),
    )


def _loss(setup: TrainingSetup, backward: BackwardPass, label: int) -> Loss:
    """The loss, and the steps that compute it from the probabilities."""
    classes = setup.dataset.spec.classes
    counts = np.bincount(setup.dataset.train.labels, minlength=len(classes)).tolist()
    log_p = log_probabilities(backward.logits[None])[0].tolist()
    steps, by_hand = explain_loss(setup.config.loss, log_p, label, classes[label], counts)
    return Loss(setup.config.loss.name, backward.loss, steps, by_hand, backward.logit_gradients.tolist())


def _notes(config: Config, model: nn.Module, saved: Checkpoint | None) -> Iterator[str]:
    """The differences from a step of training."""
    yield "computed in float64 on the CPU for one sample; a training step uses the mean over a batch"
    off = ["dropout"] if any(isinstance(module, nn.Dropout) and module.p for module in model.modules()) else []
    off += ["augmentation"] if config.train.augment.is_on else []
    off += ["mixup"] if config.train.mixup else []
    if len(off) > 1:
        yield f"{', '.join(off[:-1])} and {off[-1]} are off"
    elif off:
        yield f"{off[0]} is off"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        initial = "" if saved else " (0 and 1 before training)"
        yield f"batch norm uses its running mean and variance{initial}, because one sample has no batch statistics"
    if saved:
        yield "the optimizer and the schedule start from step 0, because trace reads only the network of a checkpoint"


def _layers(recorded: RecordedPass) -> Iterator[LayerTrace]:
    """A row for each layer call; for recurrent modules, a row for each layer and direction."""
    numbers = {name: number for number, name in enumerate(recorded.layers, 1)}
    for call in recorded.calls:
        unrolled = [name for name, layer in recorded.recurrent.items() if layer.weighted.call is call]
        outputs = [(name, recorded.recurrent[name].states) for name in unrolled] or [(call.name, call.output)]
        for name, output in outputs:
            yield LayerTrace(
                number=numbers.get(name),
                name=name,
                kind=type(call.module).__name__,
                shape=tuple(output.shape),
                minimum=float(output.min()),
                mean=float(output.mean()),
                maximum=float(output.max()),
                zeros=float((output == 0).double().mean()),
                values=output.detach().flatten().tolist(),
            )


def _gradients(recorded: RecordedPass, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> Iterator[Gradient]:
    """The gradient of each layer with parameters, in the order of the network."""
    owners = {parameter: layer.name for layer in recorded.layers.values() for parameter in layer.parameters}
    members: dict[str, list[str]] = {}  # layer -> its parameters
    for parameter in gradients:
        members.setdefault(owners.get(parameter, parameter.rpartition(".")[0] or parameter), []).append(parameter)
    numbers = {name: number for number, name in enumerate(recorded.layers, 1)}
    modules: dict[str, Any] = dict(recorded.model.named_modules())
    for name, parameters in members.items():
        gradient = torch.cat([gradients[parameter].flatten() for parameter in parameters])
        weight = torch.cat([weights[parameter].flatten() for parameter in parameters])
        weighted = recorded.layers.get(name)
        yield Gradient(
            number=numbers.get(name),
            name=name,
            kind=weighted.kind if weighted else type(modules.get(name, nn.Parameter())).__name__,
            parameters=len(weight),
            norm=float(gradient.norm()),
            weights_norm=float(weight.norm()),
            largest=float(gradient.abs().max()),
        )
