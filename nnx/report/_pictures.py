"""Pictures of the layers: those of `nnx explain` that are fast enough for every run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from nnx import explain
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.explain import _page

# The other explainers take too long for every run, or need an optional package. These take about a second on a CPU,
# nearly all of it in matplotlib: 0.3 s for its import, 0.2 s for each picture. The boundary is for two features only.
FAST_EXPLAINERS = ("boundary", "filters", "activations")


class Panel(NamedTuple):
    """The output of one explainer on the page: how to read it, and its pictures with their captions as HTML."""

    name: str
    reading: str
    pictures: list[Markup]


def layer_panels(
    checkpoint: Checkpoint, data: Split, chosen: Sequence[int], names: Sequence[str], split: str
) -> list[Panel]:
    """The decision boundary over two features, the filters of the network, and its activations for the chosen samples
    of the data, the `split` of the dataset, which have these names."""
    samples = data.take(np.array(chosen, dtype=np.int64))
    subject = explain.build_subject(
        checkpoint, lambda _: data, np.asarray(samples.inputs), names, samples.labels, split_names=lambda: (split,)
    )
    panels = []
    for name in FAST_EXPLAINERS:
        if explain.module(name).applies(checkpoint) is None:
            for _, explanation in explain.explain(subject, [name]):
                assert isinstance(explanation, explain.Explanation)
                pictures = [Markup(_page.picture_html(picture)) for picture in explanation.pictures]
                panels.append(Panel(name, explanation.reading, pictures))
    return panels
