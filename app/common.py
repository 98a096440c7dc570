"""What the pages share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import streamlit as st

from randprune_lab.places import Places

PAGES = Path(__file__).parent / "views"
NOTICES = 5
# How runs and studies stand: color and icon.
BADGES = {
    "queued": ("blue", ":material/hourglass_empty:"),
    "running": ("green", ":material/play_arrow:"),
    "stopping": ("orange", ":material/stop_circle:"),
    "finished": ("green", ":material/check_circle:"),
    "stopped": ("orange", ":material/pause_circle:"),
    "failed": ("red", ":material/error:"),
    "interrupted": ("orange", ":material/power_off:"),
    "damaged": ("red", ":material/broken_image:"),
}


def places() -> Places:
    """The folders of this app."""
    return Places.of_environment()


def badge(state: str) -> None:
    """How a run or a study stands."""
    color, icon = BADGES.get(state, ("gray", ":material/help:"))
    st.badge(state, color=color, icon=icon)  # type: ignore[arg-type]


def plain(text: object) -> str:
    """Text of files, addresses and errors as it stands.

    Streamlit takes text for markdown: a picture in a run's name would have the browser ask whatever host it names.
    """
    return re.sub(r"([\\`*_\[\]<>#$~|]|:(?=\S))", r"\\\1", " ".join(str(text).split()))


def page(title: str, intro: str) -> None:
    """What every page begins with; ``intro`` is markdown, ``title`` is not."""
    st.title(plain(title), anchor=False)
    st.markdown(intro)


def said(error: object) -> None:
    """An error as its one sentence."""
    st.error(plain(str(error)[:1000]) or type(error).__name__)


def noted(notices: Sequence[str]) -> None:
    """What of an address could not be used; the first ones of many."""
    for notice in notices[:NOTICES]:
        st.warning(plain(notice))
    if len(notices) > NOTICES:
        st.warning(f"And {len(notices) - NOTICES} more of this kind.")


def open_page(name: str, **query: str) -> NoReturn:
    """Go to another page, with this query in the URL."""
    st.switch_page(PAGES / f"{name}.py", query_params=query)


def link(label: str, page: str, *, help: str | None = None, **query: Any) -> None:  # noqa: A002, as in Streamlit
    """A link to another page, with this query in the URL."""
    texts: Mapping[str, str] = {key: str(value) for key, value in query.items()}
    icon = ":material/arrow_forward:"  # without it a link looks like any text
    st.page_link(PAGES / f"{page}.py", label=plain(label), icon=icon, help=help, query_params=texts)


def is_dark() -> bool:
    """The browser shows the dark theme."""
    return st.context.theme.type == "dark"
