"""Held-out samples of the dataset that a checkpoint names, and what the columns of its table contain."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnx.datasets import Dataset, silent
from nnx.preprocessing.columns import CategoryColumn, NumberColumn
from nnx.run.evaluate import dataset_of, settings_of
from nnx.serve.network import Network

FREQUENT = 8  # values of a column that are listed, at most
SPREAD = 3  # standard deviations around the mean: the range of a column whose values are not at hand

Row = dict[str, str | None]
"""A table's row, as text. None is a missing value."""


class Samples:
    """The test samples of a network's dataset; if there are none, those of validation or training. Read on first use,
    from this machine alone."""

    def __init__(self, network: Network, data_dir: str | None = None) -> None:
        self.network = network
        self.data_dir = data_dir

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset. Raises NnxError if it is not on this machine, or no longer fits."""
        saved, path = self.network.saved, self.network.path
        with silent(), offline():
            return dataset_of(saved, settings_of(saved, path), path, self.data_dir)

    @cached_property
    def split_name(self) -> str:
        return self.dataset.split_names[0]

    def __len__(self) -> int:
        return len(self.dataset.split(self.split_name))

    def label(self, index: int) -> str:
        """The name of a sample's true class."""
        return self.network.spec.classes[int(self.dataset.split(self.split_name).labels[index])]

    def image(self, index: int) -> NDArray[np.uint8]:
        """(C, H, W), as the network was trained on."""
        return np.asarray(self.dataset.split(self.split_name).inputs[index])

    def row(self, index: int) -> Row:
        """A table's row, in the table's units."""
        return decode_row(self.network, np.asarray(self.dataset.split(self.split_name).inputs[index], np.float64))


def decode_row(network: Network, features: NDArray[np.float64]) -> Row:
    """(F,) features -> the row that they encode, up to rounding. An unknown category is missing."""
    columns = network.spec.columns
    if columns is None:
        return {name: str(np.float32(value)) for name, value in zip(feature_names(network), features, strict=True)}
    offsets, scales = columns.units
    values = features * scales + offsets
    row: Row = {}
    start = 0
    for column in columns.columns:
        own = values[start : start + len(column.feature_names)]
        start += len(own)
        if column.indicator and own[-1]:
            row[column.name] = None
        elif isinstance(column, NumberColumn):
            row[column.name] = _format(column.round(own[0]))
        else:
            known = np.flatnonzero(own[: len(column.categories)])
            row[column.name] = column.categories[int(known[0])] if len(known) else None
    return row


def feature_names(network: Network) -> list[str]:
    """The names of a table's columns, or feature 0, 1, ... of rows without names."""
    columns = network.spec.columns
    return (
        [column.name for column in columns.columns] if columns else [f"feature {n}" for n in range(network.spec.size)]
    )


def describe_columns(network: Network, dataset: Dataset | None) -> list[dict[str, Any]]:
    """The kind, the range and the most frequent values of each column in the training samples, as plain values. Without
    the dataset, the range is mean ± 3 standard deviations, and categories are in their own order."""
    names = feature_names(network)
    columns = network.spec.columns.columns if network.spec.columns else [NumberColumn(name) for name in names]
    described: list[dict[str, Any]] = []
    start = 0
    for column in columns:
        end = start + len(column.feature_names)
        features = None if dataset is None else np.asarray(dataset.train.inputs[:, start:end], np.float64)
        start = end
        if isinstance(column, CategoryColumn):
            content = _describe_categories(column, features)
        else:
            content = _describe_numbers(column, features)
        features_of = len(column.feature_names)
        described.append({"name": column.name, "kind": column.kind, "features": features_of, **content})
    return described


def _describe_numbers(column: NumberColumn, features: NDArray[np.float64] | None) -> dict[str, Any]:
    typical = column.missing if column.std else column.mean
    if features is None:
        low, high = (column.mean + sign * SPREAD * column.std for sign in (-1, 1))
        return {"low": low, "high": high, "typical": _format(column.round(typical)), "frequent": []}
    present = features[features[:, 1] == 0] if column.indicator else features
    values = column.round(present[:, 0] * column.std + column.mean)
    unique, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:FREQUENT]
    frequent = [_format(value) for value in unique[order[counts[order] > 1]]]
    return {
        "low": float(unique[0]),
        "high": float(unique[-1]),
        "typical": _format(np.median(values)),
        "frequent": frequent,
    }


def _describe_categories(column: CategoryColumn, features: NDArray[np.float64] | None) -> dict[str, Any]:
    counts = np.zeros(len(column.categories)) if features is None else features[:, : len(column.categories)].sum(0)
    order = np.argsort(-counts, kind="stable")
    categories = [column.categories[n] for n in order.tolist()]
    return {
        "categories": categories,
        "typical": categories[0] if categories else None,
        "frequent": categories[:FREQUENT],
    }


def _format(value: float) -> str:
    return f"{float(value):.15g}"


@contextmanager
def offline() -> Iterator[None]:
    """Inside, datasets are not downloaded: a page that is opened must not use the network."""
    before = os.environ.get("NNX_OFFLINE")
    os.environ["NNX_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNX_OFFLINE"]
        else:
            os.environ["NNX_OFFLINE"] = before
