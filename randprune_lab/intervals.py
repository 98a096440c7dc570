"""What a few seeds can tell: intervals, paired differences, and verdicts that claim no more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from randprune_lab.checks import check_number

Verdict = Literal["above", "below", "within noise", "too few seeds"]
RESAMPLES = 9999
LEVEL = 0.05
_SAME = 9  # decimals, relative to the largest difference: float noise apart, counts of a test set often tie


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, in the values' own unit.

    Attributes:
        mean: of the values.
        low, high: bounds of the interval; None for a single value.
        number: of values.
    """

    mean: float
    low: float | None
    high: float | None
    number: int


@dataclasses.dataclass(frozen=True)
class Paired:
    """How far a lies above b, seed by seed, in their own unit.

    Attributes:
        difference: mean of a - b.
        low, high: bounds of its bootstrap interval; None for a single pair.
        p: two-sided, of the sign-flip test; 1 for a single pair.
        least_p: the smallest p that so many pairs can give.
        number: of pairs.
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    least_p: float
    number: int


def bootstrap_interval(
    values: ArrayLike, *, level: float = 1 - LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over seeds with its percentile bootstrap interval (Efron 1979).

    Percentile, not BCa: BCa also estimates a skewness, which a handful of values cannot tell, and has no answer where
    all are equal. With few seeds either is too narrow, as nothing more extreme than the seeds at hand is ever drawn:
    of 95 % intervals over normal values, 75 % hold the mean with 3 seeds, 83 % with 5, 90 % with 10, 93 % with 20.

    Raises:
        ValueError: there are no values, one is not finite, or ``level`` does not lie in (0, 1).
    """
    numbers = _finite("values", values)
    _check_level("level", level)
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, None, None, 1)
    if np.ptp(numbers) == 0:
        return Interval(mean, mean, mean, len(numbers))
    low, high = _percentiles((numbers,), np.mean, level=level, resamples=resamples, seed=seed)
    return Interval(mean, low, high, len(numbers))


def paired(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Paired:
    """The difference between runs of the same seeds: a[i] and b[i] share theirs.

    If neither were better, each difference could as well have the other sign. p is the share of all such flips whose
    mean is as far from 0 (Fisher 1935, section 21): all 2**n for up to 13 pairs, else 9,999 of them drawn with
    ``seed``. So n pairs give at least 2 / 2**n: fewer than 6 are never significant at 5 %.

    Raises:
        ValueError: a and b are not equally long, empty, or hold a value that is not finite.
    """
    ours, theirs = _pair("a", a, "b", b)
    differences, count = ours - theirs, len(ours)
    interval = bootstrap_interval(differences, seed=seed)
    exact = 2**count <= RESAMPLES
    least = 2 / 2**count if exact else 2 / (RESAMPLES + 1)
    p = 1.0
    if count > 1 and differences.any():
        # Rounded: means that differ in the last bit only would not count as equally far.
        test: Any = scipy.stats.permutation_test(
            (differences / np.abs(differences).max(),),
            lambda values, axis: np.round(values.mean(axis=axis), _SAME),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(seed),
        )
        p = float(test.pvalue)
    return Paired(interval.mean, interval.low, interval.high, p, least, count)


def verdict(found: Paired, *, level: float = LEVEL) -> Verdict:
    """What the pairs say at this ``level``: a above b, below it, neither, or that no such test could tell.

    Of a family of comparisons pass each with the p that ``holm`` gives: ``dataclasses.replace(found, p=adjusted)``.
    """
    _check_level("level", level)
    if found.p <= level:
        return "above" if found.difference > 0 else "below"
    return "too few seeds" if found.least_p > level else "within noise"


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, in [-1, 1]; NaN for fewer than three points or where x is constant, 0 where y is."""
    ours, theirs = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(ours) < 3 or np.ptp(ours) == 0:
        return math.nan
    return 0.0 if np.ptp(theirs) == 0 else float(scipy.stats.spearmanr(ours, theirs).statistic)


def share(hits: int, number: int, *, level: float = 1 - LEVEL) -> Interval:
    """A share of ``number`` trials with Wilson's interval (1927), which also holds where none or all hit.

    Raises:
        ValueError: ``hits`` does not lie between 0 and ``number``, there is no trial, or ``level`` is not in (0, 1).
    """
    if not 0 <= hits <= number or not number:
        raise ValueError(f"hits = {hits}, number = {number}: must be 0 <= hits <= number, number > 0. Pass counts.")
    _check_level("level", level)
    bounds = scipy.stats.binomtest(hits, number).proportion_ci(confidence_level=level, method="wilson")
    mean = hits / number
    return Interval(mean, min(float(bounds.low), mean), max(float(bounds.high), mean), number)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for being several, in their own order (Holm 1979): the chance of any false alarm is kept.

    Raises:
        ValueError: one does not lie in [0, 1].
    """
    for p in p_values:
        if not 0 <= check_number("p", p) <= 1:
            raise ValueError(f"p = {p}: must lie in [0, 1]. Pass p values as tests give them.")
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, least = [0.0] * len(p_values), 0.0
    for left, place in zip(range(len(order), 0, -1), order, strict=True):
        least = adjusted[place] = max(least, min(1.0, left * p_values[place]))
    return adjusted


def _percentiles(
    samples: tuple[NDArray[np.float64], ...], statistic: Any, *, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    found: Any = scipy.stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        method="percentile",
        confidence_level=level,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _pair(a: str, ours: ArrayLike, b: str, theirs: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = _finite(a, ours), _finite(b, theirs)
    if len(left) != len(right):
        raise ValueError(
            f"{a} has {len(left)} values, {b} {len(right)}: must be as many, one of each for a seed. Leave out the "
            "seeds that only one of them has."
        )
    return left, right


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(
            f"{name} has shape {found.shape}: must be a list of one number or more. Pass one for each seed."
        )
    if not np.isfinite(found).all():
        bad = found[~np.isfinite(found)][0]
        raise ValueError(f"{name} holds {bad}: must be finite. Leave out runs that diverged, and say so.")
    return found


def _check_level(name: str, level: float) -> None:
    if not 0 < check_number(name, level) < 1:
        raise ValueError(f"{name} = {level}: must lie in (0, 1). Pass for example {0.95 if level > 0.5 else 0.05}.")
