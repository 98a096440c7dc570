"""Weights, histograms and stage tables -> tidy rows for the charts that need not move: lists of plain dicts.

Magnitudes are abs(w), in the weights' own units; shares, accuracies and sparsities lie in [0, 1].
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from randprune_lab.checks import keep_count
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve, Ties, support_size
from randprune_lab.schedules import RATIO_SCHEDULES, samples_for_ratio

Row = dict[str, Any]
PAPER_SPARSITIES = (0.52, 0.83)  # of arXiv 2310.13183, Figure 1
POWERS = (1.0, 3.0, 5.0, 10.0)
RATIOS = tuple(float(f"{ratio:.3g}") for ratio in np.geomspace(1e-6, 1e-2, 41))
CONFIDENCE = 0.95


def threshold(histogram: MagnitudeHistogram, sparsity: float) -> float:
    """tau, the magnitude of the smallest weight that the deterministic mask keeps, to one bin (0.025 %).

    Raises:
        ValueError: no weight would be kept, or fewer exist than would be.
    """
    keep = keep_count(histogram.size, sparsity)
    if keep == 0:
        raise ValueError(
            f"sparsity = {sparsity}: keeps none of {histogram.size} weights, so there is no threshold. Pass less."
        )
    support_size(keep, None, histogram.alive)
    return histogram.largest(keep).magnitude


def threshold_rows(histogram: MagnitudeHistogram, sparsities: Iterable[float] = PAPER_SPARSITIES) -> list[Row]:
    """How many weights lie near tau: a row for each sparsity (arXiv 2310.13183, Figure 1).

    Returns:
        sparsity, tau, low (2/3 tau), high (4/3 tau), share (of the existing weights, from low to high), weights (the
        number that exists). For a normal tensor the share is 29.1 % at 0.52 and 29.3 % at 0.83.
    """
    rows = []
    for sparsity in sparsities:
        tau = threshold(histogram, sparsity)
        low, high = 2 / 3 * tau, 4 / 3 * tau
        share = histogram.share_within(low, high or math.ulp(0.0))  # where tau is 0, the zeros are what lies near it
        rows.append(
            {"sparsity": sparsity, "tau": tau, "low": low, "high": high, "share": share, "weights": histogram.alive}
        )
    return rows


def magnitude_rows(
    histogram: MagnitudeHistogram, sparsities: Iterable[float] = PAPER_SPARSITIES, *, bins: int = 60
) -> list[Row]:
    """The histogram of abs(w) once for each sparsity, cut at its tau: the bars of Figure 1.

    Bins are equally wide but for those that end at 2/3 tau, tau or 4/3 tau. The largest 0.1 % may lie outside.

    Returns:
        sparsity, low, high (of the bin), weights (existing ones in it), fate ("pruned" or "kept" by the deterministic
        mask), near (within 2/3 tau and 4/3 tau).
    """
    thresholds = {sparsity: threshold(histogram, sparsity) for sparsity in sparsities}
    top = max(_near_largest(histogram), 1.4 * max(thresholds.values(), default=0.0)) or 1.0
    rows = []
    for sparsity, tau in thresholds.items():
        edges = np.linspace(0, top, bins + 1)
        for value in (2 / 3 * tau, 4 / 3 * tau, tau):
            edges[1 + np.abs(edges[1:-1] - value).argmin()] = value
        edges = np.unique(edges)
        counts, _ = np.histogram(histogram.magnitudes, edges, weights=histogram.counts)
        rows += [
            {
                "sparsity": sparsity,
                "low": low,
                "high": high,
                "weights": int(count),
                "fate": "kept" if low >= tau else "pruned",
                "near": 2 / 3 * tau <= (low + high) / 2 < 4 / 3 * tau,
            }
            for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
        ]
    return rows


def _near_largest(histogram: MagnitudeHistogram) -> float:
    """The magnitude that 0.1 % of the existing weights reach: the largest ones would squeeze all others together."""
    return histogram.largest(math.ceil(histogram.alive / 1000)).magnitude if histogram.alive else 0.0


def keep_curve_rows(
    histogram: MagnitudeHistogram,
    sparsity: float,
    *,
    samples: int,
    powers: Iterable[float] = POWERS,
    reach: float | None = None,
    ties: Ties = "random",
    points: int = 80,
) -> list[Row]:
    """The chance q to be kept by magnitude, a curve for each power T, where it is neither 0 nor 1 and below 3 tau.

    Returns:
        power, magnitude, q.
    """
    curves = [
        KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach, ties=ties) for power in powers
    ]
    if not curves:
        return []
    tau = threshold(histogram, sparsity)
    undecided = np.concatenate([[tau], *map(_undecided, curves)])
    low, high = undecided.min(), undecided.max()
    margin = 0.1 * (high - low or tau)
    grid = np.linspace(max(0.0, low - margin), min(high + margin, 3 * tau or 1.0), points // 2)
    near = np.linspace(0.75 * tau, 1.25 * tau, points - len(grid))  # large T: steep
    grid = np.unique(np.append(grid, near.clip(grid[0], grid[-1])))
    if reach is not None:  # below the reach the curve falls straight to 0
        edge = histogram.largest(curves[0].drawable).magnitude
        grid = np.unique(np.append(grid, [edge * (1 - 5e-4), edge * (1 + 5e-4)]).clip(grid[0], grid[-1]))
    return [
        {"power": curve.power, "magnitude": magnitude, "q": q}
        for curve in curves
        for magnitude, q in zip(grid.tolist(), curve.keep_probability(grid).tolist(), strict=True)
    ]


def _undecided(curve: KeepCurve) -> NDArray[np.float64]:
    """The magnitudes at which chance has more than 1 in 200 to say."""
    q = curve.probabilities * (curve.drawable_counts > 0)
    return curve.histogram.magnitudes[(q > 0.005) & (q < 0.995)]


def ir_rows(
    histogram: MagnitudeHistogram,
    sparsity: float,
    ratios: Iterable[float] = RATIOS,
    *,
    power: float = 5.0,
    reach: float | None = None,
) -> list[Row]:
    """Expected ir against the sampling ratio sr, under both schedules.

    Returns:
        schedule, sampling_ratio, samples (M), ir, floored (sr * C is below 1, so M was raised to 1).
    """
    keep = keep_count(histogram.size, sparsity)
    counted = {"decrease": histogram.size - keep, "increase": keep}
    rows = []
    for schedule in RATIO_SCHEDULES:
        for ratio in map(float, ratios):
            samples = samples_for_ratio(ratio, histogram.size, sparsity, schedule)
            curve = KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach)
            rows.append(
                {
                    "schedule": schedule,
                    "sampling_ratio": ratio,
                    "samples": samples,
                    "ir": curve.expected_ir,
                    "floored": ratio * counted[schedule] < 1,
                }
            )
    return rows


def ladder_rows(table: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rungs of a run, from ``store.stage_table``.

    Returns:
        stage (0 is the dense network), sparsity, compression (of the prunable weights), winner ("plain", "random", or
        None for the dense network), ir (None likewise), accuracy (on the test split).
    """
    return [
        {
            "stage": row["stage"],
            "sparsity": row["sparsity"],
            "compression": row["compression"],
            "winner": None if row["winner"] is None else "random" if row["winner"] else "plain",
            "ir": row["ir"],
            "score": row["score"],
        }
        for row in table
    ]


def accuracy_rows(tables: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[Row]:
    """Mean test accuracy over seeds, stage by stage, with the 95 % t-interval of the mean.

    Args:
        tables: for each label the ``store.stage_table`` of each seed; those of stopped runs may be shorter.

    Returns:
        run (the label), sparsity, compression, accuracy (the mean), low and high (of its interval, cut to [0, 1]; None
        with one seed), seeds (how many came that far); the dense network first.
    """
    rows = []
    for label, runs in tables.items():
        by_sparsity: dict[float, list[Mapping[str, Any]]] = {}
        for row in (row for table in runs for row in table):
            by_sparsity.setdefault(row["sparsity"], []).append(row)
        for sparsity, same in sorted(by_sparsity.items()):
            values = [row["score"] for row in same]
            low, high = _interval(values)
            rows.append(
                {
                    "run": label,
                    "sparsity": sparsity,
                    "compression": same[0]["compression"],
                    "score": statistics.fmean(values),
                    "low": low,
                    "high": high,
                    "seeds": len(values),
                }
            )
    return rows


def _interval(
    values: Sequence[float], least: float = 0.0, most: float = 1.0
) -> tuple[float, float] | tuple[None, None]:
    """Student's interval of the mean, cut to [least, most]; none from a single value."""
    if len(values) < 2:
        return None, None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    return max(mean - half, least), min(mean + half, most)


def difference_rows(tables: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> list[Row]:
    """Differences in test score between each two labels, seed by seed, stage by stage, with the 95 % t-interval.

    Pairs of the same seed share data order and dense weights: their differences vary less than the scores do.

    Args:
        tables: for each label and seed the ``store.stage_table``.

    Returns:
        a, b (the labels), sparsity, difference (the mean of a's score minus b's), low and high (of its interval; None
        with one seed), seeds (how many both have), verdict: "one seed: not a result", "within noise" where the interval
        holds 0, "too few seeds: not a result" where they all differ by the same, else "beyond noise". The dense network
        is left out.
    """
    scores = {
        label: {seed: {row["sparsity"]: row["score"] for row in table if row["stage"]} for seed, table in runs.items()}
        for label, runs in tables.items()
    }
    rows = []
    for a, b in itertools.combinations(scores, 2):
        paired: dict[float, list[float]] = {}
        for seed in scores[a].keys() & scores[b].keys():
            ours, theirs = scores[a][seed], scores[b][seed]
            for sparsity in ours.keys() & theirs.keys():
                paired.setdefault(sparsity, []).append(ours[sparsity] - theirs[sparsity])
        for sparsity, differences in sorted(paired.items()):
            low, high = _interval(differences, -2.0, 2.0)  # correlations lie in [-1, 1]
            rows.append(
                {
                    "a": a,
                    "b": b,
                    "sparsity": sparsity,
                    "difference": statistics.fmean(differences),
                    "low": low,
                    "high": high,
                    "seeds": len(differences),
                    "verdict": _verdict(low, high),
                }
            )
    return rows


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "one seed: not a result"
    if low <= 0 <= high:
        return "within noise"
    # Scores are counts of a small test set: a few seeds easily agree by chance, and their interval is no width at all.
    return "too few seeds: not a result" if math.isclose(low, high, abs_tol=1e-9) else "beyond noise"


def share_near(histograms: Mapping[str, MagnitudeHistogram], sparsity: float, *, whole: bool = False) -> float:
    """The share of a network's existing weights from 2/3 tau to 4/3 tau, each tensor with its own tau.

    Args:
        histograms: of each tensor that is pruned.
        sparsity: what it is pruned to.
        whole: global scope, all tensors have one tau.

    Raises:
        ValueError: a tensor would be empty, or has fewer weights than would be kept.
    """
    cut = [sum(list(histograms.values())[1:], next(iter(histograms.values())))] if whole else histograms.values()
    near = [row for histogram in cut for row in threshold_rows(histogram, [sparsity])]
    total = sum(row["weights"] for row in near)
    return float(sum(row["share"] * row["weights"] for row in near) / max(total, 1))


def stage_histogram_rows(histograms: Mapping[int, MagnitudeHistogram], *, octaves: int = 8) -> list[Row]:
    """The magnitudes of the weights kept, stage by stage, in quarters of an octave (each bin 19 % higher).

    Args:
        histograms: by stage, 0 is the dense network.
        octaves: how far the bins reach down from the largest; all smaller weights are counted in the lowest bin, and
            the largest 0.1 % may be in the highest.

    Returns:
        stage, low, high (of the bin), weights, share (of the weights of that stage).
    """
    top = math.ceil(math.log2(max(map(_near_largest, histograms.values()), default=1.0) or 1.0))
    edges = 2.0 ** np.arange(top - octaves, top + 0.125, 0.25)
    rows = []
    for stage, histogram in sorted(histograms.items()):
        within = histogram.magnitudes.clip(edges[0], edges[-1])
        counts, _ = np.histogram(within, edges, weights=histogram.counts)
        total = max(histogram.alive, 1)
        rows += [
            {"stage": stage, "low": low, "high": high, "weights": int(count), "share": int(count) / total}
            for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
        ]
    return rows
