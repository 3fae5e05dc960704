"""Validation and test report the plain loss, whatever class weights and label smoothing training uses."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import log_loss

from nnx import config, losses
from nnx.config import registry
from nnx.events import Epoch, Finished, Started
from nnx.run.evaluate import evaluate_checkpoint
from nnx.run.pipeline import run

FAST = ["train.epochs=2", "train.report=false", "train.ema=", "model={name: mlp, hidden: [8]}"]


def trained(folder: Path, *overrides: str):
    events = list(run(config.load("digits_mlp", [*FAST, *overrides]), out=folder))
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    return started, [event for event in events if isinstance(event, Epoch)], finished.summary


@pytest.mark.parametrize(
    "loss",
    [
        "{name: cross_entropy, class_weights: [9, 1, 1, 1, 1, 1, 1, 1, 1, 5]}",
        "{name: cross_entropy, class_weights: balanced}",
        "{name: cross_entropy, label_smoothing: 0.3}",
        "{name: cross_entropy}",
    ],
)
def test_validation_and_test_loss_are_scikit_learns_log_loss(tmp_path, loss):
    started, epochs, summary = trained(tmp_path / "r", f"loss={loss}")
    for split, reported in (("test", summary["test_loss"]), ("validation", summary["val_loss"])):
        content = evaluate_checkpoint(tmp_path / "r", split=split)
        theirs = log_loss(content.predictions.labels, content.predictions.probabilities.astype(float), labels=range(10))
        assert reported == pytest.approx(theirs, rel=1e-4)
        assert content.metrics["loss"] == pytest.approx(theirs, rel=1e-4)
    notes = [choice.reason for choice in started.choices if choice.what == "loss"]
    assert bool(notes) == (":" in loss.removeprefix("{name:")), "said where training's loss is another one"
    assert epochs[-1].val_loss == min(epoch.val_loss for epoch in epochs)


def test_training_still_minimises_the_weighted_loss(tmp_path):
    """The control: class weights of 9 are seen in the training loss."""
    _, plain, _ = trained(tmp_path / "plain")
    _, weighted, _ = trained(tmp_path / "weighted", "loss={class_weights: [9, 9, 9, 9, 9, 9, 9, 9, 9, 9]}")
    assert weighted[0].train_loss > 5 * plain[0].train_loss
    assert weighted[0].val_loss < 2 * plain[0].val_loss


@pytest.mark.parametrize("name", registry.names("loss"))
def test_every_loss_has_a_plain_form(name):
    kind = registry.find("loss", name)
    changed = {"label_smoothing": 0.2, "class_weights": "balanced"}
    made = kind.model_validate({key: value for key, value in changed.items() if key in kind.model_fields})
    assert losses.evaluated_loss(made) == kind.model_validate({})
    logits, labels = torch.randn(6, losses.outputs(made, 2)), torch.tensor([0, 1, 0, 1, 0, 0])
    plain = losses.evaluated_loss(made).build([5, 1], torch.device("cpu"))
    assert plain(logits, labels) == pytest.approx(
        float(kind.model_validate({}).build([1, 1], torch.device("cpu"))(logits, labels))
    )


def test_an_average_of_the_weights_is_noted(tmp_path):
    started, _, _ = trained(tmp_path / "r", "train.ema=0.9")
    [note] = [choice.reason for choice in started.choices if choice.what == "loss"]
    assert note == "training loss is of the raw weights, validation and test loss of their moving average"
