"""RandPrune Lab: randomized iterative magnitude pruning (arXiv 2310.13183) that people can see."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from randprune_lab.config import RunConfig, controls
    from randprune_lab.console import compare, history, launch
    from randprune_lab.engine import prune
    from randprune_lab.explorer import Explorer
    from randprune_lab.histogram import MagnitudeHistogram
    from randprune_lab.keepcurve import KeepCurve
    from randprune_lab.sampling import (
        candidate_generator,
        introduced_randomness,
        magnitude_mask,
        mask_sampler,
        random_mask,
    )
    from randprune_lab.schedules import cubic_stages, power_for_ir, samples_for_ir, samples_for_ratio
    from randprune_lab.sources import open_source
    from randprune_lab.splits import Split, Task
    from randprune_lab.state import ExploreState
    from randprune_lab.store import last_checkpoint, record, story
    from randprune_lab.study_handle import study
    from randprune_lab.widgets import explore

# Loaded on first use: the command line sets OMP_WAIT_POLICY before torch is imported, and ``--help`` need not wait.
_ROOMS = {
    "KeepCurve": "keepcurve",
    "MagnitudeHistogram": "histogram",
    "candidate_generator": "sampling",
    "introduced_randomness": "sampling",
    "magnitude_mask": "sampling",
    "mask_sampler": "sampling",
    "random_mask": "sampling",
    "cubic_stages": "schedules",
    "power_for_ir": "schedules",
    "samples_for_ir": "schedules",
    "samples_for_ratio": "schedules",
    "RunConfig": "config",
    "controls": "config",
    "ExploreState": "state",
    "Explorer": "explorer",
    "open_source": "sources",
    "explore": "widgets",
    "launch": "console",
    "history": "console",
    "compare": "console",
    "prune": "engine",
    "Split": "splits",
    "Task": "splits",
    "record": "store",
    "last_checkpoint": "store",
    "story": "store",
    "study": "study_handle",
}

__all__ = [
    "ExploreState",
    "Explorer",
    "KeepCurve",
    "MagnitudeHistogram",
    "RunConfig",
    "Split",
    "Task",
    "candidate_generator",
    "compare",
    "controls",
    "cubic_stages",
    "explore",
    "history",
    "introduced_randomness",
    "last_checkpoint",
    "launch",
    "magnitude_mask",
    "mask_sampler",
    "open_source",
    "power_for_ir",
    "prune",
    "random_mask",
    "record",
    "samples_for_ir",
    "samples_for_ratio",
    "story",
    "study",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
