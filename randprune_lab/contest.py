"""Every method beside every other one, under one budget: the table of ``randprune methods``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from randprune_lab.bench import mean_and_half_width
from randprune_lab.checks import check_option
from randprune_lab.config import RunConfig, preset
from randprune_lab.engine import prune
from randprune_lab.events import StageFinished, Warned
from randprune_lab.learned import COLLAPSED
from randprune_lab.processes import in_processes
from randprune_lab.training import Diverged

TOST = {"label_smoothing": 0.1, "soft_activations": True, "soft_skips": True}
ERK = {"scope": "layer", "densities": "erk"}  # as RigL and SET are published
DENSE, MAGNITUDE, CHOSEN = "dense", "magnitude", "randomized + MCSS"
# What each row changes in the common configuration, which prunes once, after dense training, in global scope.
ROWS: dict[str, dict[str, Any]] = {
    DENSE: {"method": "imp"},
    MAGNITUDE: {"method": "imp"},
    "magnitude + ToST": {"method": "imp", **TOST},
    "learned mask": {"method": "learned-mask"},
    "learned mask + ToST": {"method": "learned-mask", **TOST},
    "ZerO": {"method": "imp", "initialization": "zero"},
    "ZerO + ToST": {"method": "imp", "initialization": "zero", **TOST},
    "ZerO + learned mask": {"method": "learned-mask", "initialization": "zero"},
    "ZerO + learned mask + ToST": {"method": "learned-mask", "initialization": "zero", **TOST},
    "SNIP": {"method": "snip"},
    "GraSP": {"method": "grasp"},
    "SynFlow": {"method": "synflow"},
    "random": {"method": "random"},
    "SET": {"method": "set", **ERK},
    "RigL": {"method": "rigl", **ERK},
    CHOSEN: {"method": "randomized", "candidates": 4},
}
# Task -> what trains, and for how many epochs: dense, and under the mask.
TASKS: dict[str, dict[str, Any]] = {
    "digits": {"dense_epochs": 30, "max_epochs": 45},
    "mnist": {"dense_epochs": 6, "max_epochs": 8},
    "cifar10": {"dense_epochs": 60, "max_epochs": 100},
}
DENSITIES = (0.1, 0.03, 0.01)
NOTHING = 1e-9  # a sparsity at which no weight is removed


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell of the table.

    Attributes:
        row: the method; ``density``: the share of the weights kept (1: dense).
        values: test accuracy by seed; those that diverged are left out.
        mean, half: their mean and half the width of its 95 % t interval; None where it has none.
        ahead: of magnitude, paired by seed: mean and half width; None where there is nothing to compare.
        diverged, collapsed: runs whose loss became infinite, and runs in which a learned mask gave up a tensor.
        seconds: CPU time of a run, the mean.
        refused: why the model or the data cannot take this row; empty: they can.
    """

    row: str
    density: float
    values: tuple[float, ...]
    mean: float | None
    half: float | None
    ahead: tuple[float, float] | None
    diverged: int
    collapsed: int
    seconds: float
    refused: str = ""


def contest_base(task: str, **changes: Any) -> RunConfig:
    """What all rows share: no distillation, one pruning, global scope; ``changes`` go to RunConfig.

    Raises:
        ValueError: there is no such task, or a setting will not do.
    """
    check_option("task", task, TASKS)
    common = {"task": task, "method": "imp", "logit_weight": 0.0, "scope": "global", "stages": (0.9,)}
    return RunConfig(**{**preset(None, task=task), **TASKS[task], **common, **changes})


def row_config(base: RunConfig, row: str, density: float, seed: int) -> RunConfig:
    """The run of one row. Candidates that are judged are paid for with epochs of fine-tuning.

    Raises:
        ValueError: the budget is too small for the candidates.
    """
    # The dense network goes through the same two phases, by the same plan of learning rates; so little is nothing.
    changes = {**ROWS[row], "stages": (NOTHING if row == DENSE else 1 - density,), "seed": seed}
    if row == CHOSEN:
        changes["max_epochs"] = base.max_epochs - changes["candidates"] * base.emep_epochs
        if changes["max_epochs"] < 1:
            raise ValueError(
                f"max_epochs = {base.max_epochs}: judging {changes['candidates']} candidates takes as many epochs of "
                f"it, and one must be left. Pass {changes['candidates'] * base.emep_epochs + 1} or more."
            )
    return RunConfig(**{**base.model_dump(), **changes})


def contest(
    base: RunConfig,
    *,
    rows: Sequence[str] = tuple(ROWS),
    densities: Sequence[float] = DENSITIES,
    seeds: int = 3,
    processes: int = 2,
    tell: Callable[[int, int], object] = lambda *_: None,
) -> list[Entry]:
    """Run every row at every density with every seed; ``tell`` hears how many runs are done.

    Runs are spread over ``processes``, each with ``base.threads`` threads.

    Raises:
        ValueError: there is no such row, or not one run can be made.
    """
    for row in rows:
        check_option("row", row, ROWS)
    jobs = {
        (row, density, seed): row_config(base, row, density if row != DENSE else densities[0], seed)
        for row in rows
        for density in (densities if row != DENSE else (1.0,))
        for seed in range(seeds)
    }
    found = in_processes(_run, jobs, processes, tell)
    if all(result.refused for result in found.values()):
        raise ValueError(next(iter(found.values())).refused)
    return [_entry(row, density, found, seeds) for row in rows for density in (densities if row != DENSE else (1.0,))]


@dataclasses.dataclass(frozen=True)
class _Result:
    accuracy: float | None
    collapsed: bool
    seconds: float
    refused: str = ""


def _run(config: RunConfig) -> _Result:
    """One run."""
    begun, accuracy, collapsed, refused = time.process_time(), None, False, ""
    try:
        for event in prune(config):
            collapsed |= isinstance(event, Warned) and COLLAPSED in event.text
            if isinstance(event, StageFinished):
                accuracy = event.test.metric
                break  # its last stage: the network would be scored once more
    except Diverged:
        pass
    except ValueError as error:
        refused = str(error)
    return _Result(accuracy, collapsed, time.process_time() - begun, refused)


def _entry(row: str, density: float, found: Mapping[tuple[str, float, int], _Result], seeds: int) -> Entry:
    ours = [found[row, density, seed] for seed in range(seeds)]
    values = tuple(result.accuracy for result in ours if result.accuracy is not None)
    mean, half = _interval(values)
    pairs = [
        (result.accuracy, found[MAGNITUDE, density, seed].accuracy)
        for seed, result in enumerate(ours)
        if row != MAGNITUDE and (MAGNITUDE, density, seed) in found
    ]
    differences = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    ahead = mean_and_half_width(np.array(differences)) if len(differences) > 1 else None
    seconds = sum(result.seconds for result in ours) / len(ours)
    return Entry(
        row,
        density,
        values,
        mean,
        half,
        ahead,
        sum(result.accuracy is None and not result.refused for result in ours),
        sum(result.collapsed for result in ours),
        seconds,
        ours[0].refused,
    )


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return (values[0], None) if values else (None, None)
    return mean_and_half_width(np.array(values))
