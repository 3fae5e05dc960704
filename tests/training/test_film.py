"""The film: the training's bits are the same with it, a resume goes on with it, and its frames are what the network
is."""

import os
import signal
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.decomposition import PCA

from nnx import checkpoint, config, datasets, errors, models
from nnx.checkpoint import build_network
from nnx.config import registry
from nnx.datasets import Split
from nnx.events import Started
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.report import _film
from nnx.run.pipeline import run
from nnx.system.device import choose_runtime
from nnx.training import film
from nnx.training.setup import prepare
from nnx.training.state import State

RANDOM = [
    "train.report=false",
    "train.epochs=2",
    "train.augment={shift: 1, rotate: 10, erase: 0.2}",
    "train.mixup=0.2",
    "train.batch_size=64",
]
MODELS = {
    "mlp": "{name: mlp, hidden: [16], norm: batch, dropout: 0.2}",
    "cnn": "{name: cnn, channels: [4, 8], dropout: 0.2}",
    "rnn": "{name: rnn, hidden: 16, layers: 2, bidirectional: true, dropout: 0.2}",
    "transformer": "{name: transformer, patch: 2, width: 16, depth: 1, heads: 2, dropout: 0.2}",
}


def trained(out: Path, model: str = "mlp", *more: str, **options) -> Path:
    for _ in run(config.load("digits_mlp", [f"model={MODELS.get(model, model)}", *RANDOM, *more]), out=out, **options):
        pass
    return out


def after(steps: int):
    """A signal after so many steps, or looks at the end of an epoch."""
    seen = 0

    def stop() -> int:
        nonlocal seen
        seen += 1
        return signal.SIGTERM if seen >= steps else 0

    return stop


def tensors(path: Path) -> dict[str, torch.Tensor]:
    kept = checkpoint.read(path)
    found = {f"model.{name}": tensor for name, tensor in kept.model.items()}
    for optimizer in (kept.training or {}).get("optimizers", []):
        for number, moments in optimizer["state"].items():
            found |= {f"{number}.{name}": moment for name, moment in moments.items()}
    return found


def same(one: Path, other: Path) -> bool:
    return all(
        tensors(one / name).keys() == tensors(other / name).keys()
        and all(torch.equal(value, tensors(other / name)[key]) for key, value in tensors(one / name).items())
        for name in ("checkpoint.pt", "last.pt")
    )


# ---------------------------------------------------------------- when


def test_frames_are_close_at_first_and_ever_rarer():
    steps = [step for step in range(4300) if film.is_frame_step(step)]
    assert steps[:14] == [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 30]
    assert 35 <= len(steps) <= 40
    far = [step for step in steps if step > 100]
    assert all(1.2 < later / earlier < 1.3 for earlier, later in pairwise(far))
    at, found = -1, []
    while at < 4300:
        at = film.next_frame_step(at)
        found.append(at)
    assert found[:-1] == steps


# ---------------------------------------------------------------- what it must not change


@pytest.mark.parametrize("model", registry.names("model"))
@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_the_training_is_the_same_to_the_bit(tmp_path, model, ema):
    one = trained(tmp_path / "with", model, f"train.ema={ema}", "train.epochs=1", "train.film=true")
    other = trained(tmp_path / "without", model, f"train.ema={ema}", "train.epochs=1")
    assert same(one, other)
    assert (one / "film.npz").exists()
    assert not (other / "film.npz").exists()


def test_the_control_a_frame_in_training_mode_would_change_it(tmp_path, monkeypatch):
    look = film._frame

    def careless(network, inputs, *more):
        network.train()
        return look(network, inputs, *more)

    monkeypatch.setattr(film, "_frame", careless)
    more = ("cnn", "train.ema=null", "train.epochs=1")
    assert not same(trained(tmp_path / "with", *more, "train.film=true"), trained(tmp_path / "without", *more))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_that_it_was_in(training):
    recorder = recorder_of("mlp")
    recorder.state.model.train(training)
    recorder.record()
    assert {module.training for module in recorder.state.model.modules()} == {training}


# ---------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("whole") / "r", "cnn", "train.film=true", "train.save_every=7")


@pytest.mark.parametrize("steps", [1, 5, 19, 20, 30])
def test_a_stopped_run_has_the_film_of_one_that_was_not(whole, tmp_path, steps):
    more = ["train.film=true", "train.save_every=7"]
    with pytest.raises(errors.Stopped):
        trained(tmp_path / "r", "cnn", *more, signal=after(steps))
    trained(None, "cnn", *more, resume=tmp_path / "r")
    assert (tmp_path / "r/film.npz").read_bytes() == (whole / "film.npz").read_bytes()


def test_more_epochs_make_the_film_of_a_run_that_had_them_at_once(tmp_path):
    more = ["train.film=true", "schedule=constant"]
    trained(tmp_path / "r", "mlp", *more)
    assert film.read(tmp_path / "r/film.npz")["step"][-1] == 36, "the last step, which is not a frame step"
    trained(None, "mlp", *more, "train.epochs=4", resume=tmp_path / "r")
    trained(tmp_path / "whole", "mlp", *more, "train.epochs=4")
    assert (tmp_path / "r/film.npz").read_bytes() == (tmp_path / "whole/film.npz").read_bytes()


def test_frames_behind_the_state_are_dropped(whole, tmp_path):
    """A crash between the film and the state leaves a film that is ahead."""
    with pytest.raises(errors.Stopped):
        trained(tmp_path / "r", "cnn", "train.film=true", "train.save_every=7", signal=after(4))
    ahead = film.read(whole / "film.npz")
    (tmp_path / "r/film.npz").write_bytes((whole / "film.npz").read_bytes())
    job = prepare(config.load("digits_mlp", [f"model={MODELS['cnn']}", *RANDOM]))
    recorder = film.FilmRecorder(job.state, job.dataset.spec, job.dataset.validation)
    recorder.state.step = 4
    recorder.resume(tmp_path / "r")
    assert sorted(recorder.frames) == [0, 1, 2, 3, 4]
    assert ahead["step"][-1] == 36
    trained(None, "cnn", "train.film=true", "train.save_every=7", resume=tmp_path / "r")
    assert (tmp_path / "r/film.npz").read_bytes() == (whole / "film.npz").read_bytes()


CHANGES = {
    "is not there": None,
    "is a number": lambda array: np.zeros((), array.dtype),
    "is shorter": lambda array: array[:-1],
    "is empty": lambda array: array[:0],
    "has a dimension more": lambda array: array[..., None],
    "is text": lambda array: np.full(array.shape, "x"),
}


@pytest.fixture(scope="module")
def of_the_plane(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plane") / "r"
    settings = ["train.epochs=1", "train.film=true", "train.report=false", "model.hidden=[8]"]
    for _ in run(config.load("spirals_mlp", settings), out=folder):
        pass
    return folder


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["whole", "of_the_plane"])
def test_a_film_that_somebody_changed_is_refused_or_can_be_shown(kind, change, request, tmp_path):
    folder = request.getfixturevalue(kind)
    frames, spec = film.read(folder / "film.npz"), checkpoint.read(folder / "checkpoint.pt").spec
    refused = 0
    for key, array in frames.items():
        changed = CHANGES[change] and CHANGES[change](array)
        np.savez(
            tmp_path / "film.npz",
            **{name: each for name, each in (frames | {key: changed}).items() if each is not None},
        )
        try:
            found = film.read(tmp_path / "film.npz")
        except errors.CheckpointError:
            refused += 1
        else:
            _film.for_page(found, spec, 36.0)
    assert refused >= 5


@pytest.mark.parametrize("damage", ["cut", "text", "gone", "other samples", "a bomb", "an object", "parts missing"])
def test_without_a_readable_film_a_new_one_starts(tmp_path, damage):
    with pytest.raises(errors.Stopped):
        trained(tmp_path / "r", "mlp", "train.film=true", signal=after(6))
    path = tmp_path / "r/film.npz"
    frames = film.read(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("film")
    elif damage == "gone":
        path.unlink()
    elif damage == "other samples":
        np.savez(path, **frames | {"places": frames["places"] + 1})
    elif damage == "a bomb":
        np.savez_compressed(path, **frames | {"sure": np.zeros(80 * 2**20, np.uint8)})
        assert path.stat().st_size < 2**20
    elif damage == "an object":
        np.savez(path, **frames | {"sure": np.array([print], dtype=object)})
    else:
        np.savez(path, **{key: value for key, value in frames.items() if key != "labels"})
    happened = list(
        run(config.load("digits_mlp", [f"model={MODELS['mlp']}", *RANDOM, "train.film=true"]), resume=tmp_path / "r")
    )
    warnings = next(event.warnings for event in happened if isinstance(event, Started))
    assert [
        warning for warning in warnings if "film.npz" in warning and "starts again at step 6" in warning
    ] or damage == "gone"
    steps = film.read(path)["step"].tolist()
    assert steps == [6, 8, 10, 12, 15, 19, 24, 30, 36]


def test_force_replaces_it(tmp_path):
    trained(tmp_path / "r", "mlp", "train.film=true", "train.report=true")
    assert {"film.npz", "report.html"} <= set(os.listdir(tmp_path / "r"))
    trained(tmp_path / "r", "mlp", force=True)
    assert not {"film.npz", "report.html"} & set(os.listdir(tmp_path / "r"))


# ---------------------------------------------------------------- what is in it


def recorder_of(model: str, shape: tuple[int, ...] = (1, 8, 8), K: int = 10, samples: int = 250) -> film.FilmRecorder:
    rng = np.random.default_rng(0)
    settings = config.load("digits_mlp", [f"model={MODELS.get(model, model)}", "train.ema=null"])
    spec = Spec(shape, tuple(map(str, range(K))), (0.4,) * shape[0], (0.3,) * shape[0])
    torch.manual_seed(0)
    state = State.new(settings, models.build(settings.model, spec, K), choose_runtime("cpu", "float32"), 10)
    inputs = (
        rng.integers(0, 256, (samples, *shape), dtype=np.uint8)
        if len(shape) == 3
        else rng.normal(size=(samples, *shape)).astype("f4")
    )
    return film.FilmRecorder(state, spec, Split(inputs, rng.integers(0, K, samples)))


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_last_frame_is_the_network_that_came_out(tmp_path, model):
    plain = ["train.ema=null", "train.mixup=0", "train.augment={}", "train.epochs=10"]
    folder = trained(tmp_path / "r", model, "train.film=true", *plain)
    frames, kept = film.read(folder / "film.npz"), checkpoint.read(folder / "last.pt")
    net = build_network(kept).eval()
    data = datasets.load(kept.config.dataset, seed=kept.config.seed).validation
    assert len(frames["places"]) == 200
    inputs = Normalise(kept.spec, torch.device("cpu"))(torch.from_numpy(data.inputs[frames["places"]]))
    with torch.no_grad():
        probabilities = net(inputs).softmax(1).numpy()
    assert np.array_equal(frames["labels"], data.labels[frames["places"]])
    assert np.array_equal(frames["predicted"][-1], probabilities.argmax(1))
    np.testing.assert_allclose(frames["right"][-1], probabilities[np.arange(200), frames["labels"]], atol=1e-3)
    assert (
        (frames["predicted"][0] == frames["labels"]).mean()
        < 0.3
        < 0.7
        < (frames["predicted"][-1] == frames["labels"]).mean()
    )
    weight = kept.model["layers.1.weight" if model == "mlp" else "stages.0.conv.weight"]
    seen = weight.reshape(16, 1, 8, 8) if model == "mlp" else weight
    np.testing.assert_allclose(frames["filters"][-1], seen, atol=1e-3)
    with torch.no_grad():
        answer = net.stages[0](inputs[:1])[0] if model == "cnn" else net.layers[:4](inputs[:1])[None]
    np.testing.assert_allclose(frames["layer stages.0" if model == "cnn" else "layer layers.1"][-1], answer, atol=2e-3)


def test_the_embedding_is_scikit_learns():
    recorder = recorder_of("{name: mlp, hidden: [40, 30]}")
    recorder.record()
    with torch.no_grad():
        hidden = recorder.state.model.layers[:-1](recorder.inputs).double().numpy()
    theirs = PCA(16, svd_solver="full").fit_transform(hidden)
    distance = np.sqrt(np.square(hidden - hidden.mean(0)).sum(1).mean())
    np.testing.assert_allclose(np.abs(recorder.frames[0]["embedding"]), np.abs(theirs) / distance, atol=2e-3)


def test_frames_are_rotated_to_fit_and_nothing_else():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(50, 16)) * np.linspace(4, 1, 16)
    cloud -= cloud.mean(0)
    cloud = PCA(16).fit_transform(cloud)
    turned = np.stack([cloud @ ortho_group.rvs(16, random_state=n) for n in range(4)] + [cloud])
    flat = film.align_frames(turned)
    for frame in flat:
        np.testing.assert_allclose(frame, cloud[:, :2], atol=1e-8)
    plain = turned[:, :, :2]
    assert np.abs(plain[0] - plain[1]).mean() > 1, "the control: as they are, they jump"
    stretched = film.align_frames(np.stack([cloud / 2, cloud]))
    np.testing.assert_allclose(stretched[0], cloud[:, :2] / 2, atol=1e-8)


def test_the_regions_are_what_the_network_says_there():
    recorder = recorder_of("{name: mlp, hidden: [8]}", (2,), 3)
    recorder.record()
    frame, axes = recorder.frames[0], recorder._axes
    for row, column in [(0, 0), (5, 40), (63, 63)]:
        x = axes["low"][0] + (axes["high"][0] - axes["low"][0]) * column / 63
        y = axes["high"][1] - (axes["high"][1] - axes["low"][1]) * row / 63
        with torch.no_grad():
            said = recorder.state.model(recorder.normalise(torch.tensor([[x, y]]).float())).softmax(1)[0]
        assert frame["region"][row * 64 + column] == said.argmax()
        assert frame["sure"][row * 64 + column] == pytest.approx(255 * float(said.max()), abs=1)
    assert np.ptp(frame["region"]) > 0


@pytest.mark.parametrize(
    ("model", "shape", "K"),
    [
        ("{name: mlp, hidden: [256, 128]}", (1, 28, 28), 10),
        ("{name: mlp, hidden: [16]}", (3, 120, 200), 100),
        ("{name: mlp, hidden: [2000, 1000]}", (300,), 1000),
        ("{name: mlp, hidden: []}", (4,), 2),
        ("{name: cnn, channels: [16, 4], depth: 2}", (3, 64, 96), 10),
        ("{name: transformer, patch: 4, width: 32, depth: 6}", (1, 28, 28), 10),
        ("{name: rnn, hidden: 256, layers: 2}", (1, 28, 28), 10),
    ],
)
def test_the_longest_film_is_under_20_mb(model, shape, K, tmp_path):
    recorder = recorder_of(model, shape, K, samples=205)
    recorder.record()
    recorder.write(tmp_path)
    with zipfile.ZipFile(tmp_path / "film.npz") as archive:
        frame = sum(member.file_size for member in archive.infolist())
    steps = (
        sum(film.is_frame_step(step) for step in range(20_000_000 // 1000)) + 36
    )  # the next three powers of ten have 31 more
    assert frame * steps < 20e6
    frames = film.read(tmp_path / "film.npz")
    assert frames["embedding"].shape == (1, 200, 16)
    assert frames["filters"].size


def test_a_diverging_network_is_recorded_without_an_error():
    recorder = recorder_of("{name: mlp, hidden: [8]}")
    with torch.no_grad():
        for parameter in recorder.state.model.parameters():
            parameter.mul_(1e30)
    with np.errstate(all="raise"):
        recorder.record()
    assert all(np.isfinite(values.astype(np.float64)).all() for values in recorder.frames[0].values())


def test_the_probe_has_every_class_of_data_in_order():
    labels = np.repeat(np.arange(10), 100)
    recorder = recorder_of("mlp", samples=1000)
    again = film.FilmRecorder(recorder.state, recorder.spec, Split(np.zeros((1000, 1, 8, 8), np.uint8), labels))
    assert np.bincount(again.probe.labels).tolist() == [20] * 10


# ---------------------------------------------------------------- train.film: auto


@pytest.mark.parametrize(
    ("recipe", "settings", "value", "reason"),
    [
        ("digits_mlp", [], "on", "of digits it takes less than a second"),
        ("spirals_mlp", [], "on", "of two features it takes less than a second"),
        ("iris_mlp", [], "off", "automatic for digits and data of two features"),
        ("digits_mlp", ["train.report=false"], "off", "the report that shows it is off too"),
        ("digits_mlp", ["train.film=false"], "off", "as requested"),
        ("iris_mlp", ["train.film=true"], "on", "as requested"),
    ],
)
def test_29_the_film_is_on_by_default_where_it_is_cheap_and_says_so(recipe, settings, value, reason, tmp_path):
    chosen = config.load(recipe, ["train.epochs=1", *settings])
    started, *_ = run(chosen, out=tmp_path / "r")
    (choice,) = [choice for choice in started.choices if choice.what == "film"]
    assert choice.value == value
    assert choice.reason.startswith(reason)
    assert (tmp_path / "r/film.npz").exists() == (value == "on")
    report = tmp_path / "r/report.html"
    assert (report.exists() and 'id="film"' in report.read_text()) == (value == "on")


def test_29_a_resumed_run_without_a_film_does_not_begin_one(tmp_path):
    trained(tmp_path / "r", "mlp", "train.report=false")
    trained(None, "mlp", "train.report=true", resume=tmp_path / "r")
    assert not (tmp_path / "r/film.npz").exists()


def test_29_an_automatic_film_continues_after_a_resume(tmp_path):
    settings = ["train.epochs=2", "schedule=constant"]
    trained(tmp_path / "whole", "mlp", *settings, "train.report=true")
    with pytest.raises(errors.Stopped):
        trained(tmp_path / "r", "mlp", *settings, "train.report=true", signal=after(2))
    trained(None, "mlp", *settings, "train.report=true", resume=tmp_path / "r")
    assert (tmp_path / "r/film.npz").read_bytes() == (tmp_path / "whole/film.npz").read_bytes()
