"""What the HTTP interface offers, without HTTP: descriptions, answers and samples, all from one thread.

One thread answers one request after the other, in the order of their arrival, so that requests can't mix.
"""

import asyncio
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnx.errors import DataError, InputError, NnxError, printable
from nnx.formatting import print_wrapped
from nnx.preprocessing import images, tables
from nnx.serve.network import Network, Part, Prepared, pack_image
from nnx.serve.samples import Row, Samples, describe_columns, feature_names
from nnx.system import device as devices

MAX_PIXELS = 4_000_000  # of an image: a body of 256 kB with more is unusual, and takes long
MAX_CELL = 1000  # characters of a value of a row

Result = TypeVar("Result")


class NotHere(InputError):
    """The page asks for a model or a sample that there is not."""


class Service:
    """Networks that fit together, and the samples of the first one's dataset."""

    def __init__(self, networks: Sequence[Network], data_dir: str | None = None) -> None:
        self.networks = {network.name: network for network in networks}
        self.first = networks[0]
        self.samples = Samples(self.first, data_dir)
        multiply_adds = sum(network.multiply_adds for network in networks)
        # torch's number of threads belongs to the thread that computes
        self._worker = ThreadPoolExecutor(
            1, "nnx-answers", initializer=lambda: devices.set_threads("auto", multiply_adds)
        )

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work` in the thread that answers."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: work(*arguments))

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the page shows before the first answer, as plain values."""
        networks = list(self.networks.values())
        description = {
            "input": "image" if self.first.spec.is_image else "row",
            "drawing": any(network.accepts_drawings for network in networks),
            "pictures": self.first.accepts_pictures,
            "classes": list(self.first.spec.classes),
            "models": [network.describe() for network in networks],
            "columns": [],
        }
        if not self.first.spec.is_image:
            try:
                dataset = self.samples.dataset
            except NnxError:
                dataset = None
            description["columns"] = describe_columns(self.first, dataset)
        return description

    def predict(
        self,
        image: bytes | None,
        sample: int | None,
        row: Row | None,
        names: Sequence[str] | None,
        parts: Collection[Part],
    ) -> list[dict[str, Any]]:
        """The answer of each network, or of those with these names, to a picture, a sample or a row: one of them.

        Raises NotHere for an unknown name or sample, and InputError for another input that is wrong.
        """
        if unknown := [name for name in names or [] if name not in self.networks]:
            raise NotHere(f"models: there is no model {printable(unknown[0][:60])!r}; GET /api/models lists them")
        networks = [self.networks[name] for name in dict.fromkeys(names)] if names else list(self.networks.values())
        if row is not None:
            prepare = _prepare_row(row)
        elif sample is not None:
            prepare = self._prepare_sample(sample)
        else:
            assert image is not None
            prepare = _prepare_image(image)
        return [network.answer(prepare(network), parts) for network in networks]

    def sample(self, index: int | None) -> dict[str, Any]:
        """A sample, by default a random one, with its true label. Raises NotHere."""
        count = self._count_samples()
        index = int(np.random.default_rng().integers(count)) if index is None else index
        self._check_index(index, count)
        split = {"train": "training"}.get(self.samples.split_name, self.samples.split_name)
        result = {"index": index, "count": count, "split": split, "label": self.samples.label(index)}
        if self.first.spec.is_image:
            return {**result, "image": pack_image(self.samples.image(index)), "row": None}
        return {**result, "image": None, "row": self.samples.row(index)}

    def _count_samples(self) -> int:
        try:
            return len(self.samples)
        except NnxError as error:  # its message names files, and a page need not know them
            print_wrapped(f"warning: no samples: {printable(str(error))}", sys.stderr)
            raise NotHere("the samples of the dataset can't be read; nnx serve has printed why") from None

    def _check_index(self, index: int, count: int) -> None:
        if index >= count:
            raise NotHere(f"sample: there is no sample {index}; give 0 to {count - 1:,}")

    def _prepare_sample(self, index: int) -> Callable[[Network], Prepared]:
        self._check_index(index, self._count_samples())
        if not self.first.spec.is_image:
            return _prepare_row(self.samples.row(index))
        image = self.samples.image(index)

        def prepare(network: Network) -> Prepared:
            if image.shape == network.spec.shape:  # as in training: nothing to prepare
                return Prepared(["as in the dataset"], image[None])
            return network.prepare(np.ascontiguousarray(image.transpose(1, 2, 0)))

        return prepare


def _prepare_image(data: bytes) -> Callable[[Network], Prepared]:
    decoded: dict[tuple[int | None, int], NDArray[np.uint8]] = {}
    prepared: list[tuple[Network, Prepared]] = []

    def prepare(network: Network) -> Prepared:
        spec = network.spec
        if not network.accepts_pictures:
            raise InputError("image: the network was not trained on pictures in gray or in colours; send a sample")
        if same := [each for other, each in prepared if _prepare_alike(other, network)]:
            return same[0]
        limits = spec.white, min(spec.max_pixels or MAX_PIXELS, MAX_PIXELS)
        if limits not in decoded:
            decoded[limits] = images.decode(data, "image", white=limits[0], max_pixels=limits[1], reduce=True)
        prepared.append((network, network.prepare(decoded[limits])))
        return prepared[-1][1]

    return prepare


def _prepare_alike(one: Network, other: Network) -> bool:
    """Whether two networks prepare a picture in the same way."""
    first, second = one.spec, other.spec
    return all(
        getattr(first, key) == getattr(second, key)
        for key in ("shape", "fit", "image_statistics", "white", "max_pixels")
    )


def _prepare_row(row: Row) -> Callable[[Network], Prepared]:
    def prepare(network: Network) -> Prepared:
        if network.spec.is_image:
            raise InputError("row: the network was trained on images; send an image")
        return Prepared(["row"], _encode_row(row, network))

    return prepare


def _encode_row(row: Row, network: Network) -> NDArray[np.float32]:
    """A table's row -> (1, F) features, as `nnx predict` reads them. Raises DataError."""
    columns = network.spec.columns
    names = feature_names(network)
    if missing := [name for name in names if name not in row]:
        raise DataError(f"row: has no column {missing[0]!r}; null stands for a missing value")
    if columns is None:
        return np.array([[_number(row[name], name) for name in names]], np.float32)
    import polars as pl

    frame = pl.DataFrame(
        {name: [value and value.strip()] for name, value in row.items()}, schema=dict.fromkeys(row, pl.String)
    )
    frame = tables.replace_missing(frame.select(names), tables.MISSING)
    encoded = columns.encode(frame, "row")
    return columns.apply(encoded, columns)


def _number(text: str | None, name: str) -> float:
    value = tables.parse_number(text or "")
    if value is None or not abs(value) <= float(np.finfo(np.float32).max):
        raise DataError(f"row: {name} is not a number that can be computed with; correct it")
    return value
