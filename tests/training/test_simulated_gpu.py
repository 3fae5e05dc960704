"""Everything that runs on a GPU, on a simulated one (see simulated_gpu.py): nothing is left on the CPU, no step waits
for the device, a CUDA graph replays all that changes, and the results are the CPU's."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated_gpu import DEVICE, Graph, Refused, simulated_gpu

import nnx
from nnx import checkpoint, config, datasets, explain
from nnx.config import registry
from nnx.events import Finished, Step
from nnx.inference import classifier
from nnx.loader.batches import pinned_gather
from nnx.run.dry_run import measure_throughput
from nnx.run.pipeline import run
from nnx.system import dropout
from nnx.training.loop import EpochEnd, train
from nnx.training.setup import prepare
from nnx.training.step import WARM_UP, StepMethod, capture_cuda_graph

EPOCH_READS = 2  # the loss, and the norm of the weights
GRAPH_READS = EPOCH_READS + 1  # the learning rate, which is a tensor
START_READS = 2  # once: fused optimizers compare the step counters of each weight decay's parameters
MODELS = {
    "mlp": ["model={name: mlp, hidden: [16], norm: batch, dropout: 0.2}"],
    "cnn": ["model={name: cnn, dropout: 0.2}"],
    "rnn": ["model={name: rnn, hidden: 16, layers: 2, dropout: 0.2}"],
    "bidirectional gru": ["model={name: rnn, hidden: 16, cell: gru, bidirectional: true, read: mean}"],
    "simple rnn": ["model={name: rnn, hidden: 16, cell: rnn}"],
    "transformer": ["model={name: transformer, patch: 4, width: 16, heads: 2, depth: 2, dropout: 0.1}"],
}
FEATURES = {
    "mixup": ["train.mixup=0.3"],
    "average": ["train.ema=0.9"],
    "clipping": ["train.clip_grad_norm=0.5"],
    "accumulation": ["train.accumulate=3"],
    "label smoothing": ["loss={name: cross_entropy, label_smoothing: 0.1, class_weights: balanced}"],
    "all augmentation": [
        "train.augment={shift: 1, rotate: 10, scale: 0.1, shear: 5, elastic: 1, erase: 0.5, flip: true}"
    ],
    **{f"optimizer {name}": [f"optimizer={{name: {name}, lr: 0.003}}"] for name in registry.names("optimizer")},
    **{f"loss {name}": [f"loss={name}"] for name in registry.names("loss") if name != "binary_cross_entropy"},
    "loss binary_cross_entropy": ["loss=binary_cross_entropy", "dataset={name: toy, kind: circles, validation: 0.1}"],
    **{f"schedule {name}": [f"schedule={name}"] for name in registry.names("schedule")},
}
EAGER = ["compile=false"]


@pytest.fixture
def gpu():
    with simulated_gpu() as device:
        yield device


def made(*overrides):
    """The setup of a small config, with 300 training samples."""
    settings = ["train.batch_size=64", "train.epochs=2", "precision=float32", *overrides]
    text = {"dataset": {"name": "digits", "validation": 0.1}, "model": {"name": "mlp", "hidden": [16]}}
    setup = prepare(config.from_dict(text, "made", settings))
    return setup, setup.dataset.train.take(np.arange(300))


def trained(*overrides, log_every=10**9, counting=None):
    """The setup after two epochs, the training losses, and the number of reads before each event (of `counting`)."""
    setup, split = made(*overrides)
    batches = setup.loader(split)
    events, reads = [], []
    if counting:
        counting.reads.clear()
    for event in train(setup.state, batches, setup.make_step(), log_every=log_every):
        events.append(event)
        if counting:
            reads.append(len(counting.reads))
            counting.reads.clear()
    return setup, events, reads


def losses(events):
    return [event.train_loss if isinstance(event, EpochEnd) else event.loss for event in events]


def weights(state):
    return {name: tensor.detach().cpu() for name, tensor in state.evaluated.state_dict().items()}


def check_equal(on_gpu, on_cpu):
    """Losses of two trainings within rounding. Weights drift further apart: Adam divides by gradients near zero."""
    assert all(math.isfinite(loss) for loss in losses(on_cpu))
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=2e-4)


def combinations():
    """A case for each architecture, and one for each feature."""
    for model, overrides in MODELS.items():
        yield pytest.param(overrides, id=model)
    for feature, overrides in FEATURES.items():
        model = MODELS["cnn" if "augment" in feature or "clip" in feature else "mlp"]
        yield pytest.param([*model, *overrides], id=feature)


@pytest.mark.parametrize("overrides", list(combinations()))
def test_training_gives_the_losses_of_the_cpu_and_waits_only_at_an_epochs_end(overrides):
    _, expected, _ = trained(*overrides, *EAGER)
    with simulated_gpu() as gpu:
        setup, events, reads = trained(*overrides, *EAGER, counting=gpu)
        assert setup.runtime.device == DEVICE
        assert setup.step_method is StepMethod.AUTOGRAD
    check_equal(events, expected)
    assert reads[0] <= EPOCH_READS + START_READS
    assert reads[1] == EPOCH_READS
    assert gpu.operations > 100, "the control: operations ran on the device"


@pytest.mark.parametrize("overrides", list(combinations()))
def test_a_cuda_graph_gives_the_losses_of_the_cpu(overrides):
    _, expected, _ = trained(*overrides, *EAGER)
    with simulated_gpu() as gpu:
        setup, events, reads = trained(*overrides, counting=gpu)
    check_equal(events, expected)
    if setup.step_method is StepMethod.AUTOGRAD:
        assert setup.config.optimizer.name not in ("sgd", "adam", "adamw")
        assert not gpu.graphs
        return
    assert setup.step_method is StepMethod.CUDA_GRAPH
    # full batches, and the last one of an epoch, which is seen twice only and not recorded
    full = 300 // (64 * setup.config.train.accumulate)
    (graph,) = gpu.graphs if full * 2 > WARM_UP else [None]
    assert graph is None or graph.replays == 2 * full - WARM_UP
    assert gpu.side_steps == 2 * -(-300 // (64 * setup.config.train.accumulate)) - (graph.replays if graph else 0)
    assert reads[1] == GRAPH_READS
    assert reads[0] <= GRAPH_READS + START_READS


def test_the_logging_interval_is_the_only_other_wait(gpu):
    _, events, reads = trained(*MODELS["mlp"], *EAGER, log_every=2, counting=gpu)
    steps = [count for event, count in zip(events, reads, strict=True) if isinstance(event, Step)]
    assert steps[1:] == [EPOCH_READS] * (len(steps) - 1)
    assert len(steps) == 5
    assert steps[0] <= EPOCH_READS + START_READS


# ---------------------------------------------------------------- the decision to record


def test_a_graph_records_after_the_warm_up_and_copies_each_batch_into_its_places(gpu):
    setup, _ = made("optimizer=sgd")
    calls = []

    def step(state, inputs, targets):
        calls.append(gpu.recording)
        return inputs.sum() + targets.sum()

    replay = capture_cuda_graph(step)
    setup.state.begin_step()
    results = []
    for n in range(6):
        inputs = torch.full((4, 1), float(n), device=DEVICE)
        results.append(float(replay(setup.state, inputs, torch.ones(4, device=DEVICE))))
    assert results == [4 * n + 4 for n in range(6)]
    assert [bool(recording) for recording in calls] == [False] * WARM_UP + [True]
    (graph,) = gpu.graphs
    assert isinstance(graph, Graph)
    assert graph.replays == 3
    assert gpu.side_steps == WARM_UP


def test_each_batch_size_has_its_graph(gpu):
    setup, _ = made("optimizer=sgd")
    replay = capture_cuda_graph(lambda state, inputs, targets: inputs.sum())
    for size in (4, 4, 4, 2, 4, 2, 2, 2, 4):
        result = replay(setup.state, torch.ones(size, 1, device=DEVICE), torch.ones(size, device=DEVICE))
        assert float(result) == size
    assert [graph.replays for graph in gpu.graphs] == [2, 1]


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        ([], StepMethod.CUDA_GRAPH),
        (["compile=true"], StepMethod.COMPILED_CUDA_GRAPH),
        (["compile=false"], StepMethod.AUTOGRAD),
        (["optimizer=muon"], StepMethod.AUTOGRAD),
        (["optimizer=muon", "compile=true"], StepMethod.COMPILED),
        (["train.mixup=0.3", "train.ema=0.9", "train.clip_grad_norm=1"], StepMethod.CUDA_GRAPH),
    ],
)
def test_which_steps_are_recorded(overrides, method, gpu):
    assert made(*overrides)[0].step_method is method


# ---------------------------------------------------------------- data that exceeds the device's memory


def test_data_that_does_not_fit_is_copied_from_pinned_memory():
    _, expected, _ = trained(*MODELS["cnn"], *EAGER)
    with simulated_gpu(memory=1000) as gpu:
        setup, events, _ = trained(*MODELS["cnn"], *EAGER)
        assert setup.loader(setup.dataset.train).inputs.device.type == "cpu"
        assert len(gpu.pinned) >= 2
    check_equal(events, expected)


# ---------------------------------------------------------------- whole commands


def run_all(*overrides, **options):
    """Train, and return the path of the checkpoint."""
    chosen = config.load("digits_mlp", overrides)
    return next(event for event in run(chosen, **options) if isinstance(event, Finished)).summary["checkpoint"]


@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn", "transformer"])
def test_a_run_resumes_to_the_same_weights_and_evaluates_and_predicts_as_the_cpu(name, tmp_path):
    settings = [*MODELS[name], "train.epochs=2", "train.ema=0.9", "train.film=true", "precision=float32"]
    settings += ["schedule=constant", "train.batch_size=256"]
    with simulated_gpu() as gpu:
        whole = run_all(*settings, out=tmp_path / "whole", watch=True)
        run_all(*settings, "train.epochs=1", out=tmp_path / "parts")
        parts = run_all(*settings, out=tmp_path / "parts", resume=tmp_path / "parts")
        assert gpu.operations > 1000
        on_gpu = nnx.evaluate(whole)
        loaded, runtime = classifier.load_with_runtime(Path(whole))
        assert runtime.device == DEVICE
        images = datasets.load(config.load("digits_mlp").dataset, seed=0).split("test").inputs[:5]
        answers = loaded(torch.from_numpy(images).to(DEVICE)).cpu()
    on_cpu = nnx.evaluate(whole)
    assert on_gpu["accuracy"] == on_cpu["accuracy"]
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-5)
    torch.testing.assert_close(answers, nnx.load(whole)(torch.from_numpy(images)), rtol=1e-4, atol=1e-5)
    first, second = (checkpoint.read(Path(path)) for path in (whole, parts))
    assert all(torch.equal(first.model[key], second.model[key]) for key in first.model)


def explain_all(path, gpu):
    """What each explainer says of three samples, by operations on the simulated device."""
    saved = checkpoint.read(path)
    dataset = datasets.load(saved.config.dataset, seed=0)
    test = dataset.split("test")
    subject = explain.build_subject(
        saved, dataset.split, test.inputs[:3], ["0", "1", "2"], test.labels[:3], device=DEVICE
    )
    before = gpu.operations
    results = dict(explain.explain(subject))
    assert gpu.operations > before
    return results


@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn", "transformer"])
def test_all_explainers_run_on_the_device(name, tmp_path):
    path = run_all(*MODELS[name], "train.epochs=1", "train.report=false", "device=cpu", out=tmp_path / "r")
    with simulated_gpu() as gpu:
        results = explain_all(Path(path), gpu)
    assert sum(isinstance(result, explain.Explanation) for result in results.values()) >= 4, results


def test_show_measures_on_the_device(gpu):
    measured = measure_throughput(made()[0], made()[0].loader(made()[1]), seconds=0.2)
    assert measured.device_memory == 0
    assert measured.steps > 0


def test_the_process_can_still_fork_and_train(gpu):
    trained(*MODELS["mlp"], *EAGER)
    child = os.fork()
    if not child:
        try:
            (torch.ones(3, requires_grad=True) * 2).sum().backward()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


# ---------------------------------------------------------------- the simulation refuses what a GPU would


def test_a_tensor_left_on_the_cpu_is_refused(gpu):
    with pytest.raises(Refused, match="tensors of the CPU"):
        torch.ones(3, device=DEVICE) + torch.ones(3)


def test_reads_are_counted(gpu):
    x = torch.ones(3, device=DEVICE)
    for read in (
        lambda: float(x.sum()),
        lambda: bool((x > 0).all()),
        x.tolist,
        lambda: x.cpu(),
        lambda: x.sum().item(),
    ):
        gpu.reads.clear()
        read()
        assert gpu.reads


def test_a_read_or_a_copy_during_a_recording_is_refused(gpu):
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(Refused, match="a read"), gpu.record(Graph()):
        x.sum().item()
    with pytest.raises(Refused, match="not pinned"), gpu.record(Graph()):
        torch.ones(3).to(DEVICE)


def test_what_python_computes_is_not_replayed(gpu):
    counter = itertools.count()
    graph = Graph()
    x = torch.zeros(1, device=DEVICE)
    with gpu.record(graph):
        y = x.add_(1) * next(counter)
    assert float(x) == 0, "recording executes nothing"
    assert math.isnan(float(y))
    graph.replay()
    graph.replay()
    assert float(x) == 2
    assert float(y) == 0


def test_memory_that_is_still_copied_must_not_be_written(gpu):
    gather = pinned_gather(DEVICE)
    source = torch.arange(8.0).view(4, 2)
    index = torch.tensor([0, 1])
    batches = [gather(source, index), gather(source, index), gather(source, index)]
    assert all(batch.cpu().tolist() == [[0, 1], [2, 3]] for batch in batches)
    pinned = next(iter(gpu.pinned.values()))
    gpu.in_flight.add(pinned.untyped_storage().data_ptr())
    with pytest.raises(Refused, match="may still be copied"):
        pinned.zero_()


@pytest.fixture(autouse=True)
def masks_of_the_device(monkeypatch):
    """Dropout draws the same masks on the CPU as torch does on a device."""
    monkeypatch.setattr(dropout, "draw_mask", dropout.bernoulli_mask)
