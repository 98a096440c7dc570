"""Panel 7: all runs on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from common import link, open_page, page, places, plain, said
from drawing import download, table

from randprune_lab import jobs, listing, live

COLUMNS = [
    "name",
    "status",
    "score",
    "metric",
    "stages",
    "sparsity",
    "compression",
    "ir",
    "work",
    "started",
    "task",
    "model",
    "method",
    "seed",
    "group",
    "note",
    "message",
]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the table has it."""
    status = f"queued ({row['position']})" if row["position"] else row["status"]
    work = "" if row["seconds"] is None else live.duration(row["seconds"])
    started = (row["started"] or "")[:16].replace("T", " ")
    return {name: ({**row, "status": status, "work": work, "started": started})[name] for name in COLUMNS}


def filtered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the person wants to see."""
    with st.container(horizontal=True):
        words = st.text_input("Filter", placeholder="words that a run must contain", width=360).lower().split()
        states = list(dict.fromkeys(row["status"] for row in rows))
        wanted = st.pills("Status", states, selection_mode="multi")
    found = [row for row in rows if not wanted or row["status"] in wanted]
    return [row for row in found if all(word in " ".join(map(str, row.values())).lower() for word in words)]


def actions(chosen: list[dict[str, Any]]) -> None:
    """What can be done with the chosen runs."""
    names = [str(row["name"]) for row in chosen]
    with st.container(horizontal=True):
        if st.button("Open", disabled=len(names) != 1, icon=":material/open_in_new:"):
            open_page("run", run=names[0])
        if st.button("Compare", disabled=len(names) < 2, icon=":material/compare_arrows:"):
            open_page("compare", runs=",".join(names))
        with st.popover("Note", disabled=len(names) != 1, icon=":material/edit_note:"):
            if len(names) == 1:
                note(names[0], str(chosen[0]["note"]))
        with st.popover("Delete", disabled=not names, icon=":material/delete:"):
            if names:
                delete(names)
    if not names:
        st.caption("Tick a run on the left to open it, note something or delete it; tick several to compare them.")


def note(name: str, before: str) -> None:
    """Write down what one thinks of a run."""
    text = st.text_area(f"Note on {plain(name)}", before, key=f"note {name}", max_chars=jobs.NOTE_LENGTH)
    if st.button("Keep the note"):
        attempt(lambda: jobs.write_note(places().run(name), text))


def delete(names: list[str]) -> None:
    """Ask, then delete."""
    st.markdown(f"Delete {plain(', '.join(names))} with all files, for good?")
    if st.button(f"Yes, delete {len(names)} run{'s' * (len(names) > 1)}", type="primary"):
        attempt(*(lambda name=name: jobs.delete(places().run(name)) for name in names))


def attempt(*steps: Any) -> None:
    """Do all that can be done; what cannot is said on the page that is drawn next."""
    problems = []
    for step in steps:
        try:
            step()
        except (ValueError, OSError) as error:
            problems.append(" ".join(str(error).split()))
    st.session_state["history said"] = problems
    st.rerun()


def standing() -> list[tuple[Any, ...]]:
    """What makes the table change by itself."""
    return [(row["name"], row["status"], row["position"], row["stages"]) for row in listing.history_rows(places().runs)]


def follow(drawn: list[tuple[Any, ...]]) -> None:
    """Draw the page anew when a run has got on."""
    if standing() != drawn:
        st.rerun()


page("History", "All runs on disk, failed and stopped ones too: failed runs are data.")
for problem in st.session_state.pop("history said", []):
    said(problem)
everything = listing.history_rows(places().runs)
st.caption(plain(listing.history_sentence(everything)))
if everything:
    rows = filtered(everything)
    key = f"runs {hash(tuple(row['name'] for row in rows))}"  # another list, another choice
    event = table([shown(row) for row in rows], on_select="rerun", selection_mode="multi-row", key=key)
    picked = event.selection.rows if rows else []
    actions([rows[place] for place in picked if place < len(rows)])
    download("All runs (CSV)", lambda: listing.csv_of_rows(everything), "runs.csv", "text/csv")
else:
    st.info("Nothing has been run here yet. Launch the demo: it takes about a minute.")
    link("Launch a run", "run")
at_work = any(row["status"] in ("queued", "running", "stopping") for row in everything)
st.fragment(follow, run_every=2 if at_work else 10)(standing())
