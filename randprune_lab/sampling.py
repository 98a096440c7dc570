"""Weights in, masks out: the deterministic mask, the randomized one by two samplers, and how far two masks differ.

Pure functions of tensors. A mask is a bool tensor of the weight's shape, True = kept. Randomness is always a
``torch.Generator`` that the caller passes: the global random state is neither read nor moved. The paper is arXiv
2310.13183.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from randprune_lab.checks import check_option, check_power, check_reach, check_samples, check_whole, keep_count
from randprune_lab.histogram import MagnitudeHistogram, check_weight, magnitude_bins
from randprune_lab.keepcurve import TIES, KeepCurve, Ties, support_size

Sampler = Literal["fast", "exact"]
SAMPLERS: tuple[Sampler, ...] = ("fast", "exact")

SMALLEST_FAST = 1024  # below this many weights the closed form is too rough, and drawing is quick anyway
MOST_DRAWN = 100_000  # draws: beyond, seconds for each such mask, and the closed form's differs by a weight or so
_Lookup = Callable[[NDArray[np.float64]], Tensor]
DRAWN_AT_ONCE = 2**20  # numbers drawn in one go by the exact sampler


def magnitude_mask(weight: Tensor, sparsity: float, *, alive: Tensor | None = None) -> Tensor:
    """The deterministic mask: exactly the ``n - round(sparsity * n)`` largest magnitudes, lowest index among equals.

    Args:
        weight: floating point, any shape and device, n elements, all finite.
        sparsity: the share of the n weights that is removed, in [0, 1).
        alive: bool, same shape, True = the weight still exists (a live weight may be 0). None means ``weight != 0``;
            zeros then fill up, lowest index first, if fewer are not zero than are to be kept.

    Returns:
        A bool tensor of the weight's shape, on its device. The same on every device.

    Raises:
        ValueError: sparsity out of range, weights not finite, or fewer alive than to keep (``alive`` given).
    """
    check_weight(weight, alive)
    keep = keep_count(weight.numel(), sparsity)
    bins = magnitude_bins(weight, torch.ones_like(weight, dtype=torch.bool) if alive is None else alive)
    histogram = MagnitudeHistogram.from_bins(bins)
    support_size(keep, None, histogram.alive)
    return _largest(weight.detach().reshape(-1), bins, histogram, keep).view(weight.shape)


def random_mask(
    weight: Tensor,
    sparsity: float,
    *,
    samples: int,
    power: float = 5.0,
    reach: float | None = None,
    method: Sampler = "fast",
    ties: Ties = "random",
    alive: Tensor | None = None,
    generator: torch.Generator,
) -> Tensor:
    """One randomized ensemble mask: ``samples`` masks drawn at random and added up, the highest counts kept.

    Each draw takes ``keep`` weights without replacement, selection weights |w|**power (arXiv 2310.13183, section 3.2).
    For several masks of one tensor, ``mask_sampler`` does the common work once.

    Args:
        weight: floating point, any shape and device, n elements, all finite.
        sparsity: the share of the n weights that is removed, in [0, 1); exactly ``n - round(sparsity * n)`` are kept.
        samples: M >= 1, the masks drawn and added up. More samples, less randomness.
        power: T >= 0. More power, less randomness.
        reach: r >= 1, only the round(r * keep) largest weights can be drawn; None: every one that is alive.
        method: "exact" draws and counts, as the paper does; "fast" follows the same law by its closed form, at the
            cost of a top-k (below 1,024 weights it draws, too, up to 100,000 times).
        ties: who goes first among equal counts at the cut: "random" ones, or those of larger "magnitude".
        alive: bool, same shape, True = the weight still exists; None means ``weight != 0``.
        generator: on the weight's device; the mask is a function of its state.

    Returns:
        A bool tensor of the weight's shape, on its device.

    Raises:
        ValueError: a setting is out of range, weights are not finite, fewer are alive than to keep, or the generator
            lives on another device.
    """
    draw = mask_sampler(
        weight, sparsity, samples=samples, power=power, reach=reach, method=method, ties=ties, alive=alive
    )
    return draw(generator)


def mask_sampler(
    weight: Tensor,
    sparsity: float,
    *,
    samples: int,
    power: float = 5.0,
    reach: float | None = None,
    method: Sampler = "fast",
    ties: Ties = "random",
    alive: Tensor | None = None,
) -> Callable[[torch.Generator], Tensor]:
    """A function that draws one ``random_mask`` a call: the candidates of a stage share everything but the draw.

    Arguments and errors are those of ``random_mask``; ``sampler(generator)`` equals
    ``random_mask(..., generator=generator)`` bit for bit.
    """
    samples, power, reach = check_samples(samples), check_power(power), check_reach(reach)
    check_option("method", method, SAMPLERS)
    check_option("ties", ties, TIES)
    check_weight(weight, alive)
    device = sampling_device(weight.device)
    flat = weight.detach().reshape(-1).to(device)
    bins = magnitude_bins(flat.view(weight.shape), None if alive is None else alive.to(device))
    histogram = MagnitudeHistogram.from_bins(bins)
    keep = keep_count(histogram.size, sparsity)
    drawable = support_size(keep, reach, histogram.alive)
    support = bins > 0 if drawable == histogram.alive else _largest(flat, bins, histogram, drawable)

    draw: Callable[[torch.Generator], Tensor]
    if keep == 0 or drawable == keep:  # nothing to choose
        fixed = support if keep else torch.zeros_like(support)
        draw = lambda _: fixed.clone()
    elif method == "exact" or (histogram.size < SMALLEST_FAST and samples <= MOST_DRAWN):
        draw = _exact_draws(flat, support, keep, samples, power, ties)
    else:
        curve = KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach, ties=ties)
        draw = _fast_draws(flat, bins, support, curve)

    def one_mask(generator: torch.Generator) -> Tensor:
        check_generator(generator, device)
        return draw(generator).view(weight.shape).to(weight.device)

    return one_mask


def introduced_randomness(mask: Tensor, reference: Tensor) -> float:
    """How far ``mask`` departs from ``reference``: (C_pruned - C_s) / C_s, with C_s the weights that both prune.

    Both are bool tensors of one shape, True = kept, keeping equally many; the order of the two does not matter. 0.0
    means the same mask; ``inf`` that they share no pruned weight. Source: arXiv 2310.13183, Eq. 1.

    Raises:
        ValueError: the shapes differ, a mask is not bool, or the masks keep different numbers of weights.
    """
    for name, tensor in (("mask", mask), ("reference", reference)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(
                f"{name} has dtype {kind}: must be bool, a tensor that is True where kept. Pass {name} != 0."
            )
    if mask.shape != reference.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, reference {tuple(reference.shape)}: they must be "
            "masks of one tensor. Build both from the same weight."
        )
    pruned, other = int((~reference).sum()), int((~mask).sum())
    if pruned != other:
        raise ValueError(
            f"mask prunes {other} weights, reference {pruned}: ir compares masks of one sparsity only. "
            "Build both with the same sparsity."
        )
    shared = int((~mask & ~reference).sum())
    return 0.0 if pruned == shared else float("inf") if shared == 0 else (pruned - shared) / shared


def candidate_generator(
    seed: int, stage: int, candidate: int, parameter: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator that draws candidate ``candidate`` of tensor ``parameter`` at ``stage`` of a run with ``seed``.

    The same four always give the same stream, in the engine and in the explorer alike; any other four another one.
    Devices without float64 (MPS) draw on the CPU.
    """
    names = {"seed": seed, "stage": stage, "candidate": candidate}
    state = seed_of(*(check_whole(name, value) for name, value in names.items()), str(parameter))
    return torch.Generator(sampling_device(torch.device(device))).manual_seed(state)


def seed_of(*names: int | str) -> int:
    """A seed that is a function of its arguments alone: the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch wants 63 bits


def check_generator(generator: torch.Generator, device: torch.device) -> None:
    """Random numbers come from a generator that lives where they are needed."""
    if not isinstance(generator, torch.Generator) or generator.device.type != device.type:
        raise ValueError(
            f"generator = {generator} on {getattr(generator, 'device', None)}: must be a torch.Generator on "
            f"{device}. Pass candidate_generator(seed, stage, candidate, parameter, weight.device)."
        )


def sampling_device(device: torch.device) -> torch.device:
    """Where random numbers for ``device`` are drawn: in main memory where it has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def _largest(flat: Tensor, bins: Tensor, histogram: MagnitudeHistogram, count: int) -> Tensor:
    """Mask of the ``count`` largest existing magnitudes, lowest index among equals: only one bin has to be sorted."""
    if count == 0:
        return torch.zeros_like(bins, dtype=torch.bool)
    cut = histogram.largest(count).bin
    mask = bins > cut
    members = (bins == cut).nonzero().squeeze(1)
    missing = count - histogram.count_above(cut)
    if missing < len(members):
        order = flat[members].abs().sort(descending=True, stable=True).indices
        members = members[order[:missing]]
    mask[members] = True
    return mask


def _exact_draws(
    flat: Tensor, support: Tensor, keep: int, samples: int, power: float, ties: Ties
) -> Callable[[torch.Generator], Tensor]:
    """The paper's way: draw and count.

    One draw without replacement takes the ``keep`` smallest E_i / p_i, E_i standard exponential (Efraimidis & Spirakis
    2006); in logarithms, because |w|**5 underflows.
    """
    places = support.nonzero().squeeze(1)
    magnitudes = flat[places].abs().double()
    positive = magnitudes > 0
    if power == 0 or not bool(positive.any()):
        selection_logs = torch.zeros_like(magnitudes)
    else:  # live zeros are drawn after all others
        least = power * magnitudes[positive].min().log() - 100
        selection_logs = torch.where(positive, power * magnitudes.log(), least)
    by_magnitude = magnitudes.sort(descending=True, stable=True).indices if ties == "magnitude" else None
    rows = max(1, DRAWN_AT_ONCE // len(places))

    def draw(generator: torch.Generator) -> Tensor:
        drawn = torch.zeros_like(places)
        for start in range(0, samples, rows):
            shape = (min(rows, samples - start), len(places))
            waiting = torch.empty(shape, dtype=torch.float64, device=flat.device).exponential_(generator=generator)
            winners = waiting.log_().sub_(selection_logs).topk(keep, largest=False, sorted=False).indices
            drawn += torch.bincount(winners.reshape(-1), minlength=len(places))
        order = by_magnitude
        if order is None:
            order = torch.randperm(len(places), generator=generator, device=flat.device)
        order = order[drawn[order].sort(descending=True, stable=True).indices]
        mask = torch.zeros_like(support)
        mask[places[order[:keep]]] = True
        return mask

    return draw


def _fast_draws(flat: Tensor, bins: Tensor, support: Tensor, curve: KeepCurve) -> Callable[[torch.Generator], Tensor]:
    """The closed form's way: weights outside the band are decided, only inside it is anything drawn."""
    tau = curve.histogram.largest(curve.keep).bin
    low, high = curve.undecided_bins or (tau, tau)
    low, high = min(low, tau), max(high, tau)  # then the band always holds as many weights as are missing
    certain = bins > high
    missing = curve.keep - curve.histogram.count_above(high)
    places = ((bins >= low) & (bins <= high) & support).nonzero().squeeze(1)
    if curve.ties == "magnitude":  # larger magnitudes first, the lowest index among equals
        places = places[flat[places].abs().sort(descending=True, stable=True).indices]
    inside = slice(*np.searchsorted(curve.histogram.bins, [low, high + 1]))

    def of_each(values: NDArray[np.float64]) -> Tensor:
        """The values of the histogram's bins, looked up for each weight of the band."""
        table = np.zeros(high - low + 1)
        table[curve.histogram.bins[inside] - low] = values[inside]
        return torch.from_numpy(table).to(bins.device)[bins[places] - low]

    rank = _counted(curve, of_each) if curve.ties == "magnitude" else _ordered(curve, of_each)

    def draw(generator: torch.Generator) -> Tensor:
        mask = certain.clone()
        mask[places[rank(generator).topk(missing, sorted=False).indices]] = True
        return mask

    return draw


def _ordered(curve: KeepCurve, of_each: _Lookup) -> Callable[[torch.Generator], Tensor]:
    """Ties at random: the largest of these keys keep each weight with its chance q, and as many as are asked for.

    Order sampling with Pareto keys, logit(q) - logit(u) (Rosen 1997).
    """
    chance = curve.probabilities.clip(1e-15, 1 - 1e-15)
    odds = of_each(np.log(chance / (1 - chance)))

    def rank(generator: torch.Generator) -> Tensor:
        uniform = torch.rand(odds.shape, dtype=torch.float64, device=odds.device, generator=generator)
        return odds - uniform.logit_()

    return rank


def _counted(curve: KeepCurve, of_each: _Lookup) -> Callable[[torch.Generator], Tensor]:
    """Ties by magnitude: the counts themselves, then the place in the band, which is sorted by magnitude.

    With this rule the cut among the tied moves from mask to mask and takes whole ranges of weights along: keys that
    keep each weight with its chance q would spread ir up to 1.5 times too little. So the counts are drawn,
    Binomial(M, pi), and mended so that the M draws took as many weights of the band as draws of a fixed size do.
    """
    pi = curve.inclusions
    variances = curve.samples * pi * (1 - pi)
    chances = of_each(pi)
    samples = torch.full_like(chances, curve.samples)
    expected = float((samples * chances).sum())
    here = float(of_each(variances).sum())
    beyond = max(float((curve.drawable_counts * variances).sum()) - here, 0.0)  # of the weights outside the band
    # Given that band and rest together took their fixed number, the band's own number still varies.
    spread = math.sqrt(here * beyond / (here + beyond)) if here else 0.0
    largest_first = torch.arange(len(chances) - 1, -1, -1, device=chances.device)

    def rank(generator: torch.Generator) -> Tensor:
        counts = torch.binomial(samples, chances, generator=generator)
        normal = torch.randn((), dtype=torch.float64, device=chances.device, generator=generator)
        surplus = round(float(counts.sum()) - expected - spread * float(normal))
        movable = counts * (1 - chances) if surplus > 0 else (samples - counts) * chances
        shares = movable.cumsum(0)
        uniform = torch.rand(abs(surplus), dtype=torch.float64, device=chances.device, generator=generator)
        moved = torch.searchsorted(shares, uniform * shares[-1]).clamp_(max=len(shares) - 1)
        counts -= torch.bincount(moved, minlength=len(counts)) * (1 if surplus > 0 else -1)
        return counts.clamp_(0, curve.samples).long() * len(counts) + largest_first

    return rank
