"""Panels 1 to 4 in Streamlit: the same drawing module as in Jupyter, and the same conversation behind it."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from common import places

from randprune_lab.demo import demo_explorer
from randprune_lab.dialogue import SLOW, Dialogue, Opener, goes_on
from randprune_lab.explorer import Explorer
from randprune_lab.page import MICROSCOPE
from randprune_lab.places import DEMO
from randprune_lab.sources import open_source
from randprune_lab.state import ExploreState

SLOW_PART = {"randomness": "sweep", "candidates": "candidates", "table": "table"}  # by panel
BUSY = "No answer for 5 s. The server is busy or gone: if it was started again, reload the page."
MORE = 120  # ms after which the browser asks for the parts that are still to come
TOUR_CONTROLS = ["sparsity", "samples", "power"]
SAID = 200  # queries that are remembered

# One mount for each place on the page, which stays while Streamlit calls again with new data. Streamlit may call the
# cleanup of an earlier call though the place lives on: what counts is whether it is still in the document.
ADAPTER = """
const mounted = new WeakMap();
// Streamlit takes a question of a page that is being left for a wish to go back, and empties the next page.
const leads = (event) => {
  if (event.target.closest?.("[class*=st-key-leaves] button:enabled")) return true;
  const link = event.target.closest?.("a[href]");
  const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey; // a tab or window of its own
  if (!link || link.download || link.target === "_blank" || elsewhere) return false;
  return new URL(link.href).pathname !== location.pathname;
};
export default function ({ data, setStateValue, parentElement }) {
  const held = mounted.get(parentElement) ?? { root: document.createElement("div"), has: {}, path: location.pathname };
  held.ask = (question) => {
    if (held.left || location.pathname !== held.path) return;
    setStateValue("asked", { ...question, has: { ...held.has } });
  };
  if (!held.panel) {
    mounted.set(parentElement, held);
    parentElement.appendChild(held.root);
    held.watch = (event) => { held.left ||= leads(event); };
    document.addEventListener("click", held.watch, true);
    held.panel = mount(held.root, (question) => held.ask(question), data.options);
  }
  for (const part of data.parts) {
    if (held.has[part.kind] >= (part.seq ?? 0)) continue;
    held.has[part.kind] = part.seq ?? 0;
    held.panel.update(part);
  }
  if (data.pending) held.panel.lookAgain(data.options.more);
  if (data.query !== null && data.query !== held.query) {
    held.query = data.query;
    clearTimeout(held.timer);
    held.timer = setTimeout(() => {
      const here = held.root.isConnected && location.pathname === held.path;
      if (here) history.replaceState(history.state, "", `${held.path}?${held.query}${location.hash}`);
    }, 300);
  }
  return () => setTimeout(() => {
    if (held.root.isConnected) return;
    clearTimeout(held.timer);
    document.removeEventListener("click", held.watch, true);
    held.panel.destroy();
    mounted.delete(parentElement);
  });
}
"""
_draw = st.components.v2.component("randprune_microscope", js=f"{MICROSCOPE.read_text(encoding='utf-8')}\n{ADAPTER}")


def live_panel(
    state: ExploreState, *, key: str, panels: tuple[str, ...] | None = None, tour: bool = False, url: bool = False
) -> ExploreState:
    """Draw panels 1 to 4, or those named in ``panels``, and return the state that is on screen.

    Whatever the user does in them stays until another ``state`` is passed.

    Args:
        state: what to show; its model is a name of ``places().names()``.
        key: of the panels in this session.
        panels: of "microscope", "curve", "candidates", "randomness", "table".
        tour: the sparsity moves by itself at first; few controls, for those who have never been here.
        url: the state is written into the page's address.
    """
    shown = st.session_state.get(_slot(key))
    if shown is None:
        slow = SLOW if panels is None else [SLOW_PART[panel] for panel in panels if panel in SLOW_PART]
        shown = st.session_state[_slot(key)] = _Shown(state, slow)
    else:
        shown.follow(state, anew=key not in st.session_state)
    options: dict[str, Any] = {"tour": tour, "code": not tour, "busy": BUSY, "more": MORE}
    if panels is not None:
        options["panels"] = list(panels)
    if tour:
        options["controls"] = TOUR_CONTROLS
    _converse(key, options, url=url)
    return shown.dialogue.state


def on_screen(key: str) -> ExploreState | None:
    """What the panels of this key show, or showed when they were last on screen in this session."""
    shown = st.session_state.get(_slot(key))
    return shown.dialogue.state if shown else None


def change(key: str, **changes: Any) -> None:
    """Change settings of panels that have been on screen."""
    st.session_state[_slot(key)].dialogue.change(**changes)


@st.fragment
def _converse(key: str, options: dict[str, Any], *, url: bool) -> None:
    """One question and its answer. Only this runs when the browser asks."""
    shown = st.session_state[_slot(key)]
    asked = (st.session_state.get(key) or {}).get("asked")
    shown.hear(asked)
    _draw(key=key, data={**shown.answer(asked), "options": options, **shown.address(url)}, on_asked_change=_nothing)


def _nothing() -> None:
    """Streamlit keeps a value only where something is called when it changes."""


def _slot(key: str) -> str:
    return f"{key}.shown"


class _Shown:
    """The panels of one session."""

    def __init__(self, state: ExploreState, slow: list[str] | tuple[str, ...]) -> None:
        self.given = state
        self.dialogue = Dialogue(_NamedModels(), state, slow=slow)
        self.dialogue.start()
        self._heard: Any = None
        self._said: collections.deque[str] = collections.deque(maxlen=SAID)

    def follow(self, state: ExploreState, *, anew: bool) -> None:
        """Show what the page passes, if it is news: not the same as before, nor what the panel wrote into the address.

        ``anew``: the panel comes back on screen; then it shows what the page passes.
        """
        news = state != self.given and state.to_query() not in self._said
        if (anew or news) and state != self.dialogue.state:
            self.dialogue.show(state)
        self.given = state

    def hear(self, asked: Any) -> None:
        """Pass a question on, once: Streamlit runs the page again for other reasons, too."""
        if isinstance(asked, Mapping) and asked.get("seq") != self._heard:
            self._heard = asked.get("seq")
            self.dialogue.asked(asked)

    def answer(self, asked: Any) -> dict[str, Any]:
        """The parts that the browser does not have yet, and whether others are still to come."""
        has = asked.get("has") if isinstance(asked, Mapping) else None
        has = has if isinstance(has, Mapping) else {}
        with self.dialogue.lock:
            newer = [part for kind, part in self.dialogue.parts.items() if _seq(has.get(kind)) < part.get("seq", 0)]
            return {"parts": newer, "pending": self.dialogue.pending, "heard": self._heard}

    def address(self, url: bool) -> dict[str, str | None]:
        """The query of the page's address."""
        query = self.dialogue.state.to_query() if url else None
        if query is not None:
            self._said.append(query)
        return {"query": query}


def _seq(had: Any) -> float:
    return had if isinstance(had, int | float) else -1


class _NamedModels(Opener):
    """Names of ``places().names()``: nothing else can be opened, whatever a browser asks for."""

    def open(self, model: str) -> Explorer:
        if model == DEMO:
            return demo()
        path = places().model(model)
        return _opened(model, str(path), _stamp(path))

    def may_open(self, model: str) -> bool:  # noqa: ARG002
        return True  # to look costs nothing here

    def is_live(self, model: str) -> bool:
        try:
            return model != DEMO and goes_on(places().model(model))
        except ValueError:
            return False

    def code(self, state: ExploreState) -> str:
        if state.model == DEMO:
            return f"from randprune_lab.demo import demo_weights\n{state.to_code('demo_weights()')}"
        return state.but(model=str(places().model(state.model).absolute())).to_code()


@st.cache_resource(show_spinner="The lab trains the network of the demo: some seconds, once ...")
def demo() -> Explorer:
    """The network that the lab trains itself, for all sessions."""
    return demo_explorer()


@st.cache_resource(max_entries=4, show_spinner=False)
def _opened(name: str, path: str, stamp: str) -> Explorer:  # noqa: ARG001, part of the key
    """Shared by all sessions, until its files are others."""
    source = open_source(path)
    source.label = name  # no page shows where the folders of this app are
    return Explorer(source)


def _stamp(path: Path) -> str:
    """Changes when a model's files are others; a run's checkpoints come and go, its configuration stays."""
    if (path / "config.json").is_file() and (path / "events.jsonl").is_file():
        files = [path / "config.json"]
    else:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return repr([(name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found])
