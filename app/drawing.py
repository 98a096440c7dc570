"""How the pages show charts and tables."""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import pandas  # noqa: F401, altair looks for it: one that another session is just importing would fail
import streamlit as st
from common import is_dark

from randprune_lab import charts

TITLE = 52  # characters in a line: what a narrow page has room for
AROUND = 130  # pixels of title, axis and legend
SHARES = ("score", "low", "high", "swapped", "difference")  # shown in per cent, all with one digit
PERCENT = "%.1f %%"
NUMBERS = {
    "sparsity": st.column_config.NumberColumn(format="%.4f", help="share of the prunable weights removed"),
    "compression": st.column_config.NumberColumn(format="%.1fx", help="of the prunable weights"),
    "score": st.column_config.NumberColumn(format=PERCENT, help="on the test split"),
    "low": st.column_config.NumberColumn(format=PERCENT, help="of the 95 % interval"),
    "high": st.column_config.NumberColumn(format=PERCENT, help="of the 95 % interval"),
    "difference": st.column_config.NumberColumn(format=PERCENT, help="in points"),
    "ir": st.column_config.NumberColumn(format="%.3g", help="introduced randomness of the mask"),
    "swapped": st.column_config.NumberColumn(format=PERCENT, help="of the weights kept"),
    "loss": st.column_config.NumberColumn(format="%.4f"),
}


def draw(make: Callable[..., alt.TopLevelMixin], *arguments: Any) -> None:
    """The chart that ``make`` makes of plain values, in the theme of the page, as wide as there is room."""
    _show(json.loads(_specification(make, json.dumps(arguments), dark=is_dark())))


def draw_chart(chart: alt.TopLevelMixin) -> None:
    """A chart that is there, in the theme of the page, as wide as there is room."""
    _show(_fitted(charts.specification(chart, dark=is_dark())))


def _show(spec: dict[str, Any]) -> None:
    st.vega_lite_chart(spec, theme=None, width="stretch")


@functools.lru_cache(maxsize=256)
def _specification(make: Callable[..., alt.TopLevelMixin], arguments: str, *, dark: bool) -> str:
    """A page that is drawn anew every second makes a chart anew only when its numbers have changed."""
    return json.dumps(_fitted(charts.specification(make(*json.loads(arguments)), dark=dark)))


def _fitted(spec: dict[str, Any]) -> dict[str, Any]:
    spec["title"] = textwrap.wrap(spec["title"], TITLE)
    if isinstance(spec.get("height"), int):  # here it is that of the whole picture
        spec["height"] += AROUND
    return spec


def download(label: str, make: Callable[[], str | bytes], name: str, mime: str) -> None:
    """A button that saves what ``make`` gives, and makes it only then."""
    st.download_button(label, make, name, mime, on_click="ignore", icon=":material/download:")


def table(rows: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """Rows as a table that scrolls where it is too wide."""
    shown = [{name: _shown(name, value) for name, value in row.items()} for row in rows]
    return st.dataframe(shown, hide_index=True, column_config=NUMBERS, placeholder="", **options)


def _shown(name: str, value: Any) -> Any:
    return 100 * value if name in SHARES and isinstance(value, float) else value
