"""Killed at any moment, a run goes on and ends with the very bits of one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.killed_run import KILLED
from support.paths import TESTS
from support.runs import (
    boundary_file,
    conv_parts,
    go_on,
    journal,
    read_tensors,
    same_tensors,
    stop_after,
    tiny,
    tiny_parts,
    told,
)
from torch import nn

from randprune_lab import engine, store
from randprune_lab.events import CandidateScored, Checkpoint, RunFinished

PATIENT = {"patience": 1, "max_epochs": 3, "emep_epochs": 2, "stages": (0.5, 0.9), "candidates": 2}


def result(folder: Path, config) -> tuple[list[dict], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All that must be equal: the story without times, the last checkpoint, the finished model."""
    return (
        told(folder),
        read_tensors(boundary_file(folder, len(config.stages))),
        read_tensors(folder / "model" / "model.safetensors"),
    )


def assert_same(one, other):
    assert one[0] == other[0]
    assert same_tensors(one[1], other[1])
    assert same_tensors(one[2], other[2])


def scored(records: list[dict]) -> list[tuple[int, int]]:
    return [(record["stage"], record["candidate"]) for record in records if record["kind"] == "candidate_scored"]


def assert_nothing_judged_twice(folder: Path, config):
    """Neither in the story nor in the journal, where what was superseded stands too."""
    everything = [
        (stage + 1, candidate) for stage in range(len(config.stages)) for candidate in range(config.candidates)
    ]
    assert scored(told(folder)) == everything
    assert sorted(scored(journal(folder))) == everything


@pytest.fixture
def quick(monkeypatch):
    """Do not wait for the disk: what is read back here was written by this machine, still up."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# ---- stopped between any two things that the engine says


def whole_run(tmp_path_factory, config, parts):
    folder = tmp_path_factory.mktemp("whole") / "run"
    go_on(folder, config, **parts())
    items = len(list(engine.prune(config, **parts())))
    return folder, items


CRASH = pytest.mark.crash


@pytest.fixture(scope="module", params=["patient", *(pytest.param(name, marks=CRASH) for name in ("plain", "conv"))])
def undisturbed(request, tmp_path_factory):
    config = tiny(**(PATIENT if request.param == "patient" else {}))
    parts = conv_parts if request.param == "conv" else tiny_parts
    folder, items = whole_run(tmp_path_factory, config, parts)
    return config, parts, result(folder, config), items


@pytest.mark.usefixtures("quick")
def test_stopped_after_any_item_it_ends_the_same(tmp_path, undisturbed):
    config, parts, expected, items = undisturbed
    assert items > 30
    step = 1 if parts is tiny_parts and "patience" not in config.model_fields_set else 3  # others: seconds saved
    for taken in range(1, items, step):
        folder = tmp_path / str(taken)
        stop_after(folder, config, taken, **parts())
        assert told(folder) == expected[0][: len(told(folder))]
        go_on(folder, config, **parts())
        assert_same(result(folder, config), expected)
        assert_nothing_judged_twice(folder, config)


@pytest.mark.crash
@pytest.mark.usefixtures("quick")
def test_closed_after_any_event_it_ends_the_same(tmp_path):
    """As a person does it who breaks out of the loop: record's iterator is closed, not the engine's."""
    config = tiny()
    go_on(tmp_path / "whole", config, **tiny_parts())
    expected = result(tmp_path / "whole", config)
    for taken in range(1, len(expected[0])):
        folder = tmp_path / str(taken)
        stream = store.record(folder, engine.prune(config, **tiny_parts()))
        for _ in range(taken):
            next(stream)
        stream.close()
        go_on(folder, config, **tiny_parts())
        assert_same(result(folder, config), expected)
        assert_nothing_judged_twice(folder, config)


@pytest.mark.parametrize("pace", [4, 6])
def test_stopped_again_and_again_it_gets_there(tmp_path, pace):
    """Each time a few items further at most; whoever repeats work would never arrive."""
    config = tiny()
    go_on(tmp_path / "whole", config, **tiny_parts())
    folder = tmp_path / "run"
    for _ in range(30):  # resumed, a stage's start or the run's, an epoch, its checkpoint: four at least
        stop_after(folder, config, pace, **tiny_parts())
        if any(isinstance(event, RunFinished) for event in store.story(folder)):
            break
    assert_same(result(folder, config), result(tmp_path / "whole", config))
    assert_nothing_judged_twice(folder, config)


def test_a_candidate_in_the_journal_is_not_judged_again(tmp_path):
    """Stopped three times within one stage: what was judged after the first resume counts as well."""
    config = tiny(candidates=6)
    stop_after(tmp_path, config, 10, **tiny_parts())
    assert scored(journal(tmp_path)) == [(1, 0), (1, 1)]
    stop_after(tmp_path, config, 3, **tiny_parts())
    assert scored(journal(tmp_path)) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    again = go_on(tmp_path, config, **tiny_parts())
    assert [event.candidate for event in again if isinstance(event, CandidateScored) and event.stage == 1] == [4, 5]
    assert_nothing_judged_twice(tmp_path, config)


def test_stopped_right_after_resuming_at_a_boundary_nothing_judged_is_lost(tmp_path):
    config = tiny(candidates=6)
    stop_after(tmp_path, config, 7, **tiny_parts())  # the dense network stands, nothing was judged
    stop_after(tmp_path, config, 5, **tiny_parts())
    assert scored(journal(tmp_path)) == [(1, 0), (1, 1), (1, 2)]
    again = go_on(tmp_path, config, **tiny_parts())
    assert [event.candidate for event in again if isinstance(event, CandidateScored) and event.stage == 1] == [3, 4, 5]
    assert_nothing_judged_twice(tmp_path, config)


def test_a_failed_candidate_stays_failed(tmp_path, monkeypatch):
    from randprune_lab import training

    loss, calls = training.total, []

    def spoiled(terms, config, *, dense=False):
        calls.extend([1] * (not dense))
        return loss(terms, config, dense=dense) + (float("nan") if len(calls) == 1 and not dense else 0.0)

    monkeypatch.setattr(training, "total", spoiled)
    stop_after(tmp_path, tiny(), 9, **tiny_parts())
    go_on(tmp_path, tiny(), **tiny_parts())
    first = next(event for event in store.story(tmp_path) if isinstance(event, CandidateScored))
    assert (first.selection, first.candidate) == (None, 0)
    assert "step 0" in first.failed
    assert_nothing_judged_twice(tmp_path, tiny())


def test_the_ambient_state_at_resume_has_no_say(tmp_path):
    """Another network's weights, another random state, more threads: the checkpoint decides."""
    config = tiny()
    go_on(tmp_path / "whole", config, **tiny_parts())
    stop_after(tmp_path / "run", config, 14, **tiny_parts())
    parts = tiny_parts()
    with torch.no_grad():
        for parameter in parts["model"].parameters():
            parameter.fill_(7.0)
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    try:
        torch.set_num_threads(2)
        go_on(tmp_path / "run", config, **parts)
    finally:
        torch.set_num_threads(threads)
    assert_same(result(tmp_path / "run", config), result(tmp_path / "whole", config))


def test_what_is_resumed_is_not_changed(tmp_path):
    """A checkpoint is frozen: it can be resumed twice."""
    stop_after(tmp_path, tiny(), 17, **tiny_parts())
    resume = store.last_checkpoint(tmp_path)
    before = {name: tensor.clone() for name, tensor in (resume.tensors | resume.dense).items()}
    ends = []
    for _ in range(2):
        items = list(engine.prune(tiny(), resume=resume, **tiny_parts()))
        ends.append([item for item in items if isinstance(item, Checkpoint)][-1].tensors)
        assert same_tensors(before, resume.tensors | resume.dense)
    assert same_tensors(*ends)


# ---- killed between any two things that are done to the disk


@pytest.mark.crash
@pytest.mark.usefixtures("quick")
def test_killed_between_any_two_writes_it_ends_the_same(tmp_path, monkeypatch):
    """What lies on disk before each rename, after it, and at each event is what a kill there would leave."""
    config = tiny()
    folder, shots = tmp_path / "whole", tmp_path / "shots"
    shots.mkdir()

    def shoot():
        shot = shots / f"{len(list(shots.iterdir())):03d}"
        shutil.copytree(folder, shot)
        for path in shot.rglob("*.tmp"):  # whoever resumes is another process
            path.rename(path.with_name(path.name.replace(f".{os.getpid()}.", ".1.")))

    replace = Path.replace

    def watched(self, target):
        shoot()
        moved = replace(self, target)
        shoot()
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", watched)
        for _ in store.record(folder, engine.prune(config, **tiny_parts())):
            shoot()
    expected = result(folder, config)
    histograms = {path.name: path.read_text() for path in (folder / "histograms").iterdir()}
    taken = sorted(shots.iterdir())
    assert len(taken) > 50
    wrong = {}
    for shot in taken:
        finished = any(isinstance(event, RunFinished) for event in store.story(shot))
        try:
            if not finished:
                go_on(shot, config, **tiny_parts())
            assert_same(result(shot, config), expected)
            assert_nothing_judged_twice(shot, config)
            assert {path.name: path.read_text() for path in (shot / "histograms").iterdir()} == histograms
            assert not list(shot.rglob("*.tmp"))
        except (AssertionError, ValueError, OSError) as error:
            wrong[shot.name] = f"{type(error).__name__}: {str(error).replace(str(tmp_path), '')[:90]}"
    assert not wrong, "\n".join(f"{name} {why}" for name, why in wrong.items())


# ---- kill -9

DRIVER = """
import sys, time
from pathlib import Path
from support.killed_run import go_on_slowly
print("go", flush=True)
started = time.perf_counter()
go_on_slowly(Path(sys.argv[1]))
print(time.perf_counter() - started, flush=True)
"""
MOMENTS = random.Random(7).sample([(part + 0.5) / 20 for part in range(20)], 20)  # shares of the run time


def start(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout.readline() == "go\n"
    return child


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The result of a run in a process of its own that is left in peace, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    child = start(folder)
    seconds = float(child.communicate(timeout=120)[0])
    assert child.returncode == 0
    return result(folder, KILLED), seconds


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[CRASH] if number < 3 else [CRASH, pytest.mark.slow]) for number in range(20)]
)
def test_killed_at_a_random_moment_it_ends_the_same(tmp_path, unbroken, number):
    expected, seconds = unbroken
    folder = tmp_path / "run"
    moments = [MOMENTS[number]] if number % 2 else [MOMENTS[number] * 0.6, MOMENTS[number] * 0.4]  # once, or twice
    judged = []
    for moment in moments:
        child = start(folder)
        time.sleep(moment * seconds)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        child.stdout.close()
        if child.returncode == 0 or any(isinstance(event, RunFinished) for event in store.story(folder)):
            break  # it was faster
        assert child.returncode == -signal.SIGKILL
        lines = (folder / "events.jsonl").read_text().split("\n")[:-1] if (folder / "events.jsonl").exists() else []
        judged.append(scored([json.loads(line) for line in lines]))
    if not any(isinstance(event, RunFinished) for event in store.story(folder)):
        go_on(folder, KILLED, **tiny_parts())
    assert_same(result(folder, KILLED), expected)
    assert_nothing_judged_twice(folder, KILLED)
    for before in judged:
        assert scored(journal(folder))[: len(before)] == before


def test_the_driver_is_what_everyone_runs():
    """A network with running statistics and dropout: both could be lost on the way."""
    kinds = {type(module) for module in tiny_parts()["model"].modules()}
    assert {nn.BatchNorm1d, nn.Dropout, nn.Linear} <= kinds
