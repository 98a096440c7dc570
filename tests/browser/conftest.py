"""A real JupyterLab, a real server of the app and a real Chromium, all on this machine alone."""

import contextlib

import pytest
from support.browser import CHROMIUM_FLAGS, PATIENCE, App, Lab, chromium_path

from randprune_lab import jobs


@pytest.fixture(scope="session")
def browser():
    """Chromium of the system, driven by Playwright."""
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if chromium_path() is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    started = Lab(tmp_path_factory.mktemp("lab"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The app, for all tests of a worker: one that stops it must make its own."""
    if chromium_path() is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    started = App(tmp_path_factory.mktemp("app"))
    yield started
    started.stop()
    assert "Traceback" not in started.said()


@pytest.fixture
def own_app(tmp_path):
    """An app of this test alone, with an empty runs folder; what still runs at the end is stopped."""
    if chromium_path() is None:
        pytest.skip("no Chromium: install it (Debian: chromium), or name it in RANDPRUNE_CHROMIUM")
    started = App(tmp_path)
    yield started
    started.stop()
    for folder in sorted(path.parent for path in started.runs.glob("*/config.json")):
        if jobs.status(folder).is_live:
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                jobs.stop(folder)
    assert "Traceback" not in started.said()


@pytest.fixture
def page(browser):
    """A new browser; at the end it has asked nobody but this machine, and no script has failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    requests, errors = [], []
    context.on("request", lambda request: requests.append(request.url))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context.new_page()
    context.close()
    assert errors == []
    local = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "file:")
    assert [url for url in requests if not url.startswith(local)] == []
