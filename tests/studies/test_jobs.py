"""Studies as processes of their own: what their files say; started once, stopped whole, gone on with."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.studies import make, tiny_study, write_state

from randprune_lab import estimate, study_jobs, study_view, work
from randprune_lab import status as statuses
from randprune_lab.estimate import Estimate
from randprune_lab.methods import planned_epochs
from randprune_lab.studies import expand, read_study
from randprune_lab.study_jobs import standing
from randprune_lab.study_results import gather
from randprune_lab.study_runs import LOCK, STUDY, read_asked


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of studies with ``tiny``, all of it made."""
    parent = tmp_path_factory.mktemp("made")
    make(tiny_study(), parent)
    return parent


@pytest.fixture
def parent(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "studies"))


def record(folder, state, message="", **more):
    statuses.write(folder, statuses.Record(state=state, message=message, queued_at=time.time_ns(), **more))


def wait_until(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_many_runs_are_not_begun_without_a_word(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(study_jobs.jobs, "begin", lambda *what: begun.append(what))
    many = tiny_study(seeds=5_000)
    with pytest.raises(ValueError, match=r"10,000 runs to make, more than 500 .* many=True"):
        study_jobs.start(many, parent=tmp_path)
    assert not list(tmp_path.iterdir())
    study_jobs.start(many, parent=tmp_path, many=True)
    assert len(begun) == 1


# ---- what the files say


def test_what_the_files_say(parent):
    folder = parent / "tiny"
    assert (standing(folder).state, standing(folder).share) == ("finished", 1.0)
    write_state(folder, done=1, of=4, failed={"run": "the loss became NaN"})
    found = standing(folder)
    assert (found.state, found.done, found.of, found.is_live) == ("interrupted", 1, 4, False)
    assert found.failed == {"run": "the loss became NaN"}
    record(folder, "stopped")
    assert standing(folder).state == "stopped"
    record(folder, "failed", "The disk is full.")
    assert (standing(folder).state, standing(folder).message) == ("failed", "The disk is full.")
    me = psutil.Process()
    statuses.write(folder, statuses.Record(state="running", queued_at=1).of(me))
    assert (standing(folder).state, standing(folder).is_live) == ("running", True)
    (folder / statuses.CANCEL).touch()
    assert standing(folder).state == "stopping"


def test_the_last_process_that_worked_on_it_counts(parent):
    """A terminal has gone on with what had failed in the app."""
    folder = parent / "tiny"
    record(folder, "failed", "of yesterday", pid=1, created=1000.0)
    assert standing(folder).state == "failed"
    write_state(folder, done=4, of=4, pid=2, began=2000.0)
    assert (standing(folder).state, standing(folder).message) == ("finished", "")


def test_a_process_of_a_terminal_counts_as_well(parent):
    folder = parent / "tiny"
    write_state(folder, done=1, of=4)
    with filelock.FileLock(folder / LOCK):
        assert standing(folder).state == "running"
        assert standing(folder).left is None
    assert standing(folder).state == "interrupted"


@pytest.mark.parametrize("content", ["", "{}", '{"done": "x", "of": []}', "[1]", '{"done": 1, "of": 4, "seconds": 3}'])
def test_a_damaged_state_is_one_that_has_not_begun(parent, content):
    (parent / "tiny" / "state.json").write_text(content)
    found = standing(parent / "tiny")
    assert (found.state, found.done, found.of, found.share) == ("interrupted", 0, 0, 0.0)


def test_a_damaged_study_says_so(parent):
    (parent / "tiny" / STUDY).write_text('{"name": "tiny"}')
    assert standing(parent / "tiny").state == "damaged"
    assert "cannot be read" in standing(parent / "tiny").message


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    took=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20),
    left=st.integers(1, 50),
    waited=st.floats(0, 1e5),
    processes=st.integers(1, 8),
)
def test_time_left_never_falls_below_that_of_all_runs_but_one(tmp_path, took, left, waited, processes):
    done = len(took)
    write_state(
        tmp_path,
        done=done,
        of=done + left,
        processes=processes,
        seconds={str(run): one for run, one in enumerate(took)},
    )
    os.utime(tmp_path / "state.json", (time.time() - waited,) * 2)
    each = sum(took) / done / processes
    found = study_jobs._left(tmp_path)
    assert each * (left - 1) * (1 - 1e-9) <= found <= each * left
    write_state(tmp_path, done=done, of=done + left)
    assert study_jobs._left(tmp_path) is None  # nothing was measured
    write_state(tmp_path, done=done, of=done + left, seconds={"run": float("nan")})
    assert study_jobs._left(tmp_path) is None


# ---- start, stop, go on


@pytest.mark.crash
def test_started_once_stopped_whole_gone_on_with_to_the_same_numbers(made, tmp_path):
    asked = tiny_study()
    folder = study_jobs.start(asked, parent=tmp_path, processes=1)
    assert standing(folder).state == "running"
    with pytest.raises(ValueError, match="a process works on it already"):
        study_jobs.start(asked, parent=tmp_path)
    wait_until(lambda: standing(folder).done >= 1 or not standing(folder).is_live)
    process = statuses.live(folder).process()
    assert process.nice() >= 10
    tree = [process, *process.children(recursive=True)]
    assert len(tree) > 2
    study_jobs.stop(folder)
    assert standing(folder).state == "stopped"
    assert psutil.wait_procs(tree, timeout=30)[1] == []
    with pytest.raises(ValueError, match="there is nothing to stop"):
        study_jobs.stop(folder)
    for run in (made / "runs").glob("*seed1"):  # by another study, meanwhile
        shutil.copytree(run, tmp_path / "runs" / run.name, dirs_exist_ok=True)
    study_jobs.start(asked, parent=tmp_path, processes=1)
    found = study_jobs.wait(folder, timeout=120)
    assert (found.state, found.done, found.failed) == ("finished", 4, {})
    assert (folder / "report.html").is_file()
    theirs = gather(asked, made).stages
    assert gather(asked, tmp_path).stages.equals(theirs)
    assert (folder / "results.csv").read_text() == theirs.to_csv(index=False)


def _at_work(folder: Path, began: float = 0.0) -> subprocess.Popen:
    """A process that works on a study as a terminal does, with a child; ``began`` is added to when it says it began."""
    code = f"""
import json, os, subprocess, sys, time
import filelock, psutil
lock = filelock.FileLock({str(folder / LOCK)!r}); lock.acquire()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
state = dict(done=1, of=4, pid=os.getpid(), began=psutil.Process().create_time() + {began})
open({str(folder / "state.json")!r}, "w").write(json.dumps(state))
print(child.pid, flush=True)
time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.child = psutil.Process(int(process.stdout.readline()))
    return process


@pytest.mark.crash
def test_what_a_terminal_has_started_is_stopped_with_its_children(parent):
    process = _at_work(parent / "tiny")
    try:
        assert standing(parent / "tiny").state == "running"
        study_jobs.stop(parent / "tiny")
        assert process.wait(10) == -signal.SIGTERM
        psutil.wait_procs([process.child], timeout=10)
        assert not process.child.is_running() or process.child.status() == psutil.STATUS_ZOMBIE
        assert standing(parent / "tiny").state == "interrupted"
    finally:
        process.kill()
        process.stdout.close()


def test_a_number_that_another_process_has_got_is_not_stopped(parent):
    process = _at_work(parent / "tiny", began=-60.0)
    try:
        with pytest.raises(ValueError, match="Stop it there"):
            study_jobs.stop(parent / "tiny")
        assert process.poll() is None
        assert process.child.is_running()
    finally:
        process.child.kill()
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_cannot_be_started(parent, monkeypatch):
    begun = []
    monkeypatch.setattr(study_jobs.jobs, "begin", lambda *arguments: begun.append(arguments))
    with pytest.raises(ValueError, match="holds the runs of all studies"):
        study_jobs.start(tiny_study(name="runs"), parent=parent)
    with pytest.raises(ValueError, match="holds another study of this name"):
        study_jobs.start(tiny_study(seeds=[5]), parent=parent)
    with pytest.raises(ValueError, match="max_epochs"):
        study_jobs.start(tiny_study(name="bad", base={"max_epochs": -1}), parent=parent)
    assert not (parent / "bad").exists()
    (parent / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        study_jobs.start(tiny_study(name="file"), parent=parent)
    with pytest.raises(ValueError, match="cannot be written"):
        study_jobs.start(tiny_study(), parent=parent / "file")
    assert begun == []
    folder = study_jobs.start(tiny_study(name="other"), parent=parent)
    assert read_asked(folder) == tiny_study(name="other")
    ((room, where, *_),) = begun
    assert (room, where) == ("study_jobs", folder)


def test_why_it_failed_stands_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "_lower_priority", lambda: None)
    monkeypatch.setattr(study_jobs.jobs, "begin", lambda *_: None)
    asked = tiny_study(base={"task": "glue/mrpc", "dataset": str(tmp_path / "nowhere"), "model": "tiny-bert"})
    folder = study_jobs.start(asked, parent=tmp_path)
    assert study_jobs.main([str(folder), "--processes", "1"]) == 1
    found = standing(folder)
    assert found.state == "failed"
    assert "nowhere" in found.message
    assert not list((tmp_path / "runs").glob("*"))


# ---- what people are told


def test_sizes_and_progress_in_words(made, tmp_path):
    asked = tiny_study()
    epochs = {"judged": 1 + 2 * 2 + 2, "IMP": 1 + 2 * 3}  # dense, judging two masks in two stages, tuning
    text = f"4 runs; {2 * sum(epochs.values())} epochs to train, with 2 seeds."
    assert study_view.size_sentence(asked, tmp_path) == text
    assert study_view.size_sentence(asked, made).startswith("4 runs (4 are there already); 0 epochs")
    standing = study_jobs.Standing("running", 3, 8, {"run": "NaN"}, left=125.0)
    assert study_view.progress_sentence(standing) == "3 of 8 runs done, 1 of them failed; about 2 min 5 s to go."
    assert "begins" in study_view.progress_sentence(study_jobs.Standing("running"))


def test_only_small_forms_as_they_are_today_are_started_here(parent):
    form = study_view.small_forms()["figure-4-small"]
    assert form == read_study("figure-4", small=True)
    assert study_view.can_start("figure-4-small", None)
    assert not study_view.can_start("figure-4", None)
    assert not study_view.can_start("tiny", parent / "tiny")
    folder = parent / "figure-4-small"
    folder.mkdir()
    (folder / STUDY).write_text(form.model_dump_json())
    assert study_view.can_start("figure-4-small", folder)
    with filelock.FileLock(folder / LOCK):
        assert not study_view.can_start("figure-4-small", folder)
    (folder / STUDY).write_text(form.model_copy(update={"base": {"model": "os:system"}}).model_dump_json())
    assert not study_view.can_start("figure-4-small", folder)
    assert study_view.command("figure-4-small") == "randprune study figure-4 --small"
    assert study_view.command("figure-4") == "randprune study figure-4"


def test_results_are_read_anew_when_there_are_more(made, tmp_path):
    folder = make(tiny_study(), tmp_path, most=0)
    shutil.copytree(made / "runs", tmp_path / "runs")
    first = study_view.results_of(folder)
    assert first is study_view.results_of(folder)
    write_state(folder, done=1, of=4)
    assert study_view.results_of(folder) is not first


def test_the_report_is_written_where_it_is_missing_or_old(parent):
    folder = parent / "tiny"
    assert b"Does judging pay?" in study_view.report_of(folder)
    (folder / "report.html").write_text("newer than the last run")
    assert study_view.report_of(folder) == b"newer than the last run"
    os.utime(folder / "report.html", (1, 1))
    assert b"Does judging pay?" in study_view.report_of(folder)
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to(folder / "state.json")
    with pytest.raises(OSError, match="no file of its own"):
        study_view.report_of(folder)


def epochs(config):
    return sum(planned_epochs(config).values())


class Answers:
    """``Asking`` that knows: a tenth of a second for an epoch, at the second look."""

    made, problem = [], ""

    def __init__(self, config):
        self.looks, self.config, self.cancelled = 0, config, False
        Answers.made.append(self)

    def poll(self):
        self.looks += 1
        if self.looks < 2:
            return None
        return Answers.problem or Estimate(0.1 * epochs(self.config), 0, 0, 0.0, "", ())

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setattr(Answers, "made", [])
    monkeypatch.setattr(study_view, "Asking", Answers)
    assert estimate.Asking is not Answers
    return Answers


def test_the_cost_is_that_of_all_runs_from_one_of_each_kind(answers):
    configs = [planned.config for planned in expand(tiny_study(seeds=[0, 1, 2]))]
    asking = study_view.AskingCost(configs, processes=2)
    assert asking.kinds == 2
    polls = []
    while (answer := asking.poll()) is None:
        polls.append(asking.timed)
    assert len(answers.made) == 2
    assert polls == [0, 1]
    assert answer.seconds == pytest.approx(0.1 * sum(map(epochs, configs)))
    assert asking.poll() == answer
    assert study_view.AskingCost([]).poll().seconds == 0


def test_a_cost_that_cannot_be_told_says_why(answers, monkeypatch):
    monkeypatch.setattr(Answers, "problem", "No such data.")
    asking = study_view.AskingCost([planned.config for planned in expand(tiny_study())])
    assert [asking.poll(), asking.poll(), asking.poll()] == [None, "No such data.", "No such data."]
    asking = study_view.AskingCost([planned.config for planned in expand(tiny_study())])
    asking.poll()
    asking.cancel()
    assert answers.made[-1].cancelled
    assert "cancelled" in asking.poll()
