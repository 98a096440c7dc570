"""What the app and Jupyter show of a study, from its files: how far it is, what it costs, what it came to."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from randprune_lab import study_jobs
from randprune_lab.config import RunConfig
from randprune_lab.estimate import Asking
from randprune_lab.files import open_own
from randprune_lab.live import duration
from randprune_lab.methods import planned_epochs
from randprune_lab.studies import Study, built_in_studies, expand, read_study
from randprune_lab.study_cost import Cost, at_once, kinds
from randprune_lab.study_jobs import SMALL, Standing
from randprune_lab.study_results import Results, gather
from randprune_lab.study_runs import STUDY, missing, read_asked, read_state

PEEKING = (
    "The number of seeds was fixed before the first run. Do not stop early because of what stands here by now: who "
    "stops when it looks good finds something in pure noise, too."
)


@functools.lru_cache
def small_forms() -> dict[str, Study]:
    """The built-in studies' small forms by name: what can be started here."""
    return {f"{name}{SMALL}": read_study(name, small=True) for name in built_in_studies()}


@functools.lru_cache
def runs_of(name: str) -> int:
    """How many runs that small form has; those that turn out to be the same count once."""
    return len({planned.id for planned in expand(small_forms()[name])})


def size_sentence(study: Study, parent: Path) -> str:
    """How many runs and epochs are to be made; ``parent`` is the folder of studies."""
    every = {planned.id for planned in expand(study)}
    left = missing(study, parent)
    epochs = sum(sum(planned_epochs(config).values()) for config in left.values())
    there = f" ({len(every) - len(left):,} are there already)" if len(left) < len(every) else ""
    return f"{len(every):,} runs{there}; {epochs:,.0f} epochs to train, with {len(study.seeds)} seeds."


def progress_sentence(standing: Standing) -> str:
    """How far a study is."""
    text = f"{standing.done:,} of {standing.of:,} runs done" if standing.of else "It begins: data and models are loaded"
    if standing.failed:
        text += f", {len(standing.failed):,} of them failed"
    if standing.left is not None:
        text += f"; about {duration(standing.left)} to go"
    return f"{text}."


def command(name: str) -> str:
    """What begins or goes on with a built-in study in a terminal; ``name`` may be that of its small form."""
    plain = name.removesuffix(SMALL)
    return f"randprune study {shlex.quote(plain)}" + " --small" * (plain != name)


def can_start(name: str, folder: Path | None) -> bool:
    """Nobody works on it, and it is a built-in small form as it stands today; ``folder``: None, where it is new."""
    form = small_forms().get(name)
    if form is None or folder is None:
        return form is not None
    try:
        return read_asked(folder) == form and not study_jobs.standing(folder).is_live
    except ValueError:
        return False


def results_of(folder: Path) -> Results:
    """What its finished runs say by now; read anew only when there are more.

    Raises:
        ValueError: what it asked cannot be read, or is nothing that can be.
    """
    state, asked = read_state(folder), (folder / STUDY).stat()
    return _results(folder.absolute(), state.done, state.of, asked.st_mtime_ns, asked.st_ino)


@functools.lru_cache(maxsize=32)
def _results(folder: Path, *_: int) -> Results:
    return gather(read_asked(folder), folder.parent)


def report_of(folder: Path) -> bytes:
    """``report.html``, written first where it is not there or older than the last run."""
    from randprune_lab.study_report import REPORT, conclude

    path, state = folder / REPORT, folder / "state.json"
    if not path.is_file() or (state.is_file() and path.stat().st_mtime < state.stat().st_mtime):
        conclude(folder)
    with open_own(path) as file:
        return file.read()


class AskingCost:
    """What a study would cost: one run of each kind is timed, each in a process of its own. ``poll`` it, or ``cancel``.

    Attributes:
        kinds: how many there are; ``timed``: of those so far.
    """

    def __init__(self, configs: Sequence[RunConfig], processes: int = study_jobs.PROCESSES) -> None:
        self._waiting = kinds(configs)
        self._processes = at_once(configs, processes)
        self.kinds, self.timed, self._seconds = len(self._waiting), 0, 0.0
        self._asking: Asking | None = None
        self._problem = ""

    def poll(self) -> Cost | str | None:
        """The cost; a sentence on why it is not known; None while steps are being timed."""
        if self._problem:
            return self._problem
        if not self._waiting:
            return Cost(self._seconds, self._processes)
        config, times = self._waiting[0]
        self._asking = self._asking or Asking(config)
        answer = self._asking.poll()
        if isinstance(answer, str):
            self._problem = answer
        elif answer is not None:
            self._seconds += answer.seconds * times
            self.timed += 1
            self._asking = None
            del self._waiting[0]
        return self.poll() if answer is not None else None

    def cancel(self) -> None:
        """End what is being timed."""
        self._problem = self._problem or "No estimate: it was cancelled."
        if self._asking is not None:
            self._asking.cancel()


def table_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Mapping[str, str]]:
    """Head and rows of ``study_report`` as one dict a row."""
    return [dict(zip(head, row, strict=True)) for row in rows]
