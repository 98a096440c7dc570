"""A study of seconds, and its runs made in this process."""

import json
from pathlib import Path

from randprune_lab.studies import Study, expand
from randprune_lab.study_runs import STATE, STUDY, Job, make_run, run_folder


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
