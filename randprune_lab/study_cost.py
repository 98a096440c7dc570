"""What a study would cost on this machine, before it is begun: one run of each kind is timed, the others follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from randprune_lab.config import RunConfig
from randprune_lab.estimate import estimate, in_time
from randprune_lab.methods import planned_epochs
from randprune_lab.study_runs import kind_of


@dataclasses.dataclass(frozen=True)
class Cost:
    """Attributes: seconds of all runs together, one after another; ``processes`` that share them."""

    seconds: float
    processes: int

    @property
    def sentence(self) -> str:
        """In words."""
        together = in_time(self.seconds / self.processes)
        return f"About {together} with {self.processes} at a time, from timed steps of one run of each kind."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"seconds": self.seconds, "processes": self.processes, "sentence": self.sentence}


def cost(configs: Sequence[RunConfig], processes: int) -> Cost:
    """Time some steps of one run of each kind, and scale by epochs.

    Raises:
        ValueError: a run cannot be made: its data or model is not there, or does not fit.
    """
    seconds = sum(estimate(config).seconds * times for config, times in kinds(configs))
    return Cost(seconds, at_once(configs, processes))


def kinds(configs: Sequence[RunConfig]) -> list[tuple[RunConfig, float]]:
    """A run of each kind, and how many times its own epochs all runs of that kind take together."""
    first: dict[tuple[Any, ...], RunConfig] = {}
    epochs: dict[tuple[Any, ...], float] = {}
    for config in configs:
        kind = kind_of(config)
        first.setdefault(kind, config)
        epochs[kind] = epochs.get(kind, 0.0) + _epochs(config)
    return [(config, epochs[kind] / _epochs(config)) for kind, config in first.items()]


def at_once(configs: Sequence[RunConfig], processes: int) -> int:
    """No more processes than runs."""
    return min(processes, max(len(configs), 1))


def _epochs(config: RunConfig) -> float:
    return sum(planned_epochs(config).values())
