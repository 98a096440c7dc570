"""The app's pages in Streamlit's own test, without a browser."""

import json

import pytest

from support.paths import APP

testing = pytest.importorskip("streamlit.testing.v1")


def opened(name, *, theme="light", **query):
    """A page at an address."""
    page = testing.AppTest.from_file(str(APP), default_timeout=120)
    page.switch_page(f"views/{name}.py")
    page.context = {"theme": theme}
    for key, value in query.items():
        page.query_params[key] = value
    return page.run()


def words(page):
    """All that can be read, but for tables and charts."""
    kinds = "title subheader header markdown caption error warning info success code".split()  # noqa: SIM905
    texts = [str(part.value) for kind in kinds for part in getattr(page, kind)]
    for kind in ("page_link", "progress"):
        texts += [part.proto.label if kind == "page_link" else part.proto.text for part in page.get(kind)]
    return "\n".join([*texts, *(button.label for button in page.button)]).replace("\\", "")  # as it is read


def charts_of(page):
    """The specifications of all charts."""
    return [json.loads(part.proto.spec) for part in page.get("vega_lite_chart")]


def press(page, label):
    (button,) = [button for button in page.button if button.label == label]
    assert not button.disabled
    return button.click().run()


def sound(page):
    """The page itself: it shows no error."""
    assert not page.exception
    assert not page.error
    return page
