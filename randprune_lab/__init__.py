"""RandPrune Lab: randomized iterative magnitude pruning (arXiv 2310.13183) that people can see."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
}

__all__ = [
    "KeepCurve",
    "MagnitudeHistogram",
    "candidate_generator",
    "cubic_stages",
    "introduced_randomness",
    "magnitude_mask",
    "mask_sampler",
    "power_for_ir",
    "random_mask",
    "samples_for_ir",
    "samples_for_ratio",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
