"""nnx explain CHECKPOINT [IMAGE...]"""

import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnx.cli._options import CheckpointPath, DataDir, Device, Json, Quiet, Set, print_json
from nnx.cli._start import import_torch
from nnx.cli.eval import SplitName
from nnx.errors import DataError, InputError
from nnx.system import signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nnx.checkpoint import Checkpoint
    from nnx.datasets import Split
    from nnx.explain import Explanation, Subject


def explain(
    checkpoint: CheckpointPath,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files to explain, or folders of them, instead of samples of the dataset.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        list[int] | None,
        typer.Option(
            "--index",
            metavar="N",
            min=0,
            help="A sample by its place in the split, from 0. Repeatable.",
            show_default="one a class",
        ),
    ] = None,
    split: Annotated[
        SplitName, typer.Option("--split", help="Which part of the dataset samples are from.")
    ] = SplitName.test,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this explainer. Repeatable.", show_default="all that apply"),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer reads it, nobody changes it
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to.", show_default="explain/ beside the checkpoint")
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw what each layer has learned and why the network decided: pictures, and one page, index.html, with all of
    them.

    For instance: nnx explain runs/mnist/checkpoint.pt --only filters --only saliency --index 8
    """
    import_torch()
    from nnx import checkpoint as checkpoints
    from nnx import datasets, explain, models
    from nnx.run import folder as run_folder
    from nnx.run.evaluate import dataset_of, settings_of
    from nnx.system import device as devices
    from nnx.terminal import console
    from nnx.training.setup import runtime_for

    checkpoint = checkpoints.locate(checkpoint)
    folder = out or checkpoint.parent / "explain"
    with (
        signals.catch_signals(),
        datasets.silent(quiet),
        signals.exit_on_signal("stopped before all was explained; nothing was written"),
    ):
        kept = checkpoints.read(checkpoint)
        run_folder.check_folder(folder)
        explain.choose(kept, only)
        config = settings_of(kept, checkpoint, overrides, device)
        chosen = runtime_for(config, precision="float32")
        dataset = cache(lambda: dataset_of(kept, config, checkpoint, data_dir))
        prepared: list[str] = []
        if images:
            if index:
                raise InputError("name image files or --index, not both")
            inputs, names, prepared = _images(images, kept, checkpoint)
            labels = None
        else:
            inputs, names, labels = _samples(
                dataset().split(split.value), index or [], split.value, len(kept.spec.classes)
            )
        subject = explain.build_subject(
            kept, lambda name: dataset().split(name), inputs, names, labels, device=chosen.device
        )
        threads = devices.set_threads(config.threads, models.multiply_adds(subject.network, kept.spec) * 500)
        if not quiet:
            console.print_choices(
                choice for choice in (*chosen.choices, threads) if choice.what in ("device", "threads")
            )
            console.print_notes(prepared)
        with devices.explain_out_of_memory(
            "Explain fewer samples at a time, or use --device cpu where the device's memory is what is missing"
        ):
            found = dict(_timed(explain.explain(subject, only), quiet=quiet))
    made = _write(folder, subject, found)
    if json:
        print_json(made)
    else:
        _print(made)


def _samples(
    samples: "Split", places: list[int], split: str, classes: int
) -> "tuple[NDArray[Any], list[str], NDArray[Any]]":
    """The samples at these places, or one of each class, what each is called, and their labels. Raises InputError."""
    import numpy as np

    from nnx.explain import one_per_class

    if beyond := [n for n in places if n >= len(samples)]:
        raise InputError(
            f"--index {beyond[0]}: the {split} split has {len(samples):,} samples; give 0 to {len(samples) - 1}"
        )
    which = np.array(places) if places else one_per_class(samples, classes)
    return samples.inputs[which], [f"{split} {n}" for n in which], samples.labels[which]


def _images(paths: list[str], kept: "Checkpoint", checkpoint: Path) -> "tuple[NDArray[Any], list[str], list[str]]":
    """(N, C, H, W): files, or those in folders, as the network takes them, prepared as by nnx predict; what each is
    called; and what there is to say of that. Raises DataError."""
    import numpy as np

    from nnx.inference.inputs import InputSet
    from nnx.terminal import predictions as prediction_view

    if not kept.spec.is_image:
        raise DataError(f"{checkpoint}: was trained on rows of numbers, not on images; ask by --index")
    asked = InputSet(paths, kept.spec)
    batches = list(asked.batches())
    each = [
        {"input": name, "prepared": steps}
        for batch in batches
        for name, steps in zip(batch.names, batch.prepared, strict=True)
    ]
    names = [name for batch in batches for name in batch.names]
    return (
        np.concatenate([batch.inputs for batch in batches]),
        names,
        [*asked.notes, *prediction_view.preparation(each)],
    )


def _timed(
    each: "Iterable[tuple[str, Explanation | str]]", *, quiet: bool
) -> "Iterable[tuple[str, Explanation | str]]":
    """Pass each explanation on; as it comes, say on stderr which it is and how long it took."""
    begun = time.perf_counter()
    for name, found in each:
        if not quiet:
            print(
                f"{name:<12}",
                found if isinstance(found, str) else f"{time.perf_counter() - begun:.1f} s",
                file=sys.stderr,
            )
        yield name, found
        begun = time.perf_counter()


def _write(folder: Path, subject: "Subject", found: "dict[str, Explanation | str]") -> dict[str, Any]:
    """Every picture as a file, then the page; gives what was made, as plain values. Raises MachineError."""
    from nnx.explain import Explanation, _page
    from nnx.system import files

    files.make_folder(folder)
    files.remove_stale_files(folder)
    made: dict[str, Any] = {}
    for name, each in found.items():
        if isinstance(each, Explanation):
            for picture in each.pictures:
                files.replace(folder / f"{picture.name}.png", picture.png)
            pictures = [{"file": f"{picture.name}.png", "caption": picture.caption} for picture in each.pictures]
            made[name] = {"reading": each.reading, "pictures": pictures, "figures": each.figures}
    files.write(folder / "index.html", _page.render(subject, found))
    reasons = {name: each for name, each in found.items() if isinstance(each, str)}
    return {
        "folder": str(folder),
        "page": "index.html",
        "samples": subject.names,
        "explainers": made,
        "left_out": reasons,
    }


def _print(made: dict[str, Any]) -> None:
    """A row an explainer: its pictures, and how to read them; then where all of it is."""
    from rich.table import Table
    from rich.text import Text

    from nnx.terminal import console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("explainer", no_wrap=True)
    table.add_column("pictures", justify="right")
    table.add_column("how to read them", overflow="fold")
    for name, each in made["explainers"].items():
        table.add_row(Text(name), str(len(each["pictures"])), Text(each["reading"]))
    for name, why in made["left_out"].items():
        table.add_row(Text(name), "-", Text(why, "dim"))
    console.print_table(table)
    console.print_lines([Text(), Text(str(Path(made["folder"]) / made["page"]))])
