"""The app's Learn page: each step asks, waits for a prediction, reveals; the URL says where one is."""

import urllib.parse

import pytest
from support.app import opened, sound

from randprune_lab import Explorer, open_source
from randprune_lab.demo import demo_weights
from randprune_lab.lessons import LESSONS

PLACES = [(lesson, step) for lesson in range(5) for step in range(len(LESSONS[lesson].steps))]


@pytest.fixture(scope="module")
def explorer():
    return Explorer(open_source(demo_weights()))


@pytest.fixture
def learn(tmp_path, monkeypatch):
    """``learn(lesson="2")``: the page at that address."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))

    return lambda **query: sound(opened("learn", **query))


def press(page, label):
    (found,) = [button for button in page.button if button.label == label]
    assert not found.disabled
    return sound(found.click().run())


def title(page):
    return next(lesson.title for lesson in LESSONS if f"**{lesson.title}.**" in words(page))


def is_off(page, label):
    (found,) = [button for button in page.button if button.label == label]
    return found.disabled


def words(page):
    return "\n".join(part.value for kind in (page.markdown, page.success, page.warning) for part in kind)


def on_screen(page, lesson, step):
    return page.session_state[f"learn-{lesson}-{step}.shown"].dialogue.state


def links(page):
    """Label -> query of the page links."""
    found = page.get("page_link")
    return {link.proto.label: link.proto for link in found}


@pytest.mark.parametrize(("lesson", "step"), PLACES)
def test_predict_then_look(learn, explorer, lesson, step):
    page = learn(lesson=str(lesson + 1), step=str(step + 1))
    asked = LESSONS[lesson].steps[step]
    found = asked.reveal(explorer)
    assert [title(page), page.radio[0].options] == [LESSONS[lesson].title, list(asked.options)]
    assert asked.text in words(page)
    assert found.sentence not in words(page)
    if asked.panels is None:
        assert on_screen(page, lesson, step) == asked.state
    else:  # the panels would give the answer away
        assert f"learn-{lesson}-{step}.shown" not in page.session_state
    assert is_off(page, "Reveal")
    page.radio[0].set_value(found.option).run()
    assert found.sentence not in words(page)
    page = press(page, "Reveal")
    assert "Right." in words(page)
    assert found.sentence in words(page)
    assert on_screen(page, lesson, step) == asked.after


def test_a_wrong_prediction_gets_an_explanation(learn, explorer):
    page = learn()
    found = LESSONS[0].steps[0].reveal(explorer)
    wrong = next(option for option in page.radio[0].options if option != found.option)
    page.radio[0].set_value(wrong).run()
    page = press(page, "Reveal")
    assert page.warning[0].value == f"Not this time. The answer: {found.option}."
    assert found.why in words(page)
    assert page.radio[0].disabled
    assert page.radio[0].value == wrong


def test_through_a_lesson_and_into_the_next(learn, explorer):
    page = learn(lesson="1")
    for step, asked in enumerate(LESSONS[0].steps):
        assert is_off(page, "Back") == (step == 0)
        last = step == len(LESSONS[0].steps) - 1
        assert is_off(page, "Next lesson" if last else "Next")
        assert f"Step {step + 1} of 3" in str(page.get("progress")[0].proto)
        page.radio[0].set_value(asked.reveal(explorer).option).run()
        page = press(page, "Reveal")
        if last:
            assert LESSONS[0].next_text in words(page)
        page = press(page, "Next lesson" if last else "Next")
        assert page.query_params["lesson"] == str(1 + last)
        assert page.query_params["step"] == str(1 if last else step + 2)
    assert title(page) == LESSONS[1].title
    page = press(learn(lesson="1", step="2"), "Back")
    assert page.query_params["step"] == "1"


def test_what_was_revealed_stays_so(learn, explorer):
    page = learn()
    found = LESSONS[0].steps[0].reveal(explorer)
    page.radio[0].set_value(found.option).run()
    page = press(press(page, "Reveal"), "Next")
    assert found.sentence not in words(page)
    page = press(page, "Back")
    assert found.sentence in words(page)
    assert page.radio[0].value == found.option


def test_the_state_can_be_set_again(learn):
    page = learn(lesson="2")
    page.session_state["learn-1-0.shown"].dialogue.change(power=9.0, sparsity=0.5)
    page = sound(page.run())
    assert on_screen(page, 1, 0).sparsity == 0.5
    assert "sparsity=0.5" in query_of(page, "Open in Explore")
    page = press(page, "Set the lesson's state again")
    assert on_screen(page, 1, 0) == LESSONS[1].steps[0].state


def query_of(page, label):
    return urllib.parse.unquote(str(links(page)[label]))


def test_into_explore(learn):
    page = learn(lesson="3")
    state = LESSONS[2].steps[0].state
    for name, value in urllib.parse.parse_qsl(state.to_query()):
        assert f"{name}={value}" in query_of(page, "Open in Explore")


def test_choosing_a_lesson(learn):
    page = learn(lesson="3", step="2")
    assert title(page) == LESSONS[2].title
    chooser = page.get("button_group")[0]
    page = sound(chooser.set_value(4).run())
    assert title(page) == LESSONS[4].title
    assert (page.query_params["lesson"], page.query_params["step"]) == ("5", "1")


@pytest.mark.parametrize("text", ["0", "6", "-1", "", "x", "../../etc/passwd", "9" * 5000, "\u0663", "\u00b2"])
def test_an_address_that_leads_nowhere_shows_the_first(learn, text):
    page = learn(lesson=text, step=text)
    assert title(page) in {LESSONS[0].title, LESSONS[2].title}
    assert page.radio
