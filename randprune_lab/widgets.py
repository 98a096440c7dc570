"""The Jupyter front-end: ``explore`` shows panels 1 to 4. It draws nothing and works out nothing itself."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError(f"explore needs Jupyter ({error}). Install it: pip install 'randprune-lab[jupyter]'.") from error
from torch import Tensor, nn

from randprune_lab.explorer import Explorer, controls_table, empty_quick, no_slow_parts
from randprune_lab.page import still_picture
from randprune_lab.panels import Table
from randprune_lab.sources import open_source
from randprune_lab.state import ExploreState
from randprune_lab.tensors import TensorRow

LOOK_AGAIN = 1.0  # seconds after which the worker looks whether its panel is still there
REST = 0.06  # seconds without a new question after which the slow parts begin; till then the quick ones go first
PARTS = ("controls", "source", "quick", "sweep", "candidates", "table")
MICROSCOPE = Path(__file__).with_name("microscope.js")
ADAPTER = """
export default { render({ model, el }) {
  const root = document.createElement("div");
  el.appendChild(root);
  const panel = mount(root, (question) => { model.set("asked", question); model.save_changes(); });
  const stops = PARTS.map((name) => {
    const show = () => panel.update(model.get(name));
    model.on(`change:${name}`, show);
    show();
    return () => model.off(`change:${name}`, show);
  });
  const gone = () => panel.gone();
  model.on("comm:close", gone);
  return () => { stops.forEach((stop) => stop()); model.off("comm:close", gone); panel.destroy(); };
} };
"""


class _Setting(traitlets.TraitType[Any, Any]):
    """A field of the panel's state as a trait of its own, so that it can be observed and linked."""

    def validate(self, panel: Any, value: Any) -> Any:
        """What the state makes of the value; its error, if it is not allowed."""
        return getattr(panel.state.but(**{str(self.name): value}), str(self.name))


_Settings: Any = type(
    "_Settings",
    (traitlets.HasTraits,),
    {name: _Setting(field.default) for name, field in ExploreState.model_fields.items()},
)


class ExplorePanel(anywidget.AnyWidget, _Settings):  # type: ignore[misc]
    """Panels 1 to 4, live. Made by ``explore``.

    Traits: ``state`` (an ExploreState), and each of its fields by its own name: readable, settable, observable,
    linkable. ``result``: the numbers that follow (ir, swapped, threshold, samples, power, ...), read-only.
    """

    _esm = f"{MICROSCOPE.read_text(encoding='utf-8')}\nconst PARTS = {[f'part_{name}' for name in PARTS]};\n{ADAPTER}"

    state = traitlets.Instance(ExploreState, args=(), help="what is shown")
    result = traitlets.Dict(read_only=True, help="the numbers that follow from it")
    asked = traitlets.Dict().tag(sync=True)
    part_controls = traitlets.Dict().tag(sync=True)
    part_source = traitlets.Dict().tag(sync=True)
    part_quick = traitlets.Dict().tag(sync=True)
    part_sweep = traitlets.Dict().tag(sync=True)
    part_candidates = traitlets.Dict().tag(sync=True)
    part_table = traitlets.Dict().tag(sync=True)

    def __init__(self, model: nn.Module | Mapping[str, Tensor] | Tensor | str | Path, state: ExploreState) -> None:
        self._object = None if isinstance(model, str | Path) else model
        self._explorer: Explorer | None = None
        self._opened: str | None = None
        self._problem = ""
        self._lock = threading.RLock()  # questions come on a thread of their own, while a cell may set the state
        self._news = threading.Condition()
        self._wanted: ExploreState | None = None
        self._known: dict[str, str] = {}  # keys of the slow parts that are on screen, whole
        self._closed = False
        self._shown = state
        self._seq = time.time_ns() // 1_000_000  # a restarted kernel counts on
        super().__init__()
        self._worker = threading.Thread(target=_work, args=(weakref.ref(self),), daemon=True, name="randprune-explore")
        self.part_controls = {"kind": "controls", "controls": controls_table()}
        self._show(state, fresh=True)
        self._worker.start()

    def table(self) -> list[dict[str, Any]]:
        """A row for every matrix of the model, as plain values: what panel 4's table shows.

        Raises:
            ValueError: the model cannot be read.
        """
        rows: list[TensorRow] = list(self._source_or_error().rows(self.state))
        return [vars(row) | {"shape": list(row.shape)} for row in rows]

    def mask(self, candidate: int) -> Tensor:
        """The mask of a candidate (0: the plain one), bool, True = kept: what a run with these settings draws.

        Raises:
            ValueError: the weights cannot be read, or masks of them cannot be drawn.
        """
        return self._source_or_error().mask(self.state, candidate)

    def still(self, *, masks: bool = True) -> str:
        """What the panel shows as an SVG picture with its sentences; with ``masks`` how far those drawn agree, too."""
        if self._explorer is None:
            return still_picture({"quick": empty_quick(self.state, self._problem)})
        view = {"quick": self._explorer.quick(self.state)}
        left_out = ("table",) if masks else ("table", "candidates")
        known = {name: key for name, key in self._explorer.keys(self.state).items() if name in left_out}
        view.update(self._explorer.slow_parts(self.state, known))
        return still_picture(view)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The live panel; beside it a still picture and its sentence, for where nothing is running."""
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        quick = self.part_quick
        said = [quick[name]["sentence"] for name in ("microscope", "curve", "point") if quick[name]]
        words = " ".join(said or [notice["text"] for notice in quick["notices"]])
        return {**data, "image/svg+xml": self.still(masks=False), "text/plain": words}, metadata

    def refresh(self) -> None:
        """Read the model anew, after its files have changed or have come; then show it again."""
        with self._lock:
            self._opened = None
            self._show(self.state)

    def copy_code(self) -> str:
        """Python that shows this panel again; the button of the same name puts it on the clipboard."""
        return self.state.to_code(None if self._object is None else "model")

    def close(self) -> None:
        """Take the panel off the screen and stop its work."""
        with self._news:
            self._wanted, self._closed = None, True
            self._news.notify()
        super().close()

    def _source_or_error(self) -> Explorer:
        if self._explorer is None:
            raise ValueError(self._problem)
        return self._explorer

    def _open(self, model: str) -> bool:
        """Open what the state names, unless it is open already; whether it was opened just now."""
        known = self._opened is not None and (self._object is not None or self._opened == model)
        if known and (self._explorer is not None or not os.path.exists(model)):
            return False  # what is not there is not asked of the Hub at every move of a slider: ``refresh`` does
        self._opened, self._known = model, {}
        try:
            self._explorer, self._problem = Explorer(open_source(model if self._object is None else self._object)), ""
            self.part_source = {"kind": "source", **self._explorer.describe()}
        except Exception as error:  # somebody else's model: whatever it is, it must not end the panel
            self._explorer, self._problem = None, _words(error)
            self.part_source = {"kind": "source", "model": model, "source_kind": "", "tensors": [], "moments": []}
        for name, part in no_slow_parts().items():
            setattr(self, f"part_{name}", {"kind": name, "seq": self._seq, **part})
        return True

    def _names(self) -> Collection[str]:
        return self._explorer.source.tensors if self._explorer else ()

    def _show(
        self, state: ExploreState, *, fresh: bool = False, answers: int | None = None, notices: tuple[str, ...] = ()
    ) -> None:
        """Panels 1 and 2 and the current point at once; the rest follows on the worker's thread."""
        with self._lock:
            if self._open(state.model):
                fresh = True
                if state.model != self._shown.model and state.tensor not in self._names():
                    state = state.but(tensor="")  # it was of the model before
            state, quick = self._quick(state, fresh=fresh)
            quick["code"] = state.to_code(None if self._object is None else "model")
            quick["notices"] += [{"kind": "warning", "text": text} for text in notices]
            self._seq += 1
            self._shown = state
            self.set_trait("result", quick["derived"] or {})
            self.part_quick = {"kind": "quick", "seq": self._seq, "answers": answers, **quick}
            with self._news:
                self._wanted = state if self._explorer is not None else None
                self._news.notify()
            # Last, because those who observe these traits may set others: then that state is shown, and goes on here.
            self.state = state
            for name in ExploreState.model_fields:
                value = getattr(self.state, name)
                if getattr(self, name) != value:
                    setattr(self, name, value)

    def _quick(self, state: ExploreState, *, fresh: bool) -> tuple[ExploreState, Table]:
        if self._explorer is None:
            return state, empty_quick(state, self._problem)
        try:
            state = self._explorer.start(state) if fresh else self._explorer.placed(state)
            return state, self._explorer.quick(state)
        except Exception as error:  # out of memory, say: it must not end the panel
            return state, empty_quick(state, _words(error))

    @traitlets.observe("state", *ExploreState.model_fields)
    def _changed_from_python(self, change: Any) -> None:
        with self._lock:
            if change.name == "state":
                if change.new != self._shown:
                    self._show(change.new)
            elif change.new != getattr(self.state, change.name):
                state = self.state.but(**{change.name: change.new})
                self._show(self._explorer.follow(self.state, state) if self._explorer else state)

    @traitlets.observe("asked")
    def _changed_by_hand(self, change: Any) -> None:
        question = change.new
        seq = question.get("seq")
        with self._lock:
            if isinstance(seq, int):
                self._seq = max(self._seq, seq)
            if question.get("hello"):
                self._show(self.state, answers=seq)
                return
            state, notices = ExploreState.mended(question.get("state"))
            drag = question.get("drag")
            try:
                if self._explorer is not None:
                    state = self._explorer.follow(self.state, state)
                    state = self._explorer.dragged(state, drag["rule"], float(drag["magnitude"])) if drag else state
            except Exception as error:  # a question must have an answer
                notices.append(f"drag = {str(drag)[:100]}: {_words(error)}")
            self._show(state, answers=seq, notices=tuple(notices))

    def _next(self) -> ExploreState | None:
        """Wait for a state that nothing newer has followed for a while; None: look again."""
        with self._news:
            if self._wanted is None and not self._closed:
                self._news.wait(LOOK_AGAIN)
            state = self._wanted
            if state is None or self._news.wait(REST):  # a newer one came meanwhile
                return None
            self._wanted = None
            return state

    def _work_on(self, state: ExploreState) -> None:
        explorer = self._explorer
        try:
            for name, part in explorer.slow_parts(state, self._known) if explorer else ():
                with self._lock:
                    if self._wanted is not None or self._closed or explorer is not self._explorer:
                        return
                    self._known.pop(name, None)
                    if part.get("done") == part.get("total"):  # also where it has neither: it is whole
                        self._known[name] = part["key"]
                    self._seq += 1
                    setattr(self, f"part_{name}", {"kind": name, "seq": self._seq, **part})
        except Exception as error:  # out of memory, say: it must not end the panel
            with self._lock:
                said = [*self.part_quick["notices"], {"kind": "error", "text": _words(error)}]
                self._seq += 1
                self.part_quick = {**self.part_quick, "seq": self._seq, "answers": None, "notices": said}


def _work(panel: weakref.ref[ExplorePanel]) -> None:
    """The slow parts of the newest state, for as long as somebody holds the panel."""
    while True:
        held = panel()
        if held is None or held._closed:
            return
        state = held._next()
        if state is not None:
            held._work_on(state)
        del held


def _words(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}. Try other settings."


def explore(
    model: nn.Module | Mapping[str, Tensor] | Tensor | str | Path, state: ExploreState | None = None, **settings: Any
) -> ExplorePanel:
    """Panels 1 to 4 for a model: move the sliders, watch the weights near tau, compare candidate masks.

    Args:
        model: a network, a dict of tensors or one tensor, in memory; the path of a run's folder, or of a folder or file
            of safetensors; or a Hub id.
        state: where to begin; None: the defaults, or of a run its own settings.
        settings: fields of ExploreState to begin with, such as sparsity=0.9.

    Raises:
        ValueError: a setting is not allowed. (A model that cannot be read is said in the panel.)
    """
    state = (state or ExploreState()).but(**settings)
    if isinstance(model, str | Path):
        state = state.but(model=str(model))
    return ExplorePanel(model, state)
