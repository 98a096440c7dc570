"""RandPrune Lab in the browser. Start it with ``randprune app``, which passes the settings that it needs."""

from __future__ import annotations

import gc
import os

# Before torch is imported: a run that trains meanwhile must not make the sliders wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import streamlit as st
from common import PAGES

TITLES = {
    "start": ("Start", ":material/waving_hand:"),
    "explore": ("Explore", ":material/biotech:"),
    "run": ("Run", ":material/play_circle:"),
    "history": ("History", ":material/history:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "studies": ("Studies", ":material/science:"),
    "learn": ("Learn", ":material/school:"),
    "methods": ("Methods", ":material/content_cut:"),
    "about": ("About", ":material/info:"),
}
# The tab's picture: a mask. A named icon or an emoji would be fetched from the internet.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="4" height="4" rx=".6" fill="#e9ecf0"/>'
    '<path d="M0 0h1v1h-1zM2 0h2v1h-2zM1 1h1v1h-1zM0 2h2v1h-2zM3 2h1v2h-1z" fill="#0072B2"/>'
    '<path d="M3 1h1v1h-1zM1 3h1v1h-1z" fill="#009E73"/></svg>'
)

SIDEBAR = 200  # pixels
# Streamlit leaves 6 rem above every title, cuts links that are longer than their line, and shows those to another run
# as if it were the one on screen.
STYLE = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 3rem; padding-bottom: 4rem; }
[data-testid="stMainBlockContainer"] [data-testid="stPageLink"] * { white-space: normal; overflow-wrap: anywhere; }
[data-testid="stMainBlockContainer"] [data-testid="stPageLink"] a:not(:hover) { background: none; }
</style>"""


@st.cache_resource
def _warm() -> None:
    """Once for all sessions. What is imported stays: looking through it for garbage cost 170 ms at every rerun."""
    import torch

    import randprune_lab.explorer  # noqa: F401, so that the first session need not wait

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


_warm()
st.set_page_config("RandPrune Lab", ICON, layout="wide", initial_sidebar_state=SIDEBAR)
st.html(STYLE)
st.navigation(
    [
        st.Page(
            PAGES / f"{name}.py",
            title=title,
            icon=icon,
            url_path=None if name == "start" else name,
            default=name == "start",
        )
        for name, (title, icon) in TITLES.items()
    ]
).run()
