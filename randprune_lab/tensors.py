"""Every matrix of a source in one row: its threshold, and the randomness that a mask of it would have."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator

from randprune_lab import panels
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.panels import Table
from randprune_lab.sources import TensorInfo
from randprune_lab.state import ExploreState
from randprune_lab.weights import Weights, is_global


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One tensor.

    Attributes:
        name, shape: as in the source.
        n: its weights, those that no longer exist included.
        prunable: a run would prune it by default.
        alive: the weights that exist.
        threshold: tau, the smallest magnitude that the deterministic mask keeps; None when it keeps nothing.
        near_threshold: the share of the existing weights from 2/3 tau to 4/3 tau (arXiv 2310.13183, Figure 1).
        samples, power: M, the masks drawn and added up, and T.
        expected_ir: introduced randomness to expect (Eq. 1).
        swapped: share of the kept weights to expect that the deterministic mask would not keep.
        drawn_ir: introduced randomness of the masks that were really drawn, one each.
        problem: why there are no numbers; None when there are.
    """

    name: str
    shape: tuple[int, ...]
    n: int
    prunable: bool
    alive: int = 0
    threshold: float | None = None
    near_threshold: float = 0.0
    samples: int = 0
    power: float = 0.0
    expected_ir: float = 0.0
    swapped: float = 0.0
    drawn_ir: tuple[float, ...] = ()
    problem: str | None = None


def tensor_rows(
    weights: Weights, state: ExploreState, *, include: str = "", exclude: str | None = None
) -> Iterator[TensorRow]:
    """A row for every matrix whose name ``include`` finds and ``exclude`` does not (regular expressions).

    Raises:
        ValueError: a pattern is none, or nothing matches.
    """
    wanted, unwanted = _pattern("include", include), _pattern("exclude", exclude) if exclude else None
    infos = [
        info
        for info in weights.source.tensors.values()
        if len(info.shape) >= 2 and wanted.search(info.name) and not (unwanted and unwanted.search(info.name))
    ]
    if not infos:
        raise ValueError(
            f"{weights.source.label}: no floating-point weight matrix matches include = {include!r}, "
            f"exclude = {exclude!r}. Choose patterns that match the names of its tensors."
        )
    whole: KeepCurve | None = None  # the one curve of all prunable tensors
    for info in infos:
        own = state.model_copy(update={"tensor": info.name})
        if is_global(state, info) and whole is None:
            with contextlib.suppress(ValueError):  # each row says it
                whole = weights.curve(own)[1]
        yield _row(weights, info, own, whole if is_global(state, info) else None)


def _row(weights: Weights, info: TensorInfo, state: ExploreState, whole: KeepCurve | None) -> TensorRow:
    blank = TensorRow(info.name, info.shape, info.n, info.prunable)
    try:
        histogram = weights.of_tensor(info.name, state)
        curve = whole or weights.curve(state)[1]
    except ValueError as error:
        return dataclasses.replace(blank, problem=str(error))
    tau = curve.threshold
    ir, swapped = _share_of(histogram, curve) if whole else (curve.expected_ir, curve.swapped)
    return dataclasses.replace(
        blank,
        alive=histogram.alive,
        threshold=tau if curve.keep else None,
        near_threshold=histogram.share_within(2 / 3 * tau, 4 / 3 * tau) if curve.keep else 0.0,
        samples=curve.samples,
        power=curve.power,
        expected_ir=ir,
        swapped=swapped,
    )


def _share_of(histogram: MagnitudeHistogram, curve: KeepCurve) -> tuple[float, float]:
    """Ir and swapped to expect of one tensor's part in the masks of all (Eq. 1, restricted to it)."""
    chance = curve.keep_probability(histogram.magnitudes)
    # Of tau's bin the plain mask keeps a share: in which tensors, decides their order; here it is the same in all.
    plain = curve.histogram.largest(curve.keep).at(histogram.bins)
    kept = float((histogram.counts * chance).sum())
    pruned = histogram.size - float((histogram.counts * plain).sum())
    swapped_in = float((histogram.counts * (1 - plain) * chance).sum())
    ir = swapped_in / (pruned - swapped_in) if pruned > swapped_in else 0.0
    return ir, swapped_in / kept if kept else 0.0


def row_table(row: TensorRow) -> Table:
    """A row as the front-ends get it."""
    return {
        "name": row.name,
        "shape": list(row.shape),
        "n": row.n,
        "alive": row.alive,
        "threshold": row.threshold,
        "near": row.near_threshold,
        "samples": row.samples,
        "power": row.power,
        "ir": panels.finite(row.expected_ir),
        "swapped": row.swapped,
        "prunable": row.prunable,
        "problem": row.problem,
    }


def table_sentence(rows: list[Table], total: int) -> str:
    """How far the tensors lie apart, in words."""
    whole = "1 matrix" if total == 1 else f"{total} matrices"
    start = whole if len(rows) == total else f"{len(rows)} of {whole} so far"
    irs = [row["ir"] for row in rows if row["prunable"] and row["problem"] is None and row["ir"] is not None]
    failed = sum(row["problem"] is not None for row in rows)
    text = (
        f"{start}; of those that are pruned the expected ir lies between {min(irs):.4g} and {max(irs):.4g}"
        if irs
        else start
    )
    return f"{text}; {failed} cannot be pruned so." if failed else f"{text}."


def _pattern(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{name} = {text!r}: no regular expression ({error}). Escape with a backslash.") from error
