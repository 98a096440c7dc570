"""What the runs of a study say, as rows of tidy tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from randprune_lab.events import CandidateScored, EpochFinished, Event, MaskChosen, RunStarted, StageFinished
from randprune_lab.intervals import spearman
from randprune_lab.studies import Planned, Study


def stage_rows(planned: Planned, events: Sequence[Event]) -> list[dict[str, Any]]:
    """A row for each finished stage of a run: the columns of ``Results.stages`` that do not name it."""
    rows: list[dict[str, Any]] = []
    scored: list[CandidateScored] = []
    made: dict[str, str] = {}
    chosen: MaskChosen | None = None
    prunable, metric, epochs = 1, "accuracy", 0.0
    part = (planned.config.emep_steps or 1) / (planned.config.max_steps_per_epoch or 1)
    judged = planned.config.judging_epochs * (part if planned.config.emep_steps else 1.0)
    for event in events:
        match event:
            case RunStarted():
                prunable, metric = sum(event.prunable.values()), event.metric
                made = {"device": event.device, "torch": event.torch, "lab": event.lab, "data": event.data}
            case EpochFinished():
                epochs += 1
            case CandidateScored():
                scored.append(event)
            case MaskChosen():
                chosen = event
            case StageFinished():
                epochs += judged * (len(scored) > 1)
                drawn = [one.ir for one in scored if one.candidate]
                if not drawn and chosen is not None and chosen.winner:
                    drawn = [chosen.ir]  # the one random mask, unjudged
                rows.append(
                    {
                        "stage": event.stage,
                        "sparsity": planned.config.stages[event.stage - 1],
                        "compression": prunable / event.kept,
                        "metric": metric,
                        "score": event.test.metric,
                        "selection": event.selection.metric,
                        "gap": event.test.metric - event.selection.metric,
                        "ir": chosen.ir if chosen else None,
                        "swapped": chosen.swapped if chosen else None,
                        "drawn_ir": float(np.mean(drawn)) if drawn else None,
                        "plain_won": float(chosen.winner == 0) if planned.config.compares and chosen else None,
                        "judged": len(scored),
                        "epochs": epochs,
                        "last": event.stage == len(planned.config.stages),
                        **made,
                    }
                )
                scored = []
    return rows


def candidate_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """A row for each mask that was judged."""
    return [
        {
            "stage": event.stage,
            "candidate": event.candidate,
            "score": event.selection.metric if event.selection else None,
            "loss": event.selection.loss if event.selection else None,
            "ir": event.ir,
            "swapped": event.swapped,
            "steps": event.steps,
            "failed": event.failed or "",
        }
        for event in events
        if isinstance(event, CandidateScored)
    ]


def beside_reference(study: Study, table: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """``ranks`` and ``same_winner``: the first stage's candidates beside the reference's, whose masks are the same."""
    table = table.assign(ranks=np.nan, same_winner=np.nan)
    if not study.reference or not len(judged):
        return table
    first = judged[(judged["stage"] == 1) & (judged["failed"] == "")]
    first = first.drop_duplicates(["run", "candidate"])  # a run may stand at several points of the grid
    places = {run: _places(rows) for run, rows in first.groupby("run")}
    raced = {run for run, steps in judged.groupby("run")["steps"] if steps.any()}
    key = ["seed", *study.grid]
    reference = {
        tuple(row[name] for name in key): row["run"]
        for row in table[table["line"] == study.reference].to_dict("records")
    }
    for place, row in table.iterrows():
        ours = places.get(row["run"])
        theirs = places.get(reference.get(tuple(row[name] for name in key), ""))
        if ours is not None and theirs is not None and row["line"] != study.reference:
            table.loc[place, "ranks"] = rank_agreement(ours, theirs)
            if row["run"] not in raced or theirs.idxmin() != 0:  # a race always finds the plain mask
                table.loc[place, "same_winner"] = float(ours.idxmin() == theirs.idxmin())
    return table


def _places(rows: pd.DataFrame) -> pd.Series:
    """The candidates in the order in which MCSS would take them, the best first: metric, then loss, then number.

    Those that a race dropped come after all that were trained for longer.
    """
    lasted = rows.assign(steps=rows["steps"].replace(0, np.inf))
    order = lasted.sort_values(["steps", "score", "loss", "candidate"], ascending=[False, False, True, True])
    return pd.Series(range(len(order)), index=order["candidate"].to_numpy())


def rank_agreement(ours: pd.Series, theirs: pd.Series) -> float:
    """Spearman's rank correlation of two orders of the same candidates, in [-1, 1]; NaN for fewer than three."""
    both = ours.index.intersection(theirs.index)
    return spearman(ours[both], theirs[both])
