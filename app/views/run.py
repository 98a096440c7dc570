"""Panels 5 and 6: without a run in the URL the form that launches one, else that run, live."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
from common import badge, link, page, places, plain, said
from drawing import download, draw, table
from launch_panel import launch_panel

from randprune_lab import charts, curves, jobs, listing, live


def launch() -> None:
    """Which runs are at work, and the form."""
    page("Run", "Launch a pruning run: it goes on when this page is closed, and can be watched, stopped and resumed.")
    at_work = [row for row in listing.history_rows(places().runs) if row["status"] in ("queued", "running", "stopping")]
    for row in sorted(at_work, key=lambda row: (row["position"] or 0, row["name"])):
        state = f"queued, position {row['position']}" if row["position"] else row["status"]
        link(f"{row['name']}: {state}, {row['stages']} stages done", "run", run=row["name"])
    launch_panel()


def watch(name: str) -> None:
    """One run."""
    try:
        folder = places().run(name)
    except ValueError as error:
        page("Run", "There is nothing to watch under this address.")
        said(error)
        _ways_on()
        return
    view = live.live_view(folder)
    page(view["title"], f"Run {plain(name)}")
    _buttons(folder, view)
    st.fragment(_watched, run_every=1 if view["is_live"] else None)(name, view["status"])
    _downloads(folder, view)
    _links(name, view)


def _ways_on() -> None:
    link("All runs", "history")
    link("Launch a run", "run")


def _buttons(folder: Path, view: dict[str, Any]) -> None:
    """Stop or resume, whichever makes sense; what did not work is said until the page is drawn anew."""
    key = f"said {folder.name}"
    with st.container(horizontal=True):
        if view["is_live"]:
            text = "It ends within a step. What is finished stays, and it can be resumed."
            stop = functools.partial(jobs.stop, folder, wait=False)
            st.button(
                "Stop",
                icon=":material/stop:",
                help=text,
                disabled=view["status"] == "stopping",
                on_click=_try,
                args=(key, stop),
            )
        if view["can_resume"]:
            text = "It goes on from its last finished piece of work and ends with the same numbers."
            resume = functools.partial(jobs.resume, folder)
            st.button(
                "Resume", icon=":material/play_arrow:", type="primary", help=text, on_click=_try, args=(key, resume)
            )
    if key in st.session_state:
        st.warning(plain(st.session_state.pop(key)))


def _try(key: str, action: Callable[[], None]) -> None:
    """Do it before the page is drawn: a tab that shows an old button learns why it does nothing any more."""
    st.session_state.pop(key, None)
    try:
        action()
    except (ValueError, OSError) as error:
        st.session_state[key] = " ".join(str(error).split())


def _watched(name: str, drawn: str) -> None:
    """What changes while the run goes on; when its status changes, the whole page is drawn anew, with its buttons."""
    try:
        view = live.live_view(places().run(name))
    except ValueError:
        st.rerun()
    if view["status"] != drawn:
        st.rerun()
    _header(view)
    metric = view["metric"]
    if view["ladder"]["rows"]:
        draw(charts.ladder_chart, view["ladder"]["rows"], metric)
        st.caption(plain(view["ladder"]["sentence"]))
    _lanes(view)
    if view["epochs"]["rows"]:
        st.subheader("Training", anchor=False)
        draw(curves.score_chart, view["epochs"]["rows"], metric)
        draw(charts.loss_chart, view["epochs"]["rows"])
        st.caption(plain(view["epochs"]["sentence"]))
    if view["near"]["rows"]:
        st.subheader("Weights near tau, and randomness", anchor=False)
        draw(curves.near_chart, view["near"]["rows"])
        if any(row["ir"] is not None for row in view["near"]["rows"]):
            draw(curves.randomness_chart, view["near"]["rows"])
        st.caption(plain(view["near"]["sentence"]))
    for text in view["warnings"]:
        st.warning(plain(text))
    with st.expander("Log", expanded=view["status"] in ("failed", "damaged")):
        st.caption(plain(view["log"]["sentence"]))
        if view["log"]["lines"]:
            st.code("\n".join(view["log"]["lines"]), language=None, height=240, wrap_lines=True)


def _header(view: dict[str, Any]) -> None:
    """Status, progress, heartbeat, and whatever is wrong."""
    with st.container(horizontal=True, vertical_alignment="center"):
        badge(view["status"])
        if view["is_live"] and view["status"] != "queued":
            st.caption(plain(view["heartbeat"]))
    if view["progress"]["sentence"]:
        st.progress(view["progress"]["share"], text=plain(view["progress"]["sentence"]))
    problem = view["damage"] or view["message"]
    if problem:
        (st.error if view["damage"] or view["status"] in ("failed", "damaged") else st.info)(plain(problem))
    if view["result"]:
        st.success(plain(view["result"]["sentence"]))


def _lanes(view: dict[str, Any]) -> None:
    """The candidates of a stage: of the newest, unless another is chosen."""
    rows = view["lanes"]["rows"]
    if not rows:
        return
    st.subheader("Candidates", anchor=False)
    st.caption(plain(view["lanes"]["sentence"]))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    if len(rows) == len(stages):  # one mask a stage
        return
    stage = stages[-1]
    if len(stages) > 1:
        names = ["newest", *(f"stage {number}" for number in stages)]
        chosen = st.segmented_control("Stage", names, default="newest", key=f"stage of {view['name']}")
        stage = stage if chosen in (None, "newest") else stages[names.index(str(chosen)) - 1]
    own = [row for row in rows if row["stage"] == stage]
    draw(curves.lanes_chart, own, view["metric"])
    with st.expander("All numbers of this stage"):
        names = ["name", "state", "score", "loss", "ir", "swapped", "failed"]
        table([{name: row[name] for name in names} for row in own])
    if len(stages) > 1:
        with st.expander("All stages at once"):
            to_the_end = [row for row in rows if row["state"] != "dropped"]  # the others' scores do not compare
            draw(charts.candidates_chart, to_the_end, view["metric"])


def _downloads(folder: Path, view: dict[str, Any]) -> None:
    """The network, the report and the stage table of a finished run; nothing is packed before it is asked for."""
    if not view["ladder"]["rows"]:
        return
    report, model = folder / "report.html", folder / "model"
    with st.container(horizontal=True):
        if view["result"] and model.is_dir():
            download("Network (zip)", lambda: listing.archive(folder), f"{folder.name}-model.zip", "application/zip")
        if report.is_file() and not report.is_symlink():
            download("Report", report.read_bytes, f"{folder.name}.html", "text/html")
        if not view["damage"]:
            download("Stages (CSV)", lambda: listing.csv_of(folder), f"{folder.name}.csv", "text/csv")


def _links(name: str, view: dict[str, Any]) -> None:
    if view["ladder"]["rows"]:
        stage = max((row["stage"] for row in view["lanes"]["rows"]), default=1)
        link("See its masks in Explore", "explore", model=f"runs/{name}", stage=stage)
    beside = [
        row["name"] for row in listing.history_rows(places().runs) if view["group"] and row["group"] == view["group"]
    ]
    if len(beside) > 1:
        link(f"Compare the {len(beside)} runs of its group", "compare", runs=",".join(sorted(beside)))
    _ways_on()


asked = st.query_params.get("run")
if asked:
    watch(asked)
else:
    launch()
