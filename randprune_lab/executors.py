"""Where candidates are judged: in lockstep, as many at once as memory holds, or one after another; in this process."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import psutil
import torch
from torch import Tensor

from randprune_lab import ranks
from randprune_lab.events import Score
from randprune_lab.masks import Masks
from randprune_lab.training import Diverged, Phase, Session, train_steps

SPARE = 0.15  # of the free memory stays free: later batches may be longer than those that were measured
# A candidate between two rounds, on the CPU: its network ("model.NAME") and its optimizer ("optimizer.NAME.KEY").
State = dict[str, Tensor]
Judged = tuple[int, Score | None, str | None, int]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A candidate after some steps of EMEP.

    Attributes:
        number: the candidate's; 0 is the deterministic mask.
        score: on the deciding split; None when it failed.
        failed: why.
        state: what to go on with; empty unless asked for.
    """

    number: int
    score: Score | None
    failed: str | None
    state: State


class Train(Protocol):
    """What an executor must offer: ``train_candidates``, here or elsewhere."""

    def __call__(
        self,
        session: Session,
        draw: Callable[[int], Masks],
        numbers: Sequence[int],
        stage: int,
        steps: range,
        *,
        states: Mapping[int, State],
        keep: bool,
    ) -> Iterator[Trained]:
        """One ``Trained`` for each of ``numbers``, in their order."""
        ...


def train_candidates(
    session: Session,
    draw: Callable[[int], Masks],
    numbers: Sequence[int],
    stage: int,
    steps: range,
    *,
    states: Mapping[int, State] = MappingProxyType({}),
    keep: bool = False,
) -> Iterator[Trained]:
    """EMEP, or a part of it: a copy of the network under each candidate's mask is trained shortly, and scored.

    They are trained in waves of ``config.wave``, or of as many as fit, on the same batches in the same order. What one
    comes to depends neither on the others nor on how its steps are divided among calls.

    Args:
        session: has the weights from which all start, and keeps them.
        draw: number of the candidate -> its masks.
        numbers: the candidates.
        stage: from 1.
        steps: of EMEP, counted over all ``emep_epochs``; may begin or end within an epoch.
        states: what those go on with that were trained before.
        keep: give their states, to go on with.

    Yields:
        One for each of ``numbers``, in their order.
    """
    left = deque(numbers)
    while left:
        yield from _wave(session, draw, left, stage, steps, states, keep=keep)


def judge_candidates(
    session: Session,
    draw: Callable[[int], Masks],
    numbers: Sequence[int],
    stage: int,
    train: Train = train_candidates,
) -> Iterator[Judged]:
    """Judge candidates by EMEP; in a race (``config.racing``) only those that are left after each round train on.

    ``numbers`` may leave out some that were judged before: the others come to the same, since what was dropped was
    worse than whatever stays. ``train`` says where the work is done.

    Yields:
        Each candidate when its fate is known: its number, its score, or None and why it failed, and ``steps`` as in
        ``CandidateScored``.
    """
    steps = session.steps_of("emep") * session.config.emep_epochs
    states: dict[int, State] = {}
    field, start = list(numbers), 0
    for (_, end), (room, _) in itertools.pairwise(session.config.rounds(steps)):
        trained = train(session, draw, field, stage, range(start, end), states=states, keep=True)
        states, gone = _halved(trained, room)
        for each in gone:
            yield each.number, each.score, each.failed, 0 if each.failed else end
        field, start = list(states), end
    for each in train(session, draw, field, stage, range(start, steps), states=states, keep=False):
        yield each.number, each.score, each.failed, 0


def standing(score: Score, candidate: int) -> tuple[float, float, int]:
    """The larger, the better: metric; equal: lower loss; still equal: the earlier, so that the plain mask wins."""
    return score.metric, -score.loss, -candidate


def _halved(trained: Iterable[Trained], room: int) -> tuple[dict[int, State], list[Trained]]:
    """The states of those that stay where there is ``room``, the plain mask and the best others; and those that go.

    A state is dropped as soon as ``room`` better ones are known: each is a network and its optimizer.
    """
    field: list[Trained] = []
    scores: dict[int, Score] = {}
    states: dict[int, State] = {}
    for each in trained:
        field.append(dataclasses.replace(each, state={}))
        if each.score is not None:
            scores[each.number], states[each.number] = each.score, each.state
        if len(states) > room:
            del states[min(states, key=lambda number: (number == 0, standing(scores[number], number)))]
    return states, [each for each in field if each.number not in states]


def _wave(
    session: Session,
    draw: Callable[[int], Masks],
    left: deque[int],
    stage: int,
    steps: range,
    states: Mapping[int, State],
    *,
    keep: bool,
) -> list[Trained]:
    """Train the first of ``left``, and take them away; what they were trained with is gone when this returns."""
    config = session.config
    most = 1 if config.executor == "serial" else config.wave
    taken: list[int] = []

    def members() -> Iterator[Phase]:
        meter = _Meter(session.accelerator.device)
        while left:
            taken.append(left.popleft())
            yield _phase(session, draw(taken[-1]), stage, states.get(taken[-1], {}))
            if len(taken) == most or not meter.one_more_fits():
                return

    phases = train_steps(session, "emep", stage, steps, members())
    return [_trained(number, phase, steps, keep=keep) for number, phase in zip(taken, phases, strict=True)]


def _phase(session: Session, masks: Masks, stage: int, state: State) -> Phase:
    """A copy of the session's network that begins, or goes on from ``state``."""

    def part(prefix: str) -> State:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    network = copy.deepcopy(session.model)
    if state:
        network.load_state_dict(part("model."))
    phase = Phase(session, "emep", stage, masks, lambda _: session.config.early_learning_rate, network)
    phase.load_state(part("optimizer."))
    return phase


def _trained(number: int, phase: Phase, steps: range, *, keep: bool) -> Trained:
    if phase.failed is not None:
        return Trained(number, None, phase.failed, {})
    try:
        score = phase.score(steps[-1])
    except Diverged as error:
        return Trained(number, None, str(error), {})
    parts = {"model": phase.model.state_dict(), "optimizer": phase.state()} if keep else {}
    state = {f"{part}.{name}": tensor.cpu() for part, named in parts.items() for name, tensor in named.items()}
    return Trained(number, score, None, state)


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
        fits = self.free[-1] - for_good - in_passing(self.device) > SPARE * self.free[0]
        return ranks.all_agree(fits, self.device)


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
