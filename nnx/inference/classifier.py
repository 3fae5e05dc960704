"""A checkpoint as something to ask: raw inputs in, probabilities out."""

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
    """The classifier in a checkpoint, or in that of the run in a folder, in evaluation mode. Raises CheckpointError."""
    saved = checkpoint.read(checkpoint.locate(Path(path)))
    return Classifier(checkpoint.build_network(saved), saved.spec, torch.device(device))


def load_with_runtime(path: Path, device: str | None = None) -> tuple[Classifier, Runtime]:
    """The classifier in a checkpoint, or in that of the run in a folder, on a device by name or the best that there is,
    and its runtime: in the precision that it was trained in, or float32 where this machine does not have that.

    Raises CheckpointError, DeviceError.
    """
    saved = checkpoint.read(checkpoint.locate(path))
    model, config, device = checkpoint.build_network(saved), saved.config, device or "auto"
    try:
        runtime = with_supported_precision(runtime_for(config, device=device), config, model, saved.spec, device=device)
    except DeviceError:
        runtime = runtime_for(config, device=device, precision="float32")
    return Classifier(model, saved.spec, runtime.device), runtime


def predict_batches(
    classifier: Classifier, batches: Iterable[Batch], runtime: Runtime, *, top: int
) -> Iterator[dict[str, Any]]:
    """What the classifier says of each sample, as plain values: its label, how probable that is, and the `top` classes,
    likeliest first."""
    classes = classifier.classes
    for batch in batches:
        with torch.inference_mode(), runtime.autocast():
            said = classifier(torch.from_numpy(batch.inputs).to(runtime.device)).float().cpu()
        best, order = (part[:, :top].tolist() for part in said.sort(dim=1, descending=True, stable=True))
        for name, prepared, row, ranks in zip(batch.names, batch.prepared, best, order, strict=True):
            ranked = [{"label": classes[k], "probability": p} for p, k in zip(row, ranks, strict=True)]
            found = {"input": name, **ranked[0], "top": ranked}
            yield {**found, "prepared": list(prepared)} if classifier.spec.is_image else found
