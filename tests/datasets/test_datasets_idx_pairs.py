"""IDX files of one's own: a pair, a folder with MNIST's names, packed or not, and what is wrong with them."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_idx import MNIST, idx, tiny

from nnx import datasets
from nnx.datasets import idx as pairs
from nnx.errors import ConfigError, DataError, MachineError

IMAGES, LABELS = tiny(30, 3)
TEST, TEST_LABELS = tiny(12, 3, seed=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))


def source(path, **settings):
    return pairs.load(pairs.Config(path=str(path), **settings), Path("unused"))


def load(path, **settings):
    return datasets.load(pairs.Config(path=str(path), **settings), seed=0)


def wrong(kind, path, **settings):
    with pytest.raises(kind) as caught:
        load(path, **settings)
    return str(caught.value)


@pytest.fixture
def pair(tmp_path, write_idx):
    """The file of the images; that of the labels lies beside it."""
    write_idx(tmp_path / "digits-images-idx3-ubyte", IMAGES)
    write_idx(tmp_path / "digits-labels-idx1-ubyte", LABELS)
    return tmp_path / "digits-images-idx3-ubyte"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [MNIST, [name.replace("t10k", "test").replace("-idx", ".idx") for name in MNIST]])
def test_a_folder_with_the_usual_names(names, packed, tmp_path, write_idx):
    for name, array in zip(names, (IMAGES, LABELS, TEST, TEST_LABELS), strict=True):
        write_idx(tmp_path / name, array, packed=packed)
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "._train-images-idx3-ubyte").write_text("of a Mac")
    found = source(tmp_path)
    for split, images, labels in ((found.train, IMAGES, LABELS), (found.test(), TEST, TEST_LABELS)):
        np.testing.assert_array_equal(split.inputs[:, 0], images)
        np.testing.assert_array_equal(split.labels, labels)
    assert found.classes == ("0", "1", "2")
    assert load(tmp_path).spec.shape == (1, 6, 5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_finds_its_labels_by_name_and_is_split(packed, tmp_path, write_idx):
    write_idx(tmp_path / "a-images-idx3-ubyte", IMAGES, packed=packed)
    write_idx(tmp_path / "a-labels-idx1-ubyte", LABELS, packed=not packed)
    path = tmp_path / f"a-images-idx3-ubyte{'.gz' * packed}"
    one, two = (datasets.load(pairs.Config(path=str(path), test=6), seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.test().inputs, two.test().inputs)
    assert np.bincount(one.test().labels).tolist() == [2, 2, 2]
    everything = np.concatenate([split.inputs for split in (one.train, one.validation, one.test())])
    assert sorted(image.tobytes() for image in everything) == sorted(image.tobytes() for image in IMAGES)


def test_images_stay_in_their_file_and_packed_ones_are_unpacked_once(pair, tmp_path, write_idx, monkeypatch):
    assert datasets._mapped.is_mapped(source(pair).train.inputs)
    write_idx(tmp_path / "p/x-images-idx3-ubyte", IMAGES, packed=True)
    write_idx(tmp_path / "p/x-labels-idx1-ubyte", LABELS)
    packed = tmp_path / "p/x-images-idx3-ubyte.gz"

    def notes(of=packed):
        return {note.what: note.value for note in load(of).notes}

    assert notes()["cache"] == "decoded"
    monkeypatch.setattr(pairs._idx, "read_pieces", lambda *args, **settings: pytest.fail("unpacked again"))
    assert notes()["cache"] == "used"
    assert "cache" not in notes(pair)
    for one, two in ((load(packed), load(pair)),):
        np.testing.assert_array_equal(one.train.inputs, two.train.inputs)
        np.testing.assert_array_equal(one.test().inputs, two.test().inputs)


def test_a_packed_file_is_unpacked_piece_by_piece(tmp_path, write_idx):
    write_idx(tmp_path / "x", IMAGES, packed=True)
    found = list(pairs._idx.read_pieces(tmp_path / "x.gz", np.uint8, dimensions=3, size=7 * 30))
    assert [len(piece) for piece in found] == [7, 7, 7, 7, 2]
    np.testing.assert_array_equal(np.concatenate(found), IMAGES)


def test_labels_by_their_name_and_test_data_by_path(pair, tmp_path, write_idx):
    write_idx(tmp_path / "x", TEST)
    write_idx(tmp_path / "y", TEST_LABELS)
    found = source(pair, test=str(tmp_path / "x"), test_labels=str(tmp_path / "y"))
    np.testing.assert_array_equal(found.test().inputs[:, 0], TEST)
    assert len(found.train) == 30
    assert (
        wrong(ConfigError, tmp_path / "x")
        == f"dataset.labels: is missing: give the file with the labels of {tmp_path / 'x'}"
    )
    assert "dataset.test_labels: is missing" in wrong(ConfigError, pair, test=str(tmp_path / "x"))
    assert "dataset.labels: there is no nothing" in wrong(ConfigError, pair, labels="nothing")
    for name, array in zip(MNIST, (IMAGES, LABELS, TEST, TEST_LABELS), strict=True):
        write_idx(tmp_path / "folder" / name, array)
    np.testing.assert_array_equal(source(pair, test=str(tmp_path / "folder")).test().inputs[:, 0], TEST)


def test_labels_of_four_bytes_and_named_classes(pair, write_idx):
    write_idx(pair.with_name("digits-labels-idx1-ubyte"), LABELS.astype(np.int32))
    found = source(pair, classes=["owl", "cat", "dog"], test=3)
    assert found.classes == ("owl", "cat", "dog")
    assert np.bincount(found.train.labels).tolist() == [9, 9, 9]
    assert "row 2 has the label '2', which is not one of the classes (0, 1)" in wrong(
        DataError, pair, classes=["owl", "cat"]
    )


def test_a_test_set_with_an_unknown_class(tmp_path, write_idx):
    for name, array in zip(MNIST, (IMAGES, LABELS, TEST, TEST_LABELS + 1), strict=True):
        write_idx(tmp_path / name, array)
    assert "t10k-labels-idx1-ubyte: row 2 has the label '3', which is not one of the classes (0, 1, 2)" in wrong(
        DataError, tmp_path
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images", b"", "not an IDX file of 3-dimensional uint8"),
        (
            "images",
            idx(LABELS),
            "not an IDX file of 3-dimensional uint8 data; it starts with the bytes 00 00 08 01; get the file again",
        ),
        ("images", idx(IMAGES)[:-1], "cut short: its header declares 900 bytes of data"),
        ("images", idx(IMAGES) + b"x", "too long"),
        ("images", idx(IMAGES[:0]), "empty: its header declares 0 x 6 x 5 values; get the file again"),
        ("images", struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "cut short: its header declares"),
        ("images", idx(IMAGES[:29]), "contains 30 labels, but "),
        ("labels", b"text", "not an IDX file of 1-dimensional uint8 data; it starts with the bytes 74 65 78 74"),
        ("labels", idx(LABELS.astype(np.int32))[:-1], "cut short: its header declares 120 bytes of data"),
        ("labels", idx(np.zeros(30, np.uint8)), "all samples have the class '0'"),
    ],
)
def test_what_is_wrong_with_a_file(file, content, message, pair):
    (pair if file == "images" else pair.with_name("digits-labels-idx1-ubyte")).write_bytes(content)
    found = wrong(DataError, pair)
    assert message in found
    assert found.startswith(f"{pair.parent}/digits-")
    assert found.isprintable()


def test_a_gzip_that_promises_more_than_it_can_hold(tmp_path, write_idx):
    write_idx(tmp_path / "a-labels-idx1-ubyte", LABELS)
    path = tmp_path / "a-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 10**6, 1000, 1000)))
    assert "cut short: its header declares 1,000,000,000,000 bytes of data" in wrong(DataError, path)
    path.write_bytes(gzip.compress(idx(IMAGES))[:-9])
    assert "not a complete gzip file" in wrong(DataError, path)


def test_what_is_no_file(pair, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for other in ("pipe", "folder"):
        assert (
            wrong(DataError, pair, labels=str(tmp_path / other))
            == f"{tmp_path / other}: is not a file; give an IDX file, plain or .gz"
        )
    assert "is not a file" in wrong(DataError, tmp_path / "pipe", labels=str(pair))
    message = wrong(DataError, tmp_path / "folder")
    assert message == (
        f"{tmp_path / 'folder'}: contains no train data; "
        "add train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or .gz"
    )


def test_a_folder_that_can_not_be_read(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(MachineError, match=r"can't be read \(Permission denied\); check its permissions"):
        source(tmp_path)
