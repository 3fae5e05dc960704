"""How fast a run would be, and how much memory it would take: told from its first two seconds, trained for nothing."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from nnx.errors import DivergedError
from nnx.events import Step
from nnx.inference.metrics import evaluate
from nnx.loader.batches import EVALUATION_BATCH, BatchLoader
from nnx.training.loop import train
from nnx.training.setup import TrainingSetup

WARM_UP = 8  # steps that are not counted: in them libraries set themselves up, and a CUDA graph is recorded
PREDICTED = 5 * EVALUATION_BATCH  # samples at most, to tell how long validation takes
NEVER = sys.maxsize


@dataclass(frozen=True)
class Throughput:
    """What was measured, in seconds and bytes. `trouble` says why training would not go on, where it would not."""

    steps: int
    seconds: float  # that these steps took
    once: float  # that the first steps took beyond their share
    a_sample: float  # to predict it, as in validation
    memory: int  # of this process, at its peak
    device_memory: int | None  # of a CUDA device, at its peak
    trouble: str = ""

    @property
    def a_step(self) -> float:
        return self.seconds / self.steps


def measure_throughput(setup: TrainingSetup, batches: BatchLoader, *, seconds: float = 2.0) -> Throughput:
    """Train for so many seconds after a warm-up, then predict some validation samples. The setup is used up by that: its
    weights move."""
    step = setup.make_step()

    def go_on(enough: Callable[[], bool]) -> tuple[int, float, str]:
        """Train until there is enough: the steps, the seconds that they took, and what was the trouble, if any."""
        first, begun, trouble = setup.state.step, time.perf_counter(), ""
        while not trouble:
            try:
                if any(
                    isinstance(event, Step)
                    for event in train(setup.state, batches, step, log_every=NEVER, pausing=enough)
                ):
                    break
                setup.state.epoch = 0  # that was the whole run already: once more
            except DivergedError as error:
                trouble = str(error)
                setup.state.end_epoch()
        return setup.state.step - first, time.perf_counter() - begun, trouble

    begun = time.perf_counter()
    warm, warming, early = go_on(lambda: setup.state.step >= WARM_UP or time.perf_counter() - begun > seconds)
    begun = time.perf_counter()
    steps, took, late = go_on(lambda: time.perf_counter() - begun > seconds)
    some = setup.dataset.validation.take(np.arange(min(PREDICTED, len(setup.dataset.validation))))
    evaluate(
        setup.state.evaluated,
        setup.loader(some.take(np.arange(min(EVALUATION_BATCH, len(some))))),
        setup.criterion,
        setup.runtime,
    )
    predicted = evaluate(setup.state.evaluated, setup.loader(some), setup.criterion, setup.runtime)
    device = setup.runtime.device
    return Throughput(
        steps=steps,
        seconds=took,
        once=max(0.0, warming - warm * took / steps),
        a_sample=predicted.seconds / len(some),
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        trouble=early or late,
    )
