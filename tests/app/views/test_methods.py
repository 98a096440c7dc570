"""The app's Methods page: everything side by side, questions, and two masks; the address says which."""

import json

import pytest
from support.app import opened, sound

from randprune_lab.config import METHOD_NAMES as METHODS
from randprune_lab.contrast import QUESTIONS, Pick, overlaps
from randprune_lab.criteria import CRITERIA

FIELDS = ("method", "criterion", "other", "sparsity")


@pytest.fixture
def methods(tmp_path, monkeypatch):
    """``methods(method="snip")``: the page at that address."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))

    return lambda **query: sound(opened("methods", **query))


def words(page):
    kinds = (page.markdown, page.caption, page.success, page.warning)
    return "\n".join(part.value for kind in kinds for part in kind).replace("\\", "")


def shown(page):
    """What the controls say."""
    return tuple(page.session_state[name] for name in FIELDS)


def compares(page, pick):
    """The page shows these two masks: controls, charts, sentences."""
    assert shown(page) == tuple(getattr(pick, name) for name in FIELDS)
    found = overlaps(pick)
    specs = [json.loads(part.proto.spec) for part in page.get("vega_lite_chart")]
    assert [spec["description"] for spec in specs] == [scope.sentence for scope in found.values()]
    assert all(scope.sentence in words(page) for scope in found.values())
    assert f"**{pick.moment}**" in words(page)


def test_everything_stands_side_by_side(methods):
    page = methods()
    tables = [table.value for table in page.table]
    assert len(tables) == 2
    assert [text.strip("*") for text in tables[0]["method"]] == list(METHODS)
    assert [text.strip("*") for text in tables[1]["criterion"]] == list(CRITERIA)
    compares(page, Pick())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_address_says_what_is_compared(methods, theme):
    page = methods(theme=theme, method="grasp", other="snip", sparsity="0.97")
    compares(page, Pick("grasp", other="snip", sparsity=0.97))
    assert page.selectbox(key="criterion").disabled
    assert not page.selectbox(key="method").disabled


def test_the_address_follows_the_controls(methods):
    page = methods(method="snip")
    page = sound(page.selectbox(key="method").set_value("imp").run())
    page = sound(page.selectbox(key="criterion").set_value("taylor").run())
    page = sound(page.selectbox(key="other").set_value("movement").run())
    page = sound(page.select_slider(key="sparsity").set_value(0.8).run())
    pick = Pick("imp", "taylor", "movement", 0.8)
    compares(page, pick)
    told = {name: page.query_params[name] for name in FIELDS}
    told = {name: text[0] if isinstance(text, list) else text for name, text in told.items()}
    assert told == {name: str(getattr(pick, name)) for name in FIELDS}


@pytest.mark.parametrize(
    "query",
    [
        {"method": "nonsense"},
        {"method": "learned-mask"},
        {"other": "../../etc/passwd"},
        {"criterion": "object"},
        {"sparsity": "x"},
        {"sparsity": "nan"},
        {"sparsity": "7"},
        {"sparsity": "0.1234"},
        {"method": ""},
    ],
)
def test_an_address_that_leads_nowhere_shows_the_first(methods, query):
    compares(methods(**query), Pick())


@pytest.mark.parametrize("number", range(len(QUESTIONS)))
def test_predict_then_look(methods, number):
    page, asked = methods(), QUESTIONS[number]
    found = asked.reveal()
    assert asked.text in words(page)
    assert page.radio[number].options == list(asked.options)
    assert found.sentence not in words(page)
    wrong = next(option for option in asked.options if option != found.option)
    for option, verdict in ((found.option, "Right."), (wrong, found.verdict(wrong))):
        page = methods()
        page.radio[number].set_value(option).run()
        assert found.sentence not in words(page)
        page = sound(page.button(key=f"reveal-methods-{number}").click().run())
        assert verdict in words(page)
        assert found.sentence in words(page)
        assert found.why in words(page)
    page = sound(page.button(key=f"show-{number}").click().run())
    compares(page, asked.pick)


def test_learn_leads_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    page = opened("learn")
    assert "All methods side by side" in [link.proto.label for link in sound(page).get("page_link")]
