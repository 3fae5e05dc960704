"""Images of one's own: which files there are, their order, what becomes of each, and what is wrong with some."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import claiming, claiming_tiff, expected, listed, pixels, save, tree
from PIL import Image

from nnx import datasets
from nnx.datasets import _decode, _user_data, folder
from nnx.errors import ConfigError, DataError, MachineError

COUNTS = {"cat": 12, "dog": 10, "owl": 8}
SUM = sum(COUNTS.values())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def source(path, **settings):
    return folder.load(folder.Config(path=str(path), **settings), Path("unused"))


def load(path, seed=0, **settings):
    return datasets.load(folder.Config(path=str(path), **settings), seed=seed)


def wrong(kind, path, **settings):
    with pytest.raises(kind) as caught:
        load(path, **settings)
    return str(caught.value)


def parted(root, test=6):
    """train/ and test/, and what is in them as arrays."""
    tree(root / "train", COUNTS)
    tree(root / "test", dict.fromkeys(COUNTS, test // 3), first=1000)
    return root


def held(split):
    return [np.array(split.inputs[n : n + 1])[0].tobytes() for n in range(len(split))]


# ---------------------------------------------------------------- which files, in which order


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_train_validation_and_test_by_their_folders(name, tmp_path):
    parted(tmp_path)
    tree(tmp_path / name, {"owl": 2, "cat": 2}, first=500)
    data = load(tmp_path)
    assert data.spec.classes == ("cat", "dog", "owl")
    assert data.spec.shape == (1, 6, 5)
    np.testing.assert_array_equal(data.train.inputs, expected(SUM))
    np.testing.assert_array_equal(data.validation.inputs, expected(4, first=500))
    np.testing.assert_array_equal(data.test().inputs, expected(6, first=1000))
    assert data.validation.labels.tolist() == [2, 0, 2, 0]
    assert np.bincount(data.train.labels).tolist() == list(COUNTS.values())
    assert data.train.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]


def test_one_tree_is_split_and_the_test_part_is_the_same_whatever_the_seed(tmp_path):
    tree(tmp_path, COUNTS)
    one, two = load(tmp_path, seed=1, test=9), load(tmp_path, seed=2, test=9)
    assert held(one.test()) == held(two.test())
    assert held(one.validation) != held(two.validation), (
        "the control: what is set aside to validate with does depend on it"
    )
    everything = [*held(one.train), *held(one.validation), *held(one.test())]
    assert sorted(everything) == sorted(image.tobytes() for image in expected(SUM))
    assert np.bincount(one.test().labels).tolist() == [4, 3, 2], "each class has its share"
    for split in (one.train, one.validation, one.test()):
        for image, label in zip(held(split), split.labels, strict=True):
            n = next(n for n in range(SUM) if pixels(n).tobytes() == image)
            assert (tmp_path / one.spec.classes[label] / f"{n:03}.png").exists()


def test_names_that_count_keep_the_order_of_counting_padded_or_not(tmp_path):
    for n in range(120):
        save(tmp_path / "padded/train" / "ab"[n % 2] / f"{n:05}.png", pixels(n))
        save(tmp_path / "plain/train" / "ab"[n % 2] / f"image_{n}.png", pixels(n))
    for kind in ("padded", "plain"):
        tree(tmp_path / kind / "test", {"a": 1, "b": 1})
        np.testing.assert_array_equal(source(tmp_path / kind).train.inputs, expected(120))


def test_it_is_mnist_where_mnist_was_written_out(tmp_path):
    """Names that count, over all classes: what `mnist` has, in the same order."""
    labels = np.random.default_rng(0).permutation(np.arange(50) % 10)
    for n, label in enumerate(labels):
        save(tmp_path / "train" / str(label) / f"{n:05}.png", pixels(n))
    tree(tmp_path / "test", {"3": 1})
    found = source(tmp_path)
    np.testing.assert_array_equal(found.train.inputs, expected(50))
    np.testing.assert_array_equal(found.train.labels, labels)
    assert found.classes == tuple("0123456789")


def test_classes_are_sorted_numbers_by_their_value(tmp_path):
    tree(tmp_path, dict.fromkeys(["10", "9", "2", "b", "a"], 3))
    assert source(tmp_path).classes == ("2", "9", "10", "a", "b")


def test_nested_folders_hidden_files_links_and_odd_names(tmp_path):
    inside, away = tmp_path / "pictures", tmp_path / "away"
    names = [
        "deep/er/a.PNG",
        "new\nline.png",
        "\x1b[31mred.png",
        "a'b\"c $(x).png",
        "ünï.png",
        os.fsdecode(b"\xff\xfe.png"),
    ]
    for n, name in enumerate(names):
        save(inside / "cat" / name, pixels(n), format="png")
    save(away / "b.png", pixels(10))
    save(away / "more/c.png", pixels(11))
    (inside / "cat/link.png").symlink_to(away / "b.png")
    (inside / "cat/elsewhere").symlink_to(away / "more")
    (inside / "cat/loop").symlink_to(inside / "cat")
    (inside / "dog").symlink_to(tree(tmp_path / "dogs", {"any": 5}, first=50) / "any")
    for hidden in (".hidden.png", ".thumbs/d.png", "._mac.png"):
        save(inside / "cat" / hidden, pixels(99))
    save(inside / ".trash/e.png", pixels(99))
    (inside / "cat/notes.txt").write_text("not an image")
    (inside / "readme.png").write_text("beside the folders, not in one")
    found = source(inside, test=2)
    everything = sorted([*held(found.train), *held(found.test())])
    assert everything == sorted(pixels(n).tobytes() for n in (*range(6), 10, 11, *range(50, 55)))
    assert found.classes == ("cat", "dog")


def test_a_folder_that_links_lead_to_twice_counts_once(tmp_path):
    tree(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a/x").mkdir()
    (tmp_path / "b/y").mkdir()
    (tmp_path / "a/x/to_y").symlink_to(tmp_path / "b/y")
    (tmp_path / "b/y/to_x").symlink_to(tmp_path / "a/x")
    save(tmp_path / "a/x/0.png", pixels(70))
    found = source(tmp_path, test=2)
    assert len(found.train) + 2 == 8, "once for each of the classes that it is linked into"


def test_classes_may_be_called_train_and_test(tmp_path):
    tree(tmp_path, {"train": 5, "boat": 5, "test": 5})
    assert source(tmp_path).classes == ("boat", "test", "train")


def test_folders_beside_train_are_said_to_be_left_alone(tmp_path):
    parted(tmp_path)
    (tmp_path / "annotations").mkdir()
    note = source(tmp_path).notes[0]
    assert (note.what, note.value) == ("not looked at", "annotations")


@pytest.mark.parametrize("test", ["pictures/test", "list.csv", "other"])
def test_test_data_by_its_path(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "one", COUNTS)
    tree(tmp_path / "pictures/test", {"dog": 3}, first=100)
    tree(tmp_path / "other/test", {"dog": 3}, first=100)
    listed(tmp_path / "list.csv", [("file", "label"), *((f"pictures/test/dog/{n:03}.png", "dog") for n in range(3))])
    data = load("one", test=test)
    np.testing.assert_array_equal(data.test().inputs, expected(3, first=100))
    assert data.test().labels.tolist() == [1, 1, 1]
    assert len(data.train) + len(data.validation) == SUM


@pytest.mark.parametrize("ending", ["jfif", "jpe", "GIF", "ppm", "pgm", "pnm", "avif"])
def test_images_of_all_usual_endings_are_used(ending, tmp_path):
    """They were left out without a message."""
    tree(tmp_path, COUNTS)
    form = {"jfif": "JPEG", "jpe": "JPEG", "gif": "GIF", "avif": "AVIF"}.get(ending.lower(), "PPM")
    save(tmp_path / "cat" / f"1000.{ending}", pixels(1), format=form)
    found = source(tmp_path, test=6)
    assert len(found.train) + len(found.test()) == SUM + 1
    assert "left out" not in {note.what for note in found.notes}


def test_files_that_are_left_out_are_counted_by_class_and_ending(tmp_path):
    tree(tmp_path, COUNTS)
    for name in ("cat/a.txt", "dog/b.HEIC", "dog/c.heic", "dog/README"):
        (tmp_path / name).write_bytes(b"")
    note = source(tmp_path).notes[1]
    assert (note.what, note.value) == ("warning", "4 files left out"), "the class dog loses more than a tenth"
    assert note.reason == (
        "their endings are not those of images: dog 3 of 13 (2 .heic, 1 no ending); cat 1 of 13 (1 .txt); "
        "save them as PNG if they are images"
    )
    for path in (tmp_path / "dog").glob("[!0-9]*"):
        path.unlink()
    note = source(tmp_path).notes[1]
    assert (note.what, note.value) == ("left out", "1 file")
    assert note.reason == "their endings are not those of images: cat 1 of 13 (1 .txt)"


# ---------------------------------------------------------------- a list of files and labels


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_list_keeps_its_order_and_is_relative_to_where_it_lies(delimiter, encoding, tmp_path):
    tree(tmp_path / "p", {"x": 12})
    rows = [(f"p/x/{n:03}.png", ["café", "tea"][n % 2], "more") for n in (5, 3, 4, 0, 1, 2, 7, 6, 9, 8, 11, 10)]
    rows[3] = (str(tmp_path / rows[3][0]), *rows[3][1:])  # absolute
    path = listed(tmp_path / "list.csv", [("Image", " Class ", "note"), *rows], delimiter, encoding)
    found = source(path, test=2)
    kept = [5, 3, 4, 0, 1, 2, 7, 6, 9, 8, 11, 10]
    images = {pixels(n).tobytes(): n for n in range(12)}
    order = [images[image] for image in held(found.train)]
    assert order == [n for n in kept if n in order]
    assert sorted(order + [images[image] for image in held(found.test())]) == list(range(12))
    assert found.classes == ("café", "tea")
    assert [found.classes[label] for label in found.train.labels] == [["café", "tea"][n % 2] for n in order]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,kind\na.png,x\n", "list.csv:1: has the columns name, kind; it needs file and label"),
        ("", "list.csv:1: has the columns ; it needs file and label"),
        ("file,label\n", "list.csv: lists no images; add lines with a file and a label"),
        (
            "file,label\na.png,x\nb.png\n",
            "list.csv:3: has no file, no label or too many values; correct or remove the line",
        ),
        ("file,label\na.png,x\nb.png,\n", "list.csv:3: has no file, no label"),
        ("file,label\n\n\na.png,x,y\n", "list.csv:4: has no file, no label"),
        ('file,label\n"a\nb.png",x\n,y\n', "list.csv:4: has no file, no label"),
    ],
)
def test_a_wrong_list_names_its_line(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    assert message in wrong(DataError, tmp_path / "list.csv")


@pytest.mark.parametrize(
    "data", [b"\xff\xfef\x00i\x00l\x00e\x00", b"\x89PNG\r\n\x1a\n", claiming(3, 3), b"file,label\n\xff\xff,x\n"]
)
def test_what_is_no_list(data, tmp_path):
    (tmp_path / "list.csv").write_bytes(data)
    assert "is neither a folder nor a UTF-8 CSV file of images and labels; give one of these" in wrong(
        DataError, tmp_path / "list.csv"
    )


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert "is neither a folder nor a UTF-8 CSV file" in wrong(DataError, path)


def test_a_missing_file_of_a_list_is_named(tmp_path):
    tree(tmp_path, {"x": 6})
    rows = [
        ("file", "label"),
        *((f"x/{n:03}.png", "ab"[n % 2]) for n in range(6)),
        ("x/no.png", "a"),
        ("nu\0l.png", "b"),
    ]
    lines = wrong(DataError, listed(tmp_path / "list.csv", rows)).splitlines()
    assert lines[0] == f"{tmp_path / 'list.csv'}:8 {tmp_path / 'x/no.png'}: no such file; check the name"
    assert lines[-1] == "error: 2 of 8 images can't be used; set dataset.skip_bad: true to leave them out"
    assert len(source(tmp_path / "list.csv", skip_bad=True, test=2).train) == 4


SPLITS = ["Train", "test", "TRAIN", "val", "train", " train ", "valid", "Test", "train", "Validation", "train", "train"]


def with_splits(root, splits=SPLITS):
    """A list of 12 images of two classes with a column Split, before a column that is not used."""
    tree(root / "p", {"x": 12})
    rows = [(f"p/x/{n:03}.png", "ab"[n // 2 % 2], split, "7") for n, split in enumerate(splits)]
    return listed(root / "list.csv", [("file", "label", "Split", "Age"), *rows])


def test_the_split_column_of_a_list_says_what_is_tested_on(tmp_path):
    """Its test images were trained on."""
    data = load(with_splits(tmp_path))
    images = {pixels(n).tobytes(): n for n in range(12)}
    numbers = {
        name: [images[image] for image in held(split)]
        for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test()))
    }
    assert numbers == {"train": [0, 2, 4, 5, 8, 10, 11], "validation": [3, 6, 9], "test": [1, 7]}
    assert data.test().labels.tolist() == [0, 1]
    notes = {note.what: (note.value, note.reason) for note in data.notes}
    path = tmp_path / "list.csv"
    assert notes["splits"] == ("7 train, 3 validation, 2 test", f"as the column split of {path} says")
    assert notes["not used"] == ("column Age", f"of the list {path}")


def test_a_column_of_splits_with_another_name_is_warned_of(tmp_path):
    path = with_splits(tmp_path)
    path.write_text(path.read_text().replace("Split", "subset", 1))
    notes = [(note.what, note.value, note.reason) for note in load(path).notes]
    cure = "rename it to split, with train, validation and test in it, to divide the images by it"
    assert ("warning", f"column subset of {path}", f"seems to name splits, but is not used; {cure}") in notes


@pytest.mark.parametrize(
    ("names", "suffix", "cure"),
    [
        (r"C:\data\x\{:03}.png", "", r"x/000.png exists in {root}; remove C:\data\ from the names"),
        ("/old/place/x/{:03}", ".png", "x/000.png exists in {root}; remove /old/place/ from the names"),
        ("x/{:03}", "png", "set dataset.suffix to .png, with its point"),
        ("x/{:03}", "", "000.png exists; set dataset.suffix to .png"),
        ("x/{:03}", ".jpg", "000.png exists; set dataset.suffix to .png"),
        ("y/{:03}.png", "", "correct the names, or set dataset.folder"),
    ],
)
def test_the_cure_for_a_list_of_missing_files(names, suffix, cure, tmp_path):
    tree(tmp_path, {"x": 4})
    path = listed(tmp_path / "list.csv", [("file", "label"), *((names.format(n), "ab"[n % 2]) for n in range(4))])
    message = wrong(DataError, path, **({"suffix": suffix} if suffix else {}))
    assert message.partition(f"{path} lists; ")[2].startswith(cure.replace("{root}", str(tmp_path)))


def test_images_beside_the_class_folders_are_counted(tmp_path):
    """60 images lay beside the folders of two classes, and nothing said that they are not used."""
    tree(tmp_path, {"a": 6, "b": 6, "": 3})
    notes = {note.value: note.reason for note in load(tmp_path).notes if note.what == "warning"}
    assert notes["3 images left out"].startswith(f"they lie in {tmp_path}, not in a class folder")
    tree(tmp_path / "s/train", {"a": 6, "b": 6, "": 1})
    tree(tmp_path / "s/test", {"a": 6, "b": 6})
    notes = {note.value: note.reason for note in load(tmp_path / "s").notes if note.what == "warning"}
    assert notes["1 image left out"].startswith(f"they lie in {tmp_path / 's/train'}, not in a class folder")


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("trn", "tst", "vld"), ("seg_train", "seg_test", "x")])
def test_split_folders_with_other_names_are_not_classes(names, tmp_path):
    """They were two classes, each with all digits in it."""
    for name in names:
        tree(tmp_path / name, {"a": 4, "b": 4})
    message = wrong(DataError, tmp_path)
    assert f"the folders {', '.join(sorted(names))} contain the same folders, a, b, as if they were splits" in message
    for name in names:
        (tmp_path / name).rename(tmp_path / f"{name[::-1]} 1")
    reasons = [note.reason for note in load(tmp_path).notes if note.what == "warning"]
    assert any("contain the same folders, a, b; if those are the classes" in reason for reason in reasons)


def test_a_folder_around_the_class_folders_is_named(tmp_path):
    tree(tmp_path / "images", {"cat": 4, "dog": 4})
    message = wrong(DataError, tmp_path)
    assert message.endswith(f"which contains cat, dog; if those are the classes, give {tmp_path / 'images'}")


def test_the_own_test_images_of_a_folder_that_are_not_used_are_counted(tmp_path):
    tree(tmp_path / "train", {"a": 6, "b": 6})
    tree(tmp_path / "test", {"a": 2, "b": 2})
    other = tree(tmp_path / "other", {"a": 1, "b": 1})
    found = load(tmp_path, test=str(other))
    assert len(found.test()) == 2
    assert "4 test samples not used" in {note.value for note in found.notes}


def test_folders_called_training_and_testing_are_splits(tmp_path):
    """They were taken for two classes."""
    tree(tmp_path / "Training", {"a": 6, "b": 6})
    tree(tmp_path / "Testing", {"a": 2, "b": 2}, first=100)
    found = source(tmp_path)
    assert (found.classes, len(found.train), len(found.test())) == (("a", "b"), 12, 4)


def test_a_list_of_training_images_only_has_test_data_set_aside(tmp_path):
    found = source(with_splits(tmp_path, ["train"] * 12), test=4)
    assert (len(found.train), len(found.test()), found.validation) == (8, 4, None)


def test_test_data_may_be_the_test_lines_of_a_list(tmp_path):
    path = with_splits(tmp_path)
    tree(tmp_path / "own", {"a": 6, "b": 6}, first=100)
    assert held(source(tmp_path / "own", test=str(path)).test()) == [pixels(n).tobytes() for n in (1, 7)]
    with_splits(tmp_path, ["train", "val"] * 6)
    message = f"{path}: contains train and validation data, but no test data; add it, or name other data"
    assert wrong(DataError, tmp_path / "own", test=str(path)) == message


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"] * 12, ": its column split has no line with train; add training images"),
        (["train", "3"], ":3: has the split '3', which is not one of train, validation (val, valid) and test; correct"),
        (["train", "train", ""], ":4: has no split: write one of train"),
    ],
)
def test_wrong_values_in_a_split_column(splits, message, tmp_path):
    assert f"list.csv{message}" in wrong(DataError, with_splits(tmp_path, splits))


def test_a_list_with_the_separators_of_windows(tmp_path):
    tree(tmp_path / "p", {"x": 12})
    save(tmp_path / "odd\\name.png", pixels(50))
    rows = [(f"p\\x\\{n:03}.png", "ab"[n % 2]) for n in range(12)]
    path = listed(tmp_path / "list.csv", [("file", "label"), *rows, ("odd\\name.png", "a")])
    found = source(path, test=2)
    everything = sorted([*held(found.train), *held(found.test())])
    assert everything == sorted(pixels(n).tobytes() for n in (*range(12), 50)), "and names that contain one"


def test_a_list_of_names_in_another_folder_without_their_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "p", {"x": 12})
    rows = [(f"{n:03}" + ".png" * (n == 3), "ab"[n % 2]) for n in range(12)]
    path = listed(tmp_path / "list.csv", [("file", "label"), *rows])
    found = source(path, folder="p/x", suffix=".png", test=2)
    assert len(found.train) + len(found.test()) == 12
    message = wrong(DataError, path, suffix=".png")
    assert message == (
        f"{tmp_path / '000.png'}: no such file, nor any other of the 12 that {path} lists; "
        "correct the names, or set dataset.folder to their folder or dataset.suffix to their ending"
    )


@pytest.mark.parametrize("options", [{"folder": "p"}, {"suffix": ".png"}])
def test_folder_and_suffix_apply_to_lists_only(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "p", COUNTS)
    assert f"dataset.{next(iter(options))}: applies only to a CSV file" in wrong(ConfigError, "p", **options)


def test_the_folder_of_a_list_must_exist(tmp_path):
    path = listed(tmp_path / "list.csv", [("file", "label"), ("a.png", "a")])
    assert "dataset.folder: there is no nowhere" in wrong(ConfigError, path, folder="nowhere")


# ---------------------------------------------------------------- pixels

GRAYS = {
    "png 8": (pixels(1), "png"),
    "bmp": (pixels(1), "bmp"),
    "tiff": (pixels(1), "tif"),
    "png 16": (pixels(1).astype(np.uint16) * 257, "png"),
    "tiff 16": (pixels(1).astype(np.uint16) * 257, "tiff"),
    "png of gray saved as colours": (pixels(1)[..., None].repeat(3, 2), "png"),
    "png of gray with an alpha channel": (np.dstack([*[pixels(1)] * 3, np.full((6, 5), 255, np.uint8)]), "png"),
    "webp of gray": (pixels(1)[..., None].repeat(3, 2), "webp"),
}


@pytest.mark.parametrize("kind", GRAYS)
def test_each_kind_of_gray_is_the_same_gray(kind, tmp_path):
    values, ending = GRAYS[kind]
    tree(tmp_path, COUNTS)
    save(tmp_path / "cat" / f"1000.{ending}", values, **({"lossless": True} if ending == "webp" else {}))
    found = source(tmp_path, test=3)
    assert found.train.inputs.shape[1:] == (1, 6, 5)
    assert pixels(1).tobytes() in held(found.train)[-3:] + held(found.test()), "the longest name comes last"
    assert held(found.train)[-1] == pixels(1).tobytes() or pixels(1).tobytes() in held(found.test())


def test_gray_that_lossy_packing_has_tinted_is_gray(tmp_path):
    tree(tmp_path, COUNTS)
    gray = np.minimum(pixels(1), 250)
    for tint, channels in ((2, 1), (3, 3)):  # WebP leaves 1
        save(tmp_path / "cat/1000.png", gray[..., None] + np.array([0, tint, 0], np.uint8))
        assert source(tmp_path).train.inputs.shape[1:] == (channels, 6, 5)


def test_colours_after_gray_ones_are_in_colour_as_if_all_were_decoded_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_decode, "CHUNK", 7)
    tree(tmp_path, COUNTS)
    gray = source(tmp_path)
    assert gray.train.inputs.shape[1:] == (1, 6, 5)
    save(tmp_path / "owl/z_last_of_all.png", pixels(3, colour=True))
    auto, colour, luma = (source(tmp_path, grayscale=how) for how in ("auto", False, True))
    assert auto.train.inputs.shape[1:] == (3, 6, 5)
    assert luma.train.inputs.shape[1:] == (1, 6, 5)
    for one, two in ((auto.train, colour.train), (auto.test(), colour.test())):
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.labels, two.labels)
    alone = np.asarray(Image.fromarray(pixels(3, colour=True)).convert("L")).tobytes()
    assert alone in held(luma.train) + held(luma.test()), "Pillow's own luma"


def test_a_colour_in_the_first_of_many(tmp_path, monkeypatch):
    """Gray ones after it are repeated; so are those beside it."""
    monkeypatch.setattr(_decode, "CHUNK", 4)
    tree(tmp_path / "train", COUNTS)
    tree(tmp_path / "test", {"cat": 5}, first=200)
    save(tmp_path / "train/dog/001.png", pixels(3, colour=True))
    found = source(tmp_path)
    assert found.train.inputs.shape[1:] == found.test().inputs.shape[1:] == (3, 6, 5)
    np.testing.assert_array_equal(found.train.inputs[4], pixels(4)[None].repeat(3, 0))
    np.testing.assert_array_equal(found.test().inputs[1], pixels(201)[None].repeat(3, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whole_chunk_that_is_bad_or_of_one_part_does_not_decide_the_channels(channels, tmp_path, monkeypatch):
    monkeypatch.setattr(_decode, "CHUNK", 2)
    tree(tmp_path / "train", {"a": 6, "b": 6}, colour=channels == 3)
    tree(tmp_path / "test", {"a": 2, "b": 2}, colour=channels == 3, first=50)
    for n, name in ((0, "a"), (1, "b"), (4, "a"), (5, "b")):
        (tmp_path / f"train/{name}/{n:03}.png").write_bytes(b"bad")
    found = source(tmp_path, skip_bad=True)
    assert found.train.inputs.shape == (8, channels, 6, 5)
    assert found.test().inputs.shape == (4, channels, 6, 5)
    assert found.train.labels.tolist() == [0, 1] * 4


@pytest.mark.parametrize("size", [12, [8, 12]])
def test_sizes(size, tmp_path):
    """A white bar on black, twice as wide as high."""
    bar = np.zeros((8, 16), np.uint8)
    bar[:, 6:10] = 255
    for name in "ab":
        for n in range(3):
            save(tmp_path / "train" / name / f"{n}.png", bar)
            save(tmp_path / "test" / name / f"{n}.png", bar.repeat(2, 0).repeat(2, 1))
    H, W = (size, size) if isinstance(size, int) else size
    padded, stretched = source(tmp_path, size=size), source(tmp_path, size=size, fit="stretch")
    for found in (padded, stretched):
        assert found.train.inputs.shape[1:] == found.test().inputs.shape[1:] == (1, H, W)
    inner = padded.train.inputs[0, 0]
    rows = np.flatnonzero(inner.any(1))
    assert len(rows) == W / 2, "the aspect is kept: it is half as high as wide"
    assert abs(rows[0] - (H - 1 - rows[-1])) <= 1, "in the middle"
    assert stretched.train.inputs[0, 0].any(1).all(), "it fills the height"
    assert (padded.fit, stretched.fit, load(tmp_path, size=size).spec.fit) == ("pad", "stretch", "pad")


def test_without_a_size_all_must_have_that_of_the_first(tmp_path):
    tree(tmp_path, COUNTS)
    save(tmp_path / "dog/100.png", pixels(1, size=(7, 9)))
    lines = wrong(DataError, tmp_path).splitlines()
    assert lines[0] == (
        f"{tmp_path / 'dog/100.png'}: is 9 wide and 7 high, but the first image is 5 by 6; "
        "set dataset.size: 6 to resize all images"
    )
    assert lines[1] == "error: 1 of 31 images can't be used; set dataset.skip_bad: true to leave them out"
    assert load(tmp_path, size=6).spec.shape == (1, 6, 6)


@pytest.mark.parametrize("size", [0, -1, 4097, [28], [28, 28, 28], [], [0, 1], "28", 28.0, True, [1, True]])
def test_what_is_no_size(size, tmp_path):
    if size == [28]:
        return
    with pytest.raises(ValueError, match="expected a number of pixels"):
        folder.Config(path="p", size=size)


# ---------------------------------------------------------------- what is wrong


def test_bad_files_are_listed_with_reasons_counted_and_refused_unless_they_may_be_skipped(tmp_path):
    tree(tmp_path, COUNTS)
    bad = {
        "000": b"",
        "001": b"text",
        "003": claiming(5, 6)[:-30],
        "004": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, data in bad.items():
        path = next(tmp_path.glob(f"*/{name}.png"))
        path.write_bytes(data)
    (tmp_path / "owl/folder.png").mkdir()
    (tmp_path / "owl/gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "owl/pipe.png")
    lines = wrong(DataError, tmp_path).splitlines()
    for line, what in zip(lines, ("is empty", "is not an image", "is damaged", "is a Git LFS pointer"), strict=False):
        assert f".png: {what}" in line
    assert any(line.endswith("pipe.png: is not a regular file; name an image file") for line in lines)
    assert any(line.endswith("gone.png: no such file; check the name") for line in lines)
    assert lines[-1] == "error: 6 of 32 images can't be used; set dataset.skip_bad: true to leave them out"
    data = load(tmp_path, skip_bad=True)
    assert len(data.train) + len(data.validation) + len(data.test()) == SUM - 4
    note = next(note for note in data.notes if note.what == "left out")
    assert note.value == "6 files"
    assert "000.png: is empty" in note.reason


def test_a_long_list_of_bad_files_is_cut(tmp_path):
    tree(tmp_path, COUNTS)
    for path in tmp_path.glob("cat/*"):
        path.write_bytes(b"bad")
    lines = wrong(DataError, tmp_path).splitlines()
    assert len(lines) == 10
    assert lines[-2] == "error: ... and 4 more"
    assert lines[-1] == "error: 12 of 30 images can't be used; set dataset.skip_bad: true to leave them out"
    assert wrong(DataError, tmp_path, skip_bad=True).endswith("(none of the images of the class 'cat' can be read)")


def test_nothing_can_be_read(tmp_path):
    tree(tmp_path, COUNTS)
    for path in tmp_path.glob("*/*"):
        path.write_bytes(b"bad")
    assert "none of the first images can be read; check that they are images" in wrong(DataError, tmp_path)
    assert "can be read" in wrong(DataError, tmp_path, skip_bad=True, size=6)


@pytest.mark.parametrize(
    ("width", "height"),
    [(31623, 31623), (10**9, 1), (1, 10**9), (2**31 - 1, 2**31 - 1)],
    ids=["10^9", "wide", "high", "most"],
)
def test_an_image_of_a_thousand_million_pixels_is_refused_undecoded(width, height, tmp_path):
    tree(tmp_path, COUNTS)
    (tmp_path / "cat/100.png").write_bytes(claiming(width, height))
    (tmp_path / "cat/101.tif").write_bytes(claiming_tiff(width, height))
    began = time.process_time()
    lines = wrong(DataError, tmp_path).splitlines()
    assert time.process_time() - began < 2
    assert lines[0].endswith("100.png: has more than 89 megapixels; save a smaller image")
    assert "101.tif: has " in lines[1]


def test_a_decompression_bomb_is_refused(tmp_path):
    """A picture of 25 megapixels in 25 kB, and one whose text would inflate to 64 MB."""
    from PIL.PngImagePlugin import PngInfo

    tree(tmp_path, COUNTS)
    Image.new("L", (5000, 5000)).save(tmp_path / "cat/100.png")
    text = PngInfo()
    text.add_text("Comment", "0" * 2**26, zip=True)
    Image.fromarray(pixels(1)).save(tmp_path / "cat/101.png", pnginfo=text)
    assert os.path.getsize(tmp_path / "cat/101.png") < 10**6
    lines = wrong(DataError, tmp_path).splitlines()
    assert "100.png: has 5,000 x 5,000 pixels" in lines[0]
    assert "101.png: is damaged" in lines[1]


def test_a_class_folder_without_images(tmp_path):
    tree(tmp_path, COUNTS)
    (tmp_path / "bat/deeper").mkdir(parents=True)
    (tmp_path / "bat/deeper/a.heic").write_bytes(b"")
    assert wrong(DataError, tmp_path) == (
        f"{tmp_path / 'bat'}: contains no images (.png .jpg .jpeg .jpe .jfif .gif .bmp .webp "
        ".tif .tiff .avif .ppm .pgm .pbm .pnm), but 1 .heic; "
        "add some for the class 'bat', or remove the folder"
    )


@pytest.mark.parametrize("grow", [lambda root: tree(root, {"cat": 9}), lambda root: tree(root / "train", {"cat": 9})])
def test_one_class(grow, tmp_path):
    grow(tmp_path)
    message = wrong(DataError, tmp_path)
    assert (
        message == f"{tmp_path}: all samples have the class 'cat'; a classifier needs samples of at least two classes"
    )


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_training_data_has_not(part, tmp_path):
    parted(tmp_path)
    save(tmp_path / part / "cta/0.png", pixels(0))
    save(tmp_path / part / "dog/0.png", pixels(0))
    problem = "has the class 'cta', which has no training images (did you mean 'cat'?)"
    cure = "rename the class, or add training images"
    assert wrong(DataError, tmp_path) == f"{tmp_path / part / 'cta/0.png'}: {problem}; {cure}"


def test_no_samples(tmp_path):
    assert "contains no folders; put the images of each class into a folder named after the class" in wrong(
        DataError, tmp_path
    )
    (tmp_path / "train").mkdir()
    assert "contains no" in wrong(DataError, tmp_path)
    (tmp_path / "train/a").mkdir()
    assert f"{tmp_path / 'train/a'}: contains no images" in wrong(DataError, tmp_path)


def test_test_without_train_and_two_folders_for_one_part(tmp_path):
    tree(tmp_path / "test", COUNTS)
    assert wrong(DataError, tmp_path) == f"{tmp_path}: has a folder test, but no folder train; add it"
    tree(tmp_path / "train", COUNTS)
    tree(tmp_path / "val", COUNTS)
    tree(tmp_path / "valid", COUNTS)
    assert (
        wrong(DataError, tmp_path)
        == f"{tmp_path}: has two folders of validation data, val and valid; put their files into one"
    )


def test_no_such_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"there is no pics in {tmp_path}; give the file or folder" in wrong(ConfigError, "pics")
    for path in ("/no/such", "x" * 5000, "a\0b", "~nobody-at-all/x", "\ud800"):
        assert "there is no " in wrong(ConfigError, path)
    tree(tmp_path, COUNTS)
    assert wrong(ConfigError, tmp_path, test="other").startswith("dataset.test: there is no other")


@pytest.mark.parametrize("test", [30, 29, 28, 1000, 0.001])
def test_no_more_can_be_set_aside_than_there_is(test, tmp_path):
    tree(tmp_path, COUNTS)
    assert "give a count from 1 to 27" in wrong(ConfigError, tmp_path, test=test)


@pytest.mark.parametrize("name", ["new\nline", "\x1b[31mred", os.fsdecode(b"\xff"), " "])
def test_a_class_whose_name_can_not_be_shown(name, tmp_path):
    """It would go into terminals, JSON, HTML and the names of files."""
    tree(tmp_path, {"cat": 5, name: 5})
    message = wrong(DataError, tmp_path)
    assert (
        message == f"{tmp_path}: the class name {name!r} is blank or contains unprintable characters; rename the class"
    )
    assert message.isprintable()


def test_a_class_of_other_scripts(tmp_path):
    tree(tmp_path, {"猫": 5, "نمی‌دانم": 5, "o\u0308l": 5, "a b-c_d.e": 5})
    assert load(tmp_path).spec.classes == ("a b-c_d.e", "o\u0308l", "نمی‌دانم", "猫")


def test_huge_numbers_of_classes(tmp_path, monkeypatch):
    save(tmp_path / "a.png", pixels(0))
    rows = [("file", "label"), *(("a.png", f"class {n}") for n in range(10_001))]
    path = listed(tmp_path / "list.csv", rows)
    assert wrong(DataError, path) == f"{path}: contains 10,001 classes, more than 10,000; check that they are classes"
    monkeypatch.setattr(_user_data, "MAX_CLASSES", 3)
    tree(tmp_path / "p", dict.fromkeys("abcd", 2))
    assert "4 classes, more than 3" in wrong(DataError, tmp_path / "p")
    del_one = tmp_path / "p/d"
    for path in del_one.iterdir():
        path.unlink()
    del_one.rmdir()
    assert len(load(tmp_path / "p", test=2, validation=1).spec.classes) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    tree(tmp_path, COUNTS)
    (tmp_path / "cat").chmod(0)
    try:
        assert (
            wrong(MachineError, tmp_path)
            == f"{tmp_path / 'cat'}: can't be read (Permission denied); check its permissions"
        )
    finally:
        (tmp_path / "cat").chmod(0o700)
    (tmp_path / "cat/000.png").chmod(0)
    assert "000.png: can't be read (Permission denied)" in wrong(DataError, tmp_path)


def test_a_folder_that_can_not_be_opened_is_named(tmp_path, monkeypatch):
    tree(tmp_path, COUNTS)
    real = os.open

    def closed(path, *arguments, **options):
        if str(path).startswith(str(tmp_path / "dog")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", closed)
    assert (
        wrong(MachineError, tmp_path) == f"{tmp_path / 'dog'}: can't be read (Permission denied); check its permissions"
    )
