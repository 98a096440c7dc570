"""Studies in Jupyter: ``study`` gives one by name, to start, watch, stop, go on with, and read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]

from randprune_lab import study_jobs, study_view
from randprune_lab.cells import escaped, framed, html_table, paragraph, section, show
from randprune_lab.checks import check_option
from randprune_lab.handle import DRAWING_PAUSE, LivePanel
from randprune_lab.studies import Study, read_study
from randprune_lab.study_jobs import Standing
from randprune_lab.study_results import Results
from randprune_lab.study_runs import STUDY, read_asked, studies_folder

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

TABLES = ("means", "differences", "stages", "candidates")
NOT_BEGUN = "not begun"


class StudyHandle:
    """A study: it works on its own and goes on when the notebook is closed. Made by ``study``."""

    def __init__(self, asked: Study, parent: Path) -> None:
        self.asked, self.folder = asked, parent / asked.name

    @property
    def state(self) -> Standing:
        """How it stands: not begun, running, stopping, finished, stopped, failed, interrupted or damaged."""
        if not (self.folder / STUDY).is_file():
            return Standing(NOT_BEGUN)
        return study_jobs.standing(self.folder)

    def start(self, processes: int = study_jobs.PROCESSES, *, many: bool = False) -> StudyHandle:
        """Start it, or let it go on: ``processes`` runs at a time. Finished runs are not made again.

        ``many``: also where more than 500 runs are to be made.

        Raises:
            ValueError: it is running already, a setting will not do, its folder holds another study, or there are more
                runs than are begun without a word.
        """
        study_jobs.start(self.asked, parent=self.folder.parent, processes=processes, many=many)
        return self

    def stop(self, *, wait: bool = True) -> None:
        """Stop it; what is finished stays.

        Raises:
            ValueError: it is not running.
        """
        study_jobs.stop(self.folder, wait=wait)

    def wait(self, timeout: float | None = None) -> Standing:
        """Wait for its end, at most ``timeout`` seconds; how it stands then."""
        study_jobs.wait(self.folder, timeout)
        return self.state

    def panel(self) -> StudyPanel:
        """The study as it goes on, with buttons."""
        return StudyPanel(self)

    def results(self) -> Results:
        """All that its finished runs say by now.

        Raises:
            ValueError: none is finished yet.
        """
        results = study_view.results_of(self.folder) if (self.folder / STUDY).is_file() else None
        if results is None or not results.finished:
            raise ValueError(
                f"{self.asked.name}: no run is finished yet, it is {self.state.state}. Call .start().wait()."
            )
        return results

    def table(self, name: str = "means") -> pd.DataFrame:
        """A tidy table: "means", "differences" (paired by seed), "stages" or "candidates" (a row for each).

        Raises:
            ValueError: no run is finished yet.
        """
        check_option("table", name, TABLES)
        found = self.results()
        tables = (found.summary, found.differences, found.stages, found.candidates)
        return dict(zip(TABLES, tables, strict=True))[name]

    def claims(self) -> list[dict[str, Any]]:
        """What it claims, with verdict, difference, interval, p and a sentence.

        Raises:
            ValueError: no run is finished yet.
        """
        return self.results().claims

    def figures(self) -> dict[str, alt.LayerChart]:
        """Its charts by name: "means" and, where something is compared, "differences".

        Raises:
            ValueError: no run is finished yet.
        """
        from randprune_lab.study_report import study_figures

        return {name: chart for name, (chart, _) in study_figures(self.asked, self.results()).items()}

    def __repr__(self) -> str:
        standing = self.state
        text = f"{self.asked.title} ({standing.state}). "
        if standing.of:
            text += study_view.progress_sentence(standing)
        else:
            text += study_view.size_sentence(self.asked, self.folder.parent)
        told = [f"{row['says']} {row['verdict'].capitalize()}. {row['sentence']}." for row in self._claims()]
        return "\n".join([text, *told])

    def _claims(self) -> list[dict[str, Any]]:
        try:
            return self.claims()
        except ValueError:
            return []

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """Its sentences and the figure of its means: what a saved notebook still shows."""
        from randprune_lab.charts import to_svg

        bundle = {"text/plain": repr(self)}
        with contextlib.suppress(ValueError, KeyError):  # nothing is finished yet
            bundle["image/svg+xml"] = to_svg(self.figures()["means"])
        return bundle


class StudyPanel(LivePanel):
    """A study as it goes on: progress, verdicts, the figure; start, stop, go on. Made by ``StudyHandle.panel``."""

    def __init__(self, handle: StudyHandle) -> None:
        self.handle = handle
        self._bar = ipywidgets.FloatProgress(min=0.0, max=1.0, layout={"width": "100%"})
        self._start = self._button("Start", self._go_on, icon="play")
        self._stop = self._button("Stop", self._stop_study, icon="stop")
        self._parts = {name: ipywidgets.HTML() for name in ("head", "claims", "figure")}
        self._drawn, self._next_drawing = -1, 0.0
        parts = list(self._parts.values())
        super().__init__(parts[0], self._bar, ipywidgets.HBox([self._start, self._stop]), *parts[1:])

    def _still(self) -> dict[str, str]:
        return self.handle._repr_mimebundle_()

    def _go_on(self) -> None:
        self.handle.start()
        self._follow()

    def _stop_study(self) -> None:
        self.handle.stop(wait=False)
        self._follow()

    def _look(self) -> bool:
        """Show how it stands; the results when there are more of them, not at every look."""
        standing, asked = self.handle.state, self.handle.asked
        self._bar.value = standing.share
        self._start.disabled = standing.is_live or (standing.state == "finished" and not standing.failed)
        self._stop.disabled = standing.state != "running"
        text = study_view.progress_sentence(standing) if standing.of or standing.is_live else repr(self.handle)
        head = (
            f"<h3>{escaped(asked.title)}</h3><p><b>{escaped(standing.state)}</b>. {escaped(text)}</p>"
            f"{paragraph(asked.question)}{paragraph(standing.message, kind='error')}"
        )
        show(self._parts["head"], head)
        due = time.monotonic() >= self._next_drawing or not standing.is_live
        if standing.done and standing.done != self._drawn and due:
            self._drawn, self._next_drawing = standing.done, time.monotonic() + DRAWING_PAUSE
            self._show_results(standing)
        return standing.is_live

    def _show_results(self, standing: Standing) -> None:
        claims = self.handle._claims()
        peeking = paragraph(study_view.PEEKING) if standing.is_live and claims else ""
        rows = ([row["says"], row["verdict"], row["sentence"]] for row in claims)
        table = html_table(("claim", "verdict", "measured"), rows) if claims else ""
        show(self._parts["claims"], section("What is claimed, and what was found", peeking, table))
        bundle = self.handle._repr_mimebundle_()
        figure = framed(bundle["image/svg+xml"]) if "image/svg+xml" in bundle else ""
        show(self._parts["figure"], section("Means", figure))


def study(
    source: str | Path | Study, *, small: bool = False, parent: str | Path | None = None, **changes: Any
) -> StudyHandle:
    """A study, many runs and one answer: to start, watch, stop and read. Nothing is started yet.

    Args:
        source: a built-in study's name, a TOML file, the folder of one that is on disk, or a Study.
        small: its form for two cores.
        parent: the folder of studies; None: ``studies`` in the folder of runs.
        changes: what differs from the file, such as seeds=4, base={"max_epochs": 2} and a name of its own.

    Returns:
        A handle: ``.start()``, ``.wait()``, ``.stop()``, ``.state``, ``.table()``, ``.claims()``, ``.figures()``,
        ``.panel()``.

    Raises:
        ValueError: there is no such study, or something in it will not do.
    """
    folder = studies_folder() if parent is None else Path(parent)
    if not isinstance(source, Study):
        for there in (Path(source), folder / source):
            if (there / STUDY).is_file():
                return StudyHandle(_unchanged(read_asked(there), small, changes), there.absolute().parent)
        return StudyHandle(read_study(source, small=small, changes=changes), folder.absolute())
    return StudyHandle(_unchanged(source, small, changes), folder.absolute())


def _unchanged(asked: Study, small: bool, changes: Mapping[str, Any]) -> Study:
    if small or changes:
        told = ", ".join(["small", *changes] if small else changes)
        raise ValueError(f"{told}: the study {asked.name} is given as it is. Change it there, or name a built-in one.")
    return asked
