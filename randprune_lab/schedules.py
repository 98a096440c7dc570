"""How sparsity rises from stage to stage, how many masks are drawn at each, how random, and how long each is judged.

Sources: the two stage lists and the sampling ratio are of arXiv 2310.13183 (4.3, appendix); the cubic curve is of Zhu &
Gupta 2017 (arXiv 1710.01878, Eq. 1); successive halving is of Jamieson & Talwalkar 2016 (arXiv 1502.07943).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import scipy
from torch import Tensor

from randprune_lab.checks import MOST_SAMPLES, check_option, check_positive, check_sparsity, check_whole, keep_count
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve

RatioSchedule = Literal["decrease", "increase"]
RATIO_SCHEDULES: tuple[RatioSchedule, ...] = ("decrease", "increase")

STAGES: dict[str, tuple[float, ...]] = {
    "short": (0.54, 0.83, 0.91, 0.9375),
    "long": (0.54, 0.83, 0.875, 0.9, 0.92, 0.9275, 0.93, 0.935, 0.9375),
    "digits": (0.54, 0.83, 0.91, 0.9375, 0.97),  # ours: the paper's short list and one stage more, to 33x
}

# Each way: a stage looks at a factor of 16, as the paper's grid of sampling ratios does (17). A first centre that is
# wrong by as much is left behind in two stages, and with eight candidates neighbours differ by a factor of 1.6.
SPREAD = 4.0
MAX_SAMPLES = 2**20  # beyond these two, what is left to chance is narrower than a bin of the histogram
MAX_POWER = 1000.0


class OutOfReachError(ValueError):
    """No setting gives the ir asked for; ``least`` to ``most`` can be had."""

    def __init__(self, text: str, least: float, most: float) -> None:
        super().__init__(text)
        self.least, self.most = least, most


def check_stages(stages: Sequence[float]) -> tuple[float, ...]:
    """The sparsity after each stage, strictly rising, each in (0, 1).

    Raises:
        ValueError: the list is empty, does not rise, or leaves (0, 1).
    """
    rising = tuple(check_sparsity(stage) for stage in stages)
    if not rising or rising[0] == 0 or any(later <= earlier for earlier, later in itertools.pairwise(rising)):
        raise ValueError(
            f"stages = {list(stages)}: must be one or more sparsities that rise strictly, each in (0, 1). "
            f"Pass for example {list(STAGES['short'])}."
        )
    return rising


def cubic_stages(final: float, stages: int) -> tuple[float, ...]:
    """``stages`` sparsities that rise to ``final``, fast first and slowly at the end: final * (1 - (1 - t/n)**3)."""
    count = check_whole("stages", stages)
    if not 1 <= count <= 1000:
        raise ValueError(f"stages = {count}: must be at least 1 and at most 1,000. Pass for example 4.")
    top = check_sparsity(final)
    return check_stages([top * (1 - (1 - stage / count) ** 3) for stage in range(1, count + 1)])


def samples_for_ratio(sampling_ratio: float, n: int, sparsity: float, schedule: RatioSchedule = "decrease") -> int:
    """The number M of masks drawn for a tensor of ``n`` weights: max(1, int(sr * C)) (arXiv 2310.13183, Eqs. 2 and 3).

    C is the number of weights pruned ("decrease": M rises from stage to stage, so randomness falls) or kept
    ("increase"). The floor of 1 is ours: the paper's own ratios give 0 for small tensors, which would leave the mask
    undefined.

    Raises:
        ValueError: the ratio is not above 0, the sparsity not in [0, 1), the schedule unknown.
    """
    check_positive("sampling_ratio", sampling_ratio)
    check_option("schedule", schedule, RATIO_SCHEDULES)
    if check_whole("n", n) < 1:
        raise ValueError(f"n = {n}: a tensor has at least 1 weight. Pass weight.numel().")
    keep = keep_count(n, sparsity)
    draws = sampling_ratio * (n - keep if schedule == "decrease" else keep)
    if draws > MOST_SAMPLES:
        raise ValueError(f"sampling_ratio = {sampling_ratio}: gives {draws:.3g} samples, more than 2**31. Pass less.")
    return max(1, int(draws))


def samples_for_ir(
    weight_or_histogram: Tensor | MagnitudeHistogram,
    sparsity: float,
    target_ir: float,
    *,
    power: float = 5.0,
    reach: float | None = None,
) -> int:
    """The number M of draws whose expected ir is nearest ``target_ir``, as a ratio; the smaller of two as near.

    For random ties, where ir never rises with M (M = 1 and 2 are one law).

    Raises:
        OutOfReachError: the target lies outside what 1 to 2**20 draws reach; the range is named.
        ValueError: a setting is invalid.
    """
    histogram = _histogram(weight_or_histogram)

    def ir_of(samples: int) -> float:
        return KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach).expected_ir

    _check_reachable(target_ir, ir_of(MAX_SAMPLES), ir_of(1), f"samples from 1 to {MAX_SAMPLES:,}", "another power")
    few_enough = target_ir * (1 + 1e-9)  # on a plateau, rounding must not decide
    if ir_of(1) <= few_enough:
        return 1
    more, fewer = MAX_SAMPLES, 1  # ir_of(more) <= target < ir_of(fewer)
    while more - fewer > 1:
        middle = max(math.isqrt(more * fewer), fewer + 1)
        more, fewer = (middle, fewer) if ir_of(middle) <= few_enough else (more, middle)
    nearest = min((fewer, more), key=lambda samples: abs(math.log(max(ir_of(samples), _NO_RANDOMNESS) / target_ir)))
    return 1 if nearest == 2 else nearest


def power_for_ir(
    weight_or_histogram: Tensor | MagnitudeHistogram,
    sparsity: float,
    target_ir: float,
    *,
    samples: int,
    reach: float | None = None,
) -> float:
    """The power T at which ``samples`` draws have the expected ir ``target_ir``: continuous, so ir is set directly.

    For random ties.

    Raises:
        OutOfReachError: no T from 0 to 1,000 gives the target; the range is named.
        ValueError: a setting is invalid.
    """
    check_positive("target_ir", target_ir)
    histogram = _histogram(weight_or_histogram)

    @functools.cache
    def gap(power: float) -> float:
        ir = KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach).expected_ir
        return math.log(max(ir, _NO_RANDOMNESS) / target_ir)

    power = _soon_found(gap)
    if power is not None:
        return power
    least, most = ir_range(histogram, sparsity, samples=samples, reach=reach)
    _check_reachable(target_ir, least, most, f"a power from 0 to {MAX_POWER:g}", "other samples")
    for power, ir in ((0.0, most), (MAX_POWER, least)):
        if math.isclose(ir, target_ir, rel_tol=1e-12):
            return power
    return float(scipy.optimize.brentq(gap, 0.0, MAX_POWER, rtol=1e-9))


def _soon_found(gap: Callable[[float], float]) -> float | None:
    """Where ``gap``, the log of ir over its target, is 0; None if some steps of the secant method do not lead there.

    ir is nearly proportional to 1/T: on log scales the method needs about five steps.
    """

    def at(log_power: float) -> float:
        return gap(math.exp(min(max(log_power, math.log(0.01)), math.log(MAX_POWER))))

    start = math.log(5.0)
    try:
        root = scipy.optimize.newton(at, start, x1=start + at(start), tol=1e-9, maxiter=12)
        found = math.exp(root)
    except (RuntimeError, ValueError, OverflowError):  # it went astray
        return None
    return found if 0.01 <= found <= MAX_POWER and abs(at(root)) < 1e-8 else None


def ir_range(
    weight_or_histogram: Tensor | MagnitudeHistogram, sparsity: float, *, samples: int, reach: float | None = None
) -> tuple[float, float]:
    """The least and the greatest expected ir that ``power_for_ir`` can reach, at T = 1,000 and T = 0."""
    histogram = _histogram(weight_or_histogram)
    least, most = (
        KeepCurve.of(histogram, sparsity, samples=samples, power=power, reach=reach).expected_ir
        for power in (MAX_POWER, 0.0)
    )
    return least, most


def spread_targets(centre: float, candidates: Sequence[int]) -> dict[int, float]:
    """Adaptive randomness: the ir that each random candidate aims at, the lowest number at the least.

    Evenly in log between ``centre / SPREAD`` and ``centre * SPREAD``; one alone aims at the centre.
    """
    steps = max(len(candidates) - 1, 1)
    first = -1.0 if len(candidates) > 1 else 0.0
    return {number: centre * SPREAD ** (first + 2 * place / steps) for place, number in enumerate(candidates)}


def next_centre(ir: float, targets: Mapping[int, float]) -> float:
    """Where the next stage's targets lie: at the winner's ``ir``, as it was drawn, within this stage's ``targets``.

    So at the least of them when the deterministic mask won, whose ir is 0. As drawn, since what was asked for may have
    been out of reach: the targets would run away.
    """
    return min(max(ir, min(targets.values())), max(targets.values()))


def race_rounds(candidates: int, steps: int) -> list[tuple[int, int]]:
    """Successive halving: how many candidates each round trains, and at which step it ends; one pair a round.

    After a round the better half goes on, rounded up; the last two train all ``steps``. Each round ends at twice the
    step of the one before. Eight: all to a quarter of the steps, four to the half, two to the end, which costs as many
    steps as four to the end. One or two: a single round.

    Raises:
        ValueError: the first round would have no step.
    """
    fields = [candidates]
    while fields[-1] > 2:
        fields.append(math.ceil(fields[-1] / 2))
    if steps < 2 ** (len(fields) - 1):
        raise ValueError(
            f"racing with {candidates} candidates has {len(fields)} rounds, which need {2 ** (len(fields) - 1)} steps "
            f"of judging or more; there are {steps}. Pass racing=False, fewer candidates, or a longer judging "
            "(emep_epochs, emep_steps)."
        )
    return [(field, steps >> len(fields) - number) for number, field in enumerate(fields, start=1)]


_NO_RANDOMNESS = 1e-300  # stands for ir = 0 where a logarithm is taken


def _histogram(weight_or_histogram: Tensor | MagnitudeHistogram) -> MagnitudeHistogram:
    given = weight_or_histogram
    return given if isinstance(given, MagnitudeHistogram) else MagnitudeHistogram.of(given)


def _check_reachable(target_ir: float, least: float, most: float, by: str, fix: str) -> None:
    check_positive("target_ir", target_ir)
    if not least * (1 - 1e-12) <= target_ir <= most * (1 + 1e-12):
        raise OutOfReachError(
            f"target_ir = {target_ir:g}: out of reach; {by} give an ir between {least:.4g} and {most:.4g} here. "
            f"Choose a target in that range, {fix}, or another reach.",
            least,
            most,
        )
