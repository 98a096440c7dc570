"""What a study came to: tidy tables, means with intervals, paired differences, and each claim's verdict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from randprune_lab.files import write_atomically
from randprune_lab.intervals import bootstrap_interval, paired, verdict
from randprune_lab.studies import Planned, Study, cell_of, expand
from randprune_lab.study_claims import claim_rows
from randprune_lab.study_rows import beside_reference, candidate_rows, stage_rows
from randprune_lab.study_runs import finished_story, run_folder

RESULTS, CANDIDATES, CLAIMS = "results", "candidates", "claims.json"
SET_IR = ("samples", "sampling_ratio", "target_ir", "power", "reach")  # what moves a line along ir


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a study's finished runs say.

    Attributes:
        stages: a row for each line, point of the grid, seed and stage: line, the grid's fields, seed, run, stage,
            sparsity, compression, metric, score (reported split), selection (the split held out of train), gap (score
            less selection), ir, swapped (of the mask taken), drawn_ir (mean of the random candidates), plain_won,
            judged (masks), epochs (trained so far, judging included), last (of the run's stages), device, torch, lab
            (versions), data (a digest) of the run; of its first stage's candidates beside the reference's: ranks,
            same_winner.
        candidates: a row for each mask that was judged: ..., stage, candidate, score, loss, ir, swapped, steps, failed.
        summary: label, x, mean, low, high, number: of the study's ``y``.
        differences: label, line, versus, x, difference, low, high, p, least_p, number, verdict: paired by seed, each
            point for itself.
        claims: says, source, verdict, difference, low, high, p (Holm's, over the study's claims), number, sentence.
        finished, of: runs.
    """

    stages: pd.DataFrame
    candidates: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    claims: list[dict[str, Any]]
    finished: int
    of: int


def gather(study: Study, parent: Path) -> Results:
    """Read the finished runs of a study; ``parent`` is the folder of studies."""
    plan = expand(study)
    stages: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for planned, (stages_of, judged_of) in _read(plan, parent):
        point = {name: cell_of(study, name, value) for name, value in planned.point.items()}
        where = {"line": planned.line, **point, "seed": planned.seed, "run": planned.id}
        stages += [where | row | point for row in stages_of]  # a field of the grid may be a column, too: device
        candidates += [where | row | point for row in judged_of]
    table, judged = pd.DataFrame(stages), pd.DataFrame(candidates)
    if len(table):
        table = table.astype(dict.fromkeys(("ir", "swapped", "drawn_ir", "plain_won"), float))  # though all be None
        table = beside_reference(study, table, judged)
    return Results(
        table,
        judged,
        _summary(study, table),
        _differences(study, table),
        claim_rows(study, table),
        len({row["run"] for row in stages}),
        len({planned.id for planned in plan}),
    )


Rows = list[dict[str, Any]]


def _read(plan: Sequence[Planned], parent: Path) -> Iterator[tuple[Planned, tuple[Rows, Rows]]]:
    """The planned runs that are finished, with their rows; each is read once, at however many points it stands."""
    known: dict[str, tuple[Rows, Rows] | None] = {}
    for planned in plan:
        if planned.id not in known:
            events = finished_story(run_folder(parent, planned.id))
            known[planned.id] = (stage_rows(planned, events), candidate_rows(events)) if events else None
        rows = known[planned.id]
        if rows is not None:
            yield planned, rows


def write_results(folder: Path, results: Results) -> None:
    """Write the tables as parquet and CSV, and the claims as JSON. The same runs give the same bytes of CSV."""
    for name, table in ((RESULTS, results.stages), (CANDIDATES, results.candidates)):
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
        write_atomically(folder / f"{name}.parquet", table.to_parquet(index=False))
    write_atomically(folder / CLAIMS, json.dumps(results.claims, indent=2))


# ---- means and differences


def _short(field: str) -> str:
    """A setting's name beside a chart."""
    return field.removeprefix("emep_").replace("_", " ")


def label_of(study: Study, row: Mapping[str, Any]) -> str:
    """A row's curve: its line, and the values of the grid that are neither on the axis nor set by the line."""
    own = study.lines[row["line"]]
    own = own | study.lines[own["of"]] if "of" in own else own
    on_axis = SET_IR if study.x == "ir" else (study.x,)
    beside = [name for name in study.grid if name not in (*on_axis, *own) and len(study.grid[name]) > 1]
    return ", ".join([row["line"], *(f"{_short(name)} {_value(row[name])}" for name in beside)])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that the figure is of, with ``label``, ``x`` and ``y``, at each point of the grid."""
    if not len(table):
        return table.assign(label=[], x=[], y=[])
    rows = table if study.x == "sparsity" else table[table["last"]]
    rows = rows.assign(label=[label_of(study, row) for row in rows.to_dict("records")])
    every = table.groupby("run")
    if study.y == "plain_won" and study.x != "sparsity":
        rows = rows.assign(plain_won=rows["run"].map(every["plain_won"].mean()))
    match study.x:
        case "line":
            rows = rows.assign(x=rows["label"])
        case "ir":
            mean = rows["run"].map(every["drawn_ir"].mean())
            cell = ["label", *study.grid]
            rows = rows.assign(x=mean).assign(x=lambda frame: frame.groupby(cell)["x"].transform("mean"))
        case _:
            rows = rows.assign(x=rows[study.x])
    place = {line: number for number, line in enumerate(study.lines)}  # a line's points together, in their order
    by = ["place", "label", *(["x"] if study.x != "line" else [])]
    return rows.assign(y=rows[study.y], place=rows["line"].map(place)).sort_values(by, kind="stable")


def _once(study: Study, shown: pd.DataFrame) -> pd.DataFrame:
    """A run that stands at several points of the grid, which its line does not look at, counts once."""
    return shown.drop_duplicates(["run", "label"] if study.x == "ir" else ["label", "x", "seed"])


def _apart(study: Study) -> list[str]:
    """Fields that tell points apart which may lie at one x: two amounts of randomness may come to the same ir."""
    return list(study.grid) if study.x == "ir" else []


def _summary(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    if not len(table):
        return pd.DataFrame()
    rows = []
    shown = _once(study, _shown(study, table))
    for (label, x, *_), same in shown.groupby(["label", "x", *_apart(study)], sort=False, dropna=False):
        values = same["y"].dropna().to_numpy(dtype=float)
        if len(values):
            interval = bootstrap_interval(values)
            line = same["line"].iloc[0]
            rows.append({"label": label, "line": line, "x": None if x != x else x, **dataclasses.asdict(interval)})
    return pd.DataFrame(rows)


OWN_CONTROL = "each line's own control"


def versus_of(study: Study) -> str:
    """What lines are compared with, in words: one line's name, or, where several have controls, ``OWN_CONTROL``."""
    found = {_versus(study, line) for line in study.lines} - {""}
    return OWN_CONTROL if len(found) > 1 else next(iter(found), "")


def _versus(study: Study, line: str) -> str:
    """The line that this one is compared with: the one named, else its own control, else the study's first, else none.

    A control belongs to the line that it is of.
    """
    controls = {name: own["of"] for name, own in study.lines.items() if "of" in own}
    own = [name for name, of in controls.items() if of == study.lines[line].get("of", line)]
    return study.versus or next(iter([*own, *controls]), "")


def _differences(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    shown = _shown(study, table)
    if not len(shown):
        return pd.DataFrame()
    key = ["seed", *study.grid, *(["sparsity"] if study.x == "sparsity" else [])]
    by_line = {line: rows.set_index(key)["y"].rename("theirs") for line, rows in shown.groupby("line")}
    rows = []
    for (line, label, x, *_), same in _once(study, shown).groupby(["line", "label", "x", *_apart(study)], sort=False):
        against = _versus(study, line)
        if line == against or against not in by_line:
            continue
        both = same.set_index(key)["y"].rename("ours").to_frame().join(by_line[against], validate="1:1").dropna()
        if len(both):
            found = paired(both["ours"], both["theirs"])
            told = {"label": label, "line": line, "versus": against, "x": x}
            rows.append(told | dataclasses.asdict(found) | {"verdict": verdict(found)})
    return pd.DataFrame(rows)


# ---- rows of further figures


def winner_rows(study: Study, results: Results) -> pd.DataFrame:
    """How often which kind of mask won: label, kind ("plain" or "random"), won, number (of stages that compared)."""
    table = results.stages
    decided = table.dropna(subset=["plain_won"]).drop_duplicates(["run", "stage", "line"]) if len(table) else table
    rows = []
    for label, same in decided.groupby([label_of(study, row) for row in decided.to_dict("records")], sort=False):
        won = int(same["plain_won"].sum())
        counts = {"plain": won, "random": len(same) - won}
        rows += [{"label": label, "kind": kind, "won": count, "number": len(same)} for kind, count in counts.items()]
    return pd.DataFrame(rows)


def ranking_rows(study: Study, results: Results) -> pd.DataFrame:
    """The first stage's candidates beside the reference's: setting, candidate, x and y (scores less the seed's mean).

    ``setting``: values of the grid, and the line where there are several; y is of the reference, x of the setting.
    """
    judged = results.candidates
    if not len(judged):
        return pd.DataFrame()
    first = judged[(judged["stage"] == 1) & (judged["failed"] == "")]
    key = ["seed", *study.grid]
    away = first["score"] - first.groupby(["line", *key])["score"].transform("mean")
    first = first.assign(away=away)
    theirs = first[first["line"] == study.reference].set_index([*key, "candidate"])["away"].rename("y")
    ours = first[first["line"] != study.reference].rename(columns={"away": "x"}).join(theirs, on=[*key, "candidate"])
    varied = [name for name in study.grid if len(study.grid[name]) > 1]
    named = ours["line"].nunique() > 1 or not varied
    setting = [
        ", ".join([row["line"]] * named + [f"{_short(name)} {_value(row[name])}" for name in varied])
        for row in ours.to_dict("records")
    ]
    return ours.assign(setting=setting)[["setting", "line", *key, "candidate", "x", "y"]].dropna()
