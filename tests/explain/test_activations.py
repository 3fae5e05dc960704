"""What an RNN says after each row is what its output layer makes of its state there."""

import numpy as np
import pytest
import torch

from nnx import explain, models
from nnx.checkpoint import Checkpoint
from nnx.config import registry
from nnx.explain import activations
from nnx.losses import probabilities


def subject_of(subject, **settings):
    ours = subject("rnn")
    model = registry.find("model", "rnn")(hidden=9, **settings)
    torch.manual_seed(0)
    network = models.build(model, ours.spec, 10)
    checkpoint = Checkpoint(
        ours.checkpoint.config.model_copy(update={"model": model}), ours.spec, network.state_dict(), {}
    )
    return explain.build_subject(checkpoint, ours.data, ours.images, ours.names)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("read", ["last", "mean"])
def test_belief_is_the_output_layer_on_the_state_so_far(subject, cell, read):
    explained = subject_of(subject, cell=cell, read=read)
    belief = activations.step_predictions(explained)
    with torch.no_grad():
        states = explained.network.recurrent(explained.inputs()[:, 0])[0]
        if read == "mean":
            states = states.cumsum(1) / torch.arange(1, 9)[:, None]
        expected = probabilities(explained.network.output(states).flatten(0, 1)).view(len(states), 8, 10)
    np.testing.assert_allclose(belief, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(belief[:, -1], explained.probabilities, atol=1e-6)
    assert np.abs(belief[:, 2] - belief[:, -1]).max() > 1e-3, "the control: it does change"


@pytest.mark.parametrize("settings", [{"bidirectional": True}, {"layers": 2, "bidirectional": True, "read": "mean"}])
def test_belief_of_any_rnn_ends_with_its_answer(subject, settings):
    explained = subject_of(subject, **settings)
    np.testing.assert_allclose(activations.step_predictions(explained)[:, -1], explained.probabilities, atol=1e-6)
    [(_, found)] = explain.explain(explained, ["activations"])
    assert set(found.figures["decided_at"]) == set(explained.names)


@pytest.mark.parametrize(
    ("predicted", "row"),
    [([0, 1, 2, 2], 3), ([2, 2, 2, 2], 1), ([2, 2, 1, 2], 4), ([0, 0, 0, 1], 4)],
    ids=["late", "at once", "wavers", "last"],
)
def test_the_decision_step_is_when_the_prediction_no_longer_changes(predicted, row):
    assert activations.decision_step(np.eye(3)[predicted]) == row


def test_what_is_too_much_to_show_is_counted():
    maps = np.zeros((2, 40, 3, 3))
    maps[:, 5:] = np.arange(1, 36)[:, None, None]
    sheet, signed, words = activations._sheet(maps, 0)
    assert words == "the 32 strongest of 40 feature maps, 3×3 each"
    assert not signed
    assert np.nanmin(sheet) == 4, "the five silent maps and the three weakest are left out"
    assert activations._sheet(np.ones((2, 600)), 1)[2] == "the first 512 of 600 neurons"
    assert activations._sheet(-np.ones((2, 6)), 1)[1]
