"""Panel 5 in Jupyter: the form that launches runs."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets  # type: ignore[import-untyped]

from randprune_lab import forms, jobs
from randprune_lab.cells import BOX, SEVERAL, Panel, escaped, paragraph, show
from randprune_lab.config import RunConfig
from randprune_lab.estimate import Asking, Estimate
from randprune_lab.handle import Handle, RunPanel

WIDE = {"width": "100%"}
ESTIMATE_PAUSE = 1.0  # seconds without a change after which the cost is worked out


class LaunchPanel(Panel):
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
            show(self._about, escaped(f"{about[0].upper()}{about[1:]}."))
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
        show(self._cost, paragraph("Working out what it costs ..."))
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
        show(self._cost, "")
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
        show(panel._cost, _cost(answer, len(configs)))


def _cost(answer: Estimate | str, runs: int) -> str:
    if isinstance(answer, str):
        return paragraph(answer, kind="error")
    several = f"This is of the first of {runs} runs; the others take about as long, each when its turn comes."
    warnings = "".join(paragraph(warning, kind="error") for warning in answer.warnings)
    return paragraph(answer.sentence) + paragraph(several if runs > 1 else "") + warnings


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
    shown = ipywidgets.HTML(escaped(text))
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
