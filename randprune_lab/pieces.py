"""Masks of tensors that are too long, or too many, to lie in memory: read piece by piece, exact all the same.

Several tensors form one vector here, in their order, as in global scope (or one tensor does). What has to be known of
the whole are magnitude histograms; the weights themselves pass by once to be counted and once to be masked.

The plain mask is that of ``sampling.magnitude_mask`` of the whole vector, bit for bit. The random one follows the very
law of ``sampling.mask_sampler`` (fast, ties at random): the largest Pareto keys logit(q) - logit(u), q by the weight's
bin (Rosen 1997), exactly ``keep`` of them. But it is another draw from the same seed. A sampler that sees the whole
vector draws one u for each weight. Here all weights of a bin have one q and may be exchanged, so it suffices to draw
how many of each bin have a key among the largest, then how those are spread over tensors and pieces, then which.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from randprune_lab.histogram import INFINITY_BIN, MagnitudeHistogram, bin_magnitudes, magnitude_bins
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.masks import EVERYTHING
from randprune_lab.sampling import candidate_generator, seed_of

PLACE_BITS = 22
PIECE = 2**PLACE_BITS  # weights masked at a time
MOST_ALIKE = 10**9  # weights of one bin that numpy's hypergeometric distribution takes
HALVINGS = 40  # of the range of keys: then what is left in it cannot be told apart
Counts = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One tensor of the vector. ``read`` gives its weights, floating point of ``dtype``, ``size`` of them."""

    name: str
    size: int
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Largest:
    """The largest magnitudes of the vector, lowest index among equals.

    Attributes:
        bin: all weights of higher bins belong to them, none of lower ones.
        magnitude: of the smallest one (inf: there is none). Within the bin all larger weights belong to them.
        equals: how many weights of exactly that magnitude do, the first ones of each part.
        within: how many weights of the bin do, of each part.
    """

    bin: int
    magnitude: float
    equals: Mapping[str, int] = dataclasses.field(default_factory=dict)
    within: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Takes the pieces of one part in order, magnitude bins and weights, and says which belong to the largest."""
        left = self.equals.get(name, 0)

        def belong(bins: Tensor, weights: Tensor) -> Tensor:
            nonlocal left
            mask = bins > self.bin
            members = (bins == self.bin).nonzero().squeeze(1)
            magnitudes = weights[members].abs().double()
            mask[members[magnitudes > self.magnitude]] = True
            first = members[magnitudes == self.magnitude][:left]
            mask[first] = True
            left -= len(first)
            return mask

        return belong


def histograms(parts: Sequence[Part], tell: Callable[[Part], object] = lambda _: None) -> dict[str, MagnitudeHistogram]:
    """The histogram of each part; a weight of 0 does not exist. ``tell`` hears which one is done.

    Raises:
        ValueError: weights are not finite; the part is named.
    """
    found = {}
    for part in parts:
        try:
            found[part.name] = MagnitudeHistogram.of(part.read())
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}") from error
        tell(part)
    return found


def merged(of_parts: Mapping[str, MagnitudeHistogram]) -> MagnitudeHistogram:
    """The histogram of the whole vector."""
    return functools.reduce(operator.add, of_parts.values())


def largest(
    parts: Sequence[Part], of_parts: Mapping[str, MagnitudeHistogram], counts: Sequence[int]
) -> tuple[Largest, ...]:
    """The ``count`` largest of the vector for each of ``counts``; where fewer are not 0, the first zeros fill up.

    Reads once more the float32 and float64 parts with weights in a bin that is cut: in 16 bits a bin is one number.
    """
    whole = merged(of_parts)
    bins = [whole.largest(count).bin if count <= whole.alive else 0 for count in counts]
    found: dict[int, dict[str, tuple[NDArray[np.float64], Counts]]] = {bin_: {} for bin_ in bins}
    for part in parts:
        own = of_parts[part.name]
        cut = [bin_ for bin_ in found if bin_ in own.bins]
        read = functools.cache(part.read)  # at most once
        for bin_ in cut:
            if part.dtype in (torch.float16, torch.bfloat16):
                there = bin_magnitudes(np.array([bin_])), own.counts[own.bins == bin_]
            else:
                there = _magnitudes_in(read(), bin_)
            found[bin_][part.name] = there
    zeros = {part.name: (np.zeros(1), np.array([part.size - of_parts[part.name].alive])) for part in parts}
    if 0 in found:
        found[0] = zeros
    above = {bin_: whole.count_above(bin_) for bin_ in found}
    return tuple(_cut(bin_, found[bin_], count - above[bin_]) for bin_, count in zip(bins, counts, strict=True))


def _magnitudes_in(weight: Tensor, bin_: int) -> tuple[NDArray[np.float64], Counts]:
    """The different magnitudes of a tensor's weights in a bin, rising, and how often each is there."""
    flat = weight.reshape(-1)
    members = [piece[magnitude_bins(piece) == bin_].abs().double().cpu().numpy() for piece in torch.split(flat, PIECE)]
    return np.unique(np.concatenate(members), return_counts=True)


def _cut(bin_: int, there: Mapping[str, tuple[NDArray[np.float64], Counts]], missing: int) -> Largest:
    """Where the ``missing`` largest of a bin end."""
    if bin_ == INFINITY_BIN:
        return Largest(bin_, math.inf)
    values, place = np.unique(np.concatenate([values for values, _ in there.values()]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts for _, counts in there.values()])).astype(np.int64)
    from_top = np.cumsum(counts[::-1])
    last = int(np.searchsorted(from_top, missing))
    tau = float(values[::-1][last])
    left = missing - int(from_top[last] - counts[::-1][last])
    equals, within = {}, {}
    for name, (own, often) in there.items():
        here = int(often[own == tau].sum())
        equals[name] = min(left, here)
        within[name] = int(often[own > tau].sum()) + equals[name]
        left -= equals[name]
    return Largest(bin_, tau, equals, within)


@dataclasses.dataclass(frozen=True, eq=False)
class VectorMask:
    """One mask of the whole vector.

    Attributes:
        plain: what the deterministic mask keeps.
        certain: weights of higher bins are kept for sure; those between it and ``bins`` never.
        bins: where chance decides, rising; empty for the plain mask.
        taken: how many weights of each of these bins are kept, of each part.
        open_: how many could be, of each part.
        support: what can be drawn at all; None: every weight.
        seeds: seed, stage and candidate.
    """

    plain: Largest
    certain: int = 0
    bins: Counts = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    taken: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    open_: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    support: Largest | None = None
    seeds: tuple[int, int, int] = (0, 1, 0)

    def apply(self, name: str, weight: Tensor, device: torch.device | str = "cpu") -> tuple[int, int]:
        """Set to 0, in place, what the mask prunes of a part; ``device`` is where the pieces are worked on.

        Returns:
            How many weights are kept, and how many of these the deterministic mask would prune.
        """
        belongs, keeps = self.plain.of(name), self._draw(name, device) if len(self.bins) else None
        kept = moved = 0
        for piece in torch.split(weight.view(-1), PIECE):
            here = piece.to(device)
            bins = magnitude_bins(here)
            plain = belongs(bins, here)
            mask = plain if keeps is None else keeps(bins, here)
            piece.masked_fill_(~mask.to(piece.device), 0)
            kept += int(mask.sum())
            moved += int((mask & ~plain).sum())
        return kept, moved

    def _draw(self, name: str, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
        """Takes the pieces of one part in order, and says which weights the random mask keeps."""
        numbers = np.random.default_rng(seed_of(*self.seeds, name))
        generator = candidate_generator(*self.seeds, name, device)
        table = torch.full((int(self.bins[-1]) + 2,), -1)
        table[torch.from_numpy(self.bins)] = torch.arange(len(self.bins))
        table = table.to(device)
        drawable = None if self.support is None else self.support.of(name)
        taken, open_ = self.taken[name].copy(), self.open_[name].copy()

        def keeps(bins: Tensor, weights: Tensor) -> Tensor:
            mask = bins > self.certain
            groups = table[bins.clamp(max=len(table) - 1).long()]
            if drawable is not None:
                groups.masked_fill_(~drawable(bins, weights), -1)
            places = (groups >= 0).nonzero().squeeze(1)
            groups = groups[places]
            here = torch.bincount(groups, minlength=len(self.bins)).cpu().numpy()
            share = numbers.hypergeometric(here, open_ - here, taken)
            mask[places[_some_of_each(groups, share, generator)]] = True
            np.subtract(open_, here, out=open_)
            np.subtract(taken, share, out=taken)
            return mask

        return keeps


def _some_of_each(groups: Tensor, numbers: Counts, generator: torch.Generator) -> Tensor:
    """Places of so many members of each group, all choices as likely. ``groups``: int64, the group at each place.

    By one sort of whole numbers: group, random bits, place. (Two members share their random bits once in 2**20 times or
    less; then the first goes before.)
    """
    bits = 63 - PLACE_BITS - len(numbers).bit_length()
    keys = torch.randint(2**bits, groups.shape, generator=generator, device=groups.device)
    keys.add_(groups << bits).bitwise_left_shift_(PLACE_BITS).add_(torch.arange(len(keys), device=keys.device))
    keys = torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values  # 3x as fast
    sizes = np.bincount((keys >> (bits + PLACE_BITS)).cpu().numpy(), minlength=len(numbers))
    starts = sizes.cumsum() - sizes
    steps = np.zeros(len(keys) + 1, dtype=np.int8)  # from here on members are chosen (1), or no more (-1)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + numbers, -1)
    chosen = torch.from_numpy(steps[:-1].cumsum(dtype=np.int8)).bool().to(keys.device)
    return keys[chosen].bitwise_and_(2**PLACE_BITS - 1)


def vector_mask(
    parts: Sequence[Part],
    of_parts: Mapping[str, MagnitudeHistogram],
    curve: KeepCurve | None,
    keep: int,
    seeds: tuple[int, int, int] = (0, 1, 0),
    name: str = EVERYTHING,
) -> VectorMask:
    """The plain mask that keeps ``keep`` of the vector, or a random one of the law ``curve`` (ties at random).

    Args:
        parts: the tensors, in order.
        of_parts: the histogram of each, by name.
        curve: built from ``merged(of_parts)``, its keep is ``keep``; None: the plain mask.
        keep: weights that are kept, of all parts together.
        seeds: seed, stage, candidate; each part draws from its own stream.
        name: of the vector, which has a stream of its own, too. A tensor that is one by itself: the tensor's.

    Raises:
        ValueError: more than 10**9 weights share a bin in which chance decides.
    """
    if curve is None or keep in (0, curve.drawable):  # nothing is left to chance
        return VectorMask(largest(parts, of_parts, [keep])[0])
    reached = curve.drawable < curve.histogram.alive
    plain, *support = largest(parts, of_parts, [keep, curve.drawable] if reached else [keep])
    low, high = curve.undecided_bins or (plain.bin, plain.bin)
    low, high = min(low, plain.bin), max(high, plain.bin)  # then they always hold as many weights as are missing
    inside = slice(*np.searchsorted(curve.histogram.bins, [low, high + 1]))
    bins = curve.histogram.bins[inside]
    open_ = {part.name: _counts_in(of_parts[part.name], bins, part.name, *support) for part in parts}
    whole = np.sum(list(open_.values()), axis=0)
    if whole.max() >= MOST_ALIKE:
        raise ValueError(
            f"{whole.max():,} weights have the same magnitude: random masks by pieces go up to 10**9 of them. "
            "Use scope layer, or a plain mask."
        )
    numbers = np.random.default_rng(seed_of(*seeds, "vector", name))
    chance = curve.probabilities[inside].clip(1e-15, 1 - 1e-15)
    rest = _among_largest_keys(np.log(chance / (1 - chance)), whole, keep - curve.histogram.count_above(high), numbers)
    taken = {}
    for name, own in open_.items():
        taken[name] = numbers.hypergeometric(own, whole - own, rest)
        whole, rest = whole - own, rest - taken[name]
    return VectorMask(plain, high, bins, taken, open_, support[0] if support else None, seeds)


def _counts_in(own: MagnitudeHistogram, bins: Counts, name: str, support: Largest | None = None) -> Counts:
    """How many weights of a part lie in each of ``bins`` and can be drawn."""
    totals = np.zeros(INFINITY_BIN, dtype=np.int64)
    totals[own.bins] = own.counts
    if support is not None:
        totals[: support.bin] = 0
        totals[support.bin] = support.within.get(name, 0)
    return totals[bins]


def _among_largest_keys(odds: NDArray[np.float64], counts: Counts, number: int, numbers: np.random.Generator) -> Counts:
    """How many members of each group have one of the ``number`` largest keys odds - logit(u), u uniform.

    Found by halving the range of keys: those of its upper half are binomially many, group by group.
    """
    taken, left = np.zeros_like(counts), counts  # above the range, within it
    low, high = float(odds.min()) - 60, float(odds.max()) + 60  # logit(u) of 10**20 draws stays within 60 of 0
    for halving in itertools.count(1):
        missing = number - int(taken.sum())
        if missing in (0, int(left.sum())):
            return taken + left if missing else taken
        if halving > HALVINGS:
            return taken + numbers.multivariate_hypergeometric(left, missing)
        middle = (low + high) / 2
        below, between, beyond = (scipy.special.expit(odds - key) for key in (low, middle, high))
        share = np.divide(between - beyond, below - beyond, out=np.zeros_like(odds), where=below > beyond)
        upper = numbers.binomial(left, share.clip(0, 1))
        if int(upper.sum()) >= missing:
            low, left = middle, upper
        else:
            high, taken, left = middle, taken + upper, left - upper
    raise AssertionError
