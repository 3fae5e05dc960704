"""A small network that has learned its digits well, in under a second: an epoch teaches it little."""

from dataclasses import replace

import torch

from nnx import explain
from nnx.explain import Subject


def taught(explained: Subject, steps: int = 150) -> Subject:
    """The subject's own network, trained on for some steps of all training samples at once."""
    again = explain.build_subject(
        explained.checkpoint, explained.data, explained.images, explained.names, explained.labels
    )
    train = again.data("train")
    x, labels = again.inputs(train.inputs), torch.from_numpy(train.labels)
    optimizer = torch.optim.Adam(again.network.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(again.network(x), labels).backward()
        optimizer.step()
    weights = {name: tensor.detach().clone() for name, tensor in again.network.state_dict().items()}
    return explain.build_subject(
        replace(explained.checkpoint, model=weights),
        explained.data,
        explained.images,
        explained.names,
        explained.labels,
    )
