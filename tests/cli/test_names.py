"""Names of files and classes with control characters, formulas or bytes that are not UTF-8."""

import os

import pytest

from nnx.errors import printable
from nnx.terminal.predictions import as_csv

BAD = os.fsdecode(b"bad\xff")
ESCAPE = "\x1b[31mred"


def test_control_characters_are_escaped():
    assert printable("a\x1b[31m\n\r\x00\u202eb\tc") == "a\\x1b[31m\\n\\r\\x00\\u202eb c"
    assert printable(BAD) == "bad\\xff"
    assert printable("größe ☃") == "größe ☃"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "digits_mlp", "--out", BAD),
        ("train", "digits_mlp", "--resume", BAD),
        ("train", f"{BAD}.yaml"),
        ("init", "--out", BAD),
        ("eval", "nothing", "--out", BAD),
        ("explain", "nothing", "--out", BAD),
        ("doctor", "seven.png", "--out", f"{BAD}.png"),
    ],
)
def test_a_name_that_is_not_utf8_is_2_and_nothing_is_written(nnx, tmp_path, words):
    result = nnx(*words)
    assert result.code == 2
    assert result.err.endswith(": not a UTF-8 name; rename it, or name another\n")
    assert "bad\\xff" in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("eval",), ("predict", "r"), ("check",), ("show",), ("train",), ("train", "--resume"), ("verify",)]
)
def test_a_name_can_not_forge_a_line(nnx, tmp_path, words):
    result = nnx(*words, f"{ESCAPE}\nerror: forged", *(["x"] if words[0] == "predict" else []))
    assert result.code == 2
    assert "\x1b" not in result.err
    assert len(result.err.splitlines()) == 1


def test_names_in_a_run_are_escaped_wherever_they_are_printed(nnx, tmp_path):
    out = f"{ESCAPE}\nrun"
    assert nnx("train", "digits_mlp", "--set", "train.epochs=1", "--set", "train.report=false", "--out", out).code == 0
    for words in (("eval",), ("verify",), ("explain", "--only", "filters"), ("trace",)):
        result = nnx(words[0], out, *words[1:])
        assert result.code == 0, result.err
        assert "\x1b" not in result.out + result.err
    result = nnx("train", "--resume", out, "--set", "train.epochs=2")
    assert "\x1b" not in result.out + result.err
    assert "\\x1b[31mred\\nrun" in result.out
    assert "\\x1b[31mred\\nrun" in result.err


def test_csv_is_safe_for_a_terminal_and_a_spreadsheet():
    names = {
        "=1+1": "'=1+1",
        "+a": "'+a",
        "@a": "'@a",
        "-a": "'-a",
        " =a": "' =a",
        "-1": "-1",
        "+2.5e-3": "+2.5e-3",
        "a=b": "a=b",
        ESCAPE: "\\x1b[31mred",
        "a\nb": "a\\nb",
    }
    for name, cell in names.items():
        top = [{"label": name, "probability": 0.5}]
        assert as_csv([{"input": name, "top": top}]).splitlines() == [
            "input,label,probability",
            f"{cell},{cell},0.5",
        ]
    prepared = as_csv([{"input": "a", "top": [], "prepared": ["=x"]}])
    assert prepared.splitlines()[1] == "a,'=x"


def test_a_name_that_is_too_long_is_2_at_the_start(nnx, tmp_path):
    for command in (("train", "digits_mlp"), ("init",), ("doctor", "seven.png")):
        result = nnx(*command, "--out", "a" * 256)
        assert result.code == 2
        assert "a name in it has more than 255 bytes; use a shorter one" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train", ""), "train"),
        (("train", "digits_mlp", "--out", ""), "--out"),
        (("train", "digits_mlp", "--out="), "--out"),
        (("init", "--out", ""), "--out"),
        (("train", "--resume", ""), "--resume"),
        (("predict", "nothing.pt", ""), "nothing.pt"),
        (("",), "nnx"),
    ],
)
def test_an_empty_argument_is_no_folder(nnx, tmp_path, words, named):
    result = nnx(*words)
    assert (result.code, result.err) == (2, f"error: {named}: is followed by nothing; is a variable unset?\n")
    assert not list(tmp_path.iterdir())
