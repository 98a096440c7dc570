"""The figures and the ``report.html`` of a study, made from its runs' files alone; an unfinished one gets them, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from randprune_lab import study_charts as charts
from randprune_lab.card import shown_name
from randprune_lab.charts import save_svg
from randprune_lab.document import document, figure_of, items, section, table_of, text_of
from randprune_lab.files import write_atomically
from randprune_lab.metrics import METRICS
from randprune_lab.studies import Study, built_in_studies, chance_of, expand, read_study
from randprune_lab.study_results import (
    OWN_CONTROL,
    Results,
    gather,
    ranking_rows,
    versus_of,
    winner_rows,
    write_results,
)
from randprune_lab.study_runs import read_asked, read_state

REPORT = "report.html"
HOW_TESTED = (
    "Lines are compared seed by seed with a sign-flip permutation test, counts with chance by a binomial test; p is "
    "adjusted for the number of claims (Holm), the test is at 5 %. Intervals are of each claim alone, by bootstrap: "
    "too narrow where seeds are few. Reproduced: beyond noise in the claim's direction; not reproduced: beyond noise "
    "in the other one; within noise: we do not know."
)
NOTHING = "-"
_Y = {
    "score": "{metric} on the reported split (%)",
    "gap": "reported split less selection split (points)",
    "plain_won": "stages that the plain mask won (%)",
    "ranks": "rank correlation with the whole fine-tuning",
    "same_winner": "first stages with the reference's winner (%)",
    "epochs": "epochs trained, judging included",
}
_X = {
    "sparsity": "sparsity",
    "ir": "introduced randomness ir of the random masks",
    "line": "",
    "candidates": "candidates N",
    "max_epochs": "epochs of fine-tuning a stage",
    "emep_learning_rate": "learning rate of EMEP",
    "sampling_ratio": "sampling ratio sr",
}


def conclude(folder: str | Path) -> Results:
    """Write a study's tables, figures and report into its folder, from those of its runs that are finished."""
    folder = Path(folder)
    study = read_asked(folder)
    results = gather(study, folder.parent)
    write_results(folder, results)
    figures = study_figures(study, results)
    for name, (chart, _) in figures.items():
        save_svg(chart, folder / f"{name}.svg")
    page = _page(study, results, figures, read_state(folder).failed)
    write_atomically(folder / REPORT, page.encode(errors="replace"))
    return results


def study_figures(study: Study, results: Results) -> dict[str, tuple[Any, str]]:
    """Charts by name, each with the sentence that says it in words: means, differences, and what the study is about."""
    if not len(results.summary):
        return {}
    unit, against = _unit(study), versus_of(study)
    metrics = set(results.stages["metric"])
    metric = METRICS.get(str(metrics.pop()), "score") if len(metrics) == 1 else "score"
    title, sentence = _Y[study.y].format(metric=metric), means_sentence(study, results)
    axis: dict[str, Any] = {"x_title": _x_title(study), "log": study.log, "compression": study.x == "sparsity"}
    means = charts.lines_chart(
        _scaled(results.summary, ("mean", "low", "high"), unit),
        y_title=title,
        title=study.title,
        sentence=sentence,
        reference=against,
        **axis,
    )
    figures: dict[str, tuple[Any, str]] = {"means": (means, sentence)}
    if len(results.differences):
        text = differences_sentence(results)
        rows = _scaled(results.differences, ("difference", "low", "high"), unit)
        y_title = f"difference ({'points' if unit == 100 else 'as it is'})"
        heading = f"Paired by seed: how far from {against}?"
        chart = charts.differences_chart(rows, y_title=y_title, title=heading, sentence=text, **axis)
        figures["differences"] = (chart, text)
    decided = results.stages["plain_won"].notna().any()
    if decided and "plain_won" in {study.y, *(claim.measure for claim in study.claims)}:
        figures["winners"] = _winners(study, results)
    if study.y == "ranks":
        figures["ranking"] = _ranking(study, results)
    return figures


def _x_title(study: Study) -> str:
    return _X.get(study.x, study.x.replace("_", " "))


def _winners(study: Study, results: Results) -> tuple[Any, str]:
    rows = winner_rows(study, results)
    plain = rows[rows["kind"] == "plain"]
    told = [f"{row['label']} {row['won']} of {row['number']}" for row in plain.to_dict("records")]
    sentence = f"Stages that the plain mask won: {'; '.join(told)}."
    chances = {chance_of(planned.config, "plain_won") for planned in expand(study)} - {None}
    chart = charts.share_chart(
        rows,
        x_title="stages won (%), 95 % interval",
        title="Which mask won?",
        sentence=sentence,
        chance=chances.pop() if len(chances) == 1 else None,
    )
    return chart, sentence


def _ranking(study: Study, results: Results) -> tuple[Any, str]:
    rows = _scaled(ranking_rows(study, results), ("x", "y"), 100)
    table = results.stages.dropna(subset=["ranks"])
    varied = [name for name in study.grid if len(study.grid[name]) > 1]
    rho = {}
    for setting, same in rows.groupby("setting", sort=False):
        point = same.iloc[0]
        of = ["line", *varied]
        at = table[(table[of] == point[of]).all(axis=1)]
        rho[str(setting)] = at["ranks"].mean()
    least, most = min(rho, key=rho.__getitem__), max(rho, key=rho.__getitem__)
    sentence = (
        f"Each dot is a mask of the first stage: its score after EMEP, and after {study.reference}, both less the mean "
        f"of its seed. Rank correlation, mean of seeds: from {rho[least]:.2f} ({least}) to {rho[most]:.2f} ({most})."
    )
    notes = {setting: f"rank correlation {value:.2f}, mean of seeds" for setting, value in rho.items()}
    chart = charts.scatter_chart(
        rows,
        x_title="after EMEP (points)",
        y_title=f"after {study.reference} (points)",
        title="Does a short training rank masks as a whole one does?",
        sentence=sentence,
        notes=notes,
    )
    return chart, sentence


def _unit(study: Study) -> int:
    """Shares are shown in percent."""
    return 1 if study.y in ("ranks", "epochs") else 100


def _scaled(frame: pd.DataFrame, columns: Iterable[str], unit: int) -> pd.DataFrame:
    return frame.assign(**{name: frame[name] * unit for name in columns})


def means_sentence(study: Study, results: Results) -> str:
    """Each line's mean at its largest x, with its interval over seeds."""
    parts = []
    unit = _unit(study)
    for label, rows in results.summary.groupby("label", sort=False):
        row = rows.iloc[-1] if study.x == "line" else rows.sort_values("x").iloc[-1]
        text = f"{label} {_number(row['mean'], unit)}"
        if row["low"] is not None and row["low"] == row["low"]:
            text += f" ({_number(row['low'], unit)} to {_number(row['high'], unit)}, {row['number']} seeds)"
        parts.append(text)
    where = "" if study.x == "line" else f" at the largest {_X.get(study.x, study.x).split(' of ')[0]}"
    return f"Mean{where}, with its 95 % interval over seeds: {'; '.join(parts)}."


def differences_sentence(results: Results) -> str:
    """How many of the points are told apart from what they are compared with, and how many are within noise."""
    counts = results.differences["verdict"].value_counts()
    names = ("above", "below", "within noise", "too few seeds")
    parts = [f"{name} at {counts[name]}" for name in names if name in counts]
    others = results.differences["versus"].unique()
    against = others[0] if len(others) == 1 else OWN_CONTROL
    return (
        f"Paired by seed against {against}, each point for itself (sign-flip test at 5 %): {', '.join(parts)} of "
        f"{len(results.differences)} points. With many points, one in twenty looks like something by chance: what is "
        "claimed is tested above, together."
    )


def _number(value: float, unit: int) -> str:
    return f"{unit * value:.1f} %" if unit == 100 else f"{value:.2f}"


# ---- the page


def _page(study: Study, results: Results, figures: Mapping[str, Any], failed: Mapping[str, str]) -> str:
    unfinished = results.finished < results.of
    notice = f"{results.of - results.finished} of {results.of} runs are not finished: what follows is of the others."
    body = [
        f"<h1>{text_of(study.title)}</h1>",
        f'<p class="summary">{text_of(study.question)}</p>' if study.question else "",
        f'<p class="notice">{text_of(notice)}</p>' if unfinished else "",
        *(f'<p class="notice">{text_of(sentence)}</p>' for sentence in mixed(study, results)),
        section("What is claimed, and what was found", claims_table(results)) if results.claims else "",
        section("Figures", *(figure_of(chart, sentence) for chart, sentence in figures.values())) if figures else "",
        section("Means", table_of(*means_rows(study, results))) if len(results.summary) else "",
        section("Differences", _differences_table(study, results)) if len(results.differences) else "",
        section("Runs that failed", items(f"{run}: {why}" for run, why in failed.items())) if failed else "",
        section("How it was asked", items(asked(study)), _settings(study)),
        f"<footer>Made by RandPrune Lab: {results.finished} runs, {len(study.seeds)} seeds. Tidy tables lie beside "
        "this page: results.csv, candidates.csv, both as parquet, too.</footer>",
    ]
    return document(study.title, filter(None, body))


def mixed(study: Study, results: Results) -> list[str]:
    """What tells the runs of a study apart that should not: they were made on other machines, or of other data."""
    table = results.stages
    if not len(table):
        return []
    found = []
    kinds = {"device": "kinds of device", "torch": "versions of torch", "lab": "versions of this lab"}
    for name, what in kinds.items():
        values = sorted({value or "unknown" for value in table[name]})
        if len(values) > 1:
            found.append(f"The runs are of several {what} ({', '.join(values)}): they may differ for that alone.")
    data = table.groupby(["line", *study.grid], dropna=False)["data"]
    if data.nunique().max() > 1:
        found.append(
            "Runs that differ by their seed only had different data: remove those that are out of date from "
            "studies/runs."
        )
    return found


def claims_table(results: Results) -> str:
    """Each claim, whose it is, the verdict and what was measured; HTML."""
    rows = [[row["says"], row["source"] or NOTHING, row["verdict"], row["sentence"]] for row in results.claims]
    return (
        table_of(["claim", "source", "verdict", "measured"], rows, kind="claims") + f'<p class="note">{HOW_TESTED}</p>'
    )


def means_rows(study: Study, results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of means: one for each line and x."""
    unit = _unit(study)
    on_axis = study.x != "line"
    rows = [
        [
            row["label"],
            *([_x(row["x"])] if on_axis else []),
            _number(row["mean"], unit),
            *_interval(row, unit),
            str(row["number"]),
        ]
        for row in results.summary.to_dict("records")
    ]
    return ["line", *([study.x.replace("_", " ")] if on_axis else []), "mean", "from", "to", "seeds"], rows


def _differences_table(study: Study, results: Results) -> str:
    return f"<p>Against {text_of(versus_of(study))}.</p>" + table_of(*differences_rows(study, results))


def differences_rows(study: Study, results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of differences from ``versus_of``: one for each other line and x."""
    unit = _unit(study)
    on_axis = study.x != "line"
    rows = [
        [
            row["label"],
            *([_x(row["x"])] if on_axis else []),
            f"{unit * row['difference']:+.2f}",
            *_interval(row, unit, signed=True),
            f"{row['p']:.3f}",
            row["verdict"],
        ]
        for row in results.differences.to_dict("records")
    ]
    axis = [study.x.replace("_", " ")] if on_axis else []
    return ["line", *axis, "difference", "from", "to", "p", "verdict"], rows


def _interval(row: Mapping[str, Any], unit: int, *, signed: bool = False) -> tuple[str, str]:
    if row["low"] is None or row["low"] != row["low"]:
        return NOTHING, NOTHING
    if signed:
        return f"{unit * row['low']:+.2f}", f"{unit * row['high']:+.2f}"
    return _number(row["low"], unit), _number(row["high"], unit)


def _x(value: Any) -> str:
    return NOTHING if value is None or value != value else f"{value:.4g}" if isinstance(value, float) else str(value)


def asked(study: Study) -> list[str]:
    """The study in sentences."""
    first, last = study.seeds[0], study.seeds[-1]
    counted = len(study.seeds) > 1 and study.seeds == list(range(first, last + 1))
    seeds = f"{first} to {last}" if counted else ", ".join(map(str, study.seeds))
    return [
        *([f"Source: {study.source}."] if study.source else []),
        f"Seed{'s' * (len(study.seeds) > 1)} {seeds}; runs of one seed share data order and, where they begin alike, "
        "dense weights.",
        *(f"{name}: {', '.join(map(str, values))}." for name, values in study.grid.items()),
        *study.notes,
        *_again(study),
    ]


def _again(study: Study) -> list[str]:
    """The command that asks the same; none where the study was changed, or is somebody's own."""
    name = study.name.removesuffix("-small")
    small = name != study.name
    if name not in built_in_studies() or read_study(name, small=small) != study:
        return []
    return [f"Again: randprune study {name}{' --small' * small}"]


def _settings(study: Study) -> str:
    rows = [["every run", _listed(study.base)]]
    rows += [[name, _listed(line)] for name, line in study.lines.items()]
    return table_of(["line", "settings that are not the task's own"], rows, kind="words")


def _listed(settings: Mapping[str, Any]) -> str:
    shown = {name: shown_name(value) if isinstance(value, str) else value for name, value in settings.items()}
    return ", ".join(f"{name} = {value}" for name, value in shown.items()) or NOTHING
