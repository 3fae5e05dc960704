"""Images in tables: a column per pixel, or image files in a Parquet column as Hugging Face writes them."""

import io
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from PIL import Image

from nnx import datasets
from nnx.datasets import arrays, digits, table
from nnx.errors import ConfigError, DataError


@pytest.fixture
def images(tmp_path):
    source = digits.load(digits.Config(), tmp_path)
    return source.train.take(np.arange(200))


def load(path, **settings):
    return datasets.load(table.Config(path=str(path), target="label", **settings), seed=0)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_files(path, images, spoil=None):
    files = [{"bytes": png(pixels[0]), "path": None} for pixels in images.inputs]
    if spoil is not None:
        files[7] = {"bytes": spoil, "path": None}
    pl.DataFrame({"image": files, "label": images.labels}).write_parquet(path)


def write_pixels(path, images, **columns):
    rows = images.inputs.reshape(len(images), -1)
    pl.DataFrame({"label": images.labels, **{f"pixel{n}": rows[:, n] for n in range(64)}} | columns).write_csv(path)


@pytest.mark.parametrize("form", ["files", "pixels"])
def test_a_table_of_images_equals_the_same_arrays(images, tmp_path, form):
    np.savez(tmp_path / "a.npz", x=images.inputs[:, 0], y=images.labels)
    expected = datasets.load(arrays.Config(path=str(tmp_path / "a.npz")), seed=0)
    if form == "files":
        write_files(tmp_path / "t.parquet", images)
        found = load(tmp_path / "t.parquet")
    else:
        write_pixels(tmp_path / "t.csv", images)
        found = load(tmp_path / "t.csv", image=[8, 8])
    assert np.array_equal(found.train.inputs, expected.train.inputs)
    assert np.array_equal(found.train.labels, expected.train.labels)
    assert np.array_equal(found.test().inputs, expected.test().inputs)
    assert replace(found.spec, image_columns=None) == expected.spec


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [(b"no image", "row 8: is not an image"), (None, ""), (png(np.zeros((9, 8), np.uint8)), "row 8: image is 8 wide")],
)
def test_a_bad_file_is_named_by_its_row(images, tmp_path, spoil, problem):
    write_files(tmp_path / "t.parquet", images, spoil)
    if spoil is None:
        assert load(tmp_path / "t.parquet").spec
        return
    with pytest.raises(DataError, match=problem):
        load(tmp_path / "t.parquet")


def test_pixels_that_are_none_are_refused(images, tmp_path):
    write_pixels(tmp_path / "t.csv", images, pixel3=["x"] * len(images))
    with pytest.raises(DataError, match=r"t\.csv:2 .*: column 'pixel3' contains 'x'"):
        load(tmp_path / "t.csv", image=[8, 8])
    with pytest.raises(ConfigError, match="has 64 columns besides the target, not 784"):
        load(tmp_path / "t.csv", image=[28, 28])


def test_sequences_are_refused_with_the_cure(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(20, 5, 3)), y=np.arange(20) % 2)
    with pytest.raises(DataError, match=r"for sequences \(N x T x F\), set dataset\.inputs: rows"):
        datasets.load(arrays.Config(path=str(tmp_path / "s.npz")), seed=0)
