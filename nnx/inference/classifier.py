"""A checkpoint as something to ask: raw inputs in, probabilities out."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnx import checkpoint, losses, models
from nnx.checkpoint import Checkpoint
from nnx.errors import CheckpointError, ConfigError
from nnx.inference.inputs import Batch
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec
from nnx.run import folder as runs
from nnx.system.device import Runtime


def network(kept: Checkpoint) -> nn.Module:
    """The network of a checkpoint, with its weights, on the CPU. Raises CheckpointError where they don't fit
    together."""
    name = kept.config.model.name
    try:
        model = models.build(kept.config.model, kept.spec, losses.outputs(kept.config.loss, len(kept.spec.classes)))
        own = model.state_dict()
        if any(own[name].dtype != tensor.dtype for name, tensor in kept.model.items()):
            raise TypeError("load_state_dict would convert silently")
        model.load_state_dict(kept.model)
    except ConfigError as error:
        raise CheckpointError(f"its config is not valid: {error}") from None
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"its weights do not fit the {name} that its config describes; it is damaged or was changed"
        ) from None
    return model


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
    kept = checkpoint.read(runs.checkpoint_in(Path(path)))
    return Classifier(network(kept), kept.spec, torch.device(device))


def ask(classifier: Classifier, batches: Iterable[Batch], runtime: Runtime, *, top: int) -> Iterator[dict[str, Any]]:
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
