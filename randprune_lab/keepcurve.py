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
import functools
import math
from typing import Literal, Self, overload

import numpy as np
import scipy  # its submodules load on first use, which keeps ``import randprune_lab`` cheap
import torch
from numpy.typing import NDArray
from torch import Tensor

from randprune_lab.checks import check_option, check_power, check_reach, check_samples, keep_count

Ties = Literal["random", "magnitude"]
TIES: tuple[Ties, ...] = ("random", "magnitude")

# A bin is all float32 numbers that share exponent and the upper 12 bits of the mantissa: at most 0.025 % wide at any
# scale, and every float16 and bfloat16 number has one of its own. Bin 0 holds the weights that no longer exist.
_DROPPED_BITS = 23 - 12
_MAGNITUDE = 0x7FFFFFFF
_INFINITY_BIN = (0x7F800000 >> _DROPPED_BITS) + 1
_CHUNK = 2**22  # weights binned at a time: the copies stay small whatever the tensor's size

# Distances from the threshold, in bins, at which the smooth part of the curve is computed: every bin nearby, then
# ever wider groups, each at most 3 % of its distance.
_STEPS = np.unique(np.geomspace(1, _INFINITY_BIN, 500).astype(np.int64))

NEGLIGIBLE = 1e-10  # a keep-probability this close to 0 or 1 is not left to chance


def magnitude_bins(weight: Tensor, alive: Tensor | None = None) -> Tensor:
    """The histogram bin of each weight: a flat int32 tensor that rises with abs(weight); 0 where no weight exists.

    ``alive`` is a bool tensor of the weight's shape, True = exists; None means ``weight != 0``.

    Raises:
        ValueError: the weights are not floating point, not all finite, or ``alive`` does not fit them.
    """
    if not weight.is_floating_point():
        raise ValueError(f"weight has dtype {weight.dtype}: must be floating point. Convert it with weight.float().")
    if alive is not None and (alive.shape != weight.shape or alive.dtype != torch.bool):
        raise ValueError(
            f"alive is {alive.dtype} of shape {tuple(alive.shape)}, the weight has shape {tuple(weight.shape)}: "
            "alive must be a bool tensor of the same shape, True = the weight still exists."
        )
    flat = weight.detach().reshape(-1)
    exists = flat != 0 if alive is None else alive.reshape(-1)
    single = flat
    if flat.dtype == torch.float64:  # what float32 cannot hold goes to the last finite bin; NaN passes through
        limit = torch.finfo(torch.float32).max
        single = torch.where(flat.isinf(), flat, flat.clamp(-limit, limit))
    bins = single.float().contiguous().view(torch.int32) & _MAGNITUDE
    bins >>= _DROPPED_BITS
    bins += 1
    if bins.numel() and bins.max() >= _INFINITY_BIN:
        broken = int((bins >= _INFINITY_BIN).sum())
        raise ValueError(
            f"{broken} of {bins.numel()} weights are NaN or infinite: their magnitudes cannot be ranked. "
            "Repair the checkpoint, or lower the learning rate of the run that wrote it."
        )
    return bins.masked_fill_(~exists, 0)


def bin_magnitudes(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The smallest magnitude of each bin (bin 1 starts at 0)."""
    patterns = ((bins - 1) << _DROPPED_BITS).astype(np.int32)
    return patterns.view(np.float32).astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class MagnitudeHistogram:
    """How many weights have which magnitude, in bins at most 0.025 % wide at every scale.

    Histograms add up: ``MagnitudeHistogram.of(a) + MagnitudeHistogram.of(b)`` is the one of both tensors together, and
    a tensor may be read in pieces.

    Attributes:
        bins: the occupied bins, rising (int64).
        counts: the weights that exist in each (int64).
        size: all weights, those that no longer exist included.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    size: int

    @classmethod
    def of(cls, weight: Tensor, *, alive: Tensor | None = None) -> Self:
        """Read ``weight`` once. ``alive``: bool, same shape, True = the weight exists; None means ``weight != 0``.

        Raises:
            ValueError: the weights are not floating point, not all finite, or ``alive`` does not fit them.
        """
        if alive is not None and alive.shape != weight.shape:
            magnitude_bins(weight, alive)  # raises: flattened, the two might agree
        flat = weight.detach().reshape(-1)
        exists = None if alive is None else alive.reshape(-1)
        totals = torch.zeros(_INFINITY_BIN, dtype=torch.int64, device=weight.device)
        for start in range(0, len(flat), _CHUNK):
            piece = slice(start, start + _CHUNK)
            bins = magnitude_bins(flat[piece], None if exists is None else exists[piece])
            totals += torch.bincount(bins, minlength=_INFINITY_BIN)
        return cls._from_totals(totals)

    @classmethod
    def from_bins(cls, bins: Tensor) -> Self:
        """The histogram of the result of ``magnitude_bins``."""
        return cls._from_totals(torch.bincount(bins))

    @classmethod
    def _from_totals(cls, totals: Tensor) -> Self:
        counts = totals.cpu().numpy()
        size = int(counts.sum())
        occupied = np.flatnonzero(counts)
        occupied = occupied[occupied > 0]
        return cls(occupied, counts[occupied], size)

    def __add__(self, other: MagnitudeHistogram) -> MagnitudeHistogram:
        bins, place = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return MagnitudeHistogram(bins, counts, self.size + other.size)

    @property
    def alive(self) -> int:
        """The number of weights that exist."""
        return int(self.counts.sum())

    @functools.cached_property
    def magnitudes(self) -> NDArray[np.float64]:
        """The smallest magnitude of each occupied bin."""
        return bin_magnitudes(self.bins)

    def selection_logs(self, magnitudes: NDArray[np.float64], power: float) -> NDArray[np.float64]:
        """T * log|w|. A live zero comes so far below every other weight that it is drawn after all of them."""
        positive = self.magnitudes[self.magnitudes > 0]
        if power == 0 or not len(positive):
            return np.zeros(len(magnitudes))
        least = power * math.log(positive[0])
        return np.where(magnitudes > 0, power * np.log(np.where(magnitudes > 0, magnitudes, 1.0)), least - 100)

    def largest(self, count: int) -> _Cut:
        """Where the ``count`` largest existing weights end."""
        if count == 0:
            return _NOTHING
        from_top = np.cumsum(self.counts[::-1])
        place = int(np.searchsorted(from_top, count))
        here = int(self.counts[::-1][place])
        return _Cut(int(self.bins[::-1][place]), (count - int(from_top[place]) + here) / here)

    def count_above(self, bin_: int) -> int:
        """How many weights lie in higher bins."""
        return int(self.counts[self.bins > bin_].sum())

    def share_within(self, low: float, high: float) -> float:
        """The share of the existing weights with ``low <= abs(w) < high`` (to one bin, 0.025 %)."""
        inside = (self.magnitudes >= low) & (self.magnitudes < high)
        return float(self.counts[inside].sum() / max(self.alive, 1))


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
    return alive if reach is None else min(alive, round(reach * keep))


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
    undecided_bins: tuple[int, int] | None = dataclasses.field(repr=False)
    probabilities: NDArray[np.float64] = dataclasses.field(repr=False)
    _law: _Law = dataclasses.field(repr=False)
    _support: _Cut = dataclasses.field(repr=False)

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
        law, q = _solve(histogram, support, keep, kept.bin, samples=samples, power=power, ties=ties)
        # D: what is kept of the weights that can be drawn and that the deterministic mask prunes.
        swapped_in = float((histogram.counts * (support.at(histogram.bins) - kept.at(histogram.bins)) * q).sum())
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
        bins = _bins_of(flat)
        above, equal = self._law.counted(self.histogram.selection_logs(flat, self.power))
        chance = (self._law.kept(above, equal, bins) * self._support.at(bins)).reshape(asked.shape)
        return chance if isinstance(magnitude, np.ndarray) else float(chance)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Where the largest weights of some number end: all above ``bin``, the share ``share`` of those in it."""

    bin: int
    share: float

    def at(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(bins == self.bin, self.share, bins > self.bin)

    @property
    def magnitude(self) -> float:
        return float(bin_magnitudes(np.array([self.bin]))[0])


_NOTHING = _Cut(_INFINITY_BIN, 0.0)


@dataclasses.dataclass(frozen=True)
class _Law:
    """The solved closed form: a weight is kept when drawn more than ``cut`` times, and by ``tied`` when just so often.

    ``tied`` is phi, the chance of every tied weight, or the cut from which on the larger of them are kept.
    """

    samples: int
    log_lambda: float
    cut: int
    tied: float | _Cut

    def counted(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """P(c > cut) and P(c = cut) of weights with x = T log|w|."""
        pi = _inclusion(self.log_lambda, x)
        above = _exceeds(self.cut, self.samples, pi)
        return above, _exceeds(self.cut - 1, self.samples, pi) - above

    def kept(
        self, above: NDArray[np.float64], equal: NDArray[np.float64], bins: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Q of weights in ``bins``, given what ``counted`` says of them."""
        return above + equal * (self.tied.at(bins) if isinstance(self.tied, _Cut) else self.tied)


def _solve(
    histogram: MagnitudeHistogram, support: _Cut, keep: int, tau: int, *, samples: int, power: float, ties: Ties
) -> tuple[_Law, NDArray[np.float64]]:
    """The law of these settings, and q of every bin. ``tau`` is the bin in which the deterministic mask cuts."""
    inside = histogram.counts * support.at(histogram.bins)
    drawable = round(float(inside.sum()))
    if keep == 0 or drawable == keep:  # nothing to solve: none is kept, or all that can be drawn
        law = _Law(samples, math.inf if keep else -math.inf, samples - 1, 0.0)
        return law, np.full(len(inside), float(keep > 0))
    first = int(np.flatnonzero(inside)[0])
    bins, counts = histogram.bins[first:], inside[first:]
    x = histogram.selection_logs(histogram.magnitudes, power)[first:]

    # What is smooth in the magnitude is computed for groups of bins: single ones near tau, wide ones far away.
    edges = np.concatenate([tau - _STEPS[::-1], [tau], tau + _STEPS])
    starts = np.unique(np.searchsorted(bins, edges).clip(max=len(bins) - 1))
    starts[0] = 0
    sizes = np.add.reduceat(counts, starts)
    centres = np.add.reduceat(counts * bins, starts) / sizes
    xs = np.add.reduceat(counts * x, starts) / sizes

    log_lambda = scipy.optimize.brentq(
        lambda theta: float((sizes * _inclusion(theta, xs)).sum()) - keep,
        -xs.max() + math.log(keep / drawable) - 1,  # sum(pi) <= drawable * lambda * max(p) < keep
        -xs.min() + 6,  # every pi is 1
        xtol=1e-12,
        maxiter=500,
    )
    pi = _inclusion(log_lambda, xs)
    # A hair below keep: at M = 1, sum(pi) = keep up to rounding, and which side it falls on must not matter.
    limit = keep * (1 - 1e-6)
    cut = bisect.bisect_left(
        range(samples), True, key=lambda j: float((sizes * _exceeds(j, samples, pi)).sum()) <= limit
    )
    law = _Law(samples, log_lambda, cut, 0.0)
    above, equal = (np.interp(bins, centres, part) for part in law.counted(xs))

    missing = keep - float((counts * above).sum())
    if ties == "random":
        law = dataclasses.replace(law, tied=min(max(missing / float((counts * equal).sum()), 0.0), 1.0))
    else:
        from_top = np.cumsum((counts * equal)[::-1])
        place = len(bins) - 1 - min(int(np.searchsorted(from_top, missing)), len(bins) - 1)
        here = counts[place] * equal[place]
        over = from_top[len(bins) - 1 - place] - missing
        law = dataclasses.replace(law, tied=_Cut(int(bins[place]), min(max(1 - _ratio(over, here), 0.0), 1.0)))
    q = np.zeros(len(inside))
    q[first:] = law.kept(above, equal, bins)
    return law, q


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


def _undecided(histogram: MagnitudeHistogram, support: _Cut, q: NDArray[np.float64]) -> tuple[int, int] | None:
    """The first and the last bin in which q is neither 0 nor 1."""
    chance = histogram.bins[(q > NEGLIGIBLE) & (q < 1 - NEGLIGIBLE) & (support.at(histogram.bins) > 0)]
    return (int(chance[0]), int(chance[-1])) if len(chance) else None


def _edges(first: int, last: int) -> tuple[float, float]:
    low, high = bin_magnitudes(np.array([first, last + 1]))
    return float(low), float(high)


def _bins_of(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """``magnitude_bins`` of magnitudes in numpy; all of them exist."""
    single = magnitudes.clip(max=float(np.finfo(np.float32).max)).astype(np.float32)
    return (single.view(np.int32) >> _DROPPED_BITS).astype(np.int64) + 1


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.inf if part > 0 else 0.0
