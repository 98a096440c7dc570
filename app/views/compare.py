"""Panel 8: several runs side by side."""

from __future__ import annotations

from typing import Any

import streamlit as st
from common import link, page, places, plain, said
from drawing import download, draw, table

from randprune_lab import charts, curves, listing, live, pictures


def chosen() -> list[str]:
    """The runs to compare: those of the URL, until others are picked; the URL follows."""
    names = [str(row["name"]) for row in listing.history_rows(places().runs)]
    asked = [name for name in dict.fromkeys(st.query_params.get("runs", "").split(",")) if name]
    unknown = [name for name in asked if name not in names]
    if st.session_state.get("compared") != asked:  # another link was followed
        st.session_state["runs to compare"] = [name for name in asked if name in names]
    picked = st.multiselect("Runs", names, key="runs to compare", placeholder="Choose two or more")
    for name in unknown:
        try:
            places().run(name)
        except ValueError as error:
            said(error)
    if picked != asked:
        st.query_params["runs"] = ",".join(picked)
    st.session_state["compared"] = picked
    return picked


def scores(view: dict[str, Any]) -> None:
    """Curves and differences, where the runs compare at all."""
    if view["problem"]:
        st.warning(plain(view["problem"]))
        return
    if not view["scores"]["rows"]:
        st.info("None of these runs has a trained network yet.")
        return
    draw(charts.accuracy_chart, view["scores"]["rows"], None, view["metric"])
    st.caption(plain(view["scores"]["sentence"]))
    download("These numbers (CSV)", lambda: listing.csv_of_rows(view["scores"]["rows"]), "compare.csv", "text/csv")
    st.subheader("Is it a result?", anchor=False)
    st.markdown(plain(view["differences"]["sentence"]))
    st.caption("A difference smaller than the seeds' spread is not a result. Seeds are compared one by one.")
    if view["differences"]["rows"]:
        if any(row["low"] is not None for row in view["differences"]["rows"]):
            draw(curves.differences_chart, view["differences"]["rows"], view["metric"])
        with st.expander("All differences"):
            table(view["differences"]["rows"])


def agreement(view: dict[str, Any]) -> None:
    """How far the masks agree, at one sparsity at a time."""
    st.subheader("Do their masks agree?", anchor=False)
    stages = view["agreement"]["stages"]
    if not stages:
        st.markdown(plain(view["agreement"]["sentence"]))
        return
    steps = [stage["sparsity"] for stage in stages]
    at = st.select_slider("Sparsity", steps, value=steps[-1]) if len(steps) > 1 else steps[0]
    stage = stages[steps.index(at)]
    draw(pictures.agreement_chart, stage["matrix"], stage["labels"])
    st.caption(plain(stage["sentence"]))


page("Compare", "Runs side by side. Those that differ only in their seed are one line, with its 95 % interval.")
names = chosen()
if not names:
    st.info("Choose runs above, or tick them in History. A run and its control make a good start.")
    link("All runs", "history")
    link("Many runs, one answer: studies", "studies")
else:
    view = live.compare_view([places().runs / name for name in names])
    for run in view["damaged"]:
        said(f"{run['name']}: {run['message']}")
    if view["runs"]:
        scores(view)
        st.subheader("In which settings do they differ?", anchor=False)
        st.markdown(plain(view["settings"]["sentence"]))
        if view["settings"]["rows"]:
            rows = view["settings"]["rows"]
            table([{"run": run["name"], **{row["setting"]: row[run["name"]] for row in rows}} for run in view["runs"]])
        agreement(view)
        for run in view["runs"]:
            unfinished = "" if run["finished"] else ", unfinished"
            link(f"{run['name']} ({run['label']}, seed {run['seed']}{unfinished})", "run", run=run["name"])
