"""A trained network as a classifier: raw inputs in, probabilities out.

The network is that of a checkpoint, in PyTorch, or that of an exported ONNX file (see `onnx_file`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnx import checkpoint, losses
from nnx.checkpoint import Checkpoint
from nnx.config import Config
from nnx.errors import DeviceError
from nnx.inference.inputs import Batch
from nnx.inference.onnx_file import is_onnx, onnx_runtime, open_onnx
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
        self.normalise = nn.Identity() if _takes_raw_inputs(network) else Normalise(spec, device)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return self.spec.classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 images or (B, F) float32 rows, on the classifier's device -> (B, K) probabilities."""
        return losses.probabilities(self.network(self.normalise(x)))


def _takes_raw_inputs(network: nn.Module) -> bool:
    return bool(getattr(network, "takes_raw_inputs", False))


def load(path: str | Path, device: str = "cpu") -> Classifier:
    """Load the classifier from a checkpoint, or from the checkpoint of a run folder, in evaluation mode. Raises
    CheckpointError."""
    saved = checkpoint.read(checkpoint.locate(Path(path)))
    return Classifier(checkpoint.build_network(saved), saved.spec, torch.device(device))


def load_with_runtime(path: Path, device: str | None = None) -> tuple[Classifier, Runtime]:
    """Load the classifier from a checkpoint, from the checkpoint of a run folder, or from an exported ONNX file, with
    its runtime.

    The device is the named one or the best available. The precision is that of the training, or float32 if this machine
    does not support it. Raises CheckpointError, DeviceError, MachineError.
    """
    saved, network = open_network(path)
    runtime = runtime_of(network, saved.config, saved.spec, device or "auto")
    return Classifier(network, saved.spec, runtime.device), runtime


def open_network(path: Path) -> tuple[Checkpoint, nn.Module]:
    """The checkpoint that `path` is, or that of the run in that folder, and its network; or what an exported ONNX file
    contains of them. Raises CheckpointError, MachineError."""
    if is_onnx(path):
        return open_onnx(path)
    saved = checkpoint.read(checkpoint.locate(path))
    return saved, checkpoint.build_network(saved)


def runtime_of(network: nn.Module, config: Config, spec: Spec, device: str) -> Runtime:
    """The runtime for the network of a config. Raises CheckpointError, DeviceError."""
    if _takes_raw_inputs(network):
        return onnx_runtime(device)
    try:
        runtime = runtime_for(config, device=device)
        return with_supported_precision(runtime, config, network, spec, device=device)
    except DeviceError:
        return runtime_for(config, device=device, precision="float32")


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
