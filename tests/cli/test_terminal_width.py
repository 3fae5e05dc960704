"""What commands print on terminals of 60, 80 and 120 columns: lines break between words."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from nnx import formatting

WIDTHS = [60, 80, 120]
# Runs each command in a fork of a process that has imported torch already: 0.3 instead of 2 s a command
RUN_ALL = """
import json, os, sys
import matplotlib.figure, scipy.optimize, sklearn, torch
import nnx.cli
for words in json.loads(sys.argv[1]):
    print("\\x1e", end="", flush=True)
    child = os.fork()
    if not child:
        sys.argv = ["nnx", *words]
        nnx.cli.main()
        os._exit(0)
    os.waitpid(child, 0)
"""


@dataclass
class Terminal:
    """Runs commands in the folder `cwd`, on a terminal and in a pipe."""

    cwd: str
    environment: dict[str, str]

    def run(self, width, *words):
        """What `nnx words` prints on a terminal of `width` columns, as lines without escape sequences."""
        return lines_of(self._run(width, ["-m", "nnx", *words]))

    def run_all(self, width, commands):
        """What each of the `commands` prints there."""
        printed = self._run(width, ["-c", RUN_ALL, json.dumps(commands)])
        return [lines_of(each) for each in printed.split("\x1e")[1:]]

    def _run(self, width, arguments):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        command = [sys.executable, "-P", *arguments]
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=self.cwd, env=self.environment)
        os.close(slave)
        printed = b""
        try:
            while piece := os.read(master, 65536):
                printed += piece
        except OSError:  # the end, on Linux
            pass
        os.close(master)
        process.wait()
        return printed.decode()

    def pipe_all(self, commands):
        """The lines that each of the `commands` prints into a pipe."""
        command = [sys.executable, "-P", "-c", RUN_ALL, json.dumps(commands)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.cwd, env=self.environment
        )
        return [each.splitlines() for each in done.stdout.split("\x1e")[1:]]

    def pipe(self, *words):
        """The lines that `nnx words` prints into a pipe."""
        command = [sys.executable, "-P", "-m", "nnx", *words]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.cwd, env=self.environment
        )
        return done.stdout.splitlines()


@pytest.fixture
def terminal(tmp_path, environment):
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "NO_COLOR")}
    return Terminal(str(tmp_path), {**environment, "TERM": "xterm-256color"})


def lines_of(printed):
    """The lines of what was printed on a terminal, without escape sequences."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)
    return re.split("[\r\n]+", text.strip("\r\n"))


def words(lines):
    return " ".join(lines).split()


def assert_fits(lines, width):
    """No line is wider than the terminal, so that it breaks none, and nothing is cut."""
    assert max(map(cell_len, lines)) <= width, max(lines, key=cell_len)
    assert "…" not in "".join(lines)


# ---------------------------------------------------------------- one text


def test_words_longer_than_the_width_stay_whole():
    assert formatting.wrap("at /a/long/path/of/a/run: no such file", 12) == [
        "at",
        "/a/long/path/of/a/run:",
        "no such file",
    ]
    assert formatting.wrap("   x y", 4) == ["   x", "y"]
    assert formatting.wrap("日本 日本", 8) == ["日本", "日本"]
    assert formatting.wrap("one\n\n two", 80) == ["one", "", " two"]


# ---------------------------------------------------------------- errors, help, tables


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "command",
    [
        ["check", "digits_mpl"],
        ["train", "digits_mlp", "--seeed", "1"],
        ["check", "digits_mlp", "--set", "model.activation=reluu", "--set", "train.epochs=-1"],
        ["list", "cache", "extra"],
    ],
)
def test_errors_break_between_words(terminal, command, width):
    lines = terminal.run(width, *command)
    assert lines[0].startswith("error: ")
    assert_fits(lines, width)
    assert words(lines) == words(terminal.pipe(*command))


COMMANDS = [
    "train",
    "eval",
    "predict",
    "explain",
    "trace",
    "init",
    "list",
    "show",
    "verify",
    "check",
    "schema",
    "doctor",
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_breaks_between_words(nnx, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", "1000")
    whole = nnx(*command.split(), "--help").out.splitlines()
    monkeypatch.setenv("COLUMNS", str(width))
    lines = nnx(*command.split(), "--help").out.splitlines()
    assert_fits(lines, width)
    assert {word for word in words(whole) if word[0] not in "╭╰─│"} <= set(words(lines))


def test_help_joins_the_lines_of_a_docstring(nnx, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert "calibration error, the confusion matrix, and precision, recall and F1" in nnx("eval", "--help").out


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_break_between_words(terminal, width):
    lines = terminal.run(width, "list")
    assert_fits(lines, width)
    assert sorted(words(lines)) == sorted(words(terminal.pipe("list")))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_cache_and_classes_of_long_names_break_between_words(terminal, tmp_path, width):
    names = [f"a class of the beetles of the Amazon, number {number}" for number in range(2)]
    for name in names:
        (tmp_path / "beetles" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "beetles" / name / f"{number}.png")
    (tmp_path / "c.yaml").write_text("dataset: {name: folder, path: beetles, validation: 2}\nmodel: mlp\n")
    terminal.environment["NNX_CACHE_DIR"] = "cache"
    shown = terminal.run(width, "show", "c.yaml", "--no-trial")
    table = shown[shown.index(next(line for line in shown if line.startswith("class "))) :]
    assert max(map(cell_len, shown)) <= width
    assert table[0].split() == ["class", "train", "validation"]
    assert {"beetles", "Amazon,", "number"} <= set(words(table))
    lines = terminal.run(width, "list", "cache")
    assert_fits(lines, width)


def test_a_trace_in_a_pipe_is_as_wide_as_columns_says(terminal):
    def width():
        return max(map(cell_len, terminal.pipe("trace", "digits_mlp")))

    assert 80 < width() <= 100
    terminal.environment["COLUMNS"] = "70"
    assert width() <= 70


def test_lists_in_a_pipe_have_a_line_for_each(terminal):
    lines = terminal.pipe("list")
    assert any(line.startswith("mnist_cnn_fast") and line.endswith("label smoothing.") for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_doctor_breaks_between_words(terminal, width):
    terminal.environment["NNX_CACHE_DIR"] = "cache"  # a path too long for its column would begin at the margin
    lines = terminal.run(width, "doctor")
    assert_fits(lines, width)
    assert all(line[0] in "✓·!✗ " for line in lines)
    packages = " ".join(terminal.pipe("doctor")[1].split()[2:])
    assert packages in " ".join(words(lines))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("recipe", ["digits_mlp", "digits_cnn"])
def test_a_trace_keeps_the_titles_of_its_columns_whole(terminal, recipe, width):
    lines = terminal.run(width, "trace", recipe)
    assert_fits(lines, width)
    assert {"|gradient|", "largest"} <= set(words(lines))
    assert ("|weights|" in words(lines)) or "|weights" not in " ".join(lines)


def test_a_run_its_preview_and_its_evaluation_break_between_words(terminal):
    settings = ["--set", "train.epochs=2", "--set", "train.report=false"]
    lines = terminal.run(60, "train", "digits_mlp", *settings, "--out", "r")
    assert_fits(lines, 60)
    assert "threads" in words(lines)
    assert_fits(terminal.run(60, "show", "digits_mlp", "--no-trial"), 60)
    piped = terminal.pipe("show", "digits_mlp", "--no-trial")
    rows = [line for line in piped if line.startswith("class ") or "━" in line]
    assert rows
    assert [line for line in rows if line != line.rstrip()] == []
    assert_fits(terminal.run(60, "eval", "r"), 60)


def test_a_dumb_terminal_has_the_width_that_it_has(terminal):
    terminal.environment["TERM"] = "dumb"
    settings = ["--set", "train.epochs=1", "--set", "train.report=false"]
    lines, trace = terminal.run_all(60, [["train", "digits_mlp", *settings, "--out", "r"], ["trace", "r"]])
    assert_fits(lines, 60)
    assert "autograd's" in words(lines)
    assert_fits(trace, 60)


@pytest.fixture
def long_names(terminal, tmp_path):
    """Of two classes with long names, a run `r` and the image `photographs/...`, whose name is long, too."""
    names = ["Chrysochroa fulgidissima, male, pinned", "Chrysochroa fulgidissima, female, pinned"]
    for brightness, name in zip((0, 128), names, strict=True):
        (tmp_path / "beetles" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 128, (8, 8), np.uint8) + np.uint8(brightness)
            Image.fromarray(pixels).save(tmp_path / "beetles" / name / f"{number}.png")
    image = tmp_path / "photographs" / "IMG_20240503_112233_BURST_COVER.png"
    image.parent.mkdir()
    Image.fromarray(np.zeros((30, 40), np.uint8) + np.uint8(200)).save(image)
    (tmp_path / "c.yaml").write_text(
        "dataset: {name: folder, path: beetles, validation: 8, test: 8}\nmodel: mlp\n"
        "train: {epochs: 2, report: false}\n"
    )
    done = terminal.pipe("train", "c.yaml", "--out", "r")
    assert any(line.startswith("health") for line in done), done
    return names, str(image.relative_to(tmp_path))


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_of_classes_and_files_break_between_words(terminal, long_names, width):
    names, image = long_names
    for command in (["eval", "r"], ["show", "c.yaml", "--no-trial"]):
        lines = terminal.run(width, *command)
        assert all(cell_len(line) <= width or len(line.split()) == 1 for line in lines), command
        assert {"fulgidissima,", "female,", "pinned"} <= set(words(lines)), command
    predicted = terminal.run(width, "predict", "r", image)
    assert max(map(cell_len, predicted)) <= width
    assert "prepared" not in {line.strip() for line in predicted}
    assert image in predicted, "whole, on a line of its own"
    for name in names:
        assert set(name.split()) <= set(words(predicted))
    assert re.search(r"\d+\.\d\d %$", "\n".join(terminal.run(width, "doctor", image, "--checkpoint", "r")), re.M)


# ---------------------------------------------------------------- all commands

KINDS = ["recipes", "models", "datasets", "losses", "optimizers", "schedules", "formats", "explainers"]
# Printed only on a terminal (its own check, the picture beside the image), or only in layouts for narrow ones
ELSEWHERE = {
    *("columns", "tables", "need", "utf-0"),
    *("Beside", "image", "orange", "blue", "positive", "see", "Tinted", "receptive", "field"),
    *("come", "product", "value", "p(target", "descent"),
}
QUICK = ["--set", "train.epochs=2", "-q"]
EVERYTHING = [
    ["train", "digits_mlp", *QUICK, "--out", "run"],
    ["train", "--resume", "run", "--set", "train.epochs=3", "-q"],
    ["train", "digits_mlp", "--set", "optimizer.lr=1e9", "--set", "model.activation=identity", "--out", "wrong"],
    ["eval", "run"],
    ["eval", "run", "--split", "validation"],
    ["predict", "run", "photograph.png"],
    ["show", "digits_mlp", "--no-trial"],
    ["show", "iris_mlp", "--no-trial"],
    ["list"],
    *(["list", kind] for kind in KINDS),
    ["check", "digits_mlp", "digits_cnn"],
    ["check", "digits_mlp", "--set", "model.hiden=[8]"],
    ["doctor"],
    ["doctor", "photograph.png"],
    ["doctor", "photograph.png", "--checkpoint", "run"],
    ["explain", "run", "--only", "filters"],
    ["trace", "run"],
    *(["trace", recipe] for recipe in ("digits_mlp", "digits_cnn", "digits_rnn", "digits_transformer", "iris_mlp")),
    ["trace", "photographs.yaml"],
    ["verify", "run"],
    ["init", "digits_mlp"],
    ["export", "run", "--format", "numpy"],
    ["train"],
    *([command, "--help"] for command in (*COMMANDS, "export")),
    ["--help"],
]


@pytest.fixture
def photographs(tmp_path):
    """An image, and a config of images that are as wide as MNIST's."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 28, 28), np.uint8)
    pixels[:, :, :4] = 0
    for name, images in zip(("bright stars", "dark clouds"), pixels, strict=True):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "photographs" / name / f"{number}.png")
    Image.fromarray(pixels[0, 0]).save(tmp_path / "photograph.png")
    (tmp_path / "photographs.yaml").write_text(
        "dataset: {name: folder, path: photographs, validation: 4, test: 4}\nmodel: mlp\n"
    )


def plain_words(lines):
    """The words, without punctuation around them, bars and pictures; each number is 0, as times and speeds differ."""
    each = (re.sub(r"\d+(,\d{3})*", "0", word.strip(".,:;()[]")) for word in words(lines))
    return {word for word in each if re.search("[A-Za-z0-9]", word)}


@pytest.mark.parametrize("width", [60, *(pytest.param(width, marks=pytest.mark.slow) for width in (80, 120))])
def test_every_command_breaks_between_words(terminal, tmp_path, photographs, width):
    terminal.environment |= {"NNX_CACHE_DIR": "cache", "COLUMNS": "2000"}
    (tmp_path / "piped").mkdir()
    (tmp_path / "piped" / "photographs").symlink_to(tmp_path / "photographs")
    for name in ("photograph.png", "photographs.yaml"):
        (tmp_path / "piped" / name).symlink_to(tmp_path / name)
    whole = replace(terminal, cwd=str(tmp_path / "piped")).pipe_all(EVERYTHING)
    del terminal.environment["COLUMNS"]
    wrong = []
    printed = terminal.run_all(width, EVERYTHING)
    for command, lines, expected in zip(EVERYTHING, printed, whole, strict=True):
        wide = [line for line in lines if cell_len(line) > width and len(line.split()) > 1]
        broken = plain_words(lines) - plain_words(expected) - ELSEWHERE
        cut = [line for line in lines if "…" in line]
        wrapped = []
        if command[0] == "trace" and "--help" not in command:  # of a row's continuation, the first cells are empty
            wrapped = [line for line in lines if re.match(r" {14,}[\w|]", line) and line.strip() != "error"]
            wrapped += [line for line in lines if re.search(r"\brow \d+,(  |$)", line)]
        wrong += [f"{' '.join(command)}: {found}" for found in (wide, sorted(broken), cut, wrapped) if found]
    assert wrong == [], "\n".join(wrong)
