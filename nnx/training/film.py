"""The film of learning (`train.film: true`): what a network makes of the same samples at step 0, 1, 2, 3, ... and ever
more rarely.

    recorder = Recorder(state, spec, validation)      # and recorder.resume(folder) where a run goes on
    if recorder.due: recorder.record()                # after a step
    recorder.write(folder)                            # film.npz; before the state is saved, so that no frame is lost
    film = read(folder / "film.npz")

The network is looked at in evaluation mode, without gradients and without drawing a random number: the training is the
same to the bit with a film and without. After a resume the film is that of a run that was never stopped.
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import losses, models
from nnx.datasets import Split
from nnx.errors import CheckpointError
from nnx.models import _layer_outputs
from nnx.models._first_layer import first_weights
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.system import distributed, files
from nnx.training.state import State

NAME = "film.npz"
GROWTH = 1.25  # from one step that is kept to the next: 38 frames in the 4,300 steps of mnist_mlp, 75 in 20 million
PROBE = 200  # samples
NUMBERS = (
    32 * 32 * 32
)  # of the filters in a frame, and of the activations, at most: with 75 frames of them a film has 11 MB
DIMENSIONS = 16  # of the last hidden layer that are kept
LAYER = "layer "  # before the name of each layer whose answer to the first sample is kept
GRID = 64  # points a side, of the plane of two features
MAX_BYTES = 64 * 2**20  # no film is larger

Frame = dict[str, NDArray[Any]]


def next_step(step: int) -> int:
    """The step after `step` of which a frame is kept: it does not depend on how long the run is."""
    wanted = 0
    while wanted <= step:
        wanted = max(wanted + 1, round(wanted * GROWTH))
    return wanted


def is_kept(step: int) -> bool:
    """Whether a frame of it is kept, however long the run is."""
    return step == 0 or next_step(step - 1) == step


class FilmRecorder:
    """Keeps the frames of a run. Of several ranks, rank 0 does; all ask whether a frame is due, as their questions must
    be equally many."""

    def __init__(self, state: State, spec: Spec, validation: Split) -> None:
        self.state, self.spec = state, spec
        self.places = np.unique(
            np.linspace(0, len(validation) - 1, PROBE).astype(np.int64)
        )  # of all classes, whatever the order
        self.probe = validation.take(self.places)
        self.normalise = Normalise(spec, state.loss.device)
        self.inputs = self.normalise(torch.from_numpy(np.array(self.probe.inputs)).to(state.loss.device))
        self.frames: dict[int, Frame] = {}
        self._next = next_step(state.step - 1)  # the step itself, if it is one that is kept
        self._changed = False  # the frames are others than the file's

    @property
    def due(self) -> bool:
        """Whether the state stands at a step that is to be kept."""
        return self.state.step == self._next

    def resume(self, folder: Path) -> None:
        """Go on with the film in `folder`, if there is one; frames behind the state's step are dropped.

        Raises CheckpointError where it can't be read, or is of other samples.
        """
        if distributed.current().rank or not (folder / NAME).exists():
            return
        film = read(folder / NAME)
        if film["places"].tolist() != self.places.tolist() or film["labels"].tolist() != self.probe.labels.tolist():
            raise CheckpointError(f"{folder / NAME}: is of other samples")
        steps = film.pop("step").tolist()
        kept = {step: n for n, step in enumerate(steps) if step <= self.state.step and is_kept(step)}
        moving = [key for key in film if key not in STILL]  # in their order, so that equal films are equal files
        self.frames = {step: {key: film[key][n] for key in moving} for step, n in kept.items()}
        self._changed = len(kept) < len(steps)

    def record(self) -> None:
        """Keep a frame of the state as it stands."""
        if distributed.current().rank == 0 and self.state.step not in self.frames:
            network = self.state.evaluated
            training = network.training
            self.frames[self.state.step] = _frame(
                network.eval(), self.inputs, self.probe.labels, self.spec, self._plane
            )
            network.train(training)
            self._changed = True
        self._next = next_step(self.state.step)

    def write(self, folder: Path) -> None:
        """Replace film.npz, where there is something new. Raises MachineError."""
        if not self._changed:
            return
        steps = sorted(self.frames)
        still = {"places": self.places, "labels": self.probe.labels, "sample": self.probe.inputs[0]} | self._axes
        moving = {key: np.stack([self.frames[step][key] for step in steps]) for key in self.frames[steps[0]]}
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, step=np.array(steps), **still, **moving)
        files.replace(folder / NAME, data.getvalue())
        self._changed = False

    @property
    def _axes(self) -> Frame:
        """Of two features, the raw values at the grid's sides: the samples' range and a tenth more."""
        if self.spec.shape != (2,):
            return {"low": np.zeros(0), "high": np.zeros(0), "points": np.zeros((0, 2))}
        points = np.asarray(self.probe.inputs)
        low, high = points.min(0), points.max(0)
        margin = (high - low) / 10 + 1e-6
        return {"low": low - margin, "high": high + margin, "points": points}

    @property
    def _plane(self) -> Tensor | None:
        """(GRID², 2) normalised points, rows from the top, where there are two features."""
        if self.spec.shape != (2,):
            return None
        axes = self._axes
        across, up = (np.linspace(axes["low"][n], axes["high"][n], GRID, dtype=np.float32) for n in (0, 1))
        points = np.stack(np.meshgrid(across, up[::-1]), -1).reshape(-1, 2)
        return self.normalise(torch.from_numpy(points).to(self.inputs.device))


STILL = {
    "places",
    "labels",
    "sample",
    "low",
    "high",
    "points",
}  # what a film holds once; all else is a frame's, first to last
MOVING = {
    "predicted": 2,
    "right": 2,
    "embedding": 3,
}  # of each sample in a frame, in how many dimensions: frames, samples, directions


def _frame(network: nn.Module, inputs: Tensor, labels: NDArray[np.int64], spec: Spec, plane: Tensor | None) -> Frame:
    """What there is to see of a network in evaluation mode."""
    seen: list[Tensor] = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    with models.registered_hooks(
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for module in last
    ):
        outputs = _layer_outputs.layer_outputs(network, inputs)
    logits = outputs.pop(_layer_outputs.LOGITS)
    probabilities = losses.probabilities(logits).numpy()
    hidden = torch.cat(seen) if seen else logits
    frame = {
        "predicted": probabilities.argmax(1).astype(np.uint16),
        "right": _half(probabilities[np.arange(len(labels)), labels]),  # the probability of the true class
        "embedding": _half(_components(hidden.flatten(1).cpu().double().nan_to_num())),
        "filters": _half(_small(first_weights(network, inputs[:1], spec)[1])),
    }
    room = NUMBERS
    for name, output in outputs.items():
        answer = _maps(output[0].numpy())
        if answer.size <= room:
            frame[f"{LAYER}{name}"] = _half(answer)
            room -= answer.size
    if plane is not None:
        with torch.no_grad():
            said = losses.probabilities(network(plane)).cpu().numpy()
        frame |= {"region": said.argmax(1).astype(np.uint16), "sure": np.rint(255 * said.max(1)).astype(np.uint8)}
    return frame


def _components(hidden: Tensor) -> NDArray[np.float64]:
    """(P, D) -> (P, DIMENSIONS): the samples along the directions in which they differ most; zeros where there are
    fewer. At a mean distance of 1 from their middle, so that half precision is enough; how large activations are says
    little anyway.

    By torch, not numpy, whose threads wait for work by spinning: beside other busy processes a frame then took 300 ms
    instead of 20.
    """
    u, singular, _ = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False)
    scores = u * singular
    kept = torch.zeros(len(scores), DIMENSIONS, dtype=scores.dtype)
    kept[:, : scores.shape[1]] = scores[:, :DIMENSIONS]
    distances: NDArray[np.float64] = (kept / (scores.square().sum(1).mean().sqrt() or 1.0)).numpy()
    return distances


def _small(images: NDArray[Any]) -> NDArray[Any]:
    """(n, C, h, w) filters or an (n, m) matrix of weights: the first of them that NUMBERS holds, 64 at most, no larger
    than 32 x 32."""
    if images.ndim == 2:
        return images[:64, :512]
    images = _shrunk(images[:64], 32)
    most = NUMBERS // images[0].size
    return images[: max(1, most // 8 * 8 or most)]  # whole lines of eight


def _maps(answer: NDArray[Any]) -> NDArray[Any]:
    """A layer's answer to one sample -> (n, h, w): of filters the maps of the first 16, else one map, (1, T, D) of the
    tokens or states, (1, 1, units) of neurons."""
    if answer.ndim == 3:
        answer = _shrunk(answer[None, :16], 28)[0]
    maps: NDArray[Any] = answer if answer.ndim == 3 else np.atleast_2d(answer)[None, :64, :512]
    return maps


def _shrunk(images: NDArray[Any], side: int) -> NDArray[Any]:
    """(n, C, h, w) -> the same with a longer side of `side` at most."""
    ratio = side / max(images.shape[2:])
    if ratio >= 1:
        return images
    size = [max(1, round(each * ratio)) for each in images.shape[2:]]
    shrunk: NDArray[Any] = nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(images)), size, mode="area"
    ).numpy()
    return shrunk


def _half(values: NDArray[Any]) -> NDArray[np.float16]:
    """In half precision, what it can't hold at its bounds: a training that is about to diverge is filmed, too."""
    most = float(np.finfo(np.float16).max)
    half: NDArray[np.float16] = np.nan_to_num(values, posinf=most, neginf=-most).clip(-most, most).astype(np.float16)
    return half


def read(path: Path) -> Frame:
    """A film's arrays by their names. Raises CheckpointError where it can't be read or is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise CheckpointError(f"{path}: is larger than any film")
        with np.load(path, allow_pickle=False) as arrays:
            film = {name: arrays[name] for name in arrays.files}
        whole = _is_whole(film)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise CheckpointError(f"{path}: can't be read as a film") from error
    if not whole:
        raise CheckpointError(f"{path}: lacks parts that a film has")
    return film


def _is_whole(film: Frame) -> bool:
    """Whether all that a film has is there, in as many frames as there are steps, of as many samples as there are
    labels."""
    steps, samples = film["step"].size, film["labels"].size
    return (
        film.keys() >= STILL | MOVING.keys() | {"filters"}
        and film["step"].ndim == film["labels"].ndim == film["low"].ndim == 1
        and film["sample"].ndim in (1, 3)
        and bool(film["sample"].size)
        and all(array.dtype.kind in "uif" for array in film.values())
        and all(array.ndim and len(array) == steps for key, array in film.items() if key not in STILL)
        and all(
            film[key].ndim == dimensions and film[key].shape[1] == samples and film[key].size
            for key, dimensions in MOVING.items()
        )
        and all(
            film[key].ndim in (3, 4, 5) and film[key].size for key in film if key == "filters" or key.startswith(LAYER)
        )
        and min(steps, samples) > 0
        and ("region" in film) == ("sure" in film) == bool(len(film["low"]))
        and ("region" not in film or _is_plane(film, steps, samples))
    )


def _is_plane(film: Frame, steps: int, samples: int) -> bool:
    shapes = {"region": (steps, GRID**2), "sure": (steps, GRID**2), "low": (2,), "high": (2,), "points": (samples, 2)}
    return all(film[key].shape == shape for key, shape in shapes.items()) and bool((film["high"] > film["low"]).all())


def read_from_run(folder: Path) -> Frame | None:
    """The film in a run's folder, or None where there is none, or none that can be read."""
    try:
        return read(folder / NAME)
    except CheckpointError:
        return None


def aligned(embedding: NDArray[Any]) -> NDArray[np.float64]:
    """(S, P, D) -> (S, P, 2): the last frame along its two principal directions, and each frame before it turned so
    that its points lie as near as can be to those of the frame behind it (orthogonal Procrustes, Schönemann 1966). So
    clouds drift and don't jump; turned is all that a frame is, so that distances within it are what they were, as far
    as a plane shows them."""
    frames = embedding.astype(np.float64)
    flat = np.empty((*frames.shape[:2], 2))
    flat[-1] = frames[-1][:, :2]
    for n in range(len(frames) - 2, -1, -1):
        u, _, vt = np.linalg.svd(frames[n].T @ flat[n + 1], full_matrices=False)  # (D, 2), (2, 2)
        flat[n] = frames[n] @ (u @ vt)
    return flat
