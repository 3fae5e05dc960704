"""Equal samples are named: files, lines of a table, rows of an array; and those with different labels are a warning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import listed, pixels, save

from nnx import datasets
from nnx.datasets import Mapped, Split, _statistics, arrays, folder, table

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / ".cache"))


def pictures(root):
    """30 images: of cats and dogs, from root/cat/00.png to root/dog/29.png, all different."""
    for n in range(30):
        save(root / CLASSES[n % 2] / f"{n:02}.png", pixels(n))
    return root


def load(config):
    dataset = datasets.load(config, seed=0)
    return dataset, {note.what: note for note in dataset.notes if note.what in ("warning", "duplicates")}


def duplicates_of(dataset):
    return datasets.find_duplicates((dataset.train, dataset.validation), dataset.test(), dataset.spec.classes)


def test_no_duplicates_are_no_note(tmp_path):
    dataset, notes = load(folder.Config(path=str(pictures(tmp_path / "pics"))))
    assert notes == {}
    assert duplicates_of(dataset) == datasets.Duplicates(0, 0, ())


def test_files_with_different_labels_are_a_warning(tmp_path):
    root = pictures(tmp_path / "train")
    for n in range(4):
        save(root / "dog" / f"{50 + n}.png", pixels(2 * n))  # of cats
    save(root / "cat/60.png", pixels(0))
    pictures(tmp_path / "test")
    dataset, notes = load(folder.Config(path=str(root), test=str(tmp_path / "test")))
    assert notes.keys() == {"warning"}
    assert notes["warning"].value == "9 of 35 labels"
    assert notes["warning"].reason.startswith("training samples are equal but have different labels: ")
    assert notes["warning"].reason.endswith(
        ", ...; correct the labels, or accept that the network can't tell them apart"
    )
    for n in range(1, 3):
        pair = {f"{root}/cat/{2 * n:02}.png (cat)", f"{root}/dog/{50 + n}.png (dog)"}
        assert any(
            f"{first} and {second}" in notes["warning"].reason for first in pair for second in pair if first != second
        )
    duplicates = duplicates_of(dataset)
    assert (duplicates.count, duplicates.conflicts) == (30, 4)
    assert len(duplicates.examples) == 3
    assert f"{tmp_path}/test/cat/00.png (cat) and {root}/dog/50.png (dog)" in duplicates.examples


def test_equal_files_of_one_class_are_a_note(tmp_path):
    root = pictures(tmp_path / "pics")
    save(root / "cat/99.png", pixels(0))
    save(root / "dog/99.png", pixels(1))
    pictures(tmp_path / "test")
    _, notes = load(folder.Config(path=str(root), test=str(tmp_path / "test")))
    assert notes.keys() == {"duplicates"}
    assert notes["duplicates"].value == "2 of 32"
    assert f"{root}/cat/00.png and {root}/cat/99.png (cat)" in notes["duplicates"].reason
    assert f"{root}/dog/01.png and {root}/dog/99.png (dog)" in notes["duplicates"].reason
    assert "..." not in notes["duplicates"].reason


def test_names_stay_with_their_images_where_bad_files_are_left_out(tmp_path):
    root = pictures(tmp_path / "train")
    (root / "cat/02.png").write_bytes(b"bad")
    save(root / "dog/98.png", pixels(28))
    pictures(tmp_path / "test")
    for _ in range(2):  # decoded, then from the cache
        _, notes = load(folder.Config(path=str(root), test=str(tmp_path / "test"), skip_bad=True))
        pair = f"{root}/cat/28.png (cat) and {root}/dog/98.png (dog)"
        assert pair in notes["warning"].reason or " and ".join(pair.split(" and ")[::-1]) in notes["warning"].reason


def test_files_of_a_list(tmp_path):
    pictures(tmp_path / "pics")
    names = sorted(tmp_path.glob("pics/*/*.png"))
    rows = [("file", "label"), *((str(name), name.parent.name) for name in names), (str(names[0]), "dog")]
    path = listed(tmp_path / "list.csv", rows)
    listed(tmp_path / "test.csv", rows[:3])
    _, notes = load(folder.Config(path=str(path), test=str(tmp_path / "test.csv"), validation=2))
    assert notes["warning"].value == "2 of 31 labels"
    assert f"{path}:2 {names[0]} (cat)" in notes["warning"].reason
    assert f"{path}:32 {names[0]} (dog)" in notes["warning"].reason
    rows = [(*row, ("train", "test")[n in (1, 20, 31)] if n else "split") for n, row in enumerate(rows)]
    dataset, _ = load(folder.Config(path=str(listed(path, rows)), validation=2))
    assert duplicates_of(dataset).count == 0
    rows[31] = (*rows[31][:2], "train")
    dataset, _ = load(folder.Config(path=str(listed(path, rows)), validation=2))
    assert duplicates_of(dataset).examples == (f"{path}:2 {names[0]} (cat) and {path}:32 {names[0]} (dog)",)


def test_lines_of_a_table(tmp_path):
    lines = ["size,weight,kind", *(f"{n},{n * n},{CLASSES[n % 2]}" for n in range(30)), "", "3,9,owl", "4,16,owl"]
    (tmp_path / "train.csv").write_text("\n".join([*lines, ""]))
    (tmp_path / "test.csv").write_text("size,weight,kind\n99,1,cat\n3,9,cat\n5,25,dog\n98,1,owl\n")
    config = table.Config(
        path=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), target="kind", validation=3
    )
    dataset, notes = load(config)
    train = f"{tmp_path}/train.csv"
    assert notes["warning"].value == "4 of 32 labels"
    for line, label in ((5, "dog"), (33, "owl"), (6, "cat"), (34, "owl")):
        assert f"{train}:{line} ({label})" in notes["warning"].reason
    duplicates = duplicates_of(dataset)
    assert (duplicates.count, duplicates.conflicts) == (2, 1)
    assert duplicates.examples[0].startswith(f"{tmp_path}/test.csv:3 (cat) and {train}:")
    assert duplicates.examples[1] == f"{tmp_path}/test.csv:4 and {train}:7 (dog)"


def test_lines_of_a_large_table_from_the_cache(tmp_path, monkeypatch):
    lines = ["split,size,kind", *(f"{('train', 'test')[n % 3 == 0]},{n % 29},{CLASSES[n % 2]}" for n in range(58))]
    (tmp_path / "train.csv").write_text("\n".join([*lines, ""]))
    (tmp_path / "test.csv").write_text("\n".join([*lines[:30], ""]))
    config = table.Config(path=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), target="kind")
    fresh = load(config)
    monkeypatch.setattr(table, "CACHED_FROM", 1)
    for _ in range(2):
        cached = load(config)
        assert {"warning"} == cached[1].keys()
        assert cached[1] == fresh[1]
        assert duplicates_of(cached[0]) == duplicates_of(fresh[0])
    assert duplicates_of(fresh[0]).examples[0].startswith(f"{tmp_path}/test.csv:2 (cat) and {tmp_path}/train.csv:")
    monkeypatch.setattr(table, "LOCATED", 1)
    assert duplicates_of(load(config)[0]).examples[0].startswith(f"{tmp_path}/test.csv, row 1 (cat) and ")


def test_rows_of_arrays(tmp_path):
    images = np.stack([pixels(n) for n in range(30)])
    images[7] = images[4]
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 2)
    dataset, notes = load(arrays.Config(path=str(tmp_path / "a.npz"), test=2))
    pairs = [*duplicates_of(dataset).examples, notes["warning"].reason if notes else ""]
    assert any(f"{tmp_path}/a.npz[4] (0)" in pair and f"{tmp_path}/a.npz[7] (1)" in pair for pair in pairs)


def test_names_are_printable(tmp_path):
    root = pictures(tmp_path / "pics")
    save(root / "dog/a\x1b[2J\nb.png", pixels(0))
    _, notes = load(folder.Config(path=str(root), test=2, validation=2))
    texts = [note.reason for note in notes.values()]
    assert all(text.isprintable() for text in texts)


def test_oversampled_classes_are_no_duplicates(tmp_path):
    root = pictures(tmp_path / "pics")
    for n in range(20):
        save(root / "cat" / f"{40 + n}.png", pixels(100 + n))
    _, notes = load(folder.Config(path=str(root), balance="oversample"))
    assert notes == {}


# ---------------------------------------------------------------- counting


@given(
    inputs=st.lists(
        st.integers(1, 12).flatmap(
            lambda n: hnp.arrays(np.uint8, (n, 1, 1, 2), elements=st.sampled_from([0, 1, 255]), fill=st.just(0))
        ),
        min_size=1,
        max_size=3,
    ),
    compared=st.sampled_from([1, 7, 2**26]),
    seed=st.integers(0, 9),
)
def test_repeats_are_counted_as_a_dictionary_counts_them(inputs, compared, seed):
    rng = np.random.default_rng(seed)
    splits = [Split(part, rng.integers(0, 3, len(part))) for part in inputs]
    splits[-1] = Split(Mapped(inputs[-1], np.arange(len(inputs[-1]))), splits[-1].labels)
    groups = {}
    for part in splits:
        for row, label in zip(np.asarray(part.inputs), part.labels.tolist(), strict=True):
            groups.setdefault(row.tobytes(), []).append(label)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics, "COMPARED", compared)
        repeats = _statistics.find_repeats(splits, CLASSES)
        duplicates = datasets.find_duplicates(splits[:1], splits[-1], CLASSES)
    assert repeats.count == sum(len(labels) - 1 for labels in groups.values())
    assert repeats.conflicts == sum(len(labels) for labels in groups.values() if len({*labels}) > 1)
    assert len(repeats.examples) == min(3, sum(len(labels) > 1 for labels in groups.values()))
    known = {}
    for row, label in zip(np.asarray(splits[0].inputs), splits[0].labels.tolist(), strict=True):
        known.setdefault(row.tobytes(), set()).add(label)
    last = [*zip(np.asarray(splits[-1].inputs), splits[-1].labels.tolist(), strict=True)]
    assert duplicates.count == sum(row.tobytes() in known for row, _ in last)
    assert duplicates.conflicts == sum(bool(known.get(row.tobytes(), {label}) - {label}) for row, label in last)


def test_too_much_data_is_not_read(monkeypatch):
    rows = Split(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    assert _statistics.find_repeats([rows], CLASSES).count == 3
    monkeypatch.setattr(_statistics, "MAX_READ", rows.inputs.nbytes - 1)
    assert _statistics.find_repeats([rows], CLASSES) is None
    assert _statistics.describe_repeats([rows], CLASSES, packaged=False) == ()
