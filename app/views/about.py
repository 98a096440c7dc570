"""Versions, device, folders, slots, and what is at hand without a network."""

from __future__ import annotations

import streamlit as st
from common import page, places

from randprune_lab.about import facts, offline

page("About", "What this lab runs on. Nothing here leaves the machine: the app talks to 127.0.0.1 only.")
st.subheader("This machine", anchor=False)
st.table(facts(places()), border="horizontal")
st.subheader("Without a network", anchor=False)
st.table(offline(places()), border="horizontal")
