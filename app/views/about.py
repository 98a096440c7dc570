"""Versions, device, folders, slots, and what is at hand without a network."""

from __future__ import annotations

import streamlit as st
from common import page, places, plain

from randprune_lab.about import facts, offline


def _plain(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: plain(value) for name, value in row.items()} for row in rows]


page(
    "About",
    "What this lab runs on. The app serves 127.0.0.1 only and sends nothing anywhere; a run of a model or a data set "
    "from the Hub fetches it.",
)
st.subheader("This machine", anchor=False)
st.table(_plain(facts(places())), border="horizontal")
st.subheader("Without a network", anchor=False)
st.table(_plain(offline(places())), border="horizontal")
