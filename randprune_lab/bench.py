"""The tables of ``randprune bench``: what a randomized mask costs on this machine, beside what it is compared with.

Everything is measured in one process, interleaved, and reported as medians: ratios survive a noisy machine, seconds do
not. Start the process with OMP_WAIT_POLICY=PASSIVE (the command line does), or a second busy process spoils it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import psutil
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from randprune_lab.checks import check_option
from randprune_lab.config import RunConfig, controls
from randprune_lab.engine import prune
from randprune_lab.events import StageFinished
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.keepcurve import KeepCurve
from randprune_lab.processes import in_processes
from randprune_lab.sampling import candidate_generator, magnitude_mask, mask_sampler, random_mask
from randprune_lab.schedules import samples_for_ratio
from randprune_lab.training import using_threads

SHAPE = (768, 3072)  # the larger matrices of BERT-base
SPARSITY = 0.9375
SAMPLING_RATIO = 5e-5
BERT_BLOCKS = 85_000_000  # weights of BERT-base's transformer blocks
BERT_EMBEDDING = (30522, 768)  # the largest tensor of BERT-base, 23.4 million weights


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line: ``value`` in ``unit``, a name for what was measured, and what it should reach (None: for reference)."""

    name: str
    value: float
    unit: str
    target: str | None = None
    reached: bool | None = None


def speed_table(*, device: str = "cpu", repeats: int = 21, threads: int = 2) -> list[Measurement]:
    """Time masks of a 768 x 3072 matrix at sparsity 0.9375, sr = 5e-5, T = 5, no reach.

    Args:
        device: "cpu" or "cuda".
        repeats: interleaved repetitions, of which the median counts.
        threads: CPU threads of torch meanwhile.

    Raises:
        ValueError: there is no such device here.
    """
    where = bench_device(device)
    with using_threads(threads):
        seconds = _interleaved(_contestants(where), repeats, where)
        histogram_seconds = _histogram_seconds(where)
        bandwidth = _weights_per_second(where) / (SHAPE[0] * SHAPE[1])
    samples = samples_for_ratio(SAMPLING_RATIO, SHAPE[0] * SHAPE[1], SPARSITY)
    loop = samples * seconds["one torch.multinomial"]
    fast, plain = seconds["random_mask"], seconds["plain top-k mask"]
    return [
        Measurement(f"paper's loop: {samples} torch.multinomial calls, one timed", 1e3 * loop, "ms"),
        Measurement("plain mask: abs, flatten, topk, scatter", 1e3 * plain, "ms"),
        Measurement("magnitude_mask (ties by index)", 1e3 * seconds["magnitude_mask"], "ms"),
        Measurement("random_mask, first of a stage", 1e3 * fast, "ms"),
        Measurement("random_mask, next candidate", 1e3 * seconds["next candidate"], "ms"),
        Measurement("masks/s: the paper's loop", 1 / loop, "/s"),
        Measurement("masks/s: random_mask, next candidate", 1 / seconds["next candidate"], "/s"),
        Measurement("masks/s that bandwidth allows: weights read once, mask written", bandwidth, "/s"),
        _at_least("paper's loop / random_mask", loop / fast, 250),
        _at_most("random_mask / plain mask", fast / plain, 1.2, "x"),
        _at_most("next candidate / first", seconds["next candidate"] / fast, 0.5, "x"),
        _at_most("slider move: curve from a ready histogram", 1e3 * seconds["curve"], 10, "ms"),
        _at_most(f"histogram of {BERT_BLOCKS / 1e6:.0f} M weights", histogram_seconds, 2, "s"),
        _at_most("extra memory of a 23 M mask / the weight's own", _extra_memory(where), 4, "x"),
    ]


def _contestants(device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each a function of nothing that does the work once."""
    generator = candidate_generator(0, 1, 1, "bench", device)
    weight = torch.randn(SHAPE, generator=generator, device=device)
    samples = samples_for_ratio(SAMPLING_RATIO, weight.numel(), SPARSITY)
    keep = weight.numel() - round(SPARSITY * weight.numel())
    histogram = MagnitudeHistogram.of(weight)
    sampler = mask_sampler(weight, SPARSITY, samples=samples)
    chances = weight.flatten().abs().double().pow(5).float().clamp_(min=1e-30)

    def plain() -> Tensor:
        flat = weight.abs().flatten()
        mask = torch.zeros_like(flat, dtype=torch.bool)
        return mask.scatter_(0, torch.topk(flat, keep).indices, True).view_as(weight)

    return {
        "one torch.multinomial": lambda: torch.multinomial(chances, keep, generator=generator),
        "plain top-k mask": plain,
        "magnitude_mask": lambda: magnitude_mask(weight, SPARSITY),
        "random_mask": lambda: random_mask(weight, SPARSITY, samples=samples, generator=generator),
        "next candidate": lambda: sampler(generator),
        "curve": lambda: KeepCurve.of(histogram, SPARSITY, samples=samples),
    }


def _interleaved(
    contestants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each, taken in turns, after one unmeasured turn."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, work in contestants.items():
            elapsed = _seconds(work, device)
            if turn:
                taken[name].append(elapsed)
    return {name: statistics.median(times) for name, times in taken.items()}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _histogram_seconds(device: torch.device) -> float:
    weight = torch.randn(BERT_BLOCKS, device=device)
    return statistics.median(_seconds(lambda: MagnitudeHistogram.of(weight), device) for _ in range(3))


def _weights_per_second(device: torch.device) -> float:
    """Weights that can be read, with a bool written for each: of a vector that fits into no cache."""
    weight = torch.randn(BERT_BLOCKS, device=device)
    return BERT_BLOCKS / statistics.median(_seconds(lambda: weight > 0, device) for _ in range(5))


def _extra_memory(device: torch.device) -> float:
    """Peak memory of one random mask of BERT's embedding, beyond the weight itself, in units of the weight's bytes."""
    weight = torch.randn(BERT_EMBEDDING, device=device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _one_mask(weight)
        return (torch.cuda.max_memory_allocated(device) - before) / weight.nbytes
    _one_mask(weight[:1])  # what is loaded once does not count
    return extra_memory(lambda: _one_mask(weight)) / weight.nbytes


def extra_memory(work: Callable[[], object]) -> int:
    """Bytes that this process holds at the peak of ``work`` beyond what it held before; looked at every 0.5 ms."""
    process, finished = psutil.Process(), threading.Event()
    # What earlier work left with glibc would be taken first, and not be seen; other C libraries keep less at hand.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not finished.is_set():
            peak = max(peak, process.memory_info().rss)
            finished.wait(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        finished.set()
        watcher.join()
    return peak - before


def _one_mask(weight: Tensor) -> None:
    samples = samples_for_ratio(SAMPLING_RATIO, weight.numel(), SPARSITY)
    generator = candidate_generator(0, 1, 1, "bench", weight.device)
    random_mask(weight, SPARSITY, samples=samples, generator=generator)


def bench_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: it is neither cpu nor cuda, or not here.
    """
    check_option("device", name, ("cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda': no CUDA device is here. Pass cpu.")
    return torch.device(name)


def _at_most(name: str, value: float, limit: float, unit: str) -> Measurement:
    return Measurement(name, value, unit, f"<= {limit:g}", value <= limit)


def _at_least(name: str, value: float, limit: float) -> Measurement:
    return Measurement(name, value, "x", f">= {limit:g}", value >= limit)


CLAIM_STAGES = (0.5, 0.8, 0.9, 0.9375, 0.97, 0.99)  # 2x to 100x
CLAIM_CONFIG = RunConfig(stages=CLAIM_STAGES)
CLAIM_EPOCHS = (15, 150)  # a short budget, and one at which digits are trained until nothing improves
RANDOMIZED = "randomized"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One budget and sparsity: mean test accuracy of each method, and how far randomized is ahead of each other one.

    Attributes:
        epochs: of fine-tuning a stage.
        sparsity: after the stage.
        means: method -> mean accuracy over the seeds.
        differences: method -> (mean of the paired differences, half the width of their 95 % t interval).
    """

    epochs: int
    sparsity: float
    means: dict[str, float]
    differences: dict[str, tuple[float, float]]


def claims_table(
    *,
    seeds: int = 10,
    processes: int = 2,
    epochs: Sequence[int] = CLAIM_EPOCHS,
    base: RunConfig | None = None,
    tell: Callable[[int, int], object] = lambda *_: None,
) -> list[Claim]:
    """Prune digits with every method, over seeds and budgets: paired by seed, so from the same dense weights.

    ``base`` is the configuration to vary (default: the main job's, from 2x to 100x); ``tell`` hears how
    many runs are done. Runs are spread over ``processes``, each with one thread.
    """
    base = base or CLAIM_CONFIG
    jobs = {
        (budget, seed, name): config
        for budget in epochs
        for seed in range(seeds)
        for varied in [base.model_copy(update={"max_epochs": budget, "seed": seed})]
        for name, config in {RANDOMIZED: varied, **controls(varied)}.items()
    }
    found = in_processes(_accuracies, jobs, processes, tell)
    methods = [RANDOMIZED, *controls(base)]
    claims = []
    for budget in epochs:
        for stage, sparsity in enumerate(base.stages):
            by_method = {
                name: np.array([found[budget, seed, name][stage] for seed in range(seeds)]) for name in methods
            }
            ahead = {name: by_method[RANDOMIZED] - by_method[name] for name in methods[1:]}
            claims.append(
                Claim(
                    budget,
                    sparsity,
                    {name: float(values.mean()) for name, values in by_method.items()},
                    {name: mean_and_half_width(values) for name, values in ahead.items()},
                )
            )
    return claims


def _accuracies(config: RunConfig) -> list[float]:
    """Test accuracy after each stage of one run."""
    return [event.test.metric for event in prune(config) if isinstance(event, StageFinished)]


def mean_and_half_width(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t."""
    number = len(differences)
    quantile = float(scipy.stats.t.ppf(0.975, number - 1))
    return float(differences.mean()), quantile * float(differences.std(ddof=1)) / math.sqrt(number)
