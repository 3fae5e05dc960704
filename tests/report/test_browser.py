"""The page in a real browser, headless Chromium, opened from disk with the network off."""

import io
from pathlib import Path

import numpy as np
import pytest
from chromium import needs_chromium, watched_tabs
from PIL import Image

from nnx import config, report
from nnx.run.pipeline import run

LONG = tuple(f"a class with a name of which there is no end {n}" for n in range(12))
HOSTILE = ('<img src=x onerror="hacked=1">', "</script><script>hacked=1</script>", "a' onclick='hacked=1", "plain")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 'nnx[dev]')")
pytestmark = needs_chromium


@pytest.fixture
def visit(browser):
    """Opens a file, with the network off; at the end there must have been no message, no error and no request but for
    the file itself."""
    with watched_tabs(browser) as new_tab:

        def opened(path: Path, width: int = 1100, scheme: str = "light"):
            viewport = {"width": width, "height": 900}
            tab = new_tab(("file:", "data:"), offline=True, color_scheme=scheme, viewport=viewport)
            tab.goto(path.as_uri())
            return tab

        opened.complaints = new_tab.complaints
        yield opened


@pytest.fixture(scope="module")
def filmed(tmp_path_factory) -> Path:
    """The report of a real run, with its film."""
    return _filmed(tmp_path_factory.mktemp("filmed"), "digits_cnn", "model.channels=[8, 8]")


def _filmed(folder: Path, recipe: str, *settings: str) -> Path:
    for _ in run(config.load(recipe, ["train.epochs=2", "train.film=true", *settings]), out=folder / "r"):
        pass
    return folder / "r/report.html"


@pytest.fixture
def made(make, tmp_path):
    """The report of `make`, in a file."""

    def path(**options):
        report.write(tmp_path / "report.html", make(**options))
        return tmp_path / "report.html"

    return path


def pixels_of(element) -> np.ndarray:
    """The pixels of an element, (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))


def shown_cells(tab) -> list[str]:
    return tab.evaluate(
        "[...document.querySelectorAll('.cell')].filter((cell) => cell.checkVisibility()).map((cell) => cell.id)"
    )


def test_a_click_on_a_cell_shows_its_images(visit, make, tmp_path):
    content = make(samples=300)
    report.write(tmp_path / "report.html", content)
    tab = visit(tmp_path / "report.html")
    labels, predicted = content.predictions.labels, content.predictions.predicted
    (first,) = shown_cells(tab)
    matrix = np.array(content.metrics["confusion_matrix"])
    worst = (matrix - np.diag(matrix.diagonal())).max()
    assert matrix[tuple(map(int, first.split("-")[1:]))] == worst, "the most frequent confusion is there at once"
    for true, guess in [
        (3, 3),
        next((i, j) for i in range(10) for j in range(10) if i != j and matrix[i][j] and f"cell-{i}-{j}" != first),
    ]:
        button = tab.locator(f"[data-cell=cell-{true}-{guess}]")
        button.click()
        assert shown_cells(tab) == [f"cell-{true}-{guess}"]
        assert button.get_attribute("aria-expanded") == "true"
        pictures = tab.locator(f"#cell-{true}-{guess} .t")
        assert pictures.count() == min(24, matrix[true][guess])
        for picture in pictures.all()[:3]:
            sample = int(picture.get_attribute("aria-label").split()[1].rstrip(":"))
            assert (labels[sample], predicted[sample]) == (true, guess)
            pixels = pixels_of(picture)
            half = (pixels.shape[0] > 56) / 2  # where the page's layout put it between two pixels of the screen
            middles = (np.arange(8) * 7 + 4 + half).astype(int)  # of 8 pixels, each seven times as large
            assert np.array_equal(pixels[np.ix_(middles, middles)][..., 0], content.samples.inputs[sample, 0])
    button.click()
    assert shown_cells(tab) == []


def test_by_keyboard_too(visit, made):
    tab = visit(made())
    tab.locator("[data-cell=cell-4-4]").focus()
    tab.keyboard.press("Enter")
    assert shown_cells(tab) == ["cell-4-4"]
    tab.locator("[data-cell=cell-5-5]").focus()
    tab.keyboard.press("Space")
    assert shown_cells(tab) == ["cell-5-5"]


def test_a_table_shows_values_instead(visit, made):
    tab = visit(made(shape=(4,), classes=("a", "b", "c")))
    tab.locator("[data-cell=cell-0-0]").click()
    rows = tab.locator("#cell-0-0 table.rows tbody tr")
    assert 1 <= rows.count() <= 24
    assert len(rows.first.locator("td").all_inner_texts()) == 4 + 4
    assert tab.locator(".t").count() == 0


def test_of_many_classes_the_pairs_are_listed(visit, made):
    tab = visit(made(classes=tuple(f"class {n}" for n in range(100)), samples=1000, sharpness=0.5))
    assert len(shown_cells(tab)) == 1
    second = tab.locator("[data-cell]").nth(1)
    second.click()
    assert shown_cells(tab) == [second.get_attribute("data-cell")]
    assert tab.locator(f"#{second.get_attribute('data-cell')} .t").first.is_visible()
    assert tab.locator(".map img").is_visible()


def test_the_table_of_classes_sorts(visit, made):
    tab = visit(made())
    recalls = "[...document.querySelectorAll('#per-class tbody tr')].map((row) => parseFloat(row.cells[2].textContent))"
    unsorted = tab.evaluate(recalls)
    tab.locator("#per-class th button", has_text="recall").click()
    assert tab.evaluate(recalls) == sorted(unsorted) != unsorted
    tab.locator("#per-class th button", has_text="recall").click()
    assert tab.evaluate(recalls) == sorted(unsorted, reverse=True)
    tab.locator("#per-class th button", has_text="class").click()
    assert tab.evaluate(recalls) == unsorted


CANVASES = ("filters", "embedding", "confusion", "accuracy")


def drawn(tab) -> dict[str, str]:
    return {name: tab.evaluate(f"document.getElementById('film-{name}').toDataURL()") for name in CANVASES}


def test_the_slider_moves_through_the_film(visit, filmed):
    tab = visit(filmed)
    last, slider = drawn(tab), tab.locator("#film-frame")
    frames = int(slider.get_attribute("max"))
    steps = tab.evaluate("JSON.parse(document.getElementById('data').textContent).film.steps")
    assert len(steps) == frames + 1
    assert f"step {steps[-1]}" in tab.locator("#film-caption").inner_text()
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    assert f"step {steps[-2]}," in tab.locator("#film-caption").inner_text()
    before = drawn(tab)
    assert all(before[name] != last[name] for name in ("filters", "embedding", "accuracy"))
    tab.keyboard.press("Home")
    first = drawn(tab)
    assert all(first[name] != before[name] for name in CANVASES)
    assert "step 0," in tab.locator("#film-caption").inner_text()
    tab.keyboard.press("End")
    assert drawn(tab) == last
    box = slider.bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert abs(int(slider.input_value()) - frames / 2) <= 1


def test_the_film_plays_from_its_beginning_to_its_end(visit, filmed):
    tab = visit(filmed)
    tab.evaluate("void (setInterval = ((set) => (run) => set(run, 1))(setInterval))")  # not in real time
    play = tab.locator("#film-play")
    tab.evaluate(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('film-frame').value))"
        ".observe(document.getElementById('film-caption'), {childList: true})"
    )
    play.click()
    playwright.expect(play).to_have_attribute("aria-label", "play")
    frames = int(tab.locator("#film-frame").get_attribute("max"))
    assert [int(value) for value in tab.evaluate("seen")] == list(range(frames + 1))


def test_the_canvas_shows_the_predictions_of_the_network(visit, filmed):
    """The numbers in the confusion matrix of the first frame, recorded from the canvas."""
    tab = visit(filmed)
    tab.evaluate("window.texts = []; void (CanvasRenderingContext2D.prototype.fillText = (text) => texts.push(text))")
    tab.locator("#film-frame").focus()
    tab.keyboard.press("Home")
    written = tab.evaluate("texts")
    film = np.load(filmed.parent / "film.npz")
    counts = np.unique(film["labels"] * 10 + film["predicted"][0], return_counts=True)[1]
    assert sorted(map(int, written[20:])) == sorted(counts.tolist()), "after the two lines of class names"


def test_classes_shown_as_numbers_are_named_beside_them(visit, filmed, tmp_path):
    assert visit(filmed).locator("#film-classes").inner_text() == "0123456789"
    tab = visit(_filmed(tmp_path, "iris_mlp"))
    assert tab.locator("#film-classes").inner_text() == "0 setosa1 versicolor2 virginica"
    tab.evaluate("window.texts = []; void (CanvasRenderingContext2D.prototype.fillText = (text) => texts.push(text))")
    tab.locator("#film-frame").focus()
    tab.keyboard.press("Home")
    assert tab.evaluate("texts")[:6] == ["0", "0", "1", "1", "2", "2"]


def test_the_films_layers_have_the_same_titles_as_elsewhere(visit, filmed):
    titles = visit(filmed).evaluate(
        "[...document.querySelectorAll('#film-layers canvas[title]')].map((canvas) => canvas.title)"
    )
    assert titles[0] == "Layer 1: conv 3×3, 8 filters (stages.0)"


def test_light_and_dark(visit, filmed):
    colours = {}
    for scheme in ("light", "dark"):
        tab = visit(filmed, scheme=scheme)
        paper, ink = (
            tab.evaluate(f"getComputedStyle(document.documentElement).{name}") for name in ("backgroundColor", "color")
        )
        colours[scheme] = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
        assert tab.locator(".chart text").first.evaluate("(text) => getComputedStyle(text).fill") not in (
            paper,
            "rgb(0, 0, 0)",
        )
    assert colours["light"][0] > 700 > 200 > colours["light"][1]
    assert colours["dark"][0] < 200 < 600 < colours["dark"][1]


@pytest.mark.parametrize(
    "options",
    [
        {"classes": LONG, "samples": 200},
        {"classes": tuple("abcdefghijklmnopqrst"), "samples": 2000},
        {"classes": tuple(f"class {n}" for n in range(100)), "samples": 500},
        {"shape": (40,), "classes": LONG},
        {"shape": (3, 200, 60), "samples": 60},
        {"classes": ("x" * 300, "y")},
    ],
    ids=["long names", "twenty classes", "a hundred classes", "a table", "tall images", "names without a space"],
)
def test_a_phone_needs_no_scrolling_sideways(visit, made, options):
    tab = visit(made(**options), width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_class_names_stay_on_one_line_on_a_phone(visit, made):
    classes = ("T-shirt/top", "Trouser", "Ankle boot", "Sandal")
    tab = visit(made(classes=classes), width=390)
    heights = tab.evaluate(
        "[...document.querySelectorAll('#per-class td.name')].map((cell) => cell.getBoundingClientRect().height)"
    )
    assert max(heights) - min(heights) < 2
    width = tab.evaluate("document.querySelector('#per-class').scrollWidth")
    assert width <= tab.evaluate("document.querySelector('#per-class').parentElement.clientWidth"), (
        "all columns visible"
    )


def test_names_of_classes_stand_upright_above_the_matrix(visit, made):
    tab = visit(made(classes=("T-shirt/top", "Trouser", "Ankle boot")), width=390)
    assert tab.locator(".matrix thead th").all_inner_texts()[1:] == ["T-shirt/top", "Trouser", "Ankle boot"]
    box = tab.locator(".matrix thead .turned span").first.bounding_box()
    assert box["height"] > 2 * box["width"]


def test_a_run_with_its_film_fits_a_phone_too(visit, filmed):
    tab = visit(filmed, width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("#film-frame").bounding_box()["width"] > 200
    smallest = tab.evaluate(
        "Math.min(...[...document.querySelectorAll('.matrix button')].map((b) => b.getBoundingClientRect().width))"
    )
    assert smallest >= 24, "a finger must hit it"


def test_hostile_names_run_nothing(visit, made):
    tab = visit(made(classes=HOSTILE))
    for button in tab.locator("[data-cell]").all():
        button.click()
    assert tab.evaluate("typeof hacked") == "undefined"
    assert tab.locator("#per-class").inner_text().count("hacked=1") == 3


def test_the_control_a_script_that_got_in_would_not_run(visit, make, tmp_path):
    text = report.render(make()).replace(
        "</main>", "<script>hacked = 1</script><img src=x onerror='hacked = 1'></main>"
    )
    (tmp_path / "report.html").write_text(text)
    tab = visit(tmp_path / "report.html")
    assert tab.evaluate("typeof hacked") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
