"""Arrays of one's own: their usual names and forms, what becomes of each type; no file runs, fills the memory or passes
damaged."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnx import datasets
from nnx.datasets import _cache, _mapped, _user_data, arrays
from nnx.errors import ConfigError, DataError, MachineError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (30, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
ROWS = RNG.normal(size=(30, 4)).astype(np.float32)
LABELS = np.arange(30) % 3


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def config(path, **settings):
    return arrays.Config(path=str(path), **settings)


def source(path, **settings):
    return arrays.load(config(path, **settings), Path("unused"))


def load(path, **settings):
    return datasets.load(config(path, **settings), seed=0)


def npz(path, **content):
    np.savez_compressed(path, **content)
    return path


def trained(tmp_path, inputs=GRAY, labels=LABELS, **settings):
    """The training part of an archive that has just that and a test part of the same."""
    return source(
        npz(tmp_path / "a.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels), **settings
    ).train


def wrong(kind, path, **settings):
    with pytest.raises(kind) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert message.isprintable()
    return message


def pair(path, inputs, labels):
    return npz(path, images=inputs, labels=labels)


# ---------------------------------------------------------------- names

NAMES = {
    "keras": ("x_train", "y_train", "x_test", "y_test", None, None),
    "upper case": ("X_train", "Y_train", "X_test", "Y_test", None, None),
    "medmnist": ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
    "data and targets": ("train_data", "train_targets", "data_test", "target_test", "valid_data", "valid_target"),
    "validation in full": ("x_train", "y_train", "x_test", "y_test", "x_validation", "y_validation"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("form", ["npz", "folder"])
def test_the_usual_names(kind, form, tmp_path):
    values = (
        GRAY,
        LABELS[:, None] if kind == "medmnist" else LABELS,
        GRAY[:9] // 2,
        LABELS[:9],
        GRAY[:6] // 3,
        LABELS[:6],
    )
    content = {name: value for name, value in zip(NAMES[kind], values, strict=True) if name}
    path = tmp_path / "d.npz"
    if form == "npz":
        npz(path, **content)
    else:
        path.mkdir()
        for name, value in content.items():
            np.save(path / f"{name}.npy", value)
    data = load(path, validation=5)
    np.testing.assert_array_equal(data.test().inputs[:, 0], values[2])
    np.testing.assert_array_equal(data.test().labels, values[3])
    assert data.spec.classes == ("0", "1", "2")
    assert data.spec.shape == (1, 6, 5)
    if len(content) == 6:
        np.testing.assert_array_equal(data.validation.inputs[:, 0], values[4])
        np.testing.assert_array_equal(data.train.inputs[:, 0], GRAY)
        assert data.train.labels.tolist() == LABELS.tolist()
    else:
        assert (len(data.train), len(data.validation)) == (25, 5)


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("data", "target"), ("features", "targets"), ("inputs", "label")]
)
def test_one_lot_is_split_and_the_test_part_is_the_same_whatever_the_seed(names, tmp_path):
    path = npz(tmp_path / "a.npz", **dict(zip(names, (GRAY, LABELS), strict=True)))
    one, two = (datasets.load(config(path, test=6), seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.test().inputs, two.test().inputs)
    assert not np.array_equal(one.validation.inputs, two.validation.inputs)
    assert np.bincount(one.test().labels).tolist() == [2, 2, 2]
    everything = np.concatenate([np.array(split.inputs) for split in (one.train, one.validation, one.test())])
    assert sorted(image.tobytes() for image in everything) == sorted(image.tobytes() for image in GRAY)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["arr_0", "arr_1"],
            "contains arr_0, arr_1; name the train arrays x_train and y_train, or train_images and train_labels",
        ),
        (["x_train"], "contains x_train; name the train arrays"),
        (
            ["x_train", "y_train", "x_test"],
            "contains x_test, x_train, y_train; name the test arrays x_test and y_test",
        ),
        (["x_test", "y_test"], "contains x_test, y_test; name the train arrays"),
        ([], "contains nothing; name the train arrays"),
    ],
)
def test_names_that_say_nothing(names, message, tmp_path):
    path = npz(tmp_path / "a.npz", **{name: GRAY if "x" in name or name == "arr_0" else LABELS for name in names})
    assert wrong(DataError, path).startswith(f"{path}: {message}")


def test_test_data_by_its_path(tmp_path):
    train = pair(tmp_path / "train.npz", GRAY, LABELS)
    for content in ({"x_test": GRAY[:9], "y_test": LABELS[:9]}, {"x": GRAY[:9], "y": LABELS[:9]}):
        found = source(train, test=str(npz(tmp_path / "test.npz", **content)))
        np.testing.assert_array_equal(found.test().inputs[:, 0], GRAY[:9])
        assert len(found.train) == 30
    np.save(tmp_path / "x.npy", GRAY[:9])
    np.save(tmp_path / "y.npy", LABELS[:9])
    found = source(train, test=str(tmp_path / "x.npy"), test_labels=str(tmp_path / "y.npy"))
    np.testing.assert_array_equal(found.test().inputs[:, 0], GRAY[:9])
    assert "dataset.test_labels" in wrong(ConfigError, train, test=str(tmp_path / "x.npy"))
    assert "contains nothing; name the test arrays" in wrong(DataError, train, test=str(npz(tmp_path / "none.npz")))


def test_a_pair_of_npy_is_mapped_as_it_is(tmp_path):
    for kind, values in (("gray", GRAY), ("colour", COLOUR), ("rows", ROWS)):
        np.save(tmp_path / f"{kind}.npy", values)
        np.save(tmp_path / "y.npy", LABELS)
        found = source(tmp_path / f"{kind}.npy", labels=str(tmp_path / "y.npy"), test=3)
        whole = found.train.inputs.whole
        assert isinstance(whole, np.memmap)
        assert Path(whole.filename) == tmp_path / f"{kind}.npy"
        kept = [name for entry in _cache.entries() for name in os.listdir(entry.path)]
        assert kept.count("meta.json") == len(kept), "no copy is made"
    assert "dataset.labels: is missing" in wrong(ConfigError, tmp_path / "gray.npy")
    assert "dataset.labels: there is no nothing.npy" in wrong(ConfigError, tmp_path / "gray.npy", labels="nothing.npy")


# ---------------------------------------------------------------- forms and types


def test_channels_last_or_first(tmp_path):
    last = trained(tmp_path, COLOUR).inputs
    first = trained(tmp_path, COLOUR.transpose(0, 3, 1, 2)).inputs
    np.testing.assert_array_equal(last, first)
    np.testing.assert_array_equal(last, COLOUR.transpose(0, 3, 1, 2))
    one = trained(tmp_path, GRAY[..., None]).inputs
    np.testing.assert_array_equal(one, GRAY[:, None])
    data = load(pair(tmp_path / "b.npz", COLOUR, LABELS))
    note = next(note for note in data.notes if note.what == "layout")
    assert (note.value, note.reason) == ("N x H x W x C", "channels are on the shorter of axes 1 and 3")
    assert data.spec.shape == (3, 6, 5)


@pytest.mark.parametrize("form", ["npz", "npy"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_held_lies_in_one_piece_whatever_the_file(form, order, tmp_path):
    """Else a convolution would go another way, and give other last bits, than from a memory map or a picture."""
    values = np.asarray(COLOUR, order=order)
    if form == "npz":
        data = load(npz(tmp_path / "a.npz", x=values, y=LABELS))
    else:
        np.save(tmp_path / "x.npy", values)
        np.save(tmp_path / "y.npy", LABELS)
        data = load(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    for split in (data.train, data.validation, data.test()):
        assert split.inputs.flags.c_contiguous
        assert split.inputs.dtype == np.uint8
        held = {image.tobytes() for image in np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2))}
        assert {image.tobytes() for image in split.inputs} <= held


TYPES = {
    "uint8": (GRAY, 1),
    "int64": (GRAY.astype(np.int64), 1),
    "big-endian": (GRAY.astype(">i4"), 1),
    "floats from 0 to 255": (GRAY.astype(np.float32), 1),
    "floats from 0 to 1": ((GRAY / 255).astype(np.float32), 255),
    "doubles from 0 to 1": (GRAY / 255, 255),
    "16 bits": (GRAY.astype(np.uint16) * 257, 1 / 257),
    "16 bits, not all used": (np.minimum(GRAY.astype(np.uint16), 200) * 257, 1 / 257),
    "truths": (GRAY > 127, 255),
    "halves": ((GRAY // 4 / 64).astype(np.float16), 255),
}


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_of_image_becomes_uint8(kind, tmp_path):
    values, scale = TYPES[kind]
    found = source(pair(tmp_path / "a.npz", values, LABELS), test=3)
    whole = np.array(found.train.inputs.whole)[:, 0]
    np.testing.assert_array_equal(whole, np.rint(values.astype(np.float64) * scale))
    assert whole.dtype == np.uint8
    notes = {note.what: note for note in found.notes}
    assert ("gray levels" in notes) == (scale != 1)
    if scale != 1:
        assert notes["gray levels"].reason == f"values from 0 to {255 / scale:g} are scaled to 0 to 255"


@pytest.mark.parametrize("kind", ["<f4", ">f4", "f8", "f2", "i8", "u1", "?"])
def test_each_type_of_row_becomes_float32(kind, tmp_path):
    values = (ROWS * 10).astype(kind)
    found = np.array(source(pair(tmp_path / "a.npz", values, LABELS), test=3).train.inputs.whole)
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            GRAY - 200.0,
            "contains pixel values from -200 to 55; give uint8 from 0 to 255, or floats from 0 to 1; "
            "nnx normalises them itself",
        ),
        (GRAY * 300.0, "contains pixel values from 0 to 76500"),
        (GRAY.astype(np.int32) * 1000, "contains pixel values from 0 to 255000"),
        (
            GRAY.astype(np.uint16) * 16,
            "contains pixel values from 0 to 4080, neither 8 nor 16 bits; set dataset.white to the value that is "
            "white, such as 4095, or to auto",
        ),
        (
            np.where(np.arange(30)[:, None, None] == 7, np.nan, GRAY / 255),
            "row 7 contains an infinite number or NaN; correct it, or drop the",
        ),
        (np.where(np.arange(30)[:, None, None] == 8, -np.inf, GRAY / 255), "row 8 contains an infinite number or NaN"),
        (GRAY.astype(complex), "contains values of type complex128; give numbers"),
        (GRAY.astype(str), "contains values of type <U3; give numbers"),
        (np.zeros(30, [("a", "u1")]), "has train inputs of shape 30; give N x H x W"),
        (
            np.zeros((30, 2, 2, 2, 2), np.uint8),
            "has train inputs of shape 30 x 2 x 2 x 2 x 2; give N x H x W, N x H x W x C or N x C x H x W",
        ),
        (np.zeros((30, 0, 3), np.uint8), "has train inputs of shape 30 x 0 x 3; give"),
        (np.zeros((0, 3, 3), np.uint8), "but labels 30; give one label per sample"),
        (np.zeros((), np.uint8), "but labels 30; give one label per sample"),
        (GRAY[:29], "train inputs have shape 29 x 6 x 5, but labels 30; give one label per sample"),
    ],
)
def test_what_is_no_image(values, message, tmp_path):
    path = pair(tmp_path / "a.npz", values, LABELS)
    with np.errstate(all="raise"):
        assert message in wrong(DataError, path)


def test_no_samples(tmp_path):
    path = pair(tmp_path / "a.npz", np.zeros((0, 3, 3), np.uint8), np.zeros(0, int))
    assert wrong(DataError, path) == f"{path}: images.npy: contains no samples; add some train samples"
    np.save(tmp_path / "x.npy", np.zeros((0, 3, 3), np.uint8))
    np.save(tmp_path / "y.npy", np.zeros(0, int))
    message = wrong(DataError, tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    assert message == f"{tmp_path / 'x.npy'}: contains no samples; add some train samples"


@pytest.mark.parametrize("form", ["npz", "npy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named_by_its_row(form, value, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 20)
    values = ROWS.copy()
    values[17, 2] = value
    path = tmp_path / f"x.{form}"
    if form == "npz":
        pair(path, values, LABELS)
    else:
        np.save(path, values)
        np.save(tmp_path / "y.npy", LABELS)
    settings = {"labels": str(tmp_path / "y.npy")} if form == "npy" else {}
    for _ in range(2):
        assert "row 17 contains an infinite number or NaN; correct it, or drop the row" in wrong(
            DataError, path, **settings
        )
    values[17, 2] = 0  # corrected: it is looked at again
    pair(path, values, LABELS) if form == "npz" else np.save(path, values)
    assert len(load(path, **settings).train)


def test_a_double_beyond_float32_is_named_too(tmp_path):
    values = ROWS.astype(np.float64)
    values[3, 0] = 1e300
    assert "row 3 contains an infinite number" in wrong(DataError, pair(tmp_path / "a.npz", values, LABELS))


def test_parts_of_different_ranges_or_forms(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=GRAY / 255, y_train=LABELS, x_test=GRAY.astype(float), y_test=LABELS)
    assert (
        "x_test.npy: row 0 contains pixel values outside 0 to 1, the range of the training images; correct it"
        in wrong(DataError, path)
    )
    path = npz(tmp_path / "a.npz", x_train=GRAY, y_train=LABELS, x_test=GRAY[:, :5], y_test=LABELS)
    assert "x_test.npy: has test inputs of shape 30 x 5 x 5; give" in wrong(DataError, path)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (LABELS[:, None], "0 1 2"),
        (LABELS.astype(np.float32), "0 1 2"),
        (LABELS.astype(np.uint8) + 5, "5 6 7"),
        (-LABELS, "-1 -2 0"),
        (LABELS * 9 + 2, "2 11 20"),
        (LABELS > 0, "0 1"),
        (np.array(["owl", "cat", "dog"])[LABELS], "cat dog owl"),
        (np.array([b"owl", b"cat", b"dog"])[LABELS], "cat dog owl"),
        (np.array(["10", "9", "8"])[LABELS], "8 9 10"),
        (np.array(["0", "blank", "1"])[np.minimum(np.arange(30) % 15, 2)], "0 1 blank"),
    ],
)
def test_labels(labels, classes, tmp_path):
    found = source(pair(tmp_path / "a.npz", GRAY, labels), test=4)
    if classes != "-1 -2 0":
        assert found.classes == tuple(classes.split())
    rows = found.train.inputs.rows
    flat = labels.reshape(30)
    text = flat.astype(int).astype(str) if flat.dtype.kind in "fb" else flat.astype(str)
    assert [found.classes[k] for k in found.train.labels] == text[rows].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.eye(3)[LABELS],
            "labels of shape 30 x 3 and type float64; give one whole number or name per sample (from one-hot",
        ),
        (
            np.where(np.arange(30) == 4, 1.5, LABELS),
            "row 4 has the label 1.5, which is not a whole number; correct it, or drop the row",
        ),
        (np.where(np.arange(30) == 5, np.nan, LABELS), "row 5 has the label nan, which is not a whole number"),
        (np.where(np.arange(30) == 5, 1e300, LABELS), "row 5 has the label 1e+300, which is not a whole number"),
        (
            np.where(np.arange(30) == 6, "seven", LABELS.astype(str)),
            "row 6 has the label 'seven', but the other labels are numbers; correct it",
        ),
        (
            np.where(np.arange(30) == 6, "", np.array(["a", "b", "c"])[LABELS]),
            "row 6 has no label; fill it in, or drop the row",
        ),
        (
            np.array([b"\xff\xfe", b"a", b"b"])[LABELS],
            "contains labels with bytes that are not ASCII; save them as text",
        ),
        (np.zeros(30, "M8[s]"), "labels of shape 30 and type datetime64[s]; give one whole number or name"),
        (np.zeros(30, int), "all samples have the class '0'; a classifier needs samples of at least two classes"),
        (
            np.array(["a\x1b[31m", "b", "c"])[LABELS],
            r"the class name 'a\x1b[31m' is blank or contains unprintable characters; rename the class",
        ),
    ],
)
def test_what_are_no_labels(labels, message, tmp_path):
    assert message in wrong(DataError, pair(tmp_path / "a.npz", GRAY, labels))


def test_too_many_labels_are_none(tmp_path):
    many = np.zeros((10_001, 2, 2), np.uint8)
    assert "10,001 different labels, more than 10,000; check that they are class labels" in wrong(
        DataError, pair(tmp_path / "a.npz", many, np.arange(10_001))
    )


def test_names_of_the_classes(tmp_path):
    """A number is a place among them, a word is one of them, even where the names are numbers themselves."""
    stars = ["1", "2", "3"]
    for labels in (LABELS, LABELS.astype(float), LABELS[:, None]):
        found = source(pair(tmp_path / "a.npz", GRAY, labels), test=3, classes=stars)
        assert found.classes == ("1", "2", "3")
        assert np.array_equal(found.train.labels, LABELS[found.train.inputs.rows])
    found = source(pair(tmp_path / "a.npz", GRAY, np.array(["3", "1", "2"])[LABELS]), test=3, classes=stars)
    assert np.array_equal(found.train.labels, np.array([2, 0, 1])[LABELS][found.train.inputs.rows])
    found = source(pair(tmp_path / "a.npz", GRAY, LABELS), test=3, classes=["c", "b", "a", "none of these"])
    assert found.classes == ("c", "b", "a", "none of these"), "in this order, and there may be more than occur"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, "row 2 has the label '3', which is not one of the classes (0, 1, 2); correct it, or drop the row"),
        (LABELS - 1, "row 0 has the label '-1', which is not one of the classes"),
        (
            np.array(["cat", "cow", "dog"])[LABELS],
            "row 1 has the label 'cow', which is not one of the classes (cat, dog, owl)",
        ),
    ],
)
def test_labels_beyond_the_names(labels, message, tmp_path):
    assert message in wrong(DataError, pair(tmp_path / "a.npz", GRAY, labels), classes=["cat", "dog", "owl"])


def test_names_twice():
    with pytest.raises(ValueError, match="'a' appears twice"):
        config("p", classes=["a", "b", "a"])


def test_a_test_set_with_an_unknown_class(tmp_path):
    labels = np.where(np.arange(30) == 11, 9, LABELS)
    path = npz(tmp_path / "a.npz", x_train=GRAY, y_train=LABELS, x_test=GRAY, y_test=labels)
    assert wrong(DataError, path) == (
        f"{path}: y_test.npy: row 11 has the label '9', which is not one of the classes (0, 1, 2); "
        "correct it, or drop the row"
    )


@given(st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1, max_size=40), st.sampled_from(["i8", "f8"]))
def test_numbered_is_what_a_loop_makes(labels, kind):
    codes, numbers = _user_data.encode_labels(np.array(labels).astype(kind), "a")
    assert [*numbers.values()] == list(range(len({*labels})))
    assert {str(label): numbers[str(label)] for label in labels} == numbers
    assert codes.tolist() == [numbers[str(label)] for label in labels]
    nonnegative = [int(name) for name in numbers if not name.startswith("-")]
    assert nonnegative == sorted(nonnegative)


# ---------------------------------------------------------------- hostile and damaged


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["npz", "npy", "labels.npy", "labels.npz"])
def test_objects_are_refused_not_unpickled(form, tmp_path):
    proof = tmp_path / "proof"
    objects = np.empty(30, object)
    objects[:] = [Payload(proof), *[None] * 29]
    np.load(_saved(tmp_path / "control.npy", objects), allow_pickle=True)
    assert proof.exists(), "the control: it would run"
    proof.rmdir()
    inputs, labels = (GRAY, objects) if form.startswith("labels") else (objects.reshape(30, 1), LABELS)
    if form.endswith("npz"):
        message = wrong(DataError, pair(tmp_path / "a.npz", inputs, labels))
    else:
        message = wrong(DataError, _saved(tmp_path / "x.npy", inputs), labels=str(_saved(tmp_path / "y.npy", labels)))
    assert message.endswith("contains Python objects, which nnx never loads; save plain numbers")
    assert not proof.exists()


def _saved(path, values):
    np.save(path, values, allow_pickle=True)
    return path


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"text", b"\x80\x04\x95.", b"\x93NUMPY", bytes(1000)])
@pytest.mark.parametrize("ending", ["npz", "npy", "pkl"])
def test_what_is_no_array(data, ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data)
    np.save(tmp_path / "y.npy", LABELS)
    message = wrong(DataError, path, labels=str(tmp_path / "y.npy"))
    assert message.startswith(f"{path}: is ")
    assert "; save " in message


def test_an_archive_called_npy_an_empty_folder_and_a_pipe(tmp_path):
    pair(tmp_path / "a.npz", GRAY, LABELS).rename(tmp_path / "a.npy")
    np.save(tmp_path / "y.npy", LABELS)
    assert "is damaged or cut short; save it again" in wrong(
        DataError, tmp_path / "a.npy", labels=str(tmp_path / "y.npy")
    )
    (tmp_path / "empty").mkdir()
    assert "contains no .npy files; give a .npz file, a .npy file or a folder of .npy files" in wrong(
        DataError, tmp_path / "empty"
    )
    assert "is not a file; give a .npz or .npy file" in wrong(
        DataError, tmp_path / "y.npy", labels=str(tmp_path / "empty")
    )
    os.mkfifo(tmp_path / "pipe.npy")
    assert "is not a file; give a .npz or .npy file" in wrong(
        DataError, tmp_path / "pipe.npy", labels=str(tmp_path / "y.npy")
    )
    os.mkfifo(tmp_path / "pipe.npz")
    assert "is not a file" in wrong(DataError, tmp_path / "pipe.npz")


def test_cut_at_every_length_is_refused(tmp_path):
    whole = pair(tmp_path / "a.npz", GRAY[:6, :2, :2], LABELS[:6]).read_bytes()
    load(tmp_path / "a.npz", test=1, validation=1)
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        wrong(DataError, tmp_path / "cut.npz")
    np.save(tmp_path / "x.npy", GRAY)
    np.save(tmp_path / "y.npy", LABELS)
    whole = (tmp_path / "x.npy").read_bytes()
    for length in (0, 5, 20, 127, 128, 200, len(whole) - 1):
        (tmp_path / "x.npy").write_bytes(whole[:length])
        assert "is damaged or cut short" in wrong(DataError, tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))


def test_a_flipped_bit_in_an_archive_is_noticed_or_harmless(tmp_path):
    """The sum of a zip's member covers its content; names and times in its heads do not matter."""
    whole = pair(tmp_path / "a.npz", GRAY[:6, :2, :2], LABELS[:6]).read_bytes()
    good = load(tmp_path / "a.npz", test=1, validation=1)
    found = []
    for place in range(0, len(whole), 5):
        (tmp_path / "b.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            data = load(tmp_path / "b.npz", test=1, validation=1)
        except DataError as error:
            found.append(str(error))
        else:
            np.testing.assert_array_equal(data.train.inputs, good.train.inputs)
            np.testing.assert_array_equal(data.train.labels, good.train.labels)
    assert len(found) > len(whole) / 20


def header(shape, dtype="|u1", order=False):
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000000, 1000, 1000)",
        "(30, 4294967296, 4294967296)",
        "(-30, -6, 5)",
        "(30, -6, -5)",
        "(True, 6, 5)",
        "(30, 6.0, 5)",
        "30",
        "(30",
    ],
)
def test_a_header_that_claims_what_is_not_there(shape, tmp_path):
    data = header(shape) + GRAY.tobytes()
    (tmp_path / "x.npy").write_bytes(data)
    np.save(tmp_path / "y.npy", LABELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
        archive.write(tmp_path / "y.npy", "y.npy")
    tracemalloc.start()
    wrong(DataError, tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    wrong(DataError, tmp_path / "a.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    """Zeros pack a thousandfold: what does not fit is refused before it is unpacked, as is what claims more than
    deflate can pack."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w") as file:
            file.write(header("(30, 1024, 1024)"))
            for _ in range(30):
                file.write(bytes(2**20))
        archive.writestr("labels.npy", _bytes(LABELS))
    monkeypatch.setattr(arrays, "fits", lambda size: size < 2**20)
    tracemalloc.start()
    message = wrong(MachineError, tmp_path / "a.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        "images.npy: needs 31.5 MB, more than half of the free memory; save it as .npy, which is memory-mapped"
        in message
    )
    assert peak < 2**22
    monkeypatch.undo()
    data = (tmp_path / "a.npz").read_bytes()
    claimed = data.replace(struct.pack("<I", 30 * 2**20 + 128), struct.pack("<I", 2**32 - 2))
    assert claimed != data
    (tmp_path / "a.npz").write_bytes(claimed.replace(b"(30, 1024, 1024)", b"(30, 8192, 8192)"))
    assert "images.npy: claims more data than its compressed bytes allow; get the file again" in wrong(
        DataError, tmp_path / "a.npz"
    )


def _bytes(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_a_member_that_holds_more_than_its_entry_says(tmp_path):
    """The central directory says 1,000 bytes; the stream inflates to a million."""
    content = _bytes(np.zeros((30, 200, 200), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", _bytes(LABELS))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data.replace(struct.pack("<I", len(content)), struct.pack("<I", 1000)))
    assert "images.npy: is damaged or cut short; save it again" in wrong(DataError, tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content[:-1000])
        archive.writestr("labels.npy", _bytes(LABELS))
    assert "images.npy: claims more data than it contains; get the file again" in wrong(DataError, tmp_path / "a.npz")


def test_members_with_paths_for_names_go_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../x.npy", "/tmp/../y.npy", "x_train.npy", "y_train.npy"):
            archive.writestr(name, _bytes(GRAY if "x" in name else LABELS))
    assert len(load(path, test=3, validation=3).train) == 24
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_an_archive_larger_than_a_block_of_memory_is_converted_a_block_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 100)
    wide = source(pair(tmp_path / "a.npz", GRAY / 255, LABELS), test=3).train.inputs.whole
    np.testing.assert_array_equal(wide[:, 0], GRAY)


def test_memory_is_looked_at_before_it_is_taken():
    assert _mapped.fits(0)
    assert not _mapped.fits(2**62)


# ---------------------------------------------------------------- the cache


def test_conversion_is_done_once_and_anew_where_the_file_has_changed(tmp_path, monkeypatch):
    path = pair(tmp_path / "a.npz", GRAY, LABELS)
    values = [note.value for note in source(path).notes if note.what == "cache"]
    values += [note.value for note in source(path).notes if note.what == "cache"]
    pair(path, GRAY // 2, LABELS)
    found = source(path)
    values += [note.value for note in found.notes if note.what == "cache"]
    assert values == ["decoded", "used", "decoded anew"]
    np.testing.assert_array_equal(found.train.inputs.whole[:, 0], GRAY // 2)
    real = arrays.convert_block
    monkeypatch.setattr(arrays, "convert_block", lambda *_: 1 / 0)
    source(path)
    np.save(tmp_path / "x.npy", ROWS)
    np.save(tmp_path / "y.npy", LABELS)
    monkeypatch.setattr(arrays, "convert_block", real)
    source(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    monkeypatch.setattr(arrays, "convert_block", lambda *_: 1 / 0)
    source(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))  # looked through for NaN once
