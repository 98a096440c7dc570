"""Studies as processes of their own: started, watched, stopped and gone on with from wherever one sits.

    python -m randprune_lab.study_jobs FOLDER --processes 2

A study's process is attended like that of a run (``status.py``): status.json, a heartbeat, a file ``cancel``. It waits
for no slot, since people watch it, and works at low priority. What is known of it lies in the study's folder.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from randprune_lab import jobs
from randprune_lab import status as statuses
from randprune_lab.files import is_held, write_atomically
from randprune_lab.status import CANCEL, Attended, Record
from randprune_lab.studies import Study, built_in_studies, read_study
from randprune_lab.study_runs import (
    ASKS_FROM,
    LOCK,
    STATE,
    STUDY,
    missing,
    read_asked,
    read_state,
    refuse_another,
    run_study,
    studies_folder,
)
from randprune_lab.work import attend, log

PROCESSES = 2  # runs at a time
RUNS = "runs"  # no study's name: that folder holds the runs of all of them
SMALL = "-small"
_PATIENCE = 12.0  # seconds until a process that is to stop is asked harder


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        state: "running" or "stopping": a process is there; "finished"; "stopped" on request; "failed", and ``message``
            says why; "interrupted": killed, or the machine went down; "damaged": its files cannot be read.
        done, of: runs that are finished or have failed, and all of them.
        failed: why, of runs that could not be made.
        left: seconds still to go, where that is known.
        message: a sentence, or "".
    """

    state: str
    done: int = 0
    of: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: float | None = None
    message: str = ""

    @property
    def is_live(self) -> bool:
        """A process works on it."""
        return self.state in ("running", "stopping")

    @property
    def share(self) -> float:
        """Of the runs that are done, in [0, 1]."""
        return min(max(self.done / self.of, 0.0), 1.0) if self.of else 0.0


def standing(folder: str | Path) -> Standing:
    """How the study of this folder stands, by its files alone."""
    folder = Path(folder)
    state, record, job = read_state(folder), statuses.read(folder), statuses.live(folder)
    if record is not None and state.began > (record.created or time.time()) + 1:
        record = None  # another process has worked on it since
    told = (state.done, state.of, state.failed)
    if job is not None:
        stopping = (folder / CANCEL).exists()
        return Standing("stopping" if stopping else "running", *told, _left(folder), job.message)
    if is_held(folder / LOCK):
        return Standing("running", *told, message="It was started from a terminal or from Python.")
    try:
        read_asked(folder)
    except ValueError as error:
        return Standing("damaged", *told, message=str(error))
    message = record.message if record is not None else ""
    if record is not None and record.state == "failed":
        return Standing("failed", *told, message=message)
    if state.of and state.done >= state.of:
        return Standing("finished", *told, message=message)
    return Standing("stopped" if record is not None and record.state == "stopped" else "interrupted", *told)


def _left(folder: Path) -> float | None:
    """Seconds that the runs to come take if they take as long as those before that were made here."""
    state = read_state(folder)
    took = [seconds for seconds in state.seconds.values() if seconds > 0]
    each = sum(took) / max(len(took), 1) / max(state.processes, 1)
    if not 0 < each < math.inf or state.done >= state.of:
        return None
    since = max(time.time() - (folder / STATE).stat().st_mtime, 0.0)  # the last run was done
    return each * (state.of - state.done) - min(since, each)


def small_form(name: str) -> Study | None:
    """The built-in study whose small form has this name; None: there is none."""
    plain = name.removesuffix(SMALL)
    return read_study(plain, small=True) if name.endswith(SMALL) and plain in built_in_studies() else None


def start(study: Study, *, parent: Path | None = None, processes: int = PROCESSES, many: bool = False) -> Path:
    """Start a study, or let it go on, as a process of its own; returns its folder, in ``parent`` or where studies lie.

    ``many``: also where more than 500 runs are to be made.

    Raises:
        ValueError: a process works on it already, its folder holds another study, it cannot be expanded, there are more
            runs than are begun without a word, or nothing can be written there.
    """
    parent = (studies_folder() if parent is None else Path(parent)).absolute()
    folder = parent / study.name
    if study.name == RUNS:
        raise ValueError(f"name = {RUNS!r}: that folder holds the runs of all studies. Give yours another name.")
    left = missing(study, parent)  # says what is wrong with a setting
    if len(left) > ASKS_FROM and not many:
        raise ValueError(
            f"{study.name}: {len(left):,} runs to make, more than {ASKS_FROM} are not begun without a word. "
            "study_cost.cost, or randprune study --plan, says what they would take; pass many=True to begin."
        )
    with jobs.saying_what_failed(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with statuses.queue_lock(parent):
        if standing(folder).is_live:
            raise ValueError(f"{study.name}: a process works on it already. Wait for it, or stop it first.")
        refuse_another(folder, study)
        with jobs.saying_what_failed(folder):
            folder.mkdir(exist_ok=True)
            write_atomically(folder / STUDY, study.model_dump_json(indent=2))
            (folder / CANCEL).unlink(missing_ok=True)
            (folder / statuses.RESERVE).unlink(missing_ok=True)
            statuses.write(folder, Record(state="queued", queued_at=time.time_ns()))
            jobs.begin("study_jobs", folder, "--processes", str(processes))
    return folder


def stop(folder: str | Path, *, wait: bool = True) -> None:
    """Stop the process of a study and those that it has started. What is finished stays: ``start`` goes on.

    ``wait``: until it has stopped; a process that does not answer is terminated, and at last killed.

    Raises:
        ValueError: no process works on it, or none that can be stopped from here.
    """
    folder = Path(folder).absolute()
    found = standing(folder)
    if not found.is_live:
        raise ValueError(f"{folder.name}: is {found.state}, there is nothing to stop.")
    if statuses.live(folder) is not None:
        jobs.stop(folder, wait=wait)
        return
    process = _elsewhere(folder)
    if process is None:
        raise ValueError(
            f"{folder.name}: another machine, or a program that has just begun, works on it. Stop it there."
        )
    for how in (psutil.Process.terminate, psutil.Process.kill):
        statuses.kill(process, how)
        if not wait or _ends(folder):
            return
    raise ValueError(f"{folder.name}: its process does not end. End it on the machine that it works on.")


def _elsewhere(folder: Path) -> psutil.Process | None:
    """The process that holds the study's lock though ``start`` did not start it: that of a terminal."""
    state = read_state(folder)
    try:
        process = psutil.Process(state.pid) if state.pid else None
        same = process is not None and abs(process.create_time() - state.began) < 1
    except (psutil.Error, ValueError, TypeError):
        return None
    return process if same else None


def _ends(folder: Path) -> bool:
    until = time.monotonic() + _PATIENCE
    while is_held(folder / LOCK):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def wait(folder: str | Path, timeout: float | None = None) -> Standing:
    """Wait until no process works on a study, at most ``timeout`` seconds; returns how it stands then."""
    until = None if timeout is None else time.monotonic() + timeout
    while (found := standing(folder)).is_live and (until is None or time.monotonic() < until):
        time.sleep(0.1)
    return found


# ---- the process


def main(arguments: Sequence[str] | None = None) -> int:
    """Work on one study; the exit code is 0 where it is finished."""
    parser = argparse.ArgumentParser(
        prog="python -m randprune_lab.study_jobs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="runs at a time")
    given = parser.parse_args(arguments)
    code = attend(given.folder, lambda job: _work(job, given.processes))
    for child in multiprocessing.active_children():  # a run in the middle is worth nothing here: it is resumed
        child.kill()
    return code


def _work(job: Attended, processes: int) -> None:
    """The study itself, and its report."""
    from randprune_lab.study_report import conclude

    job.tell(state="running")
    study = read_asked(job.folder)
    tell = lambda done, of: log(f"{done} of {of} runs are done")
    run_study(study, parent=job.folder.parent, processes=processes, tell=tell)
    job.tell(message="Its last run is done; the report is being written.")
    conclude(job.folder)
    job.tell(message="")


if __name__ == "__main__":
    sys.exit(main())
