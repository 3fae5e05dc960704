"""Tables as datasets: which rows are trained on, what is fitted on them, and how the classes are sorted."""

import copy
import csv
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nnx import datasets
from nnx.datasets import arrays, breast_cancer, iris, table, wine
from nnx.errors import DataError, MachineError
from nnx.preprocessing import tables
from nnx.preprocessing.columns import CategoryColumn, NumberColumn

N = 200


@pytest.fixture
def data(tmp_path):
    """A table of 200 rows: its file, and its rows as lists of text."""
    rng = np.random.default_rng(0)
    rows = [
        [f"{rng.normal(5, 2):.3f}", str(rng.choice(["red", "green", "", "blue"])), str(row), f"class {10 - int(kind)}"]
        for row, kind in enumerate(rng.integers(0, 3, N))
    ]
    path = tmp_path / "data.csv"
    write(path, rows)
    return path, rows


def write(path, rows, names=("size", "colour", "row", "kind")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


def load(path, *, seed=0, like=None, **settings):
    return datasets.load(table.Config(path=str(path), target="kind", **settings), seed=seed, like=like)


def rows_of(split, dataset):
    """Which rows of the file are in a split: the column `row`, standardised, turned back."""
    column = dataset.spec.columns.columns[2]
    values = split.inputs[:, dataset.spec.columns.feature_names.index("row")]
    return set(np.round(values * column.std + column.mean).astype(int).tolist())


def test_every_row_is_in_one_split(data):
    path, rows = data
    first, second = load(path, validation=30), load(path, validation=30, seed=1)
    splits = [rows_of(first.split(name), first) for name in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [130, 30, 40]
    assert set.union(*splits) == set(range(N))
    assert splits[2] == rows_of(second.test(), second), "the same for every seed"
    assert splits[1] != rows_of(second.validation, second)
    assert load(path, test=60).test().labels.shape == (60,)
    labels = [rows[row][3] for row in sorted(splits[2])]
    sizes = [labels.count(name) / len(labels) for name in first.spec.classes]
    whole = [sum(row[3] == name for row in rows) / N for name in first.spec.classes]
    np.testing.assert_allclose(sizes, whole, atol=1 / 40)


def test_what_is_fitted_depends_on_the_training_rows_only(data):
    """Other values in rows of the validation and test part change nothing. The control: one in a training row does."""
    path, rows = data
    before = load(path, drop=["row"], validation=30)
    with_rows = load(path, validation=30)
    train, other = (rows_of(split, with_rows) for split in (with_rows.train, with_rows.validation))
    other |= rows_of(with_rows.test(), with_rows)
    assert len(train) == 130
    for row in other:
        rows[row][:2] = ["1e6", "yellow"] if row % 2 else ["", ""]
    write(path, rows)
    after = load(path, drop=["row"], validation=30)
    assert after.spec == before.spec
    assert datasets.fingerprint(after.train) == datasets.fingerprint(before.train)
    assert datasets.fingerprint(after.validation) != datasets.fingerprint(before.validation)
    rows[min(train)][0] = "1e6"
    write(path, rows)
    assert load(path, drop=["row"], validation=30).spec != before.spec


def test_features_are_standardised_over_the_training_rows(data):
    path, _ = data
    dataset = load(path)
    spec = dataset.spec
    assert spec.classes == ("class 8", "class 9", "class 10")
    assert [type(column) for column in spec.columns.columns] == [NumberColumn, CategoryColumn, NumberColumn]
    assert spec.columns.feature_names == (
        "size",
        "colour = blue",
        "colour = green",
        "colour = red",
        "colour is missing",
        "row",
    )
    assert spec.shape == (6,)
    assert (spec.mean, spec.std) == ((0.0,) * 6, (1.0,) * 6)
    numbers = dataset.train.inputs[:, [0, 5]]
    np.testing.assert_allclose(numbers.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(numbers.std(0), 1, atol=1e-6)
    assert (dataset.train.inputs[:, 1:5].sum(1) == 1).all()


@pytest.mark.parametrize("cached", [False, True])
def test_a_split_column_is_honoured(data, tmp_path, monkeypatch, cached):
    """Issue 15, number 1. In any case, with the short names; it is not a feature."""
    if cached:
        monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(table, "CACHED_FROM", 0)
    path, rows = data
    names = ["Train", "test", "VALID", "train", "val"]
    marked = [[*row, names[n % 5]] for n, row in enumerate(rows)]
    columns = ("size", "colour", "row", "kind", "Split")
    write(path, marked, columns)
    for _ in range(2):
        dataset = load(path)
        assert "Split" not in {column.name for column in dataset.spec.columns.columns}
        splits = {name: rows_of(dataset.split(name), dataset) for name in ("train", "validation", "test")}
        assert splits["train"] == {n for n in range(N) if n % 5 in (0, 3)}
        assert splits["validation"] == {n for n in range(N) if n % 5 in (2, 4)}
        assert splits["test"] == set(range(1, N, 5))
        reasons = {note.what: f"{note.value}, {note.reason}" for note in dataset.notes}
        assert reasons["splits"] == f"80 train, 80 validation, 40 test, as the column Split of {path} says"
    assert "Split" in {column.name for column in load(path, categorical=["Split"]).spec.columns.columns}
    write(path, [[*row[:-1], "train" if row[-1].lower() == "train" else "val"] for row in marked], columns)
    assert len(load(path, test=30).test()) == 30, "without test rows, they are set aside from the training rows"
    write(tmp_path / "test.csv", [[*row, "9"] for row in marked], (*columns, "extra"))
    dataset = load(path, test=str(tmp_path / "test.csv"))
    assert len(dataset.test()) == 40
    write(path, marked, columns)
    own = {note.value: note.reason for note in load(path, test=str(tmp_path / "test.csv")).notes}
    assert own["40 test samples not used"].startswith(f"the test data is {tmp_path / 'test.csv'} (dataset.test)")
    assert "columns 'extra'" in {note.value.replace("column ", "columns ") for note in dataset.notes}


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("holdout", r"data\.csv:3 .*has the split 'holdout', which is not one of train, validation"),
        ("", r"data\.csv:3 .*has no split: write one of train"),
        ("7", r"data\.csv:3 .*has the split '7'"),
    ],
)
def test_other_values_in_a_split_column_are_named(data, split, words):
    path, rows = data
    write(
        path,
        [[*row, ["train", split][n % 2]] for n, row in enumerate(rows)],
        ("size", "colour", "row", "kind", "split"),
    )
    with pytest.raises(DataError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("column", "words", "problem"),
    [
        ("set", ("train", "test"), "seems to name splits, but is an input; in a column split"),
        (
            "Usage",
            ("Training", "PublicTest", "PrivateTest"),
            "seems to name splits, but is an input; in a column split",
        ),
        ("is_test", ("0", "1"), "seems to name splits, but is an input; in a column split"),
        ("fold", ("0", "1", "2", "3"), "seems to name splits, but is an input; in a column split"),
        ("test", ("0", "1"), None),
        ("contest", ("contest", "latest"), None),
        ("Partition", ("Training", "dev"), "seems to name splits, but is an input; in a column split"),
        ("split", ("1", "2"), "names no splits, so it is an input; in a column split, train"),
        ("split", ("left", "right"), "names no splits, so it is an input; in a column split, train"),
        ("set", ("a", "test"), None),
    ],
)
def test_an_input_that_looks_like_splits_is_warned_of(data, column, words, problem):
    path, rows = data
    marked = [[*row, words[n % len(words)]] for n, row in enumerate(rows)]
    write(path, marked, ("size", "colour", "row", "kind", column))
    warnings = {note.value: note.reason for note in load(path).notes if note.what == "warning"}
    assert problem is None or warnings[f"column {column}"].startswith(problem)
    assert problem or f"column {column}" not in warnings


def test_other_names_of_splits(data):
    path, rows = data
    names = ("training", "Testing", "dev")
    write(path, [[*row, names[n % 3]] for n, row in enumerate(rows)], ("size", "colour", "row", "kind", "split"))
    dataset = load(path)
    found = [rows_of(dataset.split(name), dataset) for name in ("train", "test", "validation")]
    assert found == [set(range(k, N, 3)) for k in range(3)]


def test_a_split_column_needs_training_rows_of_every_class(data):
    path, rows = data
    columns = ("size", "colour", "row", "kind", "split")
    write(path, [[*row, "test"] for row in rows], columns)
    with pytest.raises(DataError, match="its column split has no row with train; add training rows"):
        load(path)
    write(path, [[*row, "test" if row[3] == "class 9" else "train"] for row in rows], columns)
    with pytest.raises(DataError, match=r"data\.csv:\d+ .*: class 'class 9' has no training row"):
        load(path)
    write(path, [[*row, str(n % 7)] for n, row in enumerate(rows)], columns)
    assert load(path).spec.columns.columns[-1].name == "split", "numbers are a feature"


def test_csv_tsv_and_parquet_are_the_same(data, tmp_path):
    path, rows = data
    (tmp_path / "data.tsv").write_text("\n".join("\t".join(row) for row in [["size", "colour", "row", "kind"], *rows]))
    frame = tables.read(path).with_columns(
        pl.col("size").cast(pl.Float64), pl.col("row").cast(pl.Int64), pl.col("colour").cast(pl.Categorical)
    )
    frame.write_parquet(tmp_path / "data.parquet")
    first = load(path)
    for name in ("data.tsv", "data.parquet"):
        other = load(tmp_path / name)
        assert other.spec == first.spec
        assert datasets.fingerprint(other.train) == datasets.fingerprint(first.train)
        assert datasets.fingerprint(other.test()) == datasets.fingerprint(first.test())


def test_a_test_file_leaves_all_rows_for_training(data, tmp_path):
    path, rows = data
    write(
        tmp_path / "test.csv", [[row[3], "violet", row[0], "7"] for row in rows[:10]], ("kind", "colour", "size", "row")
    )
    dataset = load(path, test=str(tmp_path / "test.csv"), validation=20)
    assert (len(dataset.train), len(dataset.test())) == (180, 10)
    test = dataset.test().inputs
    assert (test[:, 1:5] == 0).all(), "violet is unseen"
    size = dataset.spec.columns.columns[0]
    np.testing.assert_allclose(test[:, 0] * size.std + size.mean, [float(row[0]) for row in rows[:10]], rtol=1e-5)


def test_categories_that_only_the_network_knows_are_kept_in_a_test_file(data, tmp_path):
    """A file to train on without red, one to test on with it, prepared as by a network that knows red."""
    path, rows = data
    like = load(path).spec
    write(tmp_path / "other.csv", [row for row in rows if row[1] != "red"])
    write(tmp_path / "test.csv", [row for row in rows if row[1] == "red"])
    test = load(tmp_path / "other.csv", test=str(tmp_path / "test.csv"), like=like).test()
    assert (test.inputs[:, like.columns.feature_names.index("colour = red")] == 1).all()


def test_numbers_as_classes_are_sorted_by_their_value(tmp_path):
    values = ["10", "9", "-1", "1.0"]
    (tmp_path / "data.csv").write_text("\n".join(["x,kind", *(f"{i},{values[i % 4]}" for i in range(40))]))
    assert load(tmp_path / "data.csv").spec.classes == ("-1", "1", "9", "10")
    pl.DataFrame({"x": range(40), "kind": [i % 3 for i in range(40)]}).write_parquet(tmp_path / "data.parquet")
    assert load(tmp_path / "data.parquet").spec.classes == ("0", "1", "2")


@pytest.mark.parametrize("module", [iris, wine, breast_cancer])
def test_the_embedded_tables_are_those_of_scikit_learn(module):
    import sklearn.datasets

    expected = getattr(sklearn.datasets, f"load_{module.__name__.rpartition('.')[2]}")()
    source = module.load(module.Config(), Path("unused"))
    assert source.classes == tuple(expected.target_names)
    assert [column.name for column in source.columns.columns] == list(expected.feature_names)
    test = source.test()
    rows = np.concatenate([source.train.inputs, test.inputs])
    labels = np.concatenate([source.train.labels, test.labels])
    sort = lambda rows, labels: sorted((label, tuple(row)) for row, label in zip(rows, labels, strict=True))  # noqa: E731
    assert sort(rows, labels) == sort(expected.data, expected.target)
    np.testing.assert_allclose(np.bincount(test.labels) / len(test), np.bincount(labels) / len(labels), atol=0.02)
    assert len(test) == round(len(rows) / 5)


def test_embedded_tables_are_prepared_as_any_table_is(tmp_path):
    """The same rows written as a CSV, split alike, give the same features: predict takes a CSV of these columns."""
    source = iris.load(iris.Config(), tmp_path)
    dataset = datasets.load(iris.Config(), seed=0)
    frame = pl.DataFrame(source.test().inputs, schema=list(iris.COLUMNS))
    frame.write_csv(tmp_path / "test.csv")
    features = dataset.spec.columns.apply(
        dataset.spec.columns.encode(tables.read(tmp_path / "test.csv"), "test.csv"), dataset.spec.columns
    )
    np.testing.assert_array_equal(features, dataset.test().inputs)


def test_a_large_table_is_read_quickly(tmp_path):
    """Not row by row in Python: 100,000 rows take 0.2 s, by the csv module and floats 1 s. The bound allows for a busy
    machine."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {f"x{i}": rng.normal(size=100_000) for i in range(8)} | {"kind": rng.choice(["a", "b"], 100_000)}
    )
    frame.write_csv(tmp_path / "data.csv")
    begun = time.process_time()
    dataset = load(tmp_path / "data.csv")
    assert time.process_time() - begun < 5
    assert len(dataset.train) == 72_000


def test_a_network_of_a_table_takes_a_table_only(tmp_path):
    """Four columns, standardised by what the network keeps, and four bare numbers have the same shape."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        x=rng.normal(size=(60, 4)).astype(np.float32),
        y=np.repeat(["setosa", "versicolor", "virginica"], 20),
    )
    bare = arrays.Config(path=str(tmp_path / "data.npz"))
    of_table, of_arrays = datasets.load(iris.Config(), seed=0).spec, datasets.load(bare, seed=0).spec
    assert of_table.shape == of_arrays.shape
    with pytest.raises(DataError, match=r"data\.npz: is not a table, but the network was trained on one"):
        datasets.load(bare, seed=0, like=of_table)
    with pytest.raises(DataError, match=r"iris.*: is a table, but the network was not trained on one"):
        datasets.load(iris.Config(), seed=0, like=of_arrays)


# ---------------------------------------------------------------- large tables


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """All tables are kept in an empty cache; calling this forbids to read one again."""
    monkeypatch.setenv("NNX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "CACHED_FROM", 0)
    return lambda: monkeypatch.setattr(table.tables, "read", lambda *_: pytest.fail("read again"))


def everything(dataset):
    splits = [dataset.split(name) for name in ("train", "validation", "test")]
    message = [note for note in dataset.notes if note.what != "cache"]
    return dataset.spec, message, [array.tobytes() for split in splits for array in (split.inputs, split.labels)]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_large_table_is_read_once(data, kept, tmp_path, monkeypatch, elsewhere):
    path, rows = data
    write(tmp_path / "test.csv", [["1.5", "violet", "7", rows[0][3]], ["", "red", "8", rows[1][3]]])
    settings = {"test": str(tmp_path / "test.csv")} if elsewhere else {}
    with monkeypatch.context() as patch:
        patch.setattr(table, "CACHED_FROM", 2**60)
        plain = load(path, **settings)
        assert "cache" not in {note.what for note in plain.notes}
    first = load(path, **settings)
    kept()
    second = load(path, **settings)
    assert everything(plain) == everything(first) == everything(second)
    assert [note.value for each in (first, second) for note in each.notes if note.what == "cache"] == [
        "decoded",
        "used",
    ]


@pytest.mark.parametrize(
    "change", ["the file", "the test file", "the target", "what is dropped", "what is categorical"]
)
def test_what_a_kept_table_depends_on(data, kept, tmp_path, change):
    path, rows = data
    write(tmp_path / "test.csv", rows[:20])
    settings = {"path": str(path), "target": "kind", "test": str(tmp_path / "test.csv")}
    datasets.load(table.Config(**settings), seed=0)
    if change == "the file":
        write(path, rows[:-1])
    elif change == "the test file":
        write(tmp_path / "test.csv", rows[:30])
    more = {"the target": {"target": "colour", "drop": ["kind"]}, "what is dropped": {"drop": ["row"]}}.get(change, {})
    more = {"categorical": ["size"]} if change == "what is categorical" else more
    if change == "the target":
        with pytest.raises(DataError, match="no value in the target column 'colour'"):
            datasets.load(table.Config(**settings | more), seed=0)
        return
    assert {note.what: note.value for note in datasets.load(table.Config(**settings | more), seed=0).notes}[
        "cache"
    ].startswith("decoded")


@pytest.mark.parametrize("facts", [{"columns": {}}, {"notes": [1]}, {"columns": {"columns": [{"kind": "number"}]}}])
def test_a_kept_table_that_is_damaged_is_read_anew(data, kept, tmp_path, facts):
    path, _ = data
    whole = everything(load(path))
    (meta,) = (tmp_path / "cache").glob("table-*/meta.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"facts": json.loads(meta.read_text())["facts"] | facts}))
    assert everything(load(path)) == whole


def test_a_table_that_is_wrong_is_not_kept(data, kept, tmp_path):
    path, rows = data
    write(path, [*rows, ["x", "red", "1", rows[0][3]]])
    for _ in range(2):
        with pytest.raises(DataError, match=rf"data.csv:{N + 2}: column 'size' contains 'x'"):
            load(path)
    assert list((tmp_path / "cache").glob("*")) == []


IMPOSSIBLE = {
    "labels": lambda arrays, facts: arrays["train-labels"].fill(2**62),
    "rows": lambda arrays, facts: facts["columns"]["columns"].pop(),
    "columns": lambda arrays, facts: facts.update(columns={}),
    "splits": lambda arrays, facts: arrays.update(splits=np.full(len(arrays["train-labels"]), 9)),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_cached_values_that_no_table_has_are_encoded_again(name, data, kept, monkeypatch):
    """They ended in a bug report."""
    opened = table._cache._open_entry

    def tampered(place, key, forms, fact_types, is_valid):
        found = opened(place, key, forms, fact_types, lambda cached: True)
        if found is None:
            return None
        changed = {array: np.array(values) for array, values in found.arrays.items()}
        facts = copy.deepcopy(found.facts)
        IMPOSSIBLE[name](changed, facts)
        assert is_valid(found), "the control"
        return found if is_valid(table._cache.CachedData(changed, facts, found.note)) else None

    path, _ = data
    assert {note.what: note.value for note in load(path).notes}["cache"] == "decoded"
    monkeypatch.setattr(table._cache, "_open_entry", tampered)
    with pytest.raises(MachineError, match="can't be read again"):
        load(path)


def warnings_of(path, **settings):
    return {note.value: note.reason for note in load(path, **settings).notes if note.what == "warning"}


def test_a_copy_of_the_target_is_warned_of(data):
    """The network was right in all rows, and nothing said why."""
    path, rows = data
    kinds = sorted({row[3] for row in rows})
    copies = [[*row, row[3].upper(), 10 * kinds.index(row[3]), 10 * kinds.index(row[3])] for row in rows]
    copies[0][-1] = 10 * ((kinds.index(rows[0][3]) + 1) % len(kinds))
    write(path, copies, ("size", "colour", "row", "kind", "name", "code", "guess"))
    reason = warnings_of(path)["columns name, code"]
    assert reason.startswith("one value for each class of 'kind'")
    assert reason.endswith("drop: ['name', 'code']")


def test_a_word_for_missing_values_that_does_not_occur_is_warned_of(data):
    path, rows = data
    write(path, [["-999", *rows[0][1:]], *rows[1:]], ("size", "colour", "row", "kind"))
    warnings = warnings_of(path, missing=["-999.0", "unkown", "NA"])
    assert "missing 'unkown'" in warnings
