"""Tiny studies for the tests: runs take a tenth of a second and are made in this process, or they are invented."""

import json
import zlib
from pathlib import Path

import numpy as np

from randprune_lab.events import (
    CandidateScored,
    EpochFinished,
    MaskChosen,
    RunFinished,
    RunStarted,
    Score,
    StageFinished,
)
from randprune_lab.studies import Study, expand, run_id
from randprune_lab.study_runs import STATE, STUDY, Job, events_of, make_run, run_folder, run_study

TINY = {"stages": [0.5, 0.9], "dense_epochs": 1, "max_epochs": 1, "max_steps_per_epoch": 2, "candidates": 3}
LINES = {"randomized": {}, "IMP": {"control": "imp-matched", "of": "randomized"}}


def study(name: str = "tiny", base=(), **settings) -> Study:
    """A study of digits: two lines, two seeds; ``base`` adds settings."""
    given = {"title": "Tiny", "lines": LINES, "seeds": 2, "x": "line"} | settings
    return Study(name=name, base=TINY | dict(base), **given)


def here(left):
    """What ``run_study`` takes as ``spread``: this process, so that no other one must start."""
    for run, config in left.items():
        yield run, events_of(config)


def made(asked: Study, parent: Path) -> Path:
    """The folder of a study whose runs are made."""
    return run_study(asked, parent=parent, spread=here)


PRUNABLE = 400
GOOD = "good"  # a line of this name is 0.2 better, and the like
LEAD = {GOOD: 0.2, "bad": -0.2}


def invented(line, config):
    """What a run might say: coarse scores, so that many are equal; some candidates fail; a race drops one."""
    generator = np.random.default_rng(zlib.crc32(run_id(config).encode()))

    def score(lead=0.0):
        return Score(float(generator.integers(6, 12)) / 20 + lead, float(generator.integers(1, 4)))

    yield RunStarted(config.model_dump(mode="json"), {"a": 300, "b": 100}, 410, "cpu", "2", False, "matthews")
    for epoch in range(config.dense_epochs):
        yield EpochFinished("dense", 0, epoch + 1, 0.5, 1e-3, score())
    for stage, sparsity in enumerate(config.stages, start=1):
        scored = []
        for candidate in range(config.candidates if config.method == "randomized" else 0):
            failed = candidate > 1 and generator.random() < 0.2
            steps = 3 if config.racing and candidate == config.candidates - 1 else 0
            ir = float(generator.random()) if candidate else 0.0
            selection = None if failed else score(2.0 * bool(steps))  # what a race drops looked best
            scored.append(
                CandidateScored(
                    stage, candidate, selection, ir, ir / 2, "loss" if failed else None, 0 if failed else steps
                )
            )
        yield from scored
        winner = int(generator.integers(0, 2)) if scored else int(config.method == "randomized-no-selection")
        ir = scored[winner].ir if scored else 0.25 * winner
        kept = PRUNABLE - round(sparsity * PRUNABLE)
        yield MaskChosen(stage, winner, kept, ir, ir / 2, {})
        for epoch in range(config.max_epochs):
            yield EpochFinished("fine-tuning", stage, epoch + 1, 0.5, 1e-3, score())
        yield StageFinished(stage, sparsity, kept, score(), score(LEAD.get(line, 0.0)))
    yield RunFinished(config.stages[-1], score())


def pretend(asked, parent, but=()):
    """Runs that were never made, on disk as if they had been; those of the lines ``but`` are not finished."""
    lines = {}
    for run in expand(asked):
        lines.setdefault(run.id, run.line)

    def spread(left):
        for run, config in left.items():
            yield run, "not made" if lines[run] in but else list(invented(lines[run], config))

    return run_study(asked, parent=parent, spread=spread)


def tiny_study(**changes) -> Study:
    settings = {
        "name": "tiny",
        "title": "Does judging pay?",
        "question": "Is the best of two masks better than more training?",
        "seeds": [0, 1],
        "x": "sparsity",
        "base": {"stages": [0.5, 0.8], "dense_epochs": 1, "max_epochs": 1, "candidates": 2},
        "lines": {"judged": {"method": "randomized"}, "IMP": {"control": "imp-matched", "of": "judged"}},
        "claims": [{"says": "Judging pays.", "source": "nobody", "above": "judged", "below": "IMP"}],
    }
    return Study(**settings | changes)


def make(study: Study, parent: Path, *, most: int | None = None) -> Path:
    """What ``run_study`` leaves behind after ``most`` runs, made without processes, which take seconds to start."""
    plan = {planned.id: planned.config for planned in expand(study)}
    made = list(plan.items())[:most]
    for run, config in made:
        assert make_run(Job(config, run_folder(parent, run)))[0] == ""
    folder = parent / study.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STUDY).write_text(study.model_dump_json(indent=2))
    write_state(folder, done=len(made), of=len(plan), seconds=dict.fromkeys(dict(made), 2.0))
    return folder


def write_state(folder: Path, **state) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE).write_text(json.dumps(state))
