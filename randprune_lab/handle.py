"""Panel 6 in Jupyter: a run as it goes on, and the ``Handle`` by which a notebook holds it."""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets  # type: ignore[import-untyped]

from randprune_lab import jobs, live, store
from randprune_lab.cells import Panel, escaped, framed, html_table, paragraph, points, section, short, show
from randprune_lab.status import Status

PAUSE = 1.0  # seconds between two looks at a run's files
DRAWING_PAUSE = 3.0  # seconds between two drawings of its charts


class LivePanel(Panel):
    """What works on its own, as it goes on: a thread looks at its files until it has ended."""

    def __init__(self, *children: ipywidgets.Widget) -> None:
        self._closing = threading.Event()
        self._watched = False
        super().__init__(*children)
        self._try(self._follow)

    def refresh(self) -> bool:
        """Read the files and show what has changed; whether more is to come."""
        with self._lock:
            more = [False]
            self._try(lambda: more.append(self._look()))
            self._watched = more[-1] and not self._closing.is_set()
            return self._watched

    def close(self) -> None:
        """Take the panel off the screen. What it shows goes on."""
        self._closing.set()
        super().close()

    def _look(self) -> bool:
        """Show what the files say now; whether more is to come."""
        raise NotImplementedError

    def _follow(self) -> None:
        """Show it, and go on until it has ended."""
        watched = self._watched
        if self.refresh() and not watched:
            arguments = (weakref.ref(self), self._closing)
            threading.Thread(target=_watch, args=arguments, daemon=True, name="randprune-watch").start()


class RunPanel(LivePanel):
    """Panel 6: a run as it goes on; stop it, resume it. Made by ``Handle.panel``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bar = ipywidgets.FloatProgress(min=0.0, max=1.0, layout={"width": "100%"})
        self._stop = self._button("Stop", self._stop_run, icon="stop")
        self._resume = self._button("Resume", self._resume_run, icon="play")
        self._parts = {
            name: ipywidgets.HTML() for name in ("head", "result", "ladder", "lanes", "near", "epochs", "log")
        }
        self._drawn: dict[str, Any] = {}
        self._next_drawing = 0.0
        parts = list(self._parts.values())
        super().__init__(parts[0], self._bar, ipywidgets.HBox([self._stop, self._resume]), *parts[1:])

    def table(self) -> dict[str, Any]:
        """What the panel shows, as plain values: ``live.live_view``."""
        return live.live_view(self.folder)

    def _look(self) -> bool:
        view = self.table()
        self._try(lambda: self._show(view))
        return bool(view["is_live"])

    def _still(self) -> dict[str, str]:
        return Handle(self.folder)._repr_mimebundle_()

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
        alive = f" ({escaped(view['heartbeat'])})" if view["is_live"] else ""
        shown = {
            "head": f"<h3>{escaped(view['title'])}</h3><p><b>{escaped(view['status'])}</b>{alive}.<br>"
            f"{escaped(view['progress']['sentence'])}</p>{''.join(paragraph(text, kind='error') for text in said)}"
            f"<p>Folder: <code>{escaped(self.folder)}</code></p>",
            "result": section("Result", paragraph((view["result"] or {}).get("sentence"))),
            "lanes": _lanes(view),
            "near": _near(view),
            "log": _log(view),
        }
        for name, value in shown.items():
            show(self._parts[name], value)
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
                chart = framed(charts.to_svg(draw[name](rows)))
                show(self._parts[name], section(title, chart, paragraph(view[name]["sentence"])))


def _watch(held: weakref.ref[LivePanel], closing: threading.Event) -> None:
    """Look at the files again and again, for as long as there is more to come and somebody holds the panel."""
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
            points(row["score"]),
            short(row["loss"]),
            short(row["ir"]),
            points(row["swapped"]),
            row["failed"],
        )
        for row in rows
    )
    heads = ("candidate", "", view["metric"], "loss", "ir", "swapped", "")
    return section("Candidates", paragraph(view["lanes"]["sentence"]), html_table(heads, cells) if rows else "")


def _near(view: Mapping[str, Any]) -> str:
    rows = view["near"]["rows"]
    cells = ((r["stage"], f"{r['sparsity']:g}", points(r["share"]), short(r["ir"]), points(r["swapped"])) for r in rows)
    heads = ("stage", "sparsity", "near tau", "ir", "swapped")
    return section("Near the threshold", paragraph(view["near"]["sentence"]), html_table(heads, cells)) if rows else ""


def _log(view: Mapping[str, Any]) -> str:
    lines = view["log"]["lines"]
    text = escaped("\n".join(lines))
    return section("Log", f'<div class="log" tabindex="0"><pre>{text}</pre></div>') if lines else ""


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
    stages: tuple[dict[str, Any], ...] = dataclasses.field(repr=False)
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
