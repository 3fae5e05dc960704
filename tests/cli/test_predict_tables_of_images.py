"""`nnx predict` and `nnx eval` on tables of images, for networks that were trained on such tables."""

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nnx import checkpoint
from nnx.preprocessing.spec import Spec

DIGITS, LABELS = load_digits(return_X_y=True)  # pixels are 0 to 16
NAMES = [f"{first}{second}" for first in "stuvwxyz" for second in "qwertyui"]  # in no order of their own


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))


def pixels_table(factor=15, count=200):
    """A column for each pixel, with values from 0 to 16 times `factor`."""
    values = DIGITS[:count] * factor
    values = values.astype(int) if factor >= 1 else values
    return pl.DataFrame({"label": LABELS[:count], **dict(zip(NAMES, values.T, strict=True))})


def files_table(count=200):
    files = []
    for image in DIGITS[:count]:
        file = io.BytesIO()
        Image.fromarray((image * 15).astype(np.uint8).reshape(8, 8)).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    return pl.DataFrame({"image": files, "label": LABELS[:count]})


def train(nnx, path, **dataset):
    dataset = {"name": "table", "path": path, "target": "label", **dataset}
    text = f"dataset: {json.dumps(dataset)}\nmodel: {{name: mlp, hidden: [16]}}\noptimizer: {{name: adam, lr: 0.01}}\n"
    Path("a.yaml").write_text(text + "train: {epochs: 5, batch_size: 16, report: false}\n")
    result = nnx("train", "a.yaml", "--out", "r")
    assert result.code == 0, result.err


def predict(nnx, *paths):
    result = nnx("predict", "r", *paths, "--json", "--prepare", "none")
    assert result.code == 0, result.err
    return [(each["label"], each["probability"]) for each in json.loads(result.out)["predictions"]]


@pytest.mark.parametrize("form", ["t.csv", "t.tsv", "t.parquet", "files.parquet"])
def test_predictions_of_the_training_table_are_those_of_eval(nnx, form):
    if form == "files.parquet":
        files_table().write_parquet(form)
        train(nnx, form, test=0)
    else:
        table = pixels_table()
        table.write_csv("t.csv")
        table.write_csv("t.tsv", separator="\t")
        table.write_parquet("t.parquet")
        train(nnx, form, test=0, image=[8, 8])
    predicted = [label for label, _ in predict(nnx, form)]
    right = np.array(predicted) == LABELS[:200].astype(str)
    splits = [json.loads(nnx("eval", "r", "--split", name, "--json").out) for name in ("train", "validation")]
    assert right.sum() == sum(round(split["accuracy"] * split["samples"]) for split in splits)
    assert right.mean() > 0.5


def test_columns_of_pixels_are_matched_by_name(nnx):
    table = pixels_table()
    table.write_csv("t.csv")
    train(nnx, "t.csv", image=[8, 8])
    table.select(reversed(table.columns)).with_columns(extra=pl.lit(1)).write_csv("other.csv")
    assert predict(nnx, "other.csv") == predict(nnx, "t.csv")
    noted = nnx("predict", "r", "other.csv")
    assert "other.csv: columns that are not used: label, extra" in noted.err
    expected, found = (
        json.loads(nnx("eval", "r", "--set", f"dataset.path={path}", "--json").out) for path in ("t.csv", "other.csv")
    )
    assert found["loss"] == expected["loss"]
    table.drop("sq", "uw").write_csv("short.csv")
    for command in (("predict", "r", "short.csv"), ("eval", "r", "--set", "dataset.path=short.csv")):
        refused = nnx(*command)
        assert refused.code == 2
        assert "short.csv: lacks 2 of the 64 columns of pixels" in " ".join(refused.err.split())
        assert "such as 'sq'" in " ".join(refused.err.split())


@pytest.mark.parametrize(("factor", "white"), [(1 / 16, 1), (15, 255), (255, 4095)])
def test_values_keep_the_scale_of_the_training_table(nnx, factor, white):
    """One dark row alone would be read with a scale of its own."""
    pixels_table(factor).write_csv("t.csv")
    train(nnx, "t.csv", image=[8, 8], **({"white": white} if white > 255 else {}))
    dark = pixels_table(factor, 3).with_columns(pl.exclude("label") * (1 / 16 if white == 1 else 0))
    dark = dark if white == 1 else dark.with_columns(xq=pl.lit(white // 255))
    dark.write_csv("dark.csv")
    columns = checkpoint.read(Path("r/checkpoint.pt")).spec.image_columns
    assert columns.white == white
    assert columns.names == tuple(NAMES)
    values = dark.drop("label").to_numpy().reshape(-1, 8, 8)
    for n, image in enumerate(values):
        Image.fromarray(np.rint(image * 255 / white).astype(np.uint8)).save(f"{n}.png")
    of_table, of_files = predict(nnx, "dark.csv"), predict(nnx, "0.png", "1.png", "2.png")
    assert of_table == of_files


def test_another_scale_than_that_of_training_is_refused(nnx):
    pixels_table().write_csv("t.csv")
    train(nnx, "t.csv", image=[8, 8])
    pixels_table(1 / 16).write_csv("other.csv")
    for command in (("predict", "r", "other.csv"), ("eval", "r", "--set", "dataset.path=other.csv")):
        refused = nnx(*command)
        assert refused.code == 2
        assert "from 0 to 1, those of the training images go up to 255" in " ".join(refused.err.split())


def test_tables_from_standard_input(nnx, monkeypatch):
    pixels_table().write_csv("t.csv")
    files_table().write_parquet("t.parquet")
    for path, settings in (("t.csv", {"image": [8, 8]}), ("t.parquet", {})):
        train(nnx, path, **settings)
        expected = predict(nnx, path)
        with open(path, "rb") as file:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
            assert predict(nnx, "-") == expected
        Path("r").rename(f"r-{path}")


def test_each_bad_row_is_named(nnx):
    files_table().write_parquet("t.parquet")
    train(nnx, "t.parquet")
    table = files_table(5)
    files = table["image"].to_list()
    files[1] = files[3] = {"bytes": b"no image", "path": None}
    table.with_columns(image=pl.Series(files)).write_parquet("bad.parquet")
    refused = nnx("predict", "r", "bad.parquet")
    assert refused.code == 2
    assert "bad.parquet, row 2: is not an image" in refused.err
    assert "bad.parquet, row 4: is not an image" in refused.err


def test_a_table_without_images_is_refused(nnx):
    files_table().write_parquet("t.parquet")
    train(nnx, "t.parquet")
    pixels_table().write_csv("t.csv")
    refused = nnx("predict", "r", "t.csv")
    assert refused.code == 2
    assert "t.csv: has no column of image files" in refused.err
    several = nnx("doctor", "t.parquet", "r")
    assert several.code == 2
    assert "is a table of 200 images" in several.err
    files_table(1).write_parquet("one.parquet")
    assert nnx("doctor", "one.parquet", "r").code == 0


@pytest.mark.parametrize(
    "columns",
    [
        {},
        [],
        "",
        {"names": ["a"], "white": None, "more": 1},
        {"names": "a" * 64, "white": 255},
        {"names": ["a", "b"], "white": None},
        {"names": ["a"] * 64, "white": 255},
        {"names": NAMES[:63], "white": 255},
        {"names": NAMES, "white": 0},
        {"names": NAMES, "white": 2**70},
        {"names": NAMES, "white": True},
        {"names": [*NAMES[:63], 7], "white": 255},
        {"names": [*NAMES[:63], "x" * 201], "white": 255},
    ],
)
def test_hostile_columns_in_a_checkpoint_are_refused(columns):
    plain = {"shape": [1, 8, 8], "classes": ["a", "b"], "mean": [0.5], "std": [0.2]}
    good = {**plain, "image_columns": {"names": NAMES, "white": 255}}
    assert Spec.from_dict(good).to_dict()["image_columns"] == good["image_columns"]
    with pytest.raises((ValueError, KeyError, TypeError)):
        Spec.from_dict({**plain, "image_columns": columns})
    with pytest.raises(ValueError, match="not a spec"):
        Spec.from_dict(
            {**plain, "shape": [64], "mean": [0.5] * 64, "std": [1] * 64} | {"image_columns": good["image_columns"]}
        )
