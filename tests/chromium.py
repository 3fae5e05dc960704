"""Headless Chromium for the tests of pages: `from chromium import needs_chromium`, and the fixture `browser`."""

import contextlib
import shutil
from collections.abc import Callable, Iterator

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to be found (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install 'nnx[dev]')"
    )
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def watched_tabs(browser) -> Iterator[Callable]:
    """Gives a function that makes a tab: its arguments are the starts of allowed addresses, and those of a context. At
    the end there must have been no message, no error and no request to elsewhere: `complaints` lists them."""
    contexts, complaints = [], []

    def new_tab(allowed: tuple[str, ...], **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("request", lambda sent: None if sent.url.startswith(allowed) else complaints.append(sent.url))
        return tab

    new_tab.complaints = complaints
    yield new_tab
    for context in contexts:
        context.close()
    assert not complaints
