"""EMNIST: handwritten letters and digits, 28x28, in six splits (Cohen, Afshar, Tapson and van Schaik 2017)."""

import string
from pathlib import Path
from typing import Literal

from pydantic import Field

from nnx.datasets import DatasetConfig, Source, _idx

# bymerge and balanced have one class, the capital, for letters whose upper and lower case look alike.
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
CLASSES = {
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": string.ascii_lowercase,
    "digits": string.digits,
    "mnist": string.digits,
}


class Config(DatasetConfig):
    """Handwritten letters and digits, 28x28."""

    name: Literal["emnist"] = "emnist"
    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = Field(
        "balanced", description="which classes"
    )


def load(config: Config, folder: Path) -> Source:
    """One split of EMNIST from `folder`/EMNIST/raw, turned upright: its files contain every image transposed.

    The labels of letters, 1..26 in the file, become 0..25.
    """
    train, test = (
        (f"emnist-{config.split}-{half}-images-idx3-ubyte", f"emnist-{config.split}-{half}-labels-idx1-ubyte")
        for half in ("train", "test")
    )
    first = 1 if config.split == "letters" else 0
    classes = CLASSES[config.split]
    return _idx.source("emnist", "EMNIST", folder, classes, files=(train, test), first_label=first, transposed=True)
