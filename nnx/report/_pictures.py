"""Per-layer pictures: what `nnx explain` draws of the same network, as far as it is quick enough for every run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from nnx import explain
from nnx.checkpoint import Checkpoint
from nnx.datasets import Split
from nnx.explain import _page

# The others take too long for every run, or need what a plain installation lacks. Nearly all of these two's second, on
# a CPU, is matplotlib's: 0.3 s to import it, 0.2 s for each picture.
QUICK = ("filters", "activations")


class Panel(NamedTuple):
    """An explainer's part of the page. The figures are pictures with their captions."""

    name: str
    reading: str
    figures: list[Markup]


def pictures(kept: Checkpoint, samples: Split, names: Sequence[str]) -> list[Panel]:
    """What the layers of the network look for, and what they answer to these few samples, which are called so."""
    subject = explain.new(kept, lambda _: samples, np.asarray(samples.inputs), names, samples.labels)
    panels = []
    for name in QUICK:
        if explain.module(name).applies(kept) is None:
            for _, found in explain.explain(subject, [name]):
                assert isinstance(found, explain.Explanation)
                panels.append(Panel(name, found.reading, [Markup(_page.figure(each)) for each in found.pictures]))
    return panels
