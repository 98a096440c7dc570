"""Methods of pruning: what each makes of a stage. The engine's loop is the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from randprune_lab.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Method:
    """A method is a set of hooks that the engine calls.

    Attributes:
        candidates: the numbers of the masks that a stage compares; 0 is the deterministic one, all others are random.
            One alone is taken without being judged.
    """

    candidates: Callable[[RunConfig], tuple[int, ...]]


METHODS: dict[str, Method] = {
    "imp": Method(candidates=lambda _: (0,)),
    "randomized": Method(candidates=lambda config: tuple(range(config.candidates))),
    "randomized-no-selection": Method(candidates=lambda _: (1,)),
}


def planned_epochs(config: RunConfig) -> dict[str, int]:
    """The epochs that a run trains at most: of the dense network, of judging candidates, of fine-tuning."""
    candidates, stages = len(METHODS[config.method].candidates(config)), len(config.stages)
    judging = candidates * config.emep_epochs if candidates > 1 else 0
    return {"dense": config.dense_epochs, "judging": stages * judging, "tuning": stages * config.max_epochs}
