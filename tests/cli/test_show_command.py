"""nnx show: its output on a terminal, in a pipe, and as JSON."""

import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from nnx import config
from nnx.datasets import Source, Split, mnist
from nnx.events import Choice
from nnx.run import preview as previews
from nnx.terminal import console as console_view
from nnx.terminal import preview as preview_view

QUICK = ("digits_mlp", "--no-trial")


def blank_mnist(config, folder):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (7000, 1, 28, 28), dtype=np.uint8), np.arange(7000) % 10)
    return Source(split, lambda: split.take(np.arange(50)), tuple("0123456789"))


@cache
def preview_of(recipe):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "load", blank_mnist)
        return previews.preview_config(config.load(recipe), seconds=0.05)


def draw(preview, width, *, terminal=True, **options):
    """The printed lines, on a terminal of this width or in a pipe."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    options = {"_environ": {}, "color_system": "truecolor", **options}
    width = width if terminal else console_view.PIPE_WIDTH
    console = Console(file=file, force_terminal=terminal, width=width, height=40, **options)
    preview_view.print_preview(preview, console)
    file.flush()
    return file.buffer.getvalue().decode(file.encoding).splitlines()


def plain(lines):
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


def section(lines, title):
    """The lines below a title, up to the next blank one."""
    begin = lines.index(title) + 1
    return lines[begin : lines.index("", begin) if "" in lines[begin:] else None]


def settings(lines):
    return "\n".join(lines[: lines.index("data")])


# ---------------------------------------------------------------- the command


def test_a_pipe_gets_whole_plain_lines_and_nothing_is_written(nnx, tmp_path, monkeypatch):
    monkeypatch.setattr("nnx.cli.show.SECONDS", 0.1)
    result = nnx("show", "digits_cnn")
    assert result.code == 0, result.err
    assert result.err == "training a temporary copy for 0.1 s ...\n"
    assert "\x1b" not in result.out
    lines = result.out.splitlines()
    assert lines[0] == "# all settings of digits_cnn; this config gives the same run"
    assert config.load("digits_cnn").to_yaml() in result.out
    for title in ("data", "model", "run", "forecast"):
        assert title in lines
    assert list(tmp_path.iterdir()) == []


def test_set_and_device_override_the_config(nnx):
    result = nnx("show", *QUICK, "--set", "model.hidden=[5]", "--device", "cpu", "-q")
    parsed = config.parse(settings(result.out.splitlines()), "copied.yaml")
    assert parsed.model.hidden == [5]
    assert parsed.device == "cpu"
    assert result.err == ""
    assert "forecast" not in result.out


def test_json(nnx, monkeypatch):
    monkeypatch.setattr("nnx.cli.show.SECONDS", 0.1)
    result = nnx("show", "digits_rnn", "--json", "-q")
    assert result.err == ""
    document = json.loads(result.out)
    assert config.from_dict(document["config"], "it") == config.load("digits_rnn")
    data = document["dataset"]
    assert data.keys() == {
        "name",
        "path",
        "samples",
        "classes",
        "shape",
        "dtype",
        "size",
        "mean",
        "std",
        "features",
        "duplicates",
        "duplicate_examples",
        "notes",
    }
    assert data["samples"] == {"train": 1150, "validation": 287, "test": 360}
    assert data["classes"][3] == {"label": "3", "train": 117, "validation": 29}
    assert sum(row["train"] for row in data["classes"]) == 1150
    assert (data["shape"], data["dtype"], data["duplicates"], data["features"]) == ([1, 8, 8], "uint8", 0, [])
    model = document["model"]
    assert model.keys() == {"layers", "parameters", "flops"}
    assert all(row.keys() == {"name", "kind", "shape", "parameters", "flops"} for row in model["layers"])
    assert sum(row["flops"] for row in model["layers"]) == model["flops"]
    assert [choice["what"] for choice in document["choices"]] == ["device", "precision", "threads", "step", "data path"]
    assert all(choice["reason"] for choice in document["choices"])
    forecast = document["forecast"]
    assert forecast["seconds"] == pytest.approx(
        forecast["start"] + forecast["epochs"] * (forecast["training"] + forecast["validation"]) + forecast["end"]
    )
    assert document["warnings"] == []
    assert json.loads(nnx("show", *QUICK, "--json").out)["forecast"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("digits_mlp", "--set", "model.hiden=[3]"),
        ("digits_mlp", "--set", "model={name: transformer, patch: 3}"),
        ("digits_mlp", "--set", "loss.class_weights=[1, 2]"),
        ("digits_mlp", "--device", "cuda:77"),
        ("digits_mlp", "--set", "dataset=cifar10", "--data-dir", "nowhere"),
        ("nothing",),
    ],
)
def test_wrong_input_has_the_same_message_as_in_train(nnx, tmp_path, monkeypatch, words):
    monkeypatch.setenv("NNX_OFFLINE", "1")
    result = nnx("show", *words)
    assert (result.code, result.out, result.err) == (2, "", nnx("train", *words).err)
    assert result.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_is_a_warning(nnx, monkeypatch):
    monkeypatch.setattr("nnx.cli.show.SECONDS", 0.1)
    result = nnx("show", "digits_mlp", "--set", "optimizer={name: sgd, lr: 1000}", "-q")
    assert result.code == 0
    assert re.fullmatch(r"warning: in the trial, step \d+: .*Lower optimizer.lr.*\n", result.err)


def test_ctrl_c_ends_it_at_once(tmp_path, environment):
    words = [sys.executable, "-m", "nnx", "show", "digits_transformer"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline().startswith("training a temporary copy")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "stopped; nothing was written\n")


def test_a_pipe_that_is_closed_is_141(tmp_path, environment):
    words = [sys.executable, "-m", "nnx", "show", *QUICK]
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, b"")


# ---------------------------------------------------------------- the output


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("recipe", config.recipes())
def test_previews_of_recipes_fit_the_terminal_uncut(recipe, width):
    preview = preview_of(recipe)
    lines = plain(draw(preview, width))
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "\n".join(lines)
    assert (
        config.parse(settings(lines), "copied.yaml") == preview.config
    )  # copied from the terminal, it gives the same run
    whole = " ".join(" ".join(section(lines, "run")).split())
    for choice in preview.choices:
        for word in choice.reason.split():
            assert word in whole
    for layer in preview.layers:
        assert any(
            line.split()[0] == layer.name and line.split()[-1] == f"{layer.flops:,}" for line in section(lines, "model")
        )


def test_a_long_reason_wraps_in_its_column():
    preview = replace(preview_of("digits_mlp"), choices=(Choice("device", "cpu", "no " * 40), Choice("x", "y", "z")))
    lines = section(plain(draw(preview, 60)), "run")
    assert lines[0].startswith("device  cpu  no no")
    assert re.match(r" {13}no", lines[1])
    assert lines[-1] == "x       y    z"
    assert len(section(plain(draw(preview, 60, terminal=False)), "run")) == 2  # a pipe gets one line for each


@pytest.mark.parametrize(
    ("recipe", "width", "rows", "height"),
    [
        ("digits_mlp", 80, 2, 4),
        ("digits_mlp", 100, 1, 4),
        ("mnist_mlp", 80, 2, 7),
        ("mnist_mlp", 160, 1, 7),
        ("mnist_mlp", 20, 10, 7),
    ],
)
def test_thumbnails_are_one_of_each_class_in_rows_that_fit(recipe, width, rows, height):
    lines = draw(preview_of(recipe), width)
    blocks = [line for line in lines if "▀" in line]
    assert len(blocks) == rows * height
    a_row = 10 // rows
    side = {"digits_mlp": 8, "mnist_mlp": 14}[recipe]
    assert all(line.count("▀") == a_row * side for line in blocks)
    assert all(cell_len(line) <= width for line in plain(blocks))
    labels = [
        line.split() for line, below in zip(plain(lines), lines[1:], strict=False) if "▀" in below and "▀" not in line
    ]
    assert labels == [list("0123456789")[start : start + a_row] for start in range(0, 10, a_row)]


def test_without_colours_thumbnails_are_ascii_shades():
    preview = preview_of("digits_mlp")
    for lines in (draw(preview, 80, color_system=None, terminal=False), plain(draw(preview, 80, no_color=True))):
        text = "\n".join(lines)
        assert "▀" not in text
        assert len(re.findall(r"^[ .:\-=+*#%@]{10,}$", text, re.MULTILINE)) == 8
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|48|9[0-7])[0-9;]*m", "\n".join(draw(preview, 80, no_color=True)))
    assert re.search(r"\x1b\[[0-9;]*(38|48)[0-9;]*m", "\n".join(draw(preview, 80)))  # the control: with colours


def with_data(**changes):
    preview = preview_of("digits_mlp")
    return replace(preview, data=replace(preview.data, **changes))


def test_bars_are_as_long_as_their_classes_are_large():
    counts = {"train": (30, 15, 1, 0), "validation": (3, 2, 1, 0)}
    lines = plain(draw(with_data(classes=("a", "b", "c", "d"), counts=counts), 80))
    bars = {line.split()[0]: line.count("━") for line in lines if re.match(r"[abcd] ", line)}
    assert bars == {"a": 30, "b": 15, "c": 1, "d": 0}


def test_many_classes_are_a_sentence():
    counts = {"train": tuple(range(100, 147)), "validation": (0,) * 47}
    lines = plain(draw(with_data(classes=tuple(f"c{k}" for k in range(47)), counts=counts), 80))
    assert "47 classes with 100 (c0) to 146 (c46) training samples each, median 123" in lines
    assert "━" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "none"), (12, "12 of 360 test samples are also in the training data"), (None, "not counted")],
)
def test_duplicates_are_printed(count, text):
    lines = plain(draw(with_data(duplicates=count), 80))
    assert any(re.match(rf"duplicates +{text}", line) for line in lines)


def test_notes_of_the_dataset_are_printed():
    lines = plain(draw(with_data(notes=(Choice("split", "a fifth", "no test folder"),)), 100))
    assert any(re.match("split +a fifth +no test folder", line) for line in lines)


def test_the_features_of_a_table_are_listed():
    names = tuple(f"width {n}" for n in range(25))
    examples = tuple(previews.Example(label, np.full(25, k, np.float32)) for k, label in enumerate("abcd"))
    lines = plain(
        draw(with_data(shape=(25,), features=names, mean=(1.5,) * 25, std=(0.25,) * 25, examples=examples), 80)
    )
    rows = [line.split() for line in lines if line.startswith("width")]
    assert rows == [["width", str(n), "1.5", "0.25", "0", "1", "2"] for n in range(20)]
    assert "and 5 more" in lines
    assert not any(re.match("mean", line) for line in lines)


def test_an_image_of_three_channels_is_drawn_in_colour():
    red = np.zeros((3, 4, 4), np.uint8)
    red[0] = 255
    lines = draw(with_data(shape=(3, 4, 4), examples=(previews.Example("a very long name", red),)), 80)
    assert sum("38;2;255;0;0;48;2;255;0;0" in line for line in lines) == 2
    assert "a v…" in plain(lines)
    for channels in (2, 4):  # other numbers of channels are drawn as gray or from the first three
        draw(
            with_data(shape=(channels, 4, 4), examples=(previews.Example("x", np.zeros((channels, 4, 4), np.uint8)),)),
            80,
        )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00045, "0.45 ms"),
        (0.0461, "46 ms"),
        (1.234, "1.2 s"),
        (99.6, "100 s"),
        (150, "2.5 min"),
        (7300, "2 h"),
        (10**6, "11.6 days"),
    ],
)
def test_durations_are_two_digits(seconds, text):
    assert preview_view._duration(seconds) == text


def test_a_run_with_patience_takes_at_most_its_epochs():
    preview = preview_of("digits_mlp")
    settings = preview.config.train.model_copy(update={"patience": 3})
    patient = replace(preview, config=preview.config.model_copy(update={"train": settings}))
    assert "at most 40 epochs" in "\n".join(draw(patient, 120))
    assert "at most" not in "\n".join(draw(preview, 120))
