"""Printed output: in a pipe, on a terminal, and the figures in the tables."""

import io
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nnx.errors import InputError
from nnx.events import Choice, Epoch, Event, Finished, LayerSummary, Started, Step
from nnx.terminal import console, train

SUMMARY = {
    "run": "runs/" + "a-long-name-" * 12,
    "checkpoint": "runs/" + "a-long-name-" * 12 + "/checkpoint.pt",
    "report": "runs/" + "a-long-name-" * 12 + "/report.html",
    "epochs": 3,
    "best_epoch": 2,
    "val_accuracy": 0.98124,
    "test_accuracy": 0.9794,
    "test_loss": 0.065432,
    "test_samples": 10_000,
    "parameters": 235_146,
    "train_seconds": 12.34,
    "samples_per_second": 97_234.5,
    "device": "cpu",
    "precision": "float32",
}


def events(epochs: int = 3, steps: int = 20, losses: tuple[float, ...] = (2.0, 0.5, 0.1)) -> Iterator[Event]:
    layers = (LayerSummary("flatten", "Flatten", (784,), 0), LayerSummary("output", "Linear", (10,), 7850))
    choices = (Choice("device", "cpu", "no CUDA device found [bold]"), Choice("precision", "float32", "exact"))
    yield Started(
        Path("runs/[red]x"), choices, {"train": 55_000, "validation": 5_000}, layers, 7850, epochs, steps, 0, 0
    )
    for epoch in range(epochs):
        loss = losses[epoch % len(losses)]
        for batch in range(1, steps + 1):
            yield Step(epoch, batch, epoch * steps + batch, loss + 1 / batch, 1e-3, 97_200.0)
        stopping = "enough" if epoch == epochs - 1 else None
        yield Epoch(
            epoch + 1,
            (epoch + 1) * steps,
            loss,
            loss * 1.1,
            0.9 + epoch / 100,
            1e-3,
            1.25,
            97_200.0,
            epoch != 1,
            stopping,
        )
    yield Finished(SUMMARY)


def terminal(width: int = 80, height: int = 40, encoding: str = "utf-8", **options) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
    environment = {"TERM": "xterm-256color"} | options.pop("environment", {})
    return Console(force_terminal=True, file=file, width=width, height=height, _environ=environment, **options)


def written(screen: Console) -> str:
    return screen.file.buffer.getvalue().decode(screen.file.encoding)


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def metrics(labels: list[str], matrix: list[list[int]] | None = None) -> dict:
    matrix = matrix or [[90 if i == j else (i * j) % 3 for j in range(len(labels))] for i in range(len(labels))]
    per_class = [{"label": label, "precision": 0.9, "recall": 0.8765, "f1": 1.0, "support": 1234} for label in labels]
    return {
        "split": "test",
        "samples": 10_000,
        "loss": 0.0654321,
        "accuracy": 0.97944,
        "per_class": per_class,
        "confusion_matrix": matrix,
        "expected_calibration_error": 0.0054,
        "seconds": 0.42,
        "samples_per_second": 23_809.5,
    }


# ---------------------------------------------------------------- a run


def test_a_pipe_gets_one_plain_line_an_epoch(capsys):
    assert train.follow(events()) == SUMMARY
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "run        runs/[red]x",
        "device     cpu      no CUDA device found [bold]",
        "precision  float32  exact",
        "samples    55,000 train, 5,000 validation",
        "model      7,850 parameters in 2 layers",
        "epoch 1/3  loss    2.000  val    2.200  90.00 % * lr 1.0e-03   1.2 s  97,200/s",
        "epoch 2/3  loss   0.5000  val   0.5500  91.00 %   lr 1.0e-03   1.2 s  97,200/s",
        "epoch 3/3  loss   0.1000  val   0.1100  92.00 % * lr 1.0e-03   1.2 s  97,200/s",
        "stopping: enough",
    ]


def test_every_event_is_passed_on_in_order_after_its_line(capsys):
    for shown, event in zip(train.show(events()), events(), strict=True):
        assert shown == event
        if isinstance(event, Epoch):
            assert f"epoch {event.epoch}/3" in capsys.readouterr().err


def test_quiet_is_silent(capsys):
    assert train.follow(events(), quiet=True) == SUMMARY
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_colours_if_forced_but_nothing_that_moves(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    train.follow(events())
    err = capsys.readouterr().err
    assert "\x1b[" in err
    assert not re.search(r"\x1b\[[0-9;?]*[A-HJKhl]", err)


def test_a_dumb_terminal_gets_plain_lines():
    screen = terminal(environment={"TERM": "dumb"})
    list(train.show(events(), console=screen))
    assert not re.search(r"\x1b\[[0-9;?]*[A-HJKhl]", written(screen))
    assert written(screen).count("epoch ") == 3


def test_a_terminal_gets_the_table_each_epoch_once_and_the_curve(monkeypatch):
    monkeypatch.setattr(train, "REDRAW", 0)
    screen = terminal()
    list(train.show(events(), console=screen))
    text = without_escapes(written(screen))
    assert re.search(r"output +Linear +10 +7,850\n", text)
    assert re.findall(r"(\d/3) +\d+\.\d", text) == ["1/3", "2/3", "3/3"]
    assert "batch 10/20  ━━━" in text
    assert "best 92.00 % at epoch 3" in text
    assert " left" in text
    last = text[text.rindex("stopping: enough") :]
    assert "batch" not in last.split("o val")[-1]  # the bars disappear, the curve stays
    assert re.search(r"[\u2801-\u28ff]", last)


def test_until_started_a_line_says_what_is_done():
    def failing() -> Iterator[Event]:
        raise InputError("no such file")
        yield

    screen = terminal()
    with pytest.raises(InputError):
        list(train.show(failing(), console=screen))
    assert train.PREPARING in written(screen)
    assert "epoch" not in written(screen)
    assert written(screen).rpartition("\x1b[2K")[2].strip("\x1b[?25h\n\r") == "", "an error erases it"


def test_many_events_cause_few_drawings():
    screen = terminal()
    begun = time.monotonic()
    list(train.show(events(epochs=200, steps=50), console=screen))
    drawings = written(screen).count("batch ")
    assert drawings <= (time.monotonic() - begun) / train.REDRAW + 4  # two for the header and the table, one at once
    assert re.findall(r"(\d+)/200 +\d\.\d", without_escapes(written(screen))) == [str(n) for n in range(1, 201)]


def test_an_interrupted_run_leaves_its_last_epoch_on_the_screen():
    def broken() -> Iterator[Event]:
        for event in events():
            yield event
            if isinstance(event, Epoch):
                raise KeyboardInterrupt

    screen = terminal()
    with pytest.raises(KeyboardInterrupt):
        list(train.show(broken(), console=screen))
    text = written(screen)
    assert re.search(r"1/3 +2\.000", without_escapes(text))
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is visible again


def test_no_color_leaves_no_colour():
    screen = terminal(no_color=True)
    list(train.show(events(), console=screen))
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[0-9;]*m", written(screen))


@pytest.mark.parametrize("size", [(1, 40), (20, 40), (39, 20), (40, 20), (80, 5), (300, 80)])
def test_any_size_draws_within_its_width(size, monkeypatch):
    monkeypatch.setattr(train, "REDRAW", 0)
    screen = terminal(*size)
    list(train.show(events(), console=screen))
    lines = re.split("[\r\n]", without_escapes(written(screen)))
    assert all(len(line) <= size[0] for line in lines if re.search("[━─\u2801-\u28ff]", line))


FAST = Epoch(100, 200, 12_345_678.0, 12_345_678.0, 1.0, 1e-3, 1234.5, 1_234_567.0, True)
COLUMNS = {
    40: ["epoch", "train loss", "val loss", "val acc"],
    60: ["epoch", "train loss", "val loss", "val acc", "best", "time"],
    80: ["epoch", "train loss", "val loss", "val acc", "best", "lr", "time", "samples/s"],
    120: ["epoch", "train loss", "val loss", "val acc", "best", "lr", "time", "samples/s"],
}


@pytest.mark.parametrize("width", COLUMNS)
def test_rows_of_epochs_fit_the_terminal_below_their_header(width):
    started = next(events(epochs=100))
    header, row = (line.plain for line in train._EpochTable(started, width).rows(FAST))
    assert re.split("  +", header.strip()) == COLUMNS[width]
    values = ["100/100", "1.235e+07", "1.235e+07", "100.00 %", "*", "1.0e-03", "1,234 s", "1,234,567"]
    expected = dict(zip(COLUMNS[120], values, strict=True))
    cells = re.split("  +", re.sub(r"(e.07|\*|e-03) ", r"\1  ", row).strip())
    assert cells == [expected[name] for name in COLUMNS[width]]
    assert len(row) == len(header) <= width, "right-aligned"


def test_the_header_is_repeated_for_a_long_run_and_nothing_is_shown_that_was_not_measured():
    started = next(events(epochs=100))
    table = train._EpochTable(started, 80)
    lines = [line.plain for _ in range(41) for line in table.rows(FAST)]
    assert [index for index, line in enumerate(lines) if "train loss" in line] == [0, 21, 42]
    unmeasured = replace(FAST, val_loss=None, val_accuracy=None, is_best=False)
    assert re.split("  +", table.rows(unmeasured)[0].plain)[2:4] == ["-", "-"]
    started.samples["validation"] = 0
    header, row = train._EpochTable(started, 80).rows(unmeasured)
    assert re.split("  +", header.plain.strip()) == ["epoch", "train loss", "lr", "time", "samples/s"]
    assert "-" not in row.plain.replace("e-", "e")
    assert train.epoch_lines(unmeasured, 100)[0].plain == (
        "epoch 100/100  loss 1.235e+07  lr 1.0e-03  1,234 s  1,234,567/s"
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_notes_at_the_start_break_between_words_in_their_column(width):
    reason = "measured 1.2x faster than autograd for a plain MLP on a CPU " * 3
    started = replace(next(events()), choices=(Choice("step", "matrices", reason),), warnings=("the " * 40,))
    screen = terminal(width)
    list(train.show([started], console=screen))
    lines = without_escapes(written(screen)).splitlines()
    head = lines[: next(index for index, line in enumerate(lines) if line.startswith("layer"))]
    assert max(map(len, head)) <= width
    assert " ".join(" ".join(head).split()).count("autograd for a plain MLP on a CPU") == 3
    step = next(index for index, line in enumerate(head) if line.startswith("step"))
    assert head[step + 1].startswith(" " * head[step].index("measured") + head[step + 1].strip()[0])
    assert " ".join(["the"] * 10) in " ".join(line for line in lines if "the" in line)


def test_a_terminal_without_unicode_gets_ascii(monkeypatch):
    monkeypatch.setattr(train, "REDRAW", 0)
    screen = terminal(encoding="ascii")
    list(train.show(events(), console=screen))
    assert "####" in written(screen)


@pytest.mark.parametrize("losses", [(math.nan,), (math.inf, 1.0), (0.0,), (1.0, 1.0), (1e-30, 1e30)])
def test_any_loss_can_be_drawn(losses, monkeypatch):
    monkeypatch.setattr(train, "REDRAW", 0)
    list(train.show(events(losses=losses), console=terminal()))


def chart(view: train._LiveView, steps_per_epoch: int = 20) -> list[str]:
    """The lines of the chart, 60 columns wide right of its labels."""
    segments = train._draw_curves(view.train, view.validation, 60, steps_per_epoch)
    return "".join(segment.text for segment in segments).splitlines()


def test_the_chart_names_its_axes_and_its_scale():
    view = train._LiveView()
    for event in events():
        view.update(event)
    *rows, axis = chart(view)
    assert [row[:10].strip() for row in rows] == ["3.000", "loss,", "log scale", "⠒⠒ train", "o val", "0.1100"]
    assert re.fullmatch(r" +epoch 0 {58}3", axis)
    view.update(Step(3, 5, 65, 0.1, 1e-3, 1.0))
    assert chart(view)[-1].endswith(" 3.2")  # epochs so far, of 20 steps


def resumed(history: list[dict], best: int | None, **changes) -> Started:
    record = history[best] if best is not None else None
    started = replace(next(events(epochs=10)), epoch=len(history), step=20 * len(history))
    return replace(started, history=tuple(history), best=record, **changes)


HISTORY = [
    {"epoch": n, "step": 20 * n, "train_loss": 3 / n, "val_loss": 4 / n, "val_accuracy": accuracy, "lr": 0.1}
    for n, accuracy in ((1, 0.5), (2, 0.8), (3, 0.7))
]


def test_the_chart_of_a_resumed_run_begins_with_its_first_epoch_and_the_best_stays():
    uninterrupted, again = train._LiveView(), train._LiveView()
    again.update(resumed(HISTORY, 1))
    for record in HISTORY:
        uninterrupted.train.add(record["step"], record["train_loss"])
        uninterrupted.validation.add(record["step"], record["val_loss"])
    assert chart(again) == chart(uninterrupted)
    screen = terminal()
    screen.print(again)
    assert re.search("val acc 70.00 %   best 80.00 % at epoch 2", without_escapes(written(screen)))
    epoch = Epoch(4, 80, 0.5, 0.6, 0.75, 1e-3, 1.0, 1.0, is_best=False)
    again.update(epoch)
    assert again.best == HISTORY[1]
    again.update(replace(epoch, epoch=5, step=100, val_accuracy=0.9, is_best=True))
    assert again.best["epoch"] == 5


def test_a_resumed_run_says_where_it_continues_and_what_was_best():
    def said(started: Started) -> str:
        return train.header(started).plain.splitlines()[1]

    assert said(resumed(HISTORY, 1)) == "resumed    after epoch 3 of 10; best 80.00 % at epoch 2"
    assert said(resumed(HISTORY, 1, step=1234)) == "resumed    after step 1,234; best 80.00 % at epoch 2"
    assert said(resumed([], None, step=7)) == "resumed    after step 7"
    unmeasured = [{"epoch": 1, "step": 20, "train_loss": 3.0, "lr": 0.1}]
    assert said(resumed(unmeasured, 0)) == "resumed    after epoch 1 of 10"
    assert "resumed" not in train.header(resumed([], None)).plain


def test_a_curve_of_few_epochs_and_then_many_steps_keeps_the_epochs():
    curve = train._Curve()
    for step in (*range(100, 10_001, 100), *range(10_010, 20_001, 10)):
        curve.add(step, 1.0)
    assert len(curve.points) <= 2 * train.COLUMNS
    assert max(after - before for (before, _), (after, _) in zip(curve.points, curve.points[1:], strict=False)) < 600


def test_the_curve_goes_from_top_left_to_bottom_right_and_a_long_one_is_thinned():
    view = train._LiveView()
    for step in range(100_000):
        view.update(Step(0, step, step, math.exp(-step / 2e4), 1e-3, 1.0))
    assert train.COLUMNS <= len(view.train.points) <= 2 * train.COLUMNS
    gaps = {b[0] - a[0] for a, b in zip(view.train.points, view.train.points[1:], strict=False)}
    assert len(gaps) == 1  # evenly
    rows = [line[10:] for line in chart(view)[: train.ROWS]]
    assert rows[0][0] != " "
    assert rows[-1].rstrip()[-1] != " "
    assert len(rows[-1].rstrip()) > 55
    starts = [len(row) - len(row.lstrip()) for row in rows]
    assert starts == sorted(starts)  # always falling on its logarithmic scale


# ---------------------------------------------------------------- results


def test_result_is_whole_in_a_pipe(capsys):
    console.print_result(SUMMARY)
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert lines["checkpoint"] == SUMMARY["checkpoint"]  # on one line, all of it
    assert lines["report"] == SUMMARY["report"]
    assert lines["val accuracy"] == "98.12 %"
    assert lines["test accuracy"] == "97.94 %  95 % interval 97.64 to 98.20 % on 10,000 samples"
    assert lines["test loss"] == "0.06543"
    assert lines["epochs"] == "3, best 2"
    assert re.sub(" +", " ", lines["training"]) == "12.3 s 97,234 samples/s"


@pytest.mark.parametrize("quiet", [False, True])
def test_test_samples_in_the_training_data_are_a_warning_and_a_line(capsys, quiet):
    def run(count: int | None) -> Iterator[Event]:
        yield from list(events())[:-1]
        yield Finished(SUMMARY | {"test_duplicates": count})

    known = "1,234 of 10,000 test samples are also in the training data"
    for count, reported in ((1234, True), (0, False), (None, False)):
        console.print_result(train.follow(run(count), quiet=quiet))
        out, err = capsys.readouterr()
        assert (f"duplicates     {known}\n" in out) == reported
        assert err.count(f"warning: {known}") == reported
    train.follow(run(1234))
    assert "warning: " in capsys.readouterr().err.splitlines()[-1]  # after the earlier lines


def test_choices_go_to_stderr(capsys):
    console.print_choices([Choice("device", "cpu", "no GPU found")])
    assert capsys.readouterr() == ("", "device  cpu  no GPU found\n")


def test_metrics_in_a_pipe_are_whole_and_plain(capsys):
    labels = ["ゼロ", "[bold]one[/]", "a class whose name is much longer than any column would like it to be", "é"]
    console.print_metrics(metrics(labels, [[1000, 2, 0, 0], [3, 40, 0, 0], [0, 0, 5, 0], [0, 7, 0, 6]]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "test: 10,000 samples in 0.4 s, 23,810 samples/s" in out
    assert re.search(r"accuracy +97.94 %  95 % interval 97.65 to 98.20 %", out)
    assert re.search(r"calibration error +0.54 %", out)
    assert re.search(r"\[bold\]one\[/\] +90.00 % +87.65 % +100.00 % +1,234", out)
    assert re.search(r"0 ゼロ +1,000 +2 +\. +\. *\n", out)
    assert re.search(labels[2] + r" +\. +\. +5 +\. *\n", out)
    assert max(map(len, out.splitlines())) < 120


def test_many_classes_get_the_most_frequent_confusions(capsys):
    labels = [f"c{i}" for i in range(26)]
    matrix = [[90 if i == j else 0 for j in range(26)] for i in range(26)]
    matrix[3][17], matrix[5][4] = 10, 30
    console.print_metrics(metrics(labels, matrix))
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert [line.split() for line in table] == [
        ["true", "predicted", "count", "share", "of", "class"],
        ["c5", "c4", "30", "25.00", "%"],
        ["c3", "c17", "10", "10.00", "%"],
    ]


def test_a_matrix_too_wide_for_the_terminal_is_replaced_by_the_confusions():
    labels = [str(i) for i in range(18)]
    for width, whole in ((200, True), (60, False)):
        screen = Console(file=io.StringIO(), width=width)
        screen.print(console.metrics_table(metrics(labels)))
        assert ("true \\ predicted" in screen.file.getvalue()) == whole


@pytest.mark.parametrize("width", [8, 20, 80])
@pytest.mark.parametrize("classes", [2, 10, 47])
def test_tables_survive_any_width(width, classes):
    screen = terminal(width)
    screen.print(console.result_table(SUMMARY), console.metrics_table(metrics(["ゼロ" * 9] * classes)))
    assert written(screen)


def test_no_torch_is_imported():
    import subprocess

    code = "import sys, nnx.terminal.console; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
