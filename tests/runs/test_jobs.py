"""Runs as processes of their own: nothing is lost, whatever ends when; and what is said of them is true.

What a process that works on a run owes everybody (the answer to a cancel, the last word) is shown by one that imports
no torch and is there at once; that real runs do the same, caught in the middle, is shown in the group crash.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import TESTS
from support.runs import boundary_file, go_on, journal, read_tensors, same_tensors, small, told

from randprune_lab import engine, jobs, status, store, work
from randprune_lab.config import RunConfig, controls
from randprune_lab.status import Record
from randprune_lab.training import Diverged, OutOfMemory

# It begins soon and never ends.
LONG = {"stages": (0.9,), "dense_epochs": 10**6, "max_epochs": 1, "candidates": 2, "batch_size": 4}
QUICK = {"dense_epochs": 1, "max_epochs": 1, "candidates": 2, "max_steps_per_epoch": 3}
PATIENCE = 180.0  # seconds after which something will never come

# A model whose runs wait where a test wants: in the first step after the journal holds the event that ``hold`` names.
HELD = """
import time
from pathlib import Path

import torch

def waits():
    hold = Path("hold")
    journals = [path.read_text() for path in Path().glob("*/events.jsonl")]
    return hold.exists() and any(f'"{hold.read_text()}"' in journal for journal in journals)

class Held(torch.nn.Linear):
    def forward(self, inputs):
        while self.training and waits():
            time.sleep(0.02)
        return super().forward(inputs)

def model():
    return torch.nn.Sequential(Held(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
"""

# A process that works on the run argv[1], but imports no torch. With argv[2] it does not hear that it is to stop.
LIGHT = """
import sys, time
from pathlib import Path
from randprune_lab import status

status._ANSWER = 1.0
with status.Attended(Path(sys.argv[1])):
    while True:
        try:
            print("works", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            if len(sys.argv) == 2:
                raise
"""


def until(condition, seconds=PATIENCE):
    """Wait for something; its first true value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} seconds")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A folder of runs; processes that a failing test leaves behind are ended."""
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    monkeypatch.setenv("RANDPRUNE_SLOTS", "1")
    yield tmp_path
    for record in status.all_live(tmp_path).values():
        process = record.process()
        if process is not None and process.pid != os.getpid():
            status.kill(process)


@pytest.fixture
def busy(runs):
    """The only slot is taken, by this process, until ``busy()`` frees it."""
    folder = runs / "taken"
    folder.mkdir()
    status.write(folder, Record(state="running", queued_at=1, slot=0).of(psutil.Process()))
    return lambda: shutil.rmtree(folder)


def state(folder):
    return jobs.status(folder).state


def states(*folders):
    return [(found.state, found.position) for found in map(jobs.status, folders)]


def pid_of(folder):
    return until(lambda: jobs.status(folder).pid)


def kinds(folder):
    return {event["kind"] for event in journal(folder)} if (folder / "events.jsonl").exists() else set()


def finishes(folder):
    found = jobs.wait(folder, timeout=PATIENCE)
    assert found.state == "finished", (found, (folder / "log.txt").read_text())
    assert found.message == ""


def gets_there(folder):
    """The same without the report, which takes a while: stopped then, it is finished all the same."""
    until(lambda: "run_finished" in kinds(folder))
    with contextlib.suppress(ValueError):  # it has ended by itself
        jobs.stop(folder)
    assert state(folder) == "finished"


def assert_as_in_this_process(folder, where):
    """The same story, weights and masks as of a run without any job."""
    config = store.read_config(folder)
    go_on(where, config)
    assert told(folder) == told(where)
    last = len(config.stages)
    assert same_tensors(read_tensors(boundary_file(folder, last)), read_tensors(boundary_file(where, last)))
    model = Path("model") / "model.safetensors"
    assert same_tensors(read_tensors(folder / model), read_tensors(where / model))


def starts(folder):
    """Its turn comes, and its process goes to work; that is stopped, since how it ends is shown elsewhere."""
    until(lambda: state(folder) == "running")
    jobs.stop(folder)
    assert state(folder) == "stopped"


def has_ended(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def python(code, *arguments, **options):
    """Another Python process, with this folder's modules at hand."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


# ---- from start to finish


def test_a_job_outlives_who_started_it_and_ends_like_a_run_in_this_process(runs, tmp_path_factory):
    """Its report shows the other run of its group, whose own report is written anew."""
    other = runs / "other"
    go_on(other, small(**QUICK, method="imp", group="both"))
    code = f"""
import os, signal
from support.runs import small
from randprune_lab import jobs
print(jobs.start(small(**{QUICK}, group="both")), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    starter = python(code)
    folder = Path(starter.communicate(timeout=PATIENCE)[0].strip())
    assert starter.returncode == -signal.SIGKILL
    assert folder.parent == runs
    assert jobs.status(folder).is_live
    until(lambda: state(folder) == "running")
    found = jobs.status(folder)
    assert (found.slot, found.is_live, found.can_resume) == (0, True, False)
    process = psutil.Process(found.pid)
    assert process.nice() >= 10
    if (shared := Path(f"/proc/{process.pid}/autogroup")).is_file():  # where sessions share out the processor first
        assert shared.read_text().strip().endswith("nice 10")
    assert process.environ()["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.getsid(found.pid) != os.getsid(0)
    finishes(folder)
    assert_as_in_this_process(folder, tmp_path_factory.mktemp("whole") / "run")
    assert not (folder / status.RESERVE).exists()
    assert not (folder / status.CANCEL).exists()
    assert "reported" in (folder / "log.txt").read_text().splitlines()[-1]
    assert "imp" in (folder / "report.html").read_text()
    assert "randomized" in (other / "report.html").read_text()
    with pytest.raises(ValueError, match="is finished, there is nothing to resume"):
        jobs.resume(folder)
    with pytest.raises(ValueError, match="is finished, there is nothing to stop"):
        jobs.stop(folder)


@pytest.mark.crash
def test_stopped_in_each_phase_and_killed_it_ends_the_same(runs, tmp_path_factory, monkeypatch):
    """The next one of the queue has its turn meanwhile; each report shows the other run of the group."""
    (runs / "held.py").write_text(HELD)
    hold = runs / "hold"
    monkeypatch.chdir(runs)
    hold.write_text("epoch_finished")
    config = small(**QUICK | {"dense_epochs": 2}, stages=(0.9,), model="held:model", executor="serial")
    folder, behind = jobs.start_all([config, controls(config)["imp-matched"]])
    until(lambda: "epoch_finished" in kinds(folder))
    assert states(folder, behind) == [("running", None), ("queued", 1)]
    jobs.stop(behind)
    jobs.stop(folder)
    assert (state(folder), jobs.status(folder).message) == ("stopped", "")
    assert "dense_finished" not in kinds(folder)
    hold.write_text("stage_started")
    jobs.resume(folder)
    until(lambda: "stage_started" in kinds(folder))
    jobs.stop(folder)
    assert (state(folder), jobs.status(folder).message) == ("stopped", "")
    assert "mask_chosen" not in kinds(folder)
    hold.write_text("mask_chosen")
    jobs.resume(folder)
    jobs.resume(behind)
    until(lambda: "mask_chosen" in kinds(folder))
    os.kill(pid_of(folder), signal.SIGKILL)
    until(lambda: state(folder) == "interrupted")
    hold.unlink()
    until(lambda: state(behind) in ("running", "finished"))
    assert "stage_finished" not in kinds(folder)
    assert "resume" in jobs.status(folder).message
    jobs.resume(folder)
    for each in (behind, folder):
        finishes(each)
        assert_as_in_this_process(each, tmp_path_factory.mktemp("whole") / "run")
    assert journal(behind)[-1]["time"] < journal(folder)[-1]["time"]
    resumed = [event["time"] for event in journal(folder) if event["kind"] == "resumed"]
    assert journal(behind)[-1]["time"] < resumed[-1]
    for each, other in ((folder, "imp-matched"), (behind, "randomized")):
        assert other in (each / "report.html").read_text()


def test_the_queue_keeps_its_order_and_closes_its_gaps(busy):
    folders = jobs.start_all([small(**LONG, seed=seed) for seed in range(4)])
    assert {store.read_config(folder).group for folder in folders} == {folders[0].name}
    assert states(*folders) == [("queued", 1), ("queued", 2), ("queued", 3), ("queued", 4)]
    for folder in folders:
        until(lambda folder=folder: "waits" in (folder / "log.txt").read_text())
    if sys.platform == "linux":
        libraries = {Path(library.path).name for library in psutil.Process(pid_of(folders[3])).memory_maps()}
        assert not [name for name in libraries if "torch" in name]
    jobs.stop(folders[0])
    os.kill(pid_of(folders[1]), signal.SIGKILL)
    until(lambda: state(folders[1]) == "interrupted")
    assert states(*folders) == [("stopped", None), ("interrupted", None), ("queued", 1), ("queued", 2)]
    jobs.resume(folders[1])
    assert states(*folders[1:]) == [("queued", 3), ("queued", 1), ("queued", 2)]
    with pytest.raises(ValueError, match=f"{folders[1].name}: is queued already. Wait for it, or stop it first"):
        jobs.resume(folders[1])
    jobs.stop(folders[3], wait=False)
    assert state(folders[3]) in ("stopping", "stopped")
    assert jobs.wait(folders[3], timeout=PATIENCE).state == "stopped"
    busy()
    until(lambda: states(folders[2], folders[1]) == [("running", None), ("queued", 1)])
    starts(folders[2])
    starts(folders[1])


def test_two_slots_are_two_runs_at_a_time(runs, monkeypatch):
    monkeypatch.setenv("RANDPRUNE_SLOTS", "2")
    folders = jobs.start_all([small(**LONG, seed=seed) for seed in range(3)])
    until(lambda: states(*folders) == [("running", None), ("running", None), ("queued", 1)])
    assert sorted(jobs.status(folder).slot for folder in folders[:2]) == [0, 1]
    jobs.stop(folders[0])
    until(lambda: state(folders[2]) == "running")
    assert jobs.status(folders[2]).slot != jobs.status(folders[1]).slot
    for folder in folders[1:]:
        jobs.stop(folder)
    assert not status.all_live(runs)


# ---- those who start, stop and resume


def test_who_dies_between_reserving_and_starting_leaves_a_run_that_can_be_resumed(runs):
    folder = store.new_folder(small(), parent=runs)
    store.write_config(folder, small(**LONG).model_dump(mode="json"))
    status.write(folder, Record(state="queued", queued_at=time.time_ns()))
    assert states(folder) == [("queued", 1)]
    status.write(folder, Record(state="queued", queued_at=time.time_ns() - 11 * 10**9))
    assert state(folder) == "interrupted"
    jobs.resume(folder)
    starts(folder)


@pytest.mark.crash
@pytest.mark.usefixtures("busy")
def test_two_who_resume_at_the_same_time_start_one_process(runs):
    folder = jobs.start(small())
    jobs.stop(folder)
    code = """
import sys, time
from pathlib import Path
from randprune_lab import jobs
(Path(sys.argv[2]) / f"ready{sys.argv[3]}").touch()
while not (Path(sys.argv[2]) / "go").exists():
    time.sleep(0.001)
try:
    jobs.resume(sys.argv[1])
    print("resumed")
except ValueError as error:
    print(error)
"""
    processes = [python(code, folder, runs, number) for number in range(3)]
    until(lambda: len(list(runs.glob("ready*"))) == 3)
    (runs / "go").touch()
    said = sorted(process.communicate(timeout=PATIENCE)[0].strip() for process in processes)
    assert said == [f"{folder.name}: is queued already. Wait for it, or stop it first."] * 2 + ["resumed"]
    workers = [one for one in psutil.process_iter(["cmdline"]) if str(folder) in (one.info["cmdline"] or [])]
    assert len(workers) == 1
    jobs.stop(folder)


@pytest.mark.usefixtures("busy")
def test_the_same_run_is_not_started_twice(runs):
    folder = jobs.start(small())
    for again in (small(), small(group="another"), small(executor="serial", wave=1)):
        with pytest.raises(ValueError, match=f"the same run waits or works already: {folder.name}"):
            jobs.start(again)
    before = sorted(runs.iterdir())
    with pytest.raises(ValueError, match="the same run"):
        jobs.start_all([small(seed=1), small(seed=2), small(seed=1)])
    assert sorted(runs.iterdir()) == before  # all or none
    other = jobs.start(small(seed=1))
    for each in (folder, other):
        jobs.stop(each)
    jobs.stop(jobs.start(small()))  # none of them is live now
    assert len(store.run_folders(runs)) == 4


def test_what_cannot_be_started_is_refused(runs, monkeypatch):
    with pytest.raises(ValueError, match="given from Python"):
        jobs.start(small(model="object"))
    monkeypatch.setenv("RANDPRUNE_SLOTS", "none")
    with pytest.raises(ValueError, match="RANDPRUNE_SLOTS = 'none': must be a whole number"):
        jobs.start(small())
    monkeypatch.setenv("RANDPRUNE_SLOTS", "3")
    assert jobs.slots() == 3
    monkeypatch.delenv("RANDPRUNE_SLOTS")
    assert jobs.slots() >= 1
    (runs / "file").touch()
    with pytest.raises(ValueError, match="cannot be written or deleted"):
        jobs.start(small(), parent=runs / "file")
    assert not store.run_folders(runs)
    for function in (jobs.status, jobs.stop, jobs.resume, jobs.wait, jobs.delete):
        with pytest.raises(ValueError, match="no run is there"):
            function(runs / "nowhere")
    assert not (runs / "nowhere").exists()


def test_a_run_of_another_program_is_seen_but_not_touched(runs, tmp_path_factory):
    """When that has stopped, anybody goes on with it, whatever cancel lies there; it ends as if nothing had been."""
    folder = runs / "own"
    working = store.record(folder, engine.prune(small(**QUICK)))
    while next(working).kind != "dense_finished":
        pass
    assert state(folder) == "running"
    assert "Another program" in jobs.status(folder).message
    for function, said in (
        (jobs.stop, "another program works on it .* Stop it there"),
        (jobs.resume, "is running already. Wait for it, or stop it first"),
        (jobs.delete, "a process works on it, or waits to. Stop it first"),
    ):
        with pytest.raises(ValueError, match=f"^own: {said}"):
            function(folder)
    with pytest.raises(ValueError, match="another process works on this run"), status.Attended(folder):
        pass
    working.close()
    (folder / status.CANCEL).touch()
    assert state(folder) == "stopped"
    jobs.resume(folder)
    gets_there(folder)
    assert "resumed" in kinds(folder)
    assert_as_in_this_process(folder, tmp_path_factory.mktemp("whole") / "run")


# ---- those who work


@pytest.fixture
def light(runs):
    """``light()`` starts a process that works on a run without torch: the run's folder, the process."""
    started = []

    def start(*arguments):
        folder = runs / f"light{len(started)}"
        store.write_config(folder, small(seed=len(started)).model_dump(mode="json"))
        started.append(python(LIGHT, folder, *arguments, stderr=subprocess.PIPE))
        assert started[-1].stdout.readline() == "works\n"
        assert state(folder) == "running"
        return folder, psutil.Process(started[-1].pid)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def caught():
    """``caught()`` starts a real run, in the middle of whose training we are: the run's folder, its process."""

    def start():
        folder = jobs.start(small(**LONG))
        until(lambda: "epoch_finished" in kinds(folder))
        return folder, psutil.Process(pid_of(folder))

    return start


# A process without torch, and a real run: both must end the same.
@pytest.fixture(params=["light", pytest.param("caught", marks=pytest.mark.crash)])
def at_work(request):
    return request.getfixturevalue(request.param)


def test_a_run_that_does_not_hear_ends_itself(light):
    folder, process = light("deaf")
    jobs.stop(folder)
    assert state(folder) == "stopped"
    assert process.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.crash
def test_a_training_that_does_not_hear_is_ended(runs, monkeypatch):
    (runs / "stubborn.py").write_text("""
import time, torch
from randprune_lab import status

status._ANSWER = 1.0

class Stubborn(torch.nn.Linear):
    def forward(self, inputs):
        open("here", "w").close()
        while self.training:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
        return super().forward(inputs)

def model():
    return torch.nn.Sequential(Stubborn(64, 32), torch.nn.Linear(32, 10))
""")
    monkeypatch.chdir(runs)
    folder = jobs.start(small(model="stubborn:model"))
    until(lambda: (runs / "here").exists())
    jobs.stop(folder)
    assert state(folder) == "stopped"


def test_who_stops_a_frozen_run_ends_it(at_work, monkeypatch):
    folder, process = at_work()
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(jobs, "_PATIENCE", 1)
    jobs.stop(folder)
    assert state(folder) == "interrupted"


def test_a_run_that_is_killed_is_interrupted(at_work):
    folder, process = at_work()
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: state(folder) == "interrupted")
    assert "It was killed" in jobs.status(folder).message


def test_terminated_by_the_system_it_has_stopped(at_work):
    folder, process = at_work()
    process.terminate()
    assert jobs.wait(folder, timeout=PATIENCE).state == "stopped"


def assert_it_ends_and_stays_deleted(folder, process):
    with contextlib.suppress(ValueError):
        jobs.delete(folder)
    assert folder.exists()  # not while it lives
    until(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists())  # it is being written
    until(lambda: has_ended(process))
    assert not [path for path in folder.parent.iterdir() if path.name == folder.name]


@pytest.mark.parametrize("phase", ["starting", "queued"])
@pytest.mark.usefixtures("busy")
def test_a_deleted_folder_ends_its_job_and_stays_deleted(phase):
    folder = jobs.start(small(**LONG))
    process = psutil.Process(pid_of(folder))
    if phase == "queued":
        until(lambda: "waits" in (folder / "log.txt").read_text())
    assert_it_ends_and_stays_deleted(folder, process)


def test_a_deleted_folder_ends_its_run_and_stays_deleted(at_work):
    folder, process = at_work()
    assert_it_ends_and_stays_deleted(folder, process)


def test_a_status_that_somebody_spoils_is_mended(at_work):
    folder, process = at_work()
    (folder / "status.json").write_text("[")
    until(lambda: state(folder) == "running" and jobs.status(folder).pid == process.pid)
    jobs.stop(folder)
    assert state(folder) == "stopped"


def test_who_finds_another_process_in_its_place_gives_up(at_work):
    folder, process = at_work()
    status.write(folder, Record(state="running", queued_at=1).of(psutil.Process()))
    until(lambda: has_ended(process))
    assert status.read(folder).pid == os.getpid()


# ---- failures


def worked(folder, config, capsys):
    """A job's work in this process: exit code and log."""
    folder.mkdir()
    store.write_config(folder, config.model_dump(mode="json"))
    status.write(folder, Record(state="queued", queued_at=time.time_ns()))
    code = work.main([str(folder)])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.fixture
def same_priority(monkeypatch):
    monkeypatch.setattr(work, "_lower_priority", lambda: None)


@pytest.mark.usefixtures("same_priority")
@pytest.mark.parametrize(
    ("error", "said", "traced"),
    [
        (ValueError("seed = 7: is no good."), "seed = 7: is no good.", False),
        (Diverged("loss = nan. Lower learning_rate."), "loss = nan. Lower learning_rate.", False),
        (OutOfMemory("out of memory. Resume with a smaller wave."), "Resume with a smaller wave", False),
        (OSError(28, "No space left on device"), "The disk is full. What was saved is intact", False),
        (OSError(5, "Input/output error"), "Input/output error", False),
        (RuntimeError("shapes cannot be\nmultiplied"), "RuntimeError: shapes cannot be multiplied; see log.txt", True),
        (KeyError("x"), "KeyError: 'x'; see log.txt", True),
    ],
)
def test_a_run_that_fails_says_why(error, said, traced, runs, monkeypatch, capsys):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(engine, "prune", failing)
    code, log = worked(runs / "run", small(), capsys)
    found = jobs.status(runs / "run")
    assert (code, found.state, found.can_resume) == (1, "failed", True)
    assert said in found.message
    assert "\n" not in found.message
    assert ("Traceback" in log) == traced


@pytest.mark.usefixtures("busy")
def test_a_run_that_failed_is_resumed_with_another_wave(runs):
    store.write_config(runs / "run", small().model_dump(mode="json"))
    status.write(runs / "run", Record(state="failed", queued_at=1, message="out of memory"))
    jobs.resume(runs / "run", wave=1)
    assert states(runs / "run") == [("queued", 1)]
    assert psutil.Process(pid_of(runs / "run")).cmdline()[-2:] == ["--wave", "1"]
    jobs.stop(runs / "run")


@pytest.mark.usefixtures("same_priority")
def test_a_report_that_fails_spoils_no_run(runs, monkeypatch, capsys):
    def failing(_):
        raise RuntimeError("no colours")

    monkeypatch.setattr(work, "_conclude", failing)
    code, log = worked(runs / "run", small(method="imp"), capsys)
    found = jobs.status(runs / "run")
    assert (code, found.state) == (0, "finished")
    assert "no colours" in found.message
    assert "Traceback" in log


def test_a_diverged_run_has_failed_and_says_why():
    folder = jobs.start(small(method="imp", learning_rate=1e30))
    found = jobs.wait(folder, timeout=PATIENCE)
    assert found.state == "failed"
    assert "learning" in found.message
    assert "Traceback" not in (folder / "log.txt").read_text()
    (listed,) = store.runs(folder.parent)
    assert listed.status == "stopped"  # as far as its files tell


@pytest.fixture
def small_disk(tmp_path_factory):
    """A file system of its own, 1 MB large; ``grow()`` enlarges it."""
    place = tmp_path_factory.mktemp("disk")

    def mount(*options):
        return subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode

    if sys.platform != "linux" or os.geteuid() or mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        pytest.skip("only root may mount a small file system")
    yield place, lambda: mount("-o", "remount,size=100m")
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.crash
def test_a_full_disk_stops_the_run_and_says_what_to_do(small_disk, tmp_path_factory):
    place, grow = small_disk
    folder = jobs.start(small(method="imp"), parent=place)
    found = jobs.wait(folder, timeout=PATIENCE)
    assert (found.state, found.message) == (
        "failed",
        "The disk is full. What was saved is intact: free some space, then resume.",
    )
    (place / "rest").write_bytes(b"")
    with contextlib.suppress(OSError), (place / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    before = sorted(place.iterdir())
    for attempt in (lambda: jobs.start(small(seed=1), parent=place), lambda: jobs.resume(folder)):
        with pytest.raises(ValueError, match=r"[Tt]he disk is full"):
            attempt()
    assert sorted(place.iterdir()) == before
    assert state(folder) in ("failed", "interrupted")
    grow()
    jobs.resume(folder)
    gets_there(folder)
    assert_as_in_this_process(folder, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.crash
def test_a_file_that_cannot_grow_stops_the_run():
    """Where no small file system can be made: the process may write no file beyond 300 kB."""
    resource = pytest.importorskip("resource")
    code = "from support.runs import small; from randprune_lab import jobs; print(jobs.start(small(method='imp')))"
    most = (300_000, 300_000)
    process = python(code, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, most))
    folder = Path(process.communicate(timeout=PATIENCE)[0].strip())
    found = jobs.wait(folder, timeout=PATIENCE)
    assert found.state == "failed"
    assert "File too large" in found.message
    jobs.resume(folder)
    gets_there(folder)


# ---- what lies in the folder


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
records = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["queued", "running", "stopping", "finished", "stopped", "failed", "", 3]),
        "queued_at": json_values | st.integers(0, 2**64),
        "pid": json_values | st.integers(-1, 2**33),
        "created": json_values,
        "host": st.sampled_from(["", "elsewhere", platform.node(), None]),
        "slot": json_values,
        "message": json_values,
    },
)
contents = st.binary(max_size=30) | (json_values | records).map(lambda value: json.dumps(value).encode())
STATES = {"queued", "running", "stopping", "finished", "stopped", "failed", "interrupted", "damaged"}


@settings(max_examples=100, deadline=None)
@given(
    files=st.dictionaries(
        st.sampled_from(["status.json", "events.jsonl", "config.json", "cancel", ".lock", "note.txt"]),
        contents | st.none(),
    )
)
def test_whatever_lies_in_a_folder_its_status_is_told(tmp_path_factory, files):
    parent = tmp_path_factory.mktemp("any")
    (parent / "run").mkdir()
    for name, content in files.items():
        if content is None:
            (parent / "run" / name).mkdir()
        else:
            (parent / "run" / name).write_bytes(content)
    found = jobs.status(parent / "run")
    assert found.state in STATES
    assert "\n" not in found.message
    assert all(run.folder == parent / "run" for run in store.runs(parent))
    assert isinstance(jobs.read_note(parent / "run"), str)
    shutil.rmtree(parent)


@pytest.mark.parametrize(
    ("age", "expected"), [(0, "running"), (9, "running"), (11, "interrupted"), (-60, "interrupted")]
)
def test_of_another_machine_the_heartbeat_tells(age, expected, runs):
    store.write_config(runs / "run", small().model_dump(mode="json"))
    record = Record(state="running", queued_at=1).of(psutil.Process(), host="elsewhere")
    status.write(runs / "run", record)
    now = time.time()
    os.utime(runs / "run" / "status.json", (now - age, now - age))
    found = jobs.status(runs / "run")
    assert found.state == expected
    assert found.age == pytest.approx(age, abs=1)
    if found.is_live:
        jobs.stop(runs / "run", wait=False)
        assert state(runs / "run") == "stopping"


def test_a_number_that_another_process_has_now_is_not_the_job(runs):
    store.write_config(runs / "run", small().model_dump(mode="json"))
    record = Record(state="running", queued_at=1).of(psutil.Process())
    status.write(runs / "run", record.model_copy(update={"created": record.created - 60}))
    assert state(runs / "run") == "interrupted"
    zombie = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process = psutil.Process(zombie.pid)
    status.write(runs / "run", Record(state="running", queued_at=1).of(process))
    until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert state(runs / "run") == "interrupted"
    zombie.wait()


@pytest.mark.parametrize("spoilt", ["config.json", "events.jsonl"])
def test_a_damaged_run_is_listed_and_can_be_deleted(spoilt, runs):
    go_on(runs / "good", small(method="imp"))
    shutil.copytree(runs / "good", runs / "bad")
    (runs / "bad" / spoilt).write_text("{\n")
    assert [(run.folder.name, run.status) for run in store.runs()] == [("bad", "damaged"), ("good", "finished")]
    assert states(runs / "bad", runs / "good") == [("damaged", None), ("finished", None)]
    assert spoilt in jobs.status(runs / "bad").message
    with pytest.raises(ValueError, match=r"is damaged, there is nothing to resume|is no configuration of a run"):
        jobs.resume(runs / "bad")
    jobs.delete(runs / "bad")
    assert [run.folder.name for run in store.runs()] == ["good"]


def test_only_a_run_is_deleted(runs):
    (runs / "model").mkdir()
    (runs / "model" / "config.json").write_text('{"architectures": ["BertModel"]}')
    go_on(runs / "run", small(method="imp"))
    (runs / "link").symlink_to(runs / "run")
    for name in ("model", "link", "", ".."):
        with pytest.raises(ValueError, match="no run is there"):
            jobs.delete(runs / name)
    assert (runs / "model" / "config.json").exists()
    jobs.delete(runs / "run")
    assert not (runs / "run").exists()


def test_notes(runs):
    store.write_config(runs / "run", RunConfig().model_dump(mode="json"))
    assert jobs.read_note(runs / "run") == ""
    jobs.write_note(runs / "run", "two\nlines, ünïcode \ud800")
    assert jobs.read_note(runs / "run") == "two\nlines, ünïcode ?"
    with pytest.raises(ValueError, match="10,001 characters"):
        jobs.write_note(runs / "run", "x" * 10_001)
    with pytest.raises(ValueError, match="no run is there"):
        jobs.write_note(runs, "text")


# ---- the rest


@pytest.mark.parametrize(
    ("slot", "gpus", "visible", "expected"),
    [
        (0, 2, None, "0"),
        (1, 2, None, "1"),
        (1, 2, "", "1"),
        (1, 2, "5, 3", "3"),
        (3, 2, "5,3", "3"),
        (0, 1, "GPU-a", "GPU-a"),
    ],
)
def test_each_slot_has_a_gpu_of_its_own(slot, gpus, visible, expected):
    assert work.gpu_of(slot, gpus, visible) == expected


def test_who_waits_imports_no_torch():
    code = """
import sys, randprune_lab.status, randprune_lab.work
assert not {"torch", "numpy", "safetensors"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
