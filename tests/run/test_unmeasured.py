"""Runs without validation or test samples: the last epoch is kept, resumes to the same bytes, and what is not measured
is null and printed."""

import io
import json
import signal
from pathlib import Path

import pytest
import torch

from nnx import checkpoint, config, datasets, errors
from nnx.errors import CheckpointError, ConfigError, InputError
from nnx.events import Epoch, Finished, Health, Started
from nnx.run import folder as run_folder
from nnx.run.evaluate import evaluate_checkpoint
from nnx.run.pipeline import run
from nnx.run.preview import preview_config
from nnx.run.verify import verify
from nnx.terminal import console, preview
from nnx.terminal.train import _LiveView, epoch_lines
from nnx.training import film

SETTINGS = ["dataset.validation=0", "train.epochs=3", "train.batch_size=64", "model={name: mlp, hidden: [8]}"]
NO_REPORT = "train.report=false"
CONSTANT = (NO_REPORT, "schedule=constant")  # it does not depend on train.epochs
NOT_VALIDATED = "no validation samples (dataset.validation: 0): the last epoch is kept; early stopping is off"


def chosen(*more):
    return config.load("digits_mlp", [*SETTINGS, *more])


def events(*more, **options):
    return list(run(chosen(*more), **options))


def only(kind, found):
    return [event for event in found if isinstance(event, kind)]


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def without_both(tmp_path_factory):
    """The folder and config of a run that trains on all of its 40 rows."""
    folder = tmp_path_factory.mktemp("both")
    rows = [f"{n % 7},{n % 5},{'ab'[n % 2]}" for n in range(40)]
    (folder / "t.csv").write_text("\n".join(["x,y,class", *rows, ""]))
    text = f"""
dataset: {{name: table, path: {folder}/t.csv, target: class, validation: 0, test: 0}}
model: {{name: mlp, hidden: [4]}}
train: {{epochs: 2, film: true}}
"""
    own = config.parse(text, "own.yaml")
    list(run(own, out=folder / "r"))
    return folder / "r", own


# ---------------------------------------------------------------- what is kept


def test_the_last_epoch_is_kept_and_null_is_what_was_not_measured(tmp_path):
    found = events("train.ema=0.9", "train.patience=1", out=tmp_path / "r")
    (started,) = only(Started, found)
    assert started.samples == {"train": 1437, "validation": 0}
    assert [(c.what, c.value, c.reason) for c in started.choices if c.what in ("validation", "test")] == [
        ("validation", "not measured", NOT_VALIDATED)
    ]
    epochs = only(Epoch, found)
    assert [(e.val_loss, e.val_accuracy, e.is_best, e.stopping) for e in epochs] == [(None, None, True, None)] * 3
    summary = only(Finished, found)[0].summary
    assert (summary["epochs"], summary["best_epoch"]) == (3, 3), "patience has nothing to wait for"
    assert summary["val_accuracy"] is summary["val_loss"] is None
    assert summary["test_samples"] == 360
    assert summary["test_accuracy"] > 0.1
    assert json.loads((tmp_path / "r/summary.json").read_text()) == summary
    assert [list(line) for line in records(tmp_path / "r")] == [list(run_folder.METRICS)] * 3
    assert {line["val_loss"] for line in records(tmp_path / "r")} == {None}
    last, kept = (checkpoint.read(tmp_path / "r" / name) for name in ("last.pt", "checkpoint.pt"))
    assert kept.record == last.counters["history"][-1] == {k: v for k, v in kept.record.items() if "val" not in k}
    for name, weights in kept.model.items():
        assert torch.equal(weights, last.training["average"][f"module.{name}"]), "the average is kept"
    assert not torch.equal(kept.model[name], last.training["model"][name]), "the control"


def test_each_epoch_replaces_the_checkpoint(tmp_path):
    for event in run(chosen(NO_REPORT), out=tmp_path / "r"):
        if isinstance(event, Epoch):
            assert checkpoint.read(tmp_path / "r/checkpoint.pt").record["epoch"] == event.epoch


def test_it_trains_on_the_validation_samples_too(tmp_path):
    events(NO_REPORT, "train.epochs=1", out=tmp_path / "r")
    saved = checkpoint.read(tmp_path / "r/last.pt")
    assert saved.counters["step"] == 23  # 1,437 samples in batches of 64; with a validation split of 10 % it is 21
    everything = datasets.load(chosen().dataset, seed=0)
    assert saved.data is not None
    assert len(everything.train) == 1437


def test_a_schedule_that_follows_validation_is_refused():
    with pytest.raises(ConfigError) as caught:
        config.load("digits_mlp", ["dataset.validation=0", "schedule=plateau"])
    assert str(caught.value) == (
        "--set dataset.validation=0: dataset.validation: 0 leaves no validation loss for the schedule plateau to "
        "follow; give a count, or choose another schedule"
    )


# ---------------------------------------------------------------- resume and verify


@pytest.mark.parametrize("steps", [1, 23, 24, 25, 40])
@pytest.mark.parametrize("save_every", ["epoch", 5])
def test_a_stopped_run_resumes_to_the_same_bytes(steps, save_every, tmp_path):
    settings = (NO_REPORT, "train.ema=0.9", "train.film=true", "model.dropout=0.1", f"train.save_every={save_every}")
    events(*settings, out=tmp_path / "whole")
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return signal.SIGTERM if calls >= steps else 0

    with pytest.raises(errors.Stopped):
        events(*settings, out=tmp_path / "cut", signal=stop)
    events(*settings, resume=tmp_path / "cut")
    for name in ("checkpoint.pt", "last.pt", "film.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    whole, cut = (
        [{**line, "seconds": 0, "samples_per_second": 0} for line in records(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert whole == cut


def test_a_kill_between_the_two_files_of_an_epoch_is_made_good(tmp_path):
    """The state of epoch 2 is saved, the network is still that of epoch 1."""
    events(*CONSTANT, out=tmp_path / "whole")
    events(*CONSTANT, "train.epochs=1", out=tmp_path / "r")
    old = (tmp_path / "r/checkpoint.pt").read_bytes()
    (tmp_path / "r/metrics.jsonl").unlink()
    events(*CONSTANT, "train.epochs=2", resume=tmp_path / "r")
    (tmp_path / "r/checkpoint.pt").write_bytes(old)
    (tmp_path / "r/metrics.jsonl").unlink()
    events(*CONSTANT, resume=tmp_path / "r")
    for name in ("checkpoint.pt", "config.yaml"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    restored = {"val_loss": None, "val_accuracy": None, "seconds": None, "samples_per_second": None}
    assert [line.items() >= restored.items() for line in records(tmp_path / "r")] == [True, True, False]


def test_more_epochs_replace_the_checkpoint(tmp_path):
    events(NO_REPORT, out=tmp_path / "r")
    events(NO_REPORT, "train.epochs=4", resume=tmp_path / "r")
    assert checkpoint.read(tmp_path / "r/checkpoint.pt").record["epoch"] == 4


def test_resume_refuses_to_begin_validation(tmp_path):
    events(NO_REPORT, out=tmp_path / "r")
    with pytest.raises(CheckpointError, match=r"dataset\.validation: 0 → 0\.1"):
        events(NO_REPORT, "dataset.validation=0.1", resume=tmp_path / "r")


def test_verify_compares_the_steps_of_all_epochs(tmp_path):
    events(NO_REPORT, out=tmp_path / "r")
    verified = verify(tmp_path / "r")
    assert (verified.steps, verified.difference) == (69, None)


def test_a_history_with_only_one_validation_figure_is_refused(tmp_path):
    events(NO_REPORT, "train.epochs=1", out=tmp_path / "r")
    state = checkpoint.read(tmp_path / "r/last.pt")
    history = [state.counters["history"][0] | {"val_loss": 1.0}]
    state.counters["history"] = history
    checkpoint.write(tmp_path / "bad.pt", state)
    with pytest.raises(CheckpointError, match="does not have exactly the parts"):
        checkpoint.read(tmp_path / "bad.pt")


# ---------------------------------------------------------------- no test samples


def test_without_both_the_report_shows_the_training_samples_and_says_so(without_both):
    folder, _ = without_both
    summary = run_folder.read_summary(folder)
    unmeasured = ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "test_data", "test_duplicates")
    assert {key: summary[key] for key in unmeasured} == dict.fromkeys(unmeasured)
    assert summary["test_samples"] == 0
    page = (folder / "report.html").read_text()
    assert "train accuracy" in page
    assert "The network was trained on these rows, so this is not the accuracy on new ones." in page
    assert NOT_VALIDATED in page
    assert "no test samples (dataset.test: 0)" in page
    assert "validation loss</th>" not in page
    assert "rows of the training data, and each picture" in page, "the film"
    assert film.read(folder / "film.npz")["labels"].size == 40
    with pytest.raises(
        InputError, match=r"^test split: the dataset has none \(dataset.test: 0\); use --split train, or"
    ):
        evaluate_checkpoint(folder)
    content = evaluate_checkpoint(folder, split="train")
    assert content.metrics["samples"] == 40
    assert len(content.records) == 2, "metrics.jsonl belongs to the checkpoint"


def test_metrics_of_another_run_or_with_strange_values_are_not_shown(without_both, tmp_path):
    folder, _ = without_both
    record = checkpoint.read(folder / "checkpoint.pt").record
    for change in ({"val_loss": 1.0, "val_accuracy": 1.0}, {"val_loss": "x"}, {"lr": None}):
        run_folder.write_metrics(tmp_path, [line | change for line in records(folder)])
        assert run_folder.matching_metrics(tmp_path, record) == []
    run_folder.write_metrics(tmp_path, records(folder))
    assert len(run_folder.matching_metrics(tmp_path, record)) == 2, "the control"


def test_without_test_samples_the_report_shows_validation(tmp_path, without_both):
    _, own = without_both
    validated = config.from_dict(own.to_dict(), "own.yaml", ["dataset.validation=10"])
    found = list(run(validated, out=tmp_path / "r"))
    (note,) = [choice for choice in only(Started, found)[0].choices if choice.what == "test"]
    assert note.value == "not measured"
    assert note.reason.startswith("no test samples (dataset.test: 0): validation accuracy")
    page = (tmp_path / "r/report.html").read_text()
    assert "validation accuracy, 95" in page
    assert "The best epoch was chosen on these rows, so the accuracy may be too high." in page
    assert only(Finished, found)[0].summary["val_accuracy"] is not None
    with pytest.raises(InputError, match="use --split train or validation, or name test data"):
        evaluate_checkpoint(tmp_path / "r")


def test_samples_set_aside_only_after_training_are_a_warning(without_both):
    def warnings(split, *overrides):
        content = evaluate_checkpoint(without_both[0], split=split, overrides=overrides)
        return [
            choice.reason for choice in content.choices if choice.what == "warning" and choice.value.startswith("other")
        ]

    trained_on = "in training: the network may have been trained on these samples"
    assert warnings("test", "dataset.test=0.5") == [f"dataset.test was 0 {trained_on}"]
    assert warnings("validation", "dataset.validation=5") == [f"dataset.validation was 0 {trained_on}"]
    assert warnings("train") == warnings("train", "dataset.test=0.5") == []
    copy = without_both[0].with_name("copy.csv")
    copy.write_text(without_both[0].with_name("t.csv").read_text())
    assert warnings("test", f"dataset.test={copy}") == [], "another file"


# ---------------------------------------------------------------- the rest that reads figures of validation and test


def test_watch_and_film_go_without_validation(tmp_path):
    found = list(run(chosen("train.film=true"), out=tmp_path / "r", watch=True))
    assert [health.epoch for health in only(Health, found)] == [0, 1, 2, 3]
    assert len(film.read(tmp_path / "r/film.npz")["labels"]) == film.PROBE


def test_progress_shows_no_figures_of_validation():
    event = Epoch(1, 10, 0.5, None, None, 1e-3, 1.0, 100.0, True)
    (line,) = epoch_lines(event, 3)
    assert line.plain == "epoch 1/3  loss   0.5000  lr 1.0e-03   1.0 s  100/s"
    view = _LiveView()
    view.update(event)
    assert view.validation.points == []
    shown = console.Console(width=80, height=40, force_terminal=True, record=True)
    shown.print(view)
    assert "val" not in shown.export_text()


def test_the_result_table_says_what_was_not_measured(without_both):
    lines = console.result_table(run_folder.read_summary(without_both[0])).plain.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith(("val ", "test "))] == [
        "not measured  no validation samples",
        "not measured  no test samples",
    ]
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("epochs")] == ["2, kept 2"]
    assert not any("test loss" in line for line in lines)


def test_show_counts_only_what_exists(without_both):
    shown = preview_config(without_both[1], seconds=0.1)
    assert shown.data.samples == {"train": 40, "validation": 0, "test": 0}
    assert shown.data.duplicates is None
    assert shown.forecast.validation == 0
    assert [choice.what for choice in shown.choices if choice.value == "not measured"] == ["validation", "test"]
    assert json.dumps(shown.to_dict())
    output = console.Console(width=120, record=True, file=io.StringIO())
    for part in preview.sections(shown, output, 120):
        output.print(part)
    text = output.export_text()
    assert "40 train\n" in text
    assert "0 validation" not in text
    assert "duplicates" not in text


def test_python_has_none_where_nothing_was_measured(without_both, tmp_path):
    import nnx

    finished = nnx.train("digits_mlp", [*SETTINGS, "train.epochs=1", NO_REPORT], out=tmp_path / "r")
    assert finished.summary["val_accuracy"] is None
    assert nnx.evaluate(finished.checkpoint)["accuracy"] == finished.summary["test_accuracy"]
    with pytest.raises(InputError, match="validation split: the dataset has none"):
        nnx.evaluate(finished.checkpoint, split="validation")
    assert nnx.load(without_both[0]).classes == ("a", "b")
    assert Path(finished.checkpoint).exists()
