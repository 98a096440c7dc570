"""Panel 8: several runs side by side, as plain tables with a sentence each. Works from what lies on disk alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from randprune_lab import charts, figures, pictures, store
from randprune_lab.card import shown_name
from randprune_lab.config import FREE, OBJECT, RunConfig
from randprune_lab.events import RunFinished, RunStarted
from randprune_lab.journal import read_journal
from randprune_lab.metrics import METRICS

Row = dict[str, Any]
LABELS = ("seed", "group", "control", "keep_stages", *FREE)  # in these, runs of one line may differ
NOT_SHOWN = ("group", "control")


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is compared of a run. ``label``: of the line that it belongs to, once that is known."""

    folder: Path
    config: RunConfig
    table: list[Row]
    metric: str
    finished: bool
    label: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def what(self) -> str:
        return self.config.control or self.config.method

    @property
    def data(self) -> str:
        """The data set, where the task does not bring its own."""
        brings = self.config.task != "text" and not self.config.task.startswith("glue/")
        return "" if brings else self.config.dataset

    def stages(self) -> dict[float, int]:
        """The stage that is pruned to each sparsity."""
        return {sparsity: stage for stage, sparsity in enumerate(self.config.stages, start=1)}


def compare_view(folders: Sequence[str | Path]) -> Row:
    """Runs side by side; it never raises for what a folder holds, ``damaged`` says it.

    Returns:
        runs: name, label (of its line), seed, finished.
        damaged: name and message of those that cannot be read.
        problem: why their scores do not compare, a sentence; "": they do.
        metric: what the scores are, as people read it.
        scores: rows and sentence, as ``figures.accuracy_rows`` gives them; runs that differ only in their seed are one
            line.
        differences: rows and sentence, as ``figures.difference_rows`` gives them.
        settings: rows (setting, and its value by name of the run) and sentence; those that differ only.
        agreement: for each sparsity that two runs share: sparsity, labels, matrix (share of the kept weights that both
            keep), missing (names of runs that have not kept their mask), sentence; and a sentence on all.
    """
    runs, damaged = _read(folders)
    runs = _labelled(sorted(runs, key=lambda run: bool(run.config.control)))  # differences are told against controls
    problem = _problem(runs)
    metric = METRICS.get(runs[0].metric, runs[0].metric) if runs else "accuracy"
    lines: dict[str, dict[int, list[Row]]] = {}
    for run in runs:
        lines.setdefault(run.label, {})[run.config.seed] = run.table
    comparable = {} if problem else lines
    scores = figures.accuracy_rows({label: list(seeds.values()) for label, seeds in comparable.items()})
    differences = figures.difference_rows(comparable)
    return {
        "runs": [
            {"name": run.name, "label": run.label, "seed": run.config.seed, "finished": run.finished} for run in runs
        ],
        "damaged": damaged,
        "problem": problem,
        "metric": metric,
        "scores": {"rows": scores, "sentence": problem or charts.accuracy_sentence(scores, None, metric)},
        "differences": {"rows": differences, "sentence": problem or _differences_sentence(differences, len(lines))},
        "settings": _settings(runs),
        "agreement": _agreement(runs),
    }


def _read(folders: Iterable[str | Path]) -> tuple[list[_Run], list[Row]]:
    """Each folder once, and what is wrong with those that cannot be read."""
    runs: list[_Run] = []
    damaged: list[Row] = []
    for folder in dict.fromkeys(map(Path, folders)):
        try:
            config, journal = store.read_config(folder), read_journal(folder)
            started = journal.newest(RunStarted)
            table = [_checked(row) for row in store.stage_rows(journal.events)]
            finished = journal.newest(RunFinished) is not None
            runs.append(_Run(folder, config, table, started.metric if started else "accuracy", finished))
            message = journal.damage
        except Exception as error:  # the files of a damaged run may hold anything: the others are shown all the same
            message = " ".join(str(error).split())[:400] or repr(error)
        if message:
            damaged.append({"name": folder.name, "message": message})
    return runs, damaged


def _checked(row: Row) -> Row:
    return row | {name: float(row[name]) for name in ("sparsity", "compression", "score")}


def _labelled(runs: list[_Run]) -> list[_Run]:
    """The runs with the name of their line: the method, and what tells it from other lines of that method."""
    lines: dict[str, list[_Run]] = {}
    for run in runs:
        same = lines.setdefault(run.config.model_dump_json(exclude=set(LABELS)), [])
        if run.config.own and run.config.seed in _seeds(same):
            same = lines[run.folder.as_posix()] = []  # "object" is not always the same one
        same.append(run)
    firsts = [own[0] for own in lines.values()]
    labels: list[str] = []
    for first in firsts:
        alike = [other.config.model_dump() for other in firsts if other.what == first.what]
        own = first.config.model_dump(exclude=set(LABELS))
        telling = [f"{name} {_value(value)}" for name, value in own.items() if any(o[name] != value for o in alike)]
        told = ", ".join([*telling[:3], *["..."] * (len(telling) > 3)])
        label = f"{first.what} ({told})" if told else first.what
        labels.append(label if label not in labels else f"{label} ({first.name})")
    named = zip(labels, lines.values(), strict=True)
    by_folder = {run.folder: label for label, own_runs in named for run in own_runs}
    return [dataclasses.replace(run, label=by_folder[run.folder]) for run in runs]


def _seeds(runs: Iterable[_Run]) -> set[int]:
    return {run.config.seed for run in runs}


def _value(value: Any) -> str:
    if value == OBJECT:
        return "of one's own"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return shown_name(value) if isinstance(value, str) and value else "none" if value in (None, "") else str(value)


def _problem(runs: list[_Run]) -> str:
    """Why scores do not compare."""
    if not runs:
        return "No run is chosen."
    tasks = dict.fromkeys((run.config.task, run.data, run.metric) for run in runs)
    if len(tasks) < 2:
        return ""
    told = ", ".join(f"{task} {shown_name(data)} ({METRICS.get(metric, metric)})" for task, data, metric in tasks)
    return f"These runs are of different tasks: {' '.join(told.split())}. Their scores do not compare."


def _differences_sentence(rows: Sequence[Mapping[str, Any]], lines: int) -> str:
    """The difference of each pair at the largest sparsity that both reached, in words."""
    if lines < 2:
        return "One kind of run: there is nothing to tell apart. Choose runs that differ in more than their seed."
    if not rows:
        return "No two kinds of runs have a seed and a finished stage in common: there is no fair difference yet."
    last = {(row["a"], row["b"]): row for row in rows}  # rows come in rising sparsity
    return " ".join(map(difference_sentence, last.values()))


def difference_sentence(row: Mapping[str, Any]) -> str:
    """One difference, in words that do not make more of it than it is."""
    points = 100 * row["difference"]
    where = (
        "equal to" if round(abs(points), 2) == 0 else f"{abs(points):.2f} points {'above' if points > 0 else 'below'}"
    )
    text = f"At sparsity {row['sparsity']:.4f}, {row['a']} is {where} {row['b']}"
    if row["low"] is None:
        return f"{text} ({row['verdict']})."
    interval = f"{row['seeds']} seeds, 95 % interval {100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
    return f"{text} ({interval}): {row['verdict']}."


def _settings(runs: list[_Run]) -> Row:
    dumps = {run.name: run.config.model_dump(exclude=set(NOT_SHOWN)) for run in runs}
    names = [name for name in RunConfig.model_fields if name not in NOT_SHOWN]
    differing = [name for name in names if len({repr(dump[name]) for dump in dumps.values()}) > 1]
    rows = [{"setting": name, **{run: _value(dump[name]) for run, dump in dumps.items()}} for name in differing]
    if len(runs) < 2:
        sentence = "One run alone differs from nothing." if runs else "No run is chosen."
    elif not differing:
        sentence = f"All {len(names)} settings of these runs are the same."
    else:
        sentence = f"These runs differ in {len(differing)} of {len(names)} settings: {', '.join(differing)}."
    return {"rows": rows, "sentence": sentence}


def _agreement(runs: list[_Run]) -> Row:
    """How far the masks of the runs agree, for each sparsity that at least two of them were pruned to."""
    steps = sorted({sparsity for run in runs for sparsity in run.stages()})
    shared = [sparsity for sparsity in steps if sum(sparsity in run.stages() for run in runs) > 1]
    stages = [stage for stage in (_agreement_at(sparsity, runs) for sparsity in shared) if stage]
    if len(runs) < 2:
        sentence = "There are no two runs whose masks could be compared."
    elif not shared:
        sentence = "These runs have no sparsity in common: their masks keep different numbers of weights."
    elif not stages:
        sentence = "No two of these runs have kept masks of equal shapes at the same sparsity."
    else:
        sentence = str(stages[-1]["sentence"])
    return {"stages": stages, "sentence": sentence}


def _agreement_at(sparsity: float, runs: list[_Run]) -> Row | None:
    kept: dict[str, _Packed] = {}
    missing: list[str] = []
    labels = _short([run for run in runs if sparsity in run.stages()])
    for run in runs:
        stage = run.stages().get(sparsity)
        if stage is not None:
            mask = _mask_of(run.folder, stage)
            if mask is None:
                missing.append(run.name)
            else:
                kept[labels[run.name]] = mask
    shapes = {mask.shapes for mask in kept.values()}
    if len(kept) < 2 or len(shapes) > 1:
        return None
    names, masks = list(kept), list(kept.values())
    matrix = [[_shared(one, other) for other in masks] for one in masks]
    density = masks[0].kept / masks[0].size
    sentence = f"At sparsity {sparsity:g}: {pictures.agreement_sentence(matrix, names)}"
    sentence += f" Two masks drawn blindly would share {100 * density:.1f} %."
    if missing:
        sentence += f" Not kept on disk, or not reached: the masks of {', '.join(missing)}."
    return {"sparsity": sparsity, "labels": names, "matrix": matrix, "missing": missing, "sentence": sentence}


def _short(runs: list[_Run]) -> dict[str, str]:
    """A name for each run that is its own, as short as can be."""
    short = {run.name: f"{run.label}, seed {run.config.seed}" for run in runs}
    twice = [name for name in short.values() if list(short.values()).count(name) > 1]
    return {name: f"{label} ({name})" if label in twice else label for name, label in short.items()}


@dataclasses.dataclass(frozen=True)
class _Packed:
    """The mask of a whole network, eight weights a byte."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bits: Any
    kept: int
    size: int


def _shared(one: _Packed, other: _Packed) -> float:
    """The share of the kept weights that both keep."""
    both = int(np.bitwise_count(one.bits & other.bits).sum(dtype=np.int64))
    return both / max(one.kept, other.kept, 1)


def _mask_of(folder: Path, stage: int) -> _Packed | None:
    """The mask of a stage; None where it is not kept, or cannot be read."""
    path = store.stage_checkpoints(folder)[1].get(stage)
    try:
        return None if path is None else _packed(path, path.stat().st_mtime_ns)
    except (SafetensorError, OSError, ValueError):
        return None


@functools.lru_cache(maxsize=16)  # some MB each
def _packed(path: Path, _changed: int) -> _Packed:
    with safe_open(path, framework="numpy") as file:
        labels = sorted(label for label in file.keys() if label.startswith("mask."))  # noqa: SIM118, not a dict
        shapes = [(label[5:], tuple(file.get_slice(f"model.{label[5:]}").get_shape())) for label in labels]
        bits = np.concatenate([file.get_tensor(label) for label in labels])
    size = sum(int(np.prod(shape)) for _, shape in shapes)
    return _Packed(tuple(shapes), bits, int(np.bitwise_count(bits).sum(dtype=np.int64)), size)
