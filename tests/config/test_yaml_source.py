"""The YAML subset: scalars, refused input and its place, limits, and `dump` as the inverse of `parse`."""

import contextlib
import math
import time

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnx.config import yaml_source
from nnx.errors import ConfigError


def read(text):
    return yaml_source.parse(text, "a.yaml")[0]


def problem(text):
    with pytest.raises(ConfigError) as caught:
        yaml_source.parse(text, "a.yaml")
    (only,) = caught.value.problems
    return only


# ---------------------------------------------------------------- what words mean


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("1e-3", 0.001), ("1E+5", 1e5), ("-2.5e2", -250.0), (".5", 0.5), ("+.5", 0.5), ("1.", 1.0), ("6e0", 6.0)],
        *[("10", 10), ("010", 10), ("+1", 1), ("-0", 0), ("-7", -7), ("0", 0)],
        *[
            ("true", True),
            ("True", True),
            ("FALSE", False),
            ("false", False),
            ("~", None),
            ("null", None),
            ("NULL", None),
            ("", None),
        ],
        *[
            (word, word)
            for word in ("no", "on", "off", "yes", "No", "ON", "y", "n", "tRUE", "nULL", "none", "None", "nan", "inf")
        ],
        *[
            (word, word)
            for word in ("1_000", "0x1F", "0o17", "12:30", "2001-01-01", "=", "1e", "e5", ".", "1.2.3", "--1", "٣")
        ],
        *[('"1e-3"', "1e-3"), ("'true'", "true"), ('"null"', "null"), ('"\\u00e9"', "é"), ("|-\n  10", "10")],
    ],
)
def test_scalars_are_those_of_yaml_1_2(word, value):
    found = read(f"key: {word}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_infinities_and_nan_are_numbers():
    found = read("[.inf, -.inf, +.Inf, .nan, .NaN]")
    assert found[:3] == [math.inf, -math.inf, math.inf]
    assert all(math.isnan(number) for number in found[3:])


def test_pyyaml_reads_them_differently():
    """The control: the mistakes that this loader avoids."""
    assert yaml.safe_load("[1e-3, no, 010]") == ["1e-3", False, 8]
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


def test_places_of_keys_and_values():
    _, where = yaml_source.parse("# a comment\nmodel: {name: mlp,\n  hidden: [8, 16]}\n", "a.yaml")
    assert where.keys == {("model",): (2, 1), ("model", "name"): (2, 9), ("model", "hidden"): (3, 3)}
    assert where.values[("model", "hidden", 1)] == (3, 15)
    assert str(where.problem(("model", "hidden", 1), "is odd")) == "a.yaml:3:15: model.hidden.1: is odd"
    assert where.problem(("model", "depth"), "is missing").place == "a.yaml:2:8", (
        "the closest parent that is written down"
    )


# ---------------------------------------------------------------- what is refused, and where

REFUSED = {
    "path of Windows, double quotes": (
        'a: "C:\\Users\\me"\n',
        1,
        9,
        r"\ begins an escape in double quotes; use single",
    ),
    "another path of Windows": ('a: "C:\\pictures"\n', 1, 8, r"\ begins an escape in double quotes; use single"),
    "duplicate": ("a: 1\nb: {c: 1, c: 2}\n", 2, 11, "duplicate key 'c'"),
    "duplicate, one quoted": ('a: 1\n"a": 2\n', 2, 1, "duplicate key 'a'"),
    "anchor": ("a: &x 1\n", 1, 4, "anchors"),
    "anchor on a list": ("a: &x [1]\n", 1, 4, "anchors"),
    "alias": ("a: 1\nb: *x\n", 2, 4, "aliases"),
    "merge key": ("a:\n  <<: {b: 1}\n", 2, 3, "merge keys"),
    "tag": ("a: !!python/object/apply:os.system [ls]\n", 1, 4, "tags"),
    "harmless tag": ("a: !!str 1\n", 1, 4, "tags"),
    "own tag": ("a: [1, !x 2]\n", 1, 8, "tags"),
    "second document": ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
    "empty second document": ("a: 1\n---\n", 2, 1, "second document"),
    "tab indentation": ("a:\n\tb: 1\n", 2, 1, "tab"),
    "tab after a space": ("a:\n  b: 1\n \tc: 1\n", 3, 2, "tab"),
    "unclosed bracket": ("a: 1\nb: [1,\n  2\nc: 3\n", 2, 4, "never closed"),
    "unclosed brace": ("a: {b: 1\n", 1, 4, "never closed"),
    "inner bracket": ("a: [1, [2, 3]\n", 1, 4, "never closed"),
    "unclosed quote": ('a: 1\nb: "x\nc: 2\n', 2, 4, "never closed"),
    "list as key": ("a: 1\n? [1]\n: 2\n", 2, 3, "key"),
    "wrong indentation": ("a: 1\n b: 2\n", 2, 3, "mapping values"),
    "colon in a value": ("a: b: c\n", 1, 5, "mapping values"),
    "control character": ("a: 1\nb: \x07\n", 2, 4, "character"),
    "version": ("%YAML 3.0\n---\na: 1\n", 1, 1, "version"),
}


@pytest.mark.parametrize(("text", "line", "column", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_with_its_place(text, line, column, words):
    found = problem(text)
    assert found.place == f"a.yaml:{line}:{column}"
    assert words in found.message


def test_the_line_and_a_caret_are_shown():
    with pytest.raises(ConfigError) as caught:
        yaml_source.parse("a: 1\nbc: [1, &x 2]\n", "a.yaml")
    head, line, caret = str(caught.value).splitlines()
    assert head.startswith("a.yaml:2:9: anchors")
    assert line == "    bc: [1, &x 2]"
    assert caret == "            ^"
    assert line[caret.index("^")] == "&"


@pytest.mark.parametrize("lead", ["", "\t", "x" * 500 + ": "])
def test_the_caret_points_at_its_character_in_any_line(lead):
    excerpt = yaml_source.SourceMap("a.yaml", [f"{lead}!{'y' * 300}"])._at("", "", 1, len(lead) + 1).excerpt()
    assert excerpt[0][excerpt[1].index("^")] == "!"
    assert max(map(len, excerpt)) <= 110


@pytest.mark.parametrize("text", ['"\\e[31mred": 1\n"\\e[31mred": 2\n', "a: \x1b[31m\n"])
def test_a_message_moves_no_cursor(text):
    """Escape codes of a file never reach the terminal."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert "\x1b" not in str(caught.value)


def test_lone_surrogates_are_refused():
    assert problem('a: "\\ud800"\n').place == "a.yaml:1:4"
    assert problem('a: 1\n"\\udfff": 1\n').place == "a.yaml:2:1"


@pytest.mark.parametrize("text", ["a: !{} 1", "{{'{0}': 1, '{0}': 2}}", '{{"{1}": 1, "{1}": 2}}', "? {}{}\n: 1"])
def test_a_message_stays_short_for_any_file(text):
    with pytest.raises(ConfigError) as caught:
        read(text.format("x" * 4000, "\\a" * 4000))
    assert max(map(len, str(caught.value).splitlines())) < 200


@pytest.mark.parametrize("code", ["99999999", "FFFFFFFF", "00110000"])
def test_an_impossible_character_is_an_ordinary_error(code):
    assert "a.yaml" in str(problem(f'a: "\\U{code}"\n'))


# ---------------------------------------------------------------- caps


def test_size_cap():
    longest = "a: 1\n#" + "x" * (yaml_source.MAX_BYTES - 6)
    assert read(longest) == {"a": 1}
    assert "64 kB" in problem(longest + "x").message
    assert "64 kB" in problem("a: 1\n#" + "é" * (yaml_source.MAX_BYTES // 2)).message, (
        "bytes are counted, not characters"
    )


@pytest.mark.parametrize("character", ["x", "\U0010ffff", "\x85"])
def test_text_cap(character):
    """The longest text still fits when it is dumped with escapes and parsed again."""
    longest = (
        {character * yaml_source.MAX_TEXT: character * yaml_source.MAX_TEXT}
        if character == "x"
        else {"a": character * yaml_source.MAX_TEXT}
    )
    assert read(yaml_source.dump(longest)) == longest
    assert "4096 characters" in problem(f"a: {'x' * yaml_source.MAX_TEXT}x").message
    assert "4096 characters" in problem(f"? {'x' * yaml_source.MAX_TEXT}x\n: 1").message


def test_depth_cap():
    assert read("[" * 16 + "]" * 16) is not None
    assert "16 levels" in problem("[" * 17 + "]" * 17).message
    assert "16 levels" in problem("{a: " * 16 + "1" + "}" * 16).message


def test_node_cap():
    assert len(read("[" + "1," * 4999 + "]")) == 4999
    assert "5000 values" in problem("[" + "1," * 5000 + "]").message


HOSTILE = {
    "brackets": "[" * 65_000,
    "braces": "{" * 65_000,
    "pairs": "{a: " * 16_000,
    "dashes": "- " * 32_000,
    "question marks": "? " * 32_000,
    "colons": ": " * 32_000,
    "anchors": "&a " * 20_000,
    "bangs": "!" * 65_000,
    "comments": "#\n" * 32_000,
    "percents": "%" * 65_000,
    "quotes": "'" * 65_000,
    "escapes": '"' + "\\n" * 32_000 + '"',
    "breaks": '"' + "\n" * 64_000 + '"',
    "words": "a " * 32_000,
    "folded": ">\n" + " a\n\n" * 16_000,
    "laughs": "a: &a [1,1]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(1000)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_takes_at_most_a_second(text):
    begun = time.process_time()
    with contextlib.suppress(ConfigError):
        read(text)
    assert time.process_time() - begun < 1


# ---------------------------------------------------------------- inverse of dump

NUMBERS = st.integers(-(10**39), 10**39) | st.floats(allow_nan=False)
WORDS = st.sampled_from(
    [
        "1e-3",
        "no",
        "010",
        "true",
        "~",
        "null",
        ".inf",
        "",
        " ",
        "- a",
        "a: b",
        "#",
        "!x",
        "&a",
        "*a",
        "---",
        "|",
        "<<",
        "\t",
    ]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | WORDS
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(TEXT.filter(lambda key: key != "<<"), inner, max_size=5)
    ),
    max_leaves=20,
)


def same(one, other):
    """Equal in value and type; `==` ignores the type: 1 == 1.0 == True."""
    if isinstance(one, dict):
        return type(other) is dict and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return type(other) is list and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@settings(max_examples=200)
@example({"a": "x\x85y", "b": "\u2028", "c\u2029": 1})
@example(["1e-3", 1e-3, 1e16, "1\n", "\n1", " 1", "a" * 200, "word " * 60])
@example({"": {"x" * 200: []}, "y": {}})
@given(VALUES)
def test_parse_inverts_dump(value):
    text = yaml_source.dump(value)
    assert same(read(text), value), text


def test_pyyaml_reads_what_dump_writes():
    value = {"lr": 0.001, "hidden": [256, 128], "name": "mlp", "flag": False, "nothing": None}
    text = yaml_source.dump(value)
    assert yaml.safe_load(text) == value
    assert "hidden: [256, 128]\n" in text
    assert list(read(text)) == list(value), "in the same order"


# ---------------------------------------------------------------- nothing else comes out

SIGNS = [
    *"[]{},:-?&*!|>'\"%@`#~ab1.\n\t\\ ",
    "  ",
    ": ",
    "- ",
    "\n  ",
    "---\n",
    "...\n",
    "<<: ",
    "1e9",
    "\\U",
    "\ufeff",
]
PIECES = st.lists(st.sampled_from(SIGNS), max_size=40).map("".join)


@settings(max_examples=400)
@given(st.text(max_size=200) | PIECES)
def test_any_text_is_read_or_refused(text):
    begun = time.process_time()
    try:
        value, where = yaml_source.parse(text, "a.yaml")
    except ConfigError as refused:
        shown = str(refused)
        assert shown.startswith("a.yaml")
        assert len(shown.splitlines()) <= 10
    else:
        assert isinstance(value, dict | list | str | int | float | bool | None)
        assert all(line >= 1 and column >= 1 for line, column in where.values.values())
    assert time.process_time() - begun < 1


def test_a_message_cuts_a_text_after_escaping_it():
    assert yaml_source.truncate("\U00036dd3" * 20, 60) == ("\\U00036dd3" * 6)[:57] + "..."
    assert yaml_source.truncate("\x1b" * 15, 60) == "\\x1b" * 15
