"""The film of a training for the page: bytes for its script to draw, within a budget that keeps the page small."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing.spec import Spec
from nnx.training import film
from nnx.training.film import Frame

BUDGET = 1_000_000  # bytes of all frames together; base64 adds a third


def for_page(
    recording: Frame, spec: Spec, steps_per_epoch: float | None, titles: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The data that page.js draws. `titles` are those of the layers.

    Pixels are bytes: 1 to 255 with 128 for zero where values have signs, else 0 to 255 from zero up. Each kind of
    picture has one scale over all frames.
    """
    frames = _choose_frames(recording)
    steps = recording["step"][frames].tolist()
    labels = recording["labels"]
    predicted = recording["predicted"][frames]
    true_probability = recording["right"][frames].astype(np.float64)
    layers = [key for key in recording if key.startswith(film.LAYER)]
    data: dict[str, Any] = {
        "steps": steps,
        "epochs": [step / steps_per_epoch for step in steps] if steps_per_epoch else None,
        "accuracy": (predicted == labels).mean(1).tolist(),
        "loss": (-np.log(true_probability.clip(1e-7))).mean(1).tolist(),
        "classes": list(spec.classes),
        "labels": labels.tolist(),
        "predicted": _encode(predicted.astype("<u2")),
        "embedding": _encode(_as_integers(film.align_frames(recording["embedding"][frames]))),
        "filters": _picture_data(recording["filters"][frames], "filters"),
        "layers": [
            _picture_data(recording[key][frames], (titles or {}).get(name := key.removeprefix(film.LAYER), name))
            for key in layers
        ],
    }
    if spec.is_image:
        sample = recording["sample"][None, None].astype(np.float32)
        data["sample"] = _picture_data(sample, spec.classes[labels[0]])
    if "region" in recording:
        low = recording["low"]
        high = recording["high"]
        data["regions"] = {
            "side": film.GRID,
            "classes": _encode(recording["region"][frames].astype("<u2")),
            "sure": _encode(recording["sure"][frames]),
            "points": ((recording["points"] - low) / (high - low)).round(4).tolist(),
        }
    return data


def _choose_frames(recording: Frame) -> NDArray[np.int64]:
    """The numbers of the frames on the page: all, or as many as fit in BUDGET, with the first and the last."""
    steps = len(recording["step"])
    pictures = [key for key in recording if key in ("filters", "region", "sure") or key.startswith(film.LAYER)]
    frame_size = sum(recording[key][0].size for key in pictures) + 4 * recording["predicted"][0].size
    return np.unique(np.linspace(0, steps - 1, max(2, min(steps, BUDGET // frame_size))).round().astype(np.int64))


def _picture_data(values: NDArray[Any], name: str) -> dict[str, Any]:
    """(S, n, h, w) maps, (S, n, C, h, w) images or an (S, n, m) matrix -> n pictures of h x w for each of S frames,
    with C channels if C is 3. A matrix is one picture, its longer side `across`."""
    across = ""
    if values.ndim == 3:
        across = "units" if values.shape[1] >= values.shape[2] else "inputs"
        values = (values.swapaxes(1, 2) if across == "units" else values)[:, None]
    if values.ndim == 5:
        values = np.moveaxis(values, 2, -1) if values.shape[2] == 3 else values.astype(np.float32).mean(2)
    values = values.astype(np.float32)
    low, high = np.quantile(values, (0.001, 0.999)).tolist()
    signed = low < -0.1 * high
    limit = max(-low, high, 1e-9)
    scaled = 128 + 127 * values / limit if signed else 255 * values / limit
    return {
        "name": name,
        "across": across,
        "shape": list(values.shape[1:4]),
        "channels": values.shape[4] if values.ndim == 5 else 1,
        "signed": signed,
        "limit": limit,
        "data": _encode(scaled.round().clip(0, 255).astype(np.uint8)),
    }


def _as_integers(points: NDArray[np.float64]) -> NDArray[Any]:
    """(S, P, 2) coordinates -> 16-bit integers, all frames on one scale."""
    return np.rint(points / max(float(np.abs(points).max()), 1e-9) * 32767).astype("<i2")


def _encode(values: NDArray[Any]) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
