"""The page against scikit-learn and plain loops; names that would break out of it; shapes, classes and sizes of every
kind."""

import base64
import dataclasses
import io
import re
import time

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics as sk

from nnx import checkpoint, config, report
from nnx.errors import MachineError
from nnx.explain import _titles
from nnx.report import _charts, _samples, _sheet
from nnx.run.pipeline import run
from nnx.training import film

MAX_BYTES = 5_000_000
MAX_SECONDS = 3.0  # of the processor, which is what two quiet cores would take at most
HOSTILE = (
    "</script><script>hacked=1</script>",
    '"><img src=x onerror="hacked=1">',
    "{{ 7*7 }}",
    "$\\frac{1}{$",
    "<!--",
    "</title></style><script>hacked=1</script>",
    "\u2028' onmouseover='hacked=1",
    "a" * 200,
    "ゼロ",
    "&lt;b&gt;",
)


def of(text, kind=float):
    return kind(text.replace("%", "").replace(",", ""))


# ---------------------------------------------------------------- figures


def test_the_figures_are_scikit_learns(make, page):
    content = make(samples=500)
    found = page(report.render(content))
    labels, predicted = content.predictions.labels, content.predictions.probabilities.argmax(1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    data = found.data["figures"]
    assert data["accuracy"] == sk.accuracy_score(labels, predicted)
    assert data["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    assert [row["precision"] for row in data["per_class"]] == pytest.approx(precision)
    wilson = stats.binomtest(int((labels == predicted).sum()), 500).proportion_ci(method="wilson")
    assert data["accuracy_interval"] == pytest.approx([wilson.low, wilson.high], abs=1e-6)
    head, *rows, mean = found.table("per-class")
    assert [text for text in head if text][:3] == ["class", "precision", "recall"]
    for k, row in enumerate(rows):
        assert row[0] == str(k)
        assert [of(row[n]) for n in (1, 2, 4)] == pytest.approx(
            [100 * each[k] for each in (precision, recall, f1)], abs=0.0051
        )
        assert of(row[5], int) == support[k]
    macro = sk.precision_recall_fscore_support(labels, predicted, average="macro")
    assert [of(mean[n]) for n in (1, 2, 4)] == pytest.approx([100 * each for each in macro[:3]], abs=0.0051)
    visible = "".join(found.text)
    assert f"{100 * data['accuracy']:.2f} %" in visible
    assert f"{(labels == predicted).sum()} of 500 images classified correctly" in visible


def test_the_matrix_is_scikit_learns(make, page):
    content = make(samples=500)
    found = page(report.render(content))
    expected = sk.confusion_matrix(content.predictions.labels, content.predictions.probabilities.argmax(1))
    _, *rows = found.table("matrix")
    assert [[int(cell.replace("·", "0")) for cell in row[1:]] for row in rows] == expected.tolist()
    assert (expected == 0).any(), "the control: there are empty cells too"


def test_behind_each_cell_are_its_samples(make, page):
    content = make(samples=500)
    text = report.render(content)
    labels, predicted, sure = (
        content.predictions.labels,
        content.predictions.predicted,
        content.predictions.probabilities.max(1),
    )
    buttons = [attributes for attributes in page(text).all("button") if "data-cell" in attributes]
    assert len(buttons) == np.count_nonzero(sk.confusion_matrix(labels, predicted))
    for button in buttons:
        true, guess = map(int, re.fullmatch(r"cell-(\d+)-(\d+)", button["data-cell"]).groups())
        panel = re.search(
            rf'<div class="cell" id="{button["data-cell"]}" hidden>(.*?)</div>\s*</div>', text, re.DOTALL
        )[1]
        shown = [int(n) for n in re.findall(r'aria-label="sample (\d+): label', panel)]
        inside = np.flatnonzero((labels == true) & (predicted == guess))
        assert len(shown) == min(len(inside), 24)
        assert f"{len(inside)} image" in panel
        assert ("24 shown" in panel) == (len(inside) > 24)
        order = sorted(inside.tolist(), key=lambda n: (sure[n] if true == guess else -sure[n], n))
        assert shown == order[: len(shown)]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(1, "There is one mistake. Its label may be wrong."), (2, "All 2 mistakes, most confident first.")],
)
def test_the_text_for_one_mistake(make, wrong, text):
    content = make(sharpness=100.0)
    content.predictions.labels[:wrong] = (content.predictions.labels[:wrong] + 1) % 10
    page = report.render(content)
    assert text in page
    first = re.search(r'<div class="cell"[^>]*><h3>(?:(?!</h3>).)*predicted as.*?</h3>', page)[0]
    assert "1 image" in first
    assert "confident first" not in first


def test_the_galleries_show_what_they_say(make):
    content = make(samples=400)
    labels, probabilities = content.predictions.labels, content.predictions.probabilities
    wrong = sorted(
        (n for n in range(400) if probabilities[n].argmax() != labels[n]), key=lambda n: -probabilities[n].max()
    )
    right = sorted(
        (n for n in range(400) if probabilities[n].argmax() == labels[n]), key=lambda n: probabilities[n].max()
    )
    assert _samples.most_confident_mistakes(content.predictions) == wrong[:24]
    assert _samples.least_confident_hits(content.predictions) == right[:24]
    section = re.search(r'<section id="mistakes">(.*?)</section>', report.render(content), re.DOTALL)[1]
    assert [int(n) for n in re.findall(r'aria-label="sample (\d+): label', section)] == wrong[:24]
    worst = wrong[0]
    label, most = labels[worst], probabilities[worst].argmax()
    share = f"{100 * probabilities[worst][label]:.1f}\xa0%"
    caption = f'true <b>{label}</b> <small>{share}</small><br>pred. <b class="wrong">{most}</b>'
    assert caption in section


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 10, 20), (2, 28, 28), (1, 100, 60)])
def test_a_thumbnail_is_the_sample(make, shape):
    content = make(shape=shape, samples=40)
    images = content.samples.inputs
    sheet = _sheet.build(images, [7, 3, 7, 39])
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(sheet.url.split(",")[1]))).convert("RGB"))
    assert sheet.positions == {7: 0, 3: 1, 39: 2}
    for sample in (7, 3, 39):
        top, left = sheet.y(sample) * sheet.height, sheet.x(sample) * sheet.width
        found = pixels[top : top + sheet.height, left : left + sheet.width]
        shown = images[sample][:3] if shape[0] >= 3 else images[sample][:1].repeat(3, 0)
        if max(shape[1:]) <= 48:
            assert np.array_equal(found, shown.transpose(1, 2, 0))
        else:
            assert found.shape == (48, round(48 * shape[2] / shape[1]), 3)
            assert found.mean() == pytest.approx(shown.mean(), rel=0.02)


def test_the_calibration_is_that_of_a_plain_loop(make):
    content = make(samples=500, sharpness=1.0)
    titles = re.findall(
        r"<title>confidence (\d+) to (\d+) %: ([\d,]+) of 500 samples, mean confidence ([\d.]+) %, accuracy ([\d.]+) %",
        report.render(content),
    )
    found = {int(low): (of(count, int), float(sure), float(right)) for low, _, count, sure, right in titles}
    expected = {}
    for b in range(15):
        inside = [n for n in range(500) if b / 15 < content.predictions.probabilities[n].max() <= (b + 1) / 15]
        if inside:
            sure = np.mean([content.predictions.probabilities[n].max() for n in inside])
            right = np.mean(
                [content.predictions.probabilities[n].argmax() == content.predictions.labels[n] for n in inside]
            )
            expected[round(100 * b / 15)] = (
                len(inside),
                pytest.approx(100 * sure, abs=0.0051),
                pytest.approx(100 * right, abs=0.0051),
            )
    assert found == expected
    assert len(found) > 5


def test_the_curves_run_through_the_epochs_figures(make):
    """A point's place is where a ruler would put it: between two ticks of the axis, in proportion."""
    content = make(epochs=5)
    svg = report.render(content)
    points = re.findall(
        r'class="validation dot" cx="([\d.]+)" cy="([\d.]+)" r="3"><title>validation, epoch (\d+): ([\d.]+) %', svg
    )
    assert [float(value) for *_, value in points] == pytest.approx(
        [100 * (1 - 0.5 / n) for n in range(1, 6)], abs=0.0051
    )
    x, y = ([float(point[n]) for point in points] for n in (0, 1))
    values = [float(point[3]) for point in points]
    assert x == pytest.approx(np.linspace(x[0], x[-1], 5), abs=0.06)
    assert y == pytest.approx(np.interp(values, [values[0], values[-1]], [y[0], y[-1]]), abs=0.1)
    assert y[0] > y[-1], "up is more"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.971, 0.994), (3, 3.0001), (-2, 7), (1e-9, 5e-9), (0, 12345)])
def test_ticks_are_few_round_and_within(low, high):
    axis = _charts.Axis(low, high, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-12) for tick in ticks)
    steps = np.diff(ticks)
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f"{steps[0]:e}"[0] in "125"


# ---------------------------------------------------------------- what must not happen


def elements(found):
    return [
        tag
        for tag, _ in found.elements
        if tag in ("script", "img", "style", "title", "section", "link", "iframe", "base")
    ]


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
@pytest.mark.parametrize("classes", [HOSTILE, HOSTILE * 3])
def test_hostile_names_stay_text(make, page, shape, classes, pictured):
    classes = tuple(f"{name}{n}" for n, name in enumerate(classes))
    plain = page(report.render(make(shape=shape, classes=tuple(map(str, range(len(classes)))))))
    found = page(report.render(make(shape=shape, classes=classes)))
    assert elements(found) == elements(plain)
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    visible = "".join(found.text)
    for name in classes:
        assert name in visible
    assert [row["label"] for row in found.data["figures"]["per_class"]] == list(classes)


def test_the_control_without_escaping_they_would_break_out(make, page, monkeypatch):
    import jinja2

    careful = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **options: careful(**options | {"autoescape": False}))
    found = page(report.render(make(classes=tuple(name for name in HOSTILE if name != "<!--"))))
    assert len(found.all("script")) > 2


def test_nothing_is_loaded_and_only_its_own_script_runs(make, page):
    import hashlib

    found = page(report.render(make()))
    (policy,) = (
        attributes["content"]
        for attributes in found.all("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    data, script = found.scripts
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert data.startswith("{")
    for _, attributes in found.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))


# ---------------------------------------------------------------- all kinds of data


def names(K):
    return tuple(f"class {k}" for k in range(K))


CASES = {
    "as large as MNIST": {"shape": (1, 28, 28), "samples": 10_000, "model": "{name: mlp, hidden: [256, 128]}"},
    "two classes": {"classes": ("no", "yes"), "samples": 50},
    "one of two classes is never predicted": {"classes": ("no", "yes"), "samples": 3},
    "twenty classes": {"classes": names(20), "samples": 600},
    "a hundred classes": {"classes": names(100), "samples": 2000, "shape": (3, 32, 32)},
    "a thousand classes": {"classes": names(1000), "samples": 3000},
    "no mistakes": {"sharpness": 100.0},
    "nothing right": {"sharpness": -100.0},
    "one epoch": {"epochs": 1},
    "a thousand epochs": {"epochs": 1000},
    "no epochs known": {"records": []},
    "one sample": {"samples": 1},
    "a table": {"shape": (5,), "classes": names(3)},
    "a wide table": {"shape": (300,), "classes": names(3)},
    "two features": {"shape": (2,), "classes": names(3), "model": "{name: mlp, hidden: [32, 32]}"},
    "colour": {"shape": (3, 32, 32), "model": "{name: cnn, channels: [4]}"},
    "large images": {"shape": (3, 200, 300), "samples": 150, "model": "{name: cnn, channels: [4, 4]}"},
    "rows read by a transformer": {"shape": (1, 8, 8), "model": "{name: transformer, patch: 2, width: 16, depth: 1}"},
    "rows read by an rnn": {"shape": (1, 8, 8), "model": "{name: rnn, hidden: 8}"},
    "a table read by an rnn": {"shape": (6,), "model": "{name: rnn, hidden: 8}"},
}


@pytest.mark.parametrize("case", CASES)
def test_all_kinds_of_data_make_a_small_page_in_little_time(make, page, case, pictured):
    content = make(**CASES[case])
    begun = time.process_time()
    text = report.render(content)
    assert time.process_time() - begun < MAX_SECONDS
    assert len(text.encode()) < MAX_BYTES
    found = page(text)
    assert len(found.all("section", id="layers")) == 1
    assert len([a for a in found.all("img") if "confusion" not in a["alt"]]) >= 1, "pictures of the layers"
    predictions = content.predictions
    assert found.data["figures"]["accuracy"] == (predictions.predicted == predictions.labels).mean()
    assert len(found.table("per-class")) == len(content.classes) + 2
    cells = {attributes["data-cell"] for attributes in found.all("button") if "data-cell" in attributes}
    assert cells == {attributes["id"] for attributes in found.all("div") if attributes.get("class") == "cell"}
    if len(content.classes) > _samples.MAX_MATRIX_CLASSES:
        assert len(cells) == 40
        assert not any(a == b for a, b in (cell.removeprefix("cell-").split("-") for cell in cells))
        (image,) = (a["src"] for a in found.all("img") if a.get("alt", "").startswith("confusion matrix"))
        assert Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).size == (len(content.classes),) * 2
    if not content.checkpoint.spec.is_image:
        shown = [row for table in found.tables if table[0][:1] == ["sample"] for row in table[1:]]
        assert shown
        for row in shown:
            assert row[4:] == [f"{value:.4g}" for value in content.samples.inputs[int(row[0])][:12]]


def test_two_features_have_a_decision_boundary_and_maps_of_units_without_a_film(make, page, pictured):
    content = make(shape=(2,), classes=names(3), model="{name: mlp, hidden: [8, 6]}")
    assert content.film is None
    text = report.render(content)
    captions = [image["alt"] for image in page(text).all("img")]
    assert "Decision boundary, filters and activations" in text
    assert [caption for caption in captions if "On" in caption and "of this plane" in caption]
    assert len([caption for caption in captions if "units over the plane" in caption]) == 2
    other = report.render(make(shape=(3,), classes=names(3)))
    assert "Filters and activations" in other
    assert "of this plane" not in other


def test_the_influence_of_columns_is_measured_on_all_samples(make, pictured):
    assert "measured on 300 rows" in report.render(make(shape=(3,), classes=names(3)))


def test_the_largest_page_is_under_5_mb(make, pictured):
    """Noise, which no PNG makes smaller: all that a page can hold of images, and a film as large as they get."""
    content = make(shape=(3, 48, 48), classes=names(20), samples=9000, epochs=400, sharpness=0.0)
    rng = np.random.default_rng(0)
    S = 75
    frames = {
        "step": np.arange(S),
        "places": np.arange(200),
        "labels": content.predictions.labels[:200],
        "sample": content.samples.inputs[0],
        **{key: np.zeros(0) for key in ("low", "high", "points")},
        "predicted": rng.integers(0, 20, (S, 200)).astype(np.uint16),
        "right": rng.random((S, 200)).astype(np.float16),
        "embedding": rng.normal(size=(S, 200, 16)).astype(np.float16),
        "filters": rng.normal(size=(S, 10, 3, 32, 32)).astype(np.float16),
        "layer a": rng.random((S, 16, 28, 28)).astype(np.float16),
    }
    size = len(report.render(dataclasses.replace(content, film=frames)).encode())
    assert 2_000_000 < size < MAX_BYTES


def test_the_page_is_put_in_place_in_one_step(make, tmp_path, monkeypatch):
    path = tmp_path / "deep/report.html"
    report.write(path, make())
    before = path.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        report.write(path, make(samples=20))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_film_that_is_long_is_thinned_for_the_page():
    from nnx.report import _film

    S = 75
    frames = {
        "step": np.arange(S),
        "filters": np.zeros((S, 32, 1, 28, 28)),
        "predicted": np.zeros((S, 200)),
        f"{film.LAYER}x": np.zeros((S, 1, 1, 512)),
    }
    chosen = _film._choose_frames(frames)
    assert chosen[0] == 0
    assert chosen[-1] == S - 1
    assert 30 < len(chosen) < S


# ---------------------------------------------------------------- titles and class names


@pytest.mark.parametrize(
    ("name", "settings", "title"),
    [
        ("mnist_cnn", [], "mnist_cnn on MNIST"),
        ("digits_mlp", [], "digits_mlp on Digits"),
        ("iris_mlp", [], "iris_mlp on Iris"),
        ("spirals_mlp", [], "spirals_mlp on spirals"),
        ("digits_cnn", ["dataset={name: folder, path: pets/cats and dogs}"], "digits_cnn on cats and dogs"),
        ("digits_mlp", ["dataset={name: table, path: people.csv, target: sex}"], "digits_mlp on people.csv"),
        ("digits_mlp", ["dataset={name: fashion_mnist}"], "digits_mlp on Fashion-MNIST"),
        ("digits_mlp", ["dataset={name: emnist, split: letters}"], "digits_mlp on EMNIST"),
    ],
)
def test_a_page_is_titled_by_recipe_and_data(name, settings, title):
    assert _titles.page_title(config.load(name, settings)) == title


@pytest.mark.parametrize(
    ("path", "recipe"),
    [
        ("runs/mnist_cnn-20261128-171251/checkpoint.pt", "mnist_cnn"),
        ("runs/mnist_cnn-20261128-171251-2/last.pt", "mnist_cnn"),
        ("runs/my own-20261128-171251/config.yaml", "my own"),
        ("r/checkpoint.pt", "mlp"),
        ("checkpoint.pt", "mlp"),
        ("my_recipe.yaml", "my_recipe"),
    ],
)
def test_a_config_of_a_run_is_named_after_its_folder_or_architecture(path, recipe):
    values = config.load("digits_mlp").to_dict()
    assert _titles.recipe_name(config.from_dict(values, path)) == recipe


def test_a_run_keeps_the_name_of_its_recipe_in_any_folder(tmp_path):
    settings = config.load("digits_mlp", ["train.epochs=1", "train.report=false"])
    for _ in run(settings, out=tmp_path / "r"):
        pass
    saved = checkpoint.read(tmp_path / "r" / "checkpoint.pt")
    assert _titles.page_title(saved.config) == "digits_mlp on Digits"
    assert config.load(tmp_path / "r" / "config.yaml").to_dict() == settings.to_dict()
    for _ in run(config.load("digits_mlp", ["train.epochs=2"]), resume=tmp_path / "r"):
        pass
    assert _titles.recipe_name(checkpoint.read(tmp_path / "r" / "last.pt").config) == "digits_mlp"


def test_the_name_of_a_recipe_is_one_printable_line(tmp_path):
    values = config.load("digits_mlp").to_dict()
    (tmp_path / "config.yaml").write_text(_titles.named_yaml(config.from_dict(values, "a\nseed: 9\x1b.yaml")))
    assert config.load(tmp_path / "config.yaml").seed == 0
    assert _titles.recipe_name(config.from_dict(values, str(tmp_path / "last.pt"))) == "a\\nseed: 9\\x1b"
    (tmp_path / "config.yaml").write_text("# recipe: " + 300 * "a")
    assert len(_titles.recipe_name(config.from_dict(values, str(tmp_path / "last.pt")))) <= 201


def test_the_heading_is_the_title(make, page):
    settings = config.load("digits_mlp")
    html = report.render(make(config=settings))
    assert "<h1>digits_mlp on Digits</h1>" in html
    assert "<title>digits_mlp on Digits: " in html
    assert " · mlp</p>" in html, "the architecture above it"


@pytest.mark.parametrize("classes", [("cat", "dog"), ("Ankle boot", "T-shirt/top", "Bag")])
def test_the_confusion_matrix_has_the_names_of_the_classes(make, page, classes):
    head, *rows = page(report.render(make(classes=classes))).table("matrix")
    assert tuple(head[1:]) == classes
    assert tuple(row[0] for row in rows) == classes
