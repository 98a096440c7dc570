"""Start: what this is, one live panel that moves already, three things to try."""

from __future__ import annotations

import streamlit as st
from common import link, page
from live_panel import live_panel

from randprune_lab.places import DEMO
from randprune_lab.state import ExploreState

page(
    "RandPrune Lab",
    "Pruning removes the smallest weights of a network, and near the cut thousands of them are almost equal: which of "
    "them go is a matter of a hair's breadth. This lab lets chance decide there, draws several masks, trains each for "
    "a moment and keeps the best ([arXiv 2310.13183](https://arxiv.org/abs/2310.13183)). Look at it, run it, and see "
    "for yourself when it helps.",
)
live_panel(ExploreState(model=DEMO, randomness="fixed"), key="start", panels=("microscope", "curve"), tour=True)
st.subheader("Three things to try", anchor=False)
link(
    "Explore: sharpen the choice. Raise T, and watch the slope become a step.",
    "explore",
    model=DEMO,
    sparsity=0.9,
    randomness="fixed",
    samples=4,
    power=1.0,
    sweep="power",
)
link(
    "Explore: compare eight masks of one law. Where do they agree?",
    "explore",
    model=DEMO,
    sparsity=0.8,
    randomness="target_ir",
    target_ir=0.05,
    pinned=0,
    pair="1,2",
)
link("Run: prune this network for real, in less than a minute.", "run", preset="demo")
