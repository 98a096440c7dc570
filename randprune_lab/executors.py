"""Where candidates are judged: in lockstep, as many at once as memory holds, or one after another; in this process."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import torch

from randprune_lab.events import Score
from randprune_lab.masks import Masks
from randprune_lab.training import Diverged, Phase, Session, train_epoch

SPARE = 0.15  # of the free memory stays free: later batches may be longer than those that were measured
Judged = tuple[int, Score | None, str | None]


def judge_candidates(
    session: Session, draw: Callable[[int], Masks], candidates: Sequence[int], stage: int
) -> Iterator[Judged]:
    """EMEP of each candidate: a copy of the network under its mask is trained shortly at a large rate, and scored.

    Yields the candidate, its score on the deciding split, or None and why it failed. All start from the weights that
    the model has now, and keeps. They are trained in waves of ``config.wave``, or of as many as fit, on the same
    batches in the same order; scores do not depend on how many are trained at once.
    """
    left = deque(candidates)
    while left:
        yield from _wave(session, draw, left, stage)


def _wave(session: Session, draw: Callable[[int], Masks], left: deque[int], stage: int) -> list[Judged]:
    """Judge the first of ``left``, and take them away; what they were trained with is gone when this returns."""
    config = session.config
    most = 1 if config.executor == "serial" else config.wave
    taken: list[int] = []

    def members() -> Iterator[Phase]:
        meter = _Meter(session.accelerator.device)
        while left:
            taken.append(left.popleft())
            network = copy.deepcopy(session.model)
            yield Phase(session, "emep", stage, draw(taken[-1]), lambda _: config.early_learning_rate, network)
            if len(taken) == most or not meter.one_more_fits():
                return

    phases = train_epoch(session, "emep", stage, 0, members())
    for epoch in range(1, config.emep_epochs):
        train_epoch(session, "emep", stage, epoch, [phase for phase in phases if phase.failed is None])
    return [(number, *_scored(phase, config.emep_epochs - 1)) for number, phase in zip(taken, phases, strict=True)]


def _scored(phase: Phase, last_epoch: int) -> tuple[Score | None, str | None]:
    if phase.failed is not None:
        return None, phase.failed
    try:
        return phase.score(last_epoch), None
    except Diverged as error:
        return None, str(error)


class _Meter:
    """Measures, after a candidate's first step, what it takes for good and what a step takes in passing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        forget_peak(device)
        self.free = [free_memory(device)]

    def one_more_fits(self) -> bool:
        """The largest candidate so far fits once more, and a step beside it, with something to spare."""
        self.free.append(free_memory(self.device))
        for_good = max(before - after for before, after in itertools.pairwise(self.free))
        return self.free[-1] - for_good - in_passing(self.device) > SPARE * self.free[0]


def forget_peak(device: torch.device) -> None:
    """Measure the peak of memory from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux alone can
            Path("/proc/self/clear_refs").write_text("5")


def in_passing(device: torch.device) -> int:
    """Bytes that were in use for a moment (gradients, activations) beyond those in use now; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, now = (1024 * int(status[name].split()[0]) for name in ("VmHWM", "VmRSS"))
    except (OSError, KeyError, ValueError):
        return 0
    return peak - now


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had; on the CPU within the limits of a container (cgroup v2), too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(cached.get("inactive_file", 0))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return available
    return min(available, max(limit - used, 0))
