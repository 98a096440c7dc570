"""The conversation behind panels 1 to 4, for any front-end: what the user does comes in, parts of the picture go out.

A front-end makes an ``Opener`` where names mean something of its own, passes questions on, and hands the parts over.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from randprune_lab import status
from randprune_lab.explorer import Explorer, controls_table, empty_quick, no_slow_parts
from randprune_lab.panels import Table
from randprune_lab.sources import Moment, open_source
from randprune_lab.state import ExploreState

REST = 0.06  # seconds without a new question after which the slow parts begin; till then the quick ones go first
SLOW = ("sweep", "candidates", "table")
PARTS = ("controls", "source", "quick", *SLOW)
THREAD = "randprune-explore"


class Opener:
    """What the names of models mean: here paths and Hub ids."""

    def key(self, model: str) -> str:
        """Changes when another name means another source."""
        return model

    def open(self, model: str) -> Explorer:
        """The tables of a model.

        Raises:
            ValueError: it cannot be read.
        """
        return Explorer(open_source(model))

    def may_open(self, model: str) -> bool:
        """Whether what could not be opened is worth another try: the Hub is not asked at every move of a slider."""
        return os.path.exists(model)

    def is_live(self, model: str) -> bool:
        """Whether the model is a run that goes on, so that more of it may come."""
        return goes_on(Path(model))

    def code(self, state: ExploreState) -> str:
        """Python that shows a state again."""
        return state.to_code()


def _nothing(_: Table) -> None:
    """Publishes nowhere: who wants to know looks at ``parts``."""


class Dialogue:
    """One user's panels. ``publish`` gets each part as soon as it is there: plain values, ``kind`` and ``seq`` in it.

    The quick parts are made on the caller's thread, the slow ones on one that lives while there is slow work.

    Attributes:
        state: what is shown.
        parts: the newest of each part.
        lock: held while a part is published; whoever changes the state from outside may hold it, too.
    """

    def __init__(
        self,
        opener: Opener,
        state: ExploreState,
        publish: Callable[[Table], None] = _nothing,
        *,
        slow: Collection[str] = SLOW,
    ) -> None:
        self.opener, self.state, self.parts = opener, state, dict[str, Table]()
        self.explorer: Explorer | None = None
        self.problem = ""
        self.lock = threading.RLock()  # questions come on threads of their own
        self._publish, self._slow = publish, slow
        self._opened: str | None = None
        self._moments: tuple[Moment, ...] = ()
        self._known: dict[str, str] = {}  # keys of the slow parts that are on screen, whole
        self._news = threading.Condition(self.lock)
        self._turn = 0  # counts what was shown: work for an older turn is given up
        self._wanted: ExploreState | None = None
        self._working = False
        self._seq = time.time_ns() // 1_000_000  # after a restart it counts on

    def start(self) -> None:
        """Show the state; a run begins with its own settings."""
        self._put({"kind": "controls", "controls": controls_table()})
        self.show(self.state, fresh=True)

    @property
    def pending(self) -> bool:
        """Slow parts are still to come."""
        return self._working

    def asked(self, question: Mapping[str, Any]) -> None:
        """A question of the browser: ``hello``, ``more`` (has anything come?), or a ``state``, with a ``drag`` or none.

        ``seq`` is its number: the quick part that answers it says so.
        """
        seq = question.get("seq")
        with self.lock:
            if isinstance(seq, int):
                self._seq = max(self._seq, seq)
            if question.get("more"):
                self.look_again()
            elif question.get("hello"):
                self.show(self.state, answers=seq)
            else:
                self._moved(question, seq)

    def _moved(self, question: Mapping[str, Any], seq: Any) -> None:
        state, notices = ExploreState.mended(question.get("state"))  # type: ignore[arg-type]
        drag = question.get("drag")
        try:
            if self.explorer is not None:
                state = self.explorer.follow(self.state, state)
                state = self.explorer.dragged(state, drag["rule"], float(drag["magnitude"])) if drag else state
        except Exception as error:  # a question must have an answer
            notices.append(f"drag = {str(drag)[:100]}: {_words(error)}")
        self.show(state, answers=seq, notices=notices)

    def change(self, **changes: Any) -> None:
        """Some settings change from outside the panel; another stage of a run brings its own.

        Raises:
            ValueError: a value is not allowed.
        """
        with self.lock:
            state = self.state.but(**changes)
            self.show(self.explorer.follow(self.state, state) if self.explorer else state)

    def show(
        self, state: ExploreState, *, fresh: bool = False, answers: int | None = None, notices: Collection[str] = ()
    ) -> None:
        """Panels 1 and 2 and the current point at once; the rest follows. ``fresh``: as when a model is opened."""
        with self.lock:
            if self._open(state.model):
                fresh = True
                if state.model != self.state.model and state.tensor not in self._names():
                    state = state.but(tensor="")  # it was of the model before
            self._describe()
            state, quick = self._quick(state, fresh=fresh)
            quick["code"] = self._code(state)
            quick["notices"] += [{"kind": "warning", "text": text} for text in notices]
            quick["live"] = self.opener.is_live(state.model)
            self.state = state
            self._want(state, quick["keys"])
            self._put({"kind": "quick", "seq": self._next(), "answers": answers, **quick})

    def look_again(self) -> None:
        """Show what has come meanwhile: moments and scores of a run that goes on."""
        with self.lock:
            quick = self.parts["quick"]
            if self._has_changed(quick) or self.opener.is_live(self.state.model) != quick["live"]:
                self.show(self.state)

    def _has_changed(self, quick: Table) -> bool:
        if self.explorer is None:
            return True
        try:
            moments = self.explorer.source.moments
            return moments != self._moments or bool(quick["keys"] and self.explorer.keys(self.state) != quick["keys"])
        except Exception:  # its files are damaged, or not there any more: ``show`` says it
            return True

    def refresh(self) -> None:
        """Read the model anew, after its files have changed or have come; then show it again."""
        with self.lock:
            self._opened = None
            self.show(self.state)

    def close(self) -> None:
        """Give up the slow work."""
        with self.lock:
            self._turn += 1
            self._wanted = None
            self._news.notify_all()

    def source_or_error(self) -> Explorer:
        """The tables of the model that is shown.

        Raises:
            ValueError: it could not be opened.
        """
        if self.explorer is None:
            raise ValueError(self.problem)
        return self.explorer

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _put(self, part: Table) -> None:
        self.parts[part["kind"]] = part
        self._publish(part)

    def _open(self, model: str) -> bool:
        """Open what the state names, unless it is open already; whether it was opened just now."""
        key = self.opener.key(model)
        if self._opened == key and (self.explorer is not None or not self.opener.may_open(model)):
            return False
        self._opened, self._known, self._moments = key, {}, ()
        try:
            self.explorer, self.problem = self.opener.open(model), ""
            self._moments = self.explorer.source.moments
            source = self.explorer.describe()
        except Exception as error:  # somebody else's model: whatever it is, it must not end the panel
            self.explorer, self.problem = None, _words(error)
            source = {"model": model, "source_kind": "", "tensors": [], "moments": []}
        self._put({"kind": "source", "seq": self._next(), **source})
        for name, part in no_slow_parts().items():
            if name in self._slow:
                self._put({"kind": name, "seq": self._seq, **part})
        return True

    def _describe(self) -> None:
        """A run that goes on gets further moments."""
        if self.explorer is None:
            return
        with contextlib.suppress(ValueError, OSError):  # ``quick`` says it
            if self._moments != (moments := self.explorer.source.moments):
                self._moments = moments
                self._put({"kind": "source", "seq": self._next(), **self.explorer.describe()})

    def _names(self) -> Collection[str]:
        return self.explorer.source.tensors if self.explorer else ()

    def _quick(self, state: ExploreState, *, fresh: bool) -> tuple[ExploreState, Table]:
        if self.explorer is None:
            return state, empty_quick(state, self.problem)
        try:
            state = self.explorer.start(state) if fresh else self.explorer.placed(state)
            return state, self.explorer.quick(state)
        except Exception as error:  # out of memory, say: it must not end the panel
            return state, empty_quick(state, _words(error))

    def _code(self, state: ExploreState) -> str:
        try:
            return self.opener.code(state)
        except ValueError:  # what is not there any more has no path; the panel says so
            return state.to_code()

    def _want(self, state: ExploreState, keys: Mapping[str, str]) -> None:
        """Have the slow parts of this state made, those that are not on screen yet."""
        self._turn += 1
        todo = self.explorer is not None and any(self._known.get(name) != keys.get(name) for name in self._slow)
        self._wanted = state if todo else None
        self._news.notify_all()
        if todo and not self._working:
            self._working = True
            threading.Thread(target=self._work, daemon=True, name=THREAD).start()

    def _work(self) -> None:
        """The slow parts of the newest state, until there is no newer one."""
        while True:
            with self._news:
                state = self._wanted
                if state is None:
                    self._working = False
                    return
                self._news.wait(REST)
                if self._wanted is not state:  # a newer one came meanwhile
                    continue
                self._wanted, turn, explorer = None, self._turn, self.explorer
            if explorer is not None:
                self._work_on(explorer, state, turn)

    def _work_on(self, explorer: Explorer, state: ExploreState, turn: int) -> None:
        try:
            hidden = {name: key for name, key in explorer.keys(state).items() if name not in self._slow}
            for name, part in explorer.slow_parts(state, {**self._known, **hidden}):
                with self.lock:
                    if turn != self._turn:
                        return
                    self._known.pop(name, None)
                    if part.get("done") == part.get("total"):  # also where it has neither: it is whole
                        self._known[name] = part["key"]
                    self._put({"kind": name, "seq": self._next(), **part})
        except Exception as error:  # out of memory, say: it must not end the panel
            with self.lock:
                if turn == self._turn:
                    quick = self.parts["quick"]
                    said = [notice["text"] for notice in quick["notices"]]
                    if _words(error) not in said:
                        notices = [*quick["notices"], {"kind": "error", "text": _words(error)}]
                        self._put({**quick, "seq": self._next(), "answers": None, "notices": notices})


def goes_on(folder: Path) -> bool:
    """Whether this is a run that a process works on or waits to."""
    try:
        return folder.is_dir() and status.is_live(folder)
    except (OSError, ValueError):  # not a path at all
        return False


def _words(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}. Try other settings."
