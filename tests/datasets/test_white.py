"""`dataset.white`: images of more than 8 bits are scaled by the value that is white, never to a few gray levels in
silence."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pictures import listed, save
from pydantic import ValidationError

from nnx import datasets
from nnx.datasets import _table_images, arrays, folder
from nnx.errors import ConfigError, DataError
from nnx.preprocessing.spec import Spec

TOP = {8: 240, 10: 1020, 12: 3840, 14: 16000, 16: 65535}
WHITE = {8: 255, 10: 1023, 12: 4095, 14: 16383, 16: 65535}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))


def values(bits, seed=0, count=24):
    """(N, 6, 5) uint16 from 0 to the highest value, which all images have."""
    images = np.random.default_rng(seed).integers(0, TOP[bits] + 1, (count, 6, 5), dtype=np.uint16)
    images[:, 0, 0] = TOP[bits]
    return images


def tree(root, images, ending="png"):
    """Write images alternately into two class folders."""
    for n, image in enumerate(images):
        save(root / "ab"[n % 2] / f"{n:03}.{ending}", image)
    return root


def load(path, **options):
    return folder.load(folder.Config(path=str(path), **options), Path("unused"))


def everything(source):
    """All images of a source, sorted, because the test images were set aside."""
    images = np.concatenate([np.asarray(source.train.inputs), np.asarray(source.test().inputs)])
    return np.array(sorted(images.reshape(len(images), -1).tolist()))


def scaled(images, white):
    return np.array(sorted(np.rint(images * (255 / white)).astype(int).reshape(len(images), -1).tolist()))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("bits", TOP)
def test_auto_takes_the_white_that_the_training_images_need(bits, ending, tmp_path):
    images = values(bits)
    source = load(tree(tmp_path / "pics", images, ending), white="auto")
    assert source.white == WHITE[bits]
    assert np.array_equal(everything(source), scaled(images, WHITE[bits]))
    note = next(note for note in source.notes if note.what == "white")
    assert note.value == str(WHITE[bits])
    assert f"highest value, {TOP[bits]:,}" in note.reason


@pytest.mark.parametrize("white", [255, 1000, 4095, 65535])
def test_the_white_in_the_config_gives_exact_values(white, tmp_path):
    images = np.minimum(values(12), white).astype(np.uint16)
    source = load(tree(tmp_path / "pics", images), white=white)
    assert source.white == white
    assert np.array_equal(everything(source), scaled(images, white))
    dark = [note for note in source.notes if note.what == "warning"]
    assert bool(dark) == (white == 65535)
    if dark:
        assert "leaves 16 of 256 gray levels; dataset.white: auto measures it" in dark[0].reason


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_low_values_in_sixteen_bits_are_refused_with_the_cure(bits, tmp_path):
    tree(tmp_path / "pics", values(bits))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "pics")
    levels = round(TOP[bits] / 257) + 1
    problem = f"16-bit values of at most {TOP[bits]:,} leave {levels} of 256 gray levels"
    cure = f"set dataset.white to the value that is white, such as {WHITE[bits]}, or to auto"
    assert str(caught.value) == f"{tmp_path}/pics/a/000.png and 23 more files: {problem}; {cure}"


def test_floats_that_leave_few_gray_levels_are_refused(tmp_path):
    """They became 4 gray levels in silence."""
    dark = values(16).astype(np.float32) / 65535 / 100
    tree(tmp_path / "dark", dark, "tif")
    message = r"000\.tif: values of at most 0\.0118 leave 4 of 256 gray levels; multiply them"
    with pytest.raises(DataError, match=message):
        load(tmp_path / "dark")
    tree(tmp_path / "light", dark * 100, "tif")
    assert everything(load(tmp_path / "light")).max() == 255
    tree(tmp_path / "bytes", np.minimum(values(8), 3).astype(np.uint8))
    assert everything(load(tmp_path / "bytes")).max() == 3, "8 bits lose nothing"
    files = pl.Series("image", [path.read_bytes() for path in sorted((tmp_path / "dark").rglob("*.tif"))])
    with pytest.raises(DataError, match=r"row 1: values of at most 0\.0118 leave 4 of 256"):
        _table_images.decode_files(files, "a.parquet")


@pytest.mark.parametrize(
    ("high", "cure"),
    [(0.01, "leave 4 of 256 gray levels; multiply"), (2, "leave 3 of 256 gray levels; set dataset.white")],
)
def test_arrays_of_floats_that_leave_few_gray_levels_are_refused(high, cure, tmp_path):
    images = values(16)[..., None] / 65535 * high

    def read(images, **options):
        np.savez(tmp_path / "a.npz", x=images, y=np.arange(24) % 2)
        return arrays.load(arrays.Config(path=str(tmp_path / "a.npz"), **options), Path("unused"))

    with pytest.raises(DataError, match=cure):
        read(images)
    assert everything(read(images / high)).max() == 255
    assert everything(read(np.rint(images / high))).max() == 255, "black and white are no few levels"
    if high > 1:
        assert everything(read(images, white=2)).max() == 255


def test_a_list_is_treated_like_a_folder(tmp_path):
    tree(tmp_path / "pics", values(12))
    names = sorted(str(path) for path in tmp_path.glob("pics/*/*"))
    path = listed(tmp_path / "list.csv", [("file", "label"), *((name, Path(name).parent.name) for name in names)])
    with pytest.raises(DataError, match="or to auto"):
        load(path)
    assert load(path, white="auto").white == 4095


def test_a_few_deep_images_among_others_are_noticed(tmp_path):
    tree(tmp_path / "pics", (values(8, seed=1) * 255 // 240).astype(np.uint8))
    save(tmp_path / "pics/a/deep.png", values(12)[0])
    with pytest.raises(DataError, match=r"pics/a/deep.png: 16-bit values of at most 3,840 leave"):
        load(tmp_path / "pics")
    source = load(tmp_path / "pics", white=4095)
    images = [(values(8, seed=1) * 255 // 240).reshape(24, -1), np.rint(values(12)[:1] * (255 / 4095)).reshape(1, -1)]
    assert np.array_equal(everything(source), np.array(sorted(np.concatenate(images).astype(int).tolist())))


def test_images_that_are_dark_beside_others_are_a_warning(tmp_path):
    images = values(16)
    images[::3] = values(12)[::3]
    notes = load(tree(tmp_path / "pics", images)).notes
    assert [note.value for note in notes if note.what == "warning"] == ["8 images are dark"]
    images[3::3] = values(16)[3::3]
    notes = load(tree(tmp_path / "pics", images)).notes
    assert not [note for note in notes if note.what == "warning"], "one dark image is only a dark image"


def test_eight_bits_need_no_white(tmp_path):
    images = values(8).astype(np.uint8)
    tree(tmp_path / "pics", images)
    for white in (None, "auto"):
        source = load(tmp_path / "pics", white=white)
        assert source.white is None
        assert np.array_equal(everything(source), scaled(images, 255))
        assert "white" not in [note.what for note in source.notes]


def test_test_images_above_the_white_of_the_training_images_are_errors(tmp_path):
    tree(tmp_path / "pics/train", values(8))
    tree(tmp_path / "pics/test", values(12))
    with pytest.raises(DataError, match=r"test/a/000.png: has values up to 3,840, above the white of 255"):
        load(tmp_path / "pics", white="auto")
    assert load(tmp_path / "pics", white=4095).white == 4095


def test_the_cache_distinguishes_whites(tmp_path):
    tree(tmp_path / "pics", values(8))
    means = [everything(load(tmp_path / "pics", white=white)).mean() for white in (255, 1023, "auto", 255)]
    assert means[0] == means[2] == means[3] > 3 * means[1]


@pytest.mark.parametrize("white", [0, -1, 65536, 255.0, "4095", True, "Auto", [255]])
def test_a_white_that_is_none(white):
    with pytest.raises(ValidationError, match="expected the value that is white, such as 255, 4095 or 65535, or auto"):
        folder.Config(path="x", white=white)


# ---------------------------------------------------------------- arrays


def load_arrays(path, images, **options):
    np.savez(path, images=images, labels=np.arange(len(images)) % 2)
    return arrays.load(arrays.Config(path=str(path), **options), Path("unused"))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_arrays_offer_the_same_cure(bits, dtype, tmp_path):
    images = values(bits).astype(dtype)
    if bits > 8:
        error = "neither 8 nor 16" if dtype != np.float32 else "give uint8 from 0 to 255, or floats from 0 to 1"
        with pytest.raises(DataError, match=error):
            load_arrays(tmp_path / "a.npz", images)
    for white in ("auto", WHITE[bits]):
        source = load_arrays(tmp_path / "a.npz", images, white=white)
        assert source.white == WHITE[bits]
        assert np.array_equal(everything(source), scaled(images, WHITE[bits]))
    with pytest.raises(DataError, match=f"above the white of {TOP[bits] - 1:,}; train with a higher dataset.white"):
        load_arrays(tmp_path / "a.npz", images, white=TOP[bits] - 1)


def test_arrays_that_say_themselves_what_is_white(tmp_path):
    for images in (values(8).astype(np.uint8), values(8) / np.float32(256)):
        source = load_arrays(tmp_path / "a.npz", images, white=4095)
        assert source.white is None
        assert np.array_equal(everything(source), scaled(images, 255 if images.dtype == np.uint8 else 1))


# ---------------------------------------------------------------- trained networks


def test_a_network_keeps_its_white(tmp_path):
    tree(tmp_path / "pics", values(12))
    config = folder.Config(path=str(tmp_path / "pics"), white="auto")
    spec = datasets.load(config, seed=0).spec
    assert spec.white == 4095
    assert Spec.from_dict(spec.to_dict()) == spec
    tree(tmp_path / "dim", values(8))
    dim = folder.Config(path=str(tmp_path / "dim"), white="auto")
    alike = datasets.load(dim, seed=0, like=spec)
    assert alike.train.inputs.max() == round(240 * 255 / 4095), "scaled as in training, not as these images need"
    assert datasets.load(dim, seed=0).train.inputs.max() == 240, "the control"
    with pytest.raises(ConfigError, match="is 255, but the network was trained with 4095; remove it"):
        datasets.load(folder.Config(path=str(tmp_path / "dim"), white=255), seed=0, like=spec)


def test_specs_without_a_white_stay_as_they_were():
    spec = Spec((1, 2, 2), ("a", "b"), (0.5,), (0.5,))
    assert "white" not in spec.to_dict()
    for white in (0, 65536, 1.5, True, "255"):
        with pytest.raises(ValueError, match="not a spec"):
            Spec.from_dict({**spec.to_dict(), "white": white})
