"""The runs of a study: each is made once, whatever is killed, damaged or done at the same time."""

import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import random
import re
import shutil
import time
from types import SimpleNamespace

import filelock
import psutil
import pytest
import torch
from support.studies import LINES, TINY, here, made, pretend, study

from randprune_lab import store, study_runs
from randprune_lab.config import RunConfig
from randprune_lab.engine import prune
from randprune_lab.studies import expand
from randprune_lab.study_report import conclude
from randprune_lab.study_runs import (
    BUSY_RUN,
    Job,
    State,
    finished_story,
    is_finished,
    is_running,
    kind_of,
    make_run,
    missing,
    read_asked,
    read_state,
    run_folder,
    run_study,
    studies_folder,
    study_folders,
)

PATIENCE = 120  # seconds after which something will never come
TABLES = ("results.csv", "candidates.csv", "claims.json")
CLAIM = {"says": "It helps.", "above": "randomized", "below": "IMP"}
DIVERGES = {"learning_rate": 1e30}


def asked_of_all():
    """What the studies of several processes ask: eight runs."""
    return study("all", seeds=4, claims=[CLAIM])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nobody disturbed, and the folder of studies."""
    parent = tmp_path_factory.mktemp("whole")
    folder = made(asked_of_all(), parent)
    conclude(folder)
    return folder


@pytest.fixture
def job(tmp_path):
    """A run to make."""
    return Job(RunConfig(**TINY), tmp_path / "runs" / "one")


def run_of(folder):
    """Its story without times and, as resuming does not count, without what was said twice."""
    return [json.dumps(event.to_json()) for event in store.story(folder)]


# ---- a study


def test_a_study_makes_its_runs_once(tmp_path, monkeypatch):
    told = []
    asked = study(lines=LINES | {"same": {"power": 5.0}}, base={"power": 5.0})
    folder = run_study(asked, parent=tmp_path, spread=here, tell=lambda *at: told.append(at))
    ids = {run.id for run in expand(asked)}
    assert folder == tmp_path / "tiny"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == ids
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]  # "same" is the same
    state = read_state(folder)
    assert (state.done, state.of, state.failed) == (4, 4, {})
    assert state.seconds.keys() == ids
    assert min(state.seconds.values()) > 0
    assert (state.pid, state.began) == (os.getpid(), psutil.Process().create_time())
    assert read_asked(folder) == asked
    assert study_folders(tmp_path) == [folder]
    assert not missing(asked, tmp_path)
    assert not is_running(folder)
    monkeypatch.setattr(study_runs, "events_of", None)  # whoever made a run now would fail
    assert made(asked, tmp_path) == folder
    assert read_state(folder).seconds == state.seconds


def test_processes_make_what_one_makes(whole, tmp_path):
    folder = run_study(asked_of_all(), parent=tmp_path, processes=2)
    conclude(folder)
    for name in TABLES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    left = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_dir() or path.suffix == ".safetensors"}
    assert left == {run.id for run in expand(asked_of_all())}  # weights are not kept


def test_studies_live_among_the_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    assert studies_folder() == tmp_path / "studies"
    assert study_folders() == []
    folder = run_study(study(lines={"IMP": {"method": "imp"}}, seeds=1), spread=here)
    assert study_folders() == [folder] == [tmp_path / "studies" / "tiny"]
    assert store.run_folders() == []  # the runs of studies are not listed among others


def test_a_study_may_grow_and_another_may_share_its_runs(whole, tmp_path):
    parent = tmp_path / "studies"
    shutil.copytree(whole.parent, parent)
    written = {path: path.stat().st_mtime_ns for path in (parent / "runs").rglob("events.jsonl")}
    more = study("more", seeds=5)
    assert len(missing(more, parent)) == 2
    made(more, parent)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list((parent / "runs").iterdir())) == len(written) + 2


def test_a_folder_of_another_study_is_not_taken(tmp_path):
    asked = study(lines={"IMP": {"method": "imp"}}, seeds=1)
    folder = made(asked, tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"holds another study of this name.*--name.*its runs stay"):
        made(asked.model_copy(update={"seeds": [5]}), tmp_path)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for later in ({"seeds": [0, 5]}, {"x": "sparsity"}):  # what is asked is not chosen by what came of it
        with pytest.raises(ValueError, match="with another"):
            made(asked.model_copy(update=later), tmp_path)
    made(asked.model_copy(update={"title": "Said otherwise"}), tmp_path)
    assert read_asked(folder).title == "Said otherwise"


def test_a_study_of_tuples_goes_on(tmp_path):
    asked = study(base={"stages": (0.5, 0.9)}, lines={"IMP": {"method": "imp"}}, seeds=1)
    assert made(asked, tmp_path) == made(asked, tmp_path)


def test_weights_that_another_study_wants_stay(tmp_path, job):
    """Killed between a run's end and the dropping of its weights, a study drops them later, unless they are wanted."""
    lines = {"IMP": {"method": "imp"}}
    plain, wants = (study(name, lines=lines, seeds=1, kept=kept) for name, kept in (("a", "results"), ("b", "weights")))
    (run,) = expand(plain)
    folder = run_folder(tmp_path, run.id)
    list(store.record(folder, prune(run.config)))
    run_study(wants, parent=tmp_path)
    made(plain, tmp_path)
    assert (folder / "model").is_dir()
    assert missing(wants, tmp_path) == {}
    list(store.record(job.folder, prune(job.config)))
    assert make_run(job) == ("", 0.0)
    assert not (job.folder / "model").exists()


def test_how_far_it_is_is_not_written_for_every_run_of_many(tmp_path, monkeypatch):
    written = []
    real = study_runs.write_atomically
    monkeypatch.setattr(
        study_runs,
        "write_atomically",
        lambda path, *what, **more: written.append(path.name) or real(path, *what, **more),
    )
    asked = study(seeds=40)
    told = []
    run_study(
        asked,
        parent=tmp_path,
        spread=lambda left: ((run, "not made") for run in list(left)[1:]),
        tell=lambda *n: told.append(n),
    )
    assert len(told) == 80
    assert written.count("state.json") < 20
    assert read_state(tmp_path / "tiny").done == 79


def test_what_cannot_be_made_is_refused_before_work_starts(tmp_path):
    lines = {"good": {}, "bad": {"model": str(tmp_path / "none")}}
    with pytest.raises(ValueError, match="none"):
        made(study(lines=lines), tmp_path)
    assert not (tmp_path / "runs").exists()
    assert study_folders(tmp_path) == []
    with pytest.raises(ValueError, match=r"only results come back from it\. Pass kept = 'results'"):
        made(study(kept="weights"), tmp_path)


def test_a_machine_that_only_asks_needs_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = study(base={"device": "cuda", "executor": "ray"}, seeds=1)
    with pytest.raises(ValueError, match="device = 'cuda': not available here"):
        run_study(asked, parent=tmp_path)
    folder = pretend(asked, tmp_path)
    assert read_state(folder).done == 2


def test_kinds_are_told_apart_by_what_a_run_is_built_of():
    one = RunConfig(**TINY)
    assert kind_of(one) == kind_of(one.model_copy(update={"seed": 3, "samples": 9, "power": 1.0, "candidates": 9}))
    for name, value in {"model": "tiny-cnn", "include": ("0",), "batch_size": 2, "teacher": "x", "augment": 3}.items():
        assert kind_of(one) != kind_of(one.model_copy(update={name: value}))


# ---- runs that fail


def test_a_run_that_fails_is_told_among_others_that_do_not(tmp_path):
    asked = study(lines={"good": {}, "bad": DIVERGES}, seeds=2)
    for _ in range(2):  # once more: it is tried again, and the others are not
        folder = made(asked, tmp_path)
        state = read_state(folder)
        assert (state.done, state.of) == (4, 4)
        bad = {run.id for run in expand(asked) if run.line == "bad"}
        assert state.failed.keys() == missing(asked, tmp_path).keys() == bad
        assert all("learning_rate" in why or "loss" in why for why in state.failed.values())
    results = conclude(folder)
    assert (results.finished, results.of) == (2, 4)
    assert set(results.stages["line"]) == {"good"}


def test_the_same_in_processes_of_their_own(job):
    bad = dataclasses.replace(job, config=job.config.model_copy(update=DIVERGES))
    problem, seconds = make_run(bad)
    assert "\n" not in problem
    assert re.search("NaN|infinite|failed|loss", problem)
    assert seconds > 0
    assert not is_finished(bad.folder)


def test_where_all_fail_the_first_is_told(tmp_path):
    asked = study(base=DIVERGES)
    with pytest.raises(ValueError, match=r"tiny: not one run could be made\. The first: ") as error:
        made(asked, tmp_path)
    state = read_state(tmp_path / "tiny")
    assert len(state.failed) == state.of == 4
    assert next(iter(state.failed.values())) in str(error.value)
    assert not is_running(tmp_path / "tiny")  # it lets go of its folder


def test_runs_of_another_version_are_told_apart(whole, tmp_path):
    parent = tmp_path / "studies"
    shutil.copytree(whole.parent, parent)
    conclude(parent / "all")
    assert "versions of this lab" not in (parent / "all" / "report.html").read_text()
    first, second = (parent / "runs" / run.id / "events.jsonl" for run in expand(asked_of_all())[:2])
    for journal, lab in ((first, ', "lab": "0.0.9"'), (second, "")):  # of before it was written down
        text, count = re.subn(r', "lab": "[^"]*"', lab, journal.read_text(), count=1)
        assert count == 1
        journal.write_text(text)
    results = conclude(parent / "all")
    ours = importlib.metadata.version("randprune-lab")
    assert set(results.stages["lab"]) == {"0.0.9", "", ours}
    told = f"The runs are of several versions of this lab (0.0.9, {ours}, unknown)"
    assert told in (parent / "all" / "report.html").read_text()


# ---- one run


def test_a_run_leaves_what_it_said_but_no_weights(job):
    assert make_run(job)[0] == ""
    assert is_finished(job.folder)
    assert {path.name for path in job.folder.iterdir() if path.name != ".lock"} == {"config.json", "events.jsonl"}
    written = (job.folder / "events.jsonl").stat().st_mtime_ns
    assert make_run(job) == ("", 0.0)  # another study has made it since this one planned it
    assert (job.folder / "events.jsonl").stat().st_mtime_ns == written


def test_weights_are_kept_where_they_are_wanted(job):
    make_run(job)
    told = run_of(job.folder)
    wants = dataclasses.replace(job, weights=True)
    assert not is_finished(job.folder, weights=True)
    assert make_run(wants)[0] == ""
    assert is_finished(job.folder, weights=True)
    assert list((job.folder / "model").iterdir())
    assert run_of(job.folder) == told
    make_run(job)  # that does not want them leaves them alone
    assert is_finished(job.folder, weights=True)


def test_a_run_goes_on_where_it_was_stopped(job, tmp_path):
    whole = dataclasses.replace(job, folder=tmp_path / "whole")
    make_run(whole)
    told = run_of(whole.folder)
    for events in range(1, len(told), 3):
        stream = store.record(job.folder, study_runs.prune(job.config))
        for _ in range(events):
            next(stream)
        stream.close()
        assert not is_finished(job.folder)
        assert make_run(job)[0] == ""
        ours = [event for event in run_of(job.folder) if json.loads(event)["kind"] not in ("resumed", "warned")]
        assert ours == told
        shutil.rmtree(job.folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.jsonl", b"nonsense\n"),
        ("events.jsonl", b"\xff\xfe\n"),
        ("events.jsonl", b'{"kind": "run_finished"}\n'),
        ("events.jsonl", b'{"kind": "of a later version"}\n'),
        ("events.jsonl", b""),
        ("events.jsonl", None),
    ],
)
def test_a_damaged_run_is_made_again(whole, tmp_path, name, content):
    planned = expand(asked_of_all())[0]
    folder = tmp_path / planned.id
    shutil.copytree(whole.parent / "runs" / planned.id, folder)
    told = run_of(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert not is_finished(folder)
    assert make_run(Job(planned.config, folder)) != ("", 0.0)
    assert run_of(folder) == told


def test_a_run_that_was_stopped_and_damaged_begins_anew(job):
    for damaged in ("config.json", "checkpoints", "events.jsonl"):
        stream = store.record(job.folder, study_runs.prune(job.config))
        for _ in range(6):
            next(stream)
        stream.close()
        for path in [job.folder / damaged, *(job.folder / damaged).glob("*")]:
            if path.is_file():
                path.write_bytes(b"nonsense\n")
        assert make_run(job)[0] == ""
        assert is_finished(job.folder)
        shutil.rmtree(job.folder)


def test_a_finished_run_without_its_configuration_still_counts(whole, tmp_path):
    """What it was is in its name and in its first event."""
    planned = expand(asked_of_all())[0]
    folder = tmp_path / "runs" / planned.id
    shutil.copytree(whole.parent / "runs" / planned.id, folder)
    (folder / "config.json").unlink()
    assert is_finished(folder)
    assert finished_story(folder)


def test_a_run_that_another_study_makes_is_waited_for(tmp_path, monkeypatch):
    asked = study(seeds=1)
    first = expand(asked)[0]
    folder = tmp_path / "runs" / first.id
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / ".lock")
    lock.acquire()
    assert make_run(Job(first.config, folder)) == (BUSY_RUN, 0.0)
    waited = []
    own_time = SimpleNamespace(sleep=lambda seconds: waited.append(seconds) or lock.release(), monotonic=time.monotonic)
    monkeypatch.setattr(study_runs, "time", own_time)  # of that module alone: whoever asks for a lock sleeps, too
    told = []
    run_study(asked, parent=tmp_path, spread=here, tell=lambda *at: told.append(at))
    assert waited == [study_runs.BUSY]
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert not missing(asked, tmp_path)


def test_whoever_is_a_moment_quicker_is_not_disturbed(job, tmp_path, monkeypatch):
    """Another study begins, or ends, a run just after this one has looked."""
    other = dataclasses.replace(job, folder=tmp_path / "other")
    make_run(other)
    looked = iter([False])
    looks = study_runs.is_finished

    def late(folder, weights=False):
        seen = next(looked, None)
        if seen is None:
            return looks(folder, weights)
        shutil.copytree(other.folder, job.folder)
        return seen

    monkeypatch.setattr(study_runs, "is_finished", late)
    assert make_run(job)[0] == BUSY_RUN  # which is looked at again
    assert run_of(job.folder) == run_of(other.folder)
    assert make_run(job) == ("", 0.0)


# ---- damaged files of a study


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b'{"done": 3}',
        b'{"done": "x", "of": 1}',
        b'{"done": 1, "of": 1, "seconds": null}',
    ],
)
def test_a_damaged_state_is_nothing_done(whole, tmp_path, content):
    parent = tmp_path / "studies"
    shutil.copytree(whole.parent, parent)
    (parent / "all" / "state.json").write_bytes(content)
    assert read_state(parent / "all") == State(0, 0)
    made(asked_of_all(), parent)
    assert (read_state(parent / "all").done, read_state(parent / "all").of) == (8, 8)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "all"}', b"\xff"])
def test_a_damaged_study_is_told(whole, tmp_path, content):
    parent = tmp_path / "studies"
    shutil.copytree(whole.parent, parent)
    path = parent / "all" / "study.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"study.json: cannot be read .*Remove that file and start the study again"):
        made(asked_of_all(), parent)
    path.unlink()
    made(asked_of_all(), parent)
    assert read_asked(parent / "all") == asked_of_all()


def test_a_disk_that_cannot_be_written(tmp_path, job):
    asked = study(lines={"IMP": {"method": "imp"}}, seeds=1)
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(OSError, match="runs"):
        made(asked, tmp_path)
    with pytest.raises(OSError, match="runs"):
        make_run(job)  # its folder would lie in the same place
    (tmp_path / "runs").unlink()
    made(asked, tmp_path)
    assert not missing(asked, tmp_path)


# ---- killed, and several at a time

SERVER = multiprocessing.get_context("forkserver")  # it imports once what every process of a study needs
SERVER.set_forkserver_preload(["randprune_lab.study_report", "sklearn.datasets", "sklearn.model_selection"])


def work(asked, parent, processes):
    """In a process of its own: a study, and what it said where it could not go on."""
    try:
        run_study(asked, parent=parent, processes=processes)
    except ValueError as error:
        (parent / "said.txt").write_text(str(error))
        raise


@pytest.fixture
def start():
    """Begin a study in a process of its own."""
    begun = []

    def begin(asked, parent, processes=1):
        begun.append(SERVER.Process(target=work, args=(asked, parent, processes)))
        begun[-1].start()
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.join()


def ended(process):
    """Its exit code."""
    process.join(PATIENCE)
    return process.exitcode


def journals(parent):
    """The number of lines of each run's journal."""
    return {path.parent.name: path.read_bytes().count(b"\n") for path in (parent / "runs").glob("*/events.jsonl")}


def wait_for(happened, process):
    """Until it has, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while process.is_alive() and not happened():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.crash
def test_killed_five_times_and_started_again(whole, tmp_path, start):
    """SIGKILL of the asking process at five moments, drawn with a fixed seed: whenever so many lines are there.

    Of the first half: a run takes a tenth of a second, and whoever waits for a moment may be late by some of them.
    """
    asked, generator = asked_of_all(), random.Random(8)
    parent = tmp_path / "studies"
    moments = sorted(generator.sample(range(1, sum(journals(whole.parent).values()) // 2), 5))
    finished = {}
    for place, moment in enumerate(moments):
        process = start(asked, parent, 1 + place % 2)
        wanted = max(moment, sum(journals(parent).values()) + 1)
        wait_for(lambda lines=wanted: sum(journals(parent).values()) >= lines, process)
        assert process.is_alive()
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.join()
        assert workers
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive  # they end with whom they work for
        for path in (parent / "runs").glob("*/events.jsonl"):
            if is_finished(path.parent):
                finished.setdefault(path, path.stat().st_mtime_ns)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert 0 < len(missing(asked, parent)) < 8  # neither too early nor too late
    assert ended(start(asked, parent)) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert read_state(parent / "all").seconds.keys() <= {run.id for run in expand(asked)}
    conclude(parent / "all")
    for name in TABLES:
        assert (parent / "all" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.crash
def test_two_studies_at_once_share_runs_and_two_processes_no_study(whole, tmp_path, start):
    parent = tmp_path / "studies"
    asked = asked_of_all()
    one, two = start(asked, parent), start(asked.model_copy(update={"name": "other"}), parent)
    wait_for(lambda: (parent / "all" / "state.json").exists(), one)
    assert is_running(parent / "all")
    with pytest.raises(
        ValueError, match=r"another process is working on this study\. Wait for it, or give yours another"
    ):
        made(asked, parent)
    for process in (one, two):
        assert ended(process) == 0
    assert not is_running(parent / "all")
    for name in ("all", "other"):
        state = read_state(parent / name)
        assert (state.done, state.of, state.failed) == (8, 8, {})
        conclude(parent / name)
        for table in TABLES:
            assert (parent / name / table).read_bytes() == (whole / table).read_bytes()
    for run in expand(asked):
        journal = (parent / "runs" / run.id / "events.jsonl").read_text().splitlines()
        kinds = [json.loads(line)["kind"] for line in journal]
        assert kinds.count("run_started") == kinds.count("run_finished") == 1  # it was made once


def test_a_worker_that_is_killed_is_told_and_the_study_goes_on(whole, tmp_path, start):
    parent, asked = tmp_path / "studies", asked_of_all()
    process = start(asked, parent)
    wait_for(lambda: sum(journals(parent).values()) > 20, process)
    (worker,) = [
        child for child in psutil.Process(process.pid).children() if "resource_tracker" not in str(child.cmdline())
    ]
    worker.kill()
    assert ended(process) == 1
    assert (parent / "said.txt").read_text().startswith("a process that was making runs has been killed, as happens")
    assert 0 < len(missing(asked, parent)) < 8
    made(asked, parent)
    conclude(parent / "all")
    assert (parent / "all" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
