"""How a sparsity is shared out among the tensors of a network, when they do not all get the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from randprune_lab.checks import keep_count


def erk(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """The sparsity of each tensor by the Erdos-Renyi-kernel rule: small and narrow tensors stay denser.

    A tensor's density is proportional to sum(shape) / prod(shape). Where that would exceed 1 the tensor is dense, and
    the others share what is left. Sources: Mocanu et al. 2018 (fully connected layers: Erdos-Renyi); Evci et al. 2020
    (RigL, arXiv 1911.11134: kernels). How to round is ours: every tensor keeps at least 1 weight, the total is exact,
    and no tensor ever keeps more at a higher sparsity, so that stage can follow stage.

    Args:
        shapes: of the prunable tensors, by name.
        sparsity: the share of all their weights together that is removed, in [0, 1).

    Returns:
        The sparsity of each tensor, in [0, 1), by name. ``keep_count(size, sparsity)`` of each adds up to exactly
        ``keep_count(total size, sparsity)``.

    Raises:
        ValueError: there is no tensor, one is empty, or fewer weights are to be kept than there are tensors.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not sizes or min(sizes.values()) < 1:
        empty = [name for name, size in sizes.items() if size < 1]
        raise ValueError(f"shapes: {empty or 'none'}: must be tensors with weights. Leave empty ones out.")
    keep = keep_count(sum(sizes.values()), sparsity)
    if keep < len(sizes):
        raise ValueError(
            f"sparsity = {sparsity}: keeps {keep} weights, and each of {len(sizes)} tensors must keep 1. "
            "Pass a lower one, or leave tensors out with exclude."
        )
    shares = {name: sum(shape) for name, shape in shapes.items()}  # density times size
    kept = _rounded(shares, sizes, keep)
    return {name: (size - kept[name]) / size for name, size in sizes.items()}


def _rounded(shares: Mapping[str, int], sizes: Mapping[str, int], keep: int) -> dict[str, int]:
    """Whole numbers in proportion to ``shares``, from 1 to ``sizes``, that add up to ``keep``.

    By Webster's (Sainte-Lague's) rule: a tensor of share s gets its weight number k at the price (2k - 1) / s, and the
    ``keep`` cheapest are bought. (The largest remainders instead could, as the total grows, take a weight away: the
    Alabama paradox. A later stage would then ask for more weights than are alive.)
    """
    factor = _water_level(shares, sizes, keep)
    kept = {
        name: min(max(1, math.floor(factor * share + Fraction(1, 2))), sizes[name]) for name, share in shares.items()
    }
    places = {name: place for place, name in enumerate(shares)}  # the first one goes first among equals
    while sum(kept.values()) > keep:
        movable = [name for name in kept if kept[name] > 1]
        kept[max(movable, key=lambda name: (Fraction(2 * kept[name] - 1, shares[name]), places[name]))] -= 1
    while sum(kept.values()) < keep:
        movable = [name for name in kept if kept[name] < sizes[name]]
        kept[min(movable, key=lambda name: (Fraction(2 * kept[name] + 1, shares[name]), places[name]))] += 1
    return kept


def _water_level(shares: Mapping[str, int], sizes: Mapping[str, int], keep: int) -> Fraction:
    """The factor at which sum(min(factor * share, size)) is ``keep``; in whole numbers, so that nothing is rounded."""
    dense: set[str] = set()
    while len(dense) < len(shares):
        left = keep - sum(sizes[name] for name in dense)
        factor = Fraction(left, sum(share for name, share in shares.items() if name not in dense))
        full = {name for name, share in shares.items() if name not in dense and factor * share > sizes[name]}
        if not full:
            break
        dense |= full
    return factor
