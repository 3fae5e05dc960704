"""A film for the page: as bytes that its script draws, few enough that the page stays small."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.preprocessing.spec import Spec
from nnx.training import film
from nnx.training.film import Frame

BUDGET = 1_000_000  # bytes of all frames together; base64 adds a third


def for_page(moving: Frame, spec: Spec, steps_per_epoch: float | None) -> dict[str, Any]:
    """What page.js draws. Numbers are bytes: of what has signs, 1 to 255 with 128 for zero; of what has none, 0 to 255
    from zero up. Each kind is on one scale over all frames."""
    chosen = _thinned(moving)
    steps = moving["step"][chosen]
    labels = moving["labels"]
    said, right = moving["predicted"][chosen], moving["right"][chosen].astype(np.float64)
    shown: dict[str, Any] = {
        "steps": steps.tolist(),
        "epochs": [step / steps_per_epoch for step in steps.tolist()] if steps_per_epoch else None,
        "accuracy": (said == labels).mean(1).tolist(),
        "loss": (-np.log(right.clip(1e-7))).mean(1).tolist(),
        "classes": list(spec.classes),
        "labels": labels.tolist(),
        "predicted": _bytes(said.astype("<u2")),
        "embedding": _bytes(_places(film.aligned(moving["embedding"][chosen]))),
        "filters": _pictures(moving["filters"][chosen], "filters"),
        "layers": [
            _pictures(moving[key][chosen], key.removeprefix(film.LAYER)) for key in moving if key.startswith(film.LAYER)
        ],
    }
    if spec.is_image:
        shown["sample"] = _pictures(moving["sample"][None, None].astype(np.float32), spec.classes[labels[0]])
    if "region" in moving:
        low, high = moving["low"], moving["high"]
        points = (moving["points"] - low) / (high - low)
        shown["regions"] = {
            "side": film.GRID,
            "classes": _bytes(moving["region"][chosen].astype("<u2")),
            "sure": _bytes(moving["sure"][chosen]),
            "points": points.round(4).tolist(),
        }
    return shown


def _thinned(moving: Frame) -> NDArray[np.int64]:
    """The frames that the page shows: all, or as many as it has room for, the first and the last among them."""
    steps = len(moving["step"])
    pictures = [key for key in moving if key == "filters" or key.startswith(film.LAYER) or key in ("region", "sure")]
    size = sum(moving[key][0].size for key in pictures) + 4 * moving["predicted"][0].size
    return np.unique(np.linspace(0, steps - 1, max(2, min(steps, BUDGET // size))).round().astype(np.int64))


def _pictures(values: NDArray[Any], name: str) -> dict[str, Any]:
    """(S, n, h, w) maps, (S, n, C, h, w) images or an (S, n, m) matrix -> S times n pictures of h x w, of C channels if
    that is 3; a matrix is one picture, its longer side `across`."""
    across = ""
    if values.ndim == 3:
        across = "units" if values.shape[1] >= values.shape[2] else "what they see"
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
        "data": _bytes(scaled.round().clip(0, 255).astype(np.uint8)),
    }


def _places(flat: NDArray[np.float64]) -> NDArray[Any]:
    """(S, P, 2) -> as 16-bit integers, all frames on one scale."""
    return np.rint(flat / max(float(np.abs(flat).max()), 1e-9) * 32767).astype("<i2")


def _bytes(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
