"""Work spread over processes, which end when the one that asked has ended."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest
from support.paths import TESTS
from support.process_work import PATIENCE, die, leave_a_mark, square, wait_for

from randprune_lab.processes import as_they_come, in_processes


def children():
    """Processes that this one has started, but for those that only keep count of what is shared."""
    return {child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())}


@pytest.mark.parametrize("processes", [1, 2, 7])
def test_all_jobs_are_done_once_and_elsewhere(processes):
    before = children()
    jobs = {("job", number): number for number in range(5)}
    found = list(as_they_come(square, jobs, processes))
    assert sorted((key, result) for key, (result, _) in found) == [(key, key[1] ** 2) for key in sorted(jobs)]
    workers = {worker for _, (_, worker) in found}
    assert os.getpid() not in workers
    assert 1 <= len(workers) <= min(processes, len(jobs))
    assert children() == before  # they have ended


def test_nothing_to_do_starts_nothing():
    assert list(as_they_come(die, {}, 2)) == []


def test_together_and_told():
    told = []
    found = in_processes(square, {name: number for number, name in enumerate("abc")}, 2, lambda *at: told.append(at))
    assert {name: result for name, (result, _) in found.items()} == {"a": 0, "b": 1, "c": 4}
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_one_raises_is_raised_here():
    before = children()
    with pytest.raises(ValueError, match="no thirteen"):
        list(as_they_come(square, {number: number for number in (13, 1, 2)}, 1))
    assert children() == before


def test_one_that_is_killed_is_told():
    with pytest.raises(BrokenProcessPool):
        list(as_they_come(die, {"a": 1, "b": 2}, 2))


def test_closed_begins_no_further_job(tmp_path):
    """Of six jobs the first was taken, the second had begun by then."""
    stream = as_they_come(leave_a_mark, {number: tmp_path / str(number) for number in range(6)}, 1)
    assert next(stream) == (0, None)
    stream.close()
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.process_work import mark_and_stay
from randprune_lab.processes import as_they_come
if __name__ == "__main__":
    list(as_they_come(mark_and_stay, {name: Path(sys.argv[2], name) for name in "ab"}, 2))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.crash)])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    marks = tmp_path / "marks"
    marks.mkdir()
    parent = subprocess.Popen([sys.executable, script, TESTS, marks])
    try:
        wait_for(lambda: len([path for path in marks.iterdir() if path.read_text()]) == 2)
        workers = [psutil.Process(int(path.read_text())) for path in marks.iterdir()]
        assert all(worker.ppid() == parent.pid for worker in workers)
    finally:
        parent.send_signal(how)
        parent.wait(PATIENCE)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
