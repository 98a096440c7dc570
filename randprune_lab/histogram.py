"""Magnitude histograms: how many weights of a tensor have which magnitude, at every scale, in one pass."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A bin is all float32 numbers that share exponent and the upper 12 bits of the mantissa: at most 0.025 % wide at any
# scale, and every float16 and bfloat16 number has one of its own. Bin 0 holds the weights that no longer exist.
_MANTISSA_BITS = 12
_DROPPED_BITS = 23 - _MANTISSA_BITS
_MAGNITUDE = 0x7FFFFFFF
INFINITY_BIN = (0x7F800000 >> _DROPPED_BITS) + 1
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK = 2**22  # weights binned at a time: the copies stay small whatever the tensor's size


def check_weight(weight: Tensor, alive: Tensor | None) -> None:
    """A dense float tensor, and a mask that fits it."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight is a {type(weight).__name__}: must be a torch tensor. Pass torch.as_tensor(weight).")
    if weight.dtype not in _DTYPES:
        raise ValueError(
            f"weight has dtype {weight.dtype}: must be floating point. Convert it with weight.float() (16, 32 and 64 "
            "bits are taken as they are)."
        )
    if weight.layout != torch.strided or weight.is_meta:
        raise ValueError(
            f"weight has layout {weight.layout} on {weight.device}: must be a dense tensor with values. "
            "Pass weight.to_dense(), or load the weights first."
        )
    if alive is not None and (
        not isinstance(alive, Tensor) or alive.shape != weight.shape or alive.dtype != torch.bool
    ):
        kind, shape = getattr(alive, "dtype", type(alive)), tuple(getattr(alive, "shape", ()))
        raise ValueError(
            f"alive is {kind} of shape {shape}, the weight has shape {tuple(weight.shape)}: alive must be a bool "
            "tensor of the same shape, True = the weight still exists."
        )


def magnitude_bins(weight: Tensor, alive: Tensor | None = None) -> Tensor:
    """The histogram bin of each weight: a flat int32 tensor that rises with abs(weight); 0 where no weight exists.

    ``alive`` is a bool tensor of the weight's shape, True = exists; None means ``weight != 0``.

    Raises:
        ValueError: the weights are not floating point, not all finite, or ``alive`` does not fit them.
    """
    check_weight(weight, alive)
    flat = weight.detach().resolve_neg().reshape(-1)
    exists = flat != 0 if alive is None else alive.reshape(-1)
    single = flat
    if flat.dtype == torch.float64:  # what float32 cannot hold goes to the last finite bin; NaN passes through
        limit = torch.finfo(torch.float32).max
        single = torch.where(flat.isinf(), flat, flat.clamp(-limit, limit))
    bins = single.float().contiguous().view(torch.int32) & _MAGNITUDE
    bins >>= _DROPPED_BITS
    bins += 1
    if bins.numel() and bins.max() >= INFINITY_BIN:
        broken = int((bins >= INFINITY_BIN).sum())
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
    """How many weights have which magnitude, in bins at most 0.025 % wide from 2**-126 to the largest float32.

    (Below, where float32 itself loses precision, bins grow wider; all magnitudes above share the last bin.)

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
        check_weight(weight, alive)
        flat = weight.detach().reshape(-1)
        exists = None if alive is None else alive.reshape(-1)
        totals = torch.zeros(INFINITY_BIN, dtype=torch.int64, device=weight.device)
        for start in range(0, len(flat), _CHUNK):
            piece = slice(start, start + _CHUNK)
            bins = magnitude_bins(flat[piece], None if exists is None else exists[piece])
            totals += torch.bincount(bins, minlength=INFINITY_BIN)
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

    def coarse(self, mantissa_bits: int = 7) -> MagnitudeHistogram:
        """The same weights in wider bins, each at its bin's middle: 2**mantissa_bits an octave, instead of 4,096.

        Seven bits (at most 0.8 % wide) are some 2,000 bins: a curve costs a quarter, and ir moves by less than 0.1 % at
        a few samples, a few percent at thousands. Live zeros stay apart.
        """
        width = 1 << (_MANTISSA_BITS - mantissa_bits)
        middles = np.where(self.bins > 1, (self.bins - 1) // width * width + 1 + width // 2, self.bins)
        bins, place = np.unique(middles, return_inverse=True)
        return MagnitudeHistogram(bins, np.bincount(place, weights=self.counts).astype(np.int64), self.size)

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
        logs = self._logs if magnitudes is self.magnitudes else _logs_of(magnitudes)
        return np.where(magnitudes > 0, power * logs, power * math.log(positive[0]) - 100)

    @functools.cached_property
    def _logs(self) -> NDArray[np.float64]:
        return _logs_of(self.magnitudes)

    def largest(self, count: int) -> Cut:
        """Where the ``count`` largest existing weights end."""
        if count == 0:
            return _NOTHING
        from_top = np.cumsum(self.counts[::-1])
        place = int(np.searchsorted(from_top, count))
        here = int(self.counts[::-1][place])
        return Cut(int(self.bins[::-1][place]), (count - int(from_top[place]) + here) / here)

    def count_above(self, bin_: int) -> int:
        """How many weights lie in higher bins."""
        return int(self.counts[self.bins > bin_].sum())

    def share_within(self, low: float, high: float) -> float:
        """The share of the existing weights with ``low <= abs(w) < high``, to one bin (0.025 %)."""
        inside = (self.magnitudes >= low) & (self.magnitudes < high)
        return float(self.counts[inside].sum() / max(self.alive, 1))


def _logs_of(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms; 0 for a 0."""
    return np.log(np.where(magnitudes > 0, magnitudes, 1.0))


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where the largest weights of some number end: all above ``bin``, the share ``share`` of those in it."""

    bin: int
    share: float

    def at(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """For each bin, the share of its weights that belongs to the largest."""
        return np.where(bins == self.bin, self.share, bins > self.bin)

    @property
    def magnitude(self) -> float:
        """Where the cut bin starts; infinite when there are none."""
        return float(bin_magnitudes(np.array([self.bin]))[0])


_NOTHING = Cut(INFINITY_BIN, 0.0)


def bins_of(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """``magnitude_bins`` of a flat array; all of them exist."""
    given = torch.from_numpy(magnitudes)
    return magnitude_bins(given, torch.ones_like(given, dtype=torch.bool)).numpy().astype(np.int64)
