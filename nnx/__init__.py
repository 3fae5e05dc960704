"""nnx: train MNIST-style classifiers from one YAML file.

    import nnx

    run = nnx.train("configs/digits_mlp.yaml", ["train.epochs=5"])  # a Run: folder, checkpoint, summary
    nnx.evaluate(run.checkpoint)["accuracy"]
    classifier = nnx.load(run.checkpoint)  # a torch module: raw images in, probabilities out

Each is the command of the same name; torch is imported when the first of them is called.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnx.inference.classifier import Classifier
    from nnx.run.pipeline import Run

__all__ = ["evaluate", "load", "train"]


def train(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    force: bool = False,
    resume: str | Path | None = None,
) -> "Run":
    """`nnx train`: a config file or recipe, and `a.b=value` overrides -> the finished run. `resume` is a run's folder,
    to go on there.

    Raises NnxError (see nnx.errors).
    """
    from nnx import config as configs
    from nnx.events import Finished
    from nnx.run.pipeline import Run, run
    from nnx.system import distributed

    with distributed.join():
        events = run(
            configs.load(config, overrides),
            out=Path(out) if out else None,
            force=force,
            resume=Path(resume) if resume else None,
        )
        summary = next(event.summary for event in events if isinstance(event, Finished))
    return Run(Path(summary["run"]), Path(summary["checkpoint"]), summary)


def evaluate(checkpoint: str | Path, *, split: str = "test", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`nnx eval`: the figures of a checkpoint, or a run's folder, on a split of its dataset. Raises NnxError (see
    nnx.errors)."""
    from nnx.run.evaluate import evaluate_checkpoint

    return evaluate_checkpoint(Path(checkpoint), split=split, overrides=overrides).metrics


def load(checkpoint: str | Path, *, device: str = "cpu") -> "Classifier":
    """A checkpoint, or that in a run's folder, as a torch module: (B, C, H, W) uint8 images -> (B, K) probabilities.

    Raises CheckpointError.
    """
    from nnx.inference import classifier as classifiers

    return classifiers.load(checkpoint, device)
