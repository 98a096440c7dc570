"""What panels 1, 2 and 4 show, as small tables of plain values with a sentence that is true of them.

Pure functions of a histogram and a state; which weights they are, and what draws the tables, they do not know.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from randprune_lab.checks import keep_count
from randprune_lab.histogram import INFINITY_BIN, MagnitudeHistogram, bin_magnitudes, bins_of
from randprune_lab.keepcurve import KeepCurve, Ties
from randprune_lab.masks import power_of, samples_of
from randprune_lab.schedules import ir_range
from randprune_lab.state import ExploreState, control_of

Table = dict[str, Any]
_Known = dict[tuple["Draw", float, float | None], tuple[float, float]]  # ir and swapped by what decides them

UNDECIDED = 0.01  # a weight kept with a chance from here to 1 minus this is shown as undecided
MOST_BARS = 100
POINTS = 160  # of the keep curve
SWEPT = 41  # points of the sweep; of the sampling ratio more, since M is whole and ir goes down in steps
SWEPT_RATIOS = 101
# Under which values of ``randomness`` a setting rules; under the others it follows, and moving it makes it rule.
RULES: dict[str, tuple[str, ...]] = {
    "sampling_ratio": ("decrease", "increase"),
    "samples": ("fixed", "target_ir"),
    "target_ir": ("target_ir",),
    "power": ("fixed", "decrease", "increase"),
}
SWEEP_BITS = 9  # mantissa bits of the histogram that the sweep is worked out from: within 0.5 % of the full one


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a state means for one tensor: M, T and the tie rule; and what of it is not as asked for, in words."""

    samples: int
    power: float
    ties: Ties
    notices: tuple[str, ...] = ()


def settle(state: ExploreState, histogram: MagnitudeHistogram) -> Draw:
    """The number of samples and the power that masks are drawn with: as a run with these settings would.

    Raises:
        ValueError: more samples than can be drawn, or fewer weights than are to be kept.
    """
    samples = samples_of(histogram.size, state.sparsity, state)
    if state.randomness != "target_ir":
        return Draw(samples, state.power, state.ties)  # type: ignore[arg-type]
    power, nearest = power_of(histogram, state.sparsity, state.target_ir, state)
    notices = []
    if nearest != state.target_ir:
        notices.append(f"An ir of {state.target_ir:.4g} is out of reach here: it gets {nearest:.4g}.")
    if state.ties == "magnitude":
        notices.append("The power for a target ir is known for random ties: they are used here.")
    return Draw(samples, power, "random", tuple(notices))


def curve_of(state: ExploreState, histogram: MagnitudeHistogram, draw: Draw) -> KeepCurve:
    """The closed form of these masks."""
    return KeepCurve.of(
        histogram, state.sparsity, samples=draw.samples, power=draw.power, reach=state.reach, ties=draw.ties
    )


def derived(state: ExploreState, curve: KeepCurve) -> Table:
    """The numbers that follow from a state: what rules stays as it is, the rest is what it comes to."""
    keep, n = curve.keep, curve.histogram.size
    chosen = keep if state.randomness == "increase" else n - keep  # the C of sr * C
    ratio = math.nextafter(curve.samples / chosen, math.inf) if chosen else 0.0  # a hair more: int(sr * C) is M again
    rules = state.randomness in RULES["sampling_ratio"]
    return {
        "samples": curve.samples,
        "power": curve.power,
        "sampling_ratio": state.sampling_ratio if rules or not chosen else ratio,
        "target_ir": finite(curve.expected_ir),
        "reach": state.reach,
        "keep": keep,
        "n": n,
        "alive": curve.histogram.alive,
        "compression": n / keep if keep else None,
        "threshold": finite(curve.threshold),
        "ir": finite(curve.expected_ir),
        "swapped": curve.swapped,
    }


def window_of(state: ExploreState, histogram: MagnitudeHistogram) -> tuple[float, float]:
    """The magnitudes that panels 1 and 2 show: centred on tau."""
    tau = histogram.largest(keep_count(histogram.size, state.sparsity)).magnitude
    return max(0.0, tau * (1 - state.window)), tau * (1 + state.window)


def microscope(state: ExploreState, curve: KeepCurve) -> Table:
    """Panel 1: how many weights of which magnitude near tau, and which of them are kept, pruned or undecided."""
    low, high = window_of(state, curve.histogram)
    bars = _Bars.between(low, high)
    counts, drawable, q = curve.histogram.counts, curve.drawable_counts, curve.probabilities
    sure, never = drawable * (q > 1 - UNDECIDED), drawable * (q < UNDECIDED) + (counts - drawable)
    kinds = {"kept": sure, "undecided": counts - sure - never, "pruned": never}
    tau, alive = curve.threshold, max(curve.histogram.alive, 1)
    within = curve.histogram.share_within
    near, close = within(tau * 2 / 3, tau * 4 / 3), within(tau * 0.9, tau * 1.1)
    undecided = float(kinds["undecided"].sum()) / alive
    reach_at = None if curve.drawable == curve.histogram.alive else curve.histogram.largest(curve.drawable).magnitude
    return {
        "title": "The cut falls where weights are dense" if near > 0.1 else "Few weights lie near the cut",
        "badge": "exact",
        "unit": "weights per 1 % of tau",
        "sentence": (
            f"At sparsity {state.sparsity:.6g}, tau = {tau:.4g}: {near:.1%} of the weights lie from 2/3 to 4/3 of it, "
            f"{close:.1%} within 10 % of it; {undecided:.1%} are undecided (kept with a chance from {UNDECIDED:.0%} to "
            f"{1 - UNDECIDED:.0%})."
        ),
        "low": low,
        "high": high,
        "tau": tau,
        "reach_at": reach_at,
        "near": [tau * 2 / 3, tau * 4 / 3],
        "near_share": near,
        "edges": bars.edges.tolist(),
        **{kind: bars.totals(curve.histogram.bins, values) for kind, values in kinds.items()},
        "inset": _inset(curve.histogram),
    }


def keep_curve(state: ExploreState, curve: KeepCurve) -> Table:
    """Panel 2: the chance of a weight to be kept, by its magnitude."""
    low, high = window_of(state, curve.histogram)
    tau = curve.threshold
    magnitudes = np.linspace(low, high, POINTS)
    if curve.drawable < curve.histogram.alive:  # what lies below the reach is never kept: a step there
        edge = curve.histogram.largest(curve.drawable).magnitude
        magnitudes = np.append(magnitudes, [edge * (1 - 1e-3), edge])
    magnitudes = np.unique(np.append(magnitudes, tau).clip(low, high))
    chance = curve.keep_probability(magnitudes)
    at_tau = curve.keep_probability(tau)
    if curve.swapped == 0:
        title = "Nothing is left to chance: the step of magnitude pruning"
        says = f"the {curve.keep:,} largest of {curve.histogram.size:,} weights are kept, down to tau = {tau:.4g}"
    else:
        title = "Magnitude pruning is a step; chance makes it a slope"
        says = (
            f"a weight at tau is kept with a chance of {at_tau:.0%}, and {curve.swapped:.2%} of the kept weights are "
        )
        says += "not those of the deterministic mask"
    draws = f"M = {curve.samples:,} masks added up, T = {curve.power:.4g}"
    return {
        "title": title,
        "badge": "predicted",
        "sentence": f"With {draws}, {says}; ir = {curve.expected_ir:.4g}.",
        "low": low,
        "high": high,
        "tau": tau,
        "magnitudes": magnitudes.tolist(),
        "q": chance.round(6).tolist(),
        "banners": _banners(state, curve),
    }


def _banners(state: ExploreState, curve: KeepCurve) -> list[str]:
    """What a student should know before reading the curve."""
    banners = []
    if state.randomness in ("decrease", "increase"):
        pruned = state.randomness == "decrease"
        asked = state.sampling_ratio * (curve.histogram.size - curve.keep if pruned else curve.keep)
        if asked < 1:
            banners.append(f"sr asks for M = {asked:.2g}: M is at its floor of 1, and sr does not act here.")
    if curve.samples in (1, 2) and curve.ties == "random" and curve.swapped > 0:
        banners.append("M = 1 and M = 2 are the same law: who is drawn by one of two goes in by the toss of a coin.")
    tied = curve.decided_by_ties
    if tied > 0.1:
        rule = "a coin" if curve.ties == "random" else "the larger magnitude"
        banners.append(f"{tied:.0%} of the kept weights had as many draws as others that are not: {rule} decided.")
    return banners


def point(state: ExploreState, curve: KeepCurve) -> Table:
    """The current point of panel 4."""
    values = {**derived(state, curve), "sparsity": state.sparsity}
    return {
        "ir": finite(curve.expected_ir),
        "swapped": curve.swapped,
        "values": {name: values[name] for name in ("sampling_ratio", "samples", "power", "reach", "sparsity")},
        "sentence": (
            f"Here ir = {curve.expected_ir:.4g}, and {curve.swapped:.2%} of the kept weights are swapped "
            f"(M = {curve.samples:,}, T = {curve.power:.4g})."
        ),
    }


def sweep(state: ExploreState, histogram: MagnitudeHistogram) -> Table:
    """Panel 4: the ir to expect while one setting moves and the others stay."""
    field, control = state.sweep, control_of(state.sweep)
    coarse = histogram.coarse(SWEEP_BITS)
    rows: list[tuple[Any, float | None, float]] = []
    known: _Known = {}
    for value in _swept(field, state, histogram):
        try:
            ir, swapped = _randomness_at(field, value, state, coarse, known)
        except ValueError:  # this value does not fit these weights
            continue
        rows.append((value, finite(ir), swapped))
    irs = [ir for _, ir, _ in rows if ir is not None]
    span = f"between {min(irs):.4g} and {max(irs):.4g}" if irs else "not defined anywhere"
    name = f"{control.label} {control.symbol}"
    return {
        "field": field,
        "label": control.label,
        "symbol": control.symbol,
        "unit": control.unit,
        "scale": control.scale,
        "x": [value for value, _, _ in rows],
        "ir": [ir for _, ir, _ in rows],
        "swapped": [swapped for _, _, swapped in rows],
        "title": f"How the randomness follows the {control.label}",
        "badge": "predicted",
        "sentence": (
            f"As {name} goes from {rows[0][0]:.4g} to {rows[-1][0]:.4g}, the expected ir lies {span}."
            if rows
            else f"No value of {name} fits these weights."
        ),
    }


def _swept(field: str, state: ExploreState, histogram: MagnitudeHistogram) -> list[Any]:
    control = control_of(field)
    low, high = control.low, control.high
    if field == "reach":  # beyond this every weight is within reach anyway
        keep = max(histogram.size - round(state.sparsity * histogram.size), 1)
        high = min(high, max(histogram.alive / keep, 1.0))
    if field == "sparsity":
        low = max(control.step, 1 - histogram.alive / histogram.size)
    number = SWEPT_RATIOS if field == "sampling_ratio" else SWEPT
    values = np.geomspace(low, high, number) if control.scale == "log" else np.linspace(low, high, number)
    if control.whole:
        return sorted({round(value) for value in values.tolist()})
    return [float(value) for value in values]


def _randomness_at(
    field: str, value: Any, state: ExploreState, histogram: MagnitudeHistogram, known: _Known
) -> tuple[float, float]:
    """Ir and swapped with one setting changed; it rules then, as its slider would."""
    allowed = RULES.get(field, (state.randomness,))
    randomness = state.randomness if state.randomness in allowed else allowed[0]
    moved = state.model_copy(update={field: value, "randomness": randomness})
    if randomness == "target_ir":  # the ir is the target wherever that can be had: no power need be searched
        least, most = ir_range(histogram, moved.sparsity, samples=moved.samples, reach=moved.reach)
        ir = min(max(state.target_ir, least), most)
        keep = histogram.size - round(moved.sparsity * histogram.size)
        return ir, ir / (1 + ir) * (histogram.size - keep) / max(keep, 1)
    draw = settle(moved, histogram)
    key = draw, moved.sparsity, moved.reach
    if key not in known:  # many ratios give one M
        curve = curve_of(moved, histogram, draw)
        known[key] = curve.expected_ir, curve.swapped
    return known[key]


@dataclasses.dataclass(frozen=True)
class _Bars:
    """Bars of a histogram: within an octave each holds equally many numbers.

    Coarse formats (bfloat16 has 128 numbers an octave) would make a comb of bars of equal width.
    """

    edges: NDArray[np.float64]
    groups: NDArray[np.int64]  # the first bin of each bar

    @classmethod
    def between(cls, low: float, high: float) -> _Bars:
        whole = low <= 0
        first, last = (int(bin_) for bin_ in bins_of(np.array([max(low, high / 32), high])))
        last = min(last, INFINITY_BIN - 2)
        width = 1 << max(math.ceil(math.log2(max(last - first, 1) / MOST_BARS)), 0)
        starts = np.arange((first - 1) // width, (last - 1) // width + 2) * width + 1
        starts = starts[starts < INFINITY_BIN]
        edges = bin_magnitudes(starts)
        if whole:
            starts, edges = np.insert(starts, 0, 1), np.insert(edges, 0, 0.0)
        return cls(edges, starts)

    def totals(self, bins: NDArray[np.int64], values: NDArray[np.floating | np.integer]) -> list[int]:
        """The sum of ``values``, given by bin, in each bar."""
        up_to = np.concatenate([[0], np.cumsum(values)])[np.searchsorted(bins, self.groups)]
        return [round(total) for total in np.diff(up_to).tolist()]


def _inset(histogram: MagnitudeHistogram) -> Table:
    """The whole distribution, in quarters of an octave, from the largest magnitude 24 octaves down."""
    quarter = 1024
    places = (histogram.bins[histogram.bins > 1] - 1) // quarter
    if not len(places):
        return {"edges": [], "counts": []}
    first, last = max(int(places[0]), int(places[-1]) - 96), int(places[-1])
    inside = places >= first
    counts = np.bincount(places[inside] - first, weights=histogram.counts[histogram.bins > 1][inside])
    starts = np.minimum(np.arange(first, last + 2) * quarter + 1, INFINITY_BIN - 1)
    return {"edges": bin_magnitudes(starts).tolist(), "counts": counts.astype(int).tolist()}


def finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
