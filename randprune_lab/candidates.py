"""Candidate masks of a stage, drawn one after another and compared: what panel 3 shows.

They are those that a run with the same seed, stage and tensor draws, bit for bit on the same device.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from randprune_lab.panels import Draw, Table, finite
from randprune_lab.sampling import candidate_generator, magnitude_mask, mask_sampler
from randprune_lab.sources import Judged, Layer
from randprune_lab.state import ExploreState

CROP = 64  # rows and columns of a mask that a strip shows
DOTS = 32  # magnitudes at which panel 2 shows what the masks did
DOTTED = 2**22  # weights that the dots are counted from, at most: the first ones
MOST_WEIGHTS = 2**28  # that masks are drawn of here
MOST_DRAWS = 2**28  # weights x samples that the exact sampler takes on here: some seconds a mask


def check_drawable(size: int, draw: Draw, state: ExploreState) -> None:
    """Whether masks of ``size`` weights can be drawn while somebody waits.

    Raises:
        ValueError: they are too many.
    """
    if size > MOST_WEIGHTS:
        raise ValueError(
            f"{size:,} weights together: masks are drawn here of at most {MOST_WEIGHTS:,}. Choose scope = layer, or do "
            "without: panels 1, 2 and 4 need no masks."
        )
    if state.sampler == "exact" and size * draw.samples > MOST_DRAWS:
        raise ValueError(
            f"sampler = exact would draw {size:,} weights {draw.samples:,} times for each mask: too long to wait for. "
            "Choose sampler = fast, which follows the same law."
        )


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the tensor that strips show starts in the vector of what is drawn, and its shape."""

    start: int
    shape: tuple[int, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns: the first dimension against all others; a vector in rows of 64."""
        n = torch.Size(self.shape).numel()
        if len(self.shape) > 1:
            return self.shape[0], n // self.shape[0]
        return max(n // CROP, 1), min(n, CROP)


class Candidates:
    """Masks that share everything but the draw. Each is drawn when first asked for, and kept eight weights a byte."""

    def __init__(self, layer: Layer, parameter: str, place: Place, draw: Draw, state: ExploreState) -> None:
        """``parameter`` is the name that seeds the draws."""
        weight = layer.weight
        if weight is None:
            raise ValueError(
                "this run has not kept the weights of that stage (keep_stages = last): no masks can be drawn of them. "
                "Panels 1, 2 and 4 stand on its histograms. Choose another stage."
            )
        self._weight, self._place = weight, place
        self._alive = (weight != 0) if layer.alive is None else layer.alive
        self._sparsity = state.sparsity
        self._sampler: Callable[[], Callable[[torch.Generator], Tensor]] = functools.cache(
            functools.partial(
                mask_sampler,
                weight,
                state.sparsity,
                samples=draw.samples,
                power=draw.power,
                reach=state.reach,
                method=state.sampler,  # type: ignore[arg-type]
                ties=draw.ties,
                alive=self._alive,
            )
        )
        self._generator = functools.partial(
            candidate_generator, state.seed, state.stage, parameter=parameter, device=weight.device
        )
        self._packed: dict[int, NDArray[np.uint8]] = {}
        # Remembered by this object, not by its class, so that they go when it goes.
        self._shared = functools.cache(self._count_shared)
        self._near = functools.lru_cache(maxsize=1)(self._find_near)
        self._kept_near = functools.lru_cache(maxsize=64)(self._count_near)

    def mask(self, number: int) -> Tensor:
        """The mask of a candidate; 0 is the plain one."""
        if number == 0:
            return magnitude_mask(self._weight, self._sparsity, alive=self._alive)
        return self._sampler()(self._generator(number))

    def packed(self, number: int) -> NDArray[np.uint8]:
        """The same, eight weights a byte."""
        if number not in self._packed:
            self._packed[number] = np.packbits(self.mask(number).reshape(-1).cpu().numpy())
        return self._packed[number]

    def table(self, state: ExploreState, done: int, window: tuple[float, float]) -> Table:
        """Panel 3 with the first ``done`` candidates; the dots of panel 2 over the magnitudes of ``window``."""
        numbers = state.numbers[:done]
        shared = np.array([[self._shared(min(one, other), max(one, other)) for other in numbers] for one in numbers])
        keep = int(shared[0, 0])
        agreement = shared / max(keep, 1)
        drawn = [self._strip(slot, number, keep, int(shared[0, slot])) for slot, number in enumerate(numbers)]
        rows, columns = self._crop
        return {
            "title": (
                "Candidates agree on large weights and differ near tau"
                if agreement.min() < 1
                else "All masks drawn are the same"
            ),
            "badge": "drawn",
            "sentence": _sentence(drawn, state.candidates, agreement),
            "total": state.candidates,
            "done": done,
            "crop": {"rows": rows, "columns": columns, "top": 0, "left": 0, "of": list(self._place.matrix)},
            "drawn": drawn,
            "agreement": agreement.round(6).tolist(),
            "dots": self._dots([number for number in numbers if number], window),
            "failed": None,
        }

    def _strip(self, slot: int, number: int, keep: int, shared: int) -> Table:
        """One candidate: how far it is from the plain mask, and a corner of it."""
        swapped, pruned = keep - shared, self._weight.numel() - keep
        ir = swapped / (pruned - swapped) if pruned > swapped else float("inf") if swapped else 0.0  # Eq. 1
        return {
            "slot": slot,
            "number": number,
            "label": f"mask {number}" if number else "plain mask",
            "ir": finite(ir),
            "swapped": swapped / max(keep, 1),
            "kept": base64.b64encode(np.packbits(self._corner(number)).tobytes()).decode(),
        }

    @property
    def _crop(self) -> tuple[int, int]:
        rows, columns = self._place.matrix
        return min(rows, CROP), min(columns, CROP)

    def _corner(self, number: int) -> NDArray[np.uint8]:
        """The first rows and columns of the tensor, 0 or 1 for each weight, row after row."""
        (rows, columns), width = self._crop, self._place.matrix[1]
        starts = (self._place.start + row * width for row in range(rows))
        return np.concatenate([self._bits(number, start, columns) for start in starts])

    def _bits(self, number: int, start: int, count: int) -> NDArray[np.uint8]:
        whole = self.packed(number)[start // 8 : (start + count + 7) // 8]
        return np.unpackbits(whole)[start % 8 :][:count]

    def _dots(self, numbers: list[int], window: tuple[float, float]) -> Table:
        """The share of the weights near each of some magnitudes that the masks kept."""
        _, groups, middles = self._near(window)
        totals = np.bincount(groups, minlength=len(middles)) * len(numbers)
        kept = sum((self._kept_near(number, window) for number in numbers), np.zeros(len(middles)))
        some = totals > 0
        return {"magnitudes": middles[some].tolist(), "kept": (kept[some] / totals[some]).round(6).tolist()}

    def _count_near(self, number: int, window: tuple[float, float]) -> NDArray[np.float64]:
        """How many of each group of ``_near`` a mask keeps."""
        places, groups, middles = self._near(window)
        bits = self._bits(number, 0, min(self._weight.numel(), DOTTED))
        return np.bincount(groups, weights=bits[places], minlength=len(middles)).astype(np.float64)

    def _count_shared(self, one: int, other: int) -> int:
        """How many weights two masks both keep."""
        return int(np.bitwise_count(self.packed(one) & self.packed(other)).sum(dtype=np.int64))

    def _find_near(self, window: tuple[float, float]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
        """The weights whose magnitude lies in the window: their places, their groups; and the groups' middles."""
        magnitudes = self._weight.detach().reshape(-1)[:DOTTED].abs().float().cpu().numpy()
        exists = self._alive.reshape(-1)[:DOTTED].cpu().numpy()
        edges = np.linspace(*window, DOTS + 1)
        places = np.flatnonzero(exists & (magnitudes >= edges[0]) & (magnitudes < edges[-1]))
        groups = np.searchsorted(edges, magnitudes[places], side="right") - 1
        return places, groups.clip(0, DOTS - 1), (edges[1:] + edges[:-1]) / 2


def with_scores(table: Table, judged: Judged) -> Table:
    """Panel 3 with what the run that draws these very masks found out about them (EMEP)."""
    if not judged.asked:
        return table
    drawn = [{**strip, **_verdict(judged, strip["number"])} for strip in table["drawn"]]
    name = f"mask {judged.winner}" if judged.winner else "the plain mask"
    said = f"has judged {len(judged.scores)} of its {judged.asked} masks so far"
    said = said if judged.winner is None else f"chose {name} of {judged.asked}"
    return {**table, "drawn": drawn, "sentence": f"{table['sentence']} The run {said}."}


def _verdict(judged: Judged, number: int) -> Table:
    if number not in judged.scores:
        return {"emep": "", "winner": number == judged.winner}
    score = judged.scores[number]
    return {"emep": "EMEP failed" if score is None else f"EMEP {100 * score:.1f} %", "winner": number == judged.winner}


def _sentence(drawn: list[Table], total: int, agreement: NDArray[np.float64]) -> str:
    done = f"{len(drawn)} of {total} masks drawn" if len(drawn) < total else f"{total} mask{'s' * (total > 1)} drawn"
    random = [strip for strip in drawn if strip["number"]]
    if not random:
        alone = "only the plain one is asked for" if total == 1 else "so far only the plain one"
        return f"{done}: {alone}, which every random mask is compared with."
    irs = [float("inf") if strip["ir"] is None else strip["ir"] for strip in random]
    apart = agreement[~np.eye(len(agreement), dtype=bool)]
    spread = (
        f"{min(irs):.4g}" if len(irs) == 1 else f"{min(irs):.4g} to {max(irs):.4g} (mean {statistics.mean(irs):.4g})"
    )
    return (
        f"{done}: against the plain mask the random ones have ir {spread}; two masks share {apart.min():.2%} to "
        f"{apart.max():.2%} of the kept weights."
    )
