"""The Jupyter front-end of runs: ``launch`` (panels 5 and 6), ``history`` (7) and ``compare`` (8).

It trains nothing and works out nothing itself: jobs, forms and live do. What comes from files is shown as text only.
"""

from __future__ import annotations

import dataclasses
import html
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import anywidget
    import ipywidgets  # type: ignore[import-untyped]
    import traitlets
except ImportError as error:
    raise ImportError(
        f"launch, history and compare need Jupyter ({error}). Install it: pip install 'randprune-lab[jupyter]'."
    ) from error

from randprune_lab import forms, jobs, live, store
from randprune_lab.config import RunConfig
from randprune_lab.estimate import Asking, Estimate
from randprune_lab.state import ExploreState
from randprune_lab.status import Status

PAUSE = 1.0  # seconds between two looks at a run's files
DRAWING_PAUSE = 3.0  # seconds between two drawings of its charts
STYLE = """<style>
.rp-console table { border-collapse: collapse; font-size: 13px; }
.rp-console th { text-align: left; font-weight: 600; }
.rp-console th, .rp-console td { padding: 3px 10px 3px 0; border-bottom: 1px solid var(--jp-border-color2, #ccc); }
/* Upside down, so that it stays at the last line. */
.rp-console .log { max-height: 220px; overflow: auto; display: flex; flex-direction: column-reverse; }
.rp-console pre { margin: 0; font-size: 12px; }
.rp-console .chart { background: white; border-radius: 6px; overflow-x: auto; }
.rp-console .chart svg { max-width: 100%; height: auto; }
.rp-console .scroll { overflow-x: auto; }
.rp-console .rp-help { padding-left: 8px; }
.rp-console .rp-help * { color: var(--jp-ui-font-color2, #666); font-size: 12px; line-height: 1.35; }
.rp-console .error { color: var(--jp-error-color1, #b00020); }
</style>"""
# The page asks now and then whether anybody is there: after a restart of the kernel old views look alive.
PULSE = """
export default { render({ model, el }) {
  let asked = 0, since = 0;
  const note = document.createElement("p");
  note.setAttribute("role", "status");
  note.style.cssText = "color: var(--jp-error-color1, #b00020); margin: 0";
  el.appendChild(note);
  const words = "No answer from the kernel: if it was restarted, run this cell again.";
  const say = (gone) => { note.textContent = gone ? words : ""; };
  const answered = () => { if (model.get("answered") === asked) { since = 0; say(false); } };
  const gone = () => say(true);
  model.on("change:answered", answered);
  model.on("comm:close", gone);
  const timer = setInterval(() => {
    if (since && Date.now() - since > 5000) { say(true); }
    if (!since) { asked = Date.now(); since = asked; model.set("asked", asked); model.save_changes(); }
  }, 2500);
  return () => { clearInterval(timer); model.off("change:answered", answered); model.off("comm:close", gone); };
} };
"""


class _Pulse(anywidget.AnyWidget):
    _esm = PULSE
    asked = traitlets.Float(0).tag(sync=True)
    answered = traitlets.Float(0).tag(sync=True)

    @traitlets.observe("asked")
    def _answer(self, change: Any) -> None:
        self.answered = change.new


# Plain values -> HTML. Whatever stands in a run's files is escaped here, in one place.


def _text(value: object) -> str:
    return html.escape(str(value))


def _paragraph(text: object, *, kind: str = "") -> str:
    return f'<p class="{kind}">{_text(text)}</p>' if text else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of values under their heads; None is an empty cell."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    cells = (["" if cell is None else _text(cell) for cell in row] for row in rows)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<h4>{_text(title)}</h4>{body}" if body else ""


def _framed(svg: str) -> str:
    return f'<div class="chart">{svg}</div>'


def _points(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


class _Panel(ipywidgets.VBox):  # type: ignore[misc]
    """What the panels share: one callback after another, and an error is said in the panel."""

    def __init__(self, *children: ipywidgets.Widget) -> None:
        self._lock = threading.RLock()  # callbacks come on a thread of their own, while a cell may call us, too
        self._said = ipywidgets.HTML()
        super().__init__([ipywidgets.HTML(STYLE), *children, self._said, _Pulse()])
        self.add_class("rp-console")

    def close(self) -> None:
        """Take the panel off the screen, with all that is in it."""
        for child in self.children:
            child.close()
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The live panel; beside it what a saved notebook still shows."""
        return {**super()._repr_mimebundle_(**options), **self._still()}

    def _still(self) -> dict[str, str]:
        """Sentences as text, and a picture where there is one."""
        raise NotImplementedError

    def _button(self, label: str, do: Callable[[], None], **options: Any) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, **options)
        button.on_click(lambda _: self._try(do))
        return button

    def _try(self, do: Callable[[], None]) -> None:
        with self._lock:
            _set(self._said, "")
            try:
                do()
            except Exception as error:  # a traceback on a callback's thread is seen by nobody
                _set(self._said, _paragraph(_words(error), kind="error"))


def _set(widget: ipywidgets.HTML, value: str) -> None:
    """Only what has changed is sent to the browser."""
    if widget.value != value:
        widget.value = value


def _words(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}."


# Panel 6

PARTS = ("head", "result", "ladder", "lanes", "near", "epochs", "log")


class RunPanel(_Panel):
    """Panel 6: a run as it goes on; stop it, resume it. Made by ``Handle.panel``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bar = ipywidgets.FloatProgress(min=0.0, max=1.0, layout={"width": "100%"})
        self._stop = self._button("Stop", self._stop_run, icon="stop")
        self._resume = self._button("Resume", self._resume_run, icon="play")
        self._parts = {
            name: ipywidgets.HTML() for name in ("head", "result", "ladder", "lanes", "near", "epochs", "log")
        }
        self._closing = threading.Event()
        self._watched = False
        self._drawn: dict[str, Any] = {}
        self._next_drawing = 0.0
        parts = list(self._parts.values())
        super().__init__(parts[0], self._bar, ipywidgets.HBox([self._stop, self._resume]), *parts[1:])
        self._try(self._follow)

    def table(self) -> dict[str, Any]:
        """What the panel shows, as plain values: ``live.live_view``."""
        return live.live_view(self.folder)

    def refresh(self) -> bool:
        """Read the run's files and show what has changed; whether more is to come."""
        with self._lock:
            view = self.table()
            self._try(lambda: self._show(view))
            self._watched = bool(view["is_live"]) and not self._closing.is_set()
            return self._watched

    def close(self) -> None:
        """Take the panel off the screen. The run goes on."""
        self._closing.set()
        super().close()

    def _still(self) -> dict[str, str]:
        return Handle(self.folder)._repr_mimebundle_()

    def _follow(self) -> None:
        """Show the run, and go on until it has ended."""
        watched = self._watched
        if self.refresh() and not watched:
            arguments = (weakref.ref(self), self._closing)
            threading.Thread(target=_watch, args=arguments, daemon=True, name="randprune-watch").start()

    def _stop_run(self) -> None:
        jobs.stop(self.folder, wait=False)
        self._follow()

    def _resume_run(self) -> None:
        jobs.resume(self.folder)
        self._follow()

    def _show(self, view: Mapping[str, Any]) -> None:
        self._bar.value = view["progress"]["share"]
        self._stop.disabled = not view["is_live"] or view["status"] == "stopping"
        self._resume.disabled = not view["can_resume"]
        said = [view["message"], view["damage"], *view["warnings"]]
        alive = f" ({_text(view['heartbeat'])})" if view["is_live"] else ""
        shown = {
            "head": f"<h3>{_text(view['title'])}</h3><p><b>{_text(view['status'])}</b>{alive}. "
            f"{_text(view['progress']['sentence'])}</p>{''.join(_paragraph(text, kind='error') for text in said)}"
            f"<p>Folder: <code>{_text(self.folder)}</code></p>",
            "result": _section("Result", _paragraph((view["result"] or {}).get("sentence"))),
            "lanes": _lanes(view),
            "near": _near(view),
            "log": _log(view),
        }
        for name, value in shown.items():
            _set(self._parts[name], value)
        if time.monotonic() >= self._next_drawing or not view["is_live"]:
            self._draw(view)
            self._next_drawing = time.monotonic() + DRAWING_PAUSE

    def _draw(self, view: Mapping[str, Any]) -> None:
        """The charts whose rows have changed."""
        from randprune_lab import charts

        metric = view["metric"]
        draw = {"ladder": lambda rows: charts.ladder_chart(rows, metric), "epochs": charts.loss_chart}
        for name, title in (("ladder", "Stages"), ("epochs", "Losses")):
            rows = view[name]["rows"]
            if rows and self._drawn.get(name) != rows:
                self._drawn[name] = rows
                chart = _framed(charts.to_svg(draw[name](rows)))
                _set(self._parts[name], _section(title, chart, _paragraph(view[name]["sentence"])))


def _watch(held: weakref.ref[RunPanel], closing: threading.Event) -> None:
    """Look at the run's files again and again, for as long as it runs and somebody holds the panel."""
    while not closing.wait(PAUSE):
        panel = held()
        if panel is None or not panel.refresh():
            return
        del panel


def _lanes(view: Mapping[str, Any]) -> str:
    """The candidates of the newest stage."""
    rows = [row for row in view["lanes"]["rows"] if row["stage"] == view["lanes"]["rows"][-1]["stage"]]
    cells = (
        (
            row["name"],
            row["state"],
            _points(row["score"]),
            _short(row["loss"]),
            _short(row["ir"]),
            _points(row["swapped"]),
            row["failed"],
        )
        for row in rows
    )
    heads = ("candidate", "", view["metric"], "loss", "ir", "swapped", "")
    return _section("Candidates", _paragraph(view["lanes"]["sentence"]), _table(heads, cells) if rows else "")


def _near(view: Mapping[str, Any]) -> str:
    rows = view["near"]["rows"]
    cells = (
        (r["stage"], f"{r['sparsity']:g}", _points(r["share"]), _short(r["ir"]), _points(r["swapped"])) for r in rows
    )
    heads = ("stage", "sparsity", "near tau", "ir", "swapped")
    return _section("Near the threshold", _paragraph(view["near"]["sentence"]), _table(heads, cells)) if rows else ""


def _log(view: Mapping[str, Any]) -> str:
    lines = view["log"]["lines"]
    return _section("Log", f'<div class="log" tabindex="0"><pre>{_text(chr(10).join(lines))}</pre></div>') if lines else ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run has come to.

    Attributes:
        score: of the last stage's network on the reported split; 1 is best.
        metric: what the score is, as people read it.
        sparsity: share of the prunable weights removed.
        compression: of the prunable weights; 1 / (1 - sparsity).
        whole_model: compression of the whole model.
        stages: a row for each stage, the dense network first (``store.stage_table``).
        folder: of the run.
        model: folder of the pruned network.
    """

    score: float
    metric: str
    sparsity: float
    compression: float
    whole_model: float
    stages: tuple[dict[str, Any], ...]
    folder: Path
    model: Path


class Handle:
    """A run that works on its own: it goes on when the notebook is closed. Made by ``launch``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def status(self) -> Status:
        """How it stands: queued, running, stopping, finished, stopped, failed, interrupted or damaged."""
        return jobs.status(self.folder)

    def panel(self) -> RunPanel:
        """Panel 6, live."""
        return RunPanel(self.folder)

    def stop(self, *, wait: bool = True) -> None:
        """Stop it within a step; what is finished stays, and ``resume`` goes on from there.

        Raises:
            ValueError: it is not running.
        """
        jobs.stop(self.folder, wait=wait)

    def resume(self) -> None:
        """Go on from the last finished piece of work.

        Raises:
            ValueError: it is running, or finished.
        """
        jobs.resume(self.folder)

    def wait(self, timeout: float | None = None) -> Status:
        """Wait for its end, at most ``timeout`` seconds; how it stands then."""
        return jobs.wait(self.folder, timeout)

    def result(self) -> Result:
        """What it has come to.

        Raises:
            ValueError: it is not finished.
        """
        view = live.live_view(self.folder)
        found = view["result"]
        if found is None:
            said = f" {view['message'] or view['damage']}".rstrip()
            fix = "Call .wait() first." if view["is_live"] else "Call .resume(), or launch another."
            raise ValueError(f"{self.folder.name}: has no result, it is {view['status']}.{said} {fix}")
        return Result(
            **{name: found[name] for name in ("score", "sparsity", "compression", "whole_model")},
            metric=view["metric"],
            stages=tuple(store.stage_table(self.folder)),
            folder=self.folder,
            model=self.folder / "model",
        )

    def __repr__(self) -> str:
        view = live.live_view(self.folder)
        said = (view["result"] or view["progress"])["sentence"] or view["message"] or view["damage"]
        return f"{view['title']} ({view['status']}). {said}".strip()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """Its sentence and the ladder of its stages: what a saved notebook still shows."""
        from randprune_lab import charts

        view = live.live_view(self.folder)
        bundle = {"text/plain": repr(self)}
        if view["ladder"]["rows"]:
            bundle["image/svg+xml"] = charts.to_svg(charts.ladder_chart(view["ladder"]["rows"], view["metric"]))
        return bundle


# Panel 5

WIDE = {"width": "100%"}
BOX = {"width": "430px", "max_width": "100%"}
SEVERAL = {"flex_flow": "row wrap", "align_items": "center"}
ESTIMATE_PAUSE = 1.0  # seconds without a change after which the cost is worked out


class LaunchPanel(_Panel):
    """Panel 5: every setting of a run, its cost before the start, its controls and seeds. Made by ``launch()``.

    Without ``settings`` it begins with the demo.

    ``handles`` are the runs that were started here.
    """

    def __init__(self, settings: Mapping[str, Any], parent: Path | None = None) -> None:
        self._parent = parent
        self.handles: tuple[Handle, ...] = ()
        self._filling = False
        self._asking: Asking | None = None
        self._timer: threading.Timer | None = None
        self._boxes = {field.name: _box(field) for fields in forms.FIELDS.values() for field in fields}
        self._preset = ipywidgets.Dropdown(description="preset", options=["", *forms.PRESETS], value="")
        self._about = _help("")
        self._controls = {
            name: ipywidgets.Checkbox(description=name, indent=False, layout={"width": "200px"})
            for name in forms.CONTROLS
        }
        self._seeds = ipywidgets.BoundedIntText(1, min=1, max=forms.MOST_SEEDS, description="seeds")
        self._cost = ipywidgets.HTML()
        self._start = self._button("Start", self._launch, button_style="primary", icon="play")
        self._below = ipywidgets.VBox()
        groups = ipywidgets.Accordion(
            [_group(fields, self._boxes) for fields in forms.FIELDS.values()], selected_index=0
        )
        groups.titles = tuple(forms.FIELDS)
        super().__init__(
            ipywidgets.HTML("<h3>Launch a run</h3>"),
            ipywidgets.HBox([self._preset, self._about], layout=SEVERAL),
            groups,
            ipywidgets.HTML("<h4>Controls to add, and seeds</h4>"),
            *(
                ipywidgets.HBox([box, _help(forms.CONTROLS[name])], layout=SEVERAL)
                for name, box in self._controls.items()
            ),
            self._seeds,
            self._cost,
            self._start,
            self._below,
        )
        self._preset.observe(lambda _: self._try(self._take_preset), "value")
        for widget in (*self._boxes.values(), *self._controls.values(), self._seeds):
            widget.observe(lambda _: self._try(self._changed), "value")
        if settings:
            self._try(lambda: self._fill(settings))
        else:
            self._preset.value = "demo"

    @property
    def settings(self) -> dict[str, Any]:
        """What the boxes hold, of those that count."""
        held = {name: box.value for name, box in self._boxes.items()}
        return {name: value for name, value in held.items() if forms.counts(name, held)}

    @property
    def configs(self) -> list[RunConfig]:
        """The runs that the start button starts, in order.

        Raises:
            ValueError: a setting is not allowed.
        """
        config = forms.parse(self.settings)
        fitting = forms.fitting_controls(config)
        chosen = [name for name, box in self._controls.items() if box.value and name in fitting]
        return forms.batch(config, chosen, self._seeds.value)

    def close(self) -> None:
        """Take the panel off the screen. Runs that were started go on."""
        self._forget_cost()
        super().close()

    def _still(self) -> dict[str, str]:
        try:
            return {"text/plain": "\n".join(forms.as_commands(self.configs))}
        except ValueError as error:
            return {"text/plain": str(error)}

    def _take_preset(self) -> None:
        if self._preset.value:
            about, settings = forms.PRESETS[self._preset.value]
            _set(self._about, _text(about))
            self._fill(settings)

    def _fill(self, settings: Mapping[str, Any]) -> None:
        self._filling = True
        try:
            for name, value in forms.filled(settings).items():
                box = self._boxes[name]
                if isinstance(box, ipywidgets.Dropdown) and value not in box.options:
                    box.options = (*box.options, value)
                box.value = value
        finally:
            self._filling = False
        self._changed()

    def _changed(self) -> None:
        if self._filling:
            return
        held = {name: box.value for name, box in self._boxes.items()}
        for name, box in self._boxes.items():
            box.disabled = not forms.counts(name, held)
        self._forget_cost()
        self._start.disabled = True
        configs = self.configs  # or an error, which is shown
        self._start.disabled = False
        fitting = forms.fitting_controls(configs[0])
        for name, box in self._controls.items():
            box.disabled = name not in fitting
        self._start.description = "Start" if len(configs) == 1 else f"Start {len(configs)} runs"
        _set(self._cost, _paragraph("Working out what it costs ..."))
        self._timer = threading.Timer(ESTIMATE_PAUSE, _ask_cost, (weakref.ref(self), configs))
        self._timer.daemon, self._timer.name = True, "randprune-estimate"
        self._timer.start()

    def _forget_cost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        self._timer = self._asking = None

    def _launch(self) -> None:
        self._forget_cost()
        _set(self._cost, "")
        folders = jobs.start_all(self.configs, parent=self._parent)
        self.handles = tuple(Handle(folder) for folder in folders)
        self._show_run(self.handles[0])
        if len(folders) > 1:
            choice = ipywidgets.Dropdown(
                description="run", options=[(handle.folder.name, handle) for handle in self.handles], layout=WIDE
            )
            choice.observe(lambda change: self._try(lambda: self._show_run(change.new)), "value")
            self._below.children = (choice, *self._below.children)

    def _show_run(self, handle: Handle) -> None:
        kept = [child for child in self._below.children if not isinstance(child, RunPanel)]
        for child in self._below.children:
            if isinstance(child, RunPanel):
                child.close()
        self._below.children = (*kept, handle.panel())


def _ask_cost(held: weakref.ref[LaunchPanel], configs: Sequence[RunConfig]) -> None:
    """Have some steps timed in another process, and say in the panel what a run will cost; unless it has moved on."""
    panel = held()
    if panel is None:
        return
    with panel._lock:
        if panel._timer is not threading.current_thread():
            return
        panel._asking = asking = Asking(configs[0])
    del panel
    while (answer := asking.poll()) is None:
        time.sleep(0.2)
    panel = held()
    if panel is not None and panel._asking is asking:
        _set(panel._cost, _cost(answer, len(configs)))


def _cost(answer: Estimate | str, runs: int) -> str:
    if isinstance(answer, str):
        return _paragraph(answer, kind="error")
    several = f"This is of the first of {runs} runs; the others take about as long, each when its turn comes."
    warnings = "".join(_paragraph(warning, kind="error") for warning in answer.warnings)
    return _paragraph(answer.sentence) + _paragraph(several if runs > 1 else "") + warnings


def _box(field: forms.FormField) -> ipywidgets.Widget:
    """The widget of a field. Numbers are text, so that a box may be empty or wrong, and says so."""
    look = {"description": field.title, "tooltip": field.help, "layout": BOX}
    look["style"] = {"description_width": "150px"}
    if field.kind == "choice":
        return ipywidgets.Dropdown(options=field.options, value=field.default, **look)
    if field.kind == "switch":
        return ipywidgets.Checkbox(value=field.default, **look)
    if field.options:
        return ipywidgets.Combobox(options=field.options, **look)
    return ipywidgets.Text(continuous_update=False, **look)


def _help(text: str) -> ipywidgets.HTML:
    shown = ipywidgets.HTML(_text(text))
    shown.add_class("rp-help")
    return shown


def _explained(box: ipywidgets.Widget, text: str) -> ipywidgets.HBox:
    return ipywidgets.HBox([box, _help(text)], layout=SEVERAL)


def _group(fields: Sequence[forms.FormField], boxes: Mapping[str, ipywidgets.Widget]) -> ipywidgets.VBox:
    """The boxes of a group, each with its help; those that are seldom needed come last."""
    rows: list[ipywidgets.Widget] = []
    for field in fields:
        if field.advanced and not any(isinstance(row, ipywidgets.HTML) for row in rows):
            rows.append(ipywidgets.HTML("<i>seldom needed</i>"))
        rows.append(_explained(boxes[field.name], field.help))
    return ipywidgets.VBox(rows)


# Panel 7


class HistoryPanel(_Panel):
    """Panel 7: the runs on disk, failed and stopped ones too. Made by ``history``."""

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = store.runs_folder() if parent is None else Path(parent)
        self._filter = ipywidgets.Text(placeholder="a word of a row", description="filter", continuous_update=False)
        self._rows = ipywidgets.HTML()
        self._choice = ipywidgets.Dropdown(description="run", layout=BOX)
        self._note = ipywidgets.Text(description="note", continuous_update=False, layout=BOX)
        self._sure = ipywidgets.HBox(
            [
                ipywidgets.HTML("Delete this run with all its files?"),
                self._button("Yes, delete", self._delete, button_style="danger"),
                self._button("No, keep it", lambda: self._ask(False)),
            ],
            layout={**SEVERAL, "display": "none"},
        )
        self._below = ipywidgets.VBox()
        on_run = [self._button("Open", self._open), self._button("Delete ...", lambda: self._ask(True))]
        super().__init__(
            ipywidgets.HTML("<h3>History</h3>"),
            ipywidgets.HBox([self._filter, self._button("Refresh", self.refresh, icon="refresh")], layout=SEVERAL),
            self._rows,
            ipywidgets.HBox([self._choice, *on_run], layout=SEVERAL),
            ipywidgets.HBox([self._note, self._button("Save note", self._save_note)], layout=SEVERAL),
            self._sure,
            self._below,
        )
        self._filter.observe(lambda _: self._try(self.refresh), "value")
        self._choice.observe(lambda _: self._try(self._chosen), "value")
        self._try(self.refresh)

    def table(self) -> list[dict[str, Any]]:
        """The rows that pass the filter, as plain values."""
        wanted = self._filter.value.casefold().split()
        rows = live.history_rows(self.parent)
        return [row for row in rows if all(word in " ".join(map(str, row.values())).casefold() for word in wanted)]

    def refresh(self) -> None:
        """Look at the disk again."""
        with self._lock:
            rows = self.table()
            _set(self._rows, _paragraph(live.history_sentence(rows)) + _history(rows))
            names, chosen = [row["name"] for row in rows], self._choice.value
            self._choice.options = names
            if names:
                self._choice.value = chosen if chosen in names else names[0]
            self._chosen()

    def _still(self) -> dict[str, str]:
        return {"text/plain": live.history_sentence(self.table())}

    @property
    def _folder(self) -> Path:
        if self._choice.value is None:
            raise ValueError("No run is chosen. Launch one, or empty the filter.")
        return self.parent / str(self._choice.value)

    def _chosen(self) -> None:
        self._ask(False)
        self._note.value = jobs.read_note(self._folder) if self._choice.value else ""

    def _ask(self, asked: bool) -> None:
        self._sure.layout.display = "flex" if asked and self._folder else "none"

    def _open(self) -> None:
        for child in self._below.children:
            child.close()
        self._below.children = (RunPanel(self._folder),)

    def _save_note(self) -> None:
        jobs.write_note(self._folder, self._note.value)
        self.refresh()

    def _delete(self) -> None:
        for child in self._below.children:
            child.close()
        self._below.children = ()
        jobs.delete(self._folder)
        self.refresh()


def _history(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("run", "status", "model", "method", "seed", "stages", "sparsity", "score", "ir", "time", "note", "")
    cells = (
        (
            row["name"],
            row["status"],
            row["model"],
            row["method"],
            row["seed"],
            row["stages"],
            None if row["sparsity"] is None else f"{row['sparsity']:g}",
            None if row["score"] is None else f"{_points(row['score'])} {row['metric']}",
            _short(row["ir"]),
            None if row["seconds"] is None else live.duration(row["seconds"]),
            row["note"],
            row["message"],
        )
        for row in rows
    )
    return _table(heads, cells) if rows else ""


# Panel 8


class ComparePanel(_Panel):
    """Panel 8: several runs side by side. Made by ``compare``."""

    def __init__(self, folders: Sequence[Path], parent: Path) -> None:
        known = [parent / row["name"] for row in live.history_rows(parent)]
        options = [(folder.name, folder) for folder in dict.fromkeys([*folders, *known])]
        self._choice = ipywidgets.SelectMultiple(
            description="runs",
            options=options,
            value=tuple(folders),
            rows=min(max(len(options), 3), 10),
            layout={"width": "520px", "max_width": "100%"},
        )
        self._parts = ipywidgets.HTML()
        super().__init__(ipywidgets.HTML("<h3>Compare</h3>"), self._choice, self._parts)
        self._choice.observe(lambda _: self._try(self._show), "value")
        self._try(self._show)

    def table(self) -> dict[str, Any]:
        """What the panel shows, as plain values: ``live.compare_view``."""
        return live.compare_view(self._choice.value)

    def _still(self) -> dict[str, str]:
        view = self.table()
        words = (view[name]["sentence"] for name in ("scores", "differences", "settings", "agreement"))
        picture = {"image/svg+xml": _scores(view)} if view["scores"]["rows"] else {}
        return {"text/plain": " ".join(words), **picture}

    def _show(self) -> None:
        view = self.table()
        scores, settings, masks = view["scores"], view["settings"], view["agreement"]
        chart = _framed(_scores(view)) if scores["rows"] else ""
        names = [run["name"] for run in view["runs"]]
        told = ([row["setting"], *(row[name] for name in names)] for row in settings["rows"])
        parts = [
            "".join(_paragraph(f"{row['name']}: {row['message']}", kind="error") for row in view["damaged"]),
            _section("Scores", chart, _paragraph(scores["sentence"])),
            _section("Differences", _paragraph(view["differences"]["sentence"])),
            _section(
                "Settings that differ",
                _paragraph(settings["sentence"]),
                _table(("setting", *names), told) if settings["rows"] else "",
            ),
            _section("Masks", _paragraph(masks["sentence"]), *map(_agreement, masks["stages"][-1:])),
        ]
        _set(self._parts, "".join(parts))


def _scores(view: Mapping[str, Any]) -> str:
    from randprune_lab import charts

    return charts.to_svg(charts.accuracy_chart(view["scores"]["rows"], None, view["metric"]))


def _agreement(stage: Mapping[str, Any]) -> str:
    cells = ([label, *map(_points, row)] for label, row in zip(stage["labels"], stage["matrix"], strict=True))
    return _table(("kept by both", *stage["labels"]), cells)


# The public functions


def launch(
    config: RunConfig | ExploreState | None = None, *, parent: str | Path | None = None, **settings: Any
) -> Handle | LaunchPanel:
    """Start a run in a process of its own; or, without a configuration, show the form that starts one.

    Args:
        config: what to run; started at once. An ExploreState: the form, filled with what it shows. None: the form, or
            with ``settings`` the run that they ask for.
        parent: the folder of runs; None: RANDPRUNE_RUNS, else ./runs.
        settings: fields of RunConfig that differ, such as task="sentences".

    Returns:
        A handle on the run: ``.panel()``, ``.wait()``, ``.stop()``, ``.result()``; or the form.

    Raises:
        ValueError: a setting is not allowed, or the same run is going on already.
    """
    folder = None if parent is None else Path(parent)
    if isinstance(config, ExploreState):
        return LaunchPanel({**forms.seen(config), **settings}, folder)
    if config is None and not settings:
        return LaunchPanel({}, folder)
    if config is None or settings:
        config = forms.parse({**(config.model_dump() if config else {}), **settings})
    return Handle(jobs.start(config, parent=folder))


def history(parent: str | Path | None = None) -> HistoryPanel:
    """Panel 7: the runs on disk; filter them, note something, open or delete one.

    Args:
        parent: the folder of runs; None: RANDPRUNE_RUNS, else ./runs.
    """
    return HistoryPanel(None if parent is None else Path(parent))


def compare(*runs: str | Path | Handle, parent: str | Path | None = None) -> ComparePanel:
    """Panel 8: runs side by side: scores with intervals over seeds, settings that differ, agreement of their masks.

    Args:
        runs: names in the folder of runs, folders, or handles; none: choose in the panel.
        parent: the folder of runs; None: RANDPRUNE_RUNS, else ./runs.

    Raises:
        ValueError: there is no such run.
    """
    folder = store.runs_folder() if parent is None else Path(parent)
    return ComparePanel([_folder_of(run, folder) for run in runs], folder)


def _folder_of(run: str | Path | Handle, parent: Path) -> Path:
    if isinstance(run, Handle):
        return run.folder
    for folder in (Path(run), parent / run):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{run}: no run is there, nor in {parent}. See history() for those that are.")
