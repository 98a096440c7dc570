"""Panel 5: what a run should do, what it will cost, and its start."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st
from common import noted, open_page, places, plain, said

from randprune_lab import forms, jobs, store
from randprune_lab.config import RunConfig
from randprune_lab.estimate import Asking, Estimate, in_time
from randprune_lab.forms import FormField, Settings
from randprune_lab.places import MODELS, PATH_FIELDS, RUNS
from randprune_lab.state import ExploreState

KEPT = "launch kept"  # of this session: what the boxes hold, also while another page is shown
SEEN = "launch seen"  # settings that came from Explore
WHAT_I_SEE = "what I see"
WIDTH = 190  # pixels of a box
NAMES_ONLY = "Here: a name of the list, models/NAME, or a Hub id."


def launch_panel() -> None:
    """The form, the estimate, and the button that starts it all."""
    _read_address()
    presets = forms.PRESETS | st.session_state.get(SEEN, {})
    preset = st.selectbox("preset", presets, key=_key("preset"), on_change=_refill, width=WIDTH)
    st.caption(f"{_title(presets[preset][0])}.")
    values = _form()
    runs, problem = _runs(values)
    _cost(runs, problem)
    if not problem:
        _summary(runs, values, preset if preset in forms.PRESETS else "demo")


def _key(name: str) -> str:
    return f"launch {name}"


# ---- what the boxes begin with


def _read_address() -> None:
    """What the URL asks for, once; without a wish the boxes stay as they were."""
    kept: Settings = st.session_state.setdefault(KEPT, {})
    query = st.query_params.to_dict()
    address = urllib.parse.urlencode(query)
    if not kept or (query and address != kept["address"]):
        preset = query.get("preset", "demo")
        if "launch" in query:
            st.session_state[SEEN] = {WHAT_I_SEE: ("the settings that Explore showed", _seen(query))}
            preset = WHAT_I_SEE
        st.session_state[_key("preset")] = preset if preset in (*forms.PRESETS, WHAT_I_SEE) else "demo"
        kept["address"] = address
        _fill()
    for name, value in kept.items():
        st.session_state.setdefault(_key(name), value)  # Streamlit forgets boxes that were not on screen


def _refill() -> None:
    """Another preset was chosen: the address names it, and the boxes hold it."""
    preset = st.session_state[_key("preset")]
    if preset in forms.PRESETS:
        st.query_params.from_dict({"preset": preset})
        st.session_state[KEPT]["address"] = urllib.parse.urlencode({"preset": preset})
    _fill()


def _fill() -> None:
    preset = st.session_state[_key("preset")]
    _, settings = (forms.PRESETS | st.session_state.get(SEEN, {}))[preset]
    for name, value in forms.filled(settings).items():
        st.session_state[_key(name)] = st.session_state[KEPT][name] = value
    st.session_state[KEPT]["preset"] = preset


def _seen(query: Mapping[str, str]) -> Settings:
    """Settings for what Explore showed; a run is read, so that the new one goes on with its settings."""
    wish = urllib.parse.urlencode({name: value for name, value in query.items() if name not in ("launch", "preset")})
    state, notices = ExploreState.from_query(wish)
    noted(notices)
    config = None
    if state.model.startswith(RUNS):
        try:
            config = store.read_config(places().run(state.model.removeprefix(RUNS)))
        except (ValueError, OSError) as error:
            said(error)
    settings = forms.seen(state, run_config=config)
    return settings | {name: _named(settings[name]) for name in PATH_FIELDS if name in settings}


def _named(value: str) -> str:
    """A path of a models folder as its name in this app."""
    for root in places().models:
        if value and Path(value).is_relative_to(root):
            return f"{MODELS}{Path(value).relative_to(root).as_posix()}"
    return value


# ---- the form


def _form() -> Settings:
    """All boxes; returns what they hold."""
    values: Settings = {}
    held = {name: st.session_state.get(_key(name), field.default) for name, field in forms.BY_NAME.items()}
    tabs = st.tabs([_title(group) for group in forms.FIELDS])
    for tab, fields in zip(tabs, forms.FIELDS.values(), strict=True):
        first, seldom = ([field for field in fields if field.advanced == advanced] for advanced in (False, True))
        with tab:
            values |= _boxes(first, held)
            if first and seldom:
                with st.expander("Seldom needed"):
                    values |= _boxes(seldom, held)
            else:
                values |= _boxes(seldom, held)
    st.session_state[KEPT] |= values
    return values


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _boxes(fields: list[FormField], held: Settings) -> Settings:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        return {field.name: _box(field, disabled=not forms.counts(field.name, held)) for field in fields}


def _box(field: FormField, *, disabled: bool) -> Any:
    key, help_ = _key(field.name), field.help
    if field.name in PATH_FIELDS:
        help_ += f" {NAMES_ONLY}"
    if field.kind == "switch":
        return st.checkbox(field.title, key=key, help=help_, disabled=disabled, width=WIDTH)
    if field.kind == "choice":
        first = None if field.name == "task" else 0  # of a checkpoint nobody knows the task: it is to be chosen
        if first is None and st.session_state[key] not in field.options:
            st.session_state[key] = None
        return st.selectbox(
            field.title,
            field.options,
            first,
            key=key,
            help=help_,
            disabled=disabled,
            placeholder="choose",
            width=WIDTH,
        )
    if field.name == "model":
        own = [name for name in places().names() if name.startswith(MODELS)]
        options = list(dict.fromkeys([*field.options, *own, st.session_state[key]]))
        return st.selectbox(field.title, options, key=key, help=help_, accept_new_options=True, width=WIDTH)
    # Not number boxes: those cut 1e3 to 1, and refuse without a word what we can explain.
    empty = "none" if field.optional else ""
    width = 2 * WIDTH if field.name == "stages" else WIDTH
    return st.text_input(field.title, key=key, help=help_, disabled=disabled, placeholder=empty, width=width)


# ---- what it comes to


def _runs(values: Settings) -> tuple[list[RunConfig], str]:
    """The runs that the form asks for, with controls and seeds; or why there are none."""
    chosen, seeds = _beside(forms.fitting_controls(RunConfig(method=values["method"])))
    try:
        config = forms.parse(places().settings(_counted(values)))
        jobs.slots()  # as the environment says, which may be nonsense
        return forms.batch(config, chosen, seeds), ""
    except (ValueError, OSError) as error:
        return [], " ".join(str(error).split())


def _counted(values: Settings) -> Settings:
    return {name: value for name, value in values.items() if forms.counts(name, values)}


def _beside(controls: Sequence[str]) -> tuple[list[str], int]:
    """What runs beside it: the chosen controls, and for how many seeds."""
    st.markdown(
        "**Runs to compare it with.** A fair control costs the same; a difference smaller than the seeds' spread is no "
        "result."
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.session_state.setdefault(_key("seeds"), 1)
        help_ = "So many runs of each, with the seeds that follow."
        seeds = st.number_input("seeds", 1, forms.MOST_SEEDS, key=_key("seeds"), help=help_, width=WIDTH)
        for name in controls:
            st.session_state.setdefault(_key(name), name == "imp-matched")
            st.checkbox(f"control {name}", key=_key(name), help=forms.CONTROLS[name])
    chosen = {name: bool(st.session_state[_key(name)]) for name in controls}
    st.session_state[KEPT] |= {"seeds": seeds, **chosen}
    return [name for name in controls if chosen[name]], int(seeds)


def _cost(runs: list[RunConfig], problem: str) -> None:
    """The start, and beside it the estimate or what is wrong."""
    answer = _ask(runs[0]) if runs else None
    if not problem and isinstance(answer, str) and not answer.startswith("No estimate"):
        problem = answer
    with st.container(horizontal=True, vertical_alignment="center"):
        label = f"Start {len(runs)} runs" if len(runs) > 1 else "Start"
        start = st.button(label, icon=":material/play_arrow:", type="primary", disabled=bool(problem))
        if problem:
            said(problem)
        else:
            st.fragment(_estimate, run_every=1 if answer is None else None)(runs, answer is None)
    if start:
        _start(runs)


def _summary(runs: list[RunConfig], values: Settings, preset: str) -> None:
    """What was changed, by the names of this app, and the command lines."""
    changed = forms.changes(forms.parse(_counted(values)), preset)
    if changed:
        changes = "; ".join(f"{name} {value}" for name, value in changed.items())
        st.caption(f"Other than preset {preset}: {plain(changes)}")
    with st.expander("The same from a terminal"):
        st.code("\n".join(forms.as_commands(runs)), language="bash", wrap_lines=True)


def _ask(config: RunConfig) -> Estimate | str | None:
    """The answer for a run like this one, if it is there; who has not asked yet asks. The seed costs nothing."""
    wanted = config.model_copy(update={"seed": 0}).model_dump_json()
    before = st.session_state.get("launch asked")
    if before is None or before[0] != wanted:
        if before is not None:
            before[1].cancel()
        before = st.session_state["launch asked"] = (wanted, Asking(config))
    answer: Estimate | str | None = before[1].poll()
    return answer


def _estimate(runs: list[RunConfig], waited: bool) -> None:
    """Looks every second, until the answer is there."""
    answer = _ask(runs[0])
    if answer is None:
        st.markdown(":material/hourglass_top: Timing some steps to tell what it will cost ...")
        return
    if waited:
        st.rerun()  # so that nobody looks any more, and a problem is said beside the button
    if isinstance(answer, str):
        st.info(plain(answer))
        return
    text = answer.sentence
    if len(runs) > 1:
        in_all = in_time(answer.seconds * len(runs) / min(jobs.slots(), len(runs)))
        turns = "one after another" if jobs.slots() == 1 else f"{jobs.slots()} at a time"
        text = f"Each run: {text[0].lower()}{text[1:]} All {len(runs)}, {turns}: about {in_all}."
    st.markdown(plain(text))
    for warning in answer.warnings:
        st.warning(plain(warning))


def _start(runs: list[RunConfig]) -> None:
    try:
        folders = jobs.start_all(runs, parent=places().runs)
    except (ValueError, OSError) as error:
        said(error)
        return
    st.session_state.pop("launch asked")[1].cancel()  # it would only slow the run down
    open_page("run", run=folders[0].name)
