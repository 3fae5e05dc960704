"""Mistakes in a command line, answered with what does what was meant: `--epochs 5` with `--set train.epochs=5`."""

import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

from nnx.export import names as format_names
from nnx.system.platform import quote

# what other programs call commands of nnx
COMMANDS = {
    "fit": "train",
    "run": "train",
    "start": "train",
    "test": "eval",
    "evaluate": "eval",
    "validate": "eval",
    "score": "eval",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "resume": "train --resume",
    "continue": "train --resume",
    "visualize": "explain",
    "visualise": "explain",
    "plot": "explain",
    "convert": "export",
    "save": "export",
    "web": "serve",
    "ui": "serve",
    "new": "init",
    "create": "init",
    "ls": "list",
    "models": "list models",
    "datasets": "list datasets",
    "recipes": "list recipes",
    "cache": "list cache",
    "summary": "show",
    "info": "show",
    "preview": "show",
    "lint": "check",
    "version": "--version",
}
# what other programs call options of nnx: a form without a value, or the name for a value
OPTIONS = {
    "--gpu": "--device cuda",
    "--gpus": "--device cuda",
    "--cuda": "--device cuda",
    "--use-cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--no-cuda": "--device cpu",
    "--mps": "--device mps",
    "-d": "--device",
    "-o": "--out",
    "--output": "--out",
    "--output-dir": "--out",
    "--out-dir": "--out",
    "--outdir": "--out",
    "--save": "--out",
    "--save-dir": "--out",
    "--save-path": "--out",
    "--dir": "--out",
    "--log-dir": "--out",
    "--logdir": "--out",
    "--name": "--out",
    "--run-name": "--out",
    "--data": "--data-dir",
    "--data-root": "--data-dir",
    "--data-path": "--data-dir",
    "--root": "--data-dir",
    "--overwrite": "--force",
    "-f": "--force",
    "-y": "--force",
    "--yes": "--force",
    "--continue": "--resume",
    "--restart": "--resume",
    "-r": "--resume",
    "--nprocs": "--nproc",
    "--processes": "--nproc",
    "--nproc-per-node": "--nproc",
    "--silent": "--quiet",
    "-s": "--quiet",
    "--no-progress": "--quiet",
    "--top-k": "--top",
    "--topk": "--top",
    "-k": "--top",
    "-p": "--port",
    "--bind": "--host",
    "--ip": "--host",
    "--address": "--host",
    "--explainer": "--only",
    "--method": "--only",
    "--idx": "--index",
    "--sample": "--index",
    "-i": "--index",
    "--unit": "--neuron",
    "--fail-below": "--fail-under",
    "--threshold": "--fail-under",
    "--min-accuracy": "--fail-under",
    "--clean": "--clear",
    "-V": "--version",
    "-v": "--version",
}
# what other programs give to an option, and nnx to an argument
ARGUMENTS = {
    "config": ("config", "configs", "source"),
    "c": ("config", "configs", "source"),
    "cfg": ("config", "configs", "source"),
    "recipe": ("config", "configs", "recipe", "source"),
    "checkpoint": ("checkpoint", "checkpoints", "source", "run"),
    "ckpt": ("checkpoint", "checkpoints", "source", "run"),
    "weights": ("checkpoint", "checkpoints", "source"),
    "model": ("checkpoint", "checkpoints", "source"),
    "run": ("checkpoint", "checkpoints", "source", "run"),
    "m": ("checkpoint", "checkpoints", "source"),
    "image": ("images", "paths", "image"),
    "images": ("images", "paths", "image"),
    "input": ("images", "paths", "image"),
    "inputs": ("images", "paths"),
    "file": ("images", "paths", "image"),
    "path": ("images", "paths", "image"),
}
SPLITS = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}
SWITCHES = ("compile", "deterministic", "train.film", "train.report")
DATASET_ONLY = ("eval", "explain", "export")  # commands whose --set changes only the dataset


def describe(error: Any, words: Sequence[str], commands: Sequence[str]) -> str:
    """typer's `error` about the command line `words` in one line, with the cure where it is known."""
    command = next((word for word in words[:1] if word in commands), "")
    see_help = f"See {' '.join(filter(None, ('nnx', command)))} --help"
    message: str = error.format_message().rstrip(".")
    if option := getattr(error, "option_name", ""):
        parameters = error.cmd.params if error.cmd else []
        if message.startswith("No such option"):
            cure = _find_option(option, _value_after(option, words), command, parameters)
            return f"No such option: {option}. {cure or see_help}"
        return f"{message}. {see_help}"
    if match := re.fullmatch(r"No such command '(.*)'\..*|No such command '(.*)'", message, re.DOTALL):
        name = match[1] or match[2]
        return f"No such command {name!r}. {_find_command(name, words, commands) or see_help}"
    if match := re.fullmatch(r"Got unexpected extra arguments? ?\(?s?\)? ?\((.*)\)", message, re.DOTALL):
        return f"{_explain_extra(match[1], command, words, error.cmd.params)}. {see_help}"
    parameter = getattr(error, "param", None)
    if message.startswith("Missing") and parameter is not None:
        name = parameter.opts[0] if parameter.param_type_name == "option" else _metavar(parameter)
        return f"Missing {parameter.param_type_name} {name!r}{_choices(parameter)}. {see_help}"
    if parameter is not None and message.startswith("Invalid value"):
        return _explain_value(error, parameter, words, see_help)
    return f"{message}. {see_help}"


def _find_option(option: str, value: str, command: str, parameters: Sequence[Any]) -> str:
    """What does what this unknown option would do; "" if nothing is known."""
    known = {name for parameter in parameters for name in parameter.opts if name.startswith("-")}
    name = option.lower().replace("_", "-")
    form = OPTIONS.get(option, OPTIONS.get(name, ""))
    setting = _find_setting(name.lstrip("-"), command, known)
    if form.partition(" ")[0] in known and not (name == "--data" and setting):
        return f"Use {form}"
    places = [p for p in parameters if p.name in ARGUMENTS.get(name.lstrip("-"), ()) and p.param_type_name != "option"]
    if places:
        given = quote(value) if value else _metavar(places[0])
        return f"{_metavar(places[0])} is an argument: nnx {command} {given}"
    if setting and command in DATASET_ONLY and not setting.startswith("dataset."):
        return "The checkpoint fixes this setting"
    if setting:
        change = f"{setting}={value or ('true' if setting in SWITCHES else 'VALUE')}"
        return f"Use {'' if command else 'nnx train CONFIG '}--set {quote(change)}"
    if name.lstrip("-") in format_names() and "--format" in known:
        return f"Use --format {name.lstrip('-')}"
    if name in ("--dry-run", "--summary") and command == "train":
        return "To preview a config, use nnx show"
    if name == "--debug":
        return "For the traceback of an error, set NNX_DEBUG=1"
    if name in ("--verbose", "-v"):
        return "Remove it; only --quiet prints less" if "--quiet" in known else ""
    if name.lstrip("-") in ("test", "train", *SPLITS) and "--split" in known:
        word = name.lstrip("-")
        return f"Use --split {SPLITS.get(word, word)}"
    if close := difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75):
        return f"Did you mean {close[0]}?"
    return ""


def _find_setting(name: str, command: str, known: set[str]) -> str | None:
    """The key that an option's `name` means, if this command takes settings."""
    if command and "--set" not in known:
        return None
    from nnx.config.schema import full_key

    return name.replace("-", "_") if "." in name else full_key(name)


def _value_after(option: str, words: Sequence[str]) -> str:
    """The value that follows `option`, or is joined to it by =; "" if there is none."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return following if not following.startswith("-") or re.match(r"-\.?\d", following) else ""
    return ""


def _find_command(name: str, words: Sequence[str], commands: Sequence[str]) -> str:
    """What does what this unknown command would do; "" if nothing is known."""
    rest = list(words[list(words).index(name) + 1 :]) if name in words else []
    if name == "help":
        return " ".join(["Use nnx", *(word for word in rest[:1] if word in commands), "--help"])
    if form := COMMANDS.get(name.lower()):
        return f"Use nnx {form}" if form.startswith("-") else " ".join(["Use nnx", form, *map(quote, rest)])
    if close := difflib.get_close_matches(name.lower(), commands, n=1, cutoff=0.6):
        return f"Did you mean {close[0]}?"
    from nnx import config

    place = quote(name)
    if name in config.recipes() or name.endswith((".yaml", ".yml")):
        return f"Use nnx train {place}"
    if name.endswith(".pt") or os.path.isfile(os.path.join(name, "checkpoint.pt")):
        return f"Use nnx eval {place}"
    return ""


def _explain_extra(extra: str, command: str, words: Sequence[str], parameters: Sequence[Any]) -> str:
    """What is wrong with arguments beyond those that the command takes."""
    options = {name for parameter in parameters for name in parameter.opts}
    key, equals, value = extra.partition("=")
    for option, setting, after in zip(words, words[1:], words[2:], strict=False):
        if option == "--set" and "=" not in setting and after == extra.partition(" ")[0]:
            return f"--set {setting}: expected key=value, as in --set {quote(f'{setting}={after}')}"
    if equals and "--set" in options:
        from nnx.config.schema import full_key

        return f"{extra}: a setting needs --set: --set {quote(f'{full_key(key) or key}={value}')}"
    arguments = [_metavar(p) for p in parameters if p.param_type_name != "option"]
    takes = f"takes {' and '.join(arguments)} only" if arguments else "takes no argument"
    return f"{extra}: is one argument too many; nnx {command} {takes}"


def _explain_value(error: Any, parameter: Any, words: Sequence[str], see_help: str) -> str:
    """A wrong value of an option: the value itself, and what is expected."""
    is_option = parameter.param_type_name == "option"
    names = parameter.opts if is_option else []
    value = next((given for name in names if (given := _value_after(name, words))), "")
    message = str(error.message).removeprefix("Value error, ").rstrip(".")
    if match := re.match(r"'(.*?)' is not one of (.*)", message, re.DOTALL):
        value, choices = match[1], re.findall(r"'([^']*)'", match[2])
        near = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.6)
        meant = SPLITS.get(value.lower()) if "validation" in choices else None
        best = meant or (near[0] if near else "")
        expected = f"did you mean {best!r}?" if best else f"expected one of: {', '.join(choices)}"
    else:
        kinds = {"valid integer": "expected a whole number", "valid number": "expected a number"}
        bound = message.replace("Input should be", "must be").replace("greater than or equal to", "at least")
        expected = next((text for kind, text in kinds.items() if kind in message), "") or bound.replace(
            "less than or equal to", "at most"
        )
    subject = " ".join(filter(None, (names[0] if is_option else "", value))) or _metavar(parameter)
    return f"{subject}: {expected}{'' if expected.endswith('?') else f'. {see_help}'}"


def _choices(parameter: Any) -> str:
    """The choices that the help of a required option lists after its colon."""
    help_text = getattr(parameter, "help", "") or ""
    return f": {help_text.partition(': ')[2].rstrip('.')}" if parameter.param_type_name == "option" else ""


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.rstrip("s").upper())
