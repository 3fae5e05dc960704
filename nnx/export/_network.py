"""The network that is exported: preparation of raw inputs, the trained network, and probabilities, as one module."""

from typing import Any

import torch
from torch import Tensor, nn

from nnx import checkpoint, losses
from nnx.checkpoint import Checkpoint
from nnx.preprocessing.columns import CLIP, CategoryColumn, Columns, NumberColumn
from nnx.preprocessing.normalise import Normalise
from nnx.preprocessing.spec import Spec


class ExportedNetwork(nn.Module):
    """A trained network in evaluation mode, in float32, which takes raw inputs and returns probabilities."""

    def __init__(self, network: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.prepare = TableRows(spec.columns) if spec.columns else Standardise(spec)
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 images, (B, F) float32 rows, or (B, columns) float64 rows of a table, as `TableRows` takes
        them -> (B, K) probabilities."""
        return losses.probabilities(self.network(self.prepare(x)))


class Standardise(nn.Module):
    """(x - mean) / std, per channel or feature, as `nnx.preprocessing.normalise` does in training."""

    factor: Tensor
    offset: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        normalise = Normalise(spec, torch.device("cpu"))
        self.register_buffer("factor", normalise.factor)
        self.register_buffer("offset", normalise.offset)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or (B, F) float32 -> float32 of the same shape."""
        return x.float() * self.factor + self.offset


class TableRows(nn.Module):
    """Rows of a table -> the network's features, as `nnx.preprocessing.columns` does in training.

    A row holds a float64 for each column: a number, or the index of a category (-1: a category that the training data
    does not contain); NaN if the value is missing. A feature is the standardised number of a column, 1 or 0 for one of
    its categories, or 1 or 0 for a missing value.
    """

    column: Tensor
    category: Tensor
    missing: Tensor
    mean: Tensor
    std: Tensor
    is_number: Tensor
    is_category: Tensor
    is_missing: Tensor

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        features = [feature for n, column in enumerate(columns.columns) for feature in _features(n, column)]
        column, category, missing, mean, std, kind = zip(*features, strict=True)
        self.register_buffer("column", torch.tensor(column))
        for name, values in (("category", category), ("missing", missing), ("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        for each in ("number", "category", "missing"):
            self.register_buffer(f"is_{each}", torch.tensor([each == feature for feature in kind]))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, columns) float64 -> (B, F) float32."""
        values = rows[:, self.column]  # (B, F)
        absent = values.isnan()
        number = ((torch.where(absent, self.missing, values) - self.mean) / self.std).clamp(-CLIP, CLIP)
        flag = (self.is_category & (values == self.category)) | (self.is_missing & absent)
        return torch.where(self.is_number, number.float(), flag.float())


def _features(index: int, column: NumberColumn | CategoryColumn) -> list[tuple[int, float, float, float, float, str]]:
    """For each feature of the column with this index: the index, the category that sets it, the replacement of missing
    numbers, their mean and standard deviation, and what kind of feature it is."""
    if isinstance(column, NumberColumn):
        std = column.std or torch.inf  # the feature of a constant column is 0
        features = [(index, 0.0, column.missing, column.mean, std, "number")]
    else:
        features = [(index, float(n), 0.0, 0.0, 1.0, "category") for n in range(len(column.categories))]
    return [*features, (index, 0.0, 0.0, 0.0, 1.0, "missing")] if column.indicator else features


def build(saved: Checkpoint) -> ExportedNetwork:
    """The exported network of a checkpoint, on the CPU. Raises CheckpointError."""
    return ExportedNetwork(checkpoint.build_network(saved), saved.spec)


def example(spec: Spec) -> Tensor:
    """A batch of three raw inputs, to trace the network with."""
    if spec.columns:
        return torch.zeros(3, len(spec.columns.columns), dtype=torch.float64)
    return torch.zeros(3, *spec.shape, dtype=torch.uint8 if spec.is_image else torch.float32)


def describe_input(spec: Spec) -> dict[str, Any]:
    """What an exported network takes, as plain values: kind, shape, type, and what the numbers mean."""
    if spec.columns:
        columns = [
            {"name": column.name, "kind": column.kind}
            | ({"categories": list(column.categories)} if isinstance(column, CategoryColumn) else {})
            for column in spec.columns.columns
        ]
        meaning = "a number, or the index of a category, -1 for any other category; NaN for a missing value"
        shape: list[int | str] = ["B", len(columns)]
        return {"kind": "table", "shape": shape, "type": "float64", "values": meaning, "columns": columns}
    shape = ["B", *spec.shape]
    if spec.is_image:
        meaning = "pixels from 0 to 255, B x channels x height x width, as in the dataset"
        return {"kind": "image", "shape": shape, "type": "uint8", "values": meaning}
    return {"kind": "rows", "shape": shape, "type": "float32", "values": "features in the dataset's own units"}
