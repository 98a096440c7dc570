"""Explore: panels 1 to 4 of the demo, of any stage of a run, or of any model. The address holds the whole state."""

from __future__ import annotations

import urllib.parse

import streamlit as st
from common import noted, open_page, page, places
from live_panel import change, live_panel, on_screen

from randprune_lab.places import DEMO
from randprune_lab.state import ExploreState

KEY = "explore"
CHOICE = "explore-model"

page(
    "Explore",
    "Weights near the threshold, candidate masks, and how random they are. Nothing here can break: the address of this "
    "page always holds what you see, so a link or a reload brings it back.",
)


def _asked_for() -> tuple[ExploreState, list[str]]:
    """What the address asks for; where it asks for nothing, what this session saw last."""
    query = st.query_params.to_dict()
    state, notices = ExploreState.from_query(urllib.parse.urlencode(query))
    state = state if query else on_screen(KEY) or state
    if state == ExploreState():  # its sr is made for BERT: here it would ask for less than one mask
        state = state.but(randomness="fixed")
    return state if state.model else state.but(model=DEMO), notices


def _choose() -> None:
    """Another model keeps the settings; tensor and stage were of the one before."""
    change(KEY, model=st.session_state[CHOICE], tensor="", stage=1, moment="before", rerolled=(), pair=None)


state, notices = _asked_for()
noted(notices)
top = st.container(horizontal=True, vertical_alignment="bottom")
shown = live_panel(state, key=KEY, url=True)
names = places().names()
st.session_state[CHOICE] = shown.model
top.selectbox(
    "model",
    names if shown.model in names else [*names, shown.model],
    key=CHOICE,
    on_change=_choose,
    help="The demo, runs of this lab, and models below the folders that the app was started with (--models).",
)
if top.button(
    "Launch what I see",
    key="leaves-for-run",  # a key of this kind tells the panels that the page is being left
    help="A run whose last stage draws its masks with these settings.",
    type="primary",
):
    open_page("run", launch="1", **dict(urllib.parse.parse_qsl(shown.to_query())))
