"""nnx predict: its predictions give the metrics of eval, and all errors are printed together."""

import csv
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nnx import checkpoint, config, datasets
from nnx.config import Config
from nnx.errors import DataError
from nnx.inference import classifier as classifiers
from nnx.inference import inputs
from nnx.preprocessing import images
from nnx.system import platform, workers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a short run, and the test images of its dataset as PNG files."""
    import sys

    from nnx.cli import run_command

    folder = tmp_path_factory.mktemp("predict")
    sys.argv = ["nnx", "train", "digits_mlp", "--set", "train.epochs=2", "--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    test = digits().test()
    paths = []
    for n, pixels in enumerate(test.inputs):
        paths.append(folder / f"{n}.png")
        Image.fromarray(pixels[0]).save(paths[-1])
    return folder / "run/checkpoint.pt", paths, test


def digits():
    made: Config = config.load("digits_mlp")
    return datasets.load(made.dataset, seed=made.seed)


def test_it_predicts_what_eval_measures(nnx, trained):
    path, files, test = trained
    result = nnx("predict", path, *files, "--json", "--top", 10)
    assert result.code == 0
    predictions = json.loads(result.out)["predictions"]
    assert [found["input"] for found in predictions] == list(map(str, files))
    measured = json.loads(nnx("eval", path, "--json").out)
    matrix = np.zeros((10, 10), dtype=int)
    for truth, found in zip(test.labels, predictions, strict=True):
        matrix[truth, int(found["label"])] += 1
    assert matrix.tolist() == measured["confusion_matrix"]
    with torch.no_grad():
        expected = classifiers.load(path)(torch.from_numpy(test.inputs))
    for row, found in zip(expected, predictions, strict=True):
        assert set(found) == {"input", "label", "probability", "top", "prepared"}
        assert found["prepared"] == []
        assert found["top"][0] == {"label": found["label"], "probability": found["probability"]}
        probabilities = {each["label"]: each["probability"] for each in found["top"]}
        assert [probabilities[name] for name in "0123456789"] == pytest.approx(row.tolist(), abs=1e-6)
        assert sorted(probabilities.values(), reverse=True) == list(probabilities.values())
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_the_table(nnx, trained):
    path, files, _ = trained
    result = nnx("predict", path, *files[:2], "--top", 2)
    assert result.code == 0
    head, first, second = result.out.splitlines()
    assert head.split() == ["input", "label", "probability", "others"]
    found = json.loads(nnx("predict", path, *files[:2], "--json", "--top", 2).out)["predictions"]
    for line, prediction in zip((first, second), found, strict=True):
        assert line.split()[:2] == [prediction["input"], prediction["label"]]
        assert f"{prediction['probability']:.2%}".replace("%", " %") in line
        assert prediction["top"][1]["label"] in line.split()
        assert len(prediction["top"]) == 2
    assert result.err.startswith("device")
    assert nnx("predict", path, files[0], "-q").err == ""
    assert len(json.loads(nnx("predict", path, files[0], "--json", "--top", 99).out)["predictions"][0]["top"]) == 10


def test_colours_become_gray_and_gray_becomes_colours(nnx, trained, tmp_path):
    path, files, test = trained
    pixels = test.inputs[0][0]
    Image.fromarray(np.dstack([pixels] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([np.zeros_like(pixels), 255 - pixels]), "LA").save(tmp_path / "alpha.png")
    result = nnx("predict", path, files[0], "rgb.png", "deep.png", "alpha.png", "--json")
    first, *others = (found["top"] for found in json.loads(result.out)["predictions"])
    assert others == [first] * 3

    saved = checkpoint.read(path)  # a network for three channels, each a third of the gray one
    first_layer = next(iter(saved.model))
    weights = {**saved.model, first_layer: torch.cat([saved.model[first_layer]] * 3, 1) / 3}
    spec = replace(saved.spec, shape=(3, 8, 8), mean=saved.spec.mean * 3, std=saved.spec.std * 3)
    checkpoint.write(tmp_path / "rgb.pt", replace(saved, spec=spec, model=weights))
    found = json.loads(nnx("predict", "rgb.pt", files[0], "rgb.png", "--json").out)["predictions"]
    for prediction in found:
        assert prediction["probability"] == pytest.approx(first[0]["probability"], abs=1e-5)


def test_all_errors_are_printed_together(nnx, trained, tmp_path):
    path, files, _ = trained
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "none").mkdir()
    Image.new("L", (28, 20)).save(tmp_path / "large.png")
    os.mkfifo(tmp_path / "fifo")
    words = (files[0], "text.png", "empty.png", "large.png", "fifo", "none", "missing.png", "*.jpg", "--json")
    result = nnx("predict", path, *words, "--prepare", "none")
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    expected = [
        "none: is a folder without images",
        "*.jpg: no file matches this pattern",
        "text.png: is not an image",
        "empty.png: is empty",
        "large.png: is 28 wide and 20 high",
        "fifo: ",
        "missing.png: no such",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"error: {start}")
    assert (
        "the network was trained on images 8 wide and 8 high; save it in that size, or use --prepare auto" in result.err
    )
    prepared = nnx("predict", path, *words)
    assert prepared.code == 2
    assert "large.png" not in prepared.err, "an image of another size is prepared"

    result = nnx("predict", path, *["missing.png"] * 50)
    assert len(result.err.splitlines()) == 10
    assert result.err.endswith("... and 41 more\n")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("missing.pt", "a.png"), "missing.pt: no such file"),
        (("CHECKPOINT",), "Missing argument"),
        (("CHECKPOINT", "a.png", "--top", 0), "--top"),
        (("CHECKPOINT", "a.png", "--device", "cuda:77"), "this machine has: cpu"),
        (("CHECKPOINT", "a.png", "--device", "gpu"), "this machine has: cpu"),
        (("CHECKPOINT", "a.png", "--prepare", "all"), "--prepare"),
        (("CHECKPOINT", "a.png", "--json", "--csv"), "use only one of them"),
    ],
)
def test_a_wrong_command_is_2(nnx, trained, words, what):
    result = nnx("predict", *(trained[0] if word == "CHECKPOINT" else word for word in words))
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert what in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "RUN"),
        ("predict", "RUN", "IMAGE"),
        ("explain", "RUN", "--only", "filters", "--out", "OUT"),
        ("trace", "RUN"),
        ("doctor", "IMAGE", "--checkpoint", "RUN"),
    ],
)
def test_a_runs_folder_stands_for_its_checkpoint(words, nnx, trained, tmp_path):
    path, files, _ = trained
    documents = []
    for named in (path, path.parent):
        folder = tmp_path / named.name
        given = {"RUN": named, "IMAGE": files[0], "OUT": folder}
        result = nnx(*(given.get(word, word) for word in words), "--json")
        assert result.code == 0, result.err
        document = json.loads(result.out.replace(str(folder), "OUT").replace(str(path), "RUN"))
        documents.append({key: value for key, value in document.items() if "second" not in key})
    assert documents[0] == documents[1]


def test_a_checkpoint_of_rows_takes_no_images(nnx, trained, tmp_path):
    saved = checkpoint.read(trained[0])
    spec = replace(saved.spec, shape=(64,), mean=(0.0,) * 64, std=(1.0,) * 64, image_statistics=None)
    checkpoint.write(tmp_path / "rows.pt", replace(saved, spec=spec))
    result = nnx("predict", "rows.pt", trained[1][0])
    assert result.code == 2
    assert "was trained on rows of numbers" in result.err


def test_odd_names_move_no_cursor(nnx, trained, tmp_path):
    for name in ("a\x1b[31m.png", os.fsdecode(b"\xff.png")):
        (tmp_path / name).write_bytes(trained[1][0].read_bytes())
        result = nnx("predict", trained[0], name, "-q")
        assert result.code == 0
        assert "\x1b" not in result.out
        assert json.loads(nnx("predict", trained[0], name, "--json").out)["predictions"][0]["input"] == name


# ---------------------------------------------------------------- inputs


def labels(result):
    assert result.code == 0, result.err
    return [(found["input"], found["label"]) for found in json.loads(result.out)["predictions"]]


def test_folders_and_patterns(nnx, trained, tmp_path):
    path, files, _ = trained
    single = dict(labels(nnx("predict", path, *files[:4], "--json")))
    for name, file in zip(("b.png", "in/a.PNG", "in/deeper/c.png", ".hidden/d.png"), files, strict=False):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_bytes(file.read_bytes())
    (tmp_path / "all/notes.txt").write_text("no image")
    (tmp_path / "all/in/Thumbs.db").touch()
    expected = [
        (f"all/{name}", single[str(file)])
        for name, file in zip(("b.png", "in/a.PNG", "in/deeper/c.png"), files, strict=False)
    ]
    result = nnx("predict", path, "all", "--json")
    assert labels(result) == expected
    assert "all: skipped 2 files that are not images" in result.err
    assert labels(nnx("predict", path, "all/**/*.[pP]*", "--json", "-q")) == expected
    assert labels(nnx("predict", path, "a*", "--json")) == expected, "a pattern that a folder fits"
    (tmp_path / "odd[1].png").write_bytes(files[0].read_bytes())
    assert labels(nnx("predict", path, "odd[1].png", "--json"))[0][0] == "odd[1].png", (
        "a file whose name looks like a pattern"
    )


def test_standard_input(nnx, trained, monkeypatch):
    path, files, _ = trained
    expected = labels(nnx("predict", path, files[0], "--json"))[0][1]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(files[0].read_bytes())))
    assert labels(nnx("predict", path, "-", "--json")) == [("-", expected)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert nnx("predict", path, "-").err == "error: standard input: is empty; get the file again\n"


def test_arrays_of_any_form(nnx, trained, tmp_path):
    path, files, test = trained
    images, count = test.inputs[:7, 0], 7
    expected = [label for _, label in labels(nnx("predict", path, *files[:count], "--json"))]
    forms = {
        "nhw": images,
        "nchw": images[:, None],
        "nhwc": images[..., None],
        "rgb": np.repeat(images[..., None], 3, 3),
        "nf": images.reshape(count, 64),
        "float": images.astype(np.float64) / 255,
        "deep": images.astype(np.uint16) * 257,
        "wide": images.astype(np.int64),
        "fortran": np.asfortranarray(images),
    }
    for name, array in forms.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.savez_compressed(tmp_path / f"{name}.npz", array)
        for file in (f"{name}.npy", f"{name}.npz"):
            result = nnx("predict", path, file, "--json")
            assert labels(result) == [(f"{file}[{n}]", label) for n, label in enumerate(expected)], file
            assert ("values from 0 to 1 are scaled to 0 to 255" in result.err) == (name == "float")
    np.save(tmp_path / "one.npy", images[0])
    assert labels(nnx("predict", path, "one.npy", "--json")) == [("one.npy[0]", expected[0])]
    np.savez(tmp_path / "many.npz", x_train=images[:1], x_test=images, y_test=np.arange(count))
    result = nnx("predict", path, "many.npz", "--json")
    assert [label for _, label in labels(result)] == expected
    assert "many.npz: x_test is the input, of x_test, x_train, y_test" in result.err
    np.savez(tmp_path / "pair.npz", pictures=images, labels=np.arange(count))
    assert [label for _, label in labels(nnx("predict", path, "pair.npz", "--json"))] == expected


def test_invalid_arrays(nnx, trained, tmp_path):
    path, *_ = trained
    np.save(tmp_path / "odd.npy", np.zeros((3, 5)))
    np.save(tmp_path / "text.npy", np.array([["a"] * 64]))
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(tmp_path / "nan.npy", np.full((2, 8, 8), np.nan))
    np.save(tmp_path / "negative.npy", np.full((2, 8, 8), -1))
    np.save(tmp_path / "five.npy", np.zeros((2, 8, 8, 5), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "which.npz", a=np.zeros((1, 8, 8)), b=np.zeros((1, 8, 8)))
    np.save(tmp_path / "cut.npy", np.zeros((9, 8, 8), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-100])
    wrong = {
        "odd.npy": "has the shape 3 x 5; the network was trained on images",
        "text.npy": "values of type <U1; give it numbers",
        "none.npy": "no values",
        "nan.npy": "row 0 contains an infinite number or NaN",
        "negative.npy": "from -1 to -1",
        "five.npy": "has 5 channels",
        "objects.npy": "",
        "which.npz": "contains a, b; call the input x_test",
        "cut.npy": "is damaged or cut short",
    }
    result = nnx("predict", path, *wrong)
    assert result.code == 2
    assert result.out == ""
    for line, (name, words) in zip(result.err.splitlines(), wrong.items(), strict=True):
        assert line.startswith(f"error: {name}")
        assert words in line
    large = tmp_path / "large.npy"
    np.save(large, np.zeros((2, 9, 9), np.uint8))
    assert nnx("predict", path, large).code == 0
    assert "is 9 wide and 9 high" in nnx("predict", path, large, "--prepare", "none").err


def test_rows_of_an_array(nnx, trained, tmp_path):
    saved = checkpoint.read(trained[0])
    spec = replace(saved.spec, shape=(64,), mean=(0.0,) * 64, std=(1.0,) * 64, image_statistics=None)
    checkpoint.write(tmp_path / "rows.pt", replace(saved, spec=spec))
    rows = np.random.default_rng(0).normal(0, 1, (600, 64))
    np.save(tmp_path / "rows.npy", rows)
    found = json.loads(nnx("predict", "rows.pt", "rows.npy", "--json").out)["predictions"]
    with torch.no_grad():
        expected = classifiers.load(tmp_path / "rows.pt")(torch.from_numpy(rows).float())
    assert [each["label"] for each in found] == [str(k) for k in expected.argmax(1).tolist()]
    assert [each["probability"] for each in found] == pytest.approx(expected.max(1).values.tolist(), abs=1e-6)
    assert set(found[0]) == {"input", "label", "probability", "top"}, "rows are not prepared"
    np.save(tmp_path / "short.npy", rows[:, :5])
    assert (
        "has the shape 600 x 5; the network was trained on rows of 64 numbers"
        in nnx("predict", "rows.pt", "short.npy").err
    )


# ---------------------------------------------------------------- output


def test_csv(nnx, trained, tmp_path):
    path, files, _ = trained
    (tmp_path / 'a "quoted", name.png').write_bytes(files[0].read_bytes())
    Image.fromarray(np.kron(255 - np.asarray(Image.open(files[1])), np.ones((9, 9), np.uint8))).save(
        tmp_path / "large.png"
    )
    names = ('a "quoted", name.png', "large.png")
    header, *rows = csv.reader(io.StringIO(nnx("predict", path, *names, "--csv", "--top", 2).out))
    assert header == ["input", "label", "probability", "label_2", "probability_2", "prepared"]
    found = json.loads(nnx("predict", path, *names, "--json", "--top", 2).out)["predictions"]
    for row, each in zip(rows, found, strict=True):
        ranked = [value for one in each["top"] for value in (one["label"], str(one["probability"]))]
        assert row == [each["input"], *ranked, "; ".join(each["prepared"])]
    assert rows[1][-1].startswith("inverted; ")
    assert nnx("predict", path, names[0], "--csv", "--top", 1).out.startswith("input,label,probability,prepared\n")


def test_the_preparation_is_printed(nnx, trained, tmp_path):
    path, files, _ = trained
    (tmp_path / "many").mkdir()
    for n, file in enumerate(files[:12]):
        large = np.kron(255 - np.asarray(Image.open(file)), np.ones((9, 9), np.uint8))
        Image.fromarray(large).save(tmp_path / f"many/{n}.png")
    result = nnx("predict", path, files[0], "many/0.png", "--json")
    as_it_is, prepared = (found["prepared"] for found in json.loads(result.out)["predictions"])
    assert as_it_is == []
    assert prepared[0] == "inverted"
    assert f"many/0.png prepared: {'; '.join(prepared)}" in result.err.splitlines()
    assert "prepared" not in nnx("predict", path, "many/0.png", "-q").err
    result = nnx("predict", path, "many", *files[:3])
    (line,) = [line for line in result.err.splitlines() if line.startswith("prepared")]
    assert line.startswith("prepared 12 of 15 images: inverted 12, ")


def test_an_old_checkpoint_has_no_image_statistics_and_says_so(nnx, trained, tmp_path):
    path, files, _ = trained
    saved = checkpoint.read(path)
    checkpoint.write(tmp_path / "old.pt", replace(saved, spec=replace(saved.spec, image_statistics=None)))
    Image.fromarray(np.kron(np.asarray(Image.open(files[0])), np.ones((5, 5), np.uint8))).save(tmp_path / "large.png")
    (found,) = json.loads(nnx("predict", "old.pt", "large.png", "--json").out)["predictions"]
    assert found["prepared"] == [
        "resized from 40x40, and no more: the checkpoint does not say what its images look like"
    ]
    many = nnx("predict", "old.pt", *["large.png"] * 11)
    assert (
        "prepared 11 of 11 images: resized 11 (--json lists them); "
        "the checkpoint does not say what its images look like\n" in many.err
    )
    small = images.to_size(images.decode(tmp_path / "large.png"), 8, 8, "pad")
    with torch.no_grad():
        batch = torch.from_numpy(small.transpose(2, 0, 1)[None].copy())
        probabilities = classifiers.load(tmp_path / "old.pt")(batch)[0]
    assert (found["label"], found["probability"]) == (
        str(int(probabilities.argmax())),
        pytest.approx(float(probabilities.max()), abs=1e-6),
    )


def test_images_are_read_one_batch_at_a_time(trained, tmp_path, monkeypatch):
    """Memory holds one batch of images of the network's size, however many and large the files are."""
    path, files, _ = trained
    monkeypatch.setattr(inputs, "BATCH", 10)
    read = []
    real = inputs._read_image
    monkeypatch.setattr(inputs, "_read_image", lambda file, *more: read.append(file) or real(file, *more))
    input_set = inputs.InputSet([str(file) for file in files[:95]], classifiers.load(path).spec)
    sizes = []
    for batch in input_set.batches():
        sizes.append(len(batch.names))
        assert batch.inputs.shape == (sizes[-1], 1, 8, 8)
        assert len(read) == sum(sizes), "no more than this batch has been read yet"
    assert sizes == [10] * 9 + [5]


def test_all_cores_give_the_same_result(trained, tmp_path, monkeypatch):
    path, files, _ = trained
    spec = classifiers.load(path).spec
    (tmp_path / "text.png").write_text("no image")
    names = [*map(str, files[:40]), str(tmp_path / "text.png"), *map(str, files[40:60])]

    def results():
        input_set = inputs.InputSet(names, spec)
        with pytest.raises(DataError) as caught:
            list(input_set.batches())
        input_set = inputs.InputSet(names[:40] + names[41:], spec)
        batches = [(batch.names, batch.inputs.tolist(), batch.prepared) for batch in input_set.batches()]
        return str(caught.value), batches

    alone = results()
    monkeypatch.setattr(inputs, "PATIENCE", 0.0)
    monkeypatch.setattr(platform, "cores", lambda: 2)
    used = []
    real = workers.map_in_processes
    monkeypatch.setattr(workers, "map_in_processes", lambda *all_of_it: used.append(1) or real(*all_of_it))
    assert results() == alone
    assert used == [1, 1]


# ---------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The checkpoint of a network trained on a table with numbers, categories and missing values, and the table."""
    import sys

    import polars as pl

    from nnx.cli import run_command

    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    kind, size = rng.choice(["round", "flat"], 200), rng.normal(0, 1, 200)
    rows = {
        "size": [f"{n:.3f}" if n < 1.5 else "" for n in size],
        "kind": kind,
        "good": np.where((size > 0) ^ (kind == "flat"), "yes", "no"),
    }
    pl.DataFrame(rows).write_csv(folder / "data.csv")
    settings = [
        f"dataset={{name: table, path: {folder / 'data.csv'}, target: good}}",
        "model={name: mlp, hidden: [16]}",
        "train.epochs=5",
    ]
    (folder / "a.yaml").write_text("dataset: {name: table, path: x, target: good}\nmodel: mlp\n")
    sys.argv = ["nnx", "train", str(folder / "a.yaml"), *(word for each in settings for word in ("--set", each))]
    sys.argv += ["--out", str(folder / "run"), "-q", "--json"]
    assert run_command() == 0
    return folder / "run/checkpoint.pt", folder / "data.csv"


def test_rows_of_a_table(nnx, table, tmp_path, monkeypatch):
    import polars as pl

    path, data = table
    lines = data.read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join([lines[0], lines[1], "", *lines[2:21]]))  # a blank line is not a row
    found = labels(nnx("predict", path, "some.csv", "--json"))
    assert [name for name, _ in found] == ["some.csv:2", *(f"some.csv:{n}" for n in range(4, 23))]

    saved = checkpoint.read(path)
    whole = pl.read_csv(data, infer_schema=False).with_columns(
        pl.col("size").replace("", None)
    )  # an empty value is missing
    features = saved.spec.columns.apply(saved.spec.columns.encode(whole, "x"), saved.spec.columns)
    with torch.no_grad():
        expected = classifiers.load(path)(torch.from_numpy(features)).argmax(1).tolist()
    assert [label for _, label in found] == [saved.spec.classes[k] for k in expected[:20]]
    assert len({label for _, label in found}) == 2

    frame = pl.read_csv(data).drop("good")
    frame.select("kind", "size").write_parquet(tmp_path / "rows.parquet")  # without the target, in another order
    found = labels(nnx("predict", path, "rows.parquet", "--json"))
    assert found == [(f"rows.parquet, row {n}", saved.spec.classes[k]) for n, k in enumerate(expected, 1)]
    frame.write_csv(tmp_path / "rows.tsv", separator="\t")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "rows.tsv").read_bytes())))
    found = labels(nnx("predict", path, "-", "--json"))
    assert found == [(f"standard input:{n}", saved.spec.classes[k]) for n, k in enumerate(expected, 2)]

    result = nnx("predict", path, "some.csv", "--csv", "--top", 1)
    assert result.out.startswith("input,label,probability\nsome.csv:2,")


def test_tables_that_do_not_match_the_network(nnx, table, tmp_path):
    (tmp_path / "other.csv").write_text("length,kind\n1,round\n")
    (tmp_path / "text.csv").write_text("size,kind\nlarge,round\n")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    np.save(tmp_path / "rows.npy", np.zeros((3, 4)))
    result = nnx("predict", table[0], "other.csv", "text.csv", "a.png", "rows.npy", "missing.csv", ".")
    assert result.code == 2
    assert result.out == ""
    first = [
        "other.csv: has no column 'size'",
        "text.csv:2",
        "a.png: ",
        "rows.npy: ",
        "missing.csv: no such file",
        ".: is a folder",
    ]
    for line, words in zip(result.err.splitlines(), first, strict=True):
        assert line.startswith(f"error: {words}"), line
