"""Stop and resume at every step of three epochs, for each architecture and each kind of randomness: equal bits."""

import json
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nnx import config, errors
from nnx.config import Config, registry
from nnx.run.pipeline import run
from tortures._child import check, folder

FEATURES = {
    "dropout": ["model.dropout=0.2"],
    "batch normalisation": ["model.norm=batch"],
    "moving average": ["train.ema=0.9"],
    "schedule": ["schedule={name: cosine, warmup: 0.5}"],
    "augmentation": ["train.augment={shift: 1, rotate: 10, scale: 0.1, elastic: 0.5, erase: 0.2}", "train.mixup=0.2"],
    "accumulation": ["train.accumulate=2", "train.clip_grad_norm=1"],
}
SMALL = {
    "mlp": "{name: mlp, hidden: [16]}",
    "cnn": "{name: cnn, channels: [4]}",
    "rnn": "{name: rnn, hidden: 8, layers: 2}",
    "transformer": "{name: transformer, patch: 4, width: 8, heads: 2, depth: 1}",
}
EPOCHS, TIMES = 3, ("seconds", "samples_per_second")


def torture(share: float, seed: int) -> dict[str, Any]:
    """Each architecture with each feature that it has, one at a time, at a share of the steps."""
    cases = [
        (model, feature, share, seed)
        for model in registry.names("model")
        for feature in FEATURES
        if _settings(model, feature)
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("fork")) as pool:
        resumes = list(pool.map(_all_steps, *zip(*cases, strict=True)))
    return {
        "architectures": len({case[0] for case in cases}),
        "with a feature": len(cases),
        "resumes, equal to the bit": sum(resumes),
    }


def _settings(model: str, feature: str) -> list[str]:
    """The overrides that switch the feature on; empty if the architecture lacks it."""
    fields = registry.find("model", model).model_fields
    lacking = any(
        text.startswith("model.") and text.split("=")[0].removeprefix("model.") not in fields
        for text in FEATURES[feature]
    )
    if lacking or (feature == "batch normalisation" and "batch" not in str(fields["norm"].annotation)):
        return []
    small = f"model={SMALL.get(model, model)}"
    # 287 samples in batches of 24: 12 steps per epoch, the last batch smaller
    return [
        small,
        f"train.epochs={EPOCHS}",
        "train.batch_size=24",
        "dataset.validation=0.8",
        "threads=1",
        *FEATURES[feature],
    ]


def _all_steps(model: str, feature: str, share: float, seed: int) -> int:
    chosen = config.parse("dataset: digits\nmodel: mlp", "torture", [*_settings(model, feature), f"seed={seed}"])
    with folder() as base:
        steps = _whole(chosen, base / "whole")
        every = range(1, steps + EPOCHS + 1)  # a run polls for signals after each step and after each validation
        stops = every[:: max(1, round(1 / share))]
        expected = _results(base / "whole")
        for step in stops:
            out = base / f"cut{step}"
            _stopped(chosen, out, step)
            for _ in run(chosen, resume=out):
                pass
            for name, result in _results(out).items():
                check(result == expected[name], f"{model} with {feature}, stopped at moment {step}: {name} differs")
        return len(stops)


def _whole(chosen: Config, out: Path) -> int:
    """Train the uninterrupted run. Returns its number of steps."""
    last = [event.step for event in run(chosen, out=out) if hasattr(event, "val_loss")][-1]
    return int(last)


def _stopped(chosen: Config, out: Path, step: int) -> None:
    """Train a run that sees a signal when it polls for the `step`-th time."""
    polls = 0

    def signals() -> int:
        nonlocal polls
        polls += 1
        return signal.SIGTERM if polls >= step else 0

    try:
        for _ in run(chosen, out=out, signal=signals):
            pass
    except errors.Stopped:
        return
    raise AssertionError(f"the run was not stopped at moment {step}")


def _results(out: Path) -> dict[str, Any]:
    """The results of a run that must be equal."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    figures = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return {
        "checkpoint.pt": (out / "checkpoint.pt").read_bytes(),
        "last.pt": (out / "last.pt").read_bytes(),
        "metrics": figures,
    }
