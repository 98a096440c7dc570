"""Panel 9: five short lessons beside the live panels. Predict before you look."""

from __future__ import annotations

import urllib.parse

import streamlit as st
from asking import ask, judge
from common import link, page, said
from live_panel import change, demo, live_panel

from randprune_lab.lessons import LESSONS, Reveal
from randprune_lab.state import ExploreState


@st.cache_data
def _reveal(lesson: int, step: int) -> Reveal:
    return LESSONS[lesson].steps[step].reveal(demo())


def _number(name: str, most: int) -> int:
    """A number of the URL, from 1 to ``most``, less one; 0 where it is none."""
    text = st.query_params.get(name, "1")
    return int(text) - 1 if text.isdecimal() and len(text) < 5 and 1 <= int(text) <= most else 0


def _go(lesson: int, step: int) -> None:
    st.query_params.update(lesson=str(lesson + 1), step=str(step + 1))


def _chosen() -> None:
    if st.session_state.lesson is not None:
        _go(st.session_state.lesson, 0)


def _explore(label: str, state: ExploreState) -> None:
    link(label, "explore", **dict(urllib.parse.parse_qsl(state.to_query())))


def _choose_lesson(lesson: int) -> None:
    st.session_state.lesson = lesson  # the URL rules
    st.segmented_control(
        "Lesson",
        range(len(LESSONS)),
        format_func=lambda place: f"{place + 1}. {LESSONS[place].title}",
        key="lesson",
        on_change=_chosen,
        label_visibility="collapsed",
    )


def _onwards(lesson: int, step: int, done: bool) -> None:
    """Back, next; at the lesson's end what to try alone."""
    taught = LESSONS[lesson]
    last = step == len(taught.steps) - 1
    if done and last:
        st.markdown(f"**What to try next.** {taught.next_text}")
        _explore("Try it in Explore", taught.next_state)
    with st.container(horizontal=True):
        st.button("Back", disabled=step == 0, on_click=_go, args=(lesson, step - 1), key="back")
        if not last:
            st.button("Next", disabled=not done, on_click=_go, args=(lesson, step + 1), key="next")
        elif lesson + 1 < len(LESSONS):
            st.button("Next lesson", disabled=not done, on_click=_go, args=(lesson + 1, 0), key="next")


def _look(lesson: int, step: int, predicted: str | None) -> None:
    """The live panels, and the ways back to the lesson's state and on to Explore."""
    asked, panels, key = LESSONS[lesson].steps[step], LESSONS[lesson].panels, f"learn-{lesson}-{step}"
    if predicted is None and asked.panels is not None:
        panels, key = asked.panels, f"{key}-before"
    if not panels:
        st.caption("The live panel comes with the answer: now it would give it away.")
        return
    state = asked.state if predicted is None else asked.after
    shown = live_panel(state, key=key, panels=panels)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Set the lesson's state again",
            help="If you have moved the sliders and want to come back.",
            on_click=lambda: change(key, **state.model_dump()),
        )
        _explore("Open in Explore", shown)


def _show() -> None:
    lesson = _number("lesson", len(LESSONS))
    taught = LESSONS[lesson]
    step = _number("step", len(taught.steps))
    _choose_lesson(lesson)
    st.markdown(f"**{taught.title}.** {taught.goal}")
    st.progress((step + 1) / len(taught.steps), f"Step {step + 1} of {len(taught.steps)}")
    question, answer = st.columns(2, gap="large")
    with question:
        asked = taught.steps[step]
        predicted = ask(asked.text, asked.question, asked.options, f"{lesson}-{step}")
    with answer:
        if predicted is None:
            st.caption("What happens is shown here once you have predicted it.")
        else:
            judge(_reveal(lesson, step), predicted)
        _onwards(lesson, step, predicted is not None)
    _look(lesson, step, predicted)


page("Learn", "Five short lessons on a network that the lab has trained itself. Predict before you look.")
link("All methods side by side", "methods")
try:
    _show()
except (ValueError, OSError) as error:
    said(error)
