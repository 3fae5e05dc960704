"""What a checkpoint contains, and the check that a file contains just that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nnx import config as configs
from nnx import losses, models
from nnx.checkpoint.torch_archive import Outline
from nnx.config import Config
from nnx.errors import CheckpointError, ConfigError
from nnx.optimizers import OptimizerConfig, fast_step
from nnx.preprocessing.spec import OPTIONAL, Spec

FORMAT = 3  # 1 had no environment, data and losses; 2 had no fit, look and columns in its spec
COUNTERS = ("epoch", "batch", "step", "samples", "history")  # of a state, as plain values
MAX_RECORDED_LOSSES = 100  # the first steps of a run, whose losses are stored one by one for `nnx verify`
_MAX_INPUT = 2**26  # numbers in one input; finding the divisors of 10^9 takes minutes
_PLAIN = (str, int, float, bool, NoneType)
WRONG_PARTS = "does not have exactly the parts of an nnx checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what it needs in use; with `training`, also what it needs to continue training."""

    config: Config
    spec: Spec
    model: dict[str, Tensor]
    record: dict[str, Any]  # the metrics of the epoch that it is from, as in metrics.jsonl
    # Only a resume needs the next three.
    counters: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None  # what else the bits depend on, at the run's start and at this save
    data: str | None = None  # SHA-256 of the training and validation samples


@contextmanager
def located(path: Path, otherwise: str) -> Iterator[None]:
    """Inside, an untrusted file is read: any exception becomes a CheckpointError that starts with its path. One that is
    not ours, such as a KeyError, a RecursionError or a struct.error, says `otherwise`."""
    try:
        yield
        return
    except CheckpointError as error:
        problem = str(error)
    except ConfigError as error:
        problem = f"its config is not valid: {str(error)[:1000]}"
    except MemoryError:
        problem = "does not fit into this machine's memory"
    except Exception:
        problem = otherwise
    raise CheckpointError(f"{path}: {problem}")


def parse(content: Any, name: str) -> Checkpoint:
    """The checkpoint that `content` outlines, checked in full except for the numbers in its tensors.

    Raises CheckpointError, ConfigError, or what wrong types raise: KeyError, TypeError, ValueError, AttributeError.
    """
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] < 1:
        raise CheckpointError("is not a checkpoint of nnx")
    if content["format"] > FORMAT:
        raise CheckpointError(f"has format {content['format']}, newer than this nnx reads ({FORMAT}); upgrade nnx")
    is_first_format = content["format"] == 1
    spec_keys = {"shape", "classes", "mean", "std"} | ({"fit", "look", "columns"} if content["format"] > 2 else set())
    text_keys = {"config", "spec", "record", "counters"} | (set() if is_first_format else {"environment", "data"})
    _require(content.keys() == {"format", "json", "model", "training"})
    texts = load_json(content["json"])
    _require(texts.keys() == text_keys)
    _require(texts["spec"].keys() - OPTIONAL == spec_keys)
    config, spec, network = describe(texts, name, len(content["model"]))
    if content["model"] != _weights(network):
        raise CheckpointError(_mismatch(config))
    checkpoint = Checkpoint(
        config,
        spec,
        model={},
        record=texts["record"],
        counters=texts["counters"],
        environment=texts.get("environment"),
        data=texts.get("data"),
    )
    _check_facts(checkpoint)
    training = content["training"]
    _require((training is None) == (checkpoint.counters is None))
    if training is not None:
        keys = {"model", "average", "optimizers", "scaler", "loss"} | (set() if is_first_format else {"losses"})
        _require(training.keys() == keys)
        _check_counters(checkpoint.counters)
        _check_training(training, config, network)
    return checkpoint


def describe(texts: dict[str, Any], name: str, max_parameters: int) -> tuple[Config, Spec, nn.Module]:
    """The config and the spec in `texts`, and their network on the meta device, if it has no more than
    `max_parameters` tensors. Raises as `parse` does."""
    config = configs.from_dict(texts["config"], name)
    spec = Spec.from_dict(texts["spec"])
    _require(spec.size <= _MAX_INPUT)
    return config, spec, _build_network(config, spec, max_parameters)


def _require(condition: object) -> None:
    if not condition:
        raise CheckpointError(WRONG_PARTS)


def load_json(text: Any) -> dict[str, Any]:
    """The JSON, unless it is larger than the longest history makes it: 100,000 records of six values have 600,000
    commas; a million different keys would take 250 MB."""
    _require(type(text) is str and text.isascii())
    _require(text.count(",") <= 750_000 and text.count("{") + text.count("[") <= 200_000)
    value: dict[str, Any] = json.loads(text)
    return value


def _build_network(config: Config, spec: Spec, max_parameters: int) -> nn.Module:
    """The network on the meta device, if it has no more than `max_parameters` tensors: building 10,000 layers takes
    20 s. Raises ConfigError."""
    left = iter(range(max_parameters))

    def count(*_: object) -> None:
        if next(left, None) is None:
            raise CheckpointError(_mismatch(config))

    hook = register_module_parameter_registration_hook(count)
    try:
        return models.build_on_meta(config.model, spec, losses.outputs(config.loss, len(spec.classes)))
    finally:
        hook.remove()


def _mismatch(config: Config) -> str:
    return f"its weights do not fit the {config.model.name} that its config describes; it is damaged or was changed"


def _weights(network: nn.Module) -> dict[str, Outline]:
    return {name: Outline(tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}


def _are_numbers(value: Any) -> bool:
    if type(value) is not dict:
        return False
    return all(type(number) in (int, float) and abs(number) < 2**63 for number in value.values())


def _check_facts(checkpoint: Checkpoint) -> None:
    _require(_are_numbers(checkpoint.record) and (checkpoint.data is None or type(checkpoint.data) is str))
    _require(checkpoint.environment is None or checkpoint.environment.keys() == {"began", "saved"})
    for facts in (checkpoint.environment or {}).values():
        _require(all(type(value) in (str, int) for value in facts.values()) and type(facts["train.epochs"]) is int)


def _check_counters(counters: Any) -> None:
    _require(counters.keys() == set(COUNTERS))
    numbers = [counters[name] for name in COUNTERS if name != "history"]
    _require(all(type(number) is int and 0 <= number < 2**53 for number in numbers))
    _require(type(counters["history"]) is list)
    for record in counters["history"]:
        measured = record.keys() & {"val_loss", "val_accuracy"}  # both, or neither: without validation samples
        _require(_are_numbers(record) and "epoch" in record and len(measured) != 1)


def _check_training(training: dict[str, Any], config: Config, network: nn.Module) -> None:
    weights = _weights(network)
    number = Outline(torch.float32, ())
    average = {"n_averaged": Outline(torch.int64, ())} | {f"module.{name}": weight for name, weight in weights.items()}
    _require(training["model"] == weights and training["average"] == (average if config.train.ema else None))
    recorded = training.get("losses", Outline(torch.float32, (0,)))
    _require(training["loss"] == number and recorded.dtype == torch.float32)
    _require(len(recorded.shape) == 1 and recorded.shape[0] <= MAX_RECORDED_LOSSES)
    _require(_are_numbers(training["scaler"]))
    optimizers = cast(OptimizerConfig, config.optimizer).build(network)
    for optimizer, kinds, saved in zip(optimizers, _moments(config), training["optimizers"], strict=True):
        groups = optimizer.param_groups
        shapes = [tuple(parameter.shape) for group in groups for parameter in group["params"]]
        places = [group["params"] for group in optimizer.state_dict()["param_groups"]]
        _require(saved.keys() == {"state", "param_groups"} and saved["state"].keys() <= set(range(len(shapes))))
        _require([group["params"] for group in saved["param_groups"]] == places)
        for setting in (value for group in saved["param_groups"] for value in group.values()):
            values = setting if type(setting) is list else [setting]
            _require(all(value == number or type(value) in _PLAIN for value in values))
        for index, moments in saved["state"].items():
            like = Outline(torch.float32, shapes[index])
            _require(moments == {name: like if has_shape else number for name, has_shape in kinds.items()})


def _moments(config: Config) -> Iterator[dict[str, bool]]:
    """The moments that each of the config's optimizers keeps, and whether they have the weights' shape: found by one
    step with six weights."""
    tiny = nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)])  # a module that draws no random numbers
    for parameter in tiny:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in cast(OptimizerConfig, config.optimizer).build(tiny):
        fast_step(optimizer)()
        parameter, moments = next(iter(optimizer.state.items()), (tiny[0], {}))
        yield {name: moment.shape == parameter.shape for name, moment in moments.items()}
