"""The closed form of the randomized mask: a histogram of magnitudes in, keep-probabilities and randomness out.

For a tensor of real size nothing needs to be drawn to know what drawing would do. One draw of the paper (arXiv
2310.13183, section 3.2) takes ``keep`` weights without replacement, p_i proportional to |w_i|**T. It includes weight i
with probability pi_i = 1 - exp(-lambda |w_i|**T), lambda solved from sum(pi_i) = keep (order sampling: Rosen 1997,
"Asymptotic theory for order sampling"). Inclusions are asymptotically independent, so that M draws choose it
Binomial(M, pi_i) times, and the ensemble mask keeps the ``keep`` highest counts. All of it is a function of |w| alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from typing import Literal, Self, overload

import numpy as np
import scipy  # its submodules load on first use, which keeps ``import randprune_lab`` cheap
import torch
from numpy.typing import NDArray
from torch import Tensor

from randprune_lab.checks import check_option, check_power, check_reach, check_samples, keep_count
from randprune_lab.histogram import INFINITY_BIN, Cut, MagnitudeHistogram, bin_magnitudes, bins_of, magnitude_bins

Ties = Literal["random", "magnitude"]
TIES: tuple[Ties, ...] = ("random", "magnitude")

# Distances from the threshold, in bins, at which the smooth part of the curve is computed: every bin nearby, then
# ever wider groups, each at most 3 % of its distance.
_STEPS = np.unique(np.geomspace(1, INFINITY_BIN, 500).astype(np.int64))
_STEPS = np.concatenate([-_STEPS[::-1], [0], _STEPS])

NEGLIGIBLE = 1e-10  # a keep-probability this close to 0 or 1 is not left to chance


def support_size(keep: int, reach: float | None, alive: int) -> int:
    """How many weights can be drawn: the round(reach * keep) largest, or every one that exists (reach None).

    Raises:
        ValueError: fewer weights exist than are to be kept.
    """
    if alive < keep:
        raise ValueError(
            f"{alive} weights exist, {keep} are to be kept: at least as many must be alive. "
            "Raise the sparsity, or pass the mask of the stage before as alive."
        )
    return alive if reach is None else round(min(alive, reach * keep))


@dataclasses.dataclass(frozen=True, eq=False)
class KeepCurve:
    """The chance of every weight to be kept by the ensemble mask, as a function of its magnitude.

    Build it with ``KeepCurve.of``. The closed form is asymptotic: its ir lies within 1 % of drawing where at least some
    thirty weights are kept, a few percent off below.

    Attributes:
        histogram, sparsity, samples, power, reach, ties: what it was asked for.
        keep: k, the number of weights that every mask keeps.
        drawable: the number of weights that can be drawn at all, the largest ones (k at reach 1).
        threshold: tau, the magnitude of the smallest weight that the deterministic mask keeps (inf when keep is 0).
            Exact when built from a tensor; from a histogram, the lower edge of its bin, at most 0.025 % less.
        expected_ir: the introduced randomness to expect, D / (C_pruned - D), D the sum of the keep-probabilities of
            the weights that the deterministic mask prunes (arXiv 2310.13183, Eq. 1). 0.0 when nothing is pruned.
        swapped: the share of the kept weights that the deterministic mask would not keep, D / keep.
        band: (low, high), the magnitudes whose fate is random: outside it q is within 1e-10 of 0 or 1. Both are
            ``threshold`` when nothing is left to chance.
        decided_by_ties: the share of the kept weights whose count stands at the cut: equals of theirs are pruned. (With
            ties by magnitude the cut moves from mask to mask; the share is that of its most likely place.)
        undecided_bins: the first and the last bin of the band; None when nothing is left to chance.
        probabilities: q of each occupied bin of ``histogram``, for those of its weights that can be drawn.
    """

    histogram: MagnitudeHistogram
    sparsity: float
    samples: int
    power: float
    reach: float | None
    ties: Ties
    keep: int
    drawable: int
    threshold: float
    expected_ir: float
    swapped: float
    band: tuple[float, float]
    decided_by_ties: float
    undecided_bins: tuple[int, int] | None = dataclasses.field(repr=False)
    probabilities: NDArray[np.float64] = dataclasses.field(repr=False)
    _law: _Law = dataclasses.field(repr=False)
    _support: Cut = dataclasses.field(repr=False)

    @classmethod
    def of(
        cls,
        weight_or_histogram: Tensor | MagnitudeHistogram,
        sparsity: float,
        *,
        samples: int,
        power: float = 5.0,
        reach: float | None = None,
        ties: Ties = "random",
    ) -> Self:
        """The curve of a tensor (its zeros do not exist) or of a ready histogram (milliseconds, whatever its size).

        Args:
            weight_or_histogram: for another set of existing weights, pass ``MagnitudeHistogram.of(weight, alive=...)``.
            sparsity: the share of all weights that is removed, in [0, 1).
            samples: M >= 1, the draws that are added up.
            power: T >= 0, the selection weights are |w|**T.
            reach: r >= 1, only the round(r * keep) largest can be drawn; None: every existing weight.
            ties: who goes first among equal counts at the cut: "random" ones, or those of larger "magnitude".

        Raises:
            ValueError: a setting is out of its range, the weights are not finite, or fewer exist than are kept.
        """
        samples, power, reach = check_samples(samples), check_power(power), check_reach(reach)
        check_option("ties", ties, TIES)
        given = weight_or_histogram
        histogram = given if isinstance(given, MagnitudeHistogram) else MagnitudeHistogram.of(given)
        keep = keep_count(histogram.size, sparsity)
        drawable = support_size(keep, reach, histogram.alive)
        support, kept = histogram.largest(drawable), histogram.largest(keep)
        law, q, swapped_in, by_ties = _solve(histogram, support, kept, samples=samples, power=power, ties=ties)
        pruned = histogram.size - keep
        undecided = _undecided(histogram, support, q)
        threshold = kept.magnitude
        if isinstance(given, Tensor) and keep:
            rank = round(kept.share * int(histogram.counts[histogram.bins == kept.bin][0]))
            tied = given.detach().reshape(-1)[magnitude_bins(given) == kept.bin].abs()
            threshold = float(tied.sort(descending=True).values[rank - 1])
        return cls(
            histogram=histogram,
            sparsity=float(sparsity),
            samples=samples,
            power=power,
            reach=reach,
            ties=ties,
            keep=keep,
            drawable=drawable,
            threshold=threshold,
            expected_ir=_ratio(swapped_in, pruned - swapped_in),
            swapped=_ratio(swapped_in, keep),
            band=(threshold, threshold) if undecided is None else _edges(*undecided),
            decided_by_ties=by_ties,
            undecided_bins=undecided,
            probabilities=q,
            _law=law,
            _support=support,
        )

    @property
    def drawable_counts(self) -> NDArray[np.float64]:
        """How many weights of each occupied bin can be drawn."""
        return self.histogram.counts * self._support.at(self.histogram.bins)

    @property
    def inclusions(self) -> NDArray[np.float64]:
        """Pi of each occupied bin: the chance of a weight that can be drawn to be taken by one draw."""
        return _inclusion(self._law.log_lambda, self.histogram.selection_logs(self.histogram.magnitudes, self.power))

    @overload
    def keep_probability(self, magnitude: float) -> float: ...
    @overload
    def keep_probability(self, magnitude: Tensor) -> Tensor: ...
    @overload
    def keep_probability(self, magnitude: NDArray[np.floating]) -> NDArray[np.float64]: ...
    def keep_probability(
        self, magnitude: float | Tensor | NDArray[np.floating]
    ) -> float | Tensor | NDArray[np.float64]:
        """q(|w|): the chance that an existing weight of this magnitude is kept.

        ``magnitude`` is a number, an array or a tensor; signs are ignored. The answer has its kind and shape, float64.

        Raises:
            ValueError: a magnitude is not finite.
        """
        if isinstance(magnitude, Tensor):
            return torch.from_numpy(self.keep_probability(magnitude.detach().double().cpu().numpy()))
        asked = np.abs(np.asarray(magnitude, dtype=np.float64))
        if not np.isfinite(asked).all():
            raise ValueError(f"magnitude = {magnitude}: must be finite. Pass the magnitudes of finite weights.")
        flat = asked.reshape(-1)
        bins = bins_of(flat)
        chance = self._law.kept(self.histogram.selection_logs(flat, self.power), bins)
        chance = (chance * self._support.at(bins)).reshape(asked.shape)
        return chance if isinstance(magnitude, np.ndarray) else float(chance)


@dataclasses.dataclass(frozen=True, eq=False)
class _Law:
    """The solved closed form: a weight is kept when drawn more than ``cut`` times, and by chance when about so often.

    ``tied`` says how likely, for each count near the cut: one number, or one for each of ``centres`` (bin numbers).
    """

    samples: int
    log_lambda: float
    cut: int
    tied: dict[int, NDArray[np.float64]]
    centres: NDArray[np.float64]

    def kept(self, x: NDArray[np.float64], bins: NDArray[np.integer | np.floating]) -> NDArray[np.float64]:
        """The chance q of weights with x = T log|w|, in ``bins``."""
        pi = _inclusion(self.log_lambda, x)
        q = _exceeds(self.cut, self.samples, pi)
        for count, chances in self.tied.items():
            q += _equals(count, self.samples, pi) * np.interp(bins, self.centres, chances)
        return q


@dataclasses.dataclass(frozen=True, eq=False)
class _Weights:
    """Weights that can be drawn, some together: where (a bin, or the mean of several), how many, mean T log|w|."""

    places: NDArray[np.float64]
    sizes: NDArray[np.float64]
    xs: NDArray[np.float64]

    def grouped(self, tau: int, *finely: float) -> _Weights:
        """Single bins near ``tau`` and other places, wide groups far away: what is smooth needs no more."""
        apart = [tau - 0.1], self.places[:4]  # tau's two halves; a bin of live zeros stands alone
        edges = np.concatenate([*(place - 0.5 + _STEPS for place in (tau, *finely)), *apart])
        starts = np.unique(np.searchsorted(self.places, edges).clip(max=len(self.places) - 1))
        starts[0] = 0
        sizes = np.add.reduceat(self.sizes, starts)
        places = np.add.reduceat(self.sizes * self.places, starts) / sizes
        return _Weights(places, sizes, np.add.reduceat(self.sizes * self.xs, starts) / sizes)


def _solve(
    histogram: MagnitudeHistogram, support: Cut, plain: Cut, *, samples: int, power: float, ties: Ties
) -> tuple[_Law, NDArray[np.float64], float, float]:
    """The law of these settings, q of every bin, D, and the share of the kept weights that ties decide.

    ``plain`` is where the deterministic mask cuts.
    """
    counts, kept = (histogram.counts * cut.at(histogram.bins) for cut in (support, plain))
    keep = round(float(kept.sum()))
    if keep == 0 or round(float(counts.sum())) == keep:  # nothing to solve: none is kept, or all that can be drawn
        law = _Law(samples, math.inf if keep else -math.inf, samples - 1, {}, np.zeros(1))
        return law, np.full(len(counts), float(keep > 0)), 0.0, 0.0
    drawn = samples
    if ties == "random" and samples == 2:
        samples = 1  # the same law: who is drawn by one of two goes in by the toss of a coin
    # The weights of tau's bin that the deterministic mask prunes come before those that it keeps: where magnitude or
    # index decides, their chances differ.
    first, tau = int(np.flatnonzero(counts)[0]), int(np.searchsorted(histogram.bins, plain.bin))
    owner = np.insert(np.arange(first, len(counts)), tau - first, tau)
    sizes = np.concatenate([(counts - kept)[first : tau + 1], kept[tau:]])
    places = histogram.bins[owner].astype(np.float64)
    places[tau - first] -= 0.25
    some = sizes > 0
    owner = owner[some]
    weights = _Weights(places[some], sizes[some], histogram.selection_logs(histogram.magnitudes, power)[owner])

    groups = weights.grouped(plain.bin)
    log_lambda = _solve_draw(groups, keep)
    cut = _count_at_cut(groups, keep, samples, _inclusion(log_lambda, groups.xs))
    solve_ties = _tied_at_random if ties == "random" else _tied_by_magnitude
    law, chances = solve_ties(weights, groups, keep, plain.bin, samples, log_lambda, cut)

    q = np.bincount(owner, weights=weights.sizes * chances, minlength=len(counts)) / np.maximum(counts, 1.0)
    above = float((groups.sizes * _exceeds(max(cut, drawn - samples), drawn, _inclusion(log_lambda, groups.xs))).sum())
    tied = 0.0 if drawn == 1 else min(max(1 - above / keep, 0.0), 1.0)  # one draw takes as many as are kept
    return law, q, float((weights.sizes * chances)[weights.places < plain.bin].sum()), tied


def _count_at_cut(groups: _Weights, keep: int, samples: int, pi: NDArray[np.float64]) -> int:
    """The smallest count that fewer than ``keep`` weights are expected to exceed."""
    # A hair below keep: at M = 1, sum(pi) = keep up to rounding, and which side it falls on must not matter.
    limit = keep * (1 - 1e-6)
    return bisect.bisect_left(
        range(samples), True, key=lambda count: float((groups.sizes * _exceeds(count, samples, pi)).sum()) <= limit
    )


def _tied_at_random(
    weights: _Weights, groups: _Weights, keep: int, _tau: int, samples: int, log_lambda: float, cut: int
) -> tuple[_Law, NDArray[np.float64]]:
    """The law with one chance phi for all that are tied at the cut, and q of ``weights``."""
    pi = _inclusion(log_lambda, groups.xs)
    above = np.interp(weights.places, groups.places, _exceeds(cut, samples, pi))
    equal = np.interp(weights.places, groups.places, _equals(cut, samples, pi))
    phi = (keep - float((weights.sizes * above).sum())) / float((weights.sizes * equal).sum())
    phi = min(max(phi, 0.0), 1.0)
    return _Law(samples, log_lambda, cut, {cut: np.array([phi])}, np.zeros(1)), above + phi * equal


def _solve_draw(groups: _Weights, keep: int) -> float:
    """The log of lambda at which one draw takes ``keep`` weights."""
    low = -groups.xs.max() + math.log(keep / groups.sizes.sum()) - 1  # sum(pi) <= drawable * lambda * max(p) < keep
    high = -groups.xs.min() + 6  # every pi is 1
    return float(
        scipy.optimize.brentq(
            lambda theta: float((groups.sizes * _inclusion(theta, groups.xs)).sum()) - keep,
            low,
            high,
            xtol=1e-12,
            maxiter=500,
        )
    )


def _tied_by_magnitude(
    weights: _Weights, groups: _Weights, keep: int, tau: int, samples: int, log_lambda: float, cut: int
) -> tuple[_Law, NDArray[np.float64]]:
    """The law where the larger of the tied are kept, the lowest index among equals, and q of ``weights``."""
    pi = _inclusion(log_lambda, groups.xs)
    tied = np.cumsum((groups.sizes * _equals(cut, samples, pi))[::-1])
    missing = keep - float((groups.sizes * _exceeds(cut, samples, pi)).sum())
    last_tied = groups.places[::-1][min(int(np.searchsorted(tied, missing)), len(tied) - 1)]
    groups = weights.grouped(tau, round(last_tied))
    chances = _chances_when_tied(groups, keep, cut, samples, _inclusion(log_lambda, groups.xs))
    law = _Law(samples, log_lambda, max(chances), chances, groups.places)
    q = np.interp(weights.places, groups.places, law.kept(groups.xs, groups.places))
    low = int(np.searchsorted(groups.places, tau - 0.25))
    if groups.places[low] < tau:  # the two halves of tau's bin, as one for those who only know the magnitude
        shares = groups.sizes[low : low + 2] / groups.sizes[low : low + 2].sum()
        merged = {count: np.delete(chance, low) for count, chance in chances.items()}
        for count, chance in chances.items():
            merged[count][low] = shares @ chance[low : low + 2]
        law = dataclasses.replace(law, tied=merged, centres=np.delete(groups.places, low))
    return law, q


def _chances_when_tied(
    groups: _Weights, keep: int, cut: int, samples: int, pi: NDArray[np.float64]
) -> dict[int, NDArray[np.float64]]:
    """For each count near the cut, the chance of each group's weights to be kept when drawn so often.

    A weight drawn c times is kept if fewer than ``keep`` go before it: all that are drawn more often, and the larger
    ones drawn as often. Their number is nearly normal; its variance is the one given that all draws together took
    samples * keep weights. (Were the last tied magnitude fixed, as sum(q) = keep gives it, ir would come out up to 4 %
    wrong at keep = 600: ir is not linear in it.)
    """
    spread = samples * pi * (1 - pi)
    chances = {}
    for count in range(max(cut - 1, 0), min(cut + 1, samples) + 1):
        more = _exceeds(count, samples, pi)
        either = more + _equals(count, samples, pi)
        # What a group adds to the number that goes before, to its variance, and to its covariance with all counts:
        # when its weights are smaller, and when they are larger.
        smaller = np.stack([more, more * (1 - more), spread * _equals(count, samples - 1, pi)]) * groups.sizes
        larger = np.stack([either, either * (1 - either), spread * _equals(count - 1, samples - 1, pi)]) * groups.sizes
        # At the lower edge of each group: it and all above it are larger.
        number, variance, covariance = smaller.sum(axis=1)[:, None] + _sums_from_top(larger - smaller)
        variance = variance - covariance**2 / (groups.sizes * spread).sum()
        deviation = np.sqrt(np.maximum((variance[1:] + variance[:-1]) / 2, 1e-18))
        chances[count] = _mean_below(keep, number[1:], number[:-1], deviation)
    return chances


def _sums_from_top(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row: the sum from every place to the end, and 0 behind the last."""
    sums = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([sums, np.zeros((len(values), 1))], axis=1)


def _mean_below(
    limit: int, low: NDArray[np.float64], high: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P(normal < limit), averaged over means from ``low`` to ``high``."""

    def integral(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return z * scipy.special.ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    from_, to = (limit - high) / deviation, (limit - low) / deviation
    width = to - from_
    flat = width < 1e-4
    averaged = (integral(to) - integral(from_)) / np.where(flat, 1.0, width)
    return np.where(flat, scipy.special.ndtr((from_ + to) / 2), averaged).clip(0.0, 1.0)


def _inclusion(log_lambda: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chance pi to be taken by one draw; ``x`` = T log|w|. From exp(6) on it is 1 in float64."""
    return -np.expm1(-np.exp(np.minimum(log_lambda + x, 6.0)))


def _exceeds(count: int, samples: int, pi: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(c > count) for c ~ Binomial(samples, pi)."""
    if count < 0:
        return np.ones_like(pi)
    if count >= samples:
        return np.zeros_like(pi)
    return np.asarray(scipy.special.betainc(count + 1, samples - count, pi), dtype=np.float64)


def _equals(count: int, samples: int, pi: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(c = count) for c ~ Binomial(samples, pi)."""
    return _exceeds(count - 1, samples, pi) - _exceeds(count, samples, pi)


def _undecided(histogram: MagnitudeHistogram, support: Cut, q: NDArray[np.float64]) -> tuple[int, int] | None:
    """The first and the last bin in which q is neither 0 nor 1."""
    chance = histogram.bins[(q > NEGLIGIBLE) & (q < 1 - NEGLIGIBLE) & (support.at(histogram.bins) > 0)]
    return (int(chance[0]), int(chance[-1])) if len(chance) else None


def _edges(first: int, last: int) -> tuple[float, float]:
    low, high = bin_magnitudes(np.array([first, last + 1]))
    return float(low), float(high)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.inf if part > 0 else 0.0
