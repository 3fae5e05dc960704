"""nnx explain CHECKPOINT [IMAGE...]: pictures of what a network learned and why it decides."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnx.cli._options import CheckpointPath, DataDir, Device, Json, Quiet, Set, check_order, check_out, print_json
from nnx.cli._start import import_torch
from nnx.cli.eval import SplitName
from nnx.errors import DataError, InputError, printable
from nnx.formatting import print_wrapped
from nnx.system import signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nnx.checkpoint import Checkpoint
    from nnx.datasets import Dataset
    from nnx.explain import Explanation, Subject


def explain(
    checkpoint: CheckpointPath,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Images, or folders of images, to explain instead of samples of the dataset.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        list[int] | None,
        typer.Option(
            "--index",
            metavar="N",
            min=0,
            help="Index of a sample in the split, from 0. Repeatable.",
            show_default="one per class",
        ),
    ] = None,
    split: Annotated[
        SplitName | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="Split to take samples from: train, validation or test.",
            show_default="test; if there is none, validation or train",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help="Run only this explainer. Repeatable.", show_default="all that apply"
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            callback=check_out,
            help="Folder to write to.",
            show_default="explain/ next to the checkpoint",
        ),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Visualise what a network learned and why it decides.

    Writes the pictures of each explainer, and index.html with all of them.

    Example: nnx explain runs/mnist --only filters --only saliency --index 8
    """
    check_order(checkpoint, images or [], "explain")
    import_torch()
    from nnx import checkpoint as checkpoints
    from nnx import datasets, explain, models
    from nnx.run import folder as run_folder
    from nnx.run.evaluate import dataset_of, settings_of
    from nnx.system import device as devices
    from nnx.terminal import console
    from nnx.training.setup import runtime_for

    path = checkpoints.locate(checkpoint)
    folder = out or path.parent / "explain"
    if not out and folder.is_symlink():  # somebody may have prepared the run, to have other files replaced
        raise InputError(f"{folder}: is a link; name the folder that it leads to with --out, or remove it")
    with (
        signals.catch_signals(),
        datasets.silent(quiet),
        signals.exit_on_signal("stopped before the explanations were complete; nothing was written"),
    ):
        saved = checkpoints.read(path)
        run_folder.check_folder(folder)
        explain.choose(saved, only)
        config = settings_of(saved, path, overrides, device)
        runtime = runtime_for(config, precision="float32")
        dataset = cache(lambda: dataset_of(saved, config, path, data_dir))
        if images:
            if (name := images[0]) in explain.names() and not Path(name).exists():
                raise InputError(f"{name}: no such image; it is an explainer: --only {name}")
            if index:
                raise InputError("name image files or --index, not both")
            selected = _read_images(images, saved, path)
        else:
            selected = _select_samples(dataset(), index or [], split)
        subject = explain.build_subject(
            saved,
            lambda name: dataset().split(name),
            selected.inputs,
            selected.names,
            selected.labels,
            split_names=lambda: dataset().split_names,
            device=runtime.device,
        )
        threads = devices.set_threads(config.threads, models.multiply_adds(subject.network, saved.spec) * 500)
        if not quiet:
            choices = (*runtime.choices, threads)
            console.print_choices(choice for choice in choices if choice.what in ("device", "threads"))
            console.print_notes(selected.notes)
        with devices.explain_out_of_memory(
            "Explain fewer samples at a time; if the device's memory ran out, use --device cpu"
        ):
            results = dict(_print_progress(explain.explain(subject, only), quiet=quiet))
    document = _write(folder, subject, results)
    if json:
        print_json(document)
    else:
        _print_table(document)


@dataclass(frozen=True)
class Selected:
    """What to explain: (N, *shape) inputs, their names, their labels if they are known, and notes for the user."""

    inputs: "NDArray[Any]"
    names: list[str]
    labels: "NDArray[Any] | None"
    notes: list[str]


def _select_samples(dataset: "Dataset", indices: list[int], split: SplitName | None) -> Selected:
    """The samples of the dataset at these indices, or one of each class. Raises InputError for an index beyond the
    split."""
    import numpy as np

    from nnx.explain import one_per_class

    name = split.value if split else dataset.split_names[0]
    notes = []
    if not split and name != "test":
        notes.append(f"the dataset has no test samples (dataset.test: 0): explaining {name} samples")
    samples = dataset.split(name)
    if beyond := [n for n in indices if n >= len(samples)]:
        raise InputError(
            f"--index {beyond[0]}: the {name} split has {len(samples):,} samples; give 0 to {len(samples) - 1}"
        )
    selected = np.array(indices) if indices else one_per_class(samples, len(dataset.spec.classes))
    return Selected(samples.inputs[selected], [f"{name} {n}" for n in selected], samples.labels[selected], notes)


def _read_images(paths: list[str], checkpoint: "Checkpoint", checkpoint_path: Path) -> Selected:
    """Read image files and folders, prepared as by nnx predict: (N, C, H, W). The notes tell how. Raises DataError."""
    import numpy as np

    from nnx.inference.inputs import InputSet
    from nnx.terminal import predictions as prediction_view

    if not checkpoint.spec.is_image:
        raise DataError(f"{checkpoint_path}: was trained on rows of numbers, not on images; name samples by --index")
    input_set = InputSet(paths, checkpoint.spec)
    batches = list(input_set.batches())
    names = [name for batch in batches for name in batch.names]
    preparations = [steps for batch in batches for steps in batch.prepared]
    prepared = [{"input": name, "prepared": steps} for name, steps in zip(names, preparations, strict=True)]
    notes = [*input_set.notes, *prediction_view.preparation_notes(prepared)]
    return Selected(np.concatenate([batch.inputs for batch in batches]), names, None, notes)


def _print_progress(
    results: "Iterable[tuple[str, Explanation | str]]", *, quiet: bool
) -> "Iterable[tuple[str, Explanation | str]]":
    """Pass on each result; print on stderr the explainer's name and its time, or the reason why it does not apply."""
    begun = time.perf_counter()
    for name, result in results:
        if not quiet:
            outcome = result if isinstance(result, str) else f"{time.perf_counter() - begun:.1f} s"
            print_wrapped(f"{name:<12} {printable(outcome)}")
        yield name, result
        begun = time.perf_counter()


def _write(folder: Path, subject: "Subject", results: "dict[str, Explanation | str]") -> dict[str, Any]:
    """Write each picture to a file, then the page. Returns the JSON document. Raises MachineError."""
    from nnx.explain import Explanation, _page
    from nnx.system import files

    files.make_folder(folder)
    files.remove_stale_files(folder)
    explainers: dict[str, Any] = {}
    for name, result in results.items():
        if isinstance(result, Explanation):
            for picture in result.pictures:
                files.replace(folder / f"{picture.name}.png", picture.png)
            pictures = [{"file": f"{picture.name}.png", "caption": picture.caption} for picture in result.pictures]
            explainers[name] = {"reading": result.reading, "pictures": pictures, "figures": result.figures}
    files.write(folder / "index.html", _page.render(subject, results))
    return {
        "folder": str(folder),
        "page": "index.html",
        "samples": subject.names,
        "explainers": explainers,
        "left_out": {name: result for name, result in results.items() if isinstance(result, str)},
    }


def _print_table(document: dict[str, Any]) -> None:
    """Print a row per explainer: its number of pictures and how to read them; then the path of the page."""
    from rich.table import Table
    from rich.text import Text

    from nnx.terminal import console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("explainer", no_wrap=True)
    table.add_column("pictures", justify="right")
    table.add_column("how to read them", overflow="fold")
    for name, explanation in document["explainers"].items():
        table.add_row(Text(name), str(len(explanation["pictures"])), Text(printable(explanation["reading"])))
    for name, reason in document["left_out"].items():
        table.add_row(Text(name), "-", Text(printable(reason), "dim"))
    console.print_table(table)
    console.print_lines([Text(), Text(printable(str(Path(document["folder"]) / document["page"])))])
