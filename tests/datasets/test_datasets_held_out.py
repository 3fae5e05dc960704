"""`validation: 0` and `test: 0`: every dataset trains on all of its samples, or refuses in one line."""

import numpy as np
import pytest
from pictures import listed, tree

from nnx import config, datasets
from nnx.config import registry
from nnx.datasets import DatasetConfig, _user_data
from nnx.errors import ConfigError, DataError, InputError

RNG = np.random.default_rng(0)


def table(path, *splits):
    """A table of two columns, with a row for each of `splits`, if given; else 40 rows."""
    rows = [["x", "y", *(["split"] if splits else [])]]
    rows += [[f"{RNG.normal():.3f}", "ab"[n % 2], *splits[n : n + 1]] for n in range(len(splits) or 40)]
    return {"name": "table", "path": str(listed(path, rows)), "target": "y"}


def arrays(path, *parts):
    """An archive with these splits of 40 images each; with none, one set of 40."""
    labels = np.arange(40) % 4
    names = [f"_{part}" for part in parts] or [""]
    images = {name: RNG.integers(0, 256, (40, 6, 6), dtype=np.uint8) for name in names}
    np.savez(path, **{f"x{k}": v for k, v in images.items()}, **{f"y{k}": labels for k in images})
    return {"name": "arrays", "path": str(path)}


def idx(folder):
    folder.mkdir()
    images = RNG.integers(0, 256, (40, 6, 6), dtype=np.uint8)
    head = bytes([0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 6, 0, 0, 0, 6])
    (folder / "images-idx3-ubyte").write_bytes(head + images.tobytes())
    (folder / "labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 40]) + bytes(range(4)) * 10)
    return {"name": "idx", "path": str(folder / "images-idx3-ubyte")}


def images(folder):
    return {"name": "folder", "path": str(tree(folder, {"cat": 22, "dog": 18}))}


def image_list(folder, *splits):
    tree(folder, {"cat": 20, "dog": 20})
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    rows = [
        [str(file), file.parent.name, *([splits[n % len(splits)]] if splits else [])] for n, file in enumerate(files)
    ]
    head = ["file", "label", *(["split"] if splits else [])]
    return {"name": "folder", "path": str(listed(folder / "list.csv", [head, *rows]))}


OWN = {
    "table": lambda path: table(path / "t.csv"),
    "table with a column split": lambda path: table(path / "t.csv", *["train"] * 40),
    "arrays": lambda path: arrays(path / "a.npz"),
    "idx": lambda path: idx(path / "idx"),
    "folder": lambda path: images(path / "pictures"),
    "list": lambda path: image_list(path / "listed"),
    "list with a column split": lambda path: image_list(path / "listed", "train"),
}


def load(section, **keys):
    text = config.from_dict({"dataset": section | keys, "model": "mlp"}, "own.yaml")
    return datasets.load(text.dataset, seed=0)


@pytest.mark.parametrize("kind", OWN)
def test_own_data_trains_on_everything(kind, tmp_path):
    section = OWN[kind](tmp_path)
    whole = load(section, validation=0, test=0)
    assert (len(whole.train), whole.validation, whole.test) == (40, None, None)
    assert whole.split_names == ("train",)
    for key in ("validation", "test"):
        with pytest.raises(InputError, match=rf"^{key} split: the dataset has none \(dataset\.{key}: 0\); use --split"):
            whole.split(key)
    no_test = load(section, validation=8, test=0)
    assert (len(no_test.train), len(no_test.validation), no_test.test) == (32, 8, None)
    assert no_test.split_names == ("validation", "train")
    no_validation = load(section, validation=0.0, test=10)
    assert (len(no_validation.train), no_validation.validation, len(no_validation.test())) == (30, None, 10)
    both = load(section, validation=8, test=10)
    assert (len(both.train), len(both.validation), len(both.test())) == (22, 8, 10), "the control"
    assert both.split_names == ("test", "validation", "train")


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "toy"])
def test_packaged_data_trains_on_all_but_its_test_samples(name):
    usual = load({"name": name})
    whole = load({"name": name}, validation=0)
    assert whole.validation is None
    assert len(whole.train) == len(usual.train) + len(usual.validation)
    assert np.array_equal(whole.test().labels, usual.test().labels)


def test_mnist_trains_on_all_60000(real_mnist):
    assert len(load({"name": "mnist", "root": real_mnist}, validation=0).train) == 60_000


@pytest.mark.parametrize(
    "name", [name for name in registry.names("dataset") if "test" not in registry.find("dataset", name).model_fields]
)
def test_official_test_samples_are_never_trained_on(name):
    with pytest.raises(ConfigError) as caught:
        config.from_dict({"dataset": {"name": name, "test": 0}, "model": "mlp"}, "c.yaml")
    message = "this dataset has its own test samples, which nnx never trains on; remove the key"
    assert str(caught.value) == f"c.yaml: dataset.test: {message}"


def test_every_dataset_is_of_one_of_these_two_kinds():
    own = {name for name in registry.names("dataset") if "test" in registry.find("dataset", name).model_fields}
    assert own == {"arrays", "folder", "idx", "table"}
    assert all(issubclass(registry.find("dataset", name), DatasetConfig) for name in registry.names("dataset"))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda path: table(path / "t.csv", *["train", "train", "val", "val"] * 10), "validation"),
        (lambda path: table(path / "t.csv", *["train", "train", "test", "test"] * 10), "test"),
        (lambda path: image_list(path / "l", "train", "train", "Valid"), "validation"),
        (lambda path: image_list(path / "l", "train", "train", "TEST"), "test"),
        (lambda path: arrays(path / "a.npz", "train", "val"), "validation"),
        (lambda path: arrays(path / "a.npz", "train", "test"), "test"),
    ],
)
def test_data_that_marks_its_own_samples_refuses_0_and_names_the_cure(make, key, tmp_path):
    section = make(tmp_path)
    other = {"validation": "test", "test": "validation"}[key]
    with pytest.raises(ConfigError) as caught:
        load(section, **{key: 0})
    assert f"dataset.{key}: 0 does not apply: {section['path']} has its own {key} data" in str(caught.value)
    assert f"remove dataset.{key}, or make the {key} data part of the training data" in str(caught.value)
    marked = load(section, **{other: 0})
    assert key in marked.split_names
    assert other not in marked.split_names
    like = marked.spec
    text = config.from_dict({"dataset": section | {key: 0}, "model": "mlp"}, "own.yaml")
    assert key in datasets.load(text.dataset, seed=0, like=like).split_names, "a network may be evaluated on such data"


def test_a_class_of_one_row_trains_where_nothing_is_set_aside(tmp_path):
    rows = [["x", "y"], *([str(n), "ab"[n % 2]] for n in range(20)), ["7", "rare"]]
    section = {"name": "table", "path": str(listed(tmp_path / "t.csv", rows)), "target": "y"}
    assert len(load(section, validation=0, test=0).train) == 21
    with pytest.raises(DataError, match="class 'rare' has only this row"):
        load(section, validation=0)


@pytest.mark.parametrize("value", [-1, -0.5, 1.0, True, None, "none"])
@pytest.mark.parametrize("key", ["validation", "test"])
def test_other_values_are_refused_and_0_is_named(key, value):
    if key == "test" and value == "none":
        return  # a path
    with pytest.raises(ConfigError, match="or 0 for none, not"):
        load({"name": "arrays", "path": "a.npz"}, **{key: value})


def test_a_fraction_that_rounds_to_no_sample_is_an_error_that_names_0(tmp_path):
    section = table(tmp_path / "t.csv")
    for key in ("validation", "test"):
        with pytest.raises(ConfigError, match=f"dataset.{key}.* or 0 for none"):
            load(section, **{key: 0.001})


def test_set_aside_nothing_leaves_the_notes_of_the_others():
    samples = datasets.Split(np.zeros((4, 2)), np.array([0, 1, 0, 1]))
    source = _user_data.split_off_test(samples, 0, ("a", "b"), "here", notes=["note"])
    assert source.test is None
    assert source.notes == ("note",)
