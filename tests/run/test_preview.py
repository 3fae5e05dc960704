"""What `nnx show` finds: facts against the data itself, and a forecast against what was measured."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from nnx import config, datasets, models
from nnx.config import registry
from nnx.datasets import Dataset, Split
from nnx.errors import MachineError
from nnx.events import Choice
from nnx.preprocessing.columns import CategoryColumn, Columns, NumberColumn
from nnx.preprocessing.spec import Spec
from nnx.run import dry_run
from nnx.run.preview import Forecast, facts, preview_config
from nnx.training.setup import prepare

DIGITS = registry.find("dataset", "digits")()


def digits():
    return datasets.load(DIGITS, seed=0)


@pytest.mark.parametrize("model", registry.names("model"))
def test_every_model_is_shown_as_it_would_be_trained(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = f"digits_{model}"
    chosen = config.load(recipe) if recipe in config.recipes() else config.load("digits_mlp", [f"model={model}"])
    found = preview_config(chosen, seconds=0.2)
    job = prepare(chosen)
    assert found.config == chosen
    assert (
        found.parameters == models.count_parameters(job.state.model) == sum(layer.parameters for layer in found.layers)
    )
    assert found.flops == sum(layer.flops for layer in found.layers) > 0
    assert [replace(layer, flops=None) for layer in found.layers] == list(
        models.layer_table(job.state.model, job.dataset.spec)
    )
    assert [choice.what for choice in found.choices] == [*(choice.what for choice in job.runtime.choices), "data path"]
    assert found.warnings == ()
    forecast = found.forecast
    assert forecast.epochs == chosen.train.epochs
    assert forecast.steps > 0
    assert min(forecast.start, forecast.training, forecast.validation, forecast.end) > 0
    assert 50e6 < forecast.memory < 50e9
    assert forecast.device_memory is None
    assert list(tmp_path.iterdir()) == []


def test_the_facts_are_the_datasets():
    dataset = digits()
    found = facts(dataset, DIGITS)
    test = dataset.test()
    assert found.samples == {"train": len(dataset.train), "validation": len(dataset.validation), "test": len(test)}
    for split in ("train", "validation"):
        labels = dataset.split(split).labels
        assert found.counts[split] == tuple((labels == k).sum() for k in range(10))
        assert found.size[split] == len(labels) * 64
    pixels = dataset.train.inputs / 255
    assert found.mean == pytest.approx([pixels.mean()])
    assert found.std == pytest.approx([pixels.std()])
    assert (found.shape, found.dtype, found.features) == ((1, 8, 8), "uint8", ())
    assert [example.label for example in found.examples] == list("0123456789")
    for k, example in enumerate(found.examples):
        own = dataset.train.inputs[dataset.train.labels == k]
        assert (own == example.inputs).all(axis=(1, 2, 3)).any()


def test_data_is_named_by_its_path_unless_it_comes_with_a_library():
    assert facts(digits(), registry.find("dataset", "arrays")(path="some/data.npz")).path == "some/data.npz"
    assert facts(digits(), registry.find("dataset", "mnist")()).path == str(digits().folder)
    assert facts(digits(), DIGITS).path is None


def test_of_the_test_set_only_inputs_and_their_number_are_looked_at():
    dataset = digits()
    test = Split(dataset.train.inputs[:7], None)
    found = facts(replace(dataset, test=lambda: Nameless(test.inputs)), DIGITS)
    assert (found.samples["test"], found.duplicates) == (7, 7)


@dataclass
class Nameless:
    """A split whose labels nobody may ask for."""

    inputs: np.ndarray
    names = None

    def __len__(self):
        return len(self.inputs)


def test_choices_that_came_with_the_data_are_there():
    notes = (Choice("classes", "1 (a) to 9 (b) samples", "uneven"),)
    assert facts(replace(digits(), notes=notes), DIGITS).notes == notes


def table(columns=None, features=25, classes=3):
    rng = np.random.default_rng(0)
    split = Split((rng.normal(size=(60, features)) * 3 + 5).astype(np.float32), np.arange(60) % classes)
    mean, std = ((0.0,) * features, (1.0,) * features) if columns else datasets.mean_std(split.inputs)
    spec = Spec((features,), tuple(f"class {k}" for k in range(classes)), mean, std, columns=columns)
    return Dataset(spec, split, split, lambda: split, Path("data"))


def test_a_table_has_features_instead_of_pixels():
    dataset = table()
    found = facts(dataset, DIGITS)
    assert found.features == tuple(map(str, range(25)))
    assert (found.mean, found.std) == (dataset.spec.mean, dataset.spec.std)
    assert [example.inputs.shape for example in found.examples] == [(25,)] * 3


def test_columns_name_the_features():
    dataset = table(
        columns=Columns((NumberColumn("a", mean=40, std=5), NumberColumn("b", std=1), CategoryColumn("c", ("x", "y")))),
        features=4,
    )
    found = facts(dataset, DIGITS)
    assert found.features == ("a", "b", "c = x", "c = y")
    scales, offsets = np.array([5, 1, 1, 1]), np.array([40, 0, 0, 0])  # as they come, not as the network sees them
    assert found.mean == pytest.approx(dataset.train.inputs.mean(0) * scales + offsets)
    assert found.std == pytest.approx(dataset.train.inputs.std(0) * scales)
    assert found.examples[0].inputs == pytest.approx(dataset.train.inputs[0] * scales + offsets)


# ---------------------------------------------------------------- the forecast


def test_a_run_is_its_start_its_epochs_and_its_end():
    forecast = Forecast(
        steps=5, start=1.5, training=2.0, validation=0.25, end=0.75, epochs=10, memory=0, device_memory=None
    )
    assert forecast.seconds == 1.5 + 10 * 2.25 + 0.75


def job(tiny, *lines):
    return prepare(config.parse(tiny(*lines), "a.yaml"))


def test_a_trial_measures_steps_and_leaves_out_what_only_the_first_take(tiny, monkeypatch):
    """Each step made to take 5 ms, and each of the first two 200 ms more."""
    made = job(tiny, "train: {epochs: 3, batch_size: 64}")
    real = type(made).make_step(made)

    def slow(state, inputs, targets):
        time.sleep(0.205 if state.step < 2 else 0.005)
        return real(state, inputs, targets)

    monkeypatch.setattr(type(made), "make_step", lambda self: slow)
    pace = dry_run.measure_throughput(made, made.loader(made.dataset.train), seconds=0.5)
    assert pace.a_step >= 0.005
    assert pace.steps * 0.005 <= pace.seconds
    assert pace.seconds >= 0.5
    assert 0.3 < pace.once < 0.4 + dry_run.WARM_UP * pace.a_step
    assert pace.trouble == ""


def test_a_trial_goes_on_where_the_run_is_shorter_than_it(tiny):
    made = job(tiny, "train: {epochs: 1, batch_size: 1000}")
    assert made.state.steps_per_epoch == 2
    pace = dry_run.measure_throughput(made, made.loader(made.dataset.train), seconds=0.1)
    assert pace.steps > 2
    assert pace.seconds >= 0.1


def test_a_step_that_takes_longer_than_the_trial_is_one_step(tiny, monkeypatch):
    made = job(tiny)
    real = type(made).make_step(made)
    monkeypatch.setattr(type(made), "make_step", lambda self: lambda *arguments: (time.sleep(0.2), real(*arguments))[1])
    pace = dry_run.measure_throughput(made, made.loader(made.dataset.train), seconds=0.1)
    assert pace.steps == 1
    assert pace.a_step > 0.2


def test_training_that_diverges_is_a_warning(tiny):
    found = preview_config(
        config.parse(
            tiny("optimizer: {name: sgd, lr: 1000}", model="{name: mlp, hidden: [64, 64, 64], activation: leaky_relu}"),
            "a.yaml",
        ),
        seconds=0.1,
    )
    assert "in the trial, step " in found.warnings[0]
    assert "Lower optimizer.lr" in found.warnings[0]
    assert found.forecast.training > 0


def test_the_document_is_plain_and_whole(tiny):
    found = preview_config(config.parse(tiny(), "a.yaml"), seconds=0)
    document = found.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert document["forecast"] is None
    assert config.from_dict(document["config"], "again") == found.config


def test_the_seconds_to_the_start_are_counted_from_where_the_process_began(tiny):
    parsed = config.parse(tiny(), "a.yaml")
    now = time.perf_counter()
    assert preview_config(parsed, seconds=0.05, begun=now - 100).forecast.start > 100
    assert preview_config(parsed, seconds=0.05).forecast.start < 50


def test_trying_is_said_where_the_trial_begins(tiny):
    said = []
    preview_config(config.parse(tiny(), "a.yaml"), seconds=0, trying=lambda: said.append(1))
    assert said == []
    preview_config(config.parse(tiny(), "a.yaml"), seconds=0.05, trying=lambda: said.append(1))
    assert said == [1]


def test_too_little_memory_is_3(tiny, monkeypatch):
    def hungry(*_, **__):
        raise MemoryError

    monkeypatch.setattr("nnx.run.dry_run.train", hungry)
    with pytest.raises(MachineError, match="smaller"):
        preview_config(config.parse(tiny(), "a.yaml"))
