"""Panel 8, many runs: all studies, or the one that the URL names: its claims, figures, tables; start, stop, go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
from common import badge, page, places, plain, said
from drawing import download, draw_chart

from randprune_lab import study_jobs, study_report, study_view
from randprune_lab.places import STUDIES
from randprune_lab.studies import Study
from randprune_lab.study_claims import NO_DATA, NOISE, NOT_REPRODUCED, REPRODUCED, TOO_FEW
from randprune_lab.study_jobs import SMALL, Standing
from randprune_lab.study_results import Results, versus_of
from randprune_lab.study_runs import missing, read_asked, study_folders
from randprune_lab.study_view import AskingCost

VERDICTS = {
    REPRODUCED: ("green", ":material/check:"),
    NOT_REPRODUCED: ("red", ":material/close:"),
    NOISE: ("gray", ":material/waves:"),
    TOO_FEW: ("orange", ":material/group_add:"),
    NO_DATA: ("gray", ":material/hourglass_empty:"),
}
REDRAWN = 20  # times that the results are drawn anew while a study runs
INTRO = (
    "A run is an anecdote, a study is an answer: many runs, the same seeds for each line, fair controls that cost as "
    "much, an interval around every mean and a verdict on every claim."
)


# ---- all of them


def _all() -> None:
    page("Studies", INTRO)
    there = {folder.name: folder for folder in study_folders(places().runs / STUDIES) if _is_ours(folder.name)}
    if there:
        st.subheader("On this machine", anchor=False)
        live = st.fragment(_there, run_every=2 if any(map(_is_live, there.values())) else None)
        live({name: study_jobs.standing(folder).state for name, folder in there.items()})
    st.subheader("That come with the lab", anchor=False)
    st.caption("Each has a small form for two cores, which can be started here, and a whole one for GPUs.")
    for name, form in study_view.small_forms().items():
        if name not in there:
            _entry(name, form, "")


def _is_ours(name: str) -> bool:
    """It can be opened under its name: no link that leads elsewhere."""
    try:
        places().study(name)
    except ValueError:
        return False
    return name.isprintable()


def _is_live(folder: Path) -> bool:
    return study_jobs.standing(folder).is_live


def _there(drawn: dict[str, str]) -> None:
    """Those on disk. The page is drawn anew when one of them stands otherwise, or was opened."""
    if "study" in st.query_params:
        st.rerun()
    for name, state in drawn.items():
        try:
            folder = places().study(name)
        except ValueError:
            st.rerun()
        found = study_jobs.standing(folder)
        if found.state != state:
            st.rerun()
        if found.state == "damaged":
            badge(found.state)
            said(found.message)
            continue
        _entry(name, read_asked(folder), study_view.progress_sentence(found), found.state)


def _entry(name: str, study: Study, progress: str, state: str = "") -> None:
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, vertical_alignment="center"):
            _door(study.title, study=name)
            if state:
                badge(state)
        told = progress or f"Small form: {study_view.runs_of(name):,} runs, {len(study.seeds)} seeds."
        called = name if progress else name.removesuffix(SMALL)
        st.caption(plain(f"{study.question} {told} ({called})"))


def _door(label: str, **query: str) -> None:
    """A button that leads to another study: a link to the page that is on screen would leave its address as it is."""
    go = lambda: st.query_params.from_dict(query)
    key = f"open {query}"
    st.button(plain(label), icon=":material/arrow_forward:", type="tertiary", key=key, on_click=go)


# ---- one of them


def _one(name: str) -> None:
    form = study_view.small_forms().get(name)
    try:
        folder = places().study(name)
        study = read_asked(folder)
    except ValueError as error:
        if form is None:
            page("Studies", "There is nothing to see under this address.")
            said(error)
            _door("All studies")
            return
        folder, study = None, form
    page(study.title, plain(study.question))
    if folder is None:
        _plan(name, study)
    else:
        found = study_jobs.standing(folder)
        _buttons(name, folder, found)
        drawn = (found.state, found.done)
        st.fragment(_watched, run_every=1 if found.is_live else None)(name, drawn)
        _results(folder, study, found)
    _asked(study, folder)
    _door("All studies")


def _plan(name: str, study: Study) -> None:
    """What would be done, what it would cost, and its start."""
    parent = places().runs / STUDIES
    st.markdown(f"**Small form, for two cores.** {plain(study_view.size_sentence(study, parent))}")
    with st.container(horizontal=True, vertical_alignment="center"):
        text = "It goes on when this page is closed. Stopped or killed, it goes on from its last finished work."
        start = lambda: study_jobs.start(study, parent=parent)
        st.button("Start", icon=":material/play_arrow:", type="primary", help=text, on_click=_try, args=(name, start))
        asked = f"cost of {name}"
        if asked not in st.session_state:
            text = "Trains a few steps of one run of each kind, in the background."
            ask = lambda: st.session_state.update({asked: AskingCost(list(missing(study, parent).values()))})
            st.button("How long will it take?", icon=":material/timer:", help=text, on_click=ask)
    if asked in st.session_state:
        waiting = st.session_state[asked].poll() is None
        st.fragment(_cost, run_every=1 if waiting else None)(asked, waiting)
    _problem(name)
    st.markdown("**Whole form, for GPUs:** from a terminal, where `--plan` says first what it would cost.")
    st.code(study_view.command(name.removesuffix(SMALL)), language="bash", wrap_lines=True)
    if study.claims:
        st.markdown(
            "**What will be tested.** It is written down before the first run, so that nobody picks it afterwards."
        )
        sources = [f" ({claim.source})" if claim.source else "" for claim in study.claims]
        texts = [plain(f"{claim.says}{source}") for claim, source in zip(study.claims, sources, strict=True)]
        st.markdown("\n".join(f"- {text}" for text in texts))


def _cost(asked: str, waited: bool) -> None:
    """Looks every second, until the answer is there."""
    asking: AskingCost = st.session_state[asked]
    answer = asking.poll()
    if answer is None:
        steps = f"kind {asking.timed + 1} of {asking.kinds}" if asking.kinds > 1 else "a run like these"
        st.markdown(f":material/hourglass_top: Timing some steps of {steps} ...")
        return
    if waited:
        st.rerun()  # so that nobody looks any more
    st.markdown(plain(answer if isinstance(answer, str) else answer.sentence))


def _buttons(name: str, folder: Path, found: Standing) -> None:
    """Stop or go on, whichever makes sense here."""
    if found.is_live:
        stop = lambda: study_jobs.stop(folder, wait=False)
        text = "What is finished stays, and it can go on."
        off = found.state == "stopping"
        st.button("Stop", icon=":material/stop:", help=text, disabled=off, on_click=_try, args=(name, stop))
    elif found.state != "finished" or found.failed:
        if study_view.can_start(name, folder):
            label = "Try those again that failed" if found.state == "finished" else "Go on"
            go_on = lambda: study_jobs.start(read_asked(folder), parent=folder.parent)
            text = "Finished runs are not made again."
            st.button(label, icon=":material/play_arrow:", type="primary", help=text, on_click=_try, args=(name, go_on))
        else:
            st.caption("Only the small forms of today's lab are started here: go on with the command that began it.")
    _problem(name)


def _try(name: str, action: Callable[[], Any]) -> None:
    """Do it before the page is drawn; what did not work is said on it."""
    key = f"said {name}"
    st.session_state.pop(key, None)
    if (asking := st.session_state.pop(f"cost of {name}", None)) is not None:
        asking.cancel()  # it would only slow the study down
    try:
        action()
    except (ValueError, OSError) as error:
        st.session_state[key] = " ".join(str(error).split())


def _problem(name: str) -> None:
    if f"said {name}" in st.session_state:
        said(st.session_state.pop(f"said {name}"))


def _watched(name: str, drawn: tuple[str, int]) -> None:
    """How far it is. The page is drawn anew when its state changes, and now and then when there are more runs."""
    try:
        folder = places().study(name)
    except ValueError:
        st.rerun()
    found = study_jobs.standing(folder)
    state, done = drawn
    if found.state != state or found.done - done >= max(found.of // REDRAWN, 1):
        st.rerun()
    badge(found.state)
    if found.state != "finished":
        st.progress(found.share, text=plain(study_view.progress_sentence(found)))
    if found.message:
        (st.error if found.state in ("failed", "damaged") else st.info)(plain(found.message))
    if found.is_live and (log := folder / "log.txt").is_file() and not log.is_symlink():
        with st.expander("Log"):
            st.code(log.read_text(errors="replace")[-3000:], language=None, height=240, wrap_lines=True)


# ---- what it came to


def _results(folder: Path, study: Study, found: Standing) -> None:
    try:
        with st.spinner("Reading its runs ..."):
            results = study_view.results_of(folder)
    except (ValueError, OSError) as error:
        said(error)
        return
    if not results.finished:
        return
    if results.finished < results.of:
        left = results.of - results.finished
        peeking = study_view.PEEKING if found.is_live else "What follows is of the others."
        st.warning(plain(f"{left} of {results.of} runs are not finished. {peeking}"))
    _claims(results)
    _figures(study, results)
    _tables(study, results)
    if found.failed:
        with st.expander(f"Runs that failed: {len(found.failed)}", expanded=True):
            st.markdown("\n".join(f"- {plain(run)}: {plain(why)}" for run, why in found.failed.items()))
    with st.container(horizontal=True):
        table = lambda: results.stages.to_csv(index=False)
        download("results.csv", table, f"{study.name}.csv", "text/csv")
        download("report.html", lambda: study_view.report_of(folder), f"{study.name}.html", "text/html")


def _claims(results: Results) -> None:
    if not results.claims:
        return
    st.subheader("What is claimed, and what was found", anchor=False)
    for row in results.claims:
        color, icon = VERDICTS.get(row["verdict"], ("gray", ":material/help:"))
        with st.container(border=True, gap="small"):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{plain(row['says'])}**", width="content")
                st.badge(row["verdict"], color=color, icon=icon)  # type: ignore[arg-type]
            source = f" Claimed in {row['source']}." if row["source"] else ""
            st.caption(plain(f"{row['sentence']}.{source}"))
    st.caption(plain(study_report.HOW_TESTED))


def _figures(study: Study, results: Results) -> None:
    figures = study_report.study_figures(study, results)
    if figures:
        st.subheader("Figures", anchor=False)
    for chart, sentence in figures.values():
        draw_chart(chart)
        st.caption(plain(sentence))


def _tables(study: Study, results: Results) -> None:
    st.subheader("Numbers", anchor=False)
    against = f"Differences from {versus_of(study)}" if len(results.differences) else ""
    tabs = st.tabs([plain(title) for title in ("Means", against) if title])
    with tabs[0]:
        _table(*study_report.means_rows(study, results))
    if against:
        with tabs[1]:
            _table(*study_report.differences_rows(study, results))


def _table(head: list[str], rows: list[list[str]]) -> None:
    st.dataframe(study_view.table_rows(head, rows), hide_index=True, placeholder="")


def _asked(study: Study, folder: Path | None) -> None:
    with st.expander("How it was asked" if folder else "How it is asked", expanded=folder is None):
        told = study_report.asked(study)
        st.markdown("\n".join(f"- {plain(text)}" for text in told))
        for line, settings in {"every run": study.base, **study.lines}.items():
            shown = ", ".join(f"{key} = {value}" for key, value in settings.items()) or "-"
            st.caption(f"**{plain(line)}**: {plain(shown)}")


asked_for = st.query_params.get("study")
if asked_for:
    _one(asked_for)
else:
    _all()
