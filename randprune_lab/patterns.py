"""Masks that hardware likes: N of every M neighbours kept (2:4), or whole blocks; plain and random ones.

A weight is looked at as a matrix of outputs x inputs. Linear (outputs, inputs): as it is. Convolution (outputs, inputs,
height, width): at each place of the kernel the input channels are neighbours, as the sparse matrix units of a GPU have
it ("Accelerating sparse deep neural networks", arXiv 2104.08378). Pure functions of tensors, as in ``sampling``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from randprune_lab.checks import check_option, check_power, check_reach, check_samples, check_sparsity, keep_count
from randprune_lab.histogram import magnitude_bins
from randprune_lab.keepcurve import TIES, Ties
from randprune_lab.sampling import (
    DRAWN_AT_ONCE,
    SAMPLERS,
    Sampler,
    check_generator,
    magnitude_mask,
    mask_sampler,
    sampling_device,
)

UNSTRUCTURED = "unstructured"
_SMALLEST_LOG = -745.0  # below the logarithm of every positive float64


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which weights of a tensor stand or fall together.

    Attributes:
        groups: N and M: of every M neighbours along the inputs N are kept at the end; None where blocks are meant.
        block: rows (outputs) and columns (inputs) of a block; None where groups are meant.
    """

    groups: tuple[int, int] | None = None
    block: tuple[int, int] | None = None

    @classmethod
    def of(cls, text: str) -> Self | None:
        """The pattern that ``text`` names: groups for "2:4", blocks for "4x4", None for "unstructured".

        Raises:
            ValueError: it is none of these.
        """
        if text == UNSTRUCTURED:
            return None
        found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text)
        first, second = (int(found[1]), int(found[3])) if found else (0, 0)
        if found and found[2] == ":" and 1 <= first < second:
            return cls(groups=(first, second))
        if found and found[2] == "x" and first >= 1 and first * second >= 2:
            return cls(block=(first, second))
        raise ValueError(
            f"pattern = {text!r}: must be 'unstructured', N:M with 1 <= N < M such as '2:4', or rows x columns of a "
            "block such as '4x4'. Pass one of these."
        )

    def __str__(self) -> str:
        return "{}:{}".format(*self.groups) if self.groups else "{}x{}".format(*self.block or ())


def check_pattern(text: str) -> str:
    """A pattern's name: unstructured, N:M or RxC."""
    Pattern.of(text)
    return text


def check_stages_fit(stages: Sequence[float], pattern: Pattern) -> None:
    """Groups of M can only lose whole weights, stage by stage, and end at N. Blocks fit any stages.

    Raises:
        ValueError: a stage is no multiple of 1/M, or the last one is not 1 - N/M.
    """
    if pattern.groups is None:
        return
    kept, size = pattern.groups
    left = [_kept_of_group(sparsity, size) for sparsity in stages]
    if left[-1:] != [kept]:
        raise ValueError(
            f"stages = {', '.join(map(str, stages))}: pattern {pattern} ends at sparsity {_show(1 - kept / size)}. "
            f"Pass for example stages={_listed(range(size - 1, kept - 1, -1), size)}."
        )


def check_tensor(name: str, shape: Sequence[int], sparsity: float, pattern: Pattern) -> None:
    """Whether a weight of this shape can lose this share in this pattern.

    Raises:
        ValueError: groups or blocks do not tile it, groups cannot lose that share, or no block would be left.
    """
    kept_weights(name, shape, sparsity, pattern)


def kept_weights(name: str, shape: Sequence[int], sparsity: float, pattern: Pattern) -> int:
    """How many weights a mask of this pattern keeps; of blocks, ``keep_count`` counts blocks and not weights.

    Raises:
        ValueError: as ``check_tensor``.
    """
    check_sparsity(sparsity)
    fix = f"Leave it out with exclude = ^{re.escape(name)}$, or pass a pattern that fits."
    if len(shape) < 2:
        raise ValueError(f"{name} has shape {tuple(shape)}: a pattern needs outputs and inputs. {fix}")
    outputs, inputs, columns = shape[0], shape[1], math.prod(shape[1:])
    if pattern.groups:
        size = pattern.groups[1]
        if inputs % size:
            raise ValueError(f"{name} has {inputs} inputs: must be a multiple of {size} for pattern {pattern}. {fix}")
        return _kept_of_group(sparsity, size) * (outputs * columns // size)
    rows, width = _block_of(pattern)
    if outputs % rows or columns % width:
        raise ValueError(
            f"{name} is a matrix of {outputs} x {columns}: blocks of {rows} x {width} (outputs x inputs) must tile it. "
            f"{fix}"
        )
    blocks = outputs * columns // (rows * width)
    keep = keep_count(blocks, sparsity)
    if not keep:
        raise ValueError(
            f"sparsity = {sparsity}: of the {blocks} blocks of {name} at least one must be left. Pass a lower one "
            f"(up to {_show(1 - 1 / max(blocks, 1))}) or smaller blocks. {fix}"
        )
    return keep * rows * width


def pattern_mask(weight: Tensor, sparsity: float, pattern: Pattern, *, alive: Tensor | None = None) -> Tensor:
    """The deterministic mask. Of each group the largest magnitudes, or the whole blocks with the largest sum of them.

    Exactly (1 - sparsity) * M of every group of M; exactly ``keep_count(blocks, sparsity)`` blocks. The lowest index
    goes first among equals, of weights or of blocks (row by row).

    Args:
        weight: floating point, (outputs, inputs, ...), any device, all finite.
        sparsity: the share of the weights (of the blocks) that is removed, in [0, 1).
        pattern: groups or blocks.
        alive: bool, same shape, True = the weight still exists. None: all do. A block is alive if one weight in it is;
            its dead ones stay outside the mask.

    Returns:
        A bool tensor of the weight's shape, on its device, True = kept.

    Raises:
        ValueError: the pattern does not fit, weights are not finite, or fewer are alive than are to be kept.
    """
    kept_weights("weight", weight.shape, sparsity, pattern)
    rows, living = _read(weight, pattern, torch.ones_like(weight, dtype=torch.bool) if alive is None else alive)
    if pattern.groups:
        kept = _kept_of_group(sparsity, pattern.groups[1])
        _check_living(living, kept)
        mask = torch.zeros_like(living).scatter_(1, _ranked(rows, living)[:, :kept], True)
    else:
        mask = magnitude_mask(_scores(rows, living), sparsity, alive=living.any(1))[:, None] & living
    return _as_weight(mask, weight.shape, pattern).to(weight.device)


def pattern_sampler(
    weight: Tensor,
    sparsity: float,
    pattern: Pattern,
    *,
    samples: int,
    power: float = 5.0,
    reach: float | None = None,
    ties: Ties = "random",
    method: Sampler = "fast",
    alive: Tensor | None = None,
) -> Callable[[torch.Generator], Tensor]:
    """A function that draws one randomized ensemble mask a call; ``pattern_mask`` is its limit for a large power.

    The law of ``sampling.random_mask`` (arXiv 2310.13183, section 3.2), which the paper has for unstructured masks
    only. Groups: each by itself, ``samples`` draws of (1 - sparsity) * M of its M weights, always as ``method="exact"``
    does it. Blocks: one draw takes whole blocks, their sums of magnitudes in the place of |w|.

    ``weight``, ``sparsity`` and ``pattern`` are those of ``pattern_mask``; ``samples``, ``power``, ``reach``, ``ties``
    and ``method`` those of ``sampling.random_mask``. In groups ``reach`` is that of each: only its
    round(reach * kept) largest can be drawn. ``alive``: as there, None means ``weight != 0``.

    Returns:
        ``sampler(generator)``, a bool tensor of the weight's shape, on its device; a function of the state of the
        generator, which lives on the weight's device (MPS: on the CPU).

    Raises:
        ValueError: a setting is out of range, the pattern does not fit, weights are not finite, fewer are alive than
            are to be kept, or the generator lives on another device.
    """
    samples, power, reach = check_samples(samples), check_power(power), check_reach(reach)
    check_option("method", method, SAMPLERS)
    check_option("ties", ties, TIES)
    kept_weights("weight", weight.shape, sparsity, pattern)
    rows, living = _read(weight, pattern, alive)
    if pattern.groups:
        kept = _kept_of_group(sparsity, pattern.groups[1])
        _check_living(living, kept)
        draw = _group_draws(rows, living, kept, samples, power, reach, ties)
    else:
        blocks = mask_sampler(
            _scores(rows, living),
            sparsity,
            samples=samples,
            power=power,
            reach=reach,
            method=method,
            ties=ties,
            alive=living.any(1),
        )
        draw = lambda generator: blocks(generator)[:, None] & living

    def one_mask(generator: torch.Generator) -> Tensor:
        check_generator(generator, rows.device)
        return _as_weight(draw(generator), weight.shape, pattern).to(weight.device)

    return one_mask


def _group_draws(
    rows: Tensor, living: Tensor, kept: int, samples: int, power: float, reach: float | None, ties: Ties
) -> Callable[[torch.Generator], Tensor]:
    """Draw and count in every group at once, each group's weights in falling order of magnitude.

    A draw takes the ``kept`` smallest E_i / p_i, E_i standard exponential (Efraimidis & Spirakis 2006), in logarithms.
    """
    groups, size = rows.shape
    order = _ranked(rows, living)
    column = torch.arange(size, device=rows.device)
    drawable = living.sum(1) if reach is None else living.sum(1).double().clamp(max=reach * kept).round()
    outside = column >= drawable[:, None]
    magnitudes = rows.gather(1, order).abs().double()
    # Live zeros are drawn after all others, but 0**0 is 1.
    logs = (
        torch.where(magnitudes > 0, power * magnitudes.log(), power * _SMALLEST_LOG - 100) if power else 0 * magnitudes
    )
    logs.masked_fill_(outside, -math.inf)
    at_once = max(1, DRAWN_AT_ONCE // size)

    def draw(generator: torch.Generator) -> Tensor:
        mask = torch.zeros_like(living)
        for start in range(0, groups, at_once):
            piece = slice(start, start + at_once)
            counts = _counted(logs[piece], kept, samples, generator)
            if ties == "random":
                tie = torch.rand(counts.shape, dtype=torch.float64, device=rows.device, generator=generator)
            else:
                tie = 1 - (column + 1.0) / size
            first = (counts + tie).masked_fill_(outside[piece], -1).topk(kept, dim=1, sorted=False).indices
            mask[piece] = mask[piece].scatter(1, order[piece].gather(1, first), True)
        return mask

    return draw


def _counted(logs: Tensor, kept: int, samples: int, generator: torch.Generator) -> Tensor:
    """How often each of the weights (groups, M) is in one of ``samples`` draws of ``kept`` from each group."""
    counts = torch.zeros_like(logs)
    draws = max(1, DRAWN_AT_ONCE // logs.numel())
    for start in range(0, samples, draws):
        shape = (min(draws, samples - start), *logs.shape)
        waiting = torch.empty(shape, dtype=torch.float64, device=logs.device).exponential_(generator=generator)
        winners = waiting.log_().sub_(logs).topk(kept, dim=2, largest=False, sorted=False).indices
        counts += torch.zeros_like(waiting).scatter_(2, winners, 1.0).sum(0)
    return counts


def _read(weight: Tensor, pattern: Pattern, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and life, groups or blocks as rows, where random numbers have float64. NaN and the like are refused."""
    device = sampling_device(weight.device)
    values = weight.detach().to(device)
    living = (magnitude_bins(values, None if alive is None else alive.to(device)) > 0).view(weight.shape)
    return _as_rows(values, pattern), _as_rows(living, pattern)


def _as_rows(tensor: Tensor, pattern: Pattern) -> Tensor:
    """A weight's groups (groups, M), or its blocks (blocks, rows * columns), one after another."""
    matrix = tensor.movedim(1, -1).reshape(len(tensor), -1)
    if pattern.groups:
        return matrix.reshape(-1, pattern.groups[1])
    rows, width = _block_of(pattern)
    return matrix.view(len(matrix) // rows, rows, -1, width).transpose(1, 2).reshape(-1, rows * width)


def _as_weight(rows: Tensor, shape: Sequence[int], pattern: Pattern) -> Tensor:
    """The inverse of ``_as_rows``."""
    if pattern.block:
        height, width = pattern.block
        rows = rows.view(shape[0] // height, -1, height, width).transpose(1, 2)
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def _ranked(rows: Tensor, living: Tensor) -> Tensor:
    """The columns of each row: largest magnitude first, lowest index among equals, what does not exist last."""
    return rows.abs().masked_fill(~living, -1).sort(dim=1, descending=True, stable=True).indices


def _scores(rows: Tensor, living: Tensor) -> Tensor:
    """What each block is worth: the sum of its living magnitudes."""
    return rows.abs().double().masked_fill_(~living, 0).sum(1)


def _check_living(living: Tensor, kept: int) -> None:
    least = int(living.sum(1).min())
    if least < kept:
        raise ValueError(
            f"a group has {least} weights alive, {kept} of every {living.shape[1]} are to be kept: at least as many "
            "must be alive. Raise the sparsity, or pass the mask of the stage before as alive."
        )


def _kept_of_group(sparsity: float, size: int) -> int:
    kept = round((1 - check_sparsity(sparsity)) * size)
    if kept < 1 or abs(1 - kept / size - sparsity) > 1e-9:
        raise ValueError(
            f"sparsity = {sparsity}: groups of {size} can only lose whole weights. "
            f"Pass one of {_listed(range(size - 1, 0, -1), size)}."
        )
    return kept


def _block_of(pattern: Pattern) -> tuple[int, int]:
    assert pattern.block is not None, "a pattern has groups or blocks"
    return pattern.block


def _show(sparsity: float) -> str:
    return f"{sparsity:.12g}"  # so many digits that it can be passed back


def _listed(kept: Sequence[int], size: int) -> str:
    """The sparsities at which so many of ``size`` are kept; of many the first three and the last."""
    shown = [_show(1 - left / size) for left in kept]
    return ",".join(shown if len(shown) <= 8 else [*shown[:3], "...", shown[-1]])
