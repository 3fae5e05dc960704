"""Speed and memory of a run, measured by training a throw-away copy for two seconds."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnx.errors import DivergedError
from nnx.events import Step
from nnx.inference.metrics import evaluate
from nnx.loader.batches import EVALUATION_BATCH, BatchLoader
from nnx.system import accelerator, platform
from nnx.training.loop import train
from nnx.training.setup import TrainingSetup

WARM_UP = 8  # steps that are not counted: libraries initialise in them, and a CUDA graph is recorded
PREDICTED = 5 * EVALUATION_BATCH  # at most so many samples, to measure the time of validation
NEVER = sys.maxsize


@dataclass(frozen=True)
class Throughput:
    """Measurements, in seconds and bytes. `trouble` says why training would stop, if it would."""

    steps: int
    seconds: float  # of these steps
    once: float  # of the first steps beyond their share
    a_sample: float  # to predict one sample, as in validation
    memory: int  # of this process, at its peak
    device_memory: int | None  # of a CUDA device, at its peak
    trouble: str = ""

    @property
    def a_step(self) -> float:
        return self.seconds / self.steps


def measure_throughput(setup: TrainingSetup, batches: BatchLoader, *, seconds: float = 2.0) -> Throughput:
    """Train for `seconds` after a warm-up, then predict some validation samples, or training samples if there are none.
    The setup can't be used afterwards: its weights have changed."""
    step = setup.make_step()

    def train_until(enough: Callable[[], bool]) -> tuple[int, float, str]:
        """Train until `enough()`: the number of steps, their seconds, and the trouble, if any."""
        first = setup.state.step
        begun = time.perf_counter()
        trouble = ""
        while not trouble:
            try:
                if any(
                    isinstance(event, Step)
                    for event in train(setup.state, batches, step, log_every=NEVER, pausing=enough)
                ):
                    break
                setup.state.epoch = 0  # the whole run is over already: once more
            except DivergedError as error:
                trouble = str(error)
                setup.state.end_epoch()
        return setup.state.step - first, time.perf_counter() - begun, trouble

    begun = time.perf_counter()
    warm, warming, early = train_until(lambda: setup.state.step >= WARM_UP or time.perf_counter() - begun > seconds)
    begun = time.perf_counter()
    steps, took, late = train_until(lambda: time.perf_counter() - begun > seconds)
    predictable = setup.dataset.validation or setup.dataset.train
    samples = predictable.take(np.arange(min(PREDICTED, len(predictable))))
    evaluate(
        setup.state.evaluated,
        setup.loader(samples.take(np.arange(min(EVALUATION_BATCH, len(samples))))),
        setup.evaluation_criterion,
        setup.runtime,
    )
    predicted = evaluate(setup.state.evaluated, setup.loader(samples), setup.evaluation_criterion, setup.runtime)
    device = setup.runtime.device
    return Throughput(
        steps=steps,
        seconds=took,
        once=max(0.0, warming - warm * took / steps),
        a_sample=predicted.seconds / len(samples),
        memory=platform.peak_memory(),
        device_memory=accelerator.peak_memory(device),
        trouble=early or late,
    )
