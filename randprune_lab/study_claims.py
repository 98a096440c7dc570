"""The verdict on each claim of a study."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import scipy

from randprune_lab.intervals import Paired, holm, paired, share, spearman, verdict
from randprune_lab.studies import CHANCE, COUNTED, Claim, Study, cell_of, chance_for, chosen, expand

REPRODUCED, NOT_REPRODUCED, NOISE = "reproduced", "not reproduced", "within noise at this scale"
TOO_FEW, NO_DATA = "too few seeds to tell", "no data yet"


def claim_rows(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each claim with what was measured and its verdict.

    The p values of all claims that were announced are adjusted together (Holm), those without data as if they were 1.
    """
    claims = [_against_number(study, claim) for claim in study.claims]
    found = [_found(study, table, claim) for claim in claims]
    adjusted = holm([1.0 if one is None else one.p for one in found])
    rows = []
    for claim, one, p in zip(claims, found, adjusted, strict=True):
        told = claim.model_dump()
        if one is None:
            why = "No seed has three points for a trend." if claim.trend else "No two finished runs to compare."
            rows.append(told | {"verdict": NO_DATA, "sentence": why})
            continue
        least = min(1.0, len(found) * one.least_p)
        said = dataclasses.replace(one, p=p, least_p=least)
        told |= dataclasses.asdict(said)
        rows.append(told | {"verdict": _WORDS[verdict(said)], "sentence": _measured(claim, said)})
    return rows


def _against_number(study: Study, claim: Claim) -> Claim:
    """The claim with its chance as a number."""
    if claim.below != CHANCE:
        return claim
    runs = [(planned.line, planned.point, planned.config) for planned in expand(study)]
    return claim.model_copy(update={"below": chance_for(study, claim, runs)})


_WORDS = {"above": REPRODUCED, "below": NOT_REPRODUCED, "within noise": NOISE, "too few seeds": TOO_FEW}


def _found(study: Study, table: pd.DataFrame, claim: Claim) -> Paired | None:
    """What was measured; None where there is nothing to compare yet."""
    if not len(table):
        return None
    ours = _rows(study, table, claim, claim.above)
    if claim.measure in COUNTED and not claim.trend and not isinstance(claim.below, str):
        # A run may stand at several points of the grid; its first winner, in the row of each of its stages.
        once = ours.drop_duplicates(["run"] if claim.measure == "same_winner" else ["run", "stage"])
        return _against_chance(once[claim.measure], claim.below)
    if claim.trend:
        both = _trends(study, claim, ours).to_frame("ours").assign(theirs=claim.below)
        if isinstance(claim.below, str):
            both["theirs"] = _trends(study, claim, _rows(study, table, claim, claim.below))
    elif isinstance(claim.below, str):
        key = ["seed", *study.grid, *(["sparsity"] if _every_stage(study, claim) else [])]
        sides = {"ours": ours, "theirs": _rows(study, table, claim, claim.below)}
        values = [rows.set_index(key)[claim.measure].rename(side) for side, rows in sides.items()]
        # Point by point: where one of the two has no result the other's does not count, either.
        both = pd.concat(values, axis=1).dropna().groupby(level="seed").mean()
    else:
        both = ours.groupby("seed")[claim.measure].mean().to_frame("ours").assign(theirs=claim.below)
    both = both.dropna()
    return paired(both["ours"], both["theirs"]) if len(both) else None


def _against_chance(hits: pd.Series, chance: float) -> Paired | None:
    """A share of hits against what chance has: not symmetric about it, so a binomial test, and Wilson's interval."""
    if not len(hits):
        return None
    count, number = int(hits.sum()), len(hits)
    found = share(count, number)
    assert found.low is not None
    assert found.high is not None
    p, least = (float(scipy.stats.binomtest(good, number, chance).pvalue) for good in (count, number))
    return Paired(found.mean - chance, found.low - chance, found.high - chance, p, least, number)


def _every_stage(study: Study, claim: Claim) -> bool:
    return study.x == "sparsity" or claim.measure == "plain_won" or "sparsity" in claim.where


def _rows(study: Study, table: pd.DataFrame, claim: Claim, line: str) -> pd.DataFrame:
    """The rows of a line that a claim is about."""
    rows = table[table["line"] == line]
    rows = rows if _every_stage(study, claim) else rows[rows["last"]]
    for field, value in claim.where.items():
        rows = rows[rows[field].isin([cell_of(study, field, one) for one in chosen(value, study.grid.get(field))])]
    return rows.dropna(subset=[claim.measure])


def _trends(study: Study, claim: Claim, rows: pd.DataFrame) -> pd.Series:
    """Spearman's correlation of the measure with x, a number a seed."""
    x = study.x if study.x != "ir" else "drawn_ir"
    trends = {
        seed: spearman(one[x].to_numpy(float), one[claim.measure].to_numpy(float)) for seed, one in rows.groupby("seed")
    }
    return pd.Series(trends, dtype=float)


_SAID = {
    "score": "score",
    "gap": "reported less held-out score",
    "plain_won": "share of the stages that the plain mask won",
    "ranks": "rank correlation",
    "same_winner": "share of equal first winners",
    "epochs": "epochs trained",
}


def _measured(claim: Claim, found: Paired) -> str:
    """What was measured, in words that do not make more of it than it is."""
    plain = claim.trend or claim.measure in ("ranks", "epochs")
    factor, unit = (1, "") if plain else (100, " points")
    what = f"Trend (Spearman) of the {_SAID[claim.measure]}" if claim.trend else _SAID[claim.measure].capitalize()
    below = claim.below if isinstance(claim.below, str) else f"{claim.below:.3g}"
    size = f"{what}, {claim.above} less {below}: {factor * found.difference:+.2f}{unit}"
    of_chance = claim.measure in COUNTED and not isinstance(claim.below, str) and not claim.trend
    trial = "seed" if not of_chance else "stage" if claim.measure == "plain_won" else "run"
    seeds = f"{found.number} {trial}{'s' * (found.number != 1)}"
    if found.low is None or found.high is None:
        return f"{size} ({seeds}: no interval)"
    interval = f"95 % interval {factor * found.low:+.2f} to {factor * found.high:+.2f}"
    return f"{size} ({interval}, {seeds}, p = {found.p:.3f})"
