"""The config: one YAML file says what to train. Strict, bounded, and every mistake reported at once with its place.

    config = load("configs/mnist_mlp.yaml", ["train.epochs=3", "model.hidden=[64]"])

Order of precedence: defaults < file < `--set` and flags, later ones first.
"""

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PlainValidator, PrivateAttr, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from nnx.config import registry, yaml_source
from nnx.config.registry import Component, StrictModel
from nnx.config.yaml_source import SourceMap
from nnx.errors import ConfigError, Problem

# ---------------------------------------------------------------- field types that several parts share


def _count_or_fraction(value: Any) -> int | float:
    if (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1):
        number: int | float = value
        return number
    raise PydanticCustomError("nnx", "expected a count (5000) or a fraction between 0 and 1 (0.1)")


CountOrFraction = Annotated[int | float, PlainValidator(_count_or_fraction, json_schema_input_type=int | float)]
"""A number of samples (1 or more) or a fraction of them (between 0 and 1, both excluded)."""


def _device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
        return value
    raise PydanticCustomError("nnx", "expected auto, cpu, cuda, cuda:N or mps")


Device = Annotated[str, PlainValidator(_device, json_schema_input_type=str)]


def _auto_or(expected: str, kinds: tuple[type, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value == "auto" or (type(value) in kinds and 0 <= value <= 4096 and (value or type(value) is bool)):
            return value
        raise PydanticCustomError("nnx", "expected auto, {expected}", {"expected": expected})

    return check


def _save_every(value: Any) -> int | str:
    count = re.fullmatch(r"([1-9][0-9]{0,8}) steps?", value) if isinstance(value, str) else None
    if value == "epoch" or count or (type(value) is int and 1 <= value < 10**9):
        every: int | str = int(count[1]) if count else value
        return every
    raise PydanticCustomError("nnx", "expected epoch, or a number of steps (500)")


SaveEvery = Annotated[
    Literal["epoch"] | int, PlainValidator(_save_every, json_schema_input_type=Literal["epoch"] | int)
]
Compile = Annotated[
    Literal["auto"] | bool,
    PlainValidator(_auto_or("true or false", (bool,)), json_schema_input_type=Literal["auto"] | bool),
]
Threads = Annotated[
    Literal["auto"] | int,
    PlainValidator(_auto_or("or a number from 1 to 4096", (int,)), json_schema_input_type=Literal["auto"] | int),
]

# ---------------------------------------------------------------- the shape of a config


class Augment(StrictModel):
    """Random changes to training images, drawn anew for every image of every batch. Zero or false: off."""

    shift: float = Field(0, ge=0, le=64, description="move by up to this many pixels, in each direction")
    rotate: float = Field(0, ge=0, le=180, description="turn by up to this many degrees")
    scale: float = Field(0, ge=0, lt=1, description="grow or shrink by up to this fraction")
    shear: float = Field(0, ge=0, le=60, description="slant by up to this many degrees")
    elastic: float = Field(0, ge=0, le=64, description="bend by up to about this many pixels (Simard et al. 2003)")
    erase: float = Field(0, ge=0, le=1, description="probability of blanking a random rectangle (Zhong et al. 2017)")
    flip: bool = Field(False, description="mirror left to right half of the time; wrong for digits and letters")

    @property
    def is_on(self) -> bool:
        return any(value for _, value in self)


class Train(StrictModel):
    """How long and in what steps to train."""

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training data")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="samples a forward and backward pass")
    accumulate: int = Field(
        1, ge=1, le=10_000, description="batches whose gradients make one step: their mean, as one large batch would"
    )
    clip_grad_norm: float | None = Field(
        None, gt=0, description="scale the gradient down to this norm where it is larger (Pascanu et al. 2013)"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="evaluate and keep the moving average of the weights with this decay, e.g. 0.999"
    )
    patience: int | None = Field(
        None, ge=1, description="stop early after this many epochs without a better validation accuracy"
    )
    save_every: SaveEvery = Field(
        "epoch", description="save the state at each epoch's end, and besides after every so many steps: 500"
    )
    mixup: float = Field(
        0,
        ge=0,
        le=100,
        description="blend pairs of samples, weight ~ Beta(mixup, mixup) (Zhang et al. 2018); zero: off",
    )
    augment: Augment = Field(default_factory=Augment, description="random changes to training images")
    report: bool = Field(
        True, description="write report.html at the end: curves, figures, confusions and mistakes in pictures, layers"
    )
    film: bool = Field(
        False, description="keep how filters, activations and classes form from step to step, for the report to play"
    )


class Config(StrictModel):
    """The whole file. `dataset`, `model`, `loss`, `optimizer` and `schedule` are looked up by name (see `parts`)."""

    seed: int = Field(
        0, ge=0, lt=2**32, description="decides every random choice: initial weights, order, dropout, augmentation"
    )
    dataset: SerializeAsAny[Component] = Field(description="what to learn from")
    model: SerializeAsAny[Component] = Field(description="the architecture")
    loss: SerializeAsAny[Component] = Field(description="what to minimise")
    optimizer: SerializeAsAny[Component] = Field(description="how to descend")
    schedule: SerializeAsAny[Component] = Field(description="how the learning rate moves")
    train: Train = Field(default_factory=Train, description="how long and in what steps")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the arithmetic; weights stay float32"
    )
    compile: Compile = Field(
        "auto", description="make a step faster: what pays off (auto), torch.compile (true), or plain PyTorch (false)"
    )
    deterministic: bool = Field(
        False, description="equal bits on CUDA too, which costs time; on a CPU they are equal anyway"
    )
    threads: Threads = Field("auto", description="of the CPU; equal numbers give equal bits")

    _source: SourceMap = PrivateAttr(default_factory=SourceMap)

    @property
    def recipe(self) -> str:
        """The name for run folders: the file's, without its ending."""
        return Path(self._source.name).stem or "run"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out; `from_dict` gives an equal Config back."""
        return self.model_dump(mode="json")

    def to_yaml(self, width: int = 120) -> str:
        """The resolved config, re-runnable as a file, in lines of about `width` characters."""
        return yaml_source.dump(self.to_dict(), width)

    @contextmanager
    def locate(self) -> Iterator[None]:
        """Give the ConfigErrors raised inside, which know only their key, the place in the file."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(
                [p if p.place else self._source.problem(tuple(p.key.split(".")), p.message) for p in error.problems]
            ) from None


DEFAULTS = {"loss": "cross_entropy", "optimizer": "adam", "schedule": "constant"}

# ---------------------------------------------------------------- reading


def recipes() -> dict[str, Path]:
    """The shipped recipes by name. They lie inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load(config: str | Path, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """A config file, or the name of a shipped recipe, with `a.b=value` overrides and flags ({"device": "cpu"}) laid
    over it.

    Raises ConfigError for all mistakes of the file at once.
    """
    path = Path(config)
    if not os.path.isfile(path):
        known = recipes()
        if os.path.exists(path):
            raise ConfigError(Problem("", "is not a file; name a config file or a recipe", str(config)))
        if str(config) not in known:
            name = yaml_source.truncate(str(config))
            raise ConfigError(Problem("", f"no such config file or recipe{registry.suggest(name, known)}", name))
        path = known[str(config)]
    try:
        with open(path, "rb") as file:  # not by the size that the system tells, which is 0 for all of /proc
            raw = file.read(yaml_source.MAX_BYTES + 1)
        if len(raw) > yaml_source.MAX_BYTES:
            raise ConfigError(
                Problem("", f"larger than {yaml_source.MAX_BYTES // 1024} kB, which no config needs", str(path))
            )
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(Problem("", "not UTF-8 text; is it a config?", str(path))) from None
    except OSError as error:
        raise ConfigError(Problem("", f"can't be read ({error.strerror})", str(path))) from None
    return parse(text, str(path), overrides, flags)


def parse(text: str, name: str, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """`load` for YAML text that is already here; `name` stands for the file in messages."""
    data, where = yaml_source.parse(text, name)
    return _build(data, where, overrides, flags)


def from_dict(data: Any, name: str, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """`load` for plain values, e.g. those in a checkpoint; `name` stands for the file in messages."""
    return _build(data, SourceMap(name), overrides, flags)


def _build(data: Any, where: SourceMap, overrides: Sequence[str], flags: Mapping[str, str] | None) -> Config:
    if not isinstance(data, dict):
        what = "empty" if data is None else "not a mapping of keys to values"
        raise ConfigError(
            Problem("", f"{what}; a config needs at least `dataset: digits` and `model: mlp`", where.name)
        )
    data = {key: _expand(key, value) for key, value in copy.deepcopy(data).items()}
    for text in overrides:
        _override(data, where, text, yaml_source.truncate(f"--set {text[: yaml_source.MAX_BYTES]}"))
    for key, value in (flags or {}).items():
        _override(data, where, f"{key}={value}", yaml_source.truncate(f"--{key} {value[: yaml_source.MAX_BYTES]}"))
    built, problems = _resolve_parts(data, where)
    try:
        config = Config.model_validate(built)
    except ValidationError as error:
        problems += _explain(error, (), Config, where)
    if problems:
        problems.sort(key=lambda item: where.order(item[0]))
        raise ConfigError([problem for _, problem in problems])
    config._source = where
    return config


def _expand(key: str, value: Any) -> Any:
    """The short form: `model: mlp` is `model: {name: mlp}`."""
    return {"name": value} if key in registry.LOCATIONS and isinstance(value, str) else value


def _override(data: dict[str, Any], where: SourceMap, text: str, label: str) -> None:
    """Lay `a.b=value` over `data`, creating what is missing on the way."""
    if len(text) > yaml_source.MAX_BYTES:  # by its length alone: to look through 100 MB several times takes a second
        raise ConfigError(Problem("", f"larger than {yaml_source.MAX_BYTES // 1024} kB, which no setting needs", label))
    key, equals, value_text = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path) or not key.strip().isprintable():
        raise ConfigError(Problem("", "expected key=value, e.g. --set optimizer.lr=0.01", label))
    if len(path) > yaml_source.MAX_DEPTH:
        raise ConfigError(Problem("", f"nested deeper than {yaml_source.MAX_DEPTH} levels", label))
    value, _ = yaml_source.parse(value_text, label)
    target: Any = data
    for depth, step in enumerate(path[:-1]):
        if not isinstance(target, dict) or not isinstance(target.setdefault(step, {}), dict):
            raise ConfigError(
                Problem(
                    yaml_source.truncate(".".join(path[: depth + 1])),
                    "is not a mapping, so nothing can be set inside it",
                    label,
                )
            )
        target = target[step]
    if isinstance(target.get(path[-1]), dict):  # what was set inside it goes with it
        where.overrides = {old: by for old, by in where.overrides.items() if old[: len(path)] != path}
    target[path[-1]] = _expand(path[-1], value) if len(path) == 1 else value
    where.overrides[path] = label


Located = tuple[yaml_source.KeyPath, Problem]


def _resolve_parts(data: dict[str, Any], where: SourceMap) -> tuple[dict[str, Any], list[Located]]:
    """Replace each named section by its own validated Config; collect what is wrong with them."""
    built = dict(data)
    problems: list[Located] = []
    for kind in registry.LOCATIONS:
        section = data.get(kind, {"name": DEFAULTS[kind]} if kind in DEFAULTS else None)
        if section is None and kind not in data:
            continue  # reported as missing by the whole
        built[kind] = Component.model_construct(
            name=""
        )  # stands in where the section is wrong, so that the rest is still checked
        if not isinstance(section, dict):
            problems.append(
                (
                    (kind,),
                    where.problem((kind,), f"expected a name, or a mapping with one, e.g. {{name: {_example(kind)}}}"),
                )
            )
        elif "name" not in section and kind not in DEFAULTS:
            problems.append(
                ((kind,), where.problem((kind,), f"needs a name, one of: {', '.join(registry.names(kind))}"))
            )
        else:
            name = section.get("name", DEFAULTS.get(kind))
            try:
                part = registry.find(kind, yaml_source.truncate(str(name), 30))
                built[kind] = part.model_validate({**section, "name": name})
            except LookupError as error:
                problems.append(((kind, "name"), where.problem((kind, "name"), str(error))))
            except ValidationError as error:
                problems += _explain(error, (kind,), part, where)
    return built, problems


def _example(kind: str) -> str:
    return {"dataset": "digits", "model": "mlp", **DEFAULTS}[kind]


# ---------------------------------------------------------------- saying what is wrong


def _explain(
    error: ValidationError, prefix: yaml_source.KeyPath, model: type[BaseModel], where: SourceMap
) -> list[Located]:
    located = []
    for details in error.errors(include_url=False):
        path = (*prefix, *details["loc"])
        unknown = details["type"] == "extra_forbidden"
        message = f"unknown key{_did_you_mean(details, model)}" if unknown else _message(details)
        located.append((path, where.problem(path, message, key=unknown)))
    return located


def _did_you_mean(details: ErrorDetails, model: type[BaseModel]) -> str:
    """A suggestion out of the keys that the mapping around an unknown key does have."""
    for step in details["loc"][:-1]:
        annotation = model.model_fields[str(step)].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    return registry.suggest(yaml_source.truncate(str(details["loc"][-1])), model.model_fields)


_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}


def _message(details: ErrorDetails) -> str:
    """pydantic's error in the words of the config: the value, what was expected, and the cure where it is known."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    shown = _shown(value)
    if kind == "missing":
        return "is missing"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{shown} is out of range: {words} {context[bound]:,}"
    if kind == "literal_error":
        choices = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return f"{shown} is not one of the choices{registry.suggest(_shown(value), choices)}"
    if kind == "finite_number":
        return f"{shown} is not a finite number"
    if kind in _WANTED:
        return f"expected {_WANTED[kind]}, not {shown}{_cure(kind, value)}"
    if kind in ("too_short", "too_long"):
        bound = "at least {min_length}" if kind == "too_short" else "at most {max_length}"
        return f"needs {bound.format(**context)} values, has {context['actual_length']}"
    if kind == "nnx":
        return f"{details['msg']}, not {shown}"
    return yaml_source.truncate(
        details["msg"].removeprefix("Value error, "), 300
    )  # a part's own words, which may quote a value of any length


def _cure(kind: str, value: Any) -> str:
    meant = yaml_source.parse_scalar(value) if isinstance(value, str) else value
    if isinstance(value, str) and kind in ("int_type", "float_type") and type(meant) in (int, float):
        return "; remove the quotes"
    if kind == "bool_type" and str(value).lower() in ("yes", "on", "1", "no", "off", "0"):
        return f"; write {'true' if str(value).lower() in ('yes', 'on', '1') else 'false'}"
    if kind == "list_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write [{value}]"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return yaml_source.truncate(text, 40)


# ---------------------------------------------------------------- the schema


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config, with every part that can be named in it."""
    schema = Config.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.pop("Part", None)
    schema["required"] = ["dataset", "model"]
    for kind in registry.LOCATIONS:
        forms: list[dict[str, Any]] = []
        for name in registry.names(kind):
            part = registry.find(kind, name).model_json_schema()
            definitions.update(part.pop("$defs", {}))
            part["required"] = ["name", *part.get("required", [])]
            forms.append(part)
        alone = [
            part["properties"]["name"]["default"] for part in forms if part["required"] == ["name"]
        ]  # what a name says all of
        text = schema["properties"][kind].get("description", "")
        schema["properties"][kind] = {"description": text, "anyOf": [{"enum": alone}, *forms]}
    return schema
