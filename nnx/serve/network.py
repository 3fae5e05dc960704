"""A network as the page shows it: what it answers to an input, what it saw, what its layers did, and why.

network = Network("cnn", path, checkpoint.read(path), device)
network.describe()  # plain values: its input, its classes, its layers
network.answer(network.prepare(pixels), ("layers", "saliency"))  # plain values
"""

import base64
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnx import losses, models
from nnx.checkpoint import Checkpoint, build_network
from nnx.explain import attention
from nnx.models import ModelConfig, _layer_outputs
from nnx.preprocessing import handwriting
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.run import folder as run_folder

MAPS = 32  # of a layer of a CNN that are sent
UNITS = 1024  # of a layer, or numbers of a token or state, that are sent
STEPS = 16  # of the integral from the baseline to the input
TOP = 3  # classes named for each step of the preparation
UNRESIZED, RESIZED = "original", "original, only resized"

Part = Literal["prepared", "layers", "saliency"]


class Prepared(NamedTuple):
    """An input in S versions, from the original to what the network sees: the steps, and (S, ...) raw inputs."""

    steps: list[str]
    inputs: NDArray[Any]


class Network:
    """A checkpoint's network, in evaluation mode and float32, which answers one input at a time."""

    def __init__(self, name: str, path: Path, saved: Checkpoint, device: torch.device) -> None:
        """Raises CheckpointError if the weights do not fit."""
        self.name, self.path, self.saved, self.spec = name, path, saved, saved.spec
        self.device = device
        self.network = build_network(saved).to(device).eval()
        self.normalise = Normalise(saved.spec, device)
        # nothing: a black image, or the mean of the training data
        blank = np.zeros((1, *self.spec.shape), np.uint8 if self.spec.is_image else np.float32)
        self.baseline = self._normalised(blank) if self.spec.is_image else torch.from_numpy(blank).to(device)
        self.titles = _layer_outputs.layer_titles(self.network, self.baseline)
        self.is_recurrent = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        self.multiply_adds = models.multiply_adds(self.network, self.spec)

    @property
    def accepts_pictures(self) -> bool:
        return accepts_pictures(self.spec)

    @property
    def accepts_drawings(self) -> bool:
        """Whether the training images are strokes of ink, or nobody knows what they are."""
        statistics = self.spec.image_statistics
        return self.accepts_pictures and (statistics is None or statistics.plain)

    def describe(self) -> dict[str, Any]:
        """What the page must know before the first answer, as plain values."""
        summary = run_folder.read_summary(self.path.parent)
        layers = self._layers(self.baseline)
        return {
            "id": self.name,
            "architecture": self.saved.config.model.name,
            "parameters": models.count_parameters(self.network),
            "test_accuracy": _accuracy(summary.get("test_accuracy")),
            "validation_accuracy": _accuracy(self.saved.record.get("val_accuracy")),
            "shape": list(self.spec.shape),
            "layers": [{key: value for key, value in layer.items() if key != "values"} for layer in layers],
        }

    def prepare(self, pixels: NDArray[np.uint8]) -> Prepared:
        """A picture, (h, w, 1 or 3) -> the image after each step of its preparation, as `nnx doctor IMAGE` shows. The
        last one is the input of `nnx predict`."""
        spec = self.spec
        prepared, steps = handwriting.prepare(pixels, spec)
        pictures = [handwriting.resize_to_spec(each, spec) for each in (pixels, *(step.picture for step in steps[:-1]))]
        first = UNRESIZED if pixels.shape[:2] == spec.shape[1:] else RESIZED
        return Prepared([first, *(step.text for step in steps)], np.stack([*pictures, prepared] if steps else pictures))

    def answer(self, prepared: Prepared, parts: Collection[Part]) -> dict[str, Any]:
        """The probabilities of the last version of an input; and, of these parts, each step of its preparation with the
        classes after it, the layers' outputs, and the contribution of each input value to the predicted class."""
        inputs = prepared.inputs if "prepared" in parts else prepared.inputs[-1:]
        x = self._normalised(inputs)
        with torch.no_grad():
            by_step = losses.probabilities(self.network(x)).cpu()
        probabilities = by_step[-1]
        best = int(probabilities.argmax())
        result: dict[str, Any] = {
            "model": self.name,
            "label": self.spec.classes[best],
            "probability": float(probabilities[best]),
            "probabilities": probabilities.tolist(),
        }
        if "prepared" in parts and self.spec.is_image:
            result["prepared"] = [
                {"step": step, "image": pack_image(image), "top": self._top(row)}
                for step, image, row in zip(prepared.steps, inputs, by_step, strict=True)
            ]
        if "layers" in parts:
            result["layers"] = self._layers(x[-1:])
        if "saliency" in parts:
            contributions = self._contributions(x[-1:], best)
            result["saliency"] = pack(contributions.sum(0, keepdim=True) if self.spec.is_image else contributions)
        return result

    def _normalised(self, inputs: NDArray[Any]) -> Tensor:
        return self.normalise(torch.from_numpy(np.ascontiguousarray(inputs)).to(self.device))

    def _top(self, probabilities: Tensor) -> list[dict[str, Any]]:
        values, indices = probabilities.topk(min(TOP, len(probabilities)))
        return [
            {"label": self.spec.classes[k], "probability": p}
            for k, p in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def _contributions(self, x: Tensor, target: int) -> Tensor:
        """(1, ...) -> (...): the integrated gradients of the target's logit, from the baseline (Sundararajan et al.
        2017), in 16 steps: enough to see them, not to quote them."""
        shares = (torch.arange(STEPS, device=self.device) + 0.5) / STEPS
        points = self.baseline + shares.view(-1, *[1] * (x.ndim - 1)) * (x - self.baseline)
        points.requires_grad_()
        logits = self.network(points)
        if logits.shape[1] == 1:  # that of the second of two classes
            logits = torch.cat([-logits, logits], dim=1)
        (gradients,) = torch.autograd.grad(logits[:, target].sum(), points)
        return ((x - self.baseline)[0] * gradients.mean(0)).detach().cpu()

    # ------------------------------------------------------------ layers

    def _layers(self, x: Tensor) -> list[dict[str, Any]]:
        """What the layers do with (1, ...) inputs: outputs, attention, and an RNN's predictions after each step."""
        layers: list[dict[str, Any]] = []
        for name, output in _layer_outputs.layer_outputs(self.network, x).items():
            if name != _layer_outputs.LOGITS:
                kind, values = _as_maps(output[0], is_recurrent=self.is_recurrent)
                layers.append({"name": name, "title": self.titles[name], "kind": kind, "values": pack(values)})
        layers += self._attention(x)
        if step_logits := getattr(self.network, "step_logits", None):
            with torch.no_grad():
                logits = step_logits(x)
            if logits is not None:
                unit = "row" if self.spec.is_image else "feature"
                title = f"Belief after each {unit}"
                belief = losses.probabilities(logits[0]).cpu()[None]
                layers.append({"name": "belief", "title": title, "kind": "belief", "values": pack(belief)})
        return [layer | {"shape": layer["values"]["shape"]} for layer in layers]

    def _attention(self, x: Tensor) -> list[dict[str, Any]]:
        """How much attention each patch, or feature, receives from each head of each block."""
        config = self.saved.config.model
        if not (isinstance(config, ModelConfig) and config.has_attention):
            return []
        layers = []
        for n, weights in enumerate(attention.attention(self.network, x), 1):
            from_class_token = getattr(config, "read", None) == "class_token"
            received = weights[0, :, 0] if from_class_token else weights[0].mean(1)  # (heads, T)
            if grid := _layer_outputs.patch_grid(self.spec, received.shape[1]):
                rows, columns, others = grid
                maps = received[:, others:].reshape(-1, rows, columns)
                title = f"Attention {n}"
                layers.append({"name": f"attention {n}", "title": title, "kind": "attention", "values": pack(maps)})
        return layers


def pack(values: Tensor) -> dict[str, Any]:
    """Values of any shape as bytes for the page: each is `scale` * int8 / 127, within 0.4 % of the largest."""
    scale = float(values.abs().max()) if values.numel() else 0.0
    levels = (values.float() * (127 / scale if scale else 0)).round().to(torch.int8)
    return {"shape": list(values.shape), "scale": scale, "data": _base64(levels.numpy())}


def pack_image(image: NDArray[np.uint8]) -> dict[str, Any]:
    """(C, H, W) uint8 as bytes for the page, (H, W, C)."""
    return {"shape": list(image.shape), "data": _base64(image.transpose(1, 2, 0))}


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _as_maps(output: Tensor, *, is_recurrent: bool) -> tuple[str, Tensor]:
    """A layer's output for one sample -> its kind, and (maps, rows, columns) of at most MAPS maps and UNITS columns."""
    if output.ndim == 3:
        return "maps", output[:MAPS]
    if output.ndim == 2:  # (T, D)
        return "states" if is_recurrent else "tokens", output[None, :, :UNITS]
    return "units", output.reshape(1, 1, -1)[:, :, :UNITS]


def _accuracy(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def accepts_pictures(spec: Spec) -> bool:
    """Whether a picture, in gray or in colours, can be an input."""
    return spec.is_image and spec.shape[0] in (1, 3)


def fits(first: Spec, second: Spec) -> bool:
    """Whether two networks answer the same question: the same classes, of pictures or of the same columns."""
    if first.classes != second.classes or first.is_image != second.is_image:
        return False
    if first.is_image:
        pictures = accepts_pictures(first)
        return pictures == accepts_pictures(second) and (pictures or first.shape == second.shape)
    if first.columns is None or second.columns is None:
        return first.columns is second.columns and first.shape == second.shape
    columns = [
        [(column.name, column.kind) for column in spec.columns.columns] for spec in (first, second) if spec.columns
    ]
    return columns[0] == columns[1]
