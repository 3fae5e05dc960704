"""nnx: train MNIST-style classifiers from one YAML file.

    import nnx

    run = nnx.train("configs/digits_mlp.yaml", ["train.epochs=5"])  # a Run: folder, checkpoint, summary
    nnx.evaluate(run.checkpoint)["accuracy"]
    classifier = nnx.load(run.checkpoint)  # a torch module: raw images -> probabilities

The functions do what the commands nnx train, nnx eval and nnx predict do. The first call imports torch.
"""

TYPE_CHECKING = False  # `python -m nnx` imports this file before it can take the current folder off the path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from nnx.inference.classifier import Classifier
    from nnx.run.pipeline import Run

__all__ = ["evaluate", "load", "train"]


def train(
    config: "str | Path",
    overrides: "Sequence[str]" = (),
    *,
    out: "str | Path | None" = None,
    force: bool = False,
    resume: "str | Path | None" = None,
) -> "Run":
    """Train as `nnx train` does: a config file or recipe name, and `a.b=value` overrides -> the finished run.

    `resume` is the folder of a run to resume. Raises NnxError (see nnx.errors).
    """
    from pathlib import Path

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


def evaluate(checkpoint: "str | Path", *, split: str = "test", overrides: "Sequence[str]" = ()) -> "dict[str, Any]":
    """Evaluate as `nnx eval` does: a checkpoint or run folder -> its metrics on a split of its dataset.

    Raises NnxError (see nnx.errors).
    """
    from pathlib import Path

    from nnx.run.evaluate import evaluate_checkpoint

    return evaluate_checkpoint(Path(checkpoint), split=split, overrides=overrides).metrics


def load(checkpoint: "str | Path", *, device: str = "cpu") -> "Classifier":
    """Load a checkpoint or run folder as a torch module: (B, C, H, W) uint8 images -> (B, K) probabilities.

    Raises CheckpointError.
    """
    from nnx.inference import classifier as classifiers

    return classifiers.load(checkpoint, device)
