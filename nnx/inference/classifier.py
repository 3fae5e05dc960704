"""A trained network as a classifier: raw inputs in, probabilities out."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnx import checkpoint, losses
from nnx.errors import DeviceError
from nnx.inference.inputs import Batch
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.system.device import Runtime
from nnx.training.setup import runtime_for, with_supported_precision


class Classifier(nn.Module):
    """A trained network together with its preprocessing and its classes.

    >>> classifier = nnx.load("runs/digits_mlp/checkpoint.pt")
    >>> classifier(images)  # (B, C, H, W) uint8 as in the dataset, or (B, F) float32 rows -> (B, K) probabilities
    """

    def __init__(self, network: nn.Module, spec: Spec, device: torch.device) -> None:
        super().__init__()
        self.network = network.to(device).eval()
        self.spec = spec
        self.normalise = Normalise(spec, device)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return self.spec.classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 images or (B, F) float32 rows, on the classifier's device -> (B, K) probabilities."""
        return losses.probabilities(self.network(self.normalise(x)))


def load(path: str | Path, device: str = "cpu") -> Classifier:
    """Load the classifier from a checkpoint, or from the checkpoint of a run folder, in evaluation mode. Raises
    CheckpointError."""
    saved = checkpoint.read(checkpoint.locate(Path(path)))
    return Classifier(checkpoint.build_network(saved), saved.spec, torch.device(device))


def load_with_runtime(path: Path, device: str | None = None) -> tuple[Classifier, Runtime]:
    """Load the classifier from a checkpoint, or from the checkpoint of a run folder, with its runtime.

    The device is the named one or the best available. The precision is that of the training, or float32 if this machine
    does not support it. Raises CheckpointError, DeviceError.
    """
    saved = checkpoint.read(checkpoint.locate(path))
    model = checkpoint.build_network(saved)
    config = saved.config
    device = device or "auto"
    try:
        runtime = with_supported_precision(runtime_for(config, device=device), config, model, saved.spec, device=device)
    except DeviceError:
        runtime = runtime_for(config, device=device, precision="float32")
    return Classifier(model, saved.spec, runtime.device), runtime


def predict_batches(
    classifier: Classifier, batches: Iterable[Batch], runtime: Runtime, *, top: int
) -> Iterator[dict[str, Any]]:
    """The prediction for each sample, as plain values: its label, the label's probability, and the `top` classes, most
    probable first."""
    classes = classifier.classes
    for batch in batches:
        with torch.inference_mode(), runtime.autocast():
            output = classifier(torch.from_numpy(batch.inputs).to(runtime.device)).float().cpu()
        ordered = output.sort(dim=1, descending=True, stable=True)
        probabilities, indices = (part[:, :top].tolist() for part in ordered)
        for name, steps, row, ranks in zip(batch.names, batch.prepared, probabilities, indices, strict=True):
            ranked = [{"label": classes[k], "probability": p} for p, k in zip(row, ranks, strict=True)]
            prediction = {"input": name, **ranked[0], "top": ranked}
            yield {**prediction, "prepared": list(steps)} if classifier.spec.is_image else prediction
