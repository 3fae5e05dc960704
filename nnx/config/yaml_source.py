"""Parse YAML text to plain values, with the line and column of every key and value.

It accepts a small subset of YAML. A config then means what it looks like, and a hostile one costs nothing:
numbers and booleans by the YAML 1.2 core schema (`1e-3` is a number; `no` and `on` are text; `010` is ten), no
duplicate keys, anchors, aliases, merge keys, tags or second documents, at most 64 kB, 16 levels, 5,000 values and 4,096
characters a value.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from nnx.errors import ConfigError, Problem, printable

KeyPath = tuple[str | int, ...]

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NODES = 5000
# Characters of a key or value: the length of a path on Linux. Escaped they take 40 kB, within MAX_BYTES
MAX_TEXT = 4096

# https://yaml.org/spec/1.2.2/#103-core-schema, without octal and hexadecimal: a config does not need them
NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
INT = re.compile(r"^[-+]?[0-9]{1,40}$")
FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)

_SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (NULL, lambda text: None),
    (BOOL, lambda text: text.lower() == "true"),
    (INT, int),
    (FLOAT, lambda text: float(re.sub(r"(?i)\.(inf|nan)$", r"\1", text))),
]


def parse_scalar(text: str) -> Any:
    """The value of an unquoted word: None, bool, int, float, or the text itself."""
    for pattern, convert in _SCALARS:
        if pattern.match(text):
            return convert(text)
    return text


def truncate(text: str, most: int = 80) -> str:
    """`text` for a message: escaped, then cut to at most `most` characters, as one escape takes up to ten of them."""
    text = printable(text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


@dataclass
class SourceMap:
    """The source of a config: its file, its lines, the place of every key and value, and the `--set` overrides."""

    name: str = field(default="", compare=False)
    lines: list[str] = field(default_factory=list, compare=False)
    keys: dict[KeyPath, tuple[int, int]] = field(default_factory=dict, compare=False)
    values: dict[KeyPath, tuple[int, int]] = field(default_factory=dict, compare=False)
    overrides: dict[KeyPath, str] = field(default_factory=dict, compare=False)  # path -> "--set model.hidden=[64]"

    def problem(self, path: KeyPath, message: str, *, key: bool = False) -> Problem:
        """A Problem at `path`: at its key if `key`, else at its value, else at the closest parent in the file."""
        dotted = truncate(".".join(map(str, path)))
        if path in self.overrides:  # skips the search below, which takes 1 s for 3,000 problems
            return Problem(dotted, message, self.overrides[path])
        if path not in self.values:  # a section that --set created for a deeper key
            for deeper, label in self.overrides.items():
                if path and deeper[: len(path)] == path:
                    return Problem(dotted, message, label)
        for length in range(len(path), -1, -1):
            parent = path[:length]
            if parent in self.overrides:
                return Problem(dotted, message, self.overrides[parent])
            places = self.keys if key and parent == path else self.values
            # what the file says below a key that --set replaced is not in force
            replaced = any(path[:shorter] in self.overrides for shorter in range(1, length))
            if parent in places and parent and not replaced:
                line, column = places[parent]
                return self._at(dotted, message, line, column)
        return Problem(dotted, message, self.name)

    def order(self, path: KeyPath) -> tuple[int, int]:
        """The line and column of `path` or its closest parent, for sorting problems."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.keys:
                return self.keys[path[:length]]
        return (0, 0)

    def _at(self, key: str, message: str, line: int, column: int) -> Problem:
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return Problem(key, message, f"{self.name}:{line}:{column}", text, column)


def parse(text: str, name: str) -> tuple[Any, SourceMap]:
    """Parse YAML `text` to a plain value and its SourceMap. Messages use `name` as the file name.

    Raises ConfigError, with line and column, for anything outside this module's subset of YAML.
    """
    source = SourceMap(name, text.splitlines())
    try:
        if len(text.encode()) > MAX_BYTES:
            raise ConfigError(Problem("", f"larger than {MAX_BYTES // 1024} kB, the maximum for a config", name))
        node = _Composer(text, source).get_single_node()
        value = None if node is None else _value(node, (), source)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_yaml_problem(error, source)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise ConfigError(
            source._at("", "character not allowed in YAML; save the file as plain UTF-8 text", line, column)
        ) from None
    except (ValueError, OverflowError) as error:  # e.g. "\U99999999", which PyYAML passes to chr()
        raise ConfigError(Problem("", f"invalid YAML ({error})", name)) from None
    return value, source


class _Composer(yaml.SafeLoader):
    """PyYAML's pure-Python loader (the C loader crashes on deep nesting) with limits on the nodes it composes."""

    def __init__(self, text: str, source: SourceMap) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        self._depth += 1
        if problem := self._violation(event):
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _violation(self, event: Any) -> str | None:
        """The limit that this value violates, as a message; None if it violates none."""
        if isinstance(event, yaml.AliasEvent):
            return "aliases (*name) are not supported; write the value out"
        if event.anchor is not None:
            return "anchors (&name) are not supported; write the value out"
        if event.tag is not None:
            return f"tags ({truncate(event.tag)}) are not supported"
        if self._nodes > MAX_NODES:
            return f"more than {MAX_NODES} values, the maximum for a config"
        if self._depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        return None


def _value(node: yaml.Node, path: KeyPath, source: SourceMap) -> Any:
    """The plain value of `node`. Records in `source` the places of all keys and values below `path`."""
    source.values[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), source) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a single word", problem_mark=key_node.start_mark)
            key = _text_of(key_node)
            if key in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {truncate(repr(key))}", problem_mark=key_node.start_mark
                )
            if key == "<<":
                raise yaml.MarkedYAMLError(
                    problem="merge keys (<<) are not supported", problem_mark=key_node.start_mark
                )
            source.keys[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            mapping[key] = _value(value_node, (*path, key), source)
        return mapping
    assert isinstance(node, yaml.ScalarNode)
    text = _text_of(node)
    return parse_scalar(text) if node.style is None else text


def _text_of(node: yaml.ScalarNode) -> str:
    """The text of a key or value. Raises MarkedYAMLError for lone surrogates and for more than MAX_TEXT characters."""
    text = str(node.value)
    if re.search("[\ud800-\udfff]", text):
        raise yaml.MarkedYAMLError(
            problem="half a character (a lone surrogate); write the whole character", problem_mark=node.start_mark
        )
    if len(text) > MAX_TEXT:
        raise yaml.MarkedYAMLError(
            problem=f"longer than {MAX_TEXT} characters, the maximum for a value", problem_mark=node.start_mark
        )
    return text


def _yaml_problem(error: yaml.MarkedYAMLError, source: SourceMap) -> Problem:
    """PyYAML's error as a Problem: at an unclosed bracket or quote if there is one, else where the parser stopped."""
    opened = error.context_mark
    mark = error.problem_mark
    message = error.problem or error.context or "invalid YAML"
    is_bracket_or_quote = "flow" in str(error.context) or "quoted" in str(error.context)
    if opened and mark and (opened.line < mark.line or "stream" in message) and is_bracket_or_quote:
        mark = opened
        message = "opened here and never closed"
    mark = mark or opened
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    text = source.lines[line - 1] if line <= len(source.lines) else ""
    if "\t" in text[: len(text) - len(text.lstrip())] or "'\\t'" in message:
        message = "tab in the indentation; indent with spaces"
    elif message.startswith("but found another document"):
        message = "second document (---); a config is one document"
    elif "escape" in message:  # as in "C:\Users"
        message = r"\ begins an escape in double quotes; use single quotes, or / in paths"
    return source._at("", message, line, column)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that `parse` reads. Quotes exactly the text that `parse_scalar` would not read as text."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Use double quotes for line breaks other than \\n: only these escape them, and YAML folds the rest into spaces."""
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\\r\x85\u2028\u2029]", text) else None
    )


_Dumper.add_representer(str, _text)
_STARTS = [*"-+0123456789.~nNtTfF", ""]
for _tag, _pattern in (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _STARTS)


def dump(value: Any, width: int = 120) -> str:
    """Plain `value` -> YAML text in lines of about `width` characters. `parse` returns an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=width)
