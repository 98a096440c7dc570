"""The runs of a study on disk: those that are missing are made, finished ones are never made again.

    studies/runs/ID/         a run's folder, as ``store`` describes it; ID follows from its settings: studies share it
    studies/NAME/study.json  what was asked
    studies/NAME/state.json  how far it is: done, of, seconds and failures by run; the process that works on it
    studies/NAME/...         results, figures and the report (``study_results``, ``study_report``)

``studies`` lies in the folder of runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import filelock
import psutil
import pydantic
import torch

from randprune_lab import store
from randprune_lab.checks import problem_of
from randprune_lab.config import RunConfig
from randprune_lab.engine import prune
from randprune_lab.events import Event, Resumed, RunFinished, RunStarted
from randprune_lab.files import is_held, reason_of, write_atomically
from randprune_lab.processes import as_they_come
from randprune_lab.studies import Planned, Study, expand
from randprune_lab.training import Diverged, OutOfMemory

STUDY, STATE, LOCK = "study.json", "state.json", ".lock"
KEEP = ".keep-weights"  # in a run's folder: a study wants them
WORDS = ("title", "question", "source", "notes", "log")  # what may be said otherwise of the same study
ASKS_FROM = 500  # runs that are not begun without a word
BUSY = 2.0  # seconds until a run that another study is making is looked at again
PACE = 1.0  # seconds between two writings of how far it is: of 10,000 runs it is a long file
Tell = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to make. ``folder``: where; ``weights``: they are kept, too."""

    config: RunConfig
    folder: Path
    weights: bool = False


@dataclasses.dataclass(frozen=True)
class State:
    """How far a study is.

    Attributes:
        done, of: runs that are finished or have failed, and all of them.
        seconds: what each run took, of those that were made here; ``failed``: why, of those that could not be made.
        processes: runs at a time.
        pid, began: of the process that works on it, to tell it from a later one of that number.
    """

    done: int
    of: int
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    processes: int = 1
    pid: int = 0
    began: float = 0.0


def studies_folder() -> Path:
    """Where studies live: ``studies`` in the folder of runs."""
    return store.runs_folder() / "studies"


def run_folder(parent: Path, run_id: str) -> Path:
    """A run's folder; ``parent`` is the folder of studies."""
    return parent / "runs" / run_id


def missing(study: Study, parent: Path, plan: Sequence[Planned] | None = None) -> dict[str, RunConfig]:
    """The runs that are still to be made, by their ids, in the order of the ``plan`` (``expand(study)``)."""
    return {
        planned.id: planned.config
        for planned in (expand(study) if plan is None else plan)
        if not is_finished(run_folder(parent, planned.id), study.kept == "weights")
    }


def is_finished(folder: Path, weights: bool = False) -> bool:
    """There is nothing left to do (a damaged run is made again); with ``weights``: and they are there."""
    return bool(finished_story(folder)) and (not weights or (folder / "model").is_dir())


def run_study(
    study: Study,
    *,
    parent: Path | None = None,
    processes: int = 2,
    spread: Callable[[Mapping[str, RunConfig]], Iterator[tuple[str, list[Event] | str]]] | None = None,
    tell: Tell = lambda *_: None,
) -> Path:
    """Make the runs that are missing; returns the study's folder. Killed at any moment, call it again.

    Args:
        study: what to ask.
        parent: the folder of studies; None: ``studies_folder()``.
        processes: runs at a time on this machine.
        spread: where else the runs are made (a cluster): gives their events, or why there are none, as they come.
        tell: hears how many runs are done, of how many.

    Raises:
        ValueError: another process works on this study, its folder belongs to another study, a process that makes runs
            was killed, or no run can be made.
        OSError: the disk cannot be written.
    """
    if spread is not None and study.kept == "weights":
        raise ValueError("kept = 'weights' on a cluster: only results come back from it. Pass kept = 'results'.")
    parent = (studies_folder() if parent is None else Path(parent)).absolute()
    folder = parent / study.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        raise ValueError(
            f"{folder}: another process is working on this study. Wait for it, or give yours another name."
        ) from None
    try:
        refuse_another(folder, study)
        left = missing(study, parent)
        kinds = list(left.values())
        if spread is not None:  # this machine only asks: it need not have the devices of those that work
            here = {"device": "auto", "executor": "lockstep"}
            kinds = [config.model_copy(update=here) for config in kinds]
        check_kinds(kinds)
        write_atomically(folder / STUDY, study.model_dump_json(indent=2))
        _make(study, parent, left, processes, spread, tell)
    finally:
        lock.release()
    return folder


def kind_of(config: RunConfig) -> tuple[Any, ...]:
    """What decides how long an epoch takes."""
    names = (
        *("task", "dataset", "model", "method", "criterion", "batch_size", "max_length", "max_steps_per_epoch"),
        *("emep_steps", "selection_rows", "pattern", "include", "exclude", "teacher", "augment", "unlabelled"),
        *("device", "threads"),
    )
    return tuple(getattr(config, name) for name in names)


def check_kinds(configs: Sequence[RunConfig]) -> None:
    """Build one run of each kind, and train nothing.

    Raises:
        ValueError: its data or model is not there, or they do not fit one another.
    """
    checked = (
        *("candidates", "emep_epochs", "racing", "stages", "scope", "densities", "initialization"),
        *("randomness", "samples", "sampling_ratio", "target_ir", "sampler"),
    )
    kinds = {(*kind_of(config), *(getattr(config, name) for name in checked)): config for config in configs}
    for config in kinds.values():
        prune(config)


def refuse_another(folder: Path, study: Study) -> None:
    """A study that was begun stays what it was, its seeds and claims too, lest they be chosen by what came of it.

    Raises:
        ValueError: the folder holds another one, or one that cannot be read.
    """
    if not (folder / STUDY).exists():
        return
    there, study = read_asked(folder), Study.model_validate_json(study.model_dump_json())  # tuples are lists there
    other = [name for name in Study.model_fields if name not in WORDS and getattr(there, name) != getattr(study, name)]
    if other:
        raise ValueError(
            f"{folder}: holds another study of this name, with another {', '.join(other)}. Give yours another name "
            "(--name), or remove that folder; its runs stay."
        )


def read_asked(folder: Path) -> Study:
    """What the study of this folder asked.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        return Study.model_validate_json((Path(folder) / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, pydantic.ValidationError):
            reason = "; ".join(map(problem_of, error.errors()))[:300]
        else:
            reason = reason_of(error)
        raise ValueError(
            f"{Path(folder) / STUDY}: cannot be read ({reason}). Remove that file and start the study again: its runs "
            "stay."
        ) from error


def _make(study: Study, parent: Path, left: dict[str, RunConfig], processes: int, spread: Any, tell: Tell) -> None:
    ids = list(dict.fromkeys(planned.id for planned in expand(study)))
    for run in set(ids).difference(left):  # of some the process was killed when they were finished
        _settle_weights(run_folder(parent, run), study.kept == "weights")
    state = State(
        len(ids) - len(left), len(ids), processes=processes, pid=os.getpid(), began=psutil.Process().create_time()
    )
    folder, failed = parent / study.name, dict[str, str]()
    seconds = dict(read_state(folder).seconds)
    written = -PACE

    def write() -> None:
        nonlocal state, written
        state, written = dataclasses.replace(state, seconds=seconds, failed=failed), time.monotonic()
        write_atomically(folder / STATE, json.dumps(dataclasses.asdict(state)), inside=folder)

    write()
    tell(state.done, state.of)
    try:
        while left:
            busy: dict[str, RunConfig] = {}
            for run, problem, took in _done(left, parent, study.kept == "weights", processes, spread):
                if problem == BUSY_RUN:
                    busy[run] = left[run]
                    continue
                seconds[run] = took
                if problem:
                    failed[run] = problem
                state = dataclasses.replace(state, done=state.done + 1)
                if time.monotonic() - written >= PACE or took > 10 * PACE:
                    write()
                tell(state.done, state.of)
            if busy:
                write()
                time.sleep(BUSY)
            left = busy
    finally:
        write()
    if len(failed) == len(ids):
        raise ValueError(f"{study.name}: not one run could be made. The first: {next(iter(failed.values()))}")


BUSY_RUN = "another study is making it"


def _done(
    left: Mapping[str, RunConfig], parent: Path, weights: bool, processes: int, spread: Any
) -> Iterator[tuple[str, str, float]]:
    """Runs as they are done: id, why there is no result ("": there is one), seconds."""
    jobs = {run: Job(config, run_folder(parent, run), weights) for run, config in left.items()}
    if spread is None:
        try:
            for run, (problem, took) in as_they_come(make_run, jobs, processes, gpus=torch.cuda.device_count()):
                yield run, problem, took
        except BrokenProcessPool as error:
            raise ValueError(
                "a process that was making runs has been killed, as happens where memory runs out. What is finished "
                "stays: start the study again, with fewer processes at a time."
            ) from error
        return
    begun = time.monotonic()
    for run, events in spread(left):
        took, begun = time.monotonic() - begun, time.monotonic()
        if isinstance(events, str):
            yield run, events, took
            continue
        while is_held(jobs[run].folder / ".lock"):  # another study is making it, too
            time.sleep(BUSY)
        if is_finished(jobs[run].folder):
            yield run, "", took
            continue
        shutil.rmtree(jobs[run].folder, ignore_errors=True)  # what was begun here, and not finished
        for _ in store.record(jobs[run].folder, (event for event in events)):
            pass
        yield run, "", took


def make_run(job: Job) -> tuple[str, float]:
    """Make or resume one run; why it failed ("": it did not), and the seconds that it took."""
    begun = time.monotonic()
    try:
        if is_held(job.folder / ".lock"):
            return BUSY_RUN, 0.0
        if is_finished(job.folder, job.weights):  # by another study, since this one was begun
            _settle_weights(job.folder, job.weights)
            return "", 0.0
        for event in store.record(job.folder, prune(job.config, resume=_begun(job))):
            if job.weights and isinstance(event, RunStarted | Resumed):
                (job.folder / KEEP).touch()  # lest another study drop them as soon as the run is finished
    except OSError as error:
        if isinstance(error, FileNotFoundError) and job.folder.parent.is_dir() and not job.folder.is_dir():
            return f"{job.folder}: was deleted or moved while the run was going on.", time.monotonic() - begun
        raise  # of the disk: no other run would fare better
    except Exception as error:  # of many libraries: the other runs go on
        if is_finished(job.folder, job.weights) or is_held(job.folder / ".lock"):  # another study was a moment quicker
            return BUSY_RUN, 0.0
        return problem_in(error), time.monotonic() - begun
    _settle_weights(job.folder, job.weights)
    return "", time.monotonic() - begun


def _settle_weights(folder: Path, wanted: bool) -> None:
    """Of a finished run: mark its weights as wanted, or drop them unless another study wants them."""
    if wanted:
        (folder / KEEP).touch()
    elif not (folder / KEEP).exists():
        drop_weights(folder)


def _begun(job: Job) -> Any:
    """Where a run that was killed can go on; a damaged one, and one without weights that are wanted, begins anew."""
    try:
        return store.last_checkpoint(job.folder) if job.folder.is_dir() else None
    except ValueError:
        if is_finished(job.folder, job.weights):  # another study was a moment quicker
            raise
        shutil.rmtree(job.folder)
        return None


def drop_weights(folder: Path) -> None:
    """Leave of a finished run what it said, not its weights: some kB instead of many MB."""
    for name in ("checkpoints", "model", "histograms"):
        shutil.rmtree(folder / name, ignore_errors=True)


def on_cluster(address: str, gpus: float) -> Callable[[Mapping[str, RunConfig]], Iterator[tuple[str, Any]]]:
    """What ``run_study`` takes as ``spread`` to make its runs on Ray; "": a Ray of this machine alone."""

    def spread(left: Mapping[str, RunConfig]) -> Iterator[tuple[str, Any]]:
        from randprune_lab.on_ray import Lost, in_cluster

        for run, found in in_cluster(events_of, left, address=address, gpus=gpus):
            yield run, str(found) if isinstance(found, Lost) else found

    return spread


def events_of(config: RunConfig) -> list[Event] | str:
    """What a run says, or why it says nothing: for a machine that shares no disk with this one."""
    try:
        return [event for event in prune(config) if isinstance(event, Event)]
    except Exception as error:  # of many libraries: the other runs go on
        return problem_in(error)


def problem_in(error: Exception) -> str:
    """Why a run failed, on one line."""
    known = isinstance(error, Diverged | OutOfMemory | ValueError)
    return " ".join(str(error).split()) if known else f"{type(error).__name__}: {reason_of(error)}"


def read_state(folder: Path) -> State:
    """How far a study is; one that has not begun has done nothing."""
    try:
        return pydantic.TypeAdapter(State).validate_json((Path(folder) / STATE).read_bytes())
    except (OSError, ValueError):
        return State(0, 0)


def is_running(folder: Path) -> bool:
    """A process is working on it."""
    return is_held(Path(folder) / LOCK)


def study_folders(parent: Path | None = None) -> list[Path]:
    """The folders of all studies, by name."""
    parent = studies_folder() if parent is None else Path(parent)
    return sorted(path.parent for path in parent.glob(f"*/{STUDY}"))


def finished_story(folder: Path) -> list[Event]:
    """What a finished run has said; nothing where it is not finished, or damaged."""
    try:
        events = store.story(folder)
    except ValueError:
        return []
    return events if any(isinstance(event, RunFinished) for event in events) else []
