"""The film of a training run (`train.film`): the network's outputs for fixed samples at steps 0, 1, 2, 3, ...

Frames become rarer as training goes on.

    recorder = FilmRecorder(state, spec, samples)     # and recorder.resume(folder) when a run resumes
    if recorder.due: recorder.record()                # after a step
    recorder.write(folder)                            # film.npz; before the state is saved, so that no frame is lost
    film = read(folder / "film.npz")

A frame is computed in evaluation mode, without gradients and without random numbers: training has the same bits with
and without a film. A resumed run has the same film as one that was never stopped.
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
GROWTH = 1.25  # ratio of successive frame steps: 38 frames in the 4,300 steps of mnist_mlp, 75 in 20 million
PROBE = 200  # samples
# Numbers of the filters, and of the activations, in a frame, at most: with 75 such frames a film has 11 MB
NUMBERS = 32 * 32 * 32
DIMENSIONS = 16  # principal components of the last hidden layer
LAYER = "layer "  # prefix of the arrays with each layer's output for the first sample
GRID = 64  # points per side, in the plane of two features
MAX_BYTES = 64 * 2**20  # no film is larger

Frame = dict[str, NDArray[Any]]


# Arrays that a film contains once; all others have one entry per frame, first to last
CONSTANT = {"places", "labels", "sample", "low", "high", "points"}
# Arrays with an entry per frame and sample, and their dimensions: frames, samples, components
PER_SAMPLE = {"predicted": 2, "right": 2, "embedding": 3}


def next_frame_step(step: int) -> int:
    """The first step after `step` that has a frame. It does not depend on the length of the run."""
    frame_step = 0
    while frame_step <= step:
        frame_step = max(frame_step + 1, round(frame_step * GROWTH))
    return frame_step


def is_frame_step(step: int) -> bool:
    """Whether a run of any length has a frame of `step`."""
    return step == 0 or next_frame_step(step - 1) == step


class FilmRecorder:
    """Records the frames of a run.

    Of several ranks, only rank 0 records; all check whether a frame is due, because all must check equally often.
    """

    def __init__(self, state: State, spec: Spec, samples: Split) -> None:
        self.state = state
        self.spec = spec
        # Evenly spread, so that all classes are included, whatever the order of the samples
        self.indices = np.unique(np.linspace(0, len(samples) - 1, PROBE).astype(np.int64))
        self.probe = samples.take(self.indices)
        self.normalise = Normalise(spec, state.loss.device)
        self.inputs = self.normalise(torch.from_numpy(np.array(self.probe.inputs)).to(state.loss.device))
        self.frames: dict[int, Frame] = {}
        self._next = next_frame_step(state.step - 1)  # the present step, if it has a frame
        self._changed = False  # whether the frames differ from the file

    @property
    def due(self) -> bool:
        """Whether the present step needs a frame."""
        return self.state.step == self._next

    def resume(self, folder: Path) -> None:
        """Continue the film in `folder`, if there is one. Drops frames after the state's step.

        Raises CheckpointError where the film can't be read, or shows other samples.
        """
        if distributed.current().rank or not (folder / NAME).exists():
            return
        film = read(folder / NAME)
        if film["places"].tolist() != self.indices.tolist() or film["labels"].tolist() != self.probe.labels.tolist():
            raise CheckpointError(f"{folder / NAME}: shows other samples")
        steps = film.pop("step").tolist()
        rows = {step: n for n, step in enumerate(steps) if step <= self.state.step and is_frame_step(step)}
        keys = [key for key in film if key not in CONSTANT]  # in order, so that equal films are equal files
        self.frames = {step: {key: film[key][n] for key in keys} for step, n in rows.items()}
        self._changed = len(rows) < len(steps)

    def record(self) -> None:
        """Record a frame of the present state."""
        if distributed.current().rank == 0 and self.state.step not in self.frames:
            network = self.state.evaluated
            training = network.training
            self.frames[self.state.step] = _frame(
                network.eval(), self.inputs, self.probe.labels, self.spec, self._plane
            )
            network.train(training)
            self._changed = True
        self._next = next_frame_step(self.state.step)

    def write(self, folder: Path) -> None:
        """Replace film.npz if the frames have changed. Raises MachineError."""
        if not self._changed:
            return
        steps = sorted(self.frames)
        constant = {"places": self.indices, "labels": self.probe.labels, "sample": self.probe.inputs[0]} | self._axes
        per_frame = {key: np.stack([self.frames[step][key] for step in steps]) for key in self.frames[steps[0]]}
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, step=np.array(steps), **constant, **per_frame)
        files.replace(folder / NAME, data.getvalue())
        self._changed = False

    @property
    def _axes(self) -> Frame:
        """The raw ranges of two features, each the samples' range plus a tenth on either side; empty for other data."""
        if self.spec.shape != (2,):
            return {"low": np.zeros(0), "high": np.zeros(0), "points": np.zeros((0, 2))}
        points = np.asarray(self.probe.inputs)
        low, high = points.min(0), points.max(0)
        margin = (high - low) / 10 + 1e-6
        return {"low": low - margin, "high": high + margin, "points": points}

    @property
    def _plane(self) -> Tensor | None:
        """(GRID², 2) normalised points, rows from the top; None unless there are two features."""
        if self.spec.shape != (2,):
            return None
        axes = self._axes
        across, up = (np.linspace(axes["low"][n], axes["high"][n], GRID, dtype=np.float32) for n in (0, 1))
        points = np.stack(np.meshgrid(across, up[::-1]), -1).reshape(-1, 2)
        return self.normalise(torch.from_numpy(points).to(self.inputs.device))


def _frame(network: nn.Module, inputs: Tensor, labels: NDArray[np.int64], spec: Spec, plane: Tensor | None) -> Frame:
    """One frame of a network in evaluation mode."""
    hidden_inputs: list[Tensor] = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    with models.registered_hooks(
        module.register_forward_pre_hook(lambda _, inputs: hidden_inputs.append(inputs[0])) for module in last
    ):
        outputs = _layer_outputs.layer_outputs(network, inputs)
    logits = outputs.pop(_layer_outputs.LOGITS)
    probabilities = losses.probabilities(logits).numpy()
    hidden = torch.cat(hidden_inputs) if hidden_inputs else logits
    frame = {
        "predicted": probabilities.argmax(1).astype(np.uint16),
        "right": _half(probabilities[np.arange(len(labels)), labels]),  # the probability of the target class
        "embedding": _half(_components(hidden.flatten(1).cpu().double().nan_to_num())),
        "filters": _half(_limit_filters(first_weights(network, inputs[:1], spec)[1])),
    }
    remaining = NUMBERS
    for name, output in outputs.items():
        maps = _feature_maps(output[0].numpy())
        if maps.size <= remaining:
            frame[f"{LAYER}{name}"] = _half(maps)
            remaining -= maps.size
    if plane is not None:
        with torch.no_grad():
            regions = losses.probabilities(network(plane)).cpu().numpy()
        frame |= {"region": regions.argmax(1).astype(np.uint16), "sure": np.rint(255 * regions.max(1)).astype(np.uint8)}
    return frame


def _components(hidden: Tensor) -> NDArray[np.float64]:
    """(P, D) -> (P, DIMENSIONS): the samples' principal components, padded with zeros where D is smaller.

    Scaled to a root mean square distance of 1 from their mean, so that half precision suffices; the scale of
    activations means little. Computed with torch, because numpy's threads spin while they wait: beside other busy
    processes a frame then took 300 ms instead of 20.
    """
    u, singular, _ = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False)
    scores = u * singular
    components = torch.zeros(len(scores), DIMENSIONS, dtype=scores.dtype)
    components[:, : scores.shape[1]] = scores[:, :DIMENSIONS]
    scaled: NDArray[np.float64] = (components / (scores.square().sum(1).mean().sqrt() or 1.0)).numpy()
    return scaled


def _limit_filters(images: NDArray[Any]) -> NDArray[Any]:
    """The first of (n, C, h, w) filters or (n, m) weights: at most 64, at most 32 x 32 pixels, within NUMBERS."""
    if images.ndim == 2:
        return images[:64, :512]
    images = _shrink(images[:64], 32)
    most = NUMBERS // images[0].size
    return images[: max(1, most // 8 * 8 or most)]  # a multiple of eight, for whole rows


def _feature_maps(output: NDArray[Any]) -> NDArray[Any]:
    """A layer's output for one sample as (n, h, w) maps.

    The first 16 feature maps of a convolution; (1, T, D) for tokens or states; (1, 1, units) for units.
    """
    if output.ndim == 3:
        output = _shrink(output[None, :16], 28)[0]
    maps: NDArray[Any] = output if output.ndim == 3 else np.atleast_2d(output)[None, :64, :512]
    return maps


def _shrink(images: NDArray[Any], side: int) -> NDArray[Any]:
    """(n, C, h, w) images, shrunk to at most `side` pixels on the longer side."""
    ratio = side / max(images.shape[2:])
    if ratio >= 1:
        return images
    size = [max(1, round(length * ratio)) for length in images.shape[2:]]
    shrunk: NDArray[Any] = nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(images)), size, mode="area"
    ).numpy()
    return shrunk


def _half(values: NDArray[Any]) -> NDArray[np.float16]:
    """In half precision, clipped to its range, so that a run that is about to diverge can be recorded too."""
    most = float(np.finfo(np.float16).max)
    half: NDArray[np.float16] = np.nan_to_num(values, posinf=most, neginf=-most).clip(-most, most).astype(np.float16)
    return half


def read(path: Path) -> Frame:
    """A film's arrays by name. Raises CheckpointError where the file can't be read or is not a film."""
    try:
        files.check_regular(path)
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise CheckpointError(f"{path}: is too large for a film")
        with np.load(path, allow_pickle=False) as arrays:
            film = {name: arrays[name] for name in arrays.files}
        is_valid = _is_valid(film)
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
    if not is_valid:
        raise CheckpointError(f"{path}: lacks arrays of a film, or their shapes are wrong")
    return film


def _is_valid(film: Frame) -> bool:
    """Whether all arrays of a film are present and have the right shapes for its steps and samples."""
    steps, samples = film["step"].size, film["labels"].size
    return (
        film.keys() >= CONSTANT | PER_SAMPLE.keys() | {"filters"}
        and film["step"].ndim == film["labels"].ndim == film["low"].ndim == 1
        and film["sample"].ndim in (1, 3)
        and bool(film["sample"].size)
        and all(array.dtype.kind in "uif" for array in film.values())
        and all(array.ndim and len(array) == steps for key, array in film.items() if key not in CONSTANT)
        and all(
            film[key].ndim == dimensions and film[key].shape[1] == samples and film[key].size
            for key, dimensions in PER_SAMPLE.items()
        )
        and all(
            film[key].ndim in (3, 4, 5) and film[key].size for key in film if key == "filters" or key.startswith(LAYER)
        )
        and min(steps, samples) > 0
        and ("region" in film) == ("sure" in film) == bool(len(film["low"]))
        and ("region" not in film or _is_valid_plane(film, steps, samples))
    )


def _is_valid_plane(film: Frame, steps: int, samples: int) -> bool:
    """Whether the arrays for two features have the right shapes."""
    shapes = {"region": (steps, GRID**2), "sure": (steps, GRID**2), "low": (2,), "high": (2,), "points": (samples, 2)}
    return all(film[key].shape == shape for key, shape in shapes.items()) and bool((film["high"] > film["low"]).all())


def read_or_none(folder: Path) -> Frame | None:
    """The film in a run folder, or None where there is none or it can't be read."""
    try:
        return read(folder / NAME)
    except CheckpointError:
        return None


def align_frames(embedding: NDArray[Any]) -> NDArray[np.float64]:
    """(S, P, D) -> (S, P, 2): project the embedding of each frame onto a plane, without jumps between frames.

    The last frame is shown along its first two principal components. Each earlier frame is rotated so that its points
    are as close as possible to those of the next frame (orthogonal Procrustes, Schönemann 1966). Frames are only
    rotated, so distances within a frame stay the same, as far as a plane shows them.
    """
    frames = embedding.astype(np.float64)
    flat = np.empty((*frames.shape[:2], 2))
    flat[-1] = frames[-1][:, :2]
    for n in range(len(frames) - 2, -1, -1):
        u, _, vt = np.linalg.svd(frames[n].T @ flat[n + 1], full_matrices=False)  # (D, 2), (2, 2)
        flat[n] = frames[n] @ (u @ vt)
    return flat
