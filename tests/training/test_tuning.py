"""Choices by measurement: what wins, when nothing is measured, what is kept, and that bits stay equal."""

import itertools
import json

import pytest
import torch

from nnx import config
from nnx.datasets import _cache
from nnx.doctor import machine
from nnx.errors import ConfigError, Stopped
from nnx.events import Choice, Finished, Started
from nnx.run.pipeline import run
from nnx.run.resume import resumed_config
from nnx.training import setup, tuning
from nnx.training.tuning import Question, Tuned, Workload, tune

LAYOUTS = Question("layout", "layout", ("channels_first", "channels_last"), ("channels first", "channels last"))
THREADS = Question("threads", "threads", (2, 1), ("2", "1"))
WORK = Workload("mlp for inputs of 784", {})
LONG = 10**9  # samples of a run that is worth tuning


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "SECONDS", 0.1)
    monkeypatch.setattr(tuning, "seconds_without_core", lambda: 0.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only trials move."""
    now = [0.0]
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now[0])
    return now


def trials(clock, **speeds):
    """A function that builds the trial of a config: one sample a step, with the samples/s of its layout or threads."""
    built = []

    def build(candidate):
        built.append(candidate)
        speed = speeds.get(candidate.layout, 100) * speeds.get(f"threads{candidate.threads}", 1)

        def step():
            clock[0] += 1 / speed
            return 1

        return step

    build.built = built
    return build


def base(*overrides):
    return config.load("digits_cnn", overrides)


@pytest.mark.parametrize(
    ("speed", "expected"), [(109, "channels_first"), (112, "channels_last"), (60, "channels_first")]
)
def test_a_candidate_must_win_by_a_tenth(clock, speed, expected):
    tuned = tune(base(), [LAYOUTS], WORK, LONG, trials(clock, channels_first=100, channels_last=speed))
    assert tuned.config.layout == expected
    (choice,) = tuned.choices
    assert choice.value == expected.replace("_", " ")
    assert choice.reason == f"samples/s by channels first: 100, channels last: {speed}; measured now"


def test_a_later_question_is_measured_with_the_earlier_answers(clock):
    build = trials(clock, channels_first=100, channels_last=200, threads1=2)
    tuned = tune(base(), [LAYOUTS, THREADS], WORK, LONG, build)
    assert (tuned.config.layout, tuned.config.threads) == ("channels_last", 1)
    assert {candidate.layout for candidate in build.built if candidate.threads != "auto"} == {"channels_last"}


def test_numbers_of_threads_are_not_compared_while_others_use_the_cores(clock, monkeypatch):
    waits = itertools.count()
    monkeypatch.setattr(tuning, "seconds_without_core", lambda: float(next(waits)))
    tuned = tune(base(), [THREADS], WORK, LONG, trials(clock, threads1=5))
    assert tuned.config.threads == 2
    assert "other processes used the cores" in tuned.choices[0].reason


def test_a_short_run_is_not_tuned(clock):
    build = trials(clock, channels_last=200)
    assert tune(base(), [LAYOUTS], WORK, 90, build) == Tuned(base())  # 90 samples take 0.9 s, worth it is 1 s
    assert len(build.built) == 1, "the forecast"
    assert tune(base(), [LAYOUTS], WORK, 110, build).config.layout == "channels_last"
    assert tune(base(), [], WORK, LONG, build) == Tuned(base())


def test_measurements_are_kept_for_the_same_workload_only(clock):
    build = trials(clock, channels_last=200)
    first = tune(base(), [LAYOUTS], Workload("w", {"cpu": "a"}), LONG, build)
    count = len(build.built)
    slower = trials(clock, channels_last=10)
    second = tune(base(), [LAYOUTS], Workload("w", {"cpu": "a"}), LONG, slower)
    assert second.config == first.config
    assert second.choices[0].reason.endswith("measured earlier: nnx list cache")
    assert len(slower.built) == 1, "only the forecast"
    assert tune(base(), [LAYOUTS], Workload("w", {"cpu": "b"}), LONG, slower).config.layout == "channels_first"
    _cache.clear()
    assert tune(base(), [LAYOUTS], Workload("w", {"cpu": "a"}), LONG, slower).config.layout == "channels_first"
    assert count == 3


def test_an_entry_that_somebody_changed_is_not_used(clock):
    tune(base(), [LAYOUTS], WORK, LONG, trials(clock))
    (entry,) = _cache.entries()
    meta = json.loads((entry.path / "meta.json").read_text())
    del meta["checksum"]
    meta["facts"]["chosen"]["layout"] = "x"
    (entry.path / "meta.json").write_text(json.dumps(meta | {"checksum": _cache._meta_checksum(meta)}))
    assert tune(base(), [LAYOUTS], WORK, LONG, trials(clock)).config.layout == "auto"


def test_the_measurements_can_be_listed(clock):
    assert tuning.measurements() == []
    tune(base(), [LAYOUTS], WORK, LONG, trials(clock, channels_last=200))
    speeds = ["layout: samples/s by channels first: 100, channels last: 200"]
    assert tuning.measurements() == [("mlp for inputs of 784", speeds)]
    assert [(check.name, check.found, check.cure) for check in machine._torch() if check.name == "tuning"] == [
        ("tuning", "mlp for inputs of 784", speeds[0])
    ]


def test_a_measurement_is_the_reason_of_its_choice_only():
    tuned = Tuned(base(), [Choice("layout", "channels last", "measured")])
    assert tuned.reason(Choice("layout", "channels last", "a rule")).reason == "measured"
    assert tuned.reason(Choice("device", "cpu", "a rule")).reason == "a rule"


# ---------------------------------------------------------------- real runs


@pytest.fixture
def always(monkeypatch):
    """Tune also the short runs of these tests."""
    monkeypatch.setattr(tuning, "SMALL", 0)
    monkeypatch.setattr(tuning, "WORTH", 0)
    monkeypatch.setattr(setup.devices, "available_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS")


SETTINGS = ["train.epochs=2", "train.report=false", "train.batch_size=256"]


def train(recipe, *overrides, **options):
    return list(run(config.load(recipe, [*SETTINGS, *overrides]), **options))


def choices(events):
    return {choice.what: choice for choice in next(e for e in events if isinstance(e, Started)).choices}


@pytest.mark.parametrize("recipe", ["digits_cnn", "digits_mlp"])
def test_equal_runs_choose_equally_and_a_resumed_one_keeps_the_choice(recipe, always, tmp_path, monkeypatch):
    events = train(recipe, out=tmp_path / "a")
    what = "layout" if recipe == "digits_cnn" else "step"
    assert "samples/s by" in choices(events)[what].reason
    assert "samples/s by" in choices(events)["threads"].reason
    again = train(recipe, out=tmp_path / "b")
    assert "measured earlier" in choices(again)[what].reason
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == (tmp_path / "b/checkpoint.pt").read_bytes()
    saved = config.load(str(tmp_path / "a/config.yaml"))
    assert saved.threads in (1, 2)
    assert recipe != "digits_cnn" or saved.layout != "auto"

    steps = itertools.count()
    stopped = run(config.load(recipe, SETTINGS), out=tmp_path / "c", signal=lambda: 15 if next(steps) > 5 else 0)
    with pytest.raises(Stopped):
        list(stopped)
    _cache.clear()
    monkeypatch.setattr(tuning, "tune", None)  # a resumed run does not measure
    resumed = list(run(resumed_config(tmp_path / "c"), out=tmp_path / "c", resume=tmp_path / "c"))
    assert isinstance(resumed[-1], Finished)
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == (tmp_path / "c/checkpoint.pt").read_bytes()


def test_the_forecast_of_a_short_run_leaves_the_threads_as_chosen(monkeypatch, tmp_path):
    """digits_mlp's step is too small for two threads."""
    monkeypatch.setattr(tuning, "SMALL", 0)
    monkeypatch.setattr(setup.devices, "available_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    events = train("digits_mlp", out=tmp_path / "r")
    assert choices(events)["threads"].value == "1"
    assert torch.get_num_threads() == 1


def test_a_key_of_the_config_wins(always, tmp_path):
    events = train("digits_cnn", "layout=channels_last", "threads=1", "precision=float32", out=tmp_path / "r")
    assert choices(events)["layout"] == Choice("layout", "channels last", "as requested")
    assert choices(events)["threads"] == Choice("threads", "1", "as requested")
    with pytest.raises(ConfigError, match="channels_first"):
        config.load("digits_cnn", ["layout=nhwc"])
