"""The page in headless Chromium: what is drawn is read, and nothing leaves 127.0.0.1."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import needs_chromium, watched_tabs
from PIL import Image
from serve.conftest import Served, serving, train, wait_for

SEEN = ".card .seen canvas"
# strokes as shares of the sheet
DIGITS = {
    "3": [
        [
            (0.3, 0.2),
            (0.5, 0.14),
            (0.68, 0.25),
            (0.6, 0.42),
            (0.45, 0.48),
            (0.64, 0.54),
            (0.7, 0.7),
            (0.5, 0.85),
            (0.28, 0.78),
        ]
    ],
    "7": [[(0.26, 0.2), (0.74, 0.2), (0.45, 0.84)]],
    "1": [[(0.52, 0.16), (0.5, 0.84)]],
}

pytestmark = needs_chromium


@pytest.fixture
def visit(browser) -> Iterator[Callable]:
    """Opens the page of a server. At the end there must have been no message, no error and no request to elsewhere."""
    with watched_tabs(browser) as new_tab:

        def opened(served: Served, width: int = 1200, scheme: str = "light", **options):
            viewport = {"width": width, "height": 900}
            tab = new_tab((served.url,), color_scheme=scheme, viewport=viewport, **options)
            tab.goto(served.url)
            tab.wait_for_selector(".card")
            return tab

        opened.complaints = new_tab.complaints
        yield opened


def draw(tab, digit: str) -> None:
    box = tab.locator("#drawing").bounding_box()
    for stroke in DIGITS[digit]:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        tab.mouse.move(*points[0])
        tab.mouse.down()
        for point in points[1:]:
            tab.mouse.move(*point, steps=5)
        tab.mouse.up()


def until(tab, condition: str, argument: object = None) -> None:
    """Wait until an expression is true. Playwright's own waiting needs eval, which the page's policy forbids."""
    assert wait_for(lambda: tab.evaluate(condition, argument)), condition


def labels(tab) -> list[str]:
    return tab.locator(".card .label").all_text_contents()


def settled(tab) -> list[str]:
    """The labels, once the last question is answered."""
    until(tab, "!asking.now && latest !== null")
    return labels(tab)


@pytest.fixture(scope="module")
def mnist(real_mnist, tmp_path_factory) -> Path:
    return train(
        tmp_path_factory.mktemp("mnist") / "cnn", "mnist_cnn_fast", f"dataset.root={real_mnist}", "train.epochs=1"
    )


@pytest.fixture(scope="module")
def mnist_served(mnist) -> Iterator[Served]:
    with serving(mnist) as running:
        yield running


@pytest.mark.mnist
@pytest.mark.parametrize("digit", DIGITS)
def test_a_drawn_digit_is_read(mnist_served, visit, digit):
    tab = visit(mnist_served)
    draw(tab, digit)
    assert settled(tab) == [digit]
    assert f"{digit}, with" in tab.locator("#verdict").text_content()


@pytest.mark.mnist
def test_a_digit_is_drawn_with_the_keyboard(mnist_served, visit):
    tab = visit(mnist_served)
    tab.keyboard.press("Tab")  # the link that skips to the answers
    for _ in range(2):
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "drawing"
    for key, times in (("Space", 1), ("ArrowDown", 22), ("Space", 1)):
        for _ in range(times):
            tab.keyboard.press(key)
    assert settled(tab) == ["1"]
    until(tab, "document.getElementById('spoken').textContent.startsWith('1, with')")
    tab.keyboard.press("Delete")
    until(tab, "latest === null")
    assert labels(tab) == ["–"]


def test_four_networks_answer_side_by_side(served, visit):
    tab = visit(served)
    assert tab.locator(".card h2").all_text_contents() == ["cnn", "mlp", "rnn", "transformer"]
    draw(tab, "7")
    said = settled(tab)
    assert len(said) == 4
    assert all(label in "0123456789" for label in said)
    for name, kinds in (("cnn", {"maps"}), ("rnn", {"states", "belief"}), ("transformer", {"tokens", "attention"})):
        classes = tab.locator(f".card[aria-label={name}] .layers figure").evaluate_all(
            "all => all.map(f => f.className)"
        )
        assert kinds <= set(classes), name
    shown = tab.evaluate("latest.map(answer => answer.label)")
    assert shown == said
    boxes = [card.bounding_box() for card in tab.locator(".card").all()]
    assert boxes[0]["y"] == boxes[1]["y"]  # beside each other


def test_where_they_disagree_is_marked(served, visit):
    tab = visit(served)
    tab.evaluate(
        """() => {
            const answer = source.answer;
            source.answer = async (...all) => {
                const answers = await answer(...all);
                answers.forEach((one, n) => {
                    one.probabilities = one.probabilities.map((_, k) => Number(k === (n === 2 ? 5 : 3)));
                    [one.label, one.probability] = [n === 2 ? "5" : "3", 1];
                });
                return answers;
            };
        }"""
    )
    draw(tab, "3")
    settled(tab)
    assert tab.locator("#verdict").text_content() == "They disagree: 3 of 4 say 3, rnn says 5."
    assert tab.locator(".card.odd h2").all_text_contents() == ["rnn"]
    assert tab.locator(".card.odd .badge").text_content() == "disagrees"


def test_undo_and_clear(served, visit):
    tab = visit(served)
    draw(tab, "1")
    first = settled(tab) and tab.evaluate("JSON.stringify(latest)")
    draw(tab, "7")
    until(tab, "before => !asking.now && JSON.stringify(latest) !== before", first)
    tab.click("#undo")
    until(tab, "before => !asking.now && JSON.stringify(latest) === before", first)
    tab.click("#clear")
    until(tab, "latest === null")
    assert "Draw one of" in tab.locator("#verdict").text_content()


def test_nothing_moves_while_one_draws(served, visit):
    tab = visit(served)
    places = """() => [...document.querySelectorAll("canvas:not(.steps *), .card, .bars, #verdict")].map((element) => {
        const { x, y, width, height } = element.getBoundingClientRect();
        return [x, y, width, height].map(Math.round).join();
    })"""
    before = tab.evaluate(places)
    for digit in DIGITS:
        draw(tab, digit)
        settled(tab)
        shown = [place for place in tab.evaluate(places) if place != "0,0,0,0"]
        assert shown == [place for place in before if place != "0,0,0,0"]
        tab.click("#clear")


def test_an_image_is_opened_and_dropped(served, visit, tmp_path):
    two = Path(__file__).parents[1] / "data/handwriting/2-pencil.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    tab = visit(served)
    tab.set_input_files("#file", two)
    settled(tab)
    assert tab.locator("#note").text_content() == "2-pencil.jpg"
    tab.set_input_files("#file", tmp_path / "large.png")  # 4 MB, sent as a smaller JPEG
    until(tab, "!asking.now && document.getElementById('note').textContent === 'large.png'")
    assert not tab.locator("#verdict.error").count()


def test_a_file_that_is_no_image_is_refused_in_words(served, visit, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    tab = visit(served)
    tab.set_input_files("#file", tmp_path / "x.png")
    tab.wait_for_selector("#verdict.error")
    assert "not an image that can be read" in tab.locator("#verdict").text_content()
    visit.complaints[:] = [each for each in visit.complaints if "422" not in each]  # Chromium notes the status


def test_the_camera_takes_a_picture(served, visit):
    tab = visit(served, permissions=["camera"])
    tab.click("#camera")
    until(tab, "document.getElementById('video').videoWidth > 0")
    tab.click("#camera")
    settled(tab)
    assert tab.locator("#note").text_content() == "photograph"
    assert tab.locator("#video").is_hidden()


def test_a_sample_is_shown_with_its_class(served, visit):
    tab = visit(served)
    tab.click("#sample")
    settled(tab)
    label = tab.evaluate("truth")
    assert tab.locator("#note").text_content().endswith(f": {label}")
    wrong = [said for said in labels(tab) if said != label]
    assert tab.locator(".badge", has_text="wrong").count() == len(wrong)


def test_a_row_of_a_table_is_filled_in(iris, visit):
    with serving(iris) as served:
        tab = visit(served)
        settled(tab)
        lengths = tab.get_by_label("petal length (cm)", exact=True)
        lengths.fill("1.4")
        tab.get_by_label("petal width (cm)", exact=True).fill("0.2")
        until(tab, "document.querySelector('.label').textContent === 'setosa'")
        assert tab.locator(".reasons .name").count() == 4
        tab.click("#sample")
        until(tab, "truth !== null && !asking.now")
        assert lengths.input_value() != ""
        tab.get_by_label("petal width (cm)", exact=True).fill("wide")
        tab.wait_for_selector("#verdict.error")
        assert "'wide', which is not a number" in tab.locator("#verdict").text_content()
        visit.complaints[:] = [each for each in visit.complaints if "422" not in each]


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(served, visit, width, scheme):
    tab = visit(served, width, scheme)
    draw(tab, "3")
    settled(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (
        ".about",
        ".probability",
        "figcaption",
        ".bars li",
        "#verdict",
        "button",
        "summary",
        ".plus",
        ".minus",
    ):
        assert contrast(tab, selector) >= 4.5, selector


def contrast(tab, selector: str) -> float:
    """The contrast of a text with what is behind it (WCAG 2.1)."""
    colours = tab.locator(selector).first.evaluate(
        """element => {
            const of = (e, key) => getComputedStyle(e)[key].match(/[\\d.]+/g).map(Number);
            let behind = element;
            while (of(behind, "backgroundColor")[3] === 0) behind = behind.parentElement;
            return [of(element, "color"), of(behind, "backgroundColor")];
        }"""
    )
    lights = []
    for colour in colours:
        share = np.array(colour[:3]) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_every_control_has_a_name(served, visit):
    tab = visit(served)
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas, video, select")]
            .filter(e => !e.hidden && !e.closest("[aria-hidden]"))
            .filter(e => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length))
            .map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_the_page_says_when_the_server_has_ended(trained, visit):
    with serving(trained / "mlp") as served:
        tab = visit(served)
    draw(tab, "1")
    tab.wait_for_selector("#verdict.error")
    assert tab.locator("#verdict").text_content() == "nnx serve does not answer: has it ended?"
    visit.complaints[:] = [each for each in visit.complaints if "ERR_CONNECTION" not in each]


def test_the_description_can_be_read(served, visit):
    tab = visit(served)
    tab.goto(f"{served.url}/docs")
    tab.wait_for_selector("h2:has-text('POST /api/predict')")
    assert tab.locator("h2", has_text="Question").count() == 1
