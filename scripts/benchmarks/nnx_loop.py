"""nnx's own loop, step and batches, as in `nnx train`, without the command line, validation and files."""

import argparse
from collections.abc import Callable

from nnx.cli._start import import_torch, keep_freed_memory

import_torch()  # like the command line
keep_freed_memory()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from contestant import serve  # noqa: E402

from nnx import config  # noqa: E402
from nnx.datasets import Split  # noqa: E402
from nnx.loader.batches import batch_bounds  # noqa: E402
from nnx.training import setup  # noqa: E402
from nnx.training.loop import EpochEnd, train  # noqa: E402


def prepare(
    recipe: str, overrides: list[str], samples: int | None
) -> tuple[Callable[[int], tuple[int, float]], dict[str, str]]:
    """A function that trains on a given number of samples, and what nnx chose."""
    work = setup.prepare(config.load(recipe, [*overrides, "train.epochs=100000"]))
    state, split = work.state, work.dataset.train
    if samples:  # repeat the same images
        split = Split(np.resize(split.inputs, (samples, *split.inputs.shape[1:])), np.resize(split.labels, samples))
        state.steps_per_epoch = len(batch_bounds(samples, work.config.train))
    samples_per_epoch = batch_bounds(len(split), work.config.train)[-1][1]
    goal = 0

    def done() -> int:
        return state.epoch * samples_per_epoch + state.samples

    log_every = max(1, min(50, state.steps_per_epoch // 10))
    events = train(state, work.loader(split), work.make_step(), log_every=log_every, pausing=lambda: done() >= goal)

    def advance(wanted: int) -> tuple[int, float]:
        nonlocal goal
        begun, goal, loss = done(), done() + wanted, 0.0
        for event in events:
            loss = event.train_loss if isinstance(event, EpochEnd) else event.loss
            if done() >= goal:
                break
        return done() - begun, loss

    return advance, {choice.what: choice.value for choice in work.runtime.choices}


def main() -> None:
    """Serve a recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="mnist_mlp")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--samples", type=int, help="repeat the training images up to this number")
    options = parser.parse_args()
    advance, choices = prepare(options.recipe, options.overrides, options.samples)
    serve(advance, torch=torch.__version__, **choices)


if __name__ == "__main__":
    main()
