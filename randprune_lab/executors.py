"""Where candidates are judged: in lockstep, as many at once as memory holds, or one after another; in this process."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import torch

from randprune_lab.events import Score
from randprune_lab.masks import Masks
from randprune_lab.training import Diverged, Phase, Session, train_epoch

SPARE = 0.1  # of the free memory stays free
Judged = tuple[int, Score | None, str | None]


def judge_candidates(
    session: Session, draw: Callable[[int], Masks], candidates: Sequence[int], stage: int
) -> Iterator[Judged]:
    """EMEP of each candidate: a copy of the network under its mask is trained shortly at a large rate, and scored.

    Yields the candidate, its score on the deciding split, or None and why it failed. All start from the weights that
    the model has now, and keeps. They are trained in waves of ``config.wave``, or of as many as fit, on the same
    batches in the same order; scores do not depend on how many are trained at once.
    """
    config = session.config
    left = iter(candidates)
    most = 1 if config.executor == "serial" else config.wave
    for first in left:
        wave: list[int] = []

        def members(first: int = first, wave: list[int] = wave) -> Iterator[Phase]:
            meter = _Meter(session.accelerator.device)
            for candidate in itertools.chain([first], left):
                wave.append(candidate)
                network = copy.deepcopy(session.model)
                yield Phase(session, "emep", stage, draw(candidate), lambda _: config.early_learning_rate, network)
                if len(wave) == most or not meter.one_more_fits():
                    return

        phases = train_epoch(session, "emep", stage, 0, members())
        for epoch in range(1, config.emep_epochs):
            train_epoch(session, "emep", stage, epoch, [phase for phase in phases if phase.failed is None])
        for candidate, phase in zip(wave, phases, strict=True):
            yield candidate, *_scored(phase, config.emep_epochs - 1)


def _scored(phase: Phase, last_epoch: int) -> tuple[Score | None, str | None]:
    try:
        if phase.failed is not None:
            raise phase.failed
        return phase.score(last_epoch), None
    except Diverged as error:
        return None, str(error)


class _Meter:
    """Measures what a candidate takes after its first step, when its gradients' and moments' memory has been seen."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.free = [free_memory(device)]

    def one_more_fits(self) -> bool:
        """The largest candidate so far fits once more, with something to spare."""
        self.free.append(free_memory(self.device))
        taken = max(before - after for before, after in itertools.pairwise(self.free))
        return self.free[-1] - taken > SPARE * self.free[0]


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
