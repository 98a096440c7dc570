"""What the pages share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import streamlit as st

from randprune_lab.places import Places

PAGES = Path(__file__).parent / "views"


def places() -> Places:
    """The folders of this app."""
    return Places.of_environment()


def page(title: str, intro: str) -> None:
    """What every page begins with."""
    st.title(title, anchor=False)
    st.markdown(intro)


def said(error: Exception) -> None:
    """An error as its one sentence."""
    st.error(" ".join(str(error).split())[:1000] or type(error).__name__)


def open_page(name: str, **query: str) -> NoReturn:
    """Go to another page, with this query in the URL."""
    st.switch_page(PAGES / f"{name}.py", query_params=query)


def link(label: str, page: str, *, help: str | None = None, **query: Any) -> None:  # noqa: A002, as in Streamlit
    """A link to another page, with this query in the URL."""
    texts: Mapping[str, str] = {key: str(value) for key, value in query.items()}
    icon = ":material/arrow_forward:"  # without it a link looks like any text
    st.page_link(PAGES / f"{page}.py", label=label, icon=icon, help=help, query_params=texts)


def is_dark() -> bool:
    """The browser shows the dark theme."""
    return st.context.theme.type == "dark"
