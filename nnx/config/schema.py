"""The config: one YAML file defines a run. Validation is strict and reports all mistakes at once, each with its place.

    config = load("configs/mnist_mlp.yaml", ["train.epochs=3", "model.hidden=[64]"])

Order of precedence: defaults < file < `--set` and flags, later ones first.
"""

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PlainValidator, PrivateAttr, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from nnx.config import registry, yaml_source
from nnx.config.registry import Component, StrictModel
from nnx.config.synonyms import SYNONYMS
from nnx.config.yaml_source import SourceMap
from nnx.errors import ConfigError, Problem, exported_kind

# ---------------------------------------------------------------- field types


def _count_or_fraction(value: Any) -> int | float:
    if (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1):
        number: int | float = value
        return number
    if type(value) in (int, float) and value == 0:
        return 0
    raise PydanticCustomError("nnx", "expected a count (5000), a fraction between 0 and 1 (0.1), or 0 for none")


CountOrFraction = Annotated[int | float, PlainValidator(_count_or_fraction, json_schema_input_type=int | float)]
"""A number of samples, or a fraction of them (between 0 and 1, both excluded); 0 for none."""


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
Switch = Annotated[
    Literal["auto"] | bool,
    PlainValidator(_auto_or("true or false", (bool,)), json_schema_input_type=Literal["auto"] | bool),
]
Threads = Annotated[
    Literal["auto"] | int,
    PlainValidator(_auto_or("or a number from 1 to 4096", (int,)), json_schema_input_type=Literal["auto"] | int),
]

# ---------------------------------------------------------------- the shape of a config


class Augment(StrictModel):
    """Random changes to training images, drawn independently for every image of every batch. Zero or false: off."""

    shift: float = Field(0, ge=0, le=64, description="maximum shift in each direction, in pixels")
    rotate: float = Field(0, ge=0, le=180, description="maximum rotation, in degrees")
    scale: float = Field(0, ge=0, lt=1, description="maximum change of size, as a fraction")
    shear: float = Field(0, ge=0, le=60, description="maximum shear, in degrees")
    elastic: float = Field(
        0, ge=0, le=64, description="maximum elastic distortion, in pixels, approximate (Simard et al. 2003)"
    )
    erase: float = Field(0, ge=0, le=1, description="probability of erasing a random rectangle (Zhong et al. 2017)")
    flip: bool = Field(False, description="mirror half of the images left to right; unsuitable for digits and letters")

    @property
    def is_on(self) -> bool:
        return any(value for _, value in self)


class Train(StrictModel):
    """Length of the training, its batches, and what it saves."""

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training data")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="samples per forward and backward pass")
    accumulate: int = Field(
        1, ge=1, le=10_000, description="batches per step; the step uses the mean of their gradients"
    )
    clip_grad_norm: float | None = Field(
        None,
        gt=0,
        description="maximum norm of the gradient; larger gradients are scaled down to it (Pascanu et al. 2013)",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, e.g. 0.999; the average is evaluated and saved",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a higher validation accuracy"
    )
    save_every: SaveEvery = Field(
        "epoch",
        description="save the state after each epoch; with a number, e.g. 500, also every 500 steps",
    )
    mixup: float = Field(
        0,
        ge=0,
        le=100,
        description="blend pairs of samples with a weight drawn from Beta(mixup, mixup) (Zhang et al. 2018); 0: off",
    )
    augment: Augment = Field(default_factory=Augment, description="random changes to training images")
    report: bool = Field(
        True,
        description="write report.html at the end: curves, metrics, confusion matrix, mistakes, layers",
    )
    film: Switch = Field(
        "auto",
        description="record the change of filters, activations and classes from step to step, for the report; "
        "auto: for digits and data of two features, where it takes less than a second",
    )


class Config(StrictModel):
    """The whole file. The registry finds the `dataset`, `model`, `loss`, `optimizer` and `schedule` by name."""

    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="seed of all random choices: initial weights, sample order, dropout, augmentation",
    )
    dataset: SerializeAsAny[Component] = Field(description="the data")
    model: SerializeAsAny[Component] = Field(description="the architecture")
    loss: SerializeAsAny[Component] = Field(description="the function to minimise")
    optimizer: SerializeAsAny[Component] = Field(description="how the gradients update the weights")
    schedule: SerializeAsAny[Component] = Field(description="how the learning rate changes during training")
    train: Train = Field(default_factory=Train, description="settings of the training loop")
    device: Device = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="floating-point type of the computation; weights stay in float32"
    )
    layout: Literal["auto", "channels_first", "channels_last"] = Field(
        "auto",
        description="memory layout of a CNN's images and filters; it changes the speed, and results within rounding",
    )
    compile: Switch = Field(
        "auto",
        description="auto: fastest known method for the network and device; true: torch.compile; false: plain PyTorch",
    )
    deterministic: bool = Field(
        False, description="make runs bit-identical on CUDA, at a cost in speed; on a CPU they always are"
    )
    threads: Threads = Field(
        "auto", description="number of CPU threads; only runs with the same number are bit-identical"
    )

    _source: SourceMap = PrivateAttr(default_factory=SourceMap)

    @property
    def recipe(self) -> str:
        """The name for run folders: the file name without its extension."""
        return Path(self._source.name).stem or "run"

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, defaults included. `from_dict` turns them into an equal Config."""
        return self.model_dump(mode="json")

    def to_yaml(self, width: int = 120) -> str:
        """The resolved config as YAML that `load` accepts, in lines of about `width` characters."""
        return yaml_source.dump(self.to_dict(), width)

    @contextmanager
    def locate(self) -> Iterator[None]:
        """Inside, add the place in the file to every ConfigError that has only a key."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(
                [p if p.place else self._source.problem(tuple(p.key.split(".")), p.message) for p in error.problems]
            ) from None


DEFAULTS = {"loss": "cross_entropy", "optimizer": "adam", "schedule": "constant"}

# ---------------------------------------------------------------- reading


def recipes() -> dict[str, Path]:
    """The paths of the shipped recipes, by name. A wheel has them inside the package, a checkout beside it."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load(config: str | Path, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """Read a config file or a shipped recipe, then apply `a.b=value` overrides and flags ({"device": "cpu"}).

    Raises one ConfigError for all mistakes in the file.
    """
    path = Path(config)
    if not os.path.isfile(path):
        known = recipes()
        if os.path.isfile(path / "last.pt"):
            raise ConfigError(Problem("", f"is a run; resume it with: nnx train --resume {config}", str(config)))
        if os.path.exists(path):
            cure = "name a config file or a recipe; a config names its data with dataset.path"
            raise ConfigError(Problem("", f"is not a file; {cure}", str(config)))
        if str(config) not in known:
            name = yaml_source.truncate(str(config))
            raise ConfigError(Problem("", f"no such config file or recipe{registry.suggest(name, known)}", name))
        path = known[str(config)]
    if kind := exported_kind(path):
        raise ConfigError(Problem("", kind, str(path)))
    try:
        with open(path, "rb") as file:  # the reported size is no guide: it is 0 for all of /proc
            raw = file.read(yaml_source.MAX_BYTES + 1)
        if len(raw) > yaml_source.MAX_BYTES:
            raise ConfigError(
                Problem("", f"larger than {yaml_source.MAX_BYTES // 1024} kB, the maximum for a config", str(path))
            )
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        hint = f"is a checkpoint; resume its run with: nnx train --resume {path.parent}"
        message = hint if path.suffix == ".pt" else "not UTF-8 text; is it a config?"
        raise ConfigError(Problem("", message, str(path))) from None
    except OSError as error:
        raise ConfigError(Problem("", f"can't be read ({error.strerror})", str(path))) from None
    return parse(text, str(path), overrides, flags)


def parse(text: str, name: str, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """Like `load`, for YAML text. Messages use `name` as the file name."""
    data, where = yaml_source.parse(text, name)
    return _build(data, where, overrides, flags)


def from_dict(data: Any, name: str, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Config:
    """Like `load`, for plain values such as those in a checkpoint. Messages use `name` as the file name."""
    return _build(data, SourceMap(name), overrides, flags)


def _build(data: Any, where: SourceMap, overrides: Sequence[str], flags: Mapping[str, str] | None) -> Config:
    if not isinstance(data, dict):
        mistake = "empty" if data is None else "not a mapping of keys to values"
        cure = "a config needs at least `dataset: digits` and `model: mlp`"
        raise ConfigError(Problem("", f"{mistake}; {cure}", where.name))
    most = yaml_source.MAX_BYTES
    settings = [(text, f"--set {text[:most]}") for text in overrides]
    settings += [(f"{key}={value}", f"--{key} {value[:most]}") for key, value in (flags or {}).items()]
    labelled = [(text, yaml_source.truncate(label)) for text, label in settings]
    try:
        return _validate(data, where, labelled)
    except ConfigError as error:
        raise ConfigError(_name_causes(error.problems, data, where, labelled)) from None


def _name_causes(
    problems: Sequence[Problem], data: dict[str, Any], where: SourceMap, settings: Sequence[tuple[str, str]]
) -> list[Problem]:
    """Add to each problem in the file the `--set` without which it would not be one: model=transformer makes the
    `hidden` of an mlp unknown."""

    def in_file(problems: Sequence[Problem]) -> set[tuple[str, str]]:
        return {(problem.key, problem.place) for problem in problems if problem.line}

    found = in_file(problems)
    causes: dict[tuple[str, str], str] = {}
    for index, (_, label) in enumerate(settings if found else ()):
        try:
            _validate(data, replace(where, overrides={}), [*settings[:index], *settings[index + 1 :]])
            left = set()
        except ConfigError as error:
            left = in_file(error.problems)
        if left <= found:  # else the validation may have ended before it reached the others
            causes |= dict.fromkeys(found - left, label)
    return [
        replace(problem, message=f"{problem.message}; {causes[place]} made it wrong")
        if (place := (problem.key, problem.place)) in causes
        else problem
        for problem in problems
    ]


def _validate(data: dict[str, Any], where: SourceMap, settings: Sequence[tuple[str, str]]) -> Config:
    """Apply the settings, each with its label for messages, to a copy of `data`, and validate the result."""
    data = {key: _expand_short_form(key, value) for key, value in copy.deepcopy(data).items()}
    for text, label in settings:
        _override(data, where, text, label)
    sections, problems = _resolve_components(data, where)
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        problems += _locate_errors(error, (), Config, where)
    if problems:
        problems.sort(key=lambda item: where.order(item[0]))
        raise ConfigError([problem for _, problem in problems])
    config._source = where
    with config.locate():
        _check_validation_exists(config)
    return config


def _check_validation_exists(config: Config) -> None:
    """Raises ConfigError for a schedule that follows the validation loss if there are no validation samples."""
    if config.schedule.name == "plateau" and getattr(config.dataset, "validation", None) == 0:
        problem = "0 leaves no validation loss for the schedule plateau to follow"
        raise ConfigError.at("dataset.validation", f"{problem}; give a count, or choose another schedule")


def _expand_short_form(key: str, value: Any) -> Any:
    """The short form: `model: mlp` is `model: {name: mlp}`."""
    return {"name": value} if key in registry.LOCATIONS and isinstance(value, str) else value


def _override(data: dict[str, Any], where: SourceMap, text: str, label: str) -> None:
    """Set `a.b=value` in `data`. Missing sections on the way are created."""
    if len(text) > yaml_source.MAX_BYTES:  # check the length alone: scanning 100 MB several times takes a second
        raise ConfigError(
            Problem("", f"larger than {yaml_source.MAX_BYTES // 1024} kB, the maximum for a setting", label)
        )
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
            parent = yaml_source.truncate(".".join(path[: depth + 1]))
            raise ConfigError(Problem(parent, "is not a mapping, so nothing can be set inside it", label))
        target = target[step]
    if isinstance(target.get(path[-1]), dict):  # forget the overrides inside the section that is replaced
        where.overrides = {old: source for old, source in where.overrides.items() if old[: len(path)] != path}
    target[path[-1]] = _expand_short_form(path[-1], value) if len(path) == 1 else value
    where.overrides[path] = label


Located = tuple[yaml_source.KeyPath, Problem]


def _resolve_components(data: dict[str, Any], where: SourceMap) -> tuple[dict[str, Any], list[Located]]:
    """Replace each named section of `data` by its validated Config. Returns the sections and the problems in them."""
    sections = dict(data)
    problems: list[Located] = []

    def report(path: yaml_source.KeyPath, message: str) -> None:
        problems.append((path, where.problem(path, message)))

    for kind in registry.LOCATIONS:
        section = data.get(kind, {"name": DEFAULTS[kind]} if kind in DEFAULTS else None)
        if section is None and kind not in data:
            continue  # the validation of the whole reports it as missing
        sections[kind] = Component.model_construct(name="")  # a placeholder for an invalid section: the rest is checked
        if not isinstance(section, dict):
            report((kind,), f"expected a name, or a mapping with one, e.g. {{name: {_example(kind)}}}")
        elif "name" not in section and kind not in DEFAULTS:
            report((kind,), f"needs a name, one of: {', '.join(registry.names(kind))}")
        else:
            name = section.get("name", DEFAULTS.get(kind))
            try:
                component = registry.find(kind, yaml_source.truncate(str(name), 30))
                sections[kind] = component.model_validate({**section, "name": name})
            except LookupError as error:
                report((kind, "name"), str(error))
            except ValidationError as error:
                problems += _locate_errors(error, (kind,), component, where)
    return sections, problems


def _example(kind: str) -> str:
    return {"dataset": "digits", "model": "mlp", **DEFAULTS}[kind]


# ---------------------------------------------------------------- error messages


def _locate_errors(
    error: ValidationError, prefix: yaml_source.KeyPath, model: type[BaseModel], where: SourceMap
) -> list[Located]:
    """pydantic's errors for the section at `prefix`, each as a Problem with its key path."""
    located = []
    for details in error.errors(include_url=False):
        path = (*prefix, *details["loc"])
        unknown = details["type"] == "extra_forbidden"
        message = f"unknown key{_did_you_mean(details, prefix, model)}" if unknown else _message(details)
        if unknown and path == ("dataset", "test"):
            message = "this dataset has its own test samples, which nnx never trains on; remove the key"
        if details["type"] == "missing" and path == ("dataset", "target"):
            message += _list_columns(details["input"])
        located.append((path, where.problem(path, message, key=unknown)))
    return located


def _list_columns(section: Any) -> str:
    """The columns of the table that a dataset names, one of which is the target; empty if it is no readable text."""
    path = section.get("path") if isinstance(section, dict) else None
    if not isinstance(path, str) or not path.lower().endswith((".csv", ".tsv", ".txt")):
        return ""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(yaml_source.MAX_BYTES).strip()
    except (OSError, ValueError):
        return ""
    delimiter = max("\t;,", key=header.count)
    columns = [column.strip().strip('"') for column in header.split(delimiter)]
    more = f" and {len(columns) - _COLUMNS} more" if len(columns) > _COLUMNS else ""
    names = ", ".join(yaml_source.truncate(column, 40) for column in columns[:_COLUMNS])
    return f"; name the column with the class, one of: {names}{more}"


def _did_you_mean(details: ErrorDetails, prefix: yaml_source.KeyPath, model: type[BaseModel]) -> str:
    """A suggestion for an unknown key below `prefix`: the same key in another section, a similar key in its own, or
    what nnx calls it."""
    for step in details["loc"][:-1]:
        annotation = model.model_fields[str(step)].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    name = yaml_source.truncate(str(details["loc"][-1]))
    place = full_key(name)
    section, _, key = (place or "").rpartition(".")
    here = ".".join(map(str, (*prefix, *details["loc"][:-1])))
    suggestion = registry.suggest(name, model.model_fields)
    is_other = section != here or key in model.model_fields
    if place and is_other and (_is_key(name) or not suggestion.endswith("?")):
        return f", did you mean {place!r}?"
    return suggestion


def full_key(word: str) -> str | None:
    """The full key of the setting that `word` names, such as train.epochs for epochs or num-epochs; None if there is
    none."""
    name = word.lower().replace("-", "_")
    for prefix, model in (("", Config), ("train.", Train), ("train.augment.", Augment)):
        if name in model.model_fields:
            return prefix + name
    return SYNONYMS.get(name)


def _is_key(name: str) -> bool:
    """Whether some section has a key of exactly this name."""
    return (full_key(name) or "").rpartition(".")[2] == name


_COLUMNS = 20  # of a table, at most, that a message lists
_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_EXPECTED = {
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
    """pydantic's error in terms of the config: the value, the expected value, and the cure if it is known."""
    kind = details["type"]
    value = details["input"]
    context = details.get("ctx", {})
    shown = _format_value(value)
    if kind == "missing":
        return "is missing"
    if kind in _BOUNDS:
        bound, requirement = _BOUNDS[kind]
        return f"{shown} is out of range: {requirement} {context[bound]:,}"
    if kind == "literal_error":
        choices = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return f"{shown} is not one of the choices{registry.suggest(shown, choices)}"
    if kind == "finite_number":
        return f"{shown} is not a finite number"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, not {shown}{_cure(kind, value)}"
    if kind in ("too_short", "too_long"):
        bound = "at least {min_length}" if kind == "too_short" else "at most {max_length}"
        return f"needs {bound.format(**context)} values, has {context['actual_length']}"
    if kind == "nnx":
        return f"{details['msg']}, not {shown}"
    # A component's own message, which may quote a value of any length
    return yaml_source.truncate(details["msg"].removeprefix("Value error, "), 300)


def _cure(kind: str, value: Any) -> str:
    """How to correct `value`, such as "; remove the quotes"; empty if that is not known."""
    unquoted = yaml_source.parse_scalar(value) if isinstance(value, str) else value
    if isinstance(value, str) and kind in ("int_type", "float_type") and type(unquoted) in (int, float):
        return "; remove the quotes"
    if kind == "bool_type" and str(value).lower() in ("yes", "on", "1", "no", "off", "0"):
        return f"; write {'true' if str(value).lower() in ('yes', 'on', '1') else 'false'}"
    if kind == "list_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write [{value}]"
    if kind == "list_type" and isinstance(value, str) and 0 < len(value) <= 40 and value.isprintable():
        return f"; write [{value}]" if re.fullmatch(r"[\w ]+", value) else f"; write [{value!r}]"
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write '{value}'"
    return ""


def _format_value(value: Any) -> str:
    """`value` as a message quotes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return yaml_source.truncate(text, 40)


# ---------------------------------------------------------------- the schema


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config, including every component that it can name."""
    schema = Config.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.pop("Component", None)
    schema["required"] = ["dataset", "model"]
    for kind in registry.LOCATIONS:
        forms: list[dict[str, Any]] = []
        for name in registry.names(kind):
            form = registry.find(kind, name).model_json_schema()
            definitions.update(form.pop("$defs", {}))
            form["required"] = ["name", *form.get("required", [])]
            forms.append(form)
        # The short form is a bare name, for components without required keys
        names = [form["properties"]["name"]["default"] for form in forms if form["required"] == ["name"]]
        text = schema["properties"][kind].get("description", "")
        schema["properties"][kind] = {"description": text, "anyOf": [{"enum": names}, *forms]}
    return schema
