"""How costs grow: a mask's time and memory with weights, candidates with workers, a study's time with its runs.

``randprune bench --scaling``. Masks are timed with one thread, in processor time: on a quiet machine it is what a clock
shows, and a busy one does not lengthen it. (On a GPU a clock is all there is; and candidates per second of several
processes say something on a quiet machine only.) What is said of larger models than were measured is an extrapolation.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from randprune_lab.bench import SAMPLING_RATIO, SPARSITY, extra_memory
from randprune_lab.config import RunConfig
from randprune_lab.engine import prune
from randprune_lab.events import CandidateScored
from randprune_lab.executors import free_memory
from randprune_lab.processes import in_processes
from randprune_lab.sampling import candidate_generator, mask_sampler
from randprune_lab.schedules import samples_for_ratio
from randprune_lab.studies import Study
from randprune_lab.study_runs import run_study
from randprune_lab.training import using_threads

SIZES = tuple(round(10 ** (half / 2)) for half in range(10, 19))  # 10^5 to 10^9, two a decade
LARGEST = 10**8  # weights of one tensor; more come as several tensors, one after another
MEASURED_OFTEN = 3 * 10**8  # weights that are masked in all repeats of a size together, about
SMALLEST_SEEN = 10**6  # below this many weights, memory that is taken and given back in pages says little
NEEDED = 6  # times its own bytes: what one tensor and its first mask take, roughly
FIT_FROM = 10**6  # below, the fixed milliseconds of the closed form hide the slope
LARGER = (7 * 10**9, 70 * 10**9)
WORKERS = (1, 2, 4)
CONFIDENCE = 0.95
# Candidates are judged one after another, so that each is heard of when it is done.
JUDGING = RunConfig(stages=(0.9,), candidates=200, dense_epochs=1, max_epochs=1, executor="serial", device="cpu")
RUNS = (2, 4, 8, 16, 32)
STUDIED: dict[str, Any] = {"stages": [0.8, 0.9375], "dense_epochs": 10, "max_epochs": 5, "candidates": 4}
FIRST, NEXT = "first mask", "next candidate"


@dataclasses.dataclass(frozen=True)
class Scale:
    """What random masks of ``weights`` weights in ``tensors`` tensors of one size cost, float32.

    Attributes:
        first: seconds (of the processor, or on a GPU of the clock) for the first mask, with all that its stage shares.
        following: seconds for each further candidate.
        memory: bytes at the peak beyond the weights of the one tensor that is in memory; None: too few to tell.
        repeats: of which seconds are the median.
    """

    weights: int
    tensors: int
    first: float
    following: float
    memory: int | None
    repeats: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """The straight line through log seconds against log weights: 1 is proportional.

    Attributes:
        slope, low, high: the exponent and its 95 % interval (least squares, Student's t).
        seconds_per_billion: at the largest size measured, scaled to 10**9 weights.
        extrapolated: weights -> seconds, in proportion to the largest size measured: a bound where ``bound`` says so.
    """

    slope: float
    low: float
    high: float
    seconds_per_billion: float
    extrapolated: dict[int, float]

    @property
    def bound(self) -> str:
        """What proportion gives where the interval excludes it: "at most" or "at least" so much; else ""."""
        return "at most" if self.high < 1 else "at least" if self.low > 1 else ""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Candidates of the digits' network judged per second (EMEP, one epoch each) by ``workers`` processes at a time."""

    workers: int
    per_second: float


@dataclasses.dataclass(frozen=True)
class StudyTime:
    """The clock's ``seconds`` of a study of so many ``runs``."""

    runs: int
    seconds: float


def scaling_table(
    *,
    sizes: Sequence[int] = SIZES,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    tell: Callable[[int, int], object] = lambda *_: None,
) -> tuple[list[Scale], list[int]]:
    """Measure random masks (fast sampler, sparsity 0.9375, sr = 5e-5, T = 5, no reach) of normal weights.

    Args:
        sizes: numbers of weights; above 10**8 as several tensors, one after another, as a model's layers come.
        repeats: of the small sizes; of the large ones fewer, one at least.
        device: memory is measured on the CPU only, from 10**6 weights on.
        tell: hears how many of how many sizes are done.

    Returns:
        A row for each size, and the sizes that did not fit into memory.
    """
    rows, left_out = [], []
    with using_threads(1):
        for done, size in enumerate(sizes):
            tell(done, len(sizes))
            if NEEDED * 4 * min(size, LARGEST) > free_memory(torch.device(device)):
                left_out.append(size)
            else:
                rows.append(_measured(size, max(1, min(repeats, MEASURED_OFTEN // size)), torch.device(device)))
    tell(len(sizes), len(sizes))
    return rows, left_out


def _measured(size: int, repeats: int, device: torch.device) -> Scale:
    tensors = math.ceil(size / LARGEST)
    _both(torch.randn(2000, device=device), device)  # what is loaded once does not count
    memory = None
    if size >= SMALLEST_SEEN and device.type == "cpu":  # before all repeats: what they give back stays at hand
        weight = torch.randn(size // tensors)
        memory = extra_memory(lambda: _both(weight, device))
        del weight
    times = []
    for _ in range(repeats):
        each = [_both(torch.randn(size // tensors, device=device), device) for _ in range(tensors)]
        times.append([sum(seconds) for seconds in zip(*each, strict=True)])
    first, following = (statistics.median(column) for column in zip(*times, strict=True))
    return Scale(size, tensors, first, following, memory, repeats)


def _both(weight: Tensor, device: torch.device) -> tuple[float, float]:
    """Seconds of the first random mask of a tensor, and of the next."""
    samples = samples_for_ratio(SAMPLING_RATIO, weight.numel(), SPARSITY)
    generator = candidate_generator(0, 1, 1, "scaling", device)
    ends = [_now(device)]
    sampler = mask_sampler(weight, SPARSITY, samples=samples)
    for _ in range(2):
        sampler(generator)
        ends.append(_now(device))
    return ends[1] - ends[0], ends[2] - ends[1]


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def fit(weights: Sequence[int], seconds: Sequence[float]) -> Fit:
    """The line through the sizes from 10**6 on.

    Raises:
        ValueError: fewer than three such sizes were measured.
    """
    points = [(size, time_) for size, time_ in zip(weights, seconds, strict=True) if size >= FIT_FROM]
    if len(points) < 3:
        raise ValueError(f"{len(points)} sizes from {FIT_FROM:,} weights on: a line with an interval takes three.")
    line = scipy.stats.linregress(*np.log10(np.array(points, dtype=np.float64)).T)
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 2)) * float(line.stderr)
    size, taken = max(points)
    slope = float(line.slope)
    extrapolated = {larger: taken * larger / size for larger in LARGER}
    return Fit(slope, slope - half, slope + half, taken * 1e9 / size, extrapolated)


def throughput(
    *,
    workers: Sequence[int] = WORKERS,
    base: RunConfig = JUDGING,
    tell: Callable[[int, int], object] = lambda *_: None,
) -> list[Throughput]:
    """Candidates judged per second while so many processes, with one thread each, judge at the same time.

    Counted while all of them are at it, so that starting them does not count. ``tell``: how many counts are done.
    """
    rows = []
    for done, number in enumerate(workers):
        tell(done, len(workers))
        jobs = {seed: base.model_copy(update={"seed": seed}) for seed in range(number)}
        rows.append(Throughput(number, rate(in_processes(_judged_at, jobs, number, lambda *_: None))))
    tell(len(workers), len(workers))
    return rows


def _judged_at(config: RunConfig) -> list[float]:
    """When each candidate was done; the clock is one for all processes of a machine."""
    events: Iterator[object] = prune(config)
    return [time.monotonic() for event in events if isinstance(event, CandidateScored)]


def rate(done_at: Mapping[int, Sequence[float]]) -> float:
    """Events per second from when the last worker has had its first, to when the first worker has had its last.

    NaN where there is no such time: then each needs more of them.
    """
    start, end = max(min(times) for times in done_at.values()), min(max(times) for times in done_at.values())
    if end <= start:
        return math.nan
    return sum(start < moment <= end for times in done_at.values() for moment in times) / (end - start)


def study_times(
    *,
    counts: Sequence[int] = RUNS,
    processes: int = 2,
    tell: Callable[[int, int], object] = lambda *_: None,
) -> list[StudyTime]:
    """The clock's seconds of a small study of so many runs of the digits' network, starting its processes included."""
    rows = []
    for done, runs in enumerate(counts):
        tell(done, len(counts))
        study = Study(name="scaling", title="scaling", base=STUDIED, lines={"randomized": {}}, seeds=list(range(runs)))
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            run_study(study, parent=Path(folder), processes=processes)
            rows.append(StudyTime(runs, time.monotonic() - begun))
    tell(len(counts), len(counts))
    return rows
