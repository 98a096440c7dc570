"""The Jupyter front-end of runs: ``launch`` (panels 5 and 6), ``history`` (7) and ``compare`` (8).

It trains nothing and works out nothing itself: jobs, forms and live do. What comes from files is shown as text only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import anywidget  # noqa: F401
    import ipywidgets  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        f"launch, history and compare need Jupyter ({error}). Install it: pip install 'randprune-lab[jupyter]'."
    ) from error

from randprune_lab import forms, jobs, listing, live, store
from randprune_lab.cells import BOX, SEVERAL, Panel, framed, html_table, paragraph, points, section, short, show
from randprune_lab.config import RunConfig
from randprune_lab.form import LaunchPanel
from randprune_lab.handle import Handle, RunPanel
from randprune_lab.state import ExploreState

# Panel 7


class HistoryPanel(Panel):
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
        rows = listing.history_rows(self.parent)
        return [row for row in rows if all(word in " ".join(map(str, row.values())).casefold() for word in wanted)]

    def refresh(self) -> None:
        """Look at the disk again."""
        with self._lock:
            rows = self.table()
            show(self._rows, paragraph(listing.history_sentence(rows)) + _history(rows))
            names, chosen = [row["name"] for row in rows], self._choice.value
            self._choice.options = names
            if names:
                self._choice.value = chosen if chosen in names else names[0]
            self._chosen()

    def _still(self) -> dict[str, str]:
        return {"text/plain": listing.history_sentence(self.table())}

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
            None if row["score"] is None else f"{points(row['score'])} {row['metric']}",
            short(row["ir"]),
            None if row["seconds"] is None else live.duration(row["seconds"]),
            row["note"],
            row["message"],
        )
        for row in rows
    )
    return html_table(heads, cells) if rows else ""


# Panel 8


class ComparePanel(Panel):
    """Panel 8: several runs side by side. Made by ``compare``."""

    def __init__(self, folders: Sequence[Path], parent: Path) -> None:
        known = [parent / row["name"] for row in listing.history_rows(parent)]
        options = [(folder.name, folder) for folder in dict.fromkeys([*folders, *known])]
        self._choice = ipywidgets.SelectMultiple(
            description="runs",
            options=options,
            value=tuple(folders),
            rows=min(max(len(options), 3), 10),
            layout={"width": "520px", "max_width": "100%"},
        )
        self._parts = ipywidgets.HTML()
        hint = ipywidgets.HTML(paragraph("Hold Ctrl (on a Mac Cmd) and click to choose several."))
        super().__init__(ipywidgets.HTML("<h3>Compare</h3>"), self._choice, hint, self._parts)
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
        chart = framed(_scores(view)) if scores["rows"] else ""
        names = [run["name"] for run in view["runs"]]
        told = ([row["setting"], *(row[name] for name in names)] for row in settings["rows"])
        parts = [
            "".join(paragraph(f"{row['name']}: {row['message']}", kind="error") for row in view["damaged"]),
            section("Scores", chart, paragraph(scores["sentence"])),
            section("Differences", paragraph(view["differences"]["sentence"])),
            section(
                "Settings that differ",
                paragraph(settings["sentence"]),
                html_table(("setting", *names), told) if settings["rows"] else "",
            ),
            section("Masks", paragraph(masks["sentence"]), *map(_agreement, masks["stages"][-1:])),
        ]
        show(self._parts, "".join(parts))


def _scores(view: Mapping[str, Any]) -> str:
    from randprune_lab import charts

    return charts.to_svg(charts.accuracy_chart(view["scores"]["rows"], None, view["metric"]))


def _agreement(stage: Mapping[str, Any]) -> str:
    cells = ([label, *map(points, row)] for label, row in zip(stage["labels"], stage["matrix"], strict=True))
    return html_table(("kept by both", *stage["labels"]), cells)


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
